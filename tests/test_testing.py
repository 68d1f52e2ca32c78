"""The pair in memory: the conformance checks, and its own features."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from aiotuntap import DeviceGoneError, InvalidFrameError, PacketStream, QueueClosedError
from aiotuntap._batch import as_batch, report, size_of
from aiotuntap.testing import CHECKS, FaultyStream, MemoryStream, check_packet_stream, example_frame, memory_pair
from aiotuntap.testing.trial import Terms, Trial

from . import broken_corners  # noqa: F401 - adds to FAULTS
from .broken_streams import FAULTS, CutsAt1500, Fault, Through


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[MemoryStream, MemoryStream]]:
    one, other = memory_pair()
    yield one, other
    await other.aclose()


async def test_conforms() -> None:
    await check_packet_stream(pair)


async def test_is_a_packet_stream() -> None:
    one, _ = memory_pair()
    assert isinstance(one, PacketStream)


async def test_drops_when_full_as_a_kernel_ring_does() -> None:
    one, other = memory_pair(capacity=3)
    await one.write_frames([example_frame(number) for number in range(5)])
    assert other.dropped == 2
    assert await other.read_frames() == [example_frame(number) for number in range(3)]


async def test_closing_the_other_end_is_a_deleted_device() -> None:
    one, other = memory_pair()
    await one.write_frame(b"last")
    await one.aclose()
    assert await other.read_frame() == b"last"
    with pytest.raises(DeviceGoneError):
        await other.read_frame()
    with pytest.raises(DeviceGoneError):
        await other.write_frame(b"x")
    await other.aclose()
    with pytest.raises(QueueClosedError):
        await other.read_frame()


async def test_refused_frames_are_named_and_the_rest_is_written() -> None:
    one, other = memory_pair()
    with pytest.raises(InvalidFrameError) as caught:
        await one.write_frames([b"a", b"", b"b", b"x" * 70000])
    assert caught.value.indexes == (1, 3)
    assert await other.read_frames() == [b"a", b"b"]


# -- the checks themselves ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def around(stream: type[Through]) -> AsyncIterator[tuple[Through, MemoryStream]]:
    inner, far = memory_pair()
    yield stream(inner), far
    for each in (inner, far):
        await each.aclose()


async def test_a_stream_around_another_conforms() -> None:
    await check_packet_stream(lambda: around(Through))


class LeapingLoop(asyncio.SelectorEventLoop):
    """Its clock leaps to the next timer when nothing is ready: waiting takes no time, and a busy machine is not late."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector: Any = self._selector
        self._look = self._selector.select
        self._selector.select = self._leap

    def time(self) -> float:
        return self._now

    def _leap(self, timeout: float | None) -> Any:
        ready = self._look(0)
        if not ready:
            assert timeout is not None, "nothing is left to wait for"
            self._now += max(timeout, 1e-6)  # whoever asks again and again comes to an end, too
        return ready


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.stream.__name__)
def test_each_fault_is_found_by_the_check_for_it(fault: Fault) -> None:
    terms = Terms(example_frame, (18, 65549), 1500, None, 300, patience=0.3)
    found = {}

    async def run_all() -> None:
        for check in CHECKS:
            async with around(fault.stream) as (stream, far):
                try:
                    await Trial(stream, far, terms).run(check)
                except AssertionError as error:
                    found[check.__name__] = str(error)

    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(run_all())
    assert found.keys() == set(fault.checks)
    assert re.search(fault.says, found[fault.checks[0]]), found


def test_each_check_finds_a_fault() -> None:
    assert {fault.checks[0] for fault in FAULTS} == {check.__name__ for check in CHECKS}


async def test_a_failure_names_the_check_and_the_fault() -> None:
    with pytest.raises(
        AssertionError, match=r"frames_of_every_size_pass: read_frame: a frame of \d+ bytes was cut to 1500"
    ):
        await check_packet_stream(lambda: around(CutsAt1500))


async def test_an_exception_of_the_stream_says_where_it_came_from() -> None:
    class Fails(Through):
        async def write_frames(self, frames: Any) -> None:
            if not frames:
                raise RuntimeError("nothing to write")
            await super().write_frames(frames)

    with pytest.raises(RuntimeError, match="nothing to write") as caught:
        await check_packet_stream(lambda: around(Fails))
    assert caught.value.__notes__ == ["in the check writes_are_in_order"]


@asynccontextmanager
async def delayed(seconds: float) -> AsyncIterator[tuple[MemoryStream, MemoryStream]]:
    """A correct stream with latency for frames and for the end, in both directions."""
    loop = asyncio.get_running_loop()
    stream, near = memory_pair()
    distant, far = memory_pair()

    async def carry(source: MemoryStream, target: MemoryStream) -> None:
        with suppress(DeviceGoneError):
            async for frame in source:
                loop.call_later(seconds, deliver, target, frame)
        await asyncio.sleep(seconds)
        await target.aclose()

    def deliver(target: MemoryStream, frame: bytes) -> None:
        with suppress(DeviceGoneError, QueueClosedError):
            target.write_frame_nowait(frame)

    tasks = [asyncio.ensure_future(carry(near, distant)), asyncio.ensure_future(carry(distant, near))]
    yield stream, far
    for each in (stream, far):
        await each.aclose()
    await asyncio.gather(*tasks)


