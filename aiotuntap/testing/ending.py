"""Checks of how a stream ends: it is closed here, or its device is deleted."""

from __future__ import annotations

import asyncio
from typing import Any

from .._errors import DeviceGoneError, QueueClosedError
from .trial import Trial, same

# Frames that each of two writers writes, more than most send buffers have room for.
_MANY = 2000


async def closing_wakes_everybody(trial: Trial) -> None:
    """Closing ends every pending read with QueueClosedError, and every ``async for`` without an exception."""
    waiting = await _waiting(trial)
    await trial.soon(trial.stream.aclose(), "aclose while others wait for a frame")
    for name, task in waiting.items():
        try:
            outcome = await trial.soon(task, f"{name} still waits after aclose")
        except QueueClosedError as error:
            outcome = error
        except AssertionError:
            raise
        except asyncio.CancelledError as error:
            if not task.cancelled():
                raise
            raise AssertionError(f"aclose cancelled the task of {name}") from error
        except Exception as error:
            raise AssertionError(f"aclose ended {name} with {error!r}, not with QueueClosedError") from error
        if name.startswith("async for"):
            assert outcome == [], f"aclose must end {name} without an exception, not with {outcome!r}"
        else:
            assert isinstance(outcome, QueueClosedError), f"aclose must end {name} with QueueClosedError"


async def closing_wakes_writers(trial: Trial) -> None:
    """A writer that waits for room ends when the stream is closed: it wrote everything, or gets QueueClosedError."""
    writing = await _writing(trial)
    await trial.soon(trial.stream.aclose(), "aclose while others write")
    await _ends(trial, writing, QueueClosedError, "aclose")


async def a_closed_stream_says_so(trial: Trial) -> None:
    """`closed` is True, every method raises QueueClosedError, and ``async for`` ends, even with frames in the buffer."""
    await _backlog(trial)
    assert trial.stream.closed is False, "closed must be False before aclose"
    await trial.soon(trial.stream.aclose(), "aclose")
    assert trial.stream.closed is True, "closed must be True after aclose"
    await _is_closed(trial)


async def closing_twice_is_harmless(trial: Trial) -> None:
    """Two calls of aclose, one after the other and at the same time."""
    stream = trial.stream
    both = asyncio.gather(stream.aclose(), stream.aclose(), return_exceptions=True)
    outcomes = list(await trial.soon(both, "two aclose at once"))
    outcomes += await trial.soon(asyncio.gather(stream.aclose(), return_exceptions=True), "a second aclose")
    for outcome in outcomes:
        assert outcome is None, f"closing twice must be harmless: {outcome!r}"


async def a_device_that_goes_wakes_everybody(trial: Trial) -> None:
    """Every pending read and every ``async for`` ends with DeviceGoneError."""
    if not _can_vanish(trial):
        return
    waiting = await _waiting(trial)
    await _vanish(trial)
    for name, task in waiting.items():
        await trial.raises(DeviceGoneError, lambda task=task: task, f"{name} when the device is deleted")  # type: ignore[misc]


async def a_device_that_goes_wakes_writers(trial: Trial) -> None:
    """A writer that waits for room ends when the device is deleted: it wrote everything, or gets DeviceGoneError."""
    if not _can_vanish(trial):
        return
    writing = await _writing(trial)
    await _vanish(trial)
    await _ends(trial, writing, DeviceGoneError, "the device was deleted")


async def frames_that_came_before_the_end_are_read(trial: Trial) -> None:
    """Frames that arrived before the device was deleted are returned first, by every method of reading."""
    if not _can_vanish(trial):
        return
    sent = await _backlog(trial)
    await _vanish(trial)
    await trial.settle()
    stream: Any = trial.stream
    got: list[bytes] = []
    for way in ["read_frame", "read_frame_nowait", "async for", "read_frames"] * len(sent):
        if len(got) == len(sent):
            break
        try:
            if way == "read_frame":
                got.append(await trial.soon(stream.read_frame(), way))
            elif way == "read_frame_nowait":
                got.append(stream.read_frame_nowait())
            elif way == "async for":
                got.append(await trial.soon(anext(aiter(stream)), way))
            else:
                got += await trial.soon(stream.read_frames(2), way)
        except (DeviceGoneError, StopAsyncIteration, BlockingIOError) as error:
            raise AssertionError(
                f"{len(sent) - len(got)} of {len(sent)} frames that arrived before the device was deleted were lost:"
                f" {way} raised {error!r}"
            ) from error
    same(got, sent, "frames that arrived before the device was deleted")


