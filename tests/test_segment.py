"""Segmenting: what each rule gives, by hand, by dpkt and by what must hold for any frame."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiotuntap import InvalidFrameError, Mode, TuntapError

from .engine import segment
from .offload_packets import (
    ACK,
    CHECKSUM_OFFSET,
    CWR,
    DESTINATION,
    DF,
    ECE,
    FIN,
    FRAGMENT,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_TYPE,
    GSO_UDP,
    GSO_UDP_L4,
    HEADER_SIZES,
    HOP_BY_HOP,
    ICMP,
    LINKS4,
    MF,
    MODES,
    NEEDS_CSUM,
    PSH,
    ROUTING,
    TCP,
    TCP4_FIRST_WITH_CWR,
    TCP4_PIECES,
    TCP4_WHOLE,
    UDP,
    UDP6_PIECES,
    UDP6_WHOLE,
    URG,
    Packet,
    ask_dpkt,
    checksum,
    extension,
    extensions_of,
    filler,
    hostile,
    packets,
    spoiled,
    vnet_header,
    written_out,
)
from .offload_rules import check_segments, must_be_refused

pytestmark = pytest.mark.usefixtures("engine")

DATA = bytes(range(1, 11))


def read(pieces: list[bytes], mode: Mode = Mode.TUN) -> list[tuple[Any, Any]]:
    return [ask_dpkt(piece, mode) for piece in pieces]


def with_bytes(frame: bytes, offset: int, data: bytes) -> bytes:
    return frame[:offset] + data + frame[offset + len(data) :]


def judged(frame: bytes, mode: Mode, header_size: int = 10) -> list[bytes] | None:
    """The segments, or None for a refused frame, as they must be. Any other exception is a failure."""
    try:
        pieces = segment(frame, mode, header_size=header_size)
    except InvalidFrameError:
        assert must_be_refused(frame, mode, header_size)
        return None
    assert not must_be_refused(frame, mode, header_size)
    check_segments(pieces, frame, mode, header_size)
    return pieces


# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", LINKS4)
def test_tcp_written_out(link: str) -> None:
    before = bytes.fromhex(link)
    mode, at = Mode.TAP if link else Mode.TUN, len(before)
    header = vnet_header(flags=1, gso_type=0x81, gso_size=8, csum_start=at + 20, csum_offset=16)
    whole = bytearray(header + before + bytes.fromhex(TCP4_WHOLE))
    whole[10 + at + 33] |= CWR
    expected = written_out(TCP4_FIRST_WITH_CWR, *TCP4_PIECES[1:])
    assert segment(bytes(whole), mode) == [before + frame for frame in expected]


def test_udp_written_out() -> None:
    header = vnet_header(flags=1, gso_type=5, gso_size=3, csum_start=40, csum_offset=6, size=24)
    assert segment(header + bytes.fromhex(UDP6_WHOLE), Mode.TUN, header_size=24) == written_out(*UDP6_PIECES)


def pieces_of(packet: Packet, gso_size: int) -> list[tuple[int, bytes]]:
    """Where each piece of the payload is, and what."""
    return [(at, packet.payload[at : at + gso_size]) for at in range(0, len(packet.payload), gso_size)]


# Three segments, and ten.
@pytest.mark.parametrize("gso_size", [4, 1])
def test_tcp_over_ipv4(gso_size: int) -> None:
    packet = Packet(payload=DATA, sequence=5000, identification=7, flags=ACK)
    pieces = read(segment(packet.super_frame(gso_size), "tun"))
    assert [(ip.id, ip.len, tcp.seq, tcp.data) for ip, tcp in pieces] == [
        (7 + index, 40 + len(data), 5000 + at, data) for index, (at, data) in enumerate(pieces_of(packet, gso_size))
    ]
    for ip, tcp in pieces:
        assert (tcp.ack, tcp.flags, tcp.win, tcp.sport, tcp.dport) == (2000, ACK, 512, 40000, 5201)
        assert (ip.ttl, ip.p, ip.src, ip.dst) == (64, TCP, b"\x0a\0\0\1", b"\x0a\0\0\2")


@pytest.mark.parametrize("gso_size", [4, 1])
def test_tcp_over_ipv6(gso_size: int) -> None:
    packet = Packet(version=6, payload=DATA, flow_label=0x12345, traffic_class=0xB8)
    pieces = read(segment(packet.super_frame(gso_size), "tun"))
    assert [(ip.plen, ip.flow, ip.fc, tcp.seq, tcp.data) for ip, tcp in pieces] == [
        (20 + len(data), 0x12345, 0xB8, 1000 + at, data) for at, data in pieces_of(packet, gso_size)
    ]


@pytest.mark.parametrize("gso_size", [4, 1])
@pytest.mark.parametrize("version", [4, 6])
def test_udp(version: int, gso_size: int) -> None:
    packet = Packet(version=version, protocol=UDP, payload=DATA)
    pieces = read(segment(packet.super_frame(gso_size), "tun"))
    assert [(udp.ulen, udp.data) for _, udp in pieces] == [
        (8 + len(data), data) for _, data in pieces_of(packet, gso_size)
    ]


@pytest.mark.parametrize("gso_size", [4, 1])
def test_udp_identifications_grow_too(gso_size: int) -> None:
    packet = Packet(protocol=UDP, payload=DATA, identification=7)
    identifications = [ip.id for ip, _ in read(segment(packet.super_frame(gso_size), "tun"))]
    assert identifications == list(range(7, 7 + len(identifications)))


@pytest.mark.parametrize("gso_size", [3, 1])
def test_identifications_start_again_after_the_last(gso_size: int) -> None:
    packet = Packet(payload=DATA, identification=0xFFFE, fragment=DF)
    pieces = read(segment(packet.super_frame(gso_size), "tun"))
    assert [(ip.id, ip.df) for ip, _ in pieces][:4] == [(0xFFFE, 1), (0xFFFF, 1), (0, 1), (1, 1)]


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("identification", [100, 0xFFFA, 0xFFF6])
def test_ipv4_checksums_that_wrap(protocol: int, identification: int) -> None:
    """They fall as the identification grows, and after 0 comes 0xFFFE; the identification may wrap before or after."""
    packet = Packet(protocol=protocol, payload=filler(48, 2), identification=identification)
    (first,) = struct.unpack_from(">H", segment(packet.super_frame(4), "tun")[0], 10)
    for left in range(12):
        tuned = replace(packet, source=packet.source + first - left)
        pieces = judged(tuned.super_frame(4), Mode.TUN)
        assert pieces is not None
        sums = [struct.unpack_from(">H", piece, 10)[0] for piece in pieces]
        assert sums[0] == left
        assert 0xFFFF not in sums
        assert len(read(pieces)) == 12


@pytest.mark.parametrize("gso_size", [4, 1])
def test_sequence_numbers_start_again_after_the_last(gso_size: int) -> None:
    packet = Packet(payload=DATA, sequence=2**32 - 4)
    numbers = [tcp.seq for _, tcp in read(segment(packet.super_frame(gso_size), "tun"))]
    assert numbers == [number % 2**32 for number in range(2**32 - 4, 2**32 + 6, gso_size)]


@pytest.mark.parametrize("gso_size", [4, 1])
def test_cwr_is_on_the_first_and_fin_and_psh_on_the_last(gso_size: int) -> None:
    packet = Packet(payload=DATA, flags=ACK | CWR | ECE | FIN | PSH | URG, reserved=1, urgent=9)
    first, *others, last = read(segment(packet.super_frame(gso_size), "tun"))
    common = 0x100 | ACK | ECE | URG
    assert first[1].flags == common | CWR
    assert {tcp.flags for _, tcp in others} == {common}
    assert last[1].flags == common | FIN | PSH
    assert {tcp.urp for _, tcp in (first, *others, last)} == {9}


def test_one_segment_keeps_all_flags() -> None:
    packet = Packet(payload=DATA, flags=0xFF)
    assert [tcp.flags for _, tcp in read(segment(packet.super_frame(10), "tun"))] == [0xFF]


def test_the_ecn_field_is_on_all() -> None:
    for version in (4, 6):
        packet = Packet(version=version, payload=DATA, traffic_class=3)
        for gso_size in (4, 1):
            pieces = segment(packet.super_frame(gso_size), "tun")
            assert {piece[1] & 3 if version == 4 else piece[1] >> 4 & 3 for piece in pieces} == {3}


@pytest.mark.parametrize("version", [4, 6])
def test_the_ecn_bit_of_the_type_changes_nothing(version: int) -> None:
    packet = Packet(version=version, payload=DATA, flags=ACK | CWR)
    kind = GSO_TYPE[version, TCP]
    assert segment(packet.super_frame(4, gso_type=kind | GSO_ECN), "tun") == segment(packet.super_frame(4), "tun")


def test_options_and_extension_headers_are_on_all() -> None:
    packet = Packet(payload=DATA, options=b"\x94\4\0\0" + bytes(4), tcp_options=b"\1\1\x08\x0a" + bytes(range(8)))
    for ip, tcp in read(segment(packet.super_frame(4), "tun") + segment(packet.super_frame(1), "tun")):
        assert (ip.opts, tcp.opts) == (packet.options, packet.tcp_options)
    extensions = (extension(HOP_BY_HOP), extension(ROUTING, 2, 5), extension(DESTINATION, 1))
    packet = Packet(version=6, protocol=UDP, payload=DATA, extensions=extensions)
    pieces = segment(packet.super_frame(4), "tun")
    assert [ip.plen for ip, _ in read(pieces)] == [48 + 12, 48 + 12, 48 + 10]
    assert {piece[40:88] for piece in pieces} == {packet.build()[40:88]}


@pytest.mark.parametrize("vlan", [(), (0x8100,), (0x88A8,), (0x88A8, 0x8100), (0x8100, 0x8100)])
def test_ethernet_and_vlan_tags_are_on_all(vlan: tuple[int, ...]) -> None:
    for version, protocol in GSO_TYPE:
        packet = Packet(mode=Mode.TAP, vlan=vlan, version=version, protocol=protocol, payload=DATA)
        inner = replace(packet, mode=Mode.TUN, vlan=())
        link = packet.build()[: packet.network]
        assert len(link) == 14 + 4 * len(vlan)
        for size in (4, 1):
            inners = segment(inner.super_frame(size), "tun")
            assert segment(packet.super_frame(size), "tap") == [link + frame for frame in inners]


@pytest.mark.parametrize("size", [0, 1, 10])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_payload_of_one_segment(size: int, protocol: int) -> None:
    packet = Packet(protocol=protocol, payload=DATA[:size])
    for gso_size in (10, 11, 0xFFFF):
        assert segment(packet.super_frame(gso_size), "tun") == [packet.build()]


def test_segments_smaller_than_their_headers() -> None:
    pieces = read(segment(Packet(payload=filler(300, 2)).super_frame(1), "tun"))
    assert [tcp.data for _, tcp in pieces] == [bytes([byte]) for byte in filler(300, 2)]
    assert [tcp.seq for _, tcp in pieces] == list(range(1000, 1300))


def test_tcp_checksums_are_made_even_when_none_is_asked_for() -> None:
    packet = Packet(payload=DATA)
    for lies in ({"flags": 0}, {"flags": 0, "csum_start": 3, "csum_offset": 60000}):
        assert segment(packet.super_frame(4, **lies), "tun") == segment(packet.super_frame(4), "tun")


def test_checksums_that_came_with_the_frame_do_not_matter() -> None:
    packet = Packet(payload=DATA)
    expected = segment(packet.super_frame(4), "tun")
    for at in (10 + 10, 10 + 20 + 16):
        for wrong in (0, 1, 0xFFFF):
            assert segment(with_bytes(packet.super_frame(4), at, wrong.to_bytes(2, "big")), "tun") == expected


@pytest.mark.parametrize("version", [4, 6])
def test_a_udp_checksum_of_zero_is_sent_as_ffff_and_one_of_tcp_stays(version: int) -> None:
    for protocol, offset, stored in ((UDP, 6, 0xFFFF), (TCP, 16, 0)):
        for size in (4, 6, 10, 23):
            for count in (3, 20):
                packet = Packet(version=version, protocol=protocol, payload=filler(size * count, 2))
                packet = packet.with_zero_checksums(size)
                pieces = segment(packet.super_frame(size), "tun")
                read(pieces)
                at = packet.transport + offset
                assert [struct.unpack_from(">H", piece, at)[0] for piece in pieces] == [stored] * count


def test_checksums_of_ones() -> None:
    for protocol in (TCP, UDP):
        for size in (1, 2, 7, 8, 1400, 1401):
            for count in (3, 20):
                read(segment(Packet(protocol=protocol, payload=b"\xff" * size * count).super_frame(size), "tun"))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 9, 31, 150])
def test_every_count_and_size_of_segments(size: int) -> None:
    for count, rest in itertools.product((1, 2, 3, 7, 43, 44, 45, 64, 65, 128, 129, 400), (0, 1, size // 2)):
        payload = filler(count * size - (rest if rest < size else 0), 2)
        for protocol, version in ((TCP, 4), (UDP, 6)):
            packet = Packet(version=version, protocol=protocol, payload=payload, tcp_options=filler(12, 3))
            frame = packet.super_frame(size)
            pieces = judged(frame, Mode.TUN)
            assert pieces is not None
            assert len(pieces) == count


@pytest.mark.parametrize("gso_size", [536, 1447, 1448, 9000, 65535])
def test_the_largest_frames(gso_size: int) -> None:
    for version, protocol in GSO_TYPE:
        largest = 65535 if version == 4 or protocol == UDP else 65575
        packet = Packet(mode=Mode.TAP, version=version, protocol=protocol, vlan=(0x8100,))
        packet = replace(packet, payload=filler(largest - packet.header_length + packet.network, gso_size))
        frame = packet.super_frame(gso_size)
        pieces = judged(frame, Mode.TAP)
        assert pieces is not None
        assert b"".join(piece[packet.header_length :] for piece in pieces) == packet.payload


# -- no segmentation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"\0", b"\x45", b"anything at all", Packet(payload=DATA).build(partial=True)])
@pytest.mark.parametrize("flags", [0, 2, 4, 0xFE])
def test_a_frame_without_offload_is_unchanged(body: bytes, flags: int) -> None:
    header = vnet_header(flags=flags, gso_size=5, csum_start=60000, csum_offset=60000)
    assert segment(header + body, "tun") == [body]
    assert segment(header + b"\0" * 14 + body, "tap") == [b"\0" * 14 + body]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("size", [0, 1, 9, 1500])
def test_finishes_a_checksum(mode: Mode, size: int) -> None:
    for version, protocol in GSO_TYPE:
        packet = Packet(mode=mode, version=version, protocol=protocol, payload=filler(size, 2))
        assert segment(packet.super_frame(0, gso_type=GSO_NONE), mode) == [packet.build()]


@pytest.mark.parametrize(("offset", "stored"), [(6, 0xFFFF), (16, 0), (0, 0)])
def test_a_finished_checksum_of_zero(offset: int, stored: int) -> None:
    packet = Packet(payload=DATA)
    body = packet.build()
    at = packet.transport + offset
    body = with_bytes(body, at, bytes(2))
    body = with_bytes(body, at, checksum(body[packet.transport :]).to_bytes(2, "big"))
    header = vnet_header(flags=NEEDS_CSUM, csum_start=packet.transport, csum_offset=offset)
    assert segment(header + body, "tun") == [with_bytes(body, at, stored.to_bytes(2, "big"))]


@pytest.mark.parametrize("offset", [0, 1, 6, 8, 16])
@pytest.mark.parametrize("size", [18, 19, 4000])
def test_the_checksum_of_zeros(offset: int, size: int) -> None:
    header = vnet_header(flags=NEEDS_CSUM, csum_start=3, csum_offset=offset)
    assert segment(header + bytes(3 + size), "tun") == [with_bytes(bytes(3 + size), 3 + offset, b"\xff\xff")]


def test_a_checksum_where_csum_start_says() -> None:
    """ICMPv6 in the kernel's way, and something that is neither IPv4 nor IPv6: the field is anywhere after the start."""
    body = Packet(version=6, protocol=UDP, payload=DATA).build()
    header = vnet_header(flags=NEEDS_CSUM, csum_start=43, csum_offset=9)
    total = checksum(body[43:])
    assert segment(header + body, "tun") == [with_bytes(body, 52, total.to_bytes(2, "big"))]
    arp = bytes(12) + b"\x08\x06" + DATA
    header = vnet_header(flags=NEEDS_CSUM, csum_start=14, csum_offset=8)
    assert segment(header + arp, "tap") == [arp[:22] + checksum(DATA).to_bytes(2, "big")]


