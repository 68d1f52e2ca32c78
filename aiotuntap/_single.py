"""Reading and writing on an interface that has a single queue: the methods of the queue, without naming it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

from ._errors import QueueClosedError
from ._interface import Interface
from ._queue import TuntapQueue
from ._reader import DEFAULT_LIMIT
from ._types import Frame, Owning


class NoQueues(tuple[TuntapQueue, ...]):
    """An empty tuple that explains itself: ``queues[0]`` before opening is a frequent mistake."""

    def __new__(cls, why: Callable[[], Exception]) -> Self:
        return super().__new__(cls)

    def __init__(self, why: Callable[[], Exception]) -> None:
        self._why = why

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return tuple, ()  # a copy has nothing to explain

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ()
        raise IndexError(str(self._why()))


class SingleQueue(Owning):
    """Passes each call on to the only open queue."""

    _interface: Interface
    _queues: list[TuntapQueue]

    def _only(self) -> TuntapQueue:
        """The only open queue.

        Raises:
            RuntimeError: The interface has several queues, or is not open yet.
            QueueClosedError: The interface, or its only queue, was closed by this program.
        """
        if len(self._queues) == 1:
            return self._queues[0]
        if not self._queues:
            raise self._why_none()
        raise RuntimeError(
            f"interface {self._interface.last_name!r} has {len(self._queues)} queues: choose one of 'queues', such as"
            " queues[0], to read from or write to"
        )

    def _why_none(self) -> QueueClosedError | RuntimeError:
        """The error for using a queue while none is open."""
        try:
            self._interface.check_open()
        except (QueueClosedError, RuntimeError) as error:
            return error
        return self._interface.no_queue()

    async def read_frame(self) -> bytes:
        """Waits for the next frame: `TuntapQueue.read_frame` of the only queue.

        Raises:
            RuntimeError: The interface has several queues, is not open yet, or belongs to another thread or event loop.
            QueueClosedError: The interface was closed by this program, before or while this waited.
            DeviceGoneError: The interface was deleted. Frames that were buffered before are returned first.
        """
        return await self._only().read_frame()

    async def read_frames(self, limit: int = DEFAULT_LIMIT) -> list[bytes]:
        """Waits for at least one frame and returns all that are available: `TuntapQueue.read_frames` of the only queue.

        Raises:
            RuntimeError: The interface has several queues, is not open yet, or belongs to another thread or event loop.
            QueueClosedError: The interface was closed by this program, before or while this waited.
            DeviceGoneError: The interface was deleted. Frames that were buffered before are returned first.
            ValueError: *limit* is not a whole number of at least 1.
        """
        return await self._only().read_frames(limit)

    def read_frame_nowait(self) -> bytes:
        """Returns a frame that is available now: `TuntapQueue.read_frame_nowait` of the only queue.

        Raises:
            BlockingIOError: No frame is available, or other tasks wait for it already.
            RuntimeError: The interface has several queues, is not open yet, or belongs to another thread.
            QueueClosedError: The interface was closed by this program.
            DeviceGoneError: The interface was deleted. Frames that were buffered before are returned first.
        """
        return self._only().read_frame_nowait()

    def read_frames_nowait(self, limit: int = DEFAULT_LIMIT) -> list[bytes]:
        """Returns the frames that are available now: `TuntapQueue.read_frames_nowait` of the only queue.

        Raises:
            BlockingIOError: No frame is available, or other tasks wait for it already.
            RuntimeError: The interface has several queues, is not open yet, or belongs to another thread.
            QueueClosedError: The interface was closed by this program.
            DeviceGoneError: The interface was deleted. Frames that were buffered before are returned first.
            ValueError: *limit* is not a whole number of at least 1.
        """
        return self._only().read_frames_nowait(limit)

    def __aiter__(self) -> Self:
        """Yields frames until the interface is closed by this program. Raises DeviceGoneError if it is deleted."""
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._only().read_frame()
        except QueueClosedError:
            raise StopAsyncIteration from None

    async def write_frame(self, frame: Frame) -> None:
        """Writes one frame: `TuntapQueue.write_frame` of the only queue.

        Raises:
            InvalidFrameError: The kernel refuses the frame, or its size is wrong.
            LinkDownError: The interface is down.
            RuntimeError: The interface has several queues, is not open yet, or belongs to another thread or event loop.
            QueueClosedError: The interface was closed by this program.
            DeviceGoneError: The interface was deleted.
            TypeError: It is not a frame.
        """
        await self._only().write_frame(frame)

    async def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes every frame that it can: `TuntapQueue.write_frames` of the only queue.

        Raises:
            InvalidFrameError: Some frames were refused: ``indexes`` says which. All others were written.
            LinkDownError: The interface is down. A note on the exception says which frames were not written.
            RuntimeError: The interface has several queues, is not open yet, or belongs to another thread or event loop.
            QueueClosedError: The interface was closed by this program. A note says which frames were not written.
            DeviceGoneError: The interface was deleted. A note says which frames were not written.
            TypeError: One of them is not a frame; a note says which. Those before it were written.
        """
        await self._only().write_frames(frames)

    def write_frame_nowait(self, frame: Frame) -> None:
        """Writes one frame without waiting: `TuntapQueue.write_frame_nowait` of the only queue.

        Raises:
            BlockingIOError: The send buffer is full; nothing was written.
            InvalidFrameError: The kernel refuses the frame, or its size is wrong.
            LinkDownError: The interface is down.
            RuntimeError: The interface has several queues, is not open yet, or belongs to another thread.
            QueueClosedError: The interface was closed by this program.
            DeviceGoneError: The interface was deleted.
            TypeError: It is not a frame.
        """
        self._only().write_frame_nowait(frame)

    def write_frames_nowait(self, frames: Iterable[Frame]) -> int:
        """Writes frames from the first one on without waiting: `TuntapQueue.write_frames_nowait` of the only queue.

        Returns:
            How many were written.

        Raises:
            InvalidFrameError: The kernel refuses the first frame.
            LinkDownError: The interface is down.
            RuntimeError: The interface has several queues, is not open yet, or belongs to another thread.
            QueueClosedError: The interface was closed by this program.
            DeviceGoneError: The interface was deleted.
            TypeError: The first one is not a frame.
        """
        return self._only().write_frames_nowait(frames)
