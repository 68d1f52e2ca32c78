"""Checks of reading from a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from itertools import product
from typing import Any

from .trial import Others, Trial, same, starts_like


async def reads_are_in_order(trial: Trial) -> None:
    """Every method of reading returns all frames, whole and in order."""
    for way in trial.reads():
        sent = trial.many(110 if "frames" in way else 12)
        await trial.send(sent)
        got = await trial.collect(way, sent)
        same(got, sent, way)
        for frame in got:
            assert type(frame) is bytes, f"{way} must give bytes, not {type(frame).__name__}"
    # All methods read the same frames: what one of them left is for the next.
    sent = trial.frames(12)
    await trial.send(sent)
    mixed: list[bytes] = []
    while len(mixed) < len(sent) and sent[-1] not in mixed:
        mixed += await trial.soon(trial.stream.read_frames(2), "read_frames")
        for way in ("read_frame", "read_frame_nowait", "async for"):
            if len(mixed) < len(sent):
                mixed += await trial.soon(anext(trial.reads()[way]()), f"{way} after read_frames")
    same(mixed, sent, "different methods of reading in turn")
    last = trial.frame()
    await trial.send([last])
    batch = await trial.soon(trial.stream.read_frames(), "read_frames")
    assert type(batch) is list, f"read_frames must return a list, not {type(batch).__name__}"


async def read_frames_keeps_its_limit(trial: Trial) -> None:
    """read_frames returns at least one frame, all available ones up to the limit, and a list that belongs to the caller."""
    stream: Any = trial.stream

    async def by_name(limit: int) -> list[bytes]:
        try:
            frames: list[bytes] = await stream.read_frames(limit=limit)
            return frames
        except TypeError as error:
            raise AssertionError("read_frames must take its limit also by the name limit") from error

    batch_reads: dict[str, Callable[[int], Awaitable[list[bytes]]]] = {
        "read_frames": stream.read_frames,
        "read_frames, by name": by_name,
    }
    if hasattr(stream, "read_frames_nowait"):
        batch_reads["read_frames_nowait"] = lambda limit: trial.now(
            lambda: stream.read_frames_nowait(limit), "read_frames_nowait"
        )
    for name, read in batch_reads.items():
        sent = trial.frames(12)
        await trial.send(sent)
        first = await trial.soon(read(1), f"{name}(1)")
        await trial.settle()
        assert len(first) == 1, f"{name}(1) returned {len(first)} frames"
        kept, most, limit = list(first), 1, 5
        while len(kept) < len(sent):
            batch = await trial.soon(read(limit), f"{name}({limit}) while fewer frames are available")
            assert 1 <= len(batch) <= limit, f"{name}({limit}) returned {len(batch)} frames"
            kept += batch
            most, limit = max(most, len(batch)), 1_000_000
        assert most > 1, f"{name} returned one frame each time although more were available"
        same(kept, sent, name)
        assert list(first) == sent[:1], f"the list that {name} returned was changed afterwards"
        for limit in (0, -1):
            await trial.raises(ValueError, lambda read=read, limit=limit: read(limit), f"{name}({limit})")  # type: ignore[misc]


async def nowait_is_empty_when_nothing_came(trial: Trial) -> None:
    """Reading without waiting raises BlockingIOError before the first frame and after the last."""
    sent = trial.frames(3)
    for moment in ("before the first frame", "after the last frame"):
        for name in ("read_frame_nowait", "read_frames_nowait"):
            read = getattr(trial.stream, name, None)
            if read is not None:
                await trial.raises(BlockingIOError, _call(read), f"{name} {moment}")
        if moment == "before the first frame":
            await trial.send(sent)
            same(await trial.collect("read_frame", sent), sent, "read_frame")


async def nowait_does_not_overtake(trial: Trial) -> None:
    """A frame goes to the task that waits for it, not to a later caller of a ``nowait`` method."""
    stream: Any = trial.stream
    waits: dict[str, Callable[[], Awaitable[object]]] = {
        "read_frame": stream.read_frame,
        "read_frames": stream.read_frames,
        "async for": lambda: anext(aiter(stream)),
    }
    looks = [name for name in ("read_frame_nowait", "read_frames_nowait") if hasattr(stream, name)]
    for name, way in product(looks, waits):
        read = getattr(stream, name)
        for _ in range(4):
            frame = trial.frame()
            waiting = trial.start(trial.soon(waits[way](), f"a waiting {way}"))
            await trial.asked()
            await trial.send([frame])
            taken = None
            while not waiting.done() and taken is None:
                try:
                    taken = read()
                except BlockingIOError:
                    await trial.turns(1)
            assert taken is None, f"{name} took a frame for which {way} was waiting already"
            assert await waiting in (frame, [frame]), f"a waiting {way} got another frame"


async def readers_take_turns(trial: Trial) -> None:
    """Readers are served in the order in which they called, by every method, and each frame goes to one of them."""
    stream = trial.stream
    order: list[int] = []
    got: list[bytes] = []

    async def one_frame() -> list[bytes]:
        return [await stream.read_frame()]

    async def next_frame() -> list[bytes]:
        return [await anext(aiter(stream))]

    async def read(number: int, one: Callable[[], Awaitable[list[bytes]]]) -> None:
        for _ in range(4):
            got.extend(await one())
            order.append(number)

    for send in (trial.send, trial.burst):
        order.clear()
        got.clear()
        ways = (one_frame, lambda: stream.read_frames(1), next_frame)
        tasks = [trial.start(read(number, one)) for number, one in enumerate(ways)]
        await trial.asked()
        sent = trial.frames(12)
        await send(sent)
        await trial.soon(asyncio.gather(*tasks), "three readers that read four frames each")
        assert order == [0, 1, 2] * 4, f"readers were not served in turn: {order}"
        same(got, sent, "several readers")

    # A second reader calls after the frame has arrived, but before the first reader's task has run.
    sent = trial.frames(2)
    earlier = trial.start(stream.read_frame())
    await trial.asked()
    await trial.burst(sent)
    later = await trial.soon(stream.read_frame(), "a second reader")
    assert later == sent[1], "readers were not served in turn: a later one got the frame of the first"
    assert await trial.soon(earlier, "the first reader") == sent[0], "the first reader got another frame"


async def cancelled_reads_lose_nothing(trial: Trial) -> None:
    """A cancelled read loses no frame, at whatever moment it is cancelled."""
    stream = trial.stream
    got: list[bytes] = []

    async def read_frame() -> None:
        got.append(await stream.read_frame())

    async def read_frames() -> None:
        got.extend(await stream.read_frames())

    async def iterate() -> None:
        got.append(await anext(aiter(stream)))

    reads: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "read_frame": read_frame,
        "read_frames": read_frames,
        "async for": iterate,
    }
    loop = asyncio.get_running_loop()
    for name, read in reads.items():
        got.clear()
        sent = []
        for number in range(24):
            tasks = [trial.start(read()) for _ in range(3)]
            await trial.turns(1)
            frames = trial.frames(1 + number % 2)
            sent += frames
            await trial.burst(frames)
            if number % 6 < 4:
                await trial.turns(number % 6)
            else:  # cancel when the first reader has its frame, and the next one may be about to get one
                limit = loop.time() + 2 * trial.delay + 0.001
                while not any(task.done() for task in tasks) and loop.time() < limit:
                    await trial.turns(1)
            await trial.cancel(*tasks)
            for task in tasks:
                error = None if task.cancelled() else task.exception()
                assert error is None, f"a cancelled {name} raised {error!r}"
        last = trial.frame()
        await trial.send([last])
        while last not in got:
            got.append(await trial.soon(stream.read_frame(), f"after a cancelled {name}, no more frames came"))
        same(got, [*sent, last], f"after a cancelled {name}")


async def a_cancelled_reader_leaves_the_line(trial: Trial) -> None:
    """Readers behind a cancelled one are served, even if the frame for the cancelled one had arrived already."""
    for turns in range(4):
        first, *others = (trial.start(trial.stream.read_frame()) for _ in range(3))
        await trial.asked()
        if turns == 3:
            first.cancel()
        await trial.burst([trial.frame()])
        await trial.turns(turns % 3)
        first.cancel()
        await asyncio.wait([first])
        if first.cancelled():
            complaint = "a frame that came for a cancelled reader did not go to the next one"
            await trial.soon(asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED), complaint)
        await trial.cancel(first, *others)

    # One in the middle of the line: those before and behind it are still served in their order.
    complaint = "a reader before or behind a cancelled one"
    tasks = [trial.start(trial.soon(trial.stream.read_frame(), complaint)) for _ in range(4)]
    await trial.asked()
    await trial.cancel(tasks.pop(1))
    sent = trial.frames(3)
    await trial.send(sent)
    same([await task for task in tasks], sent, "readers before and behind a cancelled one")


async def iteration_can_be_left_and_resumed(trial: Trial) -> None:
    """Leaving an ``async for`` loses no frame."""
    sent = trial.frames(12)
    await trial.send(sent)
    got: list[bytes] = []
    while len(got) < len(sent) and sent[-1] not in got:
        batches = trial.reads()["async for"]()
        for _ in range(2):
            got += await trial.soon(anext(batches), f"async for gave {len(got)} of {len(sent)} frames")
        await batches.aclose()  # type: ignore[attr-defined]
        got.append(await trial.soon(trial.stream.read_frame(), "read_frame after an async for that was left"))
        starts_like(got, sent, "an async for that was left")


async def readers_let_others_run(trial: Trial) -> None:
    """A reader that always finds frames lets the other tasks of the loop run."""
    stream = trial.stream
    reads: dict[str, Callable[[], Awaitable[object]]] = {
        "read_frame": stream.read_frame,
        "read_frames": stream.read_frames,
    }
    for name, read in reads.items():
        others, frame = Others(trial), trial.frame()
        for _ in range(2000):
            await trial.burst([frame])
            await trial.soon(read(), name)
            if others.turns > 1:
                break
        assert others.turns > 1, f"no other task ran during 2000 calls of {name} that did not wait"


def _call(call: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def use() -> object:
        return call()

    return use


READING = (
    reads_are_in_order,
    read_frames_keeps_its_limit,
    nowait_is_empty_when_nothing_came,
    nowait_does_not_overtake,
    readers_take_turns,
    cancelled_reads_lose_nothing,
    a_cancelled_reader_leaves_the_line,
    iteration_can_be_left_and_resumed,
    readers_let_others_run,
)