def checksum_frame(packet: Packet, start: int, offset: int) -> bytes:
    return vnet_header(flags=NEEDS_CSUM, csum_start=start, csum_offset=offset) + packet.build(partial=True)


@pytest.mark.parametrize("vlan", [None, (), (0x8100,), (0x88A8, 0x8100)])
@pytest.mark.parametrize("version", [4, 6])
def test_no_checksum_inside_the_headers_below(vlan: tuple[int, ...] | None, version: int) -> None:
    mode = Mode.TUN if vlan is None else Mode.TAP
    packet = Packet(mode=mode, vlan=vlan or (), version=version, payload=DATA)
    least = packet.transport
    assert len(segment(checksum_frame(packet, least, 16), mode)) == 1
    for start in (0, 1, 14, least - 4, least - 1):
        with pytest.raises(InvalidFrameError):
            segment(checksum_frame(packet, start, 16), mode)


@pytest.mark.parametrize("frame", [None, 100, [0] * 100, "text", (bytes(100),)])
def test_what_is_not_a_buffer(frame: Any) -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        segment(frame, Mode.TUN)


def test_no_checksum_outside_the_frame() -> None:
    packet = Packet(payload=DATA)
    end = len(packet.build())
    for start, offset in ((end - 2, 0), (20, end - 22)):
        assert len(segment(checksum_frame(packet, start, offset), "tun")) == 1
    for start, offset in ((end - 1, 0), (end, 0), (20, end - 21), (20, 0xFFFF), (0xFFFF, 0), (0xFFFF, 0xFFFF)):
        with pytest.raises(InvalidFrameError):
            segment(checksum_frame(packet, start, offset), "tun")


