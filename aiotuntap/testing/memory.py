"""Two joined streams of frames in memory, which behave like queues of an interface."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Iterable

from .._batch import as_batch, note_end, report, size_of
from .._errors import DeviceGoneError, InvalidFrameError, QueueClosedError
from .._reader import FrameReader
from .._types import Frame

_MAX_FRAME = 65535 + 18

# Frames that a batch may write before the other tasks of the loop get their turn.
_WRITES_PER_TURN = 256


class MemoryStream(FrameReader[bytes]):
    """One end of a `memory_pair`: a `PacketStream` without a descriptor.

    It behaves like a queue of an interface: frames that nobody reads pile up to its capacity and are then dropped,
    closing here gives QueueClosedError, and the other end being closed is to this one what a deleted interface is.
    """

    __slots__ = ("_closed", "_peer", "_ring", "dropped")

    def __init__(self, capacity: int) -> None:
        super().__init__(asyncio.get_running_loop(), capacity, 0)
        self._peer = self
        self._closed = False
        self._flowing = True
        #: What the kernel's ring is to a queue: frames that no reader asked for yet.
        self._ring: deque[bytes] = deque()
        #: Frames that arrived here while the buffer was full.
        self.dropped = 0

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        return self._closed

    def write_frame_nowait(self, frame: Frame) -> None:
        """Hands a copy of the frame to the other end.

        Raises:
            InvalidFrameError: It is empty, or larger than any frame can be.
            QueueClosedError: This end was closed.
            DeviceGoneError: The other end was closed.
            TypeError: It is not a bytes-like object, nor a list or tuple of them.
        """
        size = size_of(frame)
        if self._closed:
            raise QueueClosedError("this end of the pair is closed")
        peer = self._peer
        if peer._closed:
            raise DeviceGoneError(errno.EBADFD, "the other end of the pair was closed")
        if not 0 < size <= _MAX_FRAME:
            raise InvalidFrameError(f"a frame of {size} bytes: from 1 to {_MAX_FRAME}")
        if len(peer._ring) + len(peer._buffer) >= peer._high:
            peer.dropped += 1
            return
        pieces = frame if isinstance(frame, (list, tuple)) else (frame,)
        peer._ring.append(b"".join(map(bytes, pieces)))
        peer._more = True
        peer._wake_reader()

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
        self.write_frame_nowait(frame)

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
                self.write_frame_nowait(frame)
            except InvalidFrameError as error:
                refused[index] = error
            except Exception as error:
                note_end(error, len(batch), range(index, len(batch)), refused)
                raise
        report(refused, len(batch))

    async def aclose(self) -> None:
        """Closes this end. The other one can still read what it was sent, and then gets DeviceGoneError."""
        if self._closed:
            return
        self._closed = True
        self._ring.clear()
        self._buffer.clear()
        self._end(QueueClosedError("this end of the pair is closed"))
        peer = self._peer
        if not peer._closed:
            peer._pull(len(peer._ring))
            peer._end(DeviceGoneError(errno.EBADFD, "the other end of the pair was closed"))

    async def vanish(self) -> None:
        """Closes this end, as a far end of `check_packet_stream` that takes the device away."""
        await self.aclose()

    def _pull(self, limit: int) -> None:
        ring = self._ring
        self._buffer.extend(ring.popleft() for _ in range(min(limit, len(ring))))
        self._more = bool(ring)

    def _resume(self) -> None:
        """Frames never stop."""

    def _wake_reader(self) -> None:
        if self._readers and not self._buffer:
            self._pull(1)
        super()._wake_reader()


def memory_pair(*, capacity: int = 1000) -> tuple[MemoryStream, MemoryStream]:
    """Two streams: what is written to one is read from the other. Call it while the event loop runs.

    Args:
        capacity: Frames that each end keeps until they are read; a TAP interface keeps 1000 by default.
    """
    one, other = MemoryStream(capacity), MemoryStream(capacity)
    one._peer, other._peer = other, one
    return one, other
