"""Slow and lossy links, and faults by a seed: in memory, so that the fate of every frame is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest

from aiotuntap import DeviceGoneError, InvalidFrameError, LinkDownError, PacketStream, QueueClosedError
from aiotuntap.testing import Faults, FaultyStream, MemoryStream, check_packet_stream, example_frame, memory_pair

FRAMES = [example_frame(number) for number in range(400)]


# -- memory_pair over a link -------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_pair_with_latency_and_bandwidth_conforms() -> None:
    @asynccontextmanager
    async def pair() -> AsyncIterator[tuple[MemoryStream, MemoryStream]]:
        one, other = memory_pair(latency=0.003, bandwidth=1e9)
        yield one, other
        await other.aclose()

    await check_packet_stream(pair)


async def test_latency_is_kept_and_nothing_overtakes() -> None:
    loop = asyncio.get_running_loop()
    one, other = memory_pair(latency=0.03)
    started = loop.time()
    await one.write_frames(FRAMES)
    with pytest.raises(BlockingIOError):
        other.read_frame_nowait()
    got: list[bytes] = []
    while len(got) < len(FRAMES):
        got += await other.read_frames()
        assert loop.time() - started >= 0.0295  # the clock of uvloop counts milliseconds
    assert got == FRAMES


async def test_bandwidth_spreads_frames_over_time() -> None:
    loop = asyncio.get_running_loop()
    one, other = memory_pair(bandwidth=60 * 8 * 200)
    started = loop.time()
    await one.write_frames(FRAMES[:20])
    assert [await other.read_frame() for _ in range(20)] == FRAMES[:20]
    assert loop.time() - started >= 0.095
    await other.write_frame(FRAMES[0])  # each direction has its own
    assert await one.read_frame() == FRAMES[0]


async def test_frames_under_way_count_against_the_capacity() -> None:
    one, other = memory_pair(capacity=5, latency=0.005)
    await one.write_frames(FRAMES[:8])
    assert other.dropped == 3
    await asyncio.sleep(0.02)
    assert await other.read_frames() == FRAMES[:5]


async def test_loss_is_counted_and_the_same_for_one_seed() -> None:
    kept = []
    for seed in (1, 1, 2):
        one, other = memory_pair(loss=0.3, seed=seed)
        await one.write_frames(FRAMES)
        got = await other.read_frames(1000)
        assert len(got) + other.lost == len(FRAMES) and 60 < other.lost < 180
        assert got == [frame for frame in FRAMES if frame in set(got)]
        kept.append(got)
    assert kept[0] == kept[1] != kept[2]


async def test_frames_on_the_way_arrive_before_the_end() -> None:
    one, other = memory_pair(latency=0.005)
    await one.write_frames(FRAMES[:3])
    await one.aclose()
    got = []
    with pytest.raises(DeviceGoneError):
        while True:
            got.append(await other.read_frame())
    assert got == FRAMES[:3]
    one, other = memory_pair(latency=0.005)
    await one.write_frame(FRAMES[0])
    await other.aclose()
    await asyncio.sleep(0.01)
    with pytest.raises(QueueClosedError):
        await other.read_frame()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"capacity": 0}, "at least 1 frame, not 0"),
        ({"bandwidth": 0}, "over 0 bits per second"),
        ({"latency": -1}, "0 or more seconds, not -1"),
        ({"loss": 1.5}, "from 0 to 1, not 1.5"),
    ],
)
async def test_invalid_links(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        memory_pair(**options)


# -- FaultyStream ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def faulty(**options: Any) -> AsyncIterator[tuple[FaultyStream, MemoryStream]]:
    inner, far = memory_pair(capacity=5000)
    stream = FaultyStream(inner, seed=options.pop("seed", 1), **options)
    yield stream, far
    await stream.aclose()
    await far.aclose()


async def arrived(far: MemoryStream) -> list[bytes]:
    """The frames that have arrived, after no frame is held back any more."""
    await asyncio.sleep(2 * FaultyStream.PAUSE)
    try:
        return far.read_frames_nowait(4000)
    except BlockingIOError:
        return []


async def test_without_faults_it_conforms() -> None:
    await check_packet_stream(lambda: faulty())


async def test_it_is_a_packet_stream() -> None:
    async with faulty() as (stream, _):
        assert isinstance(stream, PacketStream)


async def test_with_delays_it_conforms() -> None:
    delays = Faults(delay=0.02)
    await check_packet_stream(lambda: faulty(reading=delays, writing=delays), burst=110)


async def through(way: str, faults: Faults, seed: int = 1) -> tuple[list[bytes], dict[str, int]]:
    """The frames of `FRAMES` that arrive, and how many had each fault."""
    if way == "written":
        async with faulty(writing=faults, seed=seed) as (stream, far):
            await stream.write_frames(FRAMES)
            return await arrived(far), dict(stream.faults_written)
    async with faulty(reading=faults, seed=seed) as (stream, far):
        await far.write_frames(FRAMES)
        got: list[bytes] = []
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(0.2):
                    got += await stream.read_frames()
        return got, dict(stream.faults_read)


WAYS = pytest.mark.parametrize("way", ["read", "written"])


@WAYS
async def test_drop(way: str) -> None:
    got, counts = await through(way, Faults(drop=0.2))
    assert counts.keys() == {"drop"} and 40 < counts["drop"] < 130
    assert got == [frame for frame in FRAMES if frame in set(got)]
    assert len(got) == len(FRAMES) - counts["drop"]


@WAYS
async def test_duplicate(way: str) -> None:
    got, counts = await through(way, Faults(duplicate=0.2))
    assert len(got) == len(FRAMES) + counts["duplicate"] and counts["duplicate"] > 40
    assert sorted(set(got)) == FRAMES and got == sorted(got)


@WAYS
async def test_reorder(way: str) -> None:
    got, counts = await through(way, Faults(reorder=0.2))
    assert sorted(got) == FRAMES and counts["reorder"] > 40
    late = sum(later < earlier for earlier, later in pairwise(got))
    assert 0 < late <= counts["reorder"]


@WAYS
async def test_the_last_frame_is_not_held_back_for_ever(way: str) -> None:
    got, _ = await through(way, Faults(reorder=1))
    assert got == FRAMES


@WAYS
async def test_corrupt(way: str) -> None:
    got, counts = await through(way, Faults(corrupt=0.2))
    changed = [(came, sent) for came, sent in zip(got, FRAMES, strict=True) if came != sent]
    assert len(changed) == counts["corrupt"] > 40
    for came, sent in changed:
        assert (int.from_bytes(came) ^ int.from_bytes(sent)).bit_count() == 1


@WAYS
async def test_the_same_seed_gives_the_same_faults(way: str) -> None:
    faults = Faults(drop=0.1, duplicate=0.1, corrupt=0.1, reorder=0.1)
    first = await through(way, faults)
    assert await through(way, faults) == first
    assert await through(way, faults, seed=2) != first


async def test_the_way_of_writing_makes_no_difference() -> None:
    faults = Faults(drop=0.1, duplicate=0.1, corrupt=0.1)
    expected, _ = await through("written", faults)
    async with faulty(writing=faults) as (stream, far):
        for number, frame in enumerate(FRAMES):
            if number % 3 == 0:
                await stream.write_frame(frame)
            elif number % 3 == 1:
                stream.write_frame_nowait([frame[:10], frame[10:]])
            else:
                assert stream.write_frames_nowait([bytearray(frame)]) == 1
        assert await arrived(far) == expected


async def test_error() -> None:
    async with faulty(writing=Faults(error=0.2)) as (stream, far):
        with pytest.raises(InvalidFrameError) as caught:
            await stream.write_frames(FRAMES)
        refused = set(caught.value.indexes)
        assert len(refused) == stream.faults_written["error"] > 40
        assert await arrived(far) == [frame for index, frame in enumerate(FRAMES) if index not in refused]


async def test_a_delay() -> None:
    async with faulty(writing=Faults(delay=1), reading=Faults(delay=1)) as (stream, far):
        with pytest.raises(BlockingIOError):
            stream.write_frame_nowait(FRAMES[0])
        await stream.write_frames(FRAMES[:5])
        assert await arrived(far) == FRAMES[:5]
        await far.write_frames(FRAMES[:5])
        with pytest.raises(BlockingIOError):
            stream.read_frame_nowait()
        assert [await stream.read_frame() for _ in range(5)] == FRAMES[:5]


async def test_down_and_up_again() -> None:
    async with faulty() as (stream, far):
        stream.set_link(False)
        with pytest.raises(LinkDownError):
            await stream.write_frame(FRAMES[0])
        await far.write_frames(FRAMES[:3])
        with pytest.raises(BlockingIOError):
            stream.read_frame_nowait()
        stream.set_link(True)
        await far.write_frame(FRAMES[3])
        assert await stream.read_frame() == FRAMES[3]
        await stream.write_frame(FRAMES[4])
        assert await arrived(far) == FRAMES[4:5]


async def test_the_link_goes_down_by_itself_and_comes_back() -> None:
    async with faulty(writing=Faults(down=0.05)) as (stream, far):
        lost = 0
        for frame in FRAMES:
            try:
                await stream.write_frame(frame)
            except LinkDownError:
                lost += 1
        assert stream.faults_written["down"] < lost < 10 * stream.faults_written["down"]
        assert len(await arrived(far)) == len(FRAMES) - lost
    got, counts = await through("read", Faults(down=0.05))
    assert len(got) == len(FRAMES) - counts["down"] and 0 < counts["down"] < 300


async def test_gone_after_what_was_read() -> None:
    async with faulty(reading=Faults(gone=0.01)) as (stream, far):
        await far.write_frames(FRAMES)
        got = []
        with pytest.raises(DeviceGoneError):
            while True:
                got.append(await stream.read_frame())
        assert got == FRAMES[: len(got)] and stream.faults_read == {"gone": 1}
        with pytest.raises(DeviceGoneError):
            await stream.write_frame(FRAMES[0])
        assert not stream.closed


async def test_gone_wakes_a_reader_that_waits() -> None:
    async with faulty(writing=Faults(gone=1)) as (stream, _):
        reader = asyncio.ensure_future(stream.read_frame())
        await asyncio.sleep(0.001)
        with pytest.raises(DeviceGoneError):
            await stream.write_frame(FRAMES[0])
        with pytest.raises(DeviceGoneError):
            await reader


async def test_no_frame_is_lost_by_a_cancelled_read_whatever_the_faults() -> None:
    async with faulty(reading=Faults(delay=0.1, duplicate=0.1, reorder=0.1)) as (stream, far):
        got: list[bytes] = []

        async def read() -> None:
            got.append(await stream.read_frame())

        for number, frame in enumerate(FRAMES):
            task = asyncio.ensure_future(read())
            await asyncio.sleep(0)
            await far.write_frame(frame)
            for _ in range(number % 5):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(0.05):
                    await read()
        assert sorted(set(got)) == FRAMES
        assert len(got) == len(FRAMES) + stream.faults_read["duplicate"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"drop": -0.1}, "drop must be from 0 to 1, not -0.1"),
        ({"corrupt": float("nan")}, "corrupt must be from 0 to 1"),
        ({"drop": 0.6, "delay": 0.6}, "at most 1, not 1.2"),
    ],
)
def test_invalid_faults(options: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Faults(**options)


async def test_reading_has_no_refused_frames() -> None:
    one, _ = memory_pair()
    with pytest.raises(ValueError, match="reading.error must be 0, not 0.1"):
        FaultyStream(one, seed=1, reading=Faults(error=0.1))