# -- what is refused ---------------------------------------------------------------------------------------------------

TCP4 = Packet(payload=DATA)
TCP6 = Packet(version=6, payload=DATA)
UDP4 = Packet(protocol=UDP, payload=DATA)
UDP6 = Packet(version=6, protocol=UDP, payload=DATA)
TAP4 = Packet(mode=Mode.TAP, payload=DATA)
TAGGED = Packet(mode=Mode.TAP, payload=DATA, vlan=(0x8100, 0x8100))
EXTENDED = Packet(version=6, payload=DATA, extensions=(extension(HOP_BY_HOP), extension(DESTINATION)))


def lying(packet: Packet, offset: int, data: bytes, **lies: int) -> bytes:
    """A super-frame with other bytes at *offset*, counted from the start of the IP header."""
    return with_bytes(packet.super_frame(4, **lies), 10 + packet.network + offset, data)


def shorter(packet: Packet, end: int) -> bytes:
    """A super-frame that ends *end* bytes after the start of the IP header, and an IP length that agrees."""
    out = packet.super_frame(4, hdr_len=0)[: 10 + packet.network + end]
    return (
        with_bytes(out, 12 + packet.network, struct.pack(">H", end))
        if packet.version == 4
        else with_bytes(out, 14 + packet.network, struct.pack(">H", end - 40))
    )


