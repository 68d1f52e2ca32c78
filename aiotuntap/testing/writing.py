"""Checks of writing to a stream, and of frames of every size."""

from __future__ import annotations

import array
import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import chain, permutations
from typing import Any

from .._errors import InvalidFrameError
from .._types import Frame
from .trial import Others, Trial, same, starts_like

# Typical sizes of buffers and MTUs. Frames around each of these sizes are checked.
_BOUNDS = (64, 128, 256, 512, 576, 1024, 1280, 1500, 1514, 2048, 4096, 8192, 9000, 16384, 32768)

# The most bytes on the way while sizes are checked: sockets buffer about 200 KiB.
_UNDER_WAY = 1 << 16


async def writes_are_in_order(trial: Trial) -> None:
    """Every method of writing delivers all frames, whole and in order, and no frame comes back."""
    for way, write in trial.writes().items():
        sent = trial.many(110 if "frames" in way else 12)
        await trial.soon(write(sent), way)
        same(await trial.arrived(sent, way), sent, way)
    # All methods write in one order.
    sent = []
    ways = trial.writes()
    for way in chain(*permutations(ways, 2)):
        sent.append(trial.frame())
        await trial.soon(ways[way](sent[-1:]), way)
    same(
        await trial.arrived(sent, "different methods of writing in turn"), sent, "different methods of writing in turn"
    )
    await trial.soon(trial.stream.write_frames([]), "write_frames of an empty list")
    last = [trial.frame()]
    await trial.soon(trial.stream.write_frame(last[0]), "write_frame")
    same(await trial.arrived(last, "write_frames of an empty list"), last, "write_frames of an empty list")
    await trial.send(last)
    same(await trial.collect("read_frame", last), last, "a frame that was written came back")


async def frames_of_every_size_pass(trial: Trial) -> None:
    """Neither end cuts, pads or splits frames, by any method of reading and writing."""
    if trial.terms.sizes is None:
        return
    least, most = trial.terms.sizes
    sizes = {least, least + 1, least + 2, *(size + by for size in _BOUNDS for by in (-1, 0, 1)), most - 1, most}
    ladder = sorted(size for size in sizes if least <= size <= most)
    if trial.each > 0.003:
        ladder = sorted({*ladder[1::6], least, most})
    for way in trial.reads():
        for part in _in_parts(ladder):
            sent = [frame for frame in map(trial.frame, part) if await _was_sent(trial, frame)]
            sent.append(trial.frame())
            await trial.send(sent[-1:])
            got = await trial.collect(way, sent)
            same(got, _certain(trial, sent, got), way)
    for way, write in trial.writes().items():
        for part in _in_parts(ladder):
            sent = [trial.frame(size) for size in part]
            try:
                await trial.soon(write(sent), way)
            except InvalidFrameError:
                if part[-1] <= trial.terms.certain:
                    raise
            sent.append(trial.frame())
            await trial.soon(trial.stream.write_frame(sent[-1]), "write_frame")
            got = await trial.arrived(sent, way)
            same(got, _certain(trial, sent, got), way)


