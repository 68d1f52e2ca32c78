"""Base class for streams that write a batch frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from .._batch import as_batch, note_end, report
from .._errors import InvalidFrameError
from .._reader import FrameReader
from .._types import Frame

# A batch writes this many frames before other tasks of the loop can run.
_WRITES_PER_TURN = 256


class FrameByFrame(FrameReader[bytes]):
    """The writing methods of a `PacketStream`, based on `write_frame_nowait` and `_write`."""

    __slots__ = ()

    async def _write(self, frame: Frame) -> None:
        """Writes one frame. It need not let other tasks run."""
        raise NotImplementedError

    def write_frame_nowait(self, frame: Frame) -> None:
        """Writes one frame without waiting."""
        raise NotImplementedError

    def write_frames_nowait(self, frames: Iterable[Frame]) -> int:
        """Writes frames until one cannot be written, and returns how many. Raises if the first cannot be written."""
        self._check_thread()
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
        """Lets other tasks run, then writes one frame. When cancelled, the frame was not written.

        Raises:
            InvalidFrameError: The frame is refused.
            LinkDownError: The link is down.
            DeviceGoneError: The device was deleted, or the other end was closed.
            QueueClosedError: The stream was closed here.
            TypeError: *frame* is neither a bytes-like object nor a list or tuple of them.
            RuntimeError: Called from another thread or event loop than the one that made the stream.
        """
        self._check_loop()
        await asyncio.sleep(0)
        await self._write(frame)

    async def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes all frames that it can, in order. When cancelled, frames were written in order up to some point.

        Raises:
            InvalidFrameError: Some frames were refused: ``indexes`` says which. All others were written.
            LinkDownError: The link is down. Writing ended at once; a note on the exception says where.
            DeviceGoneError: The device was deleted, or the other end was closed. A note says where writing ended.
            QueueClosedError: The stream was closed here. A note says where writing ended.
            TypeError: One of *frames* is not a frame. A note says which.
            RuntimeError: Called from another thread or event loop than the one that made the stream.
        """
        self._check_loop()
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
