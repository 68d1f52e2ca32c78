"""The arguments of `write_frames`, and its errors: which frames of a batch were not written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ._errors import InvalidFrameError
from ._types import Frame


def as_batch(frames: Iterable[Frame]) -> Sequence[Frame]:
    """The frames given to `write_frames`, as a sequence.

    Raises:
        TypeError: It is a single frame, or not an iterable.
    """
    if isinstance(frames, (bytes, bytearray, memoryview, str)):
        raise TypeError(f"write_frames takes several frames, not {type(frames).__name__}: write_frame takes one")
    if isinstance(frames, (list, tuple)):
        return frames
    try:
        iterator = iter(frames)
    except TypeError:
        raise TypeError(f"write_frames takes several frames, not {type(frames).__name__}") from None
    return list(iterator)


def report(refused: dict[int, InvalidFrameError], count: int) -> None:
    """Raises one error for all refused frames of a batch, if there are any."""
    if refused:
        first = min(refused)
        raise InvalidFrameError(
            f"{len(refused)} of {count} frames were refused and the others written; the first is number {first}: {refused[first]}",
            tuple(sorted(refused)),
        ) from refused[first].__cause__


def note_end(error: Exception, count: int, left: Sequence[int], refused: dict[int, InvalidFrameError]) -> None:
    """Adds notes to *error*: which frames of a batch of *count* were not written because of it."""
    error.add_note(f"{len(left)} of {count} frames were not written; the first is number {min(left)}")
    if refused:
        error.add_note(f"of the others, these were refused: {sorted(refused)}")


def size_of(frame: Frame) -> int:
    """Size in bytes of one frame: a bytes-like object, or a list or tuple of them.

    Raises:
        TypeError: It is neither.
    """
    pieces = frame if isinstance(frame, (list, tuple)) else (frame,)
    try:
        return sum(memoryview(piece).nbytes for piece in pieces)
    except (TypeError, ValueError, BufferError) as error:
        why = f" ({error})" if pieces is frame or not isinstance(error, TypeError) else ""
        raise TypeError(
            f"a frame must be a bytes-like object, or a list or tuple of them, not {type(frame).__name__}{why}"
        ) from None
