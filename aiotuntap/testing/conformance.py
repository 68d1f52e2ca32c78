"""Runs the conformance checks, which every `PacketStream` must pass."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from .._types import Frame
from .ending import ENDING
from .reading import READING
from .trial import StreamMaker, Terms, Trial, example_frame, same
from .writing import WRITING

#: All checks. Each runs with a new stream.
CHECKS: tuple[Callable[[Trial], Awaitable[None]], ...] = (*READING, *WRITING, *ENDING)

# The MTU of Ethernet. Larger frames may be lost on an ordinary link.
_ORDINARY = 1500


async def check_packet_stream(
    make: StreamMaker,
    frame: Callable[..., bytes] = example_frame,
    *,
    sizes: tuple[int, int] | None = None,
    refused: Frame | None = None,
    burst: int = 300,
    patience: float = 10,
) -> None:
    """Runs all conformance checks, each against a new stream from *make*.

    They check order, batches, frames of every size and type, refused frames, cancelled and concurrent readers and
    writers, fairness, and closing, also while writers wait for room. If the far end has a method ``vanish``, they also
    check a device that is deleted. If the stream has the methods ``read_frames_nowait`` and ``write_frames_nowait``,
    these are checked too. A stream may be slow: the checks wait for frames to arrive, and do less on a slow stream.

    Args:
        make: Returns an asynchronous context manager that yields a stream and its far end.
        frame: Makes a valid frame, a different one for each number. If it has a parameter ``size``, the size of the
            frame in bytes, then frames of several sizes are checked.
        sizes: The smallest and the largest frame, in bytes, that *frame* can make and that the stream must carry in
            both directions. By default, sizes from ``len(frame(0))`` to 65535 bytes are checked. Frames over 1500 bytes
            may then be refused or lost, as on a link with a smaller MTU, but must not arrive changed.
        refused: A frame that the stream must refuse with InvalidFrameError. By default an empty frame is tried: it must
            be either refused or delivered.
        burst: The stream keeps at least this many frames, in each direction, while no task reads them. At least 110.
        patience: How many seconds to wait for something that must happen.

    Raises:
        AssertionError: A check failed. The message names the check and says what is wrong. If the stream raised an
            exception that it must not raise, that exception is raised instead.
        ValueError: *burst* or *sizes* has an invalid value.
    """
    if burst < 110:
        raise ValueError(f"burst must be at least 110 frames, not {burst}")
    terms = _terms(frame, sizes, refused, burst, patience)
    async with make() as (stream, far):
        pace = await _pace(Trial(stream, far, terms))
        await stream.aclose()
    for check in CHECKS:
        async with make() as (stream, far):
            try:
                await Trial(stream, far, terms, pace).run(check)
            except AssertionError as error:
                raise AssertionError(f"{check.__name__}: {error}") from error
            except Exception as error:
                error.add_note(f"in the check {check.__name__}")
                raise
            if not stream.closed:
                await stream.aclose()


def _terms(
    frame: Callable[..., bytes], sizes: tuple[int, int] | None, refused: Frame | None, burst: int, patience: float
) -> Terms:
    certain = _ORDINARY
    if sizes is not None:
        least, most = sizes
        if not 0 < least <= most:
            raise ValueError(f"sizes must be the smallest and the largest frame in bytes, both over 0, not {sizes!r}")
        certain = most
    elif frame is example_frame:
        sizes = (18, 65535 + 14)
    elif "size" in inspect.signature(frame).parameters:
        sizes = (len(frame(0)), 65535)
    return Terms(frame, sizes, certain, refused, burst, patience)


async def _pace(trial: Trial) -> tuple[float, float]:
    """Seconds for a single frame, and for each of many frames, in the slower direction."""
    clock = asyncio.get_running_loop().time
    delays: list[float] = []
    each: list[float] = []
    for count in (1, 10):
        for there in (True, False):
            sent = trial.frames(count)
            start = clock()
            if there:
                await trial.soon(trial.stream.write_frames(sent), "write_frames")
                same(await trial.arrived(sent, "write_frames"), sent, "write_frames")
            else:
                await trial.send(sent)
                same(await trial.collect("read_frame", sent), sent, "read_frame")
            (delays if count == 1 else each).append((clock() - start) / count)
    return max(delays), max(0.0, max(each))