REFUSED = {
    "nothing": b"",
    "a vnet header that is cut": TCP4.super_frame(4)[:9],
    "a vnet header alone": bytes(10),
    "hdr_len beyond the end": TCP4.super_frame(4, hdr_len=51),
    "hdr_len beyond the end, without segmentation": vnet_header(hdr_len=5) + b"\x45\0\0\0",
    "gso_size 0": TCP4.super_frame(0),
    "legacy UFO": UDP4.super_frame(4, gso_type=GSO_UDP),
    "an unknown type": TCP4.super_frame(4, gso_type=2),
    "ECN alone": TCP4.super_frame(4, gso_type=GSO_ECN),
    "ECN on UDP": UDP4.super_frame(4, gso_type=GSO_UDP_L4 | GSO_ECN),
    "a tunnel over IPv4": UDP4.super_frame(4, gso_type=GSO_UDP_L4 | 0x20),
    "a tunnel over IPv6": TCP6.super_frame(4, gso_type=GSO_TCPV6 | 0x40),
    "an unknown bit of the type": TCP4.super_frame(4, gso_type=GSO_TCPV4 | 0x08),
    "TCPV4 on IPv6": TCP6.super_frame(4, gso_type=GSO_TCPV4),
    "TCPV6 on IPv4": TCP4.super_frame(4, gso_type=GSO_TCPV6),
    "TCPV4 on UDP": UDP4.super_frame(4, gso_type=GSO_TCPV4, csum_offset=16),
    "TCPV6 on UDP": UDP6.super_frame(4, gso_type=GSO_TCPV6, csum_offset=16),
    "UDP_L4 on TCP": TCP4.super_frame(4, gso_type=GSO_UDP_L4, csum_offset=6),
    "csum_start before TCP": TCP4.super_frame(4, csum_start=19),
    "csum_start after UDP": UDP4.super_frame(4, csum_start=21),
    "csum_offset of UDP on TCP": TCP4.super_frame(4, csum_offset=6),
    "csum_offset of TCP on UDP": UDP6.super_frame(4, csum_offset=16),
    "UDP without a checksum to finish": UDP4.super_frame(4, flags=0),
    "IP version 5": lying(TCP4, 0, b"\x55"),
    "IPv6 in a frame marked as IPv4": lying(TCP4, 0, b"\x65"),
    # With TCP where such a header ends: what is the acknowledgement of one is the size of the other.
    "an IPv4 header of 16 bytes": lying(replace(TCP4, acknowledgement=5 << 28), 0, b"\x44", csum_start=16),
    "an IPv4 header beyond the end": shorter(replace(TCP4, options=bytes(40)), 59),
    "an IPv4 header cut before its options": shorter(TCP4, 19),
    "an IPv4 header and no TCP": shorter(TCP4, 20),
    "IPv4 shorter than the frame": lying(TCP4, 2, struct.pack(">H", 49)),
    "IPv4 longer than the frame": lying(TCP4, 2, struct.pack(">H", 51)),
    "IPv4 of no length": lying(TCP4, 2, bytes(2)),
    "the first fragment": replace(TCP4, fragment=MF).super_frame(4),
    "the last fragment": replace(UDP4, fragment=1).super_frame(4),
    "ICMP": lying(TCP4, 9, bytes([ICMP])),
    "an IPv6 header that is cut": TCP6.super_frame(4, hdr_len=0)[: 10 + 39],
    "an IPv6 header and no TCP": shorter(TCP6, 40),
    "IPv6 shorter than the frame": lying(TCP6, 4, struct.pack(">H", 29)),
    "IPv6 longer than the frame": lying(TCP6, 4, struct.pack(">H", 31)),
    "an IPv6 fragment": replace(TCP6, extensions=((FRAGMENT, bytes(6)),)).super_frame(4),
    "an IPv6 fragment after other headers": lying(EXTENDED, 40, bytes([FRAGMENT])),
    "an authentication header": lying(EXTENDED, 40, b"\x33"),
    "an extension header of no known kind": lying(TCP6, 6, b"\xfd"),
    "an extension header beyond the end": lying(EXTENDED, 41, b"\xff"),
    "an extension header that just does not fit": shorter(EXTENDED, 55),
    "extension headers and no TCP": shorter(EXTENDED, 56),
    "a TCP header of 16 bytes": lying(TCP4, 32, b"\x40"),
    "a TCP header beyond the end": shorter(replace(TCP4, tcp_options=bytes(40)), 79),
    "a TCP header that is cut": shorter(TCP4, 39),
    "a UDP header that is cut": shorter(UDP4, 27),
    "a UDP length too small": lying(UDP4, 24, struct.pack(">H", 17)),
    "a UDP length too large": lying(UDP4, 24, struct.pack(">H", 19)),
    "a UDP length of zero": lying(UDP6, 44, bytes(2)),
}

