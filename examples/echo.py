"""Answers ping and UDP echo for whole networks. One task serves each queue of the interface.

The interface gets one address of each network, and the program answers for all other addresses. Run it as root, from the
root of the repository::

    ip netns add demo
    ip netns exec demo python examples/echo.py echo0 --mode tun --queues 4

and in a second terminal::

    ip netns exec demo ping 10.77.0.2
    ip netns exec demo ping fd77::1234

Press Ctrl-C to end the program and to remove the interface. Then remove the namespace: ``ip netns del demo``. Without
root, start a shell with ``unshare -Urn``, and run the commands there without ``ip netns exec demo``, the program with
``&`` at the end. With ``--mode tap``, the interface carries Ethernet frames, and the program also answers ARP and IPv6
neighbour solicitations. ``make demo`` runs both modes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from struct import Struct
from typing import TypeAlias

from aiotuntap import AsyncTuntap, DeviceGoneError, InvalidFrameError, LinkDownError, SetupError, TuntapQueue

Interface: TypeAlias = IPv4Interface | IPv6Interface

# -- from a frame to its reply: no input and output --------------------------------------------------------------------

MAC = bytes.fromhex("027777777777")  # locally administered: no manufacturer uses it
ARP, IPV4, IPV6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"  # EtherTypes
ICMP, UDP, ICMPV6 = 1, 17, 58
ECHO_PORT = b"\x00\x07"
IPV4_HEADER = Struct("!BBHHHBBH4s4s")
IPV6_HEADER = Struct("!IHBB16s16s")


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071). It is 0 for data that contains a correct checksum.

    The one's complement sum of 16-bit words equals the whole data, as one number, modulo 0xFFFF.
    """
    number = int.from_bytes(data)
    return -(number << 8 if len(data) & 1 else number) % 0xFFFF


def checksum_with_addresses(addresses: bytes, protocol: int, body: bytes) -> int:
    """The checksum including the pseudo header (RFC 8200, 8.1). The sum is the same for IPv4."""
    return checksum(addresses + (len(body) << 32 | protocol).to_bytes(8) + body)


def echo_reply(request: bytes, kind: int, correction: int) -> bytes:
    """The reply to an ICMP echo request: the type is replaced. *correction* updates the checksum (RFC 1624)."""
    total = int.from_bytes(request[2:4]) + correction
    return bytes((kind, 0)) + ((total & 0xFFFF) + (total >> 16)).to_bytes(2) + request[4:]


