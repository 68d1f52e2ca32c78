"""The frames that the tests use, and the rules that they ask: against numbers from RFCs and captures, and dpkt."""

from __future__ import annotations

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiotuntap import Mode

from .offload_packets import (
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
    extension,
    ones_sum,
    packets,
)
from .offload_rules import parse

LINK = bytes.fromhex("020000000002 020000000001")


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
        (LINK + IPV6.to_bytes(2, "big") + Packet().build(), Mode.TAP),
        (Packet(mode=Mode.TAP, vlan=(0x8100,) * 3).build(), Mode.TAP),
        (LINK, Mode.TAP),
    ],
)
def test_finds_no_headers(frame: bytes, mode: Mode) -> None:
    assert parse(frame, mode) is None


@settings(max_examples=50)
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


@settings(max_examples=50)
@given(packets(st.integers(0, 100)), st.integers(1, 40))
def test_pieces_are_what_dpkt_takes(packet: Packet, gso_size: int) -> None:
    pieces = packet.pieces(gso_size)
    read = [ask_dpkt(piece.build(), packet.mode)[1].data for piece in pieces]
    assert b"".join(read) == packet.payload
    assert all(len(data) == gso_size for data in read[:-1])


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_sum_of_zero(protocol: int) -> None:
    packet = Packet(protocol=protocol, payload=bytes(7)).with_zero_checksums(4)
    stored = [ask_dpkt(piece.build(), Mode.TUN)[1].sum for piece in packet.pieces(4)]
    assert stored == [0 if protocol == TCP else 0xFFFF] * 2
