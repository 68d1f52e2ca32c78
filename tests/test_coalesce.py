"""Coalescing: what is joined and what is not, by hand, by dpkt, by what must hold in any case, and by segmenting again."""

from __future__ import annotations

import gc
import itertools
import struct
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiotuntap import Mode, Offload, TuntapError, VnetHeader

from .engine import coalesce, merge, segment
from .offload_packets import (
    ACK,
    CWR,
    DESTINATION,
    DF,
    ECE,
    FIN,
    FRAGMENT,
    HEADER_SIZES,
    HOP_BY_HOP,
    ICMP,
    LINKS4,
    MF,
    MODES,
    PSH,
    ROUTING,
    RST,
    SYN,
    TCP,
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
    u16,
    vnet_header,
    written_out,
)
from .offload_rules import check_merged, comparable, flow_of

pytestmark = pytest.mark.usefixtures("engine")

ARP = bytes.fromhex("ffffffffffff 020000000001 0806 0001080006040001") + bytes(20)
PING = Packet(payload=b"ping").build()[:9] + bytes([ICMP]) + Packet(payload=b"ping").build()[10:]


def with_bytes(frame: bytes, offset: int, data: bytes) -> bytes:
    return frame[:offset] + data + frame[offset + len(data) :]


def row(packet: Packet, sizes: Iterable[int], seed: int = 2) -> list[Packet]:
    """Consecutive packets of one flow, with payloads of *sizes*."""
    out = []
    for number, size in enumerate(sizes):
        out.append(replace(packet, payload=filler(size, seed + number)))
        packet = replace(
            packet,
            sequence=(packet.sequence + size) % 2**32,
            identification=(packet.identification + 1) % 2**16,
        )
    return out


def build(*rows: list[Packet]) -> list[bytes]:
    return [packet.build() for packets_of_row in rows for packet in packets_of_row]


def judged(frames: list[bytes], mode: Mode, offload: Offload = Offload.ALL, header_size: int = 10) -> list[bytes]:
    """The expected result."""
    merged = merge(frames, mode, offload, header_size)
    check_merged(merged, frames, mode, offload, header_size)
    result = coalesce(frames, mode, offload=offload, header_size=header_size)
    assert result == [each.data for each in merged]
    return result


def groups(frames: list[bytes], mode: Mode = Mode.TUN, **keywords: Any) -> list[int]:
    """How many frames each frame of the result holds."""
    size = keywords.get("header_size", 10)
    counts = []
    for frame in judged(frames, mode, **keywords):
        if frame.startswith(bytes(size)):
            assert frame[size:] in frames
            counts.append(1)
        else:
            pieces = segment(frame, mode, header_size=size)
            for piece in pieces:
                ask_dpkt(piece, mode)
            counts.append(len(pieces))
    return counts


KINDS = {
    "TCP over IPv4": Packet(),
    "TCP over IPv6": Packet(version=6),
    "UDP over IPv4": Packet(protocol=UDP),
    "UDP over IPv6": Packet(version=6, protocol=UDP),
}
TYPES = {"TCP over IPv4": 1, "TCP over IPv6": 4, "UDP over IPv4": 5, "UDP over IPv6": 5}

#: Frames of a run before the one that ends it.
BEFORE = (2, 5, 6, 20)

# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("link", [None, (), (0x8100,), (0x88A8, 0x8100)])
def test_one_frame_with_its_header(kind: str, link: tuple[int, ...] | None) -> None:
    mode = Mode.TUN if link is None else Mode.TAP
    packets_of_flow = row(replace(KINDS[kind], mode=mode, vlan=link or ()), [100, 100, 100, 40])
    first, whole = packets_of_flow[0], b"".join(packet.payload for packet in packets_of_flow)
    (frame,) = coalesce(build(packets_of_flow), mode)
    assert VnetHeader.unpack(frame) == VnetHeader(
        flags=VnetHeader.NEEDS_CSUM,
        gso_type=TYPES[kind],
        hdr_len=first.header_length,
        gso_size=100,
        csum_start=first.transport,
        csum_offset=16 if first.protocol == TCP else 6,
    )
    # The first frame's headers with the lengths of the whole; the field has the sum of the pseudo header.
    assert frame[10:] == replace(first, payload=whole).build(partial=True)
    assert segment(frame, mode) == build(packets_of_flow)


@pytest.mark.parametrize("link", LINKS4)
def test_tcp_written_out(link: str) -> None:
    before = bytes.fromhex(link)
    mode, at = Mode.TAP if link else Mode.TUN, len(before)
    header = vnet_header(flags=1, gso_type=1, hdr_len=at + 40, gso_size=8, csum_start=at + 20, csum_offset=16)
    frames = [before + frame for frame in written_out(*TCP4_PIECES)]
    assert coalesce(frames, mode) == [header + before + bytes.fromhex(TCP4_WHOLE)]


def test_udp_written_out() -> None:
    header = vnet_header(flags=1, gso_type=5, hdr_len=48, gso_size=3, csum_start=40, csum_offset=6)
    assert coalesce(written_out(*UDP6_PIECES), "tun") == [header + bytes.fromhex(UDP6_WHOLE)]