async def a_device_that_is_gone_stays_gone(trial: Trial) -> None:
    """Every method raises DeviceGoneError each time, until the stream is closed here."""
    if not _can_vanish(trial):
        return
    await _vanish(trial)
    await trial.raises(DeviceGoneError, trial.stream.read_frame, "read_frame after the device was deleted")
    for _ in range(2):
        for name, use in trial.uses().items():
            await trial.raises(DeviceGoneError, use, f"{name} after the device was deleted")
        await trial.raises(DeviceGoneError, lambda: _iterate(trial), "async for after the device was deleted")
    assert trial.stream.closed is False, "closed must be False until aclose, also after the device was deleted"
    await trial.soon(trial.stream.aclose(), "aclose after the device was deleted")
    assert trial.stream.closed is True, "closed must be True after aclose"
    await _is_closed(trial)


async def _waiting(trial: Trial) -> dict[str, asyncio.Future[Any]]:
    """Tasks that wait for a frame with every method of reading, in two rounds."""
    stream = trial.stream
    waiting: dict[str, asyncio.Future[Any]] = {}
    for number in (1, 2):
        waiting[f"read_frame, waiting task {number}"] = trial.start(stream.read_frame())
        waiting[f"read_frames, waiting task {number}"] = trial.start(stream.read_frames())
        waiting[f"async for, waiting task {number}"] = trial.start(_iterate(trial))
    await trial.settle()
    for name, task in waiting.items():
        assert not task.done(), f"{name} ended before any frame came"
    return waiting


async def _writing(trial: Trial) -> dict[str, asyncio.Future[Any]]:
    """Tasks that write more than a small send buffer has room for, while nobody reads at the far end."""
    stream, sent = trial.stream, trial.frames(_MANY)

    async def write() -> None:
        for frame in sent:
            await stream.write_frame(frame)

    writing: dict[str, asyncio.Future[Any]] = {
        "write_frame": trial.start(write()),
        "write_frames": trial.start(stream.write_frames(sent)),
    }
    await trial.settle()
    return writing


async def _ends(trial: Trial, tasks: dict[str, asyncio.Future[Any]], kind: type[Exception], why: str) -> None:
    for name, task in tasks.items():
        await trial.soon(asyncio.wait([task]), f"{name} does not end when {why}")
        error = None if task.cancelled() else task.exception()
        assert not task.cancelled(), f"{name} was cancelled when {why}"
        assert error is None or isinstance(error, kind), (
            f"{name} must end with {kind.__name__} when {why}, not with {error!r}"
        )


async def _iterate(trial: Trial) -> list[bytes]:
    return [frame async for frame in trial.stream]


async def _backlog(trial: Trial) -> list[bytes]:
    """Frames that have arrived, but were not read yet."""
    sent = trial.frames(9)
    await trial.send(sent)
    same([await trial.soon(trial.stream.read_frame(), "read_frame")], sent[:1], "read_frame")
    await trial.settle()
    return sent[1:]


async def _is_closed(trial: Trial) -> None:
    for name, use in trial.uses().items():
        await trial.raises(QueueClosedError, use, f"{name} after aclose")
    try:
        got = await trial.soon(_iterate(trial), "async for must end after aclose")
    except QueueClosedError as error:
        raise AssertionError("async for must end after aclose, not raise QueueClosedError") from error
    assert got == [], "async for must give no frame after aclose"


def _can_vanish(trial: Trial) -> bool:
    return hasattr(trial.far, "vanish")


async def _vanish(trial: Trial) -> None:
    far: Any = trial.far
    await trial.soon(far.vanish(), "the far end's vanish")


ENDING = (
    closing_wakes_everybody,
    closing_wakes_writers,
    a_closed_stream_says_so,
    closing_twice_is_harmless,
    a_device_that_goes_wakes_everybody,
    a_device_that_goes_wakes_writers,
    frames_that_came_before_the_end_are_read,
    a_device_that_is_gone_stays_gone,
)
