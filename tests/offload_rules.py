"""The rules for the results of segmenting and merging any input: an independent, slow implementation.

It shares no code with the library. It does not produce results, but checks them. For valid frames, `Packet.pieces` has
the expected result.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from aiotuntap import Mode, Offload

from .offload_packets import (
    ACK,
    CHECKSUM_OFFSET,
    CWR,
    DESTINATION,
    DF,
    ECE,
    FIN,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_TYPE,
    GSO_UDP_L4,
    HOP_BY_HOP,
    IPV4,
    IPV6,
    NEEDS_CSUM,
    PSH,
    ROUTING,
    TCP,
    UDP,
    checksum,
    ones_sum,
    u16,
)

VLAN_TAGS = (0x8100, 0x88A8)
OFFLOAD = {(4, TCP): Offload.TSO4, (6, TCP): Offload.TSO6, (4, UDP): Offload.USO4, (6, UDP): Offload.USO6}
LONGEST_RUN, LARGEST_PACKET, LONGEST_HEADERS = 64, 65535, 256

# -- the headers of a frame --------------------------------------------------------------------------------------------


class Headers(NamedTuple):
    """Where the headers of a TCP or UDP frame are, counted from its start."""

    version: int
    protocol: int
    network: int
    transport: int
    payload: int
    #: How long the IP packet is by its own header.
    length: int


def link_layer(body: bytes, mode: Mode) -> tuple[int, int]:
    """Size of all before the IP header, and the ethertype; 0 for none that is known. There may be two VLAN tags."""
    if mode is Mode.TUN:
        return 0, {4: IPV4, 6: IPV6}.get(body[0] >> 4, 0)
    size, ethertype = 14, u16(body, 12)
    for _ in range(2):
        if ethertype in VLAN_TAGS:
            size += 4
            ethertype = u16(body, size - 2) if len(body) >= size else 0
    return size, ethertype


def parse(body: bytes, mode: Mode) -> Headers | None:
    """The headers of TCP or UDP that is no fragment; None for everything else.

    They have to be inside of what the IP header says the packet is, and that inside the frame. More may follow it.
    """
    if len(body) < (14 if mode is Mode.TAP else 1):
        return None
    network, ethertype = link_layer(body, mode)
    if ethertype == IPV4:
        if len(body) < network + 20 or body[network] >> 4 != 4:
            return None
        version, length, protocol = 4, u16(body, network + 2), body[network + 9]
        header_length = (body[network] & 15) * 4
        if header_length < 20 or u16(body, network + 6) & 0x3FFF:
            return None
        transport = network + header_length
    elif ethertype == IPV6:
        if len(body) < network + 40 or body[network] >> 4 != 6:
            return None
        version, length, protocol = 6, 40 + u16(body, network + 4), body[network + 6]
        transport = network + 40
        while protocol in (HOP_BY_HOP, ROUTING, DESTINATION):
            if len(body) < transport + 8:
                return None
            protocol, units = body[transport], body[transport + 1]
            transport += 8 * (units + 1)
    else:
        return None
    if protocol == TCP:
        if len(body) < transport + 20 or body[transport + 12] >> 4 < 5:
            return None
        payload = transport + (body[transport + 12] >> 4) * 4
    elif protocol == UDP:
        payload = transport + 8
    else:
        return None
    if not payload <= network + length <= len(body):
        return None
    return Headers(version, protocol, network, transport, payload, length)


def addresses(body: bytes, headers: Headers) -> bytes:
    start, size = (headers.network + 12, 8) if headers.version == 4 else (headers.network + 8, 32)
    return body[start : start + size]


def pseudo_header(body: bytes, headers: Headers, transport_length: int) -> bytes:
    """RFC 9293 section 3.1 and RFC 8200 section 8.1; the one of IPv4 sums up to the same."""
    return addresses(body, headers) + struct.pack(">II", transport_length, headers.protocol)


def flow_of(frame: bytes, mode: Mode) -> bytes | None:
    """Two frames with different flows may pass each other. One without a flow passes nothing, and nothing passes it."""
    headers = parse(frame, mode)
    if headers is None or headers.payload > LONGEST_HEADERS:
        return None
    ports = frame[headers.transport : headers.transport + 4]
    return frame[: headers.network] + bytes([headers.version, headers.protocol]) + addresses(frame, headers) + ports


def checksums_are_right(frame: bytes, headers: Headers) -> bool:
    transport = frame[headers.transport : headers.network + headers.length]
    if headers.version == 4 and checksum(frame[headers.network : headers.transport]) != 0:
        return False
    if headers.protocol == UDP and u16(transport, 6) == 0:
        return False
    return checksum(pseudo_header(frame, headers, len(transport)) + transport) == 0


def constant_part(frame: bytes, headers: Headers) -> bytes:
    """The headers without the fields that a network card writes anew into each segment."""
    _, protocol, network, transport, payload, _ = headers
    out = bytearray(frame[:payload])
    if headers.version == 4:
        out[network + 2 : network + 6] = bytes(4)  # total length, identification
        out[network + 10 : network + 12] = bytes(2)
    else:
        out[network + 4 : network + 6] = bytes(2)
    if protocol == TCP:
        out[transport + 4 : transport + 8] = bytes(4)
        out[transport + 13] &= ~(FIN | PSH | CWR) & 0xFF
        out[transport + 16 : transport + 18] = bytes(2)
    else:
        out[transport + 4 : transport + 8] = bytes(4)
    return bytes(out)


# -- segment -----------------------------------------------------------------------------------------------------------


def must_be_refused(frame: bytes, mode: Mode, header_size: int = 10) -> bool:
    """Whether the frame, which should start with a virtio_net_hdr, is none that can be segmented."""
    body = frame[header_size:]
    if len(body) < (14 if mode is Mode.TAP else 1):
        return True
    flags, gso_type, header_length, gso_size, csum_start, csum_offset = struct.unpack_from("=BBHHHH", frame)
    if header_length > len(body):
        return True
    if gso_type == GSO_NONE:
        if not flags & NEEDS_CSUM:
            return False
        network, ethertype = link_layer(body, mode)
        lowest = network + {IPV4: 20, IPV6: 40}.get(ethertype, 0)
        return len(body) < lowest or csum_start < lowest or csum_start + csum_offset + 2 > len(body)
    headers = parse(body, mode)
    if headers is None or gso_size == 0:
        return True
    if gso_type not in (GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_TCPV4 | GSO_ECN, GSO_TCPV6 | GSO_ECN):
        return True
    version, protocol, network, transport, payload, length = headers
    if sum(payload for _ in range(payload, network + length, gso_size)) > 2**24:
        return True
    if GSO_TYPE[version, protocol] != gso_type & ~GSO_ECN or length != len(body) - network:
        return True
    if protocol == UDP and u16(body, transport + 4) != len(body) - transport:
        return True
    if flags & NEEDS_CSUM:
        return (csum_start, csum_offset) != (transport, CHECKSUM_OFFSET[protocol])
    return protocol == UDP


def check_segments(pieces: list[bytes], frame: bytes, mode: Mode, header_size: int = 10) -> None:
    """Of a frame that need not be refused."""
    body = frame[header_size:]
    flags, gso_type, _, gso_size, csum_start, csum_offset = struct.unpack_from("=BBHHHH", frame)
    if gso_type != GSO_NONE:
        check_cut(pieces, body, mode, gso_size)
    elif flags & NEEDS_CSUM:
        at = csum_start + csum_offset
        stored = checksum(body[csum_start:])
        if csum_offset == CHECKSUM_OFFSET[UDP] and stored == 0:
            stored = 0xFFFF
        assert pieces == [body[:at] + stored.to_bytes(2) + body[at + 2 :]]
    else:
        assert pieces == [body]


def check_cut(pieces: list[bytes], body: bytes, mode: Mode, gso_size: int) -> None:
    whole = parse(body, mode)
    assert whole is not None
    version, protocol, network, transport, payload, _ = whole
    assert b"".join(piece[payload:] for piece in pieces) == body[payload:]
    assert [len(piece) - payload for piece in pieces[:-1]] == [gso_size] * (len(pieces) - 1)
    assert len(pieces) == 1 or 0 < len(pieces[-1]) - payload <= gso_size
    for number, piece in enumerate(pieces):
        headers = parse(piece, mode)
        assert headers == whole._replace(length=len(piece) - network)
        assert constant_part(piece, headers) == constant_part(body, whole)
        assert checksums_are_right(piece, headers)
        assert u16(piece, transport + CHECKSUM_OFFSET[protocol]) != (0xFFFF if protocol == TCP else 0)
        if version == 4:
            assert u16(piece, network + 4) == (u16(body, network + 4) + number) % 2**16
            assert u16(piece, network + 10) != 0xFFFF
        if protocol == UDP:
            assert u16(piece, transport + 4) == len(piece) - transport
        else:
            begin, here = (int.from_bytes(each[transport + 4 : transport + 8]) for each in (body, piece))
            assert here == (begin + number * gso_size) % 2**32
            kept = (CWR if number == 0 else 0) | (FIN | PSH if number == len(pieces) - 1 else 0)
            assert piece[transport + 13] & (CWR | FIN | PSH) == body[transport + 13] & kept


# -- merge -------------------------------------------------------------------------------------------------------------


class Merged(Protocol):
    """The result of `merge`: the frame with its virtio_net_hdr, which frames it has, and the offload that it requires."""

    @property
    def data(self) -> bytes: ...
    @property
    def indexes(self) -> list[int]: ...
    @property
    def kind(self) -> Offload: ...


def check_merged(merged: Sequence[Merged], frames: Sequence[bytes], mode: Mode, offload: Offload, size: int) -> None:
    """Every frame is there once, whole, in an order that it may have; and what is merged can be split again."""
    order = [index for each in merged for index in each.indexes]
    assert sorted(order) == list(range(len(frames)))
    assert [each.indexes[0] for each in merged] == sorted(each.indexes[0] for each in merged)
    flows = [flow_of(frame, mode) for frame in frames]
    for place, index in enumerate(order):
        for later in order[place + 1 :]:
            if later < index:
                assert flows[later] is not None
                assert flows[index] is not None
                assert flows[later] != flows[index]
    for each in merged:
        held = [frames[index] for index in each.indexes]
        if len(held) == 1:
            assert (each.data, each.kind) == (bytes(size) + held[0], Offload.NONE)
        else:
            check_run(each, held, mode, offload, size)


def check_run(merged: Merged, held: list[bytes], mode: Mode, offload: Offload, size: int) -> None:
    assert len(held) <= LONGEST_RUN
    body = merged.data[size:]
    whole, first, last = parse(body, mode), parse(held[0], mode), parse(held[-1], mode)
    assert whole is not None
    assert first is not None
    assert last is not None
    version, protocol, network, transport, payload, length = whole
    assert payload <= LONGEST_HEADERS
    assert length == len(body) - network <= LARGEST_PACKET
    assert merged.kind == OFFLOAD[version, protocol]
    assert merged.kind in offload
    gso_size = len(held[0]) - payload
    fields = NEEDS_CSUM, GSO_TYPE[version, protocol], payload, gso_size, transport, CHECKSUM_OFFSET[protocol]
    assert merged.data[:size] == struct.pack("=BBHHHH", *fields).ljust(size, b"\0")
    # The kernel adds the rest of the packet to what the checksum field holds.
    partial = u16(body, transport + CHECKSUM_OFFSET[protocol])
    assert partial == ones_sum(pseudo_header(body, whole, len(body) - transport))
    if version == 4:
        assert checksum(body[network:transport]) == 0
        assert not body[network + 6] & 0x80
    if protocol == TCP:
        assert gso_size >= 8
        assert body[transport + 13] & ~PSH in (ACK, ACK | ECE)
        assert int.from_bytes(body[transport + 4 : transport + 8]) + (len(held) - 1) * gso_size < 2**32
    for frame in held:
        headers = parse(frame, mode)
        assert headers == first._replace(length=len(frame) - network)
        assert checksums_are_right(frame, headers)
        if protocol == TCP and frame is not held[-1]:
            assert not frame[transport + 13] & PSH
    # Split again, it is the same frames, but for what has no meaning and checksums of -0 instead of 0.
    pieces = cut(body, whole, gso_size)
    assert [comparable(piece, mode) for piece in pieces] == [comparable(frame, mode) for frame in held]


def cut(body: bytes, whole: Headers, gso_size: int) -> list[bytes]:
    """The segments, without their checksums."""
    version, protocol, network, transport, payload, _ = whole
    pieces = []
    for number, at in enumerate(range(payload, len(body), gso_size)):
        out = bytearray(body[:payload] + body[at : at + gso_size])
        if version == 4:
            identification = u16(body, network + 4) + number
            struct.pack_into(">HH", out, network + 2, len(out) - network, identification % 2**16)
            if not body[network + 6] & DF >> 8:
                assert identification < 2**16
        else:
            struct.pack_into(">H", out, network + 4, len(out) - network - 40)
        if protocol == TCP:
            sequence = int.from_bytes(body[transport + 4 : transport + 8]) + at - payload
            struct.pack_into(">I", out, transport + 4, sequence)
            if at + gso_size < len(body):
                out[transport + 13] &= ~PSH & 0xFF
        else:
            struct.pack_into(">H", out, transport + 4, len(out) - transport)
        pieces.append(bytes(out))
    return pieces


def comparable(frame: bytes, mode: Mode) -> bytes:
    """The frame without checksums, and without an identification that DF leaves without a meaning."""
    headers = parse(frame, mode)
    if headers is None:
        return frame
    out = bytearray(frame)
    if headers.version == 4:
        out[headers.network + 10 : headers.network + 12] = bytes(2)
        if frame[headers.network + 6] & DF >> 8:
            out[headers.network + 4 : headers.network + 6] = bytes(2)
    at = headers.transport + CHECKSUM_OFFSET[headers.protocol]
    out[at : at + 2] = bytes(2)
    return bytes(out)
