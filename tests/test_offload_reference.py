"""The reference itself: against numbers from RFCs and captures, frames written out by hand, and dpkt."""

from __future__ import annotations

from dataclasses import replace

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiotuntap import InvalidFrameError, Mode

from .offload_reference import (
    DESTINATION,
    DF,
    FRAGMENT,
    HOP_BY_HOP,
    IPV6,
    ROUTING,
    TCP,
    UDP,
    Packet,
    ask_dpkt,
    checksum,
    coalesce,
    extension,
    ones_sum,
    packets,
    parse,
    segment,
    vnet_header,
)

# Checksums in these were made by dpkt.
TCP4 = [
    "4500002a 00010000 400666cb 0a000001 0a000002  9c401451 000003e8 000007d0 50100200 75210000 6865",
    "4500002a 00020000 400666ca 0a000001 0a000002  9c401451 000003ea 000007d0 50100200 71180000 6c6c",
    "45000029 00030000 400666ca 0a000001 0a000002  9c401451 000003ec 000007d0 50180200 6e7b0000 6f",
]
TCP4_WITH_CWR = "4500002a 00010000 400666cb 0a000001 0a000002  9c401451 000003e8 000007d0 50900200 74a10000 6865"
# Addresses 0a00 0001 0a00 0002, protocol 6 and length 25 (19) sum up to 1422.
TCP4_WHOLE = "4500002d 00010000 400666c8 0a000001 0a000002  9c401451 000003e8 000007d0 50180200 14220000 68656c6c6f"

ADDRESSES6 = "fd000000000000000000000000000001 fd000000000000000000000000000002"
UDP6 = [
    f"60000000 000b1140 {ADDRESSES6}  9c401451 000b90df 616263",
    f"60000000 000b1140 {ADDRESSES6}  9c401451 000b8adc 646566",
    f"60000000 00091140 {ADDRESSES6}  9c401451 0009ee45 67",
]
# fd00 + 1 + fd00 + 2 + 17 + 15 = 1fa23, folded fa24.
UDP6_WHOLE = f"60000000 000f1140 {ADDRESSES6}  9c401451 000ffa24 61626364656667"

ETHERNET = bytes.fromhex("020000000002 020000000001")


def frames(lines: list[str]) -> list[bytes]:
    return [bytes.fromhex(line) for line in lines]


def test_the_sum_of_rfc_1071() -> None:
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert (ones_sum(data), checksum(data)) == (0xDDF2, 0x220D)


@pytest.mark.parametrize(
    ("data", "total"),
    [(b"", 0), (b"\0\0", 0), (b"\x12", 0x1200), (b"\xff\xff", 0xFFFF), (b"\xff\xff\0\1", 1), (b"\xff" * 10, 0xFFFF)],
)
def test_sums_at_their_limits(data: bytes, total: int) -> None:
    assert ones_sum(data) == total


@pytest.mark.parametrize(
    "header", ["45000073000040004011b861c0a80001c0a800c7", "4500003c1c4640004006b1e6ac100a63ac100a0c"]
)
def test_header_checksums_of_captures(header: str) -> None:
    data = bytes.fromhex(header)
    assert checksum(data) == 0
    assert checksum(data[:10] + bytes(2) + data[12:]) == int.from_bytes(data[10:12], "big")


@given(st.binary(max_size=200))
def test_checksums_are_those_of_dpkt(data: bytes) -> None:
    assert checksum(data) == dpkt.in_cksum(data)


@pytest.mark.parametrize("link", [b"", ETHERNET + b"\x08\x00", ETHERNET + bytes.fromhex("81000007 0800")])
def test_segments_tcp_written_out(link: bytes) -> None:
    mode, at = Mode.TAP if link else Mode.TUN, len(link)
    header = vnet_header(flags=1, gso_type=0x81, gso_size=2, csum_start=at + 20, csum_offset=16)
    whole = bytearray(header + link + bytes.fromhex(TCP4_WHOLE))
    whole[10 + at + 33] |= 0x80
    expected = frames([TCP4_WITH_CWR, *TCP4[1:]])
    assert segment(bytes(whole), mode) == [link + frame for frame in expected]


def test_segments_udp_written_out() -> None:
    header = vnet_header(flags=1, gso_type=5, gso_size=3, csum_start=40, csum_offset=6, size=24)
    assert segment(header + bytes.fromhex(UDP6_WHOLE), Mode.TUN, 24) == frames(UDP6)


@pytest.mark.parametrize("link", [b"", ETHERNET + b"\x08\x00", ETHERNET + bytes.fromhex("88a80001 81000007 0800")])
def test_coalesces_tcp_written_out(link: bytes) -> None:
    mode, at = Mode.TAP if link else Mode.TUN, len(link)
    header = vnet_header(flags=1, gso_type=1, hdr_len=at + 40, gso_size=2, csum_start=at + 20, csum_offset=16)
    assert coalesce([link + frame for frame in frames(TCP4)], mode) == [header + link + bytes.fromhex(TCP4_WHOLE)]


def test_coalesces_udp_written_out() -> None:
    header = vnet_header(flags=1, gso_type=5, hdr_len=48, gso_size=3, csum_start=40, csum_offset=6)
    assert coalesce(frames(UDP6), Mode.TUN) == [header + bytes.fromhex(UDP6_WHOLE)]