REFUSED_ETHERNET = {
    "Ethernet that is cut": bytes(10) + bytes(13),
    "Ethernet alone": vnet_header(gso_type=GSO_TCPV4, gso_size=1) + TAP4.build()[:14],
    "ARP": lying(TAP4, -2, b"\x08\x06"),
    "IPv4 marked as IPv6": lying(TAP4, -2, b"\x86\xdd"),
    "IPv6 marked as IPv4": lying(replace(TAP4, version=6), -2, b"\x08\x00"),
    "three tags": replace(TAGGED, vlan=(0x8100,) * 3).super_frame(4),
    "a tag of no known kind": replace(TAGGED, vlan=(0x9100,)).super_frame(4),
    "a tag that is cut": TAGGED.super_frame(4, hdr_len=0)[: 10 + 16],
    "a tag and nothing": TAGGED.super_frame(4, hdr_len=0)[: 10 + 22],
    "IPv4 with bytes after it": vnet_header(flags=1, gso_type=1, gso_size=4, csum_start=34, csum_offset=16)
    + TAP4.build()
    + bytes(2),
    "csum_start without the tags": TAGGED.super_frame(4, csum_start=34),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, Mode.TUN) for name in REFUSED] + [(name, Mode.TAP) for name in REFUSED_ETHERNET],
)
def test_refuses(name: str, mode: Mode) -> None:
    frame = REFUSED[name] if mode is Mode.TUN else REFUSED_ETHERNET[name]
    assert must_be_refused(frame, mode)
    with pytest.raises(InvalidFrameError):
        segment(frame, mode)


