"""Two connected streams of frames in memory. They behave like queues of an interface."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from random import Random

from .._batch import size_of
from .._errors import DeviceGoneError, InvalidFrameError, closed
from .._types import Frame
from .frame_by_frame import FrameByFrame
from .wire import Wire

_MAX_FRAME = 65535 + 18


class MemoryStream(FrameByFrame):
    """One end of a `memory_pair`: a `PacketStream` without a descriptor.

    It behaves like a queue of an interface. Frames that are not read are kept up to its capacity, and further ones are
    dropped. After closing this end, its methods raise QueueClosedError. After closing the other end, they raise
    DeviceGoneError, as if the interface was deleted.
    """

    __slots__ = (
        "_bandwidth",
        "_chance",
        "_closed",
        "_latency",
        "_loss",
        "_peer",
        "_ring",
        "_sent_until",
        "_wire",
        "dropped",
        "lost",
    )

    def __init__(self, capacity: int, bandwidth: float | None, latency: float, loss: float, chance: Random) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop, capacity, 0)
        self._peer = self
        self._closed = False
        self._flowing = True
        #: Frames that have arrived and were not read, like the kernel's ring of a queue.
        self._ring: deque[bytes] = deque()
        #: Frames on their way to this end. None stands for the end of the stream.
        self._wire: Wire[bytes | None] = Wire(loop, self._arrive)
        self._bandwidth = bandwidth
        self._latency = latency
        self._loss = loss
        self._chance = chance
        #: When the other end has sent the last bit of its last frame.
        self._sent_until = 0.0
        #: How many frames to this end were dropped because it was full: see ``capacity``.
        self.dropped: int = 0
        #: How many frames to this end were lost: see ``loss``.
        self.lost: int = 0

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        return self._closed

    def write_frame_nowait(self, frame: Frame) -> None:
        """Sends a copy of the frame to the other end, without waiting.

        Raises:
            InvalidFrameError: The frame is empty, or larger than any frame can be.
            QueueClosedError: This end was closed.
            DeviceGoneError: The other end was closed.
            TypeError: *frame* is neither a bytes-like object nor a list or tuple of them.
            RuntimeError: Called from another thread than the one that made the pair.
        """
        self._check_thread()
        size = size_of(frame)
        if self._closed:
            raise closed("this end of the pair")
        if self._peer._closed:
            raise _gone()
        if not 0 < size <= _MAX_FRAME:
            raise InvalidFrameError(f"a frame must have 1 to {_MAX_FRAME} bytes, not {size}")
        self._peer._send(frame, size)

    async def _write(self, frame: Frame) -> None:
        self.write_frame_nowait(frame)

    async def aclose(self) -> None:
        """Closes this end. The other end can still read the frames that were sent, and then gets DeviceGoneError.

        Raises:
            RuntimeError: Called from another thread or event loop than the one that made the pair.
        """
        if self._closed:
            return
        if not self._loop.is_closed():
            self._check_loop()
        self._closed = True
        self._wire.cut()
        self._ring.clear()
        self._buffer.clear()
        self._end(closed("this end of the pair"))
        peer = self._peer
        if not peer._closed:
            peer._wire.send(None)

    async def vanish(self) -> None:
        """Closes this end. `check_packet_stream` calls it on a far end, to check a device that is deleted."""
        await self.aclose()

    def _send(self, frame: Frame, size: int) -> None:
        """Sends a frame of *size* bytes to this end."""
        if len(self._wire) + len(self._ring) + len(self._buffer) >= self._high:
            self.dropped += 1
            return
        seconds = self._latency
        if self._bandwidth is not None:
            now = self._loop.time()
            self._sent_until = max(self._sent_until, now) + 8 * size / self._bandwidth
            seconds += self._sent_until - now
        if self._loss and self._chance.random() < self._loss:
            self.lost += 1
            return
        pieces = frame if isinstance(frame, (list, tuple)) else (frame,)
        self._wire.send(b"".join(map(bytes, pieces)), seconds)

    def _arrive(self, frame: bytes | None) -> None:
        if frame is None:
            self._pull(len(self._ring))
            self._end(_gone())
        else:
            self._ring.append(frame)
            self._more = True
            self._wake_reader()

    def _pull(self, limit: int) -> None:
        ring = self._ring
        self._buffer.extend(ring.popleft() for _ in range(min(limit, len(ring))))
        self._more = bool(ring)

    def _resume(self) -> None:
        """Does nothing: frames arrive all the time."""

    def _wake_reader(self) -> None:
        if self._readers and not self._buffer:
            self._pull(1)
        super()._wake_reader()


def _gone() -> DeviceGoneError:
    return DeviceGoneError(errno.EBADFD, "the other end of the pair was closed")


def memory_pair(
    *, capacity: int = 1000, bandwidth: float | None = None, latency: float = 0.0, loss: float = 0.0, seed: int = 0
) -> tuple[MemoryStream, MemoryStream]:
    """Returns two connected streams: a frame written to one is read from the other. Call it while the event loop runs.

    Each argument applies to each direction separately.

    Args:
        capacity: How many frames each end keeps, including those on the way. Further frames are dropped. A TAP interface
            keeps 1000 by default.
        bandwidth: Bits per second, not counting Ethernet's preamble, checksum and gaps. None means no limit. A frame is
            sent when those before it have been sent.
        latency: How many seconds a frame is on the way after it was sent.
        loss: Probability that a frame is lost, 0 to 1.
        seed: Chooses the frames that are lost. The same seed loses the same frames.

    Raises:
        ValueError: An argument is out of its range.
    """
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1 frame, not {capacity!r}")
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"bandwidth must be over 0 bits per second, or None for no limit, not {bandwidth!r}")
    if not latency >= 0:
        raise ValueError(f"latency must be 0 or more seconds, not {latency!r}")
    if not 0 <= loss <= 1:
        raise ValueError(f"loss must be from 0 to 1, not {loss!r}")
    one, other = (MemoryStream(capacity, bandwidth, latency, loss, Random(f"{seed} {end}")) for end in ("one", "other"))
    one._peer, other._peer = other, one
    return one, other
