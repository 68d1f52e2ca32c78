"""The extension in C: the same results as the Python functions, on any input, and what its own functions promise."""

from __future__ import annotations

import array
import errno
import gc
import hashlib
import importlib.util
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiotuntap import InvalidFrameError, Mode, Offload
from aiotuntap._abi import READ_SIZE
from aiotuntap._address import Address, from_bytes
from aiotuntap._datagrams import SOL_UDP, UDP_GRO
from aiotuntap._offload import coalesce as in_python
from aiotuntap._offload import segment as segment_in_python

from . import offload_rules as rules
from .offload_packets import (
    ACK,
    CWR,
    DF,
    ECE,
    FIN,
    HEADER_SIZES,
    MF,
    MODES,
    NEEDS_CSUM,
    PSH,
    ROUTING,
    SYN,
    TCP,
    UDP,
    Packet,
    extension,
    filler,
    hostile,
    packets,
    spoiled,
    vnet_header,
)

if TYPE_CHECKING or os.environ.get("AIOTUNTAP_EXTENSION") == "1":
    from aiotuntap import _native
else:
    _native = pytest.importorskip("aiotuntap._native", reason="no C extension: ONLY THE ENGINE IN PYTHON IS TESTED")

ROOT = Path(__file__).parents[1]
LOOK = -1
MOST_HEADERS = 256
LARGE = READ_SIZE
OFFLOADS = st.sampled_from(
    [
        Offload.ALL,
        Offload.ALL,
        Offload.NONE,
        Offload.TSO4,
        Offload.TSO6,
        Offload.USO4,
        Offload.USO6,
        Offload.TSO4 | Offload.USO6,
    ]
)