def test_the_ip_header_of_the_whole_is_valid() -> None:
    (frame,) = coalesce(build(row(Packet(options=bytes(8), identification=9), [8] * 9)), "tun")
    ip = dpkt.ip.IP(frame[10:])
    assert (ip.len, ip.id) == (28 + 20 + 72, 9)
    assert dpkt.in_cksum(frame[10:38]) == 0


def test_the_sum_of_the_pseudo_header_written_out() -> None:
    """0a00 + 0001 + 0a00 + 0002 + 0006 + 20 + 16 = 142d; it is not inverted."""
    (frame,) = coalesce(build(row(Packet(), [8, 8])), "tun")
    assert frame[10 + 36 : 10 + 38] == b"\x14\x2d"


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("version", [4, 6])
def test_the_sum_of_the_pseudo_header_is_never_zero(version: int, protocol: int) -> None:
    """A one's complement sum of something is 0xFFFF rather than 0; the kernel stores it as such."""
    packet = Packet(version=version, protocol=protocol)
    whole = replace(packet, payload=bytes(18)).build(partial=True)
    at = packet.transport + (16 if protocol == TCP else 6)
    packet = replace(packet, source=1 + 0xFFFF - struct.unpack_from(">H", whole, at)[0])
    (frame,) = coalesce(build(row(packet, [9, 9])), "tun")
    assert frame[10 + at : 10 + at + 2] == b"\xff\xff"
    assert segment(frame, "tun") == build(row(packet, [9, 9]))


@pytest.mark.parametrize("kind", KINDS)
def test_headers_with_options_are_joined(kind: str) -> None:
    packet = KINDS[kind]
    if packet.version == 4:
        packet = replace(packet, options=filler(40, 5))
    else:
        packet = replace(packet, extensions=(extension(HOP_BY_HOP, 1), extension(ROUTING, 2), extension(DESTINATION)))
    if packet.protocol == TCP:
        packet = replace(packet, tcp_options=filler(40, 6))
    assert groups(build(row(packet, [50, 50, 50]))) == [3]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 9, 31, 536])
def test_every_count_and_size(size: int) -> None:
    for count, packet in itertools.product((1, 2, 3, 43, 44, 45, 63, 64), KINDS.values()):
        is_merged = size >= 8 or packet.protocol == UDP  # some kernels make no smaller segments of TCP
        assert groups(build(row(packet, [size] * count))) == ([count] if is_merged else [1] * count)


@pytest.mark.parametrize("flags", [ACK, ACK | ECE])
def test_flags_that_may_be_joined(flags: int) -> None:
    assert groups(build(row(Packet(flags=flags), [9, 9, 9]))) == [3]


@pytest.mark.parametrize("before", BEFORE)
def test_the_push_flag_ends_a_run_and_is_kept(before: int) -> None:
    packets_of_flow = row(Packet(), [9] * (before + 3))
    for at in (before, before + 2):
        packets_of_flow[at] = replace(packets_of_flow[at], flags=ACK | PSH)
    assert groups(build(packets_of_flow)) == [before + 1, 2]
    merged, _ = coalesce(build(packets_of_flow), "tun")
    assert merged[10 + 33] == ACK | PSH
    assert [piece[33] for piece in segment(merged, "tun")] == [ACK] * before + [ACK | PSH]
    assert groups(build(packets_of_flow[before:])) == [1, 2]
    all_of_them = [replace(packet, flags=ACK | PSH) for packet in row(Packet(), [9] * (before + 8))]
    assert groups(build(packets_of_flow[:before] + all_of_them[before:])) == [before + 1] + [1] * 7


