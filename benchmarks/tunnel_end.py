"""A child process that is one end of an encrypted tunnel.

``LOOP OFFLOAD STATION NAME ADDRESS MIDDLE PORT PEER`` makes a TUN interface in the namespace *STATION*, seals each of its
packets, and sends them from one port to another in the namespace *MIDDLE*. It prints "ready" and ends by SIGTERM.

The way over UDP is the same whatever the offloads are: several datagrams in one message, where they are of one size.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from aiotuntap import AsyncTuntap, Offload, TuntapQueue

from .lab import socket_in
from .report import LOOPS

#: What WireGuard leaves of an MTU of 1500.
_MTU = 1420
_KEY = bytes(range(32))
#: In front of the sealed packet: the counter that is its nonce.
_COUNTER = struct.Struct("<Q")
_UDP_SEGMENT, _UDP_GRO = 103, 104
#: Datagrams and bytes in one message, at most.
_MOST, _LARGEST = 64, 65000
#: Bytes that wait in the kernel, either way.
_ROOM = 1 << 22
#: Messages that are received before what is in them is written.
_MESSAGES = 8


def _messages(datagrams: list[bytes]) -> Iterator[list[bytes]]:
    """Runs of datagrams of one size; the last of a run may be shorter."""
    start = 0
    while start < len(datagrams):
        size = len(datagrams[start])
        end, most = start + 1, start + min(_MOST, _LARGEST // size)
        while end < len(datagrams) and end < most and len(datagrams[end - 1]) == size >= len(datagrams[end]):
            end += 1
        yield datagrams[start:end]
        start = end


async def _outwards(queue: TuntapQueue, sock: socket.socket) -> None:
    seal, counter = ChaCha20Poly1305(_KEY).encrypt, 0
    while True:
        datagrams = []
        for frame in await queue.read_frames():
            number = _COUNTER.pack(counter)
            datagrams.append(number + seal(b"\0\0\0\0" + number, frame, None))
            counter += 1
        for message in _messages(datagrams):
            size = struct.pack("=H", len(message[0]))
            # Lost where the other end is not there yet, or where there is no room.
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                sock.sendmsg(message, [(socket.IPPROTO_UDP, _UDP_SEGMENT, size)] if len(message) > 1 else [])


async def _inwards(queue: TuntapQueue, sock: socket.socket) -> None:
    unseal = ChaCha20Poly1305(_KEY).decrypt
    while True:
        frames = []
        try:
            for _ in range(_MESSAGES):
                data, control, _, _ = sock.recvmsg(65535, socket.CMSG_SPACE(4))
                size = struct.unpack("=i", control[0][2])[0] if control else len(data)
                for at in range(0, len(data), size):
                    number = data[at : at + 8]
                    frames.append(unseal(b"\0\0\0\0" + number, data[at + 8 : at + size], None))
        except (BlockingIOError, ConnectionRefusedError, InvalidTag):
            if not frames:
                await _readable(sock)
        await queue.write_frames(frames)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock)


async def _run(offload: str, station: str, name: str, address: str, middle: str, port: str, peer: str) -> None:
    with socket_in(middle, socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        for option in (32, 33):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
            sock.setsockopt(socket.SOL_SOCKET, option, _ROOM)
        sock.bind(("127.0.0.1", int(port)))
        sock.connect(("127.0.0.1", int(peer)))
        how = Offload.ALL if offload == "transparent" else Offload.NONE
        async with AsyncTuntap(name, mode="tun", netns=station, offload=how) as tun:
            await tun.configure(addresses=[address], mtu=_MTU, up=True, txqueuelen=1000)
            print("ready", flush=True)
            await asyncio.gather(_outwards(tun.queues[0], sock), _inwards(tun.queues[0], sock))


def main(loop: str, *arguments: str) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(_run(*arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