def test_the_extension_is_that_of_these_sources() -> None:
    """After a change in native/, the package must be installed again, as 'make test' does."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "native").glob("*.[ch]"))
    sources = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in files)).hexdigest()
    assert sources == _native.SOURCES, "aiotuntap._native is of other sources than those in native/: install it again"


# -- the same as in Python ---------------------------------------------------------------------------------------------


def same_segments(frame: bytes, mode: Mode, header_size: int) -> list[bytes] | None:
    """The result of both engines, which must be equal. C may leave frames with long headers to Python."""
    try:
        expected = segment_in_python.segment(frame, mode, header_size=header_size)
    except InvalidFrameError:
        expected = None
    result = _native.segment(frame, mode is Mode.TAP, header_size)
    if result is None and expected is not None:
        headers = rules.parse(frame[header_size:], mode)
        assert headers is not None
        assert headers.payload > MOST_HEADERS
        return None
    assert result == expected
    assert result is None or {type(each) for each in result} == {bytes}
    return result


def same_merged(frames: list[bytes], mode: Mode, offload: Offload, header_size: int) -> list[Any]:
    expected = [
        (each.data, each.indexes, each.kind.value) for each in in_python.merge(frames, mode, offload, header_size)
    ]
    tap = mode is Mode.TAP
    assert _native.merge(frames, tap, offload.value, header_size) == expected
    assert _native.coalesce(frames, tap, offload.value, header_size) == [data for data, _, _ in expected]
    return expected


@settings(max_examples=300)
@given(st.data())
def test_segments_are_the_same(data: st.DataObject) -> None:
    packet = data.draw(packets(st.one_of(st.integers(0, 300), st.integers(0, 20000))))
    gso_size = data.draw(st.one_of(st.integers(1, 200), st.integers(0, 65535)))
    if len(packet.payload) > 300 * gso_size:
        gso_size = 1448
    header_size = data.draw(HEADER_SIZES)
    frame = packet.super_frame(gso_size, header_size=header_size)
    same_segments(frame, packet.mode, header_size)
    same_segments(frame[:1] + bytes(1) + frame[2:], packet.mode, header_size)
    same_segments(data.draw(spoiled(frame, header_size + packet.header_length)), packet.mode, header_size)


@settings(max_examples=200)
@given(st.binary(max_size=120), MODES, HEADER_SIZES)
def test_segments_of_anything_are_the_same(frame: bytes, mode: Mode, header_size: int) -> None:
    same_segments(frame, mode, header_size)


@settings(max_examples=200)
@given(st.data())
def test_merged_frames_are_the_same(data: st.DataObject) -> None:
    mode = data.draw(MODES)
    rows = []
    for _ in range(data.draw(st.integers(1, 3))):
        packet = data.draw(packets(st.just(0), st.just(mode)))
        if data.draw(st.booleans()):
            packet = replace(packet, flags=ACK)
        rows.append(row(packet, data.draw(st.lists(st.sampled_from((20, 20, 20, 20, 7, 0)), max_size=12))))
    frames = [frame for frames in rows for frame in frames]
    if data.draw(st.booleans()):
        frames = data.draw(st.permutations(frames))
    for _ in range(data.draw(st.integers(0, 2))):
        if frames:
            at = data.draw(st.integers(0, len(frames) - 1))
            frames[at] = data.draw(spoiled(frames[at], 60))
    if data.draw(st.booleans()):
        frames.insert(data.draw(st.integers(0, len(frames))), data.draw(hostile(data.draw(packets(st.just(20))))))
    same_merged(frames, mode, data.draw(OFFLOADS), data.draw(HEADER_SIZES))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_seeded_traffic_is_the_same(seed: int) -> None:
    """Longer batches than hypothesis makes, and more of them."""
    chance = random.Random(seed)
    merged = refused = 0
    for _ in range(120):
        mode, header_size = chance.choice(list(Mode)), chance.choice((10, 12, 20, 24))
        frames = traffic(chance, mode)
        offload = chance.choice((Offload.ALL, Offload.ALL, Offload.TSO4 | Offload.USO6, Offload.NONE))
        for data, indexes, _ in same_merged(frames, mode, offload, header_size):
            if len(indexes) > 1:
                merged += 1
                for frame in (data, spoil(chance, data)):
                    refused += same_segments(frame, mode, header_size) is None
    assert merged > 70
    assert refused > 40


def any_packet(chance: random.Random, mode: Mode) -> Packet:
    packet = Packet(
        mode=mode,
        version=chance.choice((4, 6)),
        protocol=chance.choice((TCP, TCP, UDP)),
        source=chance.randrange(3),
        source_port=40000 + chance.randrange(3),
        sequence=chance.choice((0, 1000, 2**32 - chance.randrange(1, 4000), chance.getrandbits(32))),
        identification=chance.choice((100, 65535, 65530, chance.getrandbits(16))),
        flags=chance.choice((ACK, ACK, ACK, ACK | PSH, ACK | ECE, ACK | FIN, SYN, ACK | CWR)),
        hops=chance.choice((64, 64, 63)),
    )
    if mode is Mode.TAP:
        packet = replace(packet, vlan=chance.choice(((), (), (0x8100,), (0x88A8, 0x8100))))
    if packet.version == 4:
        fragment, options = chance.choice((DF, DF, 0, 0, 0x8000, MF)), chance.choice((b"", b"", bytes(4)))
        packet = replace(packet, fragment=fragment, options=options)
    elif chance.random() < 0.2:
        packet = replace(packet, extensions=(extension(chance.choice((0, 43, 60)), chance.choice((0, 1, 30))),))
    return replace(packet, tcp_options=chance.choice((b"", filler(12, 3))))


def row(packet: Packet, sizes: list[int], chance: random.Random | None = None) -> list[bytes]:
    """Consecutive frames of one flow, with payloads of *sizes*; with *chance*, some do not continue those before."""
    frames = []
    for number, size in enumerate(sizes):
        now = replace(packet, payload=filler(size, number % 9))
        if chance is not None and chance.random() < 0.05:
            odd = replace(now, flags=ACK | PSH), replace(now, flags=SYN), replace(now, window=7), replace(now, hops=9)
            now = chance.choice(odd)
        frames.append(now.build())
        step = 0 if chance is not None and chance.random() < 0.03 else 1
        packet = replace(
            packet,
            sequence=(packet.sequence + size) % 2**32,
            identification=(packet.identification + step) % 2**16,
        )
    return frames


def traffic(chance: random.Random, mode: Mode) -> list[bytes]:
    rows = []
    for _ in range(chance.randrange(1, 4)):
        size = chance.choice((1, 8, 100, 400, 1448))
        sizes = [size] * chance.choice((1, 2, 5, 20, 70))
        if chance.random() < 0.5:
            sizes[-1] = chance.randrange(size + 1)
        rows.append(row(any_packet(chance, mode), sizes, chance))
    frames = []
    longest = chance.choice((1, 8, 99))
    while rows := [each for each in rows if each]:
        one, count = chance.choice(rows), chance.randrange(1, longest + 1)
        frames += one[:count]
        del one[:count]
    for _ in range(chance.choice((0, 0, 1, 3))):
        at = chance.randrange(len(frames))
        frames[at] = spoil(chance, frames[at])
    if chance.random() < 0.2:
        frames.insert(chance.randrange(len(frames)), chance.randbytes(chance.randrange(60)))
    return frames


def spoil(chance: random.Random, frame: bytes) -> bytes:
    out = bytearray(frame)
    for _ in range(chance.randrange(1, 3)):
        if out:
            at = min(len(out) - 1, int(chance.expovariate(1 / 25)))
            out[at] = chance.choice((0, 255, chance.getrandbits(8)))
    if chance.random() < 0.2:
        del out[chance.randrange(len(out) + 1) :]
    if chance.random() < 0.1:
        out += bytes(chance.randrange(1, 5))
    return bytes(out)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_checksums_of_every_length(seed: int) -> None:
    for size in [*range(1, 600), 1447, 1448, 8999, 65535 - 28]:
        for offset in (0, 6, 16):
            start = 28 if size < 20 else 20
            body = Packet(protocol=UDP, payload=b"").build() + filler(size, seed)
            if start + offset + 2 <= len(body):
                header = vnet_header(flags=NEEDS_CSUM, csum_start=start, csum_offset=offset)
                assert same_segments(header + body, Mode.TUN, 10)
        frames = row(Packet(protocol=UDP), [size] * 2)
        if size < 30000:
            assert len(same_merged(frames, Mode.TUN, Offload.ALL, 10)) == 1


@pytest.mark.parametrize("mode", Mode)
def test_a_checksum_field_at_the_very_end(mode: Mode) -> None:
    body = bytes(14) + filler(30, 2) if mode is Mode.TAP else b"\x00" + filler(43, 2)
    for offset, fits in ((12, True), (13, False), (14, False), (60000, False)):
        header = vnet_header(flags=NEEDS_CSUM, csum_start=30, csum_offset=offset)
        assert (same_segments(header + body, mode, 10) is not None) is fits


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("protocol", "stored"), [(TCP, 0), (UDP, 0xFFFF)])
def test_a_checksum_of_zero(version: int, protocol: int, stored: int) -> None:
    packet = Packet(version=version, protocol=protocol, payload=filler(60, 2)).with_zero_checksums(20)
    at = packet.transport + (16 if protocol == TCP else 6)
    pieces = same_segments(packet.super_frame(20), Mode.TUN, 10)
    assert pieces is not None
    assert [int.from_bytes(piece[at : at + 2]) for piece in pieces] == [stored] * 3
    assert len(same_merged(pieces, Mode.TUN, Offload.ALL, 10)) == 1
    whole = replace(packet, payload=packet.payload[:20]).super_frame(0, gso_type=0)
    assert same_segments(whole, Mode.TUN, 10) == pieces[:1]


@pytest.mark.parametrize("sequence", [0, 1, 2**32 - 1, 2**32 - 8, 2**32 - 9, 2**32 - 24, 2**32 - 25])
def test_sequence_numbers_at_their_ends(sequence: int) -> None:
    frames = row(Packet(sequence=sequence), [8] * 4)
    assert len(same_merged(frames, Mode.TUN, Offload.ALL, 10)) == (1 if sequence < 2**32 - 24 else 2)


@pytest.mark.parametrize("identification", [0, 0xFFFF, 0xFFFE, 0xFFFC])
def test_identifications_at_their_ends(identification: int) -> None:
    frames = row(Packet(identification=identification, protocol=UDP), [5] * 4)
    assert len(same_merged(frames, Mode.TUN, Offload.ALL, 10)) == (2 if identification > 0xFFFC else 1)


def test_the_largest_runs() -> None:
    for size, count in ((1, 200), (1448, 140), (9000, 20), (30000, 5), (32000, 5), (65495, 3)):
        same_merged(row(Packet(), [size] * count), Mode.TUN, Offload.ALL, 10)
        same_merged(row(Packet(version=6), [size] * count), Mode.TUN, Offload.ALL, 24)
        same_merged(row(Packet(), [*[size] * count, size - 1]), Mode.TUN, Offload.ALL, 10)


@pytest.mark.parametrize("units", [24, 25, 26, 100, 255])
def test_long_headers_go_alone_and_end_all_runs(units: int) -> None:
    """Headers of 256 bytes are looked at, and longer ones are not."""
    long = row(Packet(version=6, protocol=UDP, extensions=(extension(ROUTING, units),)), [20] * 3)
    short = row(Packet(), [20] * 2)
    result = same_merged([short[0], *long, short[1]], Mode.TUN, Offload.ALL, 10)
    assert [len(indexes) for _, indexes, _ in result] == ([2, 3] if units <= 25 else [1] * 5)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("version", [4, 6])
def test_as_many_flows_as_frames(mode: Mode, version: int) -> None:
    """And each flow goes on where it was: the table of flows loses none."""
    chance = random.Random(1)
    flows = [
        replace(Packet(mode=mode, version=version, payload=b"x" * 8), source_port=port, source=chance.randrange(9))
        for port in chance.sample(range(65536), 2000)
    ]
    frames = [packet.build() for packet in flows]
    frames += [replace(packet, sequence=1008, identification=101).build() for packet in flows]
    assert len(same_merged(frames, mode, Offload.ALL, 10)) == 2000


@pytest.mark.parametrize("runs", [14, 15, 16])
def test_flows_that_never_merge_do_not_hide_others(runs: int) -> None:
    """However many runs a flow had, the table has one of them: it looks at 16 in one place, of all flows that are there."""
    flows = [Packet(payload=b"x" * 8, source_port=port) for port in range(1000)]
    frames = [replace(packet, payload=b"").build() for packet in flows] * runs
    frames += [packet.build() for packet in flows]
    frames += [replace(packet, sequence=1008, identification=101).build() for packet in flows]
    assert len(same_merged(frames, Mode.TUN, Offload.ALL, 10)) == (runs + 1) * 1000


def test_flows_that_differ_in_one_field_only() -> None:
    base = Packet(mode=Mode.TAP, payload=b"x" * 8)
    flows = [base, *(replace(base, vlan=(0x8100,), tci=tci) for tci in range(40))]
    flows += [replace(base, mac=0x020000000100 + mac) for mac in range(40)]
    flows += [replace(base, vlan=(0x88A8, 0x8100), tci=tci) for tci in range(40)]
    flows += [replace(base, destination=10 + number) for number in range(40)]
    frames = [packet.build() for packet in flows]
    frames += [replace(packet, sequence=1008, identification=101).build() for packet in flows]
    assert len(same_merged(frames, Mode.TAP, Offload.ALL, 10)) == len(flows)


def test_no_frames() -> None:
    assert same_merged([], Mode.TUN, Offload.ALL, 10) == []


# -- what is taken, and what is handed back ----------------------------------------------------------------------------

FRAME = Packet(payload=b"payload").build()
SUPER = Packet(payload=b"payload").super_frame(3)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: array.array("B", data)])
def test_any_contiguous_buffer_is_a_frame(kind: Any) -> None:
    pieces = segment_in_python.segment(SUPER, Mode.TUN)
    assert _native.segment(kind(SUPER), False, 10) == pieces
    frames = row(Packet(), [8] * 3)
    expected = _native.merge(frames, False, Offload.ALL.value, 10)
    assert _native.merge([kind(frame) for frame in frames], False, Offload.ALL.value, 10) == expected
    assert _native.merge(tuple(map(kind, frames)), False, Offload.ALL.value, 10) == expected


class Subclass(bytes):
    pass


def test_a_subclass_of_bytes_is_a_frame() -> None:
    assert {type(each) for each in _native.segment(Subclass(SUPER), False, 10) or ()} == {bytes}
    merged = _native.merge([Subclass(FRAME)], False, 0, 10)
    assert merged == [(bytes(10) + FRAME, [0], 0)]
    assert type(merged[0][0]) is bytes


NOT_PLAIN = [None, 5, "text", [FRAME], (FRAME, FRAME), memoryview(FRAME)[::2], object()]


@pytest.mark.parametrize("frame", NOT_PLAIN)
def test_anything_else_is_handed_back(frame: Any) -> None:
    assert _native.segment(frame, False, 10) is None
    assert _native.coalesce([FRAME, frame], False, 0, 10) is None
    assert _native.merge([frame, FRAME], False, 0, 10) is None


def test_more_frames_than_are_taken_at_once_are_handed_back() -> None:
    frames = [b"\x45"] * (1 << 20)
    assert _native.coalesce(frames, False, Offload.ALL.value, 10) == [bytes(10) + b"\x45"] * len(frames)
    assert _native.coalesce([*frames, b"\x45"], False, Offload.ALL.value, 10) is None


@pytest.mark.parametrize("size", [2**31, 2**32 - 5])
def test_a_frame_that_needs_more_than_32_bits_with_its_header_is_handed_back(size: int) -> None:
    try:
        frame = bytes(size)  # the kernel gives memory to what is written only
    except (MemoryError, OverflowError):
        pytest.skip("this machine has no such frames")
    assert _native.coalesce([frame], False, Offload.ALL.value, 10) is None
    assert _native.merge([frame], False, Offload.ALL.value, 24) is None


@pytest.mark.parametrize("size", [-1, 0, 9, 11, 16, 25, 2**40])
def test_invalid_header_sizes_are_handed_back(size: int) -> None:
    assert _native.segment(SUPER, False, size) is None
    assert _native.coalesce([FRAME], False, 0, size) is None


def test_wrong_calls() -> None:
    function: Any
    for function, arguments in (
        (_native.read_batch, (0, 1)),
        (_native.read_batch, ("0", 1, 1)),
        (_native.read_batch, (0, None, 1)),
        (_native.read_one, ("0",)),
        (_native.write_batch, (0, 1, 0, 1)),
        (_native.write_batch, (0, 1, -1, 1, [])),
        (_native.write_batch, (0, 1, 0, 1, None)),
        (_native.write_batch, (0, 1, 0, 1, 7)),
        (_native.write_one, (0, 1, 2)),
        (_native.write_one, (0, "", 2, b"")),
        (_native.write_one, (0, 1, "", b"")),
        (_native.segment, (SUPER, False)),
        (_native.segment, (SUPER, False, "")),
        (_native.coalesce, (None, False, 0, 10)),
        (_native.merge, ([], False, 0)),
    ):
        with pytest.raises(TypeError):
            function(*arguments)


# -- reading and writing -----------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Like a queue, each end moves whole frames, and the second one never waits."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        for end in (left, right):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        yield left, right


def test_reads_until_nothing_is_left(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    frames = [filler(size, 2) for size in (1, 2, 64, 1400, READ_SIZE // 2 - 1, READ_SIZE // 2, READ_SIZE)]
    for frame in frames:
        left.send(frame)
    assert _native.read_batch(right.fileno(), 100, 1 << 30) == (frames, errno.EAGAIN)
    assert _native.read_batch(right.fileno(), 100, 1 << 30) == ([], errno.EAGAIN)
    assert _native.read_one(right.fileno()) == errno.EAGAIN


def test_a_large_frame_is_a_whole_object(pair: tuple[socket.socket, socket.socket]) -> None:
    """It is handed out in the memory that it was read into."""
    left, right = pair
    data = filler(50000, 2)
    left.send(data)
    left.send(data)
    (one,), _ = _native.read_batch(right.fileno(), 1, 1 << 20)
    other = _native.read_one(right.fileno())
    assert one == other == data
    assert isinstance(other, bytes)
    assert one is not other
    assert (len(one), hash(one), one[-1:], {one: 1}[data]) == (50000, hash(data), data[-1:], 1)
    assert one + b"x" == data + b"x"
    assert one.decode("latin-1").encode("latin-1") == data
    assert memoryview(one).nbytes == 50000


def test_reads_as_many_as_are_asked_for(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    for number in range(9):
        left.send(bytes([number]) * 100)
    assert _native.read_batch(right.fileno(), 0, 1000) == ([], 0)
    assert _native.read_batch(right.fileno(), -5, 1000) == ([], 0)
    assert _native.read_batch(right.fileno(), 5, 0) == ([], 0)
    for limit, enough, expected in ((2, 1 << 20, [0, 1]), (9, 1, [2]), (9, 100, [3]), (9, 101, [4, 5])):
        frames, error = _native.read_batch(right.fileno(), limit, enough)
        assert ([frame[0] for frame in frames], error) == (expected, 0)
    frames, error = _native.read_batch(right.fileno(), sys.maxsize, 2**70)
    assert ([frame[0] for frame in frames], error) == ([6, 7, 8], errno.EAGAIN)


def test_no_batch_is_longer_than_256(tmp_path: Path) -> None:
    zeros = os.open("/dev/zero", os.O_RDONLY)
    nothing = os.open("/dev/null", os.O_WRONLY)
    try:
        frames, error = _native.read_batch(zeros, 10**6, 1 << 40)
        assert (len(frames), error, set(map(len, frames))) == (256, 0, {READ_SIZE})
        assert _native.write_batch(nothing, LARGE, 0, 10**6, [b"x"] * 1000) == (256, 0)
    finally:
        os.close(zeros)
        os.close(nothing)


def test_the_end_of_a_stream_is_an_empty_frame(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    left.send(b"last")
    left.close()
    assert _native.read_batch(right.fileno(), 3, 1000) == ([b"last", b"", b""], 0)
    assert _native.read_one(right.fileno()) == b""


def test_errors_of_descriptors() -> None:
    for fd in (-1, 10**6, 2**40, -(2**40)):
        assert _native.read_batch(fd, 10, 1000) == ([], errno.EBADF)
        assert _native.read_one(fd) == errno.EBADF
        assert _native.write_batch(fd, LARGE, 0, 10, [b"x", b"y"]) == (0, errno.EBADF)
        assert _native.write_one(fd, LARGE, get_ident(), b"x") == errno.EBADF


def test_writes_from_start_on(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    frames = [bytes([number + 1]) * 20 for number in range(6)]
    for sequence in (frames, tuple(frames)):
        assert _native.write_batch(left.fileno(), LARGE, 1, 3, sequence) == (3, 0)
        assert _native.read_batch(right.fileno(), 9, 1000)[0] == frames[1:4]
        assert _native.write_batch(left.fileno(), LARGE, 4, 100, sequence) == (2, 0)
        assert _native.read_batch(right.fileno(), 9, 1000)[0] == frames[4:]
    for start, most in ((6, 5), (7, 5), (2**40, 5), (0, 0), (0, -1)):
        assert _native.write_batch(left.fileno(), LARGE, start, most, frames) == (0, 0)
    assert _native.write_one(left.fileno(), LARGE, get_ident(), frames[0]) == 0
    assert _native.read_one(right.fileno()) == frames[0]


def test_writes_until_there_is_no_room(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    frames = [bytes(30000)] * 256
    written, error = _native.write_batch(left.fileno(), LARGE, 0, 256, frames)
    assert 0 < written < 256
    assert error == errno.EAGAIN
    assert _native.write_one(left.fileno(), LARGE, get_ident(), frames[0]) == errno.EAGAIN
    assert len(_native.read_batch(right.fileno(), 256, 1 << 30)[0]) == written


UNFIT = [b"", bytes(101), array.array("I", [1] * 26), *NOT_PLAIN]


@pytest.mark.parametrize("frame", UNFIT)
def test_a_frame_that_does_not_fit_is_not_tried(frame: Any, pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    assert _native.write_one(left.fileno(), 100, get_ident(), frame) == LOOK
    assert _native.write_batch(left.fileno(), 100, 0, 9, [frame]) == (0, LOOK)
    assert _native.write_batch(left.fileno(), 100, 0, 9, [b"one", b"two", frame, b"three"]) == (2, LOOK)
    assert _native.read_batch(right.fileno(), 9, 1000) == ([b"one", b"two"], errno.EAGAIN)


def test_sizes_are_in_bytes(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    numbers = array.array("I", [1, 2, 3])
    fits: list[Any] = [numbers, memoryview(numbers), bytearray(b"abc"), bytes(12), Subclass(b"abc")]
    assert _native.write_batch(left.fileno(), 12, 0, 9, fits) == (5, 0)
    assert _native.read_batch(right.fileno(), 9, 1000)[0] == [bytes(each) for each in fits]
    assert _native.write_one(left.fileno(), 12, get_ident(), numbers) == 0
    assert _native.write_one(left.fileno(), 11, get_ident(), numbers) == LOOK


class Counting:
    """A sequence that knows which of its items were asked for."""

    def __init__(self, frames: list[Any]) -> None:
        self.frames = frames
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        if isinstance(self.frames[index], BaseException):
            raise self.frames[index]
        return self.frames[index]


def test_a_refused_frame_is_tried_once() -> None:
    """A socket of datagrams refuses what is larger than its buffer."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20000)
        frames = Counting([b"one", bytes(60000), b"two"])
        assert _native.write_batch(left.fileno(), LARGE, 0, 9, frames) == (1, errno.EMSGSIZE)  # type: ignore[arg-type]
        assert frames.asked == [0, 1]
        assert _native.write_one(left.fileno(), LARGE, get_ident(), bytes(60000)) == errno.EMSGSIZE
        assert _native.read_batch(right.fileno(), 9, 1000) == ([b"one"], errno.EAGAIN)


