"""VXLAN: headers, and frames that must fit into the path MTU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from switch.ports import plain
from switch.vxlan import Joiner, Options, as_sent, fit, flow_hash, header, joined, vni_of, with_unfinished

from aiotuntap import InvalidFrameError, Mode

from ..offload_packets import Packet, packets, vnet_header

HEADER = bytes(10)


def test_options() -> None:
    options = Options.parse("42,local=10.0.0.1,remote=10.0.0.2,remote=10.0.0.3,port=8472")
    assert (options.vni, str(options.local), options.port) == (42, "10.0.0.1", 8472)
    assert [str(each) for each in options.remotes] == ["10.0.0.2", "10.0.0.3"]
    assert Options.parse("16777215,local=fd00::1,remote=fd00::2").port == 4789


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x,local=10.0.0.1,remote=10.0.0.2",
        "16777216,local=10.0.0.1,remote=10.0.0.2",
        "1,remote=10.0.0.2",
        "1,local=10.0.0.1",
        "1,local=10.0.0.1,remote=fd00::1",
        "1,local=10.0.0.1,remote=10.0.0.2,remote=10.0.0.2",
        "1,local=10.0.0.1,remote=host",
        "1,local=10.0.0.1,remote=10.0.0.1",
        "1,local=10.0.0.1,remote=239.1.1.1",
        "1,local=10.0.0.1,remote=0.0.0.0",
        "1,local=10.0.0.1,remote=10.0.0.2,port=0",
        "1,local=10.0.0.1,remote=10.0.0.2,dev=eth0",
    ],
)
def test_invalid_options(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        Options.parse(text)


def test_header() -> None:
    """RFC 7348, section 5."""
    assert header(0x123456) == bytes.fromhex("0800000012345600")
    assert vni_of(header(0x123456) + bytes(14)) == 0x123456
    assert vni_of(bytes.fromhex("f8ffffff123456ff") + bytes(14)) == 0x123456, "reserved bits are ignored"
    assert vni_of(b"\0" + header(1)[1:] + bytes(14)) is None
    assert vni_of(header(1) + bytes(13)) is None and vni_of(b"") is None


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
def test_a_flow_has_one_hash_and_flows_differ(version: int, protocol: int) -> None:
    packet = Packet(mode=Mode.TAP, version=version, protocol=protocol, payload=bytes(50))
    same = [packet, replace(packet, payload=b"other", sequence=5, identification=7, hops=3)]
    assert len({flow_hash(HEADER + each.build()) for each in same}) == 1
    flows = [replace(packet, source_port=40000 + number) for number in range(50)]
    flows += [replace(packet, source=10 + number) for number in range(50)]
    assert len({flow_hash(HEADER + each.build()) for each in flows}) > 95


def test_fragments_of_one_packet_have_one_hash() -> None:
    packet = Packet(mode=Mode.TAP, protocol=17, fragment=0x2000, payload=bytes(50))
    assert flow_hash(HEADER + packet.build()) == flow_hash(HEADER + replace(packet, source_port=7).build())


@given(st.binary(min_size=24, max_size=100))
def test_anything_has_a_hash(frame: bytes) -> None:
    flow_hash(frame)


@given(packets(st.integers(1, 5000), st.just(Mode.TAP)), st.integers(400, 2000), st.integers(100, 3000), st.booleans())
def test_frames_that_are_sent_fit_and_have_the_same_content(
    packet: Packet, largest: int, size: int, super_frame: bool
) -> None:
    frame = packet.super_frame(size) if super_frame else HEADER + packet.build()
    original = [piece.build() for piece in packet.pieces(size)] if super_frame else [packet.build()]
    try:
        found = fit(frame, largest)
    except InvalidFrameError:
        assert max(map(len, original)) > largest
        assert packet.protocol == 17 or packet.extensions or packet.header_length >= largest
        return
    assert max(map(len, found)) <= largest
    if max(map(len, original)) <= largest:
        assert found == original
    else:
        assert found == [piece.build() for piece in packet.pieces(largest - packet.header_length)]


def test_a_segment_with_a_wrong_checksum_does_not_get_a_right_one() -> None:
    good = Packet(mode=Mode.TAP, payload=bytes(range(250)) * 8).build()
    assert len(fit(HEADER + good, 1000)) == 3
    with pytest.raises(InvalidFrameError, match="wrong checksum"):
        fit(HEADER + good[:-1] + b"x", 1000)
    assert fit(HEADER + good[:-1] + b"x", 3000) == [good[:-1] + b"x"]


@given(packets(st.integers(1, 100), st.just(Mode.TAP)))
def test_a_checksum_that_the_sender_left_undone_is_noticed(packet: Packet) -> None:
    partial = HEADER + packet.build(partial=True)
    fields = {"csum_start": packet.transport, "csum_offset": 16 if packet.protocol == 6 else 6}
    if not packet.extensions:
        assert with_unfinished(partial) == vnet_header(flags=1, **fields) + partial[10:]
    complete = HEADER + packet.build()
    assert plain([with_unfinished(complete)]) == [packet.build()]
    for size in range(24, len(partial)):
        with_unfinished(partial[:size])


@pytest.mark.parametrize("version", [4, 6])
def test_a_frame_over_any_mtu_is_a_super_frame(version: int) -> None:
    packet = Packet(mode=Mode.TAP, version=version, payload=bytes(range(250)) * 40)
    frame = as_sent(HEADER + packet.build(partial=True), 1450)
    assert fit(frame, 1450) == [piece.build() for piece in packet.pieces(1450 - packet.header_length)]
    assert frame == packet.super_frame(1450 - packet.header_length)
    for other in (packet, replace(packet, protocol=17)):
        assert as_sent(HEADER + other.build(), 1450) == HEADER + other.build()


def test_a_right_checksum_that_looks_unfinished_stays_the_same() -> None:
    packet = Packet(mode=Mode.TAP, protocol=17, payload=bytes(4))
    partial = packet.build(partial=True)
    field = int.from_bytes(partial[40:42])
    rest = -2 * field - (int.from_bytes(partial[34:42]) - field)
    right = partial[:42] + (rest % 65535).to_bytes(2) + partial[44:]
    found = with_unfinished(HEADER + right)
    assert found[0] == 1 and plain([found]) == [right]


def test_unfinished_checksums_are_completed() -> None:
    packet = Packet(mode=Mode.TAP, version=6, protocol=17, payload=bytes(100))
    frame = vnet_header(flags=1, csum_start=packet.transport, csum_offset=6) + packet.build(partial=True)
    assert fit(frame, 1500) == [packet.build()]


@given(
    packets(st.integers(1, 3000), st.just(Mode.TAP)),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 255)), max_size=8),
    st.integers(24, 4000),
)
def test_hostile_frames_fit_or_are_refused(
    packet: Packet, super_frame: bool, changes: list[tuple[int, int]], size: int
) -> None:
    frame = bytearray(packet.super_frame(500) if super_frame else HEADER + packet.build())
    for at, value in changes:
        if at < len(frame):
            frame[at] = value
    try:
        found = fit(bytes(frame[:size]), 1450)
    except InvalidFrameError:
        return
    assert all(len(each) <= 1450 for each in found)


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_split_by_gro_are_joined(version: int) -> None:
    packet = Packet(mode=Mode.TAP, version=version, protocol=17, payload=bytes(range(250)) * 21)
    datagram = header(7) + packet.build(partial=True)
    pieces = [datagram[at : at + 1000] for at in range(0, len(datagram), 1000)]
    joiner = Joiner(7)
    for _ in range(2):
        assert [joiner.feed(piece, "remote") for piece in pieces] == [None] * (len(pieces) - 1) + [(datagram, 1000)]
    assert joined(datagram, 1000) == packet.super_frame(1000)
    whole = header(7) + packet.build()
    assert joiner.feed(whole, "remote") == (whole, 0)


def test_an_incomplete_packet_takes_no_other_datagrams() -> None:
    packet = Packet(mode=Mode.TAP, protocol=17, payload=bytes(3000))
    datagram, other = header(7) + packet.build(partial=True), header(7) + Packet(mode=Mode.TAP).build()
    joiner = Joiner(7)
    assert joiner.feed(datagram[:1000], "remote") is None
    assert joiner.feed(other, "remote") == (other, 0)
    assert joiner.feed(datagram[:1000], "remote") is None
    assert joiner.feed(datagram[1000:2000], "another") == (datagram[1000:2000], 0)
    assert joiner.feed(datagram[:1000], "remote") is None
    assert joiner.feed(datagram[1000:2500], "remote") == (datagram[1000:2500], 0), "larger than the first"
    assert joiner.lost == 3


@given(st.lists(st.tuples(st.binary(max_size=120) | st.binary(max_size=100).map(header(7).__add__), st.integers(0, 1))))
def test_any_datagrams_come_out_once_at_most(datagrams: list[tuple[bytes, int]]) -> None:
    joiner = Joiner(7)
    found = [each for datagram, source in datagrams if (each := joiner.feed(datagram, source)) is not None]
    assert sum(len(each) for each, _ in found) <= sum(len(each) for each, _ in datagrams)