def test_the_valid_versions_of_the_refused_frames_are_accepted() -> None:
    """So that each is refused for the one thing that its name says."""
    for packet in (TCP4, TCP6, UDP4, UDP6, TAP4, TAGGED, EXTENDED):
        assert len(segment(packet.super_frame(4), packet.mode)) == 3
    assert len(segment(shorter(replace(TCP4, tcp_options=bytes(40)), 80), "tun")) == 1
    assert len(segment(shorter(EXTENDED, 76), "tun")) == 1
    assert len(segment(lying(EXTENDED, 40, bytes([ROUTING])), "tun")) == 3


def test_hdr_len_is_not_trusted() -> None:
    for packet in (TCP4, UDP6, TAGGED):
        expected = segment(packet.super_frame(4), packet.mode)
        for hdr_len in (0, 1, packet.header_length - 1, packet.header_length + 3, len(packet.build())):
            assert segment(packet.super_frame(4, hdr_len=hdr_len), packet.mode) == expected


def test_unknown_flags_are_ignored() -> None:
    assert segment(TCP4.super_frame(4, flags=0xFF), "tun") == segment(TCP4.super_frame(4), "tun")


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("size", [1 << 10, 1 << 15, 60_000])
def test_long_headers_are_on_all(size: int, protocol: int) -> None:
    packet = Packet(version=6, protocol=protocol, payload=filler(100, 2), extensions=extensions_of(size, 3))
    assert judged(packet.super_frame(40), Mode.TUN) == [piece.build() for piece in packet.pieces(40)]