def test_what_the_kernel_refuses_is_offered_once() -> None:
    """Writing to a pipe without a reader raises SIGPIPE, and each signal writes a byte to the wakeup descriptor."""
    program = """
import os, signal, socket, threading
from aiotuntap import _native
read, write = os.pipe()
os.close(read)
signals, wakeup = socket.socketpair()
wakeup.setblocking(False)
signal.signal(signal.SIGPIPE, lambda *_: None)
signal.set_wakeup_fd(wakeup.fileno())
answers = []
for _ in range(3):
    answers.append(_native.write_batch(write, 100, 0, 9, [b"one", b"two"]))
    answers.append(_native.write_one(write, 100, threading.get_ident(), b"x"))
print(set(answers) == {(0, 32), 32}, len(signals.recv(100)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "True 6\n"


def test_a_sequence_that_raises_is_handed_back(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    frames: Any = Counting([b"one", ValueError("not now"), b"two"])
    assert _native.write_batch(left.fileno(), LARGE, 0, 9, frames) == (1, LOOK)
    assert _native.read_batch(right.fileno(), 9, 1000)[0] == [b"one"]
    assert _native.merge(frames, False, 0, 10) is None


def test_an_interrupt_within_a_sequence_is_not_lost(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    frames: Any = Counting([b"one", KeyboardInterrupt()])
    answer = None
    with pytest.raises(KeyboardInterrupt):
        answer = _native.write_batch(left.fileno(), LARGE, 0, 9, frames)
        for _ in range(1000):  # another thread may run before this one looks at its signals
            time.sleep(0.001)
    assert answer in (None, (1, LOOK))
    assert _native.read_batch(right.fileno(), 9, 1000)[0] == [b"one"]


def test_a_sequence_that_sends_and_receives_meanwhile() -> None:
    left, right = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))

    class Busy(Counting):
        def __getitem__(self, index: int) -> Any:
            assert _native.send_batch(right, LARGE, LARGE, 0, 9, [b"in", b"in"], None)[0] == 2
            assert _native.receive_batch(left, 9, LARGE, None)[0] == [b"in", b"in"]
            return super().__getitem__(index)

    with left, right:
        for sock in (left, right):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        left.connect(right.getsockname())
        right.connect(left.getsockname())
        frames: Any = Busy([b"a" * 500, b"b" * 500, b"c" * 499])
        assert _native.send_batch(left, LARGE, LARGE, 0, 9, frames, None)[0] == 3
        assert _native.receive_batch(right, 9, LARGE, None)[0] == frames.frames


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, TimeoutError])
def test_what_a_signal_handler_raises_while_an_address_is_made_is_handed_over(kind: type[BaseException]) -> None:
    class Addresses(dict[bytes, Address]):
        raises = 1

        def __missing__(self, data: bytes) -> Address:
            if self.raises:
                self.raises -= 1
                raise kind("now")
            return from_bytes(data)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.sendto(b"hello", sock.getsockname())
        datagrams, error, *counts = _native.receive_batch(sock, 1, LARGE, Addresses())
        assert [data for data, _ in datagrams] == [b"hello"] and counts == [0, 0, 0]
        assert isinstance(error, kind) and error.args == ("now",) and error.__traceback__ is not None
        sock.sendto(b"hello", sock.getsockname())
        never = Addresses()
        never.raises = 2
        datagrams, error, *counts = _native.receive_batch(sock, 1, LARGE, never)
        assert datagrams == [] and isinstance(error, kind) and counts == [0, 0, 1]


if sys.version_info >= (3, 12):  # __buffer__ came with it

    def test_buffers_written_in_python(pair: tuple[socket.socket, socket.socket]) -> None:
        left, right = pair
        frames: list[Any] = []

        class Shrinks:
            def __buffer__(self, flags: int) -> memoryview:
                frames.clear()
                gc.collect()
                return memoryview(FRAME)

        class Fails:
            def __buffer__(self, flags: int) -> memoryview:
                raise ValueError("no")

        frames[:] = [Shrinks(), bytes(5)]
        assert _native.write_batch(left.fileno(), LARGE, 0, 9, frames) == (1, LOOK)
        frames[:] = [bytes(bytearray(b"made")), Shrinks(), FRAME]
        assert _native.merge(frames, False, Offload.ALL.value, 10) is None
        frames[:] = [b"x", Fails()]
        assert _native.write_batch(left.fileno(), LARGE, 0, 9, frames) == (1, LOOK)
        assert _native.segment(Fails(), False, 10) is None
        assert _native.read_batch(right.fileno(), 9, 1000)[0] == [FRAME, b"x"]


if sys.version_info >= (3, 12):  # __buffer__ came with it

    def test_buffers_that_call_the_extension(pair: tuple[socket.socket, socket.socket]) -> None:
        left, right = pair

        class Nested:
            def __buffer__(self, flags: int) -> memoryview:
                assert _native.write_one(right.fileno(), LARGE, get_ident(), b"inner") == 0
                assert _native.read_one(left.fileno()) == b"inner"
                assert _native.merge([FRAME], False, 0, 10) == [(bytes(10) + FRAME, [0], 0)]
                return memoryview(FRAME)

        assert _native.write_batch(left.fileno(), LARGE, 0, 9, [Nested(), Nested()]) == (2, 0)
        assert _native.read_batch(right.fileno(), 9, 1000)[0] == [FRAME, FRAME]


# -- memory ------------------------------------------------------------------------------------------------------------


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat(pair: tuple[socket.socket, socket.socket], request: pytest.FixtureRequest) -> None:
    left, right = pair
    frames: list[Any] = row(Packet(), [400] * 20)
    mixed = [*frames, bytearray(frames[0]), memoryview(frames[1]), b"?"]
    whole = Packet(payload=bytes(30000)).super_frame(1000)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    request.addfinalizer(datagrams.close)
    datagrams.bind(("127.0.0.1", 0))
    datagrams.connect(datagrams.getsockname())
    datagrams.setblocking(False)
    datagrams.setsockopt(SOL_UDP, UDP_GRO, 1)
    name = Address(datagrams.getsockname())

    class Addresses(dict[bytes, Address]):
        def __missing__(self, data: bytes) -> Address:
            return from_bytes(data)

    def work() -> None:
        _native.segment(whole, False, 10)
        _native.segment(whole[:-1], False, 10)
        _native.segment(memoryview(whole), False, 10)
        _native.segment(None, False, 10)
        _native.merge(mixed, False, Offload.ALL.value, 10)
        _native.coalesce(mixed, False, Offload.ALL.value, 10)
        _native.merge([*mixed, None], False, Offload.ALL.value, 10)
        _native.write_batch(left.fileno(), LARGE, 0, 99, [*mixed, whole, None])
        _native.write_batch(left.fileno(), 100, 0, 99, mixed)
        _native.write_one(left.fileno(), LARGE, get_ident(), whole + whole)
        _native.read_one(right.fileno())
        while _native.read_batch(right.fileno(), 10, 1 << 20)[0]:
            pass
        _native.read_one(right.fileno())
        _native.send_batch(datagrams, LARGE, LARGE, 0, 99, [*mixed[:-1], b"", [b"x"], None], None)
        _native.send_batch(datagrams, LARGE, 100, 0, 99, frames, bytes(name))
        _native.receive_batch(datagrams, 10, 1 << 20, None)
        _native.receive_batch(datagrams, 99, 1 << 20, Addresses())

    # Without None and b"?": the interpreter does not count the references of what lives forever.
    everything: list[Any] = [*frames, *mixed[:-1], whole]
    for _ in range(200):
        work()
    references, blocks, memory = list(map(sys.getrefcount, everything)), sys.getallocatedblocks(), resident()
    for _ in range(2000):
        work()
    assert list(map(sys.getrefcount, everything)) == references
    assert abs(sys.getallocatedblocks() - blocks) < 500
    assert resident() - memory < 8 << 20


def test_no_frame_is_lost_when_memory_runs_out() -> None:
    """Each allocation in turn fails, and what was read is there nevertheless."""
    program = """