def _in_parts(sizes: Sequence[int]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for size in sizes:
        if parts[-1] and sum(parts[-1]) + size > _UNDER_WAY:
            parts.append([])
        parts[-1].append(size)
    return parts


async def _was_sent(trial: Trial, frame: bytes) -> bool:
    try:
        await trial.send([frame])
    except (OSError, ValueError):
        if len(frame) <= trial.terms.certain:
            raise
        return False
    return True


def _certain(trial: Trial, sent: Sequence[bytes], got: Sequence[bytes]) -> list[bytes]:
    """The frames that must arrive, and those that arrived although they may be lost."""
    if not set(got) <= set(sent):
        return list(sent)
    return [frame for frame in sent if len(frame) <= trial.terms.certain or frame in got]


async def every_kind_of_frame_is_written(trial: Trial) -> None:
    """A frame is any bytes-like object, or a list or tuple of them."""
    data = trial.frame()
    even = data[: len(data) // 2 * 2]
    kinds: dict[str, tuple[Frame, bytes]] = {
        "bytes": (data, data),
        "bytearray": (bytearray(data), data),
        "memoryview": (memoryview(data), data),
        "memoryview of a part": (memoryview(b"\0" + data + b"\0")[1:-1], data),
        "memoryview of 16-bit items": (memoryview(even).cast("H"), even),
        "array of 16-bit items": (array.array("H", even), even),  # type: ignore[dict-item]
        "list": ([data[:14], data[14:]], data),
        "tuple of several kinds": ((bytearray(data[:6]), memoryview(data)[6:9], b"", data[9:]), data),
        "list of one piece": ([data], data),
        "list of many pieces": ([data[at : at + 1] for at in range(len(data))], data),
    }
    for way, write in trial.writes().items():
        for kind, (frame, _) in kinds.items():
            await trial.soon(write([frame]), f"{way} of a {kind}")
        for kind, (_, expected) in kinds.items():
            what = f"{way} of a {kind} as one frame"
            same(await trial.arrived([expected], what), [expected], what)
        await trial.soon(write([frame for frame, _ in kinds.values()]), f"{way} of several kinds of frame")
        for kind, (_, expected) in kinds.items():
            what = f"{way} of several kinds of frame, among them a {kind}"
            same(await trial.arrived([expected], what), [expected], what)


async def what_is_not_a_frame_is_refused(trial: Trial) -> None:
    """TypeError for an object that is not a frame, and for one frame instead of several; nothing is written."""
    stream: Any = trial.stream
    for way, write in trial.writes().items():
        for wrong in ("text", 7, None, ["text"]):
            batch: Any = [wrong]
            await trial.raises(TypeError, partial(write, batch), f"{way} of {wrong!r}")
    behind: Any = [None, trial.frame()]
    await trial.raises(TypeError, partial(stream.write_frames, behind), "write_frames of None and a frame")
    for one in (trial.frame(), 7, "text"):
        await trial.raises(TypeError, partial(stream.write_frames, one), f"write_frames of {type(one).__name__}")
    last = [trial.frame()]
    await trial.soon(stream.write_frame(last[0]), "write_frame")
    same(await trial.arrived(last, "after objects that are not frames"), last, "after objects that are not frames")


async def frames_are_copied(trial: Trial) -> None:
    """A buffer may be reused after the call that wrote it has returned."""
    for way, write in trial.writes().items():
        data = trial.frame()
        buffer, pieces = bytearray(data), [bytearray(data[:14]), bytearray(data[14:])]
        await trial.soon(write([buffer, memoryview(buffer), pieces]), way)
        for each in (buffer, *pieces):
            each[:] = bytes(len(each))
        for _ in range(3):
            arrived = await trial.soon(trial.far.read_frame(), way)
            assert arrived == data, f"{way} did not copy the frame: later changes of its buffer arrived"


async def refused_frames_are_named(trial: Trial) -> None:
    """InvalidFrameError says which frames were refused, and all other frames of the batch are written."""
    stream = trial.stream
    refused = trial.terms.refused
    if refused is None:
        refused = b""
        last = [refused, trial.frame()]
        try:
            await trial.soon(stream.write_frame(refused), "write_frame of an empty frame")
        except InvalidFrameError:
            pass
        else:  # this stream carries empty frames
            await trial.soon(stream.write_frame(last[1]), "write_frame")
            what = "an empty frame that was not refused"
            same(await trial.arrived(last, what), last, what)
            return
    for name, use in {
        "write_frame": lambda: stream.write_frame(refused),
        "write_frame_nowait": lambda: trial.now(lambda: stream.write_frame_nowait(refused), "write_frame_nowait"),
    }.items():
        error = await trial.raises(InvalidFrameError, use, f"{name} of a frame that must be refused")
        assert tuple(error.indexes) == (0,), f"{name}: indexes must be (0,) for a single frame, not {error.indexes!r}"
    if hasattr(stream, "write_frames_nowait"):
        await _nowait_stops_at_refused(trial, refused)
    count = len(trial.many(110))
    for wrong in ((0,), (1, 3), (0, 1, 2, 3, 4), (0, count // 2, count - 2, count - 1)):
        batch: list[Frame] = list(trial.frames(5 if wrong[-1] < 5 else count))
        for index in wrong:
            batch[index] = refused
        name = f"write_frames with refused frames at {wrong}"
        error = await trial.raises(InvalidFrameError, lambda batch=batch: stream.write_frames(batch), name)  # type: ignore[misc]
        assert tuple(error.indexes) == wrong, f"{name}: indexes are {tuple(error.indexes)!r}"
        last_frame = trial.frame()
        await trial.soon(stream.write_frame(last_frame), f"write_frame after {name}")
        sent = [frame for index, frame in enumerate(batch) if index not in wrong]
        same(await trial.arrived([*sent, last_frame], name), [*sent, last_frame], name)  # type: ignore[list-item]


async def _nowait_stops_at_refused(trial: Trial, refused: Frame) -> None:
    """write_frames_nowait takes the frames before a refused one, and raises when that is the first."""
    stream: Any = trial.stream
    name = "write_frames_nowait"
    good = trial.frames(3)
    batch: list[Frame] = [good[0], good[1], refused, good[2]]

    async def before_refused() -> None:
        at = 0
        while at < 2:
            taken = await trial.now(partial(stream.write_frames_nowait, batch[at:]), name)
            assert taken <= 2 - at, f"{name} took a frame that must be refused"
            at += taken
            await asyncio.sleep(0)

    try:
        await trial.soon(before_refused(), f"{name} took no frame")
    except InvalidFrameError as error:
        raise AssertionError(f"{name} must take the frames before one that must be refused, not raise") from error
    use = partial(trial.now, partial(stream.write_frames_nowait, batch[2:]), name)
    await trial.raises(InvalidFrameError, use, f"{name} when the first frame must be refused")
    await trial.soon(stream.write_frame(good[2]), "write_frame")
    what = f"{name} with a refused frame"
    same(await trial.arrived(good, what), good, what)


async def what_is_too_large_is_refused(trial: Trial) -> None:
    """A frame that is too large is refused with InvalidFrameError, or arrives whole. It is neither cut nor lost."""
    sent = [trial.frame().ljust(100_000, b"\0"), trial.frame()]
    for way in ("write_frame", "write_frames", "write_frame_nowait"):
        expected = sent
        try:
            await trial.soon(trial.writes()[way](sent[:1]), f"{way} of 100000 bytes")
        except InvalidFrameError:
            expected = sent[1:]
        await trial.soon(trial.stream.write_frame(sent[1]), "write_frame")
        what = f"{way} of 100000 bytes"
        same(await trial.arrived(expected, what), expected, what)


async def cancelled_writes_are_whole_or_not_at_all(trial: Trial) -> None:
    """A cancelled write writes no part of a frame, leaves no gap in a batch, and writes nothing later."""
    stream = trial.stream
    cancelled: set[bytes] = set()
    for number in range(16):
        turns, batch = number % 8, number >= 8
        sent = trial.frames(20) if batch else [trial.frame()]
        writing = trial.start(stream.write_frames(sent) if batch else stream.write_frame(sent[0]))
        await trial.turns(turns)
        writing.cancel()
        name = "write_frames" if batch else "write_frame"
        (outcome,) = await trial.soon(asyncio.gather(writing, return_exceptions=True), f"a cancelled {name}")
        assert not isinstance(outcome, Exception), f"a cancelled {name} raised {outcome!r}"
        last = trial.frame()
        await trial.soon(stream.write_frame(last), f"write_frame after a cancelled {name}")
        got = await trial.arrived([*sent, last], f"a cancelled {name}")
        assert cancelled.isdisjoint(got), f"a cancelled {name} wrote a frame later"
        if outcome is None:
            same(got, [*sent, last], f"{name}")
        else:
            starts_like(got[:-1], sent, f"a cancelled {name}")
            same(got[-1:], [last], f"write_frame after a cancelled {name}")
            cancelled |= set(sent)
    await trial.settle()
    last = trial.frame()
    await trial.soon(stream.write_frame(last), "write_frame")
    got = await trial.arrived([last], "after cancelled writes")
    assert cancelled.isdisjoint(got), "a cancelled write wrote a frame later"
    same(got, [last], "after cancelled writes")


async def writers_do_not_mix(trial: Trial) -> None:
    """Several tasks write at once: every frame arrives whole and once, and the frames of each task in order."""
    stream = trial.stream
    each = [trial.frames(10) for _ in range(4)]

    async def write(frames: Sequence[bytes]) -> None:
        for frame in frames:
            await stream.write_frame(frame)

    tasks = [write(each[0]), write(each[1]), stream.write_frames(each[2]), write(each[3])]
    await trial.soon(asyncio.gather(*tasks), "four tasks that write at once")
    sent = [*chain(*each), trial.frame()]
    await trial.soon(stream.write_frame(sent[-1]), "write_frame")
    got = await trial.arrived(sent, "four tasks that write at once")
    assert set(got) == set(sent), "writers at the same time: a frame was lost or changed"
    for frames in each:
        same([frame for frame in got if frame in frames], frames, "writers at the same time")


async def reading_does_not_block_writing(trial: Trial) -> None:
    """While a task waits for a frame, others can write."""
    waiting = trial.start(trial.stream.read_frame())
    await trial.asked()
    for way, write in trial.writes().items():
        sent = [trial.frame()]
        await trial.soon(write(sent), f"{way} while read_frame waits")
        same(await trial.arrived(sent, way), sent, way)
    last = trial.frame()
    await trial.send([last])
    got = await trial.soon(waiting, "read_frame that waited while others wrote")
    same([got], [last], "read_frame that waited while others wrote")


async def writers_let_others_run(trial: Trial) -> None:
    """A writer that never has to wait lets the other tasks of the loop run."""
    stream, frame = trial.stream, trial.frame()
    writes: dict[str, Callable[[], Awaitable[None]]] = {
        "write_frame": lambda: stream.write_frame(frame),
        "write_frames": lambda: stream.write_frames([frame] * 10),
    }
    for name, write in writes.items():
        others = Others(trial)
        for _ in range(2000):
            await trial.soon(write(), name)
            if others.turns > 1:
                break
        assert others.turns > 1, f"no other task ran during 2000 calls of {name} that did not wait"


WRITING = (
    writes_are_in_order,
    frames_of_every_size_pass,
    every_kind_of_frame_is_written,
    what_is_not_a_frame_is_refused,
    frames_are_copied,
    refused_frames_are_named,
    what_is_too_large_is_refused,
    cancelled_writes_are_whole_or_not_at_all,
    writers_do_not_mix,
    reading_does_not_block_writing,
    writers_let_others_run,
)
