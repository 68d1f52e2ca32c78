"""VXLAN (RFC 7348): Ethernet frames in UDP datagrams. Bytes to bytes: no socket, no clock.

A frame that leaves has to fit the way. The segments of a TCP stream are cut smaller where they do not, which is what any
network card may do with them; anything else that is too large is reported.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Self
from zlib import crc32

from aiotuntap import InvalidFrameError, Mode, VnetHeader, segment

PORT = 4789
HEADER_SIZE = 8

#: Bytes that the outer headers take from the MTU of the way: IP, UDP and VXLAN.
OVERHEAD = {4: 20 + 8 + HEADER_SIZE, 6: 40 + 8 + HEADER_SIZE}

_VALID_VNI = 0x08
_VNET, _ETHERNET = 10, 14
_TCP, _UDP = 6, 17
_WORD = struct.Struct("=H")


@dataclass(frozen=True)
class Options:
    """What ``--vxlan`` asks for."""

    vni: int
    local: IPv4Address | IPv6Address
    remotes: tuple[IPv4Address | IPv6Address, ...]
    port: int = PORT

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``VNI,local=ADDR,remote=ADDR[,remote=…][,port=4789]``. Raises ValueError that says what is wrong."""
        number, *rest = text.split(",")
        if not number.isdecimal() or not 0 <= int(number) < 1 << 24:
            raise ValueError(f"VNI must be a number from 0 to {(1 << 24) - 1}, not {number!r}")
        found: dict[str, list[str]] = {"local": [], "remote": [], "port": []}
        for each in rest:
            key, _, value = each.partition("=")
            if key not in found:
                raise ValueError(f"{each!r}: local=ADDRESS, remote=ADDRESS or port=NUMBER")
            found[key].append(value)
        if len(found["local"]) != 1 or not found["remote"] or len(found["port"]) > 1:
            raise ValueError("one local=ADDRESS, at least one remote=ADDRESS, and at most one port=NUMBER")
        local, *remotes = (ip_address(each) for each in found["local"] + found["remote"])
        if any(each.version != local.version for each in remotes) or len(set(remotes)) < len(remotes):
            raise ValueError("all addresses must be IPv4, or all IPv6, and each remote another one")
        port = found["port"][0] if found["port"] else str(PORT)
        if not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ValueError(f"port must be a number from 1 to 65535, not {port!r}")
        return cls(int(number), local, tuple(remotes), int(port))


def header(vni: int) -> bytes:
    """What stands in front of each frame."""
    return struct.pack("!II", _VALID_VNI << 24, vni << 8)


def vni_of(datagram: bytes) -> int | None:
    """The VNI of a datagram that holds a frame; None for anything else. Reserved bits say nothing (RFC 7348, 5)."""
    if len(datagram) < HEADER_SIZE + _ETHERNET or not datagram[0] & _VALID_VNI:
        return None
    return int.from_bytes(datagram[4:7])


class Joiner:
    """Puts together again what a socket with UDP_GRO took apart.

    Over veth, the kernel's VXLAN device hands a super-frame of UDP over as one datagram, with the size of the segments
    within. That is what the socket then cuts the outer datagram into: only the first piece has a VXLAN header, and its
    packet goes on in those behind it, which follow at once.
    """

    def __init__(self, vni: int) -> None:
        self._header = header(vni)
        self._pieces: list[bytes] = []
        self._from: object = None
        self._missing = 0
        #: Datagrams that ended before their packet did, and did not go on.
        self.lost = 0

    def feed(self, datagram: bytes, source: object) -> tuple[bytes, int] | None:
        """A whole datagram, and the size of the segments within or 0; None while the rest of it is still to come."""
        if self._continues(datagram, source):
            self._pieces.append(datagram)
            self._missing -= len(datagram)
            return None if self._missing else (b"".join(self._pieces), len(self._pieces[0]))
        if self._missing:
            self.lost += 1
        self._missing = missing_of(datagram) if datagram.startswith(self._header) else 0
        if not self._missing:
            return datagram, 0
        self._pieces, self._from = [datagram], source
        return None

    def _continues(self, datagram: bytes, source: object) -> bool:
        """Whether it can be the next piece of what was begun: as large as the first one, unless it is the last."""
        if not self._missing or source != self._from or datagram.startswith(self._header):
            return False
        return len(datagram) == min(len(self._pieces[0]), self._missing)