import os, socket
import _testcapi
from aiotuntap import _native
left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
left.setblocking(False)
right.setblocking(False)
failed = 0
for size in (700, 40000):
    for first in range(25):
        sent = [bytes([number]) * size for number in range(1, 4)]
        for frame in sent:
            left.send(frame)
        _testcapi.set_nomemory(first, first + 1)
        try:
            frames, error = _native.read_batch(right.fileno(), 9, 1 << 20)
        except MemoryError:
            frames, error = [], 12
        finally:
            _testcapi.remove_mem_hooks()
        failed += error == 12
        got = frames + _native.read_batch(right.fileno(), 9, 1 << 20)[0]
        assert got == sent, (size, first, list(map(len, got)))
        left.send(sent[0])
        _testcapi.set_nomemory(first % 4, first % 4 + 1)
        try:
            one = _native.read_one(right.fileno())
        finally:
            _testcapi.remove_mem_hooks()
        if one == 12:
            one = _native.read_one(right.fileno())
        assert one == sent[0], (size, first, one)
assert failed
print("none lost")
"""
    pytest.importorskip("_testcapi", reason="this Python comes without its own tests")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "none lost\n", done.stderr


def test_no_datagram_is_lost_when_memory_runs_out() -> None:
    program = """
import socket, struct
import _testcapi
from aiotuntap import _native
left, right = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
for sock in (left, right):
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
left.connect(right.getsockname())
right.setsockopt(17, 104, 1)  # UDP_GRO
class Addresses(dict):
    def __missing__(self, data):
        return data
