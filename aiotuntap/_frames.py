"""Where frames pass between Python and the kernel: read(2) and write(2), for single frames and for batches.

This is the version in Python; the C engine has the same functions (`_engine`). None of them waits. Errors are returned
as an ``errno`` and not raised, since most of them, such as EAGAIN, are expected.

One read(2) reads one frame, and one write(2) writes one frame, whole or not at all. See tuntap.rst in the kernel's
documentation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from threading import get_ident

from ._abi import READ_SIZE
from ._types import Buffer, Frame

#: Instead of an ``errno``: the frame is not one buffer, or its size is wrong. The caller has to look closer.
LOOK = -1

#: Instead of an ``errno``: called from the wrong thread.
WRONG_THREAD = -2

#: Frames in one batch, at most.
MOST = 256

# Larger than all frames of a batch together. See `keep_freed_memory`.
_BLOCK = 16 << 20

# Buffers that one writev(2) takes: IOV_MAX.
_MOST_PIECES = 1024


def read_batch(fd: int, limit: int, enough: int) -> tuple[list[bytes], int | BaseException]:
    """Reads frames until there are *limit*, or they have *enough* bytes in all, or something stops it.

    Returns:
        The frames, and what stopped it: 0, an ``errno``, or an exception that is not from the kernel, such as
        MemoryError, for the caller to raise. If it were raised here, the frames that were read before would be lost.
    """
    frames: list[bytes] = []
    size = 0
    limit = min(limit, MOST)
    try:
        while len(frames) < limit and size < enough:
            frames.append(b"")  # the place first, so that no frame is read that cannot be kept
            frames[-1] = os.read(fd, READ_SIZE)
            size += len(frames[-1])
    except BaseException as error:  # noqa: BLE001 - returned
        if frames and not frames[-1]:
            frames.pop()
        return frames, error.errno if isinstance(error, OSError) and error.errno else error
    return frames, 0


def read_one(fd: int) -> bytes | int:
    """One frame, or the ``errno``."""
    try:
        return os.read(fd, READ_SIZE)
    except OSError as error:
        return number_of(error)


def write_batch(fd: int, largest: int, start: int, most: int, frames: Sequence[Frame]) -> tuple[int, int]:
    """Writes up to *most* frames from *frames*, from number *start* on, each of at most *largest* bytes.

    Returns:
        How many were written, and what stopped it: 0, or, for the frame after those, an ``errno`` or LOOK.
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

    Checking the thread here takes a tenth of the time that it takes in the caller.

    Returns:
        0, the ``errno``, LOOK, or WRONG_THREAD if the calling thread is not *thread*. In the last two cases, nothing
        was written.
    """
    return _write(fd, largest, frame) if thread == get_ident() else WRONG_THREAD


def _write(fd: int, largest: int, frame: Frame) -> int:
    data: bytes | memoryview
    if type(frame) is bytes:
        data, size = frame, len(frame)
    else:
        try:
            data = memoryview(frame)  # type: ignore[arg-type]
        except Exception:  # noqa: BLE001 - several pieces, or not a frame at all
            return LOOK
        size = data.nbytes if data.c_contiguous else 0
    if not 0 < size <= largest:
        return LOOK
    try:
        os.write(fd, data)
    except OSError as error:
        return number_of(error)
    return 0


def number_of(error: OSError) -> int:
    """The ``errno``. An error without one is raised: a signal handler raised it, such as TimeoutError, not the kernel."""
    if not error.errno:
        raise error
    return error.errno


def write_pieces(fd: int, pieces: Sequence[Buffer]) -> int:
    """Writes one frame that is in several pieces, or in memory with gaps. Returns 0 or the ``errno``."""
    if len(pieces) > _MOST_PIECES or not all(memoryview(piece).c_contiguous for piece in pieces):
        pieces = [b"".join(bytes(piece) for piece in pieces)]
    try:
        os.writev(fd, pieces)
    except OSError as error:
        return number_of(error)
    return 0


def keep_freed_memory() -> None:
    """Makes the C library keep the memory of a batch of super-frames for the next batch.

    By default, glibc returns memory to the kernel when 128 KiB are free at the end of the heap. Getting it back causes
    page faults, which take a third of the time of a super-frame. When a block is freed that is larger than all before,
    glibc raises that limit to twice its size: see M_TRIM_THRESHOLD in mallopt(3). The block itself is never written to,
    and so takes no memory.
    """
    bytes(_BLOCK)