def test_at_most_16_mib_of_headers() -> None:
    """A frame of 64 KiB could ask for 1 GiB of segments."""
    packet = Packet(version=6, protocol=UDP, extensions=extensions_of(1 << 15))
    packet = replace(packet, payload=bytes(65535 - packet.header_length))
    assert judged(packet.super_frame(1), Mode.TUN) is None
    most = (1 << 24) // packet.header_length
    assert judged(replace(packet, payload=bytes(most + 1)).super_frame(1), Mode.TUN) is None
    assert len(segment(replace(packet, payload=bytes(most)).super_frame(1), Mode.TUN)) == most
    # One byte in each segment is fine with headers as they are.
    packet = replace(packet, extensions=extensions_of(208))
    packet = replace(packet, payload=bytes(65535 - packet.header_length))
    assert packet.header_length == 256
    assert len(segment(packet.super_frame(1), Mode.TUN)) == len(packet.payload)


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 12, 20, 24])
def test_vnet_headers_of_each_size(size: int) -> None:
    for packet in (TCP4, UDP6, TAP4):
        frame = packet.super_frame(4, header_size=size)
        assert segment(frame, packet.mode, header_size=size) == segment(packet.super_frame(4), packet.mode)
        # What the kernel puts into the rest of it, such as num_buffers, is nothing to segmenting.
        rest = with_bytes(frame, 10, b"\xff" * (size - 10))
        assert segment(rest, packet.mode, header_size=size) == segment(packet.super_frame(4), packet.mode)
        with pytest.raises(InvalidFrameError):
            segment(frame[: size - 1], packet.mode, header_size=size)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_takes_any_bytes_and_leaves_them_alone(kind: type[bytes | bytearray | memoryview]) -> None:
    none, csum = bytes(10) + TCP4.build(), TCP4.super_frame(0, gso_type=0)
    for frame in (none, csum, TCP4.super_frame(4), TCP4.super_frame(100), UDP6.super_frame(1)):
        given_frame = kind(bytearray(frame))
        pieces = segment(given_frame, "tun")
        assert {type(piece) for piece in pieces} == {bytes}
        assert pieces == segment(frame, "tun")
        assert bytes(given_frame) == frame


def test_takes_part_of_a_larger_buffer() -> None:
    frame = TCP4.super_frame(4)
    assert segment(memoryview(b"\xff" * 7 + frame + b"\xff" * 9)[7:-9], "tun") == segment(frame, "tun")


@pytest.mark.parametrize("mode", ["", "TUN", "tunnel", None])
def test_unknown_modes(mode: Any) -> None:
    with pytest.raises(ValueError) as caught:
        segment(TCP4.super_frame(4), mode)
    assert not isinstance(caught.value, TuntapError)


@pytest.mark.parametrize("size", [0, 9, 11, 22, 25])
def test_unknown_sizes_of_the_vnet_header(size: int) -> None:
    with pytest.raises(ValueError) as caught:
        segment(TCP4.super_frame(4, header_size=30), "tun", header_size=size)
    assert not isinstance(caught.value, TuntapError)


# -- frames of every kind ----------------------------------------------------------------------------------------------


SIZES = st.one_of(st.integers(0, 60), st.integers(0, 400))
GSO_SIZES = st.one_of(st.integers(1, 9), st.integers(1, 420), st.sampled_from((8, 16, 64, 65535)))


