"""Where frames pass between Python and the kernel: read(2) and write(2), one frame each, and batches of them.

This is the plain version; the C engine has the same functions (`_engine`). None of them waits, and what goes wrong is
an answer and not an exception: an ``errno``, since most of them are part of the ordinary course, such as EAGAIN.

One read(2) is one frame, one write(2) too, whole or not at all. See tuntap.rst in the kernel's documentation.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from threading import get_ident

from ._abi import READ_SIZE
from ._types import Buffer, Frame

#: Instead of an ``errno``: the frame is not a plain buffer of a size that can be written. The caller looks closer.
LOOK = -1

#: Likewise: the calling thread is not the one that it has to be.
WRONG_THREAD = -2

#: Frames in one batch at most.
MOST = 256

# Larger than all frames of a batch together. See `keep_freed_memory`.
_BLOCK = 16 << 20

# Buffers that one writev(2) takes: IOV_MAX.
_MOST_PIECES = 1024


def read_batch(fd: int, limit: int, enough: int) -> tuple[list[bytes], int | BaseException]:
    """Reads frames until there are *limit*, or they have *enough* bytes in all, or something stops it.

    Returns:
        The frames, and what stopped it: 0 when neither the kernel nor Python did. An exception that is not the
        kernel's, such as MemoryError, comes here too, for the caller to raise: raised at once, it would lose the frames
        that were read before.
    """
    frames: list[bytes] = []
    size = 0
    limit = min(limit, MOST)
    try:
        while len(frames) < limit and size < enough:
            frames.append(b"")  # the place first: no frame is read that could not be kept
            frames[-1] = os.read(fd, READ_SIZE)
            size += len(frames[-1])
    except BaseException as error:  # noqa: BLE001 - handed over
        if frames and not frames[-1]:
            frames.pop()
        return frames, error.errno or errno.EIO if isinstance(error, OSError) else error
    return frames, 0


def read_one(fd: int) -> bytes | int:
    """One frame, or the ``errno``."""
    try:
        return os.read(fd, READ_SIZE)
    except OSError as error:
        return error.errno or errno.EIO


def write_batch(fd: int, largest: int, start: int, most: int, frames: Sequence[Frame]) -> tuple[int, int]:
    """Writes up to *most* frames from *frames*, from number *start* on, each of at most *largest* bytes.

    Returns:
        How many were written, and what stopped it: 0, an ``errno`` which belongs to the frame after those that were
        written, or LOOK.
    """
    written = 0
    for frame in frames[start : start + min(most, MOST)]:
        number = _write(fd, largest, frame)
        if number:
            return written, number
        written += 1
    return written, 0


def write_one(fd: int, largest: int, thread: int, frame: Frame) -> int:
    """Writes one frame of at most *largest* bytes.

    To look at the thread here costs a tenth of what it costs before the call.

    Returns:
        0, the ``errno``, LOOK, or WRONG_THREAD when the calling thread is not *thread*. In the last two cases it did
        not try.
    """
    return _write(fd, largest, frame) if thread == get_ident() else WRONG_THREAD


def _write(fd: int, largest: int, frame: Frame) -> int:
    try:
        size = len(frame) if type(frame) is bytes else memoryview(frame).nbytes  # type: ignore[arg-type]
        if not 0 < size <= largest:
            return LOOK
        os.write(fd, frame)  # type: ignore[arg-type]
    except OSError as error:
        return error.errno or errno.EIO
    except Exception:  # noqa: BLE001 - a frame in pieces, with gaps, or not a frame: whatever its buffer raises
        return LOOK
    return 0


def write_pieces(fd: int, pieces: Sequence[Buffer]) -> int:
    """Writes one frame that is in several pieces, or in memory with gaps. Returns 0 or the ``errno``."""
    if len(pieces) > _MOST_PIECES or not all(memoryview(piece).c_contiguous for piece in pieces):
        pieces = [b"".join(bytes(piece) for piece in pieces)]
    try:
        os.writev(fd, pieces)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def keep_freed_memory() -> None:
    """Makes the C library keep what is freed after a batch of super-frames, for the next one.

    By default glibc gives memory back to the kernel as soon as 128 KiB are free at the end of the heap, and gets them
    back page fault by page fault: a third of what a super-frame costs. When a larger block than ever is freed, it
    learns that this program needs such blocks, and keeps up to twice as much: see M_TRIM_THRESHOLD in mallopt(3). The
    block itself is never touched, and so costs no memory.
    """
    bytes(_BLOCK)