class Responder:
    """Makes the replies to frames."""

    def __init__(self, mode: str, addresses: list[Interface]) -> None:
        """Answers for all networks of *addresses*, but not for *addresses*, which belong to the host."""
        self.reply: Callable[[bytes], bytes | None] = self.reply_ethernet if mode == "tap" else self.reply_ip
        #: By the size of an address in bytes: pairs of network and mask, and the addresses for which it does not answer.
        self._networks: dict[int, list[tuple[int, int]]] = {4: [], 16: []}
        self._silent: dict[int, set[int]] = {4: set(), 16: set()}
        for address in addresses:
            network, size = address.network, len(address.packed)
            self._networks[size].append((int(network.network_address), int(network.netmask)))
            self._silent[size].add(int(address))
            if size == 4 and network.prefixlen < 31:
                self._silent[size] |= {int(network.network_address), int(network.broadcast_address)}

    def answers(self, address: bytes) -> bool:
        """Whether this program answers for *address*."""
        number, size = int.from_bytes(address), len(address)
        for network, mask in self._networks[size]:
            if number & mask == network:
                return number not in self._silent[size]
        return False

    def reply_ethernet(self, frame: bytes) -> bytes | None:
        """The Ethernet frame that answers *frame*. None if the frame is malformed or not for us."""
        destination, source, kind, packet, reply = frame[:6], frame[6:12], frame[12:14], frame[14:], None
        if len(frame) < 14 or source[0] & 1:  # a group address is never a sender
            return None
        if kind == ARP:
            reply = self.reply_arp(packet)
        elif kind == IPV6 and packet[6:7] == b"\x3a" and packet[40:41] == b"\x87":
            reply = self.reply_solicitation(packet)
        elif kind == IPV4 and destination == MAC:
            reply = self.reply_ipv4(packet)
        elif kind == IPV6 and destination == MAC:
            reply = self.reply_ipv6(packet)
        return None if reply is None else source + MAC + kind + reply

    def reply_arp(self, packet: bytes) -> bytes | None:
        """The reply to an ARP request (RFC 826). Announcements and probes (RFC 5227) get none."""
        sender, target = packet[14:18], packet[24:28]
        if len(packet) < 28 or packet[:8] != b"\x00\x01\x08\x00\x06\x04\x00\x01" or sender in (target, bytes(4)):
            return None
        return packet[:7] + b"\x02" + MAC + target + packet[8:18] if self.answers(target) else None

    def reply_solicitation(self, packet: bytes) -> bytes | None:
        """The neighbour advertisement (RFC 4861, 4.4). Duplicate address detection (source ``::``) gets no answer."""
        if len(packet) < 64:
            return None
        first, length, _, hop_limit, source, destination = IPV6_HEADER.unpack_from(packet)
        body, target = packet[40 : 40 + length], packet[48:64]
        if first >> 28 != 6 or hop_limit != 255 or not 24 <= length == len(body) or body[1]:
            return None
        if source[0] == 0xFF or source == bytes(16) or not self.answers(target):
            return None
        if destination not in (target, b"\xff\x02" + bytes(9) + b"\x01\xff" + target[13:]):
            return None
        options = body[24:]
        while options:
            size = 8 * options[1] if len(options) > 1 else 0
            if not 0 < size <= len(options):
                return None
            options = options[size:]
        if checksum_with_addresses(source + destination, ICMPV6, body):
            return None
        # Flags: solicited, override. Option 2: the target's link-layer address; its length is 1 (unit: eight bytes).
        answer = b"\x88\0\0\0\x60\0\0\0" + target + b"\x02\x01" + MAC
        check = checksum_with_addresses(target + source, ICMPV6, answer)
        header = IPV6_HEADER.pack(6 << 28, len(answer), ICMPV6, 255, target, source)
        return header + answer[:2] + check.to_bytes(2) + answer[4:]

    def reply_ip(self, packet: bytes) -> bytes | None:
        """The IP packet that answers *packet*. None if the packet is malformed or not for us."""
        return self.reply_ipv6(packet) if packet[:1] >= b"\x60" else self.reply_ipv4(packet)

    def reply_ipv4(self, packet: bytes) -> bytes | None:
        if len(packet) < 20:
            return None
        first, tos, length, _, fragment, _, protocol, _, source, destination = IPV4_HEADER.unpack_from(packet)
        size = (first & 15) * 4
        if first >> 4 != 4 or not 20 <= size <= length <= len(packet) or fragment & 0x3FFF or checksum(packet[:size]):
            return None
        if not self.answers(destination) or source == destination or not 0 < source[0] < 224 or source[0] == 127:
            return None
        payload, reply = packet[size:length], None
        if protocol == ICMP and payload[:2] == b"\x08\0" and len(payload) >= 8 and not checksum(payload):
            reply = echo_reply(payload, 0, 0x0800)
        elif protocol == UDP:
            reply = self.reply_udp(payload, source + destination, required=False)
        if reply is None:
            return None
        # Don't fragment (0x4000): the identification may be 0 (RFC 6864).
        header = IPV4_HEADER.pack(0x45, tos, 20 + len(reply), 0, 0x4000, 64, protocol, 0, destination, source)
        return header[:10] + checksum(header).to_bytes(2) + header[12:] + reply

    def reply_ipv6(self, packet: bytes) -> bytes | None:
        if len(packet) < 40:
            return None
        first, length, protocol, _, source, destination = IPV6_HEADER.unpack_from(packet)
        payload, reply = packet[40 : 40 + length], None
        if first >> 28 != 6 or len(payload) != length or not self.answers(destination):
            return None
        if source[0] == 0xFF or source in (bytes(16), destination):
            return None
        if protocol == ICMPV6 and payload[:2] == b"\x80\0" and length >= 8:
            if not checksum_with_addresses(source + destination, ICMPV6, payload):
                reply = echo_reply(payload, 129, 0xFEFF)
        elif protocol == UDP:
            reply = self.reply_udp(payload, source + destination, required=True)
        return None if reply is None else IPV6_HEADER.pack(first, length, protocol, 64, destination, source) + reply

    def reply_udp(self, datagram: bytes, addresses: bytes, *, required: bool) -> bytes | None:
        """The datagram with its ports swapped: the checksum stays the same. Over IPv4, checksum 0 means none."""
        port, check, size = datagram[:2], datagram[6:8], len(datagram)
        # Ignore datagrams from the echo port: two echo servers would answer each other without end.
        if size < 8 or datagram[2:4] != ECHO_PORT or port in (b"\0\0", ECHO_PORT) or datagram[4:6] != size.to_bytes(2):
            return None
        wrong = required if check == b"\0\0" else checksum_with_addresses(addresses, UDP, datagram)
        return None if wrong else ECHO_PORT + port + datagram[4:]


