"""The reading half of a stream of frames: a bounded buffer and the tasks that wait for it, first come first served.

It knows no descriptor. A subclass says where frames come from: `_pull` asks the source for more now, `_resume` tells
it that there is room again.

Cancelling loses nothing because a frame stays in the buffer until the very step of the task that returns it: the
future that a reader waits on only says "your turn", and a turn that is not taken is passed on.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, Self

from ._errors import QueueClosedError

#: Frames that `read_frames` returns at most unless told otherwise.
DEFAULT_LIMIT = 128

# Times that readers may go to the source by themselves before the other tasks of the loop get a turn. Each time brings
# 128 frames or so: about a millisecond of work for a forwarder.
_PULLS_PER_TURN = 4


class Turn(asyncio.Future[None]):
    """What one reader waits on. Unlike any future, it can resume its task without another trip around the loop.

    When a future gets its result, the loop schedules the task for its next iteration and polls once more before that:
    a fifth of the time from a frame's arrival to its answer. A callback of the loop, in which no task is running, may
    run the one that waits directly instead. So the task's own callback is kept here and not in the future.
    """

    _callback: Callable[[Any], object] | None = None
    _context: Context | None = None
    #: The reader has had its share, and others of the loop go first: no frame gives it its turn earlier.
    later = False

    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: Context | None = None) -> None:
        self._callback = fn
        self._context = context
        if self.done():
            self._schedule()

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._schedule()
        return cancelled

    def give(self) -> None:
        """The task runs at the loop's next opportunity."""
        if not self.done():
            self.set_result(None)
            self._schedule()

    def give_now(self) -> None:
        """The task runs before this returns. For callbacks of the loop only, never from within a task."""
        if self.done():
            return
        self.set_result(None)
        if self._callback is not None and self._context is not None:
            self._context.run(self._callback, self)
        else:
            self._schedule()

    def _schedule(self) -> None:
        if self._callback is not None and not self.get_loop().is_closed():
            self.get_loop().call_soon(self._callback, self, context=self._context)


class FrameReader:
    """A bounded buffer of frames with a line of readers in front of it."""

    __slots__ = (
        "__weakref__",
        "_batch",
        "_buffer",
        "_error",
        "_flowing",
        "_high",
        "_loop",
        "_low",
        "_more",
        "_pulls",
        "_readers",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, high: int, low: int) -> None:
        self._loop = loop
        self._high = high
        self._low = low
        self._batch = min(high, DEFAULT_LIMIT)
        self._buffer: deque[bytes] = deque()
        #: Futures of those who wait, in the order they asked. One leaves only when its task runs again.
        self._readers: deque[Turn] = deque()
        #: Set once nothing more can come; raised to readers when the buffer is empty.
        self._error: Exception | None = None
        #: Whether the source fills the buffer by itself.
        self._flowing = False
        #: Whether the source may have more frames: it had when it was last asked, or was asked for one only.
        self._more = False
        self._pulls = 0

    # -- for the source ------------------------------------------------------------------------------------------------

    def _pull(self, limit: int) -> None:
        """Takes up to *limit* frames from the source into the buffer, without waiting."""
        raise NotImplementedError

    def _resume(self) -> None:
        """There is room again: let frames flow."""
        raise NotImplementedError

    def _wake_reader(self) -> None:
        """Gives the turn to whoever asked first, if there is something to take."""
        if self._readers and (self._buffer or self._error is not None):
            self._readers[0].give()

    def _end(self, error: Exception) -> None:
        """No more frames will come. Readers get what is buffered, then *error*."""
        self._error = error
        self._more = False
        self._wake_reader()

    # -- for readers ---------------------------------------------------------------------------------------------------

    async def read_frame(self) -> bytes:
        """Waits for the next frame and returns it: a whole one, headers included as the interface was opened.

        Several tasks may read one queue; they are served in the order they asked, each frame to one of them.
        Cancelling loses no frame.

        Raises:
            QueueClosedError: The queue was closed here, before or meanwhile.
            DeviceGoneError: The interface is gone; raised after the last frame that had been read from it.
        """
        if self._readers or not self._buffer:
            await self._wait_frames(self._batch)
        frame = self._buffer.popleft()
        if not self._flowing and len(self._buffer) <= self._low:
            self._resume()
        if self._readers:
            self._wake_reader()
        return frame

    async def read_frames(self, limit: int = DEFAULT_LIMIT) -> list[bytes]:
        """Waits for at least one frame and returns all that are there, in order, *limit* at most.

        This is the fast way: what one frame costs on top of the system call falls to nearly nothing. Cancelling loses
        no frame; errors are those of `read_frame`.
        """
        if not isinstance(limit, int) or limit < 1:
            raise ValueError(f"limit {limit!r}: a whole number, at least 1")
        limit = min(limit, sys.maxsize)
        if self._readers or not self._buffer:
            await self._wait_frames(limit)
        buffer = self._buffer
        if self._more and len(buffer) < limit:
            self._pull(limit - len(buffer))
        if len(buffer) <= limit:
            frames = list(buffer)
            buffer.clear()
        else:
            frames = [buffer.popleft() for _ in range(limit)]
        if not self._flowing and len(buffer) <= self._low:
            self._resume()
        if self._readers:
            self._wake_reader()
        return frames

    def read_frame_nowait(self) -> bytes:
        """Returns a frame that is there already, in the buffer or in the kernel.

        Raises:
            BlockingIOError: There is none, or other tasks are waiting for it already.
            QueueClosedError, DeviceGoneError: As for `read_frame`.
        """
        if not self._buffer and not self._readers and self._error is None:
            self._pull(1)
        if self._readers or not self._buffer:
            if self._error is not None:
                raise fresh(self._error)
            raise BlockingIOError("no frame to read now")
        frame = self._buffer.popleft()
        if not self._flowing and len(self._buffer) <= self._low:
            self._resume()
        return frame

    def __aiter__(self) -> Self:
        """Frames as they come, until the queue is closed here. Raises DeviceGoneError when the interface goes away."""
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.read_frame()
        except QueueClosedError:
            raise StopAsyncIteration from None

    async def _wait_frames(self, wanted: int) -> None:
        """Returns when the buffer is not empty and everyone who asked earlier has been served.

        A source that may have more is asked directly, *wanted* frames at a time: a callback and a task switch cost as
        much as ten frames. Every few times the loop goes round first, so that others get to run.
        """
        first = not self._readers
        if first and self._more and self._pulls < _PULLS_PER_TURN:
            self._pulls += 1
            self._pull(wanted)
            if self._buffer:
                return
        if first and self._error is not None:
            raise fresh(self._error)
        turn = Turn(loop=self._loop)
        self._readers.append(turn)
        if first and self._more:
            self._pulls = 0
            turn.later = True
            self._loop.call_soon(turn.give_now)
        while True:
            try:
                await turn
            except BaseException:  # cancelled, or the coroutine is closed: it must not stay in the line
                self._readers.remove(turn)
                self._wake_reader()
                raise
            if not self._buffer and self._more:
                self._pull(wanted)
            if self._buffer or self._error is not None:
                break
            turn = self._readers[0] = Turn(loop=self._loop)
        self._readers.popleft()
        if not self._buffer:
            self._wake_reader()
            raise fresh(self._error)


def fresh(error: Exception | None) -> Exception:
    """A new exception like *error*: raising one object again and again would pile up its traceback."""
    assert error is not None
    return type(error)(*error.args)
