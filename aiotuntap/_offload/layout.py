"""Finds the headers of a frame. Every offset is checked against the real length of the frame before it is used."""

from __future__ import annotations

import sys
from typing import NamedTuple

from .._abi import ETHERNET_HEADER_SIZE, VLAN_TAG_SIZE
from .._errors import InvalidFrameError
from .._types import Mode

TCP, UDP = 6, 17

_ETHERNET_TYPES = {b"\x08\x00": 4, b"\x86\xdd": 6}
_VLAN_TAGS = (b"\x81\x00", b"\x88\xa8")
_MOST_VLAN_TAGS = 2

# Bytes of the shortest IP header, by version.
_SHORTEST = {4: 20, 6: 40}

# IPv6 extension headers that are allowed before TCP and UDP: hop-by-hop, routing, destination options (RFC 8200).
_EXTENSIONS = (0, 43, 60)

#: Where the checksum is in the transport header, by protocol.
CHECKSUM_AT = {TCP: 16, UDP: 6}


class Layout(NamedTuple):
    """Offsets from the start of the frame."""

    version: int
    protocol: int
    network: int
    transport: int
    payload: int
    #: Where the packet ends according to its IP header: at the end of the frame, or before.
    end: int


def network_header(frame: bytes, mode: Mode) -> tuple[int, int]:
    """Offset and IP version of the network header; version 0 for anything else.

    Raises:
        InvalidFrameError: The frame ends before that header does.
    """
    at = 0
    if mode is Mode.TAP:
        at = ETHERNET_HEADER_SIZE
        for _ in range(_MOST_VLAN_TAGS):
            if frame[at - 2 : at] not in _VLAN_TAGS:
                break
            at += VLAN_TAG_SIZE
        version = _ETHERNET_TYPES.get(frame[at - 2 : at], 0)
    else:
        version = frame[0] >> 4 if frame else 0
    if at + _SHORTEST.get(version, 0) > len(frame):
        raise InvalidFrameError(f"the frame has {len(frame)} bytes, and its IPv{version} header would end after them")
    return at, version if version in _SHORTEST else 0


def parse(frame: bytes, mode: Mode, most_headers: int = sys.maxsize) -> Layout:
    """The layout of an unfragmented TCP or UDP packet over IPv4 or IPv6.

    Args:
        frame: Without a virtio_net_hdr.
        mode: Of the interface.
        most_headers: Bytes from the start of the frame to the payload, at most. Headers behind that are not parsed.

    Raises:
        InvalidFrameError: The frame is not such a packet, its headers are too long, or a length in them is wrong.
    """
    network, version = network_header(frame, mode)
    if version and frame[network] >> 4 != version:
        raise InvalidFrameError(f"the EtherType says IPv{version}, and the packet says IPv{frame[network] >> 4}")
    if version == 4:
        transport = network + (frame[network] & 15) * 4
        protocol = frame[network + 9]
        end = network + word(frame, network + 2)
        if transport < network + 20:
            raise InvalidFrameError(f"an IPv4 header must have at least 20 bytes, not {transport - network}")
        if word(frame, network + 6) & 0x3FFF:
            raise InvalidFrameError("the packet is a fragment")
    elif version == 6:
        end = network + 40 + word(frame, network + 4)
        protocol, transport = frame[network + 6], network + 40
        while protocol in _EXTENSIONS and transport + 8 <= min(len(frame), most_headers):
            protocol, transport = frame[transport], transport + 8 * (frame[transport + 1] + 1)
    else:
        raise InvalidFrameError("the frame is neither IPv4 nor IPv6")
    if protocol not in CHECKSUM_AT:
        raise InvalidFrameError(f"the packet is neither TCP nor UDP, but IP protocol {protocol}")
    if end > len(frame):
        raise InvalidFrameError(f"the length in the IP header is {end - len(frame)} bytes larger than the packet")
    payload = transport + (20 if protocol == TCP else 8)
    if payload > end:
        raise InvalidFrameError("the packet ends before its transport header does")
    if protocol == TCP:
        offset = (frame[transport + 12] >> 4) * 4
        payload = transport + offset
        if offset < 20 or payload > end:
            raise InvalidFrameError(f"a TCP header must have 20 bytes up to the end of the packet, not {offset}")
    if payload > most_headers:
        raise InvalidFrameError(f"the headers must have at most {most_headers} bytes, not {payload}")
    return Layout(version, protocol, network, transport, payload, end)


def addresses(frame: bytes, layout: Layout) -> bytes:
    """The source and destination addresses, as they are in the IP header."""
    if layout.version == 4:
        return frame[layout.network + 12 : layout.network + 20]
    return frame[layout.network + 8 : layout.network + 40]


def word(frame: bytes, at: int) -> int:
    """A 16-bit field of a header."""
    return frame[at] << 8 | frame[at + 1]
