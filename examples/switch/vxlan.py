"""VXLAN (RFC 7348): Ethernet frames in UDP datagrams. No input and output.

A frame must fit into the path MTU. TCP segments that are too large are cut into smaller ones, as a network card with
segmentation offload does. Other frames that are too large are reported.
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

#: Size in bytes of the outer headers: IP, UDP and VXLAN.
OVERHEAD = {4: 20 + 8 + HEADER_SIZE, 6: 40 + 8 + HEADER_SIZE}

_VALID_VNI = 0x08
_VNET, _ETHERNET = 10, 14
_TCP, _UDP = 6, 17
_WORD = struct.Struct("=H")


@dataclass(frozen=True)
class Options:
    """The options of ``--vxlan``."""

    vni: int
    local: IPv4Address | IPv6Address
    remotes: tuple[IPv4Address | IPv6Address, ...]
    port: int = PORT

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses ``VNI,local=ADDR,remote=ADDR[,remote=…][,port=4789]``. Raises ValueError."""
        number, *rest = text.split(",")
        if not number.isdecimal() or not 0 <= int(number) < 1 << 24:
            raise ValueError(f"VNI must be a number from 0 to {(1 << 24) - 1}, not {number!r}")
        found: dict[str, list[str]] = {"local": [], "remote": [], "port": []}
        for each in rest:
            key, _, value = each.partition("=")
            if key not in found:
                raise ValueError(f"an option must be local=ADDRESS, remote=ADDRESS or port=NUMBER, not {each!r}")
            found[key].append(value)
        if len(found["local"]) != 1 or not found["remote"] or len(found["port"]) > 1:
            raise ValueError(
                f"there must be one local=ADDRESS, at least one remote=ADDRESS, and at most one port=NUMBER, not {text!r}"
            )
        local, *remotes = (ip_address(each) for each in found["local"] + found["remote"])
        if any(each.version != local.version for each in remotes) or len(set(remotes)) < len(remotes):
            raise ValueError(f"addresses must be all IPv4 or all IPv6, and no remote may be given twice, not {text!r}")
        if any(each.is_multicast or each.is_unspecified or each == local for each in remotes):
            raise ValueError(f"a remote must be the address of one other machine, not a group or local: {text!r}")
        port = found["port"][0] if found["port"] else str(PORT)
        if not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ValueError(f"port must be a number from 1 to 65535, not {port!r}")
        return cls(int(number), local, tuple(remotes), int(port))


def header(vni: int) -> bytes:
    """The VXLAN header, which precedes each frame."""
    return struct.pack("!II", _VALID_VNI << 24, vni << 8)


def vni_of(datagram: bytes) -> int | None:
    """The VNI of a datagram that has a frame; None for other datagrams. Reserved bits are ignored (RFC 7348, 5)."""
    if len(datagram) < HEADER_SIZE + _ETHERNET or not datagram[0] & _VALID_VNI:
        return None
    return int.from_bytes(datagram[4:7])


class Joiner:
    """Joins the pieces of an outer datagram that a socket with UDP_GRO has split.

    Over veth, the kernel's VXLAN device sends a UDP super-frame as one datagram, with the size of the inner segments. The
    receiving socket splits the outer datagram into pieces of this size. Only the first piece has a VXLAN header; the
    other pieces follow directly.
    """

    def __init__(self, vni: int) -> None:
        self._header = header(vni)
        self._pieces: list[bytes] = []
        self._from: object = None
        self._missing = 0
        #: How many datagrams were dropped because a piece was missing.
        self.lost = 0

    def feed(self, datagram: bytes, source: object) -> tuple[bytes, int] | None:
        """A whole datagram, and the size of its inner segments or 0. None while pieces are missing."""
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
        """Whether it can be the next piece: all but the last have the size of the first one."""
        if not self._missing or source != self._from or datagram.startswith(self._header):
            return False
        return len(datagram) == min(len(self._pieces[0]), self._missing)


