"""Where the headers of a frame are. Everything that is read from a frame is checked against its real length first."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ._abi import ETHERNET_HEADER_SIZE, VLAN_TAG_SIZE
from ._errors import InvalidFrameError
from ._types import Mode

TCP, UDP = 6, 17

ETH_IPV4, ETH_IPV6 = 0x0800, 0x86DD
_VLAN_TAGS = (0x8100, 0x88A8)
_MOST_VLAN_TAGS = 2

# IPv6 extension headers that may stand before TCP and UDP: hop-by-hop, routing, destination options (RFC 8200).
_EXTENSIONS = (0, 43, 60)

_WORD = struct.Struct(">H")

#: Where the checksum is in the transport header, by protocol.
CHECKSUM_AT = {TCP: 16, UDP: 6}


class Layout(NamedTuple):
    """Offsets into one buffer that holds a frame."""

    version: int
    protocol: int
    network: int
    transport: int
    payload: int
    #: Where the packet ends by what its IP header says: at the end of the buffer, or before.
    end: int


def network_header(frame: bytes, start: int, mode: Mode) -> tuple[int, int]:
    """Offset and IP version of the network header of the frame that begins at *start*; version 0 for anything else.

    Raises:
        InvalidFrameError: It ends before that header, or its Ethernet type contradicts what is there.
    """
    size = len(frame)
    at = start
    kind = 0
    if mode is Mode.TAP:
        at += ETHERNET_HEADER_SIZE
        for _ in range(_MOST_VLAN_TAGS + 1):
            if at > size:
                raise InvalidFrameError("the frame ends within its Ethernet header")
            (kind,) = _WORD.unpack_from(frame, at - 2)
            if kind not in _VLAN_TAGS:
                break
            at += VLAN_TAG_SIZE
        if kind not in (ETH_IPV4, ETH_IPV6):
            return at, 0
    if at >= size:
        raise InvalidFrameError("the frame ends before its network header")
    version = frame[at] >> 4
    if kind and version != (4 if kind == ETH_IPV4 else 6):
        raise InvalidFrameError(f"Ethernet type {kind:#06x} on a packet of IP version {version}")
    if version not in (4, 6):
        return at, 0
    if at + (20 if version == 4 else 40) > size:
        raise InvalidFrameError(f"the frame ends within its IPv{version} header")
    return at, version


def parse(frame: bytes, start: int, mode: Mode) -> Layout:
    """The layout of an unfragmented TCP or UDP packet over IPv4 or IPv6, in a frame that begins at *start*.

    Raises:
        InvalidFrameError: It is none, or its headers and lengths do not hold together.
    """
    network, version = network_header(frame, start, mode)
    if version == 4:
        transport = network + (frame[network] & 15) * 4
        protocol = frame[network + 9]
        end = network + _word(frame, network + 2)
        if transport < network + 20:
            raise InvalidFrameError("an IPv4 header is at least 20 bytes long")
        if _word(frame, network + 6) & 0x3FFF:
            raise InvalidFrameError("a fragment")
    elif version == 6:
        end = network + 40 + _word(frame, network + 4)
        protocol, transport = frame[network + 6], network + 40
        while protocol in _EXTENSIONS and transport + 8 <= len(frame):
            protocol, transport = frame[transport], transport + 8 * (frame[transport + 1] + 1)
    else:
        raise InvalidFrameError("neither IPv4 nor IPv6")
    if protocol not in CHECKSUM_AT:
        raise InvalidFrameError(f"IP protocol {protocol}: neither TCP nor UDP")
    if end > len(frame):
        raise InvalidFrameError(f"the IP header speaks of {end - len(frame)} bytes more than there are")
    payload = transport + (20 if protocol == TCP else 8)
    if payload > end:
        raise InvalidFrameError("the packet ends within its headers")
    if protocol == TCP:
        offset = (frame[transport + 12] >> 4) * 4
        payload = transport + offset
        if offset < 20 or payload > end:
            raise InvalidFrameError(f"a TCP header of {offset} bytes")
    return Layout(version, protocol, network, transport, payload, end)


def addresses(frame: bytes, layout: Layout) -> bytes:
    """Source and destination, as they stand in the IP header."""
    if layout.version == 4:
        return frame[layout.network + 12 : layout.network + 20]
    return frame[layout.network + 8 : layout.network + 40]


def _word(frame: bytes, at: int) -> int:
    return frame[at] << 8 | frame[at + 1]