class StopAndWait(Through):
    """A correct stream whose calls all begin with a delay."""

    seconds = 0.005

    async def read_frame(self) -> bytes:
        await asyncio.sleep(self.seconds)
        return await super().read_frame()

    async def read_frames(self, limit: int = 128) -> list[bytes]:
        await asyncio.sleep(self.seconds)
        return await super().read_frames(limit)

    async def __anext__(self) -> bytes:
        await asyncio.sleep(self.seconds)
        return await super().__anext__()

    async def write_frame(self, frame: Any) -> None:
        await asyncio.sleep(self.seconds)
        await super().write_frame(frame)

    async def write_frames(self, frames: Any) -> None:
        await asyncio.sleep(self.seconds)
        await super().write_frames(frames)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.005, 0.03])
async def test_a_stream_with_latency_passes(seconds: float) -> None:
    await check_packet_stream(lambda: delayed(seconds), burst=110)


@pytest.mark.slow
async def test_a_stream_with_slow_calls_passes() -> None:
    await check_packet_stream(lambda: around(StopAndWait), burst=110)


@pytest.mark.slow
async def test_a_stream_with_a_small_buffer_and_mtu_passes() -> None:
    class Small(Through):
        def write_frame_nowait(self, frame: Any) -> None:
            if size_of(frame) > 1500:
                raise InvalidFrameError("over the MTU of 1500 bytes")
            super().write_frame_nowait(frame)

        async def write_frame(self, frame: Any) -> None:
            await asyncio.sleep(0)
            self.write_frame_nowait(frame)

        async def write_frames(self, frames: Any) -> None:
            refused = {}
            await asyncio.sleep(0)
            for index, frame in enumerate(batch := as_batch(frames)):
                try:
                    self.write_frame_nowait(frame)
                except InvalidFrameError as error:
                    refused[index] = error
            report(refused, len(batch))

    @asynccontextmanager
    async def small() -> AsyncIterator[tuple[Through, MemoryStream]]:
        inner, far = memory_pair(capacity=128)
        yield Small(inner), far
        await far.aclose()

    await check_packet_stream(small, burst=110)
    with pytest.raises(InvalidFrameError):
        await check_packet_stream(small, burst=110, sizes=(60, 2000))


async def test_a_frame_maker_without_sizes_is_enough() -> None:
    await check_packet_stream(pair, lambda number: number.to_bytes(20))
    with pytest.raises(ValueError, match="smallest and the largest"):
        await check_packet_stream(pair, sizes=(100, 60))
    with pytest.raises(ValueError, match="at least 110 frames, not 10"):
        await check_packet_stream(pair, burst=10)


async def test_a_memory_stream_takes_and_refuses_what_a_queue_does() -> None:
    near, far = memory_pair()
    gaps = memoryview(bytes(byte for each in example_frame(1) for byte in (each, 0)))[::2]
    await near.write_frame(gaps)
    wrong: list[Any] = [example_frame(2), 5, example_frame(3)]
    assert near.write_frames_nowait(wrong) == 1
    with pytest.raises(TypeError) as caught:
        await near.write_frames(wrong)
    assert caught.value.__notes__ == ["2 of 3 frames were not written; the first is number 1"]
    assert await far.read_frames() == [example_frame(1), example_frame(2), example_frame(2)]


STREAM_CALLS: list[Callable[[FaultyStream | MemoryStream], object]] = [
    lambda stream: asyncio.run(stream.read_frame()),
    lambda stream: asyncio.run(stream.write_frame(example_frame(1))),
    lambda stream: asyncio.run(stream.write_frames([])),
    lambda stream: asyncio.run(stream.vanish()),
    lambda stream: asyncio.run(stream.aclose()),
    lambda stream: stream.read_frame_nowait(),
    lambda stream: stream.write_frame_nowait(example_frame(1)),
    lambda stream: stream.write_frames_nowait([]),
    lambda stream: stream.set_link(False) if isinstance(stream, FaultyStream) else stream.read_frames_nowait(),
]


@pytest.mark.parametrize("call", STREAM_CALLS, ids=map(str, range(len(STREAM_CALLS))))
@pytest.mark.parametrize("kind", ["memory", "faulty"])
async def test_a_stream_from_another_thread(kind: str, call: Callable[[FaultyStream | MemoryStream], object]) -> None:
    near, far = memory_pair()
    stream = near if kind == "memory" else FaultyStream(near, seed=1)
    with pytest.raises(RuntimeError, match="Stream belongs to .* in thread .*, and was called from "):
        await asyncio.to_thread(call, stream)
    await stream.write_frame(example_frame(2))
    assert await far.read_frame() == example_frame(2)