def missing_of(datagram: bytes) -> int:
    """Bytes that the UDP packet within has, by its IP header, and the datagram has not."""
    frame = bytes(_VNET - HEADER_SIZE) + datagram  # the VXLAN header stands where a virtio_net_hdr would
    at = _VNET + ether_type_at(frame)
    kind, network = frame[at : at + 2], at + 2
    if kind == b"\x08\x00" and len(frame) >= network + 20 and frame[network + 9] == _UDP:
        end = network + int.from_bytes(frame[network + 2 : network + 4])
    elif kind == b"\x86\xdd" and len(frame) >= network + 40 and frame[network + 6] == _UDP:
        end = network + 40 + int.from_bytes(frame[network + 4 : network + 6])
    else:
        return 0
    return max(0, end - len(frame))


def joined(datagram: bytes, size: int) -> bytes:
    """The UDP super-frame in a datagram of `Joiner`, with its virtio_net_hdr."""
    frame = with_unfinished(bytes(_VNET) + datagram[HEADER_SIZE:])
    start = int.from_bytes(frame[6:8], sys.byteorder)
    if not frame[0]:
        return frame
    return VnetHeader(VnetHeader.NEEDS_CSUM, VnetHeader.GSO_UDP_L4, start + 8, size, start, 6).pack() + frame[_VNET:]


def flow_hash(frame: bytes) -> int:
    """The same for all frames of a flow, from MAC and IP addresses and ports. The frame has a virtio_net_hdr."""
    key = frame[10:22]
    if frame[22:25] == b"\x08\x00\x45":
        key += frame[36:44]
        if frame[33] in (_TCP, _UDP) and not (frame[30] & 0x3F or frame[31]):  # not a fragment
            key += frame[44:48]
    elif frame[22:24] == b"\x86\xdd":
        key += frame[32:64]
        if frame[30:31] in (b"\x06", b"\x11"):
            key += frame[64:68]
    return crc32(key)


def fit(frame: bytes, largest: int) -> list[bytes]:
    """Plain frames of *largest* bytes at most, for a frame with a virtio_net_hdr; complete, and in order.

    Raises:
        InvalidFrameError: It is too large and not of TCP, or its header is wrong.
    """
    if len(frame) - _VNET <= largest and not frame[1]:
        return [frame[_VNET:]] if not frame[0] else segment(frame, Mode.TAP)
    transport = tcp_header(frame)
    if transport:
        headers = transport + (frame[_VNET + transport + 12] >> 4) * 4
        room = largest - headers
        size = _WORD.unpack_from(frame, 4)[0] if frame[1] else room
        if room < 1:
            raise InvalidFrameError(f"headers of {headers} bytes, and {largest} at most for all")
        if size > room or not frame[1]:
            if not frame[0] & VnetHeader.NEEDS_CSUM and not has_right_checksum(frame, transport):
                raise InvalidFrameError("a TCP segment with a wrong checksum, which cutting it would make a right one")
            frame = cut_smaller(frame, transport, headers, room)
    found = segment(frame, Mode.TAP)
    too_large = max(map(len, found))
    if too_large > largest:
        raise InvalidFrameError(f"a frame of {too_large} bytes, and {largest} at most")
    return found


def cut_smaller(frame: bytes, transport: int, headers: int, size: int) -> bytes:
    """The frame as one to be cut into segments of *size* bytes of payload."""
    at = _VNET + ether_type_at(frame)
    kind = VnetHeader.GSO_TCPV4 if frame[at : at + 2] == b"\x08\x00" else VnetHeader.GSO_TCPV6
    made = VnetHeader(VnetHeader.NEEDS_CSUM, kind | frame[1] & VnetHeader.GSO_ECN, headers, size, transport, 16)
    return made.pack() + frame[_VNET:]