def test_what_lies_between_ends_all_runs() -> None:
    one, two, three = frames(TCP4)
    assert coalesce([one, b"?", two, three], Mode.TUN)[:2] == [bytes(10) + one, bytes(10) + b"?"]
    assert len(coalesce([one, b"?", two, three], Mode.TUN)) == 3


@pytest.mark.parametrize(
    ("packet", "transport", "payload"),
    [
        (Packet(), 20, 40),
        (Packet(mode=Mode.TAP), 34, 54),
        (Packet(mode=Mode.TAP, vlan=(0x88A8, 0x8100), protocol=UDP), 42, 50),
        (Packet(options=bytes(8), tcp_options=bytes(12)), 28, 60),
        (Packet(version=6), 40, 60),
        (Packet(version=6, extensions=(extension(HOP_BY_HOP), extension(ROUTING, 2)), protocol=UDP), 72, 80),
    ],
)
def test_finds_the_headers(packet: Packet, transport: int, payload: int) -> None:
    headers = parse(packet.build(), packet.mode)
    assert headers is not None
    assert (headers.transport, headers.payload) == (packet.transport, packet.header_length) == (transport, payload)


@pytest.mark.parametrize(
    ("frame", "mode"),
    [
        (b"", Mode.TUN),
        (b"\x45", Mode.TUN),
        (b"\x45" + bytes(8) + b"\x01" + bytes(60), Mode.TUN),
        (Packet(fragment=0x2000).build(), Mode.TUN),
        (Packet(fragment=1).build(), Mode.TUN),
        (Packet(version=6, extensions=(extension(FRAGMENT),)).build(), Mode.TUN),
        (Packet(version=6, extensions=((DESTINATION, bytes(6)),)).build()[:-20], Mode.TUN),
        (Packet().build()[:-1], Mode.TUN),
        (Packet(payload=b"x").build()[:-1], Mode.TUN),
        (Packet().build()[:3] + bytes([39]) + Packet().build()[4:], Mode.TUN),
        (Packet().build(), Mode.TAP),
        (ETHERNET + IPV6.to_bytes(2, "big") + Packet().build(), Mode.TAP),
        (Packet(mode=Mode.TAP, vlan=(0x8100,) * 3).build(), Mode.TAP),
        (ETHERNET, Mode.TAP),
    ],
)
def test_finds_no_headers(frame: bytes, mode: Mode) -> None:
    assert parse(frame, mode) is None


@settings(max_examples=50, deadline=None)
@given(packets(st.integers(0, 100)))
def test_frames_are_built_as_dpkt_reads_them(packet: Packet) -> None:
    ip, transport = ask_dpkt(packet.build(), packet.mode)
    assert (transport.sport, transport.dport, transport.data) == (40000, 5201, packet.payload)
    if packet.version == 4:
        assert (ip.tos, ip.id, ip.df, ip.ttl) == (
            packet.traffic_class,
            packet.identification,
            packet.fragment == DF,
            packet.hops,
        )
        assert ip.opts == packet.options
    else:
        assert (ip.fc, ip.flow, ip.hlim) == (packet.traffic_class, packet.flow_label, packet.hops)
        assert [each.length for each in ip.all_extension_headers] == [len(each) + 2 for _, each in packet.extensions]
    if packet.protocol == TCP:
        assert (transport.seq, transport.ack, transport.flags & 0xFF, transport.win, transport.urp) == (
            packet.sequence,
            packet.acknowledgement,
            packet.flags,
            packet.window,
            packet.urgent,
        )
        assert transport.opts == packet.tcp_options


@settings(max_examples=50, deadline=None)
@given(packets(st.integers(0, 100)), st.integers(1, 40))
def test_segments_are_what_dpkt_takes(packet: Packet, gso_size: int) -> None:
    pieces = segment(packet.super_frame(gso_size), packet.mode)
    read = [ask_dpkt(piece, packet.mode)[1].data for piece in pieces]
    assert b"".join(read) == packet.payload
    assert all(len(data) == gso_size for data in read[:-1])
    assert [len(piece) for piece in pieces] == [packet.header_length + len(data) for data in read]


@settings(max_examples=50, deadline=None)
@given(packets(st.integers(0, 100)))
def test_a_finished_checksum_makes_the_frame(packet: Packet) -> None:
    assert segment(packet.super_frame(0, gso_type=0), packet.mode) == [packet.build()]


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_sum_of_zero(protocol: int) -> None:
    packet = Packet(protocol=protocol, payload=bytes(7)).with_zero_checksums(4)
    stored = [ask_dpkt(frame, Mode.TUN)[1].sum for frame in segment(packet.super_frame(4), Mode.TUN)]
    assert stored == [0 if protocol == TCP else 0xFFFF] * 2


@pytest.mark.parametrize(
    "packet", [Packet(), Packet(flags=0x11, payload=b"ab"), Packet(fragment=0x8000, payload=b"ab")]
)
def test_frames_that_go_alone(packet: Packet) -> None:
    after = replace(packet, sequence=1000 + len(packet.payload), identification=101)
    assert len(coalesce([packet.build(), after.build()], Mode.TUN)) == 2


def test_refuses_what_does_not_hold_together() -> None:
    packet = Packet(payload=b"abcdef")
    for lies in ({"gso_size": 0}, {"gso_type": 4}, {"csum_start": 21}, {"csum_offset": 6}, {"hdr_len": 47}):
        with pytest.raises(InvalidFrameError):
            segment(packet.super_frame(**{"gso_size": 2} | lies), Mode.TUN)
