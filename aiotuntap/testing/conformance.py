"""The conformance checks that anything which claims to be a `PacketStream` must pass."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from .._types import Frame
from .ending import ENDING
from .reading import READING
from .trial import StreamMaker, Terms, Trial, example_frame, same
from .writing import WRITING

#: All checks, each for a stream of its own.
CHECKS: tuple[Callable[[Trial], Awaitable[None]], ...] = (*READING, *WRITING, *ENDING)

# The MTU of Ethernet: what an ordinary link carries.
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

    They cover order, batches, frames of every size and kind, refused frames, cancelled and concurrent readers and
    writers, fairness, closing, and, where the far end has a method ``vanish``, a device that goes away. The methods
    ``read_frames_nowait`` and ``write_frames_nowait`` are checked if the stream has them. Streams with latency pass:
    the checks wait for what is under way, and do less on a slow stream. An AssertionError names the check and says what
    does not hold; any other exception is what the stream raised where it should not have.

    Args:
        make: Returns an asynchronous context manager that yields a stream and its far end.
        frame: A valid frame, a different one for each number. Without a parameter ``size``, the number of bytes that it
            is to have, frames of several sizes are not tried.
        sizes: Smallest and largest frame in bytes that the stream carries and *frame* can make; both ends must pass all
            of them. By default those from *frame* as it is to 65535 bytes are tried, and over 1500 bytes a frame may
            be refused or get lost, as on a link with a smaller MTU, but must not arrive changed.
        refused: A frame that the stream must refuse with InvalidFrameError. By default an empty one is tried: it must
            be either refused or handed over.
        burst: Frames that the stream keeps, at least, while nobody reads them; 110 or more.
        patience: Seconds to wait for what must happen.
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
                error.add_note(f"while {check.__name__} was checked")
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
            raise ValueError(f"sizes must be the smallest and the largest frame in bytes, not {sizes!r}")
        certain = most
    elif frame is example_frame:
        sizes = (18, 65535 + 14)
    elif "size" in inspect.signature(frame).parameters:
        sizes = (len(frame(0)), 65535)
    return Terms(frame, sizes, certain, refused, burst, patience)


async def _pace(trial: Trial) -> tuple[float, float]:
    """Seconds that one frame takes, and each of many, in the slower direction."""
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