def ether_type_at(frame: bytes) -> int:
    """Where the EtherType is, behind up to two VLAN tags, from the start of the frame behind the virtio_net_hdr."""
    at = _ETHERNET - 2
    for _ in range(2):
        if frame[_VNET + at : _VNET + at + 2] in (b"\x81\x00", b"\x88\xa8"):
            at += 4
    return at


def tcp_header(frame: bytes) -> int:
    """Where the TCP header begins behind the virtio_net_hdr; 0 for anything but TCP without IPv6 extension headers."""
    data = memoryview(frame)[_VNET:]
    at = ether_type_at(frame)
    kind, network = bytes(data[at : at + 2]), at + 2
    if kind == b"\x08\x00" and len(data) >= network + 40 and data[network + 9] == _TCP:
        return network + (data[network] & 15) * 4 if len(data) >= network + (data[network] & 15) * 4 + 20 else 0
    if kind == b"\x86\xdd" and len(data) >= network + 60 and data[network + 6] == _TCP:
        return network + 40
    return 0


def has_right_checksum(frame: bytes, transport: int) -> bool:
    """Whether the checksum of a TCP segment (RFC 9293) is right. For one that has no IPv6 extension headers."""
    covered = frame[_VNET + transport :]
    pseudo = _pseudo_header(frame, len(covered), _TCP)
    return int.from_bytes(pseudo + covered + b"\0" * (len(covered) % 2)) % 65535 == 0


def as_sent(frame: bytes, largest: int) -> bytes:
    """A frame that came over the way, with the virtio_net_hdr that it had when it left, as far as that can be told.

    Over veth the kernel's VXLAN device hands over TCP super-frames as one datagram, which no way could carry.
    """
    frame = with_unfinished(frame)
    if len(frame) - _VNET <= largest or not frame[0] or not (transport := tcp_header(frame)):
        return frame
    headers = transport + (frame[_VNET + transport + 12] >> 4) * 4
    return cut_smaller(frame, transport, headers, largest - headers) if headers < largest else frame


def with_unfinished(frame: bytes) -> bytes:
    """The frame, with a virtio_net_hdr that says so if its checksum holds the sum of the pseudo header only.

    Between namespaces the kernel leaves the inner checksum to a network card that never comes: what its VXLAN device
    sends over veth has none when it arrives at a socket. The kernel's own device at the other end would not mind.
    """
    at = _VNET + ether_type_at(frame)
    kind, network = frame[at : at + 2], at + 2
    if kind == b"\x08\x00" and len(frame) >= network + 20 and not (frame[network + 6] & 0x3F or frame[network + 7]):
        transport, protocol = network + (frame[network] & 15) * 4, frame[network + 9]
        end = network + int.from_bytes(frame[network + 2 : network + 4])
    elif kind == b"\x86\xdd" and len(frame) >= network + 40:
        transport, protocol = network + 40, frame[network + 6]
        end = transport + int.from_bytes(frame[network + 4 : network + 6])
    else:
        return frame
    offset = {_TCP: 16, _UDP: 6}.get(protocol)
    if offset is None or not transport + offset + 2 <= end <= len(frame):
        return frame
    field = int.from_bytes(frame[transport + offset : transport + offset + 2])
    pseudo = int.from_bytes(_pseudo_header(frame, end - transport, protocol))
    if not field or field % 65535 != pseudo % 65535:
        return frame
    # A right checksum that happens to be that sum stays the same when it is completed.
    made = VnetHeader(VnetHeader.NEEDS_CSUM, csum_start=transport - _VNET, csum_offset=offset)
    return made.pack() + frame[_VNET:]


def _pseudo_header(frame: bytes, length: int, protocol: int) -> bytes:
    """Of IPv6 (RFC 8200); that of IPv4 adds up to the same."""
    network = _VNET + ether_type_at(frame) + 2
    first, last = (12, 20) if frame[network - 2 : network] == b"\x08\x00" else (8, 40)
    return frame[network + first : network + last] + length.to_bytes(4) + protocol.to_bytes(4)