@settings(max_examples=300)
@given(packets(SIZES), GSO_SIZES, HEADER_SIZES, st.booleans())
def test_valid_frames(packet: Packet, gso_size: int, header_size: int, zero_checksums: bool) -> None:
    if zero_checksums and gso_size > 1:
        packet = packet.with_zero_checksums(gso_size)
    pieces = judged(packet.super_frame(gso_size, header_size=header_size), packet.mode, header_size)
    assert pieces is not None
    assert pieces == [piece.build() for piece in packet.pieces(gso_size)]
    assert [ask_dpkt(piece, packet.mode)[1].data for piece in pieces] == [
        packet.payload[at : at + gso_size] for at in range(0, max(len(packet.payload), 1), gso_size)
    ]


@settings(max_examples=100)
@given(packets(SIZES), HEADER_SIZES, st.integers(0, 255))
def test_checksums_to_finish(packet: Packet, header_size: int, flags: int) -> None:
    frame = packet.super_frame(0, gso_type=GSO_NONE, flags=flags | NEEDS_CSUM, header_size=header_size)
    assert judged(frame, packet.mode, header_size) == [packet.build()]


@settings(max_examples=20)
@given(packets(st.integers(20000, 65000)), st.integers(100, 3000))
def test_valid_frames_of_up_to_64_kib(packet: Packet, gso_size: int) -> None:
    room = 65535 - packet.header_length + packet.network
    packet = replace(packet, payload=packet.payload[:room])
    assert judged(packet.super_frame(gso_size), packet.mode) is not None


@st.composite
def spoiled_super_frames(draw: st.DrawFn) -> tuple[bytes, Mode]:
    packet, gso_size = draw(packets(SIZES)), draw(GSO_SIZES)
    plain = draw(st.integers(0, 4)) == 0
    frame = packet.super_frame(gso_size, gso_type=GSO_NONE) if plain else packet.super_frame(gso_size)
    return draw(spoiled(frame, 10 + packet.header_length)), packet.mode


@settings(max_examples=700)
@given(spoiled_super_frames())
def test_frames_with_wrong_lengths(case: tuple[bytes, Mode]) -> None:
    judged(*case)


@settings(max_examples=200)
@given(packets(st.integers(0, 60)), st.integers(1, 60), st.data())
def test_hostile_frames(packet: Packet, gso_size: int, data: st.DataObject) -> None:
    frame = data.draw(hostile(packet))
    start = data.draw(st.sampled_from((packet.transport, packet.network + 40, packet.network + 48, 0, 0xFFFF)))
    header = vnet_header(
        flags=data.draw(st.sampled_from((0, NEEDS_CSUM, 0xFF))),
        gso_type=data.draw(st.sampled_from((GSO_TYPE[packet.version, packet.protocol], GSO_NONE, GSO_TCPV6))),
        hdr_len=data.draw(st.sampled_from((0, 0, 0xFFFF))),
        gso_size=data.draw(st.sampled_from((gso_size, gso_size, 0, 0xFFFF))),
        csum_start=start,
        csum_offset=data.draw(st.sampled_from((CHECKSUM_OFFSET[packet.protocol], 0, 0xFFFF))),
    )
    judged(header + frame, packet.mode)


@pytest.mark.parametrize(
    "packet",
    [
        TCP4,
        UDP6,
        TAGGED,
        replace(EXTENDED, mode=Mode.TAP),
        replace(UDP4, mode=Mode.TAP, options=bytes(4)),
    ],
)
def test_every_byte_of_the_headers_changed_and_every_length(packet: Packet) -> None:
    for frame in (packet.super_frame(4), packet.super_frame(4, gso_type=GSO_NONE)):
        for at in range(10 + packet.header_length):
            for value in {0, 1, 0x40, 0x7F, 0x80, 0xFF, frame[at] + 1 & 0xFF, frame[at] - 1 & 0xFF, frame[at] ^ 0x10}:
                judged(with_bytes(frame, at, bytes([value])), packet.mode)
        for end in range(len(frame)):
            judged(frame[:end], packet.mode)
            judged(with_bytes(frame, 2, bytes(2))[:end], packet.mode)


@settings(max_examples=250)
@given(
    st.builds(vnet_header, flags=st.integers(0, 3), gso_type=st.sampled_from((0, 1, 3, 4, 5, 0x81)), gso_size=SIZES),
    st.sampled_from((b"", b"\x45", b"\x60", bytes(12) + b"\x08\x00\x45", bytes(12) + b"\x86\xdd\x60")),
    st.binary(max_size=100),
    MODES,
)
@example(bytes(10), b"", b"", Mode.TUN)
def test_random_bytes(header: bytes, start: bytes, rest: bytes, mode: Mode) -> None:
    judged(header + start + rest, mode)
    judged(start + rest, mode)
