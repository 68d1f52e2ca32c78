"""A queue of super-frames that are passed through, and what frames of 64 KiB ask of memory."""

from __future__ import annotations

from ._queue import TuntapQueue

# Frames that are read before their sizes are looked at, and bytes that are enough for one batch: half of what the
# second-level cache of a processor holds. A batch that does not fit is fetched from memory again to be written.
_STEP = 8
_ENOUGH = 1 << 18

# Larger than all frames of a batch together. See `keep_freed_memory`.
_BLOCK = 16 << 20


class SuperFrameQueue(TuntapQueue):
    """As any `TuntapQueue`; a batch is limited by its size as well."""

    __slots__ = ()

    def _read(self, frames: list[bytes], limit: int) -> None:
        while limit > 0:
            super()._read(frames, min(limit, _STEP))
            limit -= _STEP
            if sum(map(len, frames)) >= _ENOUGH:
                break


def keep_freed_memory() -> None:
    """Makes the C library keep what is freed after a batch, for the next one.

    By default glibc gives memory back to the kernel as soon as 128 KiB are free at the end of the heap, and gets them
    back page fault by page fault: a third of what a super-frame costs. When a larger block than ever is freed, it
    learns that this program needs such blocks, and keeps up to twice as much: see M_TRIM_THRESHOLD in mallopt(3). The
    block itself is never touched, and so costs no memory.
    """
    bytes(_BLOCK)
