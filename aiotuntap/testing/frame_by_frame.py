"""A stream that writes batches frame by frame, for streams that have no faster way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from .._batch import as_batch, note_end, report
from .._errors import InvalidFrameError
from .._reader import FrameReader
from .._types import Frame

# Frames that a batch may write before the other tasks of the loop get their turn.
_WRITES_PER_TURN = 256


class FrameByFrame(FrameReader[bytes]):
    """The writing half of a `PacketStream`, made of `write_frame_nowait` and `_write`."""

    __slots__ = ()

    async def _write(self, frame: Frame) -> None:
        """Writes one frame, and need not let others run."""
        raise NotImplementedError

    def write_frame_nowait(self, frame: Frame) -> None:
        """Writes one frame without waiting."""
        raise NotImplementedError

    def write_frames_nowait(self, frames: Iterable[Frame]) -> int:
        """Writes frames up to the first that cannot be written, and returns how many. Raises if that is the first."""
        written = 0
        for frame in as_batch(frames):
            try:
                self.write_frame_nowait(frame)
            except Exception:
                if written:
                    break
                raise
            written += 1
        return written

    async def write_frame(self, frame: Frame) -> None:
        """As `write_frame_nowait`, after the other tasks of the loop had a turn. When cancelled, nothing was written."""
        await asyncio.sleep(0)
        await self._write(frame)

    async def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes what can be written, in order; then reports what was refused in one InvalidFrameError.

        When cancelled, frames were written in order up to some point. Other errors are those of `write_frame_nowait`
        and end it at once.
        """
        batch = as_batch(frames)
        refused: dict[int, InvalidFrameError] = {}
        for index, frame in enumerate(batch):
            if index % _WRITES_PER_TURN == 0:
                await asyncio.sleep(0)
            try:
                await self._write(frame)
            except InvalidFrameError as error:
                refused[index] = error
            except Exception as error:
                note_end(error, len(batch), range(index, len(batch)), refused)
                raise
        report(refused, len(batch))
