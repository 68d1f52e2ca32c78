"""What `write_frames` is given, and what it reports: frames, their sizes, and those of a batch that were not written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ._errors import InvalidFrameError
from ._types import Frame


def as_batch(frames: Iterable[Frame]) -> Sequence[Frame]:
    """What `write_frames` was given, so that it can be counted."""
    if isinstance(frames, (bytes, bytearray, memoryview, str)):
        raise TypeError("write_frames takes several frames: write_frame takes one")
    return frames if isinstance(frames, (list, tuple)) else list(frames)


def report(refused: dict[int, InvalidFrameError], count: int) -> None:
    """Raises one error for all frames of a batch that were refused, if any were."""
    if refused:
        first = min(refused)
        raise InvalidFrameError(
            f"{len(refused)} of {count} frames were refused; the first is number {first}: {refused[first]}",
            tuple(sorted(refused)),
        ) from refused[first]


def note_end(error: Exception, count: int, left: Sequence[int], refused: dict[int, InvalidFrameError]) -> None:
    """Says on *error* which frames of a batch of *count* it kept from being written."""
    error.add_note(f"{len(left)} of {count} frames were not written; the first is number {min(left)}")
    if refused:
        error.add_note(f"of the others, these were refused: {sorted(refused)}")


def size_of(frame: Frame) -> int:
    """Bytes of one frame, in one piece or a list or tuple of pieces.

    Raises:
        TypeError: It is neither.
    """
    pieces = frame if isinstance(frame, (list, tuple)) else (frame,)
    try:
        return sum(memoryview(piece).nbytes for piece in pieces)
    except (TypeError, ValueError, BufferError) as error:
        raise TypeError(
            f"a frame is a bytes-like object, or a list or tuple of them, not {type(frame).__name__} ({error})"
        ) from error