@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_payload_is_the_last(kind: str) -> None:
    for before in BEFORE:
        assert groups(build(row(KINDS[kind], [9] * before + [8, 8, 8, 1, 1]))) == [before + 1, 3, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_payload_starts_a_new_run(kind: str) -> None:
    for before in BEFORE:
        assert groups(build(row(KINDS[kind], [9] * before + [10, 10, 9, 11, 11]))) == [before, 3, 2]


@pytest.mark.parametrize("before", BEFORE)
def test_sequence_numbers_must_follow(before: int) -> None:
    for step in (-9, -1, 1, 9, 2**31):
        packets_of_flow = row(Packet(), [9] * (before + 8))
        for at in range(before, before + 8):
            packets_of_flow[at] = replace(packets_of_flow[at], sequence=packets_of_flow[at].sequence + step)
        assert groups(build(packets_of_flow)) == [before, 8]


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("before", BEFORE)
def test_identifications_must_follow_unless_df_is_set(protocol: int, before: int) -> None:
    for step in (-1, 1, 256):
        for fragment, expected in ((0, [before, 8]), (DF, [before + 8])):
            packets_of_flow = row(Packet(protocol=protocol, fragment=fragment), [9] * (before + 8))
            for at in range(before, before + 8):
                packet = packets_of_flow[at]
                packets_of_flow[at] = replace(packet, identification=packet.identification + step)
            assert groups(build(packets_of_flow)) == expected


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_one_identification_for_all(protocol: int) -> None:
    for fragment, expected in ((0, [1] * 9), (DF, [9])):
        packets_of_flow = row(Packet(protocol=protocol, fragment=fragment), [9] * 9)
        assert groups(build([replace(packet, identification=0) for packet in packets_of_flow])) == expected


@pytest.mark.parametrize("fragment", [0, DF])
def test_ipv4_checksums_that_wrap_do_not_matter(fragment: int) -> None:
    """They fall as the identification grows, and after 0 comes 0xFFFE."""
    first = Packet(fragment=fragment, payload=bytes(9))
    left = struct.unpack_from(">H", first.build(), 10)[0]
    for steps in range(8):
        packets_of_flow = row(replace(first, identification=first.identification + left - steps), [9] * 16)
        frames = build(packets_of_flow)
        assert frames[steps][10:12] == bytes(2)
        assert frames[steps + 1][10:12] == b"\xff\xfe"
        assert groups(frames) == [16]


def test_numbers_that_wrap_end_a_run() -> None:
    for before in BEFORE:
        count = before + 8
        assert groups(build(row(Packet(identification=0x10000 - before), [9] * count))) == [before, 8]
        assert groups(build(row(Packet(identification=0x10000 - before, fragment=DF), [9] * count))) == [count]
        assert groups(build(row(Packet(sequence=2**32 - 9 * before), [9] * count))) == [before, 8]
        # A frame that itself reaches over the end is the last of its run.
        assert groups(build(row(Packet(sequence=2**32 - 9 * before + 1), [9] * count))) == [before, 8]
        assert groups(build(row(Packet(sequence=2**32 - 9 * before - 1), [9] * count))) == [before + 1, 7]
    assert groups(build(row(Packet(version=6, sequence=2**32 - 1), [9] * 3))) == [1, 2]


@pytest.mark.parametrize("before", BEFORE)
def test_numbers_that_wrap_do_not_change_other_fields(before: int) -> None:
    """The fields before the sequence number and the identification are a port and a length: they must not change."""
    ports = row(Packet(sequence=2**32 - 9 * before), [9] * (before + 8))
    for at in range(before, before + 8):
        ports[at] = replace(ports[at], destination_port=5202)
    assert groups(build(ports)) == [before, 8]
    for protocol in (TCP, UDP):
        lengths = row(Packet(protocol=protocol, identification=0x10000 - before), [9] * (before + 8))
        frames = build(lengths)
        for at in range(before, before + 8):
            # One byte more than there is, with a checksum that is right.
            header = with_bytes(frames[at][:20], 2, struct.pack(">HH", len(frames[at]) + 1, at - before))
            header = with_bytes(header, 10, bytes(2))
            frames[at] = with_bytes(header, 10, struct.pack(">H", checksum(header))) + frames[at][20:]
        assert groups(frames) == [before] + [1] * 8


@pytest.mark.parametrize("kind", KINDS)
def test_at_most_64_frames(kind: str) -> None:
    assert groups(build(row(KINDS[kind], [8] * 130))) == [64, 64, 2]


@pytest.mark.parametrize(
    ("kind", "size", "count"),
    [
        ("UDP over IPv4", 5039, 13),
        ("UDP over IPv6", 21829, 3),
        ("TCP over IPv4", 13099, 5),
        ("TCP over IPv6", 1455, 45),
    ],
)
@pytest.mark.parametrize("mode", Mode)
def test_at_most_65535_bytes(kind: str, size: int, count: int, mode: Mode) -> None:
    """The sizes fill an IP packet to the last byte; what comes before it does not count."""
    packet = replace(KINDS[kind], mode=mode)
    assert packet.header_length - packet.network + size * count == 65535
    assert groups(build(row(packet, [size] * count)), mode) == [count]
    assert groups(build(row(packet, [size] * count + [8, 8])), mode) == [count, 2]
    assert groups(build(row(packet, [size] * (count - 1) + [size - 1, 8])), mode) == [count, 1]


def test_frames_of_usual_size() -> None:
    packet = Packet(mode=Mode.TAP, tcp_options=filler(12, 4), fragment=DF)
    assert groups(build(row(packet, [1448] * 100)), Mode.TAP) == [45, 45, 10]


# -- headers that are too long -----------------------------------------------------------------------------------------

LONG = Packet(version=6, extensions=extensions_of(192), tcp_options=bytes(4))


@pytest.mark.parametrize(
    ("packet", "size"),
    [
        (LONG, 256),
        (replace(LONG, tcp_options=bytes(8)), 260),
        (replace(LONG, extensions=extensions_of(200), tcp_options=b""), 260),
        (replace(LONG, protocol=UDP, extensions=extensions_of(208)), 256),
        (replace(LONG, protocol=UDP, extensions=extensions_of(216)), 264),
        (replace(LONG, protocol=UDP, extensions=(extension(DESTINATION),) * 26), 256),
        (replace(LONG, protocol=UDP, extensions=(extension(DESTINATION),) * 27), 264),
        (replace(LONG, mode=Mode.TAP, extensions=extensions_of(176)), 254),
        (replace(LONG, mode=Mode.TAP, vlan=(0x8100,), extensions=extensions_of(176)), 258),
        (replace(LONG, mode=Mode.TAP, vlan=(0x8100,), protocol=UDP, extensions=extensions_of(184)), 250),
    ],
)
def test_headers_of_at_most_256_bytes(packet: Packet, size: int) -> None:
    """From the start of the frame to its payload."""
    assert packet.header_length == size
    assert groups(build(row(packet, [9] * 20)), packet.mode) == ([20] if size <= 256 else [1] * 20)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("size", [320, 32_000, 65_408, 65_432])
def test_headers_that_fill_a_frame_go_alone(mode: Mode, protocol: int, size: int) -> None:
    """The kernel refuses a super-frame whose transport header is near the end of 64 KiB."""
    packet = Packet(mode=mode, version=6, protocol=protocol, extensions=extensions_of(size))
    assert groups(build(row(packet, [2] * 8)), mode) == [1] * 8
    # What stands after the first 256 bytes makes no difference.
    one, other = row(Packet(mode=mode), [9] * 2)
    head = packet.build()[:257]
    for rest in (b"", packet.build()[257:], bytes(1000), b"\xff" * 1000):
        assert groups([one.build(), head + rest, other.build()], mode) == [1, 1, 1]


@pytest.mark.slow
def test_no_memory_is_kept_for_headers_of_the_senders_choosing() -> None:
    """Neither of frames that are merged nor of others."""
    sizes = [*range(0, 200, 8), *range(0, 40_000, 200)]

    def take_all() -> None:
        for size in sizes:
            for packet in (
                Packet(version=6, extensions=extensions_of(size)),
                Packet(options=bytes(size % 44 // 4 * 4)),
            ):
                frames = build(row(packet, [9] * 8))
                coalesce(frames, "tun")
                segment(replace(packet, payload=filler(72, 2)).super_frame(9), "tun")

    tracemalloc.start()
    try:
        coalesce(build(row(LONG, [9] * 8)), "tun")
        before, _ = tracemalloc.get_traced_memory()
        take_all()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 500_000


# -- what may not differ -----------------------------------------------------------------------------------------------

CHANGES: dict[str, dict[str, Any]] = {
    "ToS": {"traffic_class": 8},
    "congestion": {"traffic_class": 3},
    "TTL": {"hops": 63},
    "DF": {"fragment": DF},
    "IPv4 options": {"options": b"\1\1\1\0"},
}
CHANGES6: dict[str, dict[str, Any]] = {
    "traffic class": {"traffic_class": 8},
    "flow label": {"flow_label": 1},
    "hop limit": {"hops": 63},
    "extension header": {"extensions": (extension(DESTINATION),)},
}
CHANGES_OF_TCP: dict[str, dict[str, Any]] = {
    "acknowledgement": {"acknowledgement": 2001},
    "window": {"window": 511},
    "urgent pointer": {"urgent": 1},
    "ECE": {"flags": ACK | ECE},
    "AccECN": {"reserved": 1},
    "TCP options": {"tcp_options": b"\1\1\1\0"},
}


@pytest.mark.parametrize("change", CHANGES | CHANGES6 | CHANGES_OF_TCP)
def test_headers_must_be_equal(change: str) -> None:
    values = (CHANGES | CHANGES6 | CHANGES_OF_TCP)[change]
    for kind, before in itertools.product(KINDS.values(), BEFORE):
        if change in CHANGES6 if kind.version == 4 else change in CHANGES:
            continue
        if change in CHANGES_OF_TCP and kind.protocol == UDP:
            continue
        packets_of_flow = row(kind, [9] * (before + 9))
        for at in range(before, before + 8):
            packets_of_flow[at] = replace(packets_of_flow[at], **values)
        assert groups(build(packets_of_flow)) == [before, 8, 1]
        alone = packets_of_flow[: before + 1] + row(packets_of_flow[-1], [9] * 8)
        assert groups(build(alone)) == [before, 1, 8]


def test_options_of_the_same_size_must_be_equal() -> None:
    def stamp(number: int) -> bytes:
        return b"\1\1\x08\x0a" + struct.pack(">II", number, 5)

    one, two, three = row(Packet(), [9] * 3)
    packets_of_flow = [replace(each, tcp_options=stamp(when)) for each, when in ((one, 1), (two, 1), (three, 2))]
    assert groups(build(packets_of_flow)) == [2, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"source": 9},
        {"destination": 9},
        {"source_port": 9},
        {"destination_port": 9},
        {"mac": 9},
        {"vlan": (0x8100,)},
        {"vlan": (0x88A8,), "tci": 9},
        {"version": 6},
        {"protocol": UDP},
    ],
)
def test_flows_side_by_side(change: dict[str, Any]) -> None:
    """Frames of one flow join across those of another, and what comes out is in the order of the first frames."""
    base = Packet(mode=Mode.TAP, vlan=(0x88A8,))
    one, other = row(base, [9] * 4), row(replace(base, **change), [9] * 4)
    frames = build([packet for pair in zip(one, other, strict=True) for packet in pair])
    assert groups(frames, Mode.TAP) == [4, 4]
    first, second = coalesce(frames, "tap")
    assert (segment(first, "tap"), segment(second, "tap")) == (build(one), build(other))


def test_a_flow_that_cannot_join_ends_only_itself() -> None:
    one, other = row(Packet(), [9] * 4), row(Packet(source=9), [9] * 4)
    one[1] = replace(one[1], flags=ACK | FIN)
    frames = build([packet for pair in zip(one, other, strict=True) for packet in pair])
    assert groups(frames) == [1, 4, 1, 2]


@pytest.mark.parametrize("flags", [0, SYN, SYN | ACK, FIN | ACK, RST | ACK, URG | ACK, CWR | ACK, CWR | ECE | ACK, PSH])
def test_flags_that_go_alone(flags: int) -> None:
    assert groups(build(row(Packet(flags=flags), [9] * 9))) == [1] * 9
    for before in (1, *BEFORE):
        packets_of_flow = row(Packet(), [9] * (before + 9))
        packets_of_flow[before] = replace(packets_of_flow[before], flags=flags)
        assert groups(build(packets_of_flow)) == [before, 1, 8]


@pytest.mark.parametrize("kind", KINDS)
def test_empty_payloads_go_alone(kind: str) -> None:
    assert groups(build(row(KINDS[kind], [0, 0]))) == [1, 1]
    assert groups(build(row(KINDS[kind], [9, 0, 9, 9]))) == [1, 1, 2]


# -- frames that are wrong ---------------------------------------------------------------------------------------------


def spoil(packet: Packet, change: Callable[[Packet, bytes], bytes]) -> list[int]:
    """Groups of five frames, the third of which was changed, as it is too for more frames before and after."""
    for before in BEFORE[1:]:
        frames = build(row(packet, [9] * (before + 9)))
        frames[before] = change(packet, frames[before])
        assert groups(frames, packet.mode) == [before, 1, 8]
    frames = build(row(packet, [9] * 5))
    return groups([*frames[:2], change(packet, frames[2]), *frames[3:]], packet.mode)


def flip(offset: int) -> Callable[[Packet, bytes], bytes]:
    return lambda packet, frame: with_bytes(frame, offset, bytes([frame[offset] ^ 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_checksum_goes_alone_and_as_it_came(kind: str) -> None:
    packet = KINDS[kind]
    at = packet.transport + (16 if packet.protocol == TCP else 6)
    for offset in (at, at + 1, packet.header_length, -1):
        assert spoil(packet, flip(offset)) == [2, 1, 2]
    frames = build(row(packet, [9] * 3))
    broken = flip(-1)(packet, frames[0])
    assert coalesce([broken, *frames[1:]], "tun")[0] == bytes(10) + broken


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_wrong_ipv4_header_checksum_goes_alone(protocol: int) -> None:
    packet = Packet(protocol=protocol)
    for offset in (10, 11):
        assert spoil(packet, flip(offset)) == [2, 1, 2]


def test_udp_without_a_checksum_goes_alone() -> None:
    for kind in ("UDP over IPv4", "UDP over IPv6"):
        assert spoil(KINDS[kind], lambda packet, frame: with_bytes(frame, packet.transport + 6, bytes(2))) == [2, 1, 2]


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("version", [4, 6])
def test_checksums_that_come_out_as_zero(protocol: int, version: int) -> None:
    whole = Packet(version=version, protocol=protocol, payload=filler(36, 2)).with_zero_checksums(9)
    packets_of_flow = [
        replace(packet, payload=whole.payload[9 * at : 9 * at + 9])
        for at, packet in enumerate(row(replace(whole, payload=b""), [9] * 4))
    ]
    frames = build(packets_of_flow)
    at = whole.transport + (16 if protocol == TCP else 6)
    assert {frame[at : at + 2] for frame in frames} == {b"\0\0" if protocol == TCP else b"\xff\xff"}
    assert groups(frames) == [4]
    assert segment(coalesce(frames, "tun")[0], "tun") == frames


@pytest.mark.parametrize("version", [4, 6])
def test_a_tcp_checksum_of_ffff_is_as_valid_as_zero(version: int) -> None:
    whole = Packet(version=version, payload=filler(18, 2)).with_zero_checksums(9)
    first, second = row(whole, [9, 9])
    frames = build([replace(first, payload=whole.payload[:9]), replace(second, payload=whole.payload[9:])])
    at = whole.transport + 16
    assert frames[0][at : at + 2] == frames[1][at : at + 2] == bytes(2)
    assert groups([with_bytes(frame, at, b"\xff\xff") for frame in frames]) == [2]
    assert coalesce([with_bytes(frame, at, b"\xff\xff") for frame in frames], "tun") == coalesce(frames, "tun")


def test_an_ipv4_checksum_of_ffff_is_as_valid_as_zero() -> None:
    first, second = row(Packet(identification=0), [9, 9])
    identification = struct.unpack_from(">H", first.build(), 10)[0]
    first, second = replace(first, identification=identification), replace(second, identification=identification + 1)
    frames = build([first, second])
    assert frames[0][10:12] == bytes(2)
    assert groups(frames) == groups([with_bytes(frames[0], 10, b"\xff\xff"), frames[1]]) == [2]


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("version", [4, 6])
def test_udp_with_another_length_goes_alone(change: int, version: int) -> None:
    def lie(packet: Packet, frame: bytes) -> bytes:
        """The sum stays right: what the length grows by, the checksum shrinks by."""
        at = packet.transport + 4
        length, stored = struct.unpack_from(">HH", frame, at)
        return with_bytes(frame, at, struct.pack(">HH", length + change, stored - change))

    assert spoil(Packet(version=version, protocol=UDP), lie) == [2, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_goes_alone(kind: str) -> None:
    packet = replace(KINDS[kind], mode=Mode.TAP)
    assert spoil(packet, lambda _, frame: frame + bytes(3)) == [2, 1, 2]
    assert groups([frame + bytes(3) for frame in build(row(packet, [9] * 3))], Mode.TAP) == [1, 1, 1]


def test_the_reserved_bit_of_ipv4_goes_alone() -> None:
    assert groups(build(row(Packet(fragment=0x8000), [9] * 3))) == [1, 1, 1]


BARRIERS = {
    "nothing": b"",
    "one byte": b"\x45",
    "not IP": b"\x55" + bytes(60),
    "ICMP": PING,
    "the first fragment": Packet(fragment=MF, payload=bytes(8)).build(),
    "the last fragment": Packet(fragment=5, source=9, payload=bytes(8)).build(),
    "an IPv6 fragment": Packet(version=6, extensions=((FRAGMENT, bytes(6)),), payload=bytes(8)).build(),
    # With TCP where such a header ends: what is the acknowledgement of one is the size of the other.
    "an IPv4 header of 16 bytes": b"\x44" + Packet(acknowledgement=5 << 28, payload=bytes(8)).build()[1:],
    "a TCP header of 16 bytes": with_bytes(Packet(source=9, payload=bytes(8)).build(), 32, b"\x40"),
    "a TCP header beyond the end": with_bytes(Packet(source=9).build(), 32, b"\x60"),
    "a TCP header beyond the packet": with_bytes(Packet(source=9, payload=bytes(8)).build(), 2, struct.pack(">H", 39)),
    "a UDP header beyond the packet": with_bytes(
        Packet(protocol=UDP, source=9, payload=bytes(8)).build(), 2, struct.pack(">H", 27)
    ),
    "half a packet": Packet(source=9, payload=bytes(8)).build()[:-1],
    "half a packet of UDP over IPv6": Packet(version=6, protocol=UDP, payload=bytes(8)).build()[:-1],
    "headers of more than 256 bytes": Packet(version=6, extensions=extensions_of(216), payload=bytes(8)).build(),
    "IPv6 with an unknown header": with_bytes(Packet(version=6, payload=bytes(8)).build(), 6, b"\xfd"),
}


@pytest.mark.parametrize("name", BARRIERS)
@pytest.mark.parametrize("mode", [Mode.TUN, Mode.TAP])
def test_unknown_packets_end_all_runs(name: str, mode: Mode) -> None:
    link = b"" if mode is Mode.TUN else Packet(mode=Mode.TAP).build()[:12]
    if mode is Mode.TAP and len(BARRIERS[name]) > 1:
        link += b"\x86\xdd" if BARRIERS[name][0] >> 4 == 6 else b"\x08\x00"
    flows = [row(replace(packet, mode=mode), [9] * 4) for packet in KINDS.values()]
    frames = [packet.build() for packets_of_all in zip(*flows, strict=True) for packet in packets_of_all]
    barrier = link + BARRIERS[name]
    assert groups([*frames[:8], barrier, *frames[8:]], mode) == [2] * 4 + [1] + [2] * 4
    assert coalesce([*frames[:8], barrier, *frames[8:]], mode)[4] == bytes(10) + barrier


def test_arp_ends_all_runs() -> None:
    frames = build(row(Packet(mode=Mode.TAP), [9] * 4))
    assert groups([*frames[:2], ARP, *frames[2:]], Mode.TAP) == [2, 1, 2]


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offload", "joined"),
    [
        (Offload.NONE, ()),
        (Offload.CSUM, ()),
        (Offload.TSO4, ("TCP over IPv4",)),
        (Offload.CSUM | Offload.TSO6, ("TCP over IPv6",)),
        (Offload.USO4, ("UDP over IPv4",)),
        (Offload.USO6, ("UDP over IPv6",)),
        (Offload.TSO4 | Offload.TSO6, ("TCP over IPv4", "TCP over IPv6")),
        (Offload.ALL, tuple(KINDS)),
    ],
)
def test_only_what_the_offload_has(offload: Offload, joined: tuple[str, ...]) -> None:
    for kind, packet in KINDS.items():
        expected = [3] if kind in joined else [1, 1, 1]
        assert groups(build(row(packet, [9] * 3)), offload=offload) == expected
        if offload is Offload.ALL:
            assert groups(build(row(packet, [9] * 3))) == expected


@pytest.mark.parametrize("size", [10, 12, 20, 24])
def test_vnet_headers_of_each_size(size: int) -> None:
    frames = [*build(row(Packet(), [9] * 3)), b"", PING]
    result = coalesce(frames, "tun", header_size=size)
    assert [frame[size:] for frame in result] == [frame[10:] for frame in coalesce(frames, "tun")]
    assert [frame[:size] for frame in result] == [frame[:10] + bytes(size - 10) for frame in coalesce(frames, "tun")]


def test_no_frames_give_no_frames() -> None:
    assert coalesce([], "tun") == coalesce(iter(()), "tap") == []


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_takes_any_bytes_once_and_leaves_them_alone(
    kind: type[bytes | bytearray | memoryview],
) -> None:
    frames = [*build(row(Packet(), [9] * 3), row(Packet(version=6, protocol=UDP), [5] * 50)), b"", PING, b"?" * 50]
    given_frames = [kind(bytearray(frame)) for frame in frames]
    result = coalesce((frame for frame in given_frames), "tun")
    assert result == coalesce(frames, "tun")
    assert {type(frame) for frame in result} == {bytes}
    assert [bytes(frame) for frame in given_frames] == frames


def test_what_an_engine_hands_back_is_merged_all_the_same() -> None:
    frames = [*build(row(Packet(), [9] * 3)), PING]
    in_pieces = memoryview(bytes(byte for each in PING for byte in (each, 0)))[::2]
    assert coalesce([*frames[:-1], in_pieces], "tun") == coalesce(frames, "tun")


@pytest.mark.parametrize("mode", ["", "TAP", "bridge", None])
def test_unknown_modes(mode: Any) -> None:
    with pytest.raises(ValueError) as caught:
        coalesce([PING], mode)
    assert not isinstance(caught.value, TuntapError)


@pytest.mark.parametrize("size", [0, 9, 11, 22, 25])
def test_unknown_sizes_of_the_vnet_header(size: int) -> None:
    for frames in ([PING], build(row(Packet(), [9, 9]))):
        with pytest.raises(ValueError) as caught:
            coalesce(frames, "tun", header_size=size)
        assert not isinstance(caught.value, TuntapError)


# -- traffic of every kind ---------------------------------------------------------------------------------------------

#: Fields that the next frame of a flow has otherwise; those that follow are as before.
DEVIATIONS: dict[str, dict[str, Any]] = (
    CHANGES
    | CHANGES6
    | CHANGES_OF_TCP
    | {
        "source": {"source": 77},
        "push": {"flags": ACK | PSH},
        "push and ECE": {"flags": ACK | ECE | PSH},
        "FIN": {"flags": ACK | FIN},
        "SYN": {"flags": SYN},
        "CWR": {"flags": ACK | CWR},
        "reserved bit": {"fragment": 0x8000},
        "first fragment": {"fragment": MF},
        "tci": {"tci": 9},
    }
)
#: What happens to a frame that is built.
DAMAGE: dict[str, Callable[[Packet, bytes], bytes]] = {
    "transport checksum": lambda packet, frame: flip(packet.transport + (17 if packet.protocol == TCP else 7))(
        packet, frame
    ),
    "no transport checksum": lambda packet, frame: with_bytes(
        frame, packet.transport + (16 if packet.protocol == TCP else 6), bytes(2)
    ),
    "IPv4 checksum": lambda packet, frame: flip(packet.network + 10)(packet, frame),
    "last byte": lambda packet, frame: flip(-1)(packet, frame),
    "length": lambda packet, frame: flip(packet.network + (3 if packet.version == 4 else 5))(packet, frame),
    "length without headers": lambda packet, frame: with_bytes(
        frame, packet.network + (2 if packet.version == 4 else 4), b"\0\7"
    ),
    "UDP length": lambda packet, frame: flip(packet.transport + 5)(packet, frame),
    "padding": lambda packet, frame: frame + bytes(4),
    "cut": lambda packet, frame: frame[:-1],
    "headers only": lambda packet, frame: frame[: packet.header_length],
}
#: What happens to sizes and numbers.
STEPS = ("shorter", "longer", "empty", "gap", "again", "identification", "zero checksum")
NOISE = (ARP, PING, b"", b"?", Packet(fragment=3).build())
ACTIONS = st.one_of(
    st.sampled_from(("plain", "plain", "push", "shorter", "zero checksum")),
    st.sampled_from((*DEVIATIONS, *DAMAGE, *STEPS)),
)


@dataclass
class Flow:
    """A sender that goes on from frame to frame."""

    packet: Packet
    size: int
    identification_step: int
    sequence: int
    identification: int

    def next(self, action: str, seed: int) -> bytes:
        size = {"shorter": max(self.size - 1, 1), "longer": self.size + 1, "empty": 0}.get(action, self.size)
        changes: dict[str, Any] = {
            "sequence": self.sequence,
            "identification": self.identification,
            "payload": filler(size, seed),
        }
        if action == "gap":
            changes["sequence"] = (self.sequence + 1) % 2**32
        elif action == "identification":
            changes["identification"] = self.identification ^ 0x100
        packet = replace(self.packet, **changes | DEVIATIONS.get(action, {}))
        if action == "zero checksum" and size > 1:
            packet = packet.with_zero_checksums(size)
        if action != "again":
            self.sequence = (self.sequence + size) % 2**32
            self.identification = (self.identification + self.identification_step) % 2**16
        frame = packet.build()
        return DAMAGE[action](packet, frame) if action in DAMAGE else frame


@st.composite
def traffic(draw: st.DrawFn) -> tuple[list[bytes], Mode]:
    """Flows that take turns: runs, now and then something that ends them."""
    mode = draw(MODES)
    flows = []
    common = draw(st.integers(1, 40))
    for number in range(draw(st.integers(1, 3))):
        size = draw(st.sampled_from((common, common, 1 + common // 2)))
        packet = draw(packets(st.just(0), st.just(mode)))
        # Few flags may be joined at all, and with zeros as options many headers are alike.
        flags = draw(st.sampled_from((ACK, ACK, ACK, ACK | ECE)))
        packet = replace(packet, flags=flags, source=draw(st.sampled_from((number, 1))))
        packet = replace(packet, source_port=draw(st.sampled_from((number, 1))))
        if packet.version == 4 and draw(st.integers(0, 3)) == 0:
            # The checksum of the IPv4 header falls as the identification grows; let it wrap.
            left = u16(replace(packet, payload=bytes(size)).build(), packet.network + 10) - draw(st.integers(0, 20))
            packet = replace(packet, identification=(packet.identification + left) % 2**16)
        step = draw(st.sampled_from((1, 1, 1, 0, 9)))
        flows.append(Flow(packet, size, step, packet.sequence, packet.identification))
    everybody = list(range(len(flows)))
    turns = st.tuples(
        st.one_of(st.just(everybody), st.sampled_from([[number] for number in everybody])),
        st.sampled_from((1, 1, 2, 3, 5, 50)),
        ACTIONS,
        st.sampled_from((None,) * 12 + NOISE),
    )
    frames: list[bytes] = []
    seed = draw(st.integers(0, 5))
    for who, count, action, noise in draw(st.lists(turns, min_size=1, max_size=8)):
        for _ in range(count):
            frames += [flows[number].next("plain", seed + len(frames)) for number in who]
        frames += [flows[number].next(action, seed + len(frames)) for number in who]
        if noise is not None:
            frames.append(noise)
    return frames, mode


@settings(max_examples=100)
@given(traffic(), st.sampled_from((Offload.ALL, Offload.ALL, Offload.TSO4 | Offload.USO6)), HEADER_SIZES)
def test_traffic(case: tuple[list[bytes], Mode], offload: Offload, header_size: int) -> None:
    judged(*case, offload, header_size)


@settings(max_examples=80)
@given(traffic(), st.data())
def test_traffic_with_frames_with_wrong_lengths(case: tuple[list[bytes], Mode], data: st.DataObject) -> None:
    frames, mode = case
    for at in data.draw(st.lists(st.integers(0, len(frames) - 1), min_size=1, max_size=4)):
        frames[at] = data.draw(spoiled(frames[at], 80))
    judged(frames, mode)


@settings(max_examples=80)
@given(traffic(), st.data())
def test_frames_again_and_out_of_order(case: tuple[list[bytes], Mode], data: st.DataObject) -> None:
    frames, mode = case
    some = data.draw(st.lists(st.sampled_from(frames), max_size=5))
    judged(data.draw(st.permutations(frames[-40:] + some)), mode)


@settings(max_examples=150)
@given(packets(st.integers(1, 40)), st.integers(2, 6), st.data())
def test_hostile_frames(packet: Packet, count: int, data: st.DataObject) -> None:
    """A flow of them, each several times, since their numbers stand still; and what is about them goes on."""
    packet = replace(packet, flags=ACK, fragment=DF)
    frames = [data.draw(hostile(packet)) for _ in range(count)]
    others = build(row(Packet(mode=packet.mode), [9] * count))
    judged([frame for pair in zip(frames, frames, others, strict=True) for frame in pair], packet.mode)


@pytest.mark.parametrize(
    "packet",
    [
        Packet(options=bytes(4)),
        Packet(version=6, protocol=UDP),
        Packet(mode=Mode.TAP, vlan=(0x88A8, 0x8100), tcp_options=bytes(4)),
        Packet(mode=Mode.TAP, version=6, extensions=(extension(HOP_BY_HOP), extension(DESTINATION))),
    ],
)
def test_every_byte_of_the_headers_changed_and_every_length(packet: Packet) -> None:
    before, frame, after = build(row(packet, [9, 9, 9]))
    for at in range(packet.header_length):
        for value in {0, 0x40, 0xFF, frame[at] + 1 & 0xFF, frame[at] - 1 & 0xFF, frame[at] ^ 0x80}:
            judged([before, with_bytes(frame, at, bytes([value])), after], packet.mode)
    for end in range(len(frame)):
        judged([before, frame[:end], after], packet.mode)


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=90), max_size=6), MODES)
def test_random_bytes(frames: list[bytes], mode: Mode) -> None:
    judged(frames, mode)


@settings(max_examples=50)
@given(traffic())
def test_segmenting_gives_back_each_flow_in_order(case: tuple[list[bytes], Mode]) -> None:
    frames, mode = case
    back: list[bytes] = []
    for frame in coalesce(frames, mode):
        back += segment(frame, mode) if any(frame[:10]) else [frame[10:]]
    assert sorted(comparable(frame, mode) for frame in back) == sorted(comparable(frame, mode) for frame in frames)
    for flow in {flow_of(frame, mode) for frame in frames}:
        # Nothing of a flow passes what is of none.
        before, after = (
            [comparable(frame, mode) for frame in every if flow_of(frame, mode) in (flow, None)]
            for every in (frames, back)
        )
        assert before == after


@settings(max_examples=50)
@given(packets(st.just(0)), st.integers(8, 100), st.integers(2, 70))
def test_what_was_segmented_becomes_one_again(packet: Packet, size: int, count: int) -> None:
    packet = replace(
        packet,
        flags=ACK | PSH,
        payload=filler(size * min(count, 64), count),
        sequence=packet.sequence % 2**31,
        identification=packet.identification % 2**15,
    )
    frame = packet.super_frame(size)
    pieces = segment(frame, packet.mode)
    assert coalesce(pieces, packet.mode) == [frame]