# -- queues and tasks --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Count:
    """Counts the frames of one queue. A reply is lost if the kernel refused it or the interface was down."""

    queue: TuntapQueue
    read: int = 0
    ignored: int = 0

    @property
    def answered(self) -> int:
        return self.queue.stats.frames_written

    def __str__(self) -> str:
        lost = self.read - self.answered - self.ignored
        return f"{self.read} read, {self.answered} answered, {self.ignored} ignored{f', {lost} lost' if lost else ''}"


async def serve(queue: TuntapQueue, responder: Responder, count: Count) -> None:
    """Answers the frames of one queue, on the same queue, until it is cancelled or the interface is deleted."""
    reply = responder.reply
    while True:
        frame = await queue.read_frame()
        count.read += 1
        answer = reply(frame)
        if answer is None:
            count.ignored += 1
            continue
        with contextlib.suppress(LinkDownError, InvalidFrameError):  # the reply is lost: the sender will ask again
            await queue.write_frame(answer)


async def show(counts: list[Count]) -> None:
    """Shows the counters in one line of the terminal, every second."""
    while True:
        line = " | ".join(f"q{number} {count.read} in {count.answered} out" for number, count in enumerate(counts))
        print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        await asyncio.sleep(1)


async def run(tun: AsyncTuntap, addresses: list[Interface]) -> None:
    """Opens the interface and answers on all its queues, until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with tun:
        await tun.configure(addresses=[str(address) for address in addresses], up=True)
        print(f"ready: {tun.name}, {tun.mode}, {len(tun.queues)} queues, {' '.join(map(str, addresses))}", flush=True)
        responder = Responder(tun.mode, addresses)
        counts = [Count(queue) for queue in tun.queues]
        work = [serve(count.queue, responder, count) for count in counts]
        if sys.stdout.isatty():
            work.append(show(counts))
        tasks = [asyncio.ensure_future(each) for each in (stop.wait(), *work)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            lines = [] if sys.stdout.isatty() else [f"queue {number}: {count}" for number, count in enumerate(counts)]
            print("\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description="Answers ping and UDP echo (port 7) for whole networks.")
    parser.add_argument("name", help="name of the interface, such as echo0; with '' or 'echo%%d' the kernel chooses")
    parser.add_argument("--mode", choices=("tun", "tap"), default="tun", help="IP packets or Ethernet frames")
    parser.add_argument(
        "--queues", type=int, default=1, metavar="N", help="number of queues; the kernel distributes flows among them"
    )
    parser.add_argument(
        "--address",
        type=ip_interface,
        action="append",
        help="address of the interface, such as 10.77.0.1/24; may be repeated",
    )
    parser.add_argument("--netns", help="network namespace of the interface: a name or a path (default: this one)")
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop (pip install uvloop)")
    options = parser.parse_args()
    addresses = options.address or [ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")]
    try:
        tun = AsyncTuntap(options.name, mode=options.mode, queues=options.queues, netns=options.netns)
    except ValueError as error:
        parser.error(str(error))
    try:
        if options.uvloop:
            import uvloop

            uvloop.run(run(tun, addresses))
        else:
            asyncio.run(run(tun, addresses))
    except (SetupError, DeviceGoneError) as error:
        print(f"{parser.prog}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
