"""An encrypted tunnel between two machines: TUN over UDP, in batches, with one key that both ends have.

Install ``cryptography``. Make a key on one machine and copy it to the other. Then run one command on each, as root::

    (umask 077; head -c 32 /dev/urandom >vpn.key)
    python examples/tunnel.py vpn0 vpn.key :51820 192.0.2.2:51820 --address 10.88.0.1/24 --address fd88::1/64
    python examples/tunnel.py vpn0 vpn.key :51820 192.0.2.1:51820 --address 10.88.0.2/24 --address fd88::2/64

Now ``ping 10.88.0.2`` works on the first machine. Each end may start first, restart, or lose its route for a while. If
the interface is deleted, the exit status is 1. "Build a tunnel" in docs/howto.md explains the code. It is not audited.
"""

import argparse
import asyncio
import os
import signal
import time
from contextlib import suppress
from hashlib import blake2s
from hmac import compare_digest
from importlib import import_module
from itertools import count
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from aiotuntap import AsyncTuntap, InvalidFrameError, LinkDownError, Offload
from aiotuntap.udp import Address, UdpStream

HELLO, NOBODY, WINDOW = b"\xff" * 8, bytes(16), 4096  # HELLO replaces the number of a sealed packet


class Channel:
    """Turns packets into datagrams and back. Each end is identified by its start: the time, and random bytes."""

    def __init__(self, key: bytes) -> None:
        self._key, self._start, self._heard = key, time.time_ns().to_bytes(8) + os.urandom(8), NOBODY
        self._numbers = count()  # never restarts, not even for a new peer
        self._meet(NOBODY)

    def _meet(self, peer: bytes) -> None:
        self._peer, self._seen = peer, [-1] * WINDOW
        out, back = (blake2s(starts, key=self._key).digest() for starts in (self._start + peer, peer + self._start))
        self._seal, self._unseal = ChaCha20Poly1305(out).encrypt, ChaCha20Poly1305(back).decrypt

    def hello(self, starts: bytes = b"") -> bytes:
        """A datagram with our start, and with the last start of the other end that we received."""
        starts = starts or self._start + self._heard
        return HELLO + starts + blake2s(starts, key=self._key, person=b"hello", digest_size=16).digest()

    def seal(self, packets: list[bytes]) -> list[bytes]:
        """One datagram for each packet, or none while the peer is unknown."""
        numbers = (next(self._numbers).to_bytes(8) for _ in packets if self._peer != NOBODY)
        return [n + self._seal(bytes(4) + n, packet, None) for n, packet in zip(numbers, packets, strict=False)]

    def open(self, received: list[tuple[bytes, Address]]) -> list[bytes]:
        """The packets of the datagrams that are authentic and new."""
        packets = []
        for datagram, _ in received:
            number = int.from_bytes(nonce := bytes(4) + datagram[:8])
            if datagram.startswith(HELLO) and compare_digest(datagram, self.hello(datagram[8:40])):
                sender, receiver = datagram[8:24], datagram[24:40]
                self._heard = self._heard if sender == self._start else sender
                if receiver == self._start and sender > self._peer:  # not a replay from before our start or its own
                    self._meet(sender)
            elif len(datagram) >= 24 and number > self._seen[number % WINDOW]:
                try:
                    packets.append(self._unseal(nonce, datagram[8:], None))
                except InvalidTag:
                    continue
                self._seen[number % WINDOW] = number
        return packets


async def carry(read: Any, change: Any, write: Any) -> None:
    while True:
        with suppress(LinkDownError, InvalidFrameError):  # the batch is lost
            await write(change(await read()))


async def run(options: argparse.Namespace, key: bytes) -> None:
    offload = Offload.NONE if options.no_offload else Offload.ALL
    tun = AsyncTuntap(options.name, mode="tun", multi_queue=False, vnet_header=options.whole, offload=offload)
    async with UdpStream(options.local) as udp, tun:
        await tun.configure(addresses=options.address, mtu=1420, txqueuelen=1000, up=True)
        channel, queue, send = Channel(key), tun.queues[0], lambda batch: udp.write_datagrams(batch, options.peer)
        ways = carry(queue.read_frames, channel.seal, send), carry(udp.read_datagrams, channel.open, queue.write_frames)
        work = asyncio.gather(carry(lambda: asyncio.sleep(0.5), lambda _: [channel.hello()], send), *ways)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
        print("ready:", tun.name, flush=True)
        await work


def main() -> None:
    parser = argparse.ArgumentParser(description="An encrypted tunnel over UDP.")
    parser.add_argument("name", help="name of the interface, such as vpn0")
    parser.add_argument("key", help="file with 32 random bytes, the same at both ends")
    parser.add_argument("local", help="local address, such as :51820")
    parser.add_argument("peer", type=Address, help="address of the other end, such as 192.0.2.2:51820")
    parser.add_argument("--address", action="append", help="interface address, such as 10.88.0.1/24; may be repeated")
    parser.add_argument("--no-offload", action="store_true", help="get single packets from the kernel")
    parser.add_argument("--whole", action="store_true", help="seal whole super-frames; use it at both ends")
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop (pip install uvloop)")
    options = parser.parse_args()
    try:
        with open(options.key, "rb") as file:
            key, mode = file.read(), os.fstat(file.fileno()).st_mode & 0o777
        if len(key) != 32 or mode & 0o077:
            parser.error(
                f"{options.key} must have 32 bytes and mode 600 (chmod 600), not {len(key)} bytes and mode {mode:o}"
            )
        with suppress(asyncio.CancelledError, KeyboardInterrupt):
            (import_module("uvloop") if options.uvloop else asyncio).run(run(options, key))
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