fails = False
_testcapi.set_nomemory(0, 1000)
try:
    bytes(5000)
except MemoryError:
    fails = True
finally:
    _testcapi.remove_mem_hooks()
assert fails
taken = []
for addresses in (None, Addresses()):
    for first in range(40):
        sent = [b"a" * 700, b"b" * 700, b"c", b"d" * 40000]
        left.sendmsg(sent[:3], [(17, 103, struct.pack("=H", 700))])
        left.send(sent[3])
        taken += [(*sent, first) for _ in range(100)]  # the freed ones that Python keeps: the answer needs memory
        _testcapi.set_nomemory(first, first + 1)
        try:
            got, error, messages, segments, lost = _native.receive_batch(right, 9, 1 << 20, addresses)
        except MemoryError:
            got, error, lost = [], 12, 0
        finally:
            _testcapi.remove_mem_hooks()
        assert not lost
        got += _native.receive_batch(right, 9, 1 << 20, addresses)[0]
        assert [item if addresses is None else item[0] for item in got] == sent, (first, got)
print("none lost")
"""
    pytest.importorskip("_testcapi", reason="this Python comes without its own tests")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "none lost\n", done.stderr


# -- interpreters and threads ------------------------------------------------------------------------------------------


def test_a_second_import_is_a_module_of_its_own() -> None:
    spec = importlib.util.spec_from_file_location("aiotuntap._native", _native.__file__)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module is not _native
    assert module.segment(SUPER, False, 10) == _native.segment(SUPER, False, 10)
    del module
    gc.collect()
    assert _native.segment(SUPER, False, 10)


def test_interpreters_within_the_process() -> None:
    """Where Python has them, one after the other and at once; the module goes with its interpreter."""
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    program = f"""
import {name} as interpreters, threading
from aiotuntap import _native
work = '''
import socket
from aiotuntap import _native
left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
right.setblocking(False)
for number in range(300):
    assert _native.write_batch(left.fileno(), 60000, 0, 9, [b"frame", bytes(50000)]) == (2, 0)
    assert _native.read_batch(right.fileno(), 2, 1 << 20) == ([b"frame", bytes(50000)], 0)
    assert _native.coalesce([b"frame"], False, 0, 10) == [bytes(10) + b"frame"]
left.close()
right.close()
'''
def run():
    interpreter = interpreters.create()
    result = interpreters.run_string(interpreter, work)
    assert result is None, result
    interpreters.destroy(interpreter)
run()
run()
threads = [threading.Thread(target=run) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert _native.coalesce([b"frame"], False, 0, 10) == [bytes(10) + b"frame"]
print("fine")
"""
    pytest.importorskip(name, reason="this Python has no interpreters within a process")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
        timeout=50,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_threads_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    total = 3000
    got: list[int] = []

    def write() -> None:
        left_to_go = total
        while left_to_go:
            written, error = _native.write_batch(left.fileno(), LARGE, 0, min(left_to_go, 20), [bytes(900)] * 20)
            assert error in (0, errno.EAGAIN)
            left_to_go -= written

    def read() -> None:
        while sum(got) < 2 * total:
            frames, _ = _native.read_batch(right.fileno(), 30, 1 << 16)
            assert set(map(len, frames)) <= {900}
            got.append(len(frames))

    threads = [threading.Thread(target=each) for each in (write, write, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert sum(got) == 2 * total