def missing_of(datagram: bytes) -> int:
    """How many bytes of the inner UDP packet are missing in the datagram, by the length in the IP header."""
    frame = bytes(_VNET - HEADER_SIZE) + datagram  # as if the VXLAN header was the end of a virtio_net_hdr
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
    """A hash of MAC addresses, IP addresses and ports, the same for all frames of a flow. Expects a virtio_net_hdr."""
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
    """Turns a frame with a virtio_net_hdr into plain frames of at most *largest* bytes, with complete checksums.

    Raises:
        InvalidFrameError: The frame is too large and is not TCP, or its virtio_net_hdr is invalid.
    """
    if len(frame) - _VNET <= largest and not frame[1]:
        return [frame[_VNET:]] if not frame[0] else segment(frame, Mode.TAP)
    transport = tcp_header(frame)
    if transport:
        headers = transport + (frame[_VNET + transport + 12] >> 4) * 4
        room = largest - headers
        size = _WORD.unpack_from(frame, 4)[0] if frame[1] else room
        if room < 1:
            raise InvalidFrameError(
                f"the headers of the frame have {headers} bytes, and a frame must have at most {largest}"
            )
        if size > room or not frame[1]:
            if not frame[0] & VnetHeader.NEEDS_CSUM and not has_right_checksum(frame, transport):
                raise InvalidFrameError(
                    "the TCP segment is too large and has a wrong checksum: cutting it would hide that"
                )
            frame = cut_smaller(frame, transport, headers, room)
    found = segment(frame, Mode.TAP)
    too_large = max(map(len, found))
    if too_large > largest:
        raise InvalidFrameError(f"a frame must have at most {largest} bytes, not {too_large}")
    return found


def cut_smaller(frame: bytes, transport: int, headers: int, size: int) -> bytes:
    """The frame with a virtio_net_hdr that asks for segments of *size* bytes of payload."""
    at = _VNET + ether_type_at(frame)
    kind = VnetHeader.GSO_TCPV4 if frame[at : at + 2] == b"\x08\x00" else VnetHeader.GSO_TCPV6
    made = VnetHeader(VnetHeader.NEEDS_CSUM, kind | frame[1] & VnetHeader.GSO_ECN, headers, size, transport, 16)
    return made.pack() + frame[_VNET:]


def ether_type_at(frame: bytes) -> int:
    """Offset of the EtherType after up to two VLAN tags, not counting the virtio_net_hdr."""
    at = _ETHERNET - 2
    for _ in range(2):
        if frame[_VNET + at : _VNET + at + 2] in (b"\x81\x00", b"\x88\xa8"):
            at += 4
    return at


def tcp_header(frame: bytes) -> int:
    """Offset of the TCP header, not counting the virtio_net_hdr. 0 if it is not TCP, or has IPv6 extension headers."""
    data = memoryview(frame)[_VNET:]
    at = ether_type_at(frame)
    kind, network = bytes(data[at : at + 2]), at + 2
    if kind == b"\x08\x00" and len(data) >= network + 40 and data[network + 9] == _TCP:
        return network + (data[network] & 15) * 4 if len(data) >= network + (data[network] & 15) * 4 + 20 else 0
    if kind == b"\x86\xdd" and len(data) >= network + 60 and data[network + 6] == _TCP:
        return network + 40
    return 0


def has_right_checksum(frame: bytes, transport: int) -> bool:
    """Whether the checksum of a TCP segment (RFC 9293) is correct. It must not have IPv6 extension headers."""
    covered = frame[_VNET + transport :]
    pseudo = _pseudo_header(frame, len(covered), _TCP)
    return int.from_bytes(pseudo + covered + b"\0" * (len(covered) % 2)) % 65535 == 0


def as_sent(frame: bytes, largest: int) -> bytes:
    """A received frame with the virtio_net_hdr that it had when it was sent, as far as this can be found out.

    Over veth, the kernel's VXLAN device sends a TCP super-frame as one datagram, larger than any MTU.
    """
    frame = with_unfinished(frame)
    if len(frame) - _VNET <= largest or not frame[0] or not (transport := tcp_header(frame)):
        return frame
    headers = transport + (frame[_VNET + transport + 12] >> 4) * 4
    return cut_smaller(frame, transport, headers, largest - headers) if headers < largest else frame


def with_unfinished(frame: bytes) -> bytes:
    """The frame with a virtio_net_hdr. It asks for a checksum if the frame only has the sum of the pseudo header.

    Between namespaces, the kernel leaves the inner checksum to a network card, but there is none. So a frame that its
    VXLAN device sends over veth arrives at a socket without a complete checksum.
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
    # A complete checksum that happens to equal that sum does not change when it is completed again.
    made = VnetHeader(VnetHeader.NEEDS_CSUM, csum_start=transport - _VNET, csum_offset=offset)
    return made.pack() + frame[_VNET:]


def _pseudo_header(frame: bytes, length: int, protocol: int) -> bytes:
    """The pseudo header of IPv6 (RFC 8200). The sum is the same for IPv4."""
    network = _VNET + ether_type_at(frame) + 2
    first, last = (12, 20) if frame[network - 2 : network] == b"\x08\x00" else (8, 40)
    return frame[network + first : network + last] + length.to_bytes(4) + protocol.to_bytes(4)
