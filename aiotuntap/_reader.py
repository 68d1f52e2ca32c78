"""The reading half of a stream of frames: a bounded buffer and the tasks that wait for it, first come first served.

It knows no descriptor. A subclass says where frames come from: `_pull` asks the source for more now, `_resume` tells
it that there is room again.

Cancelling loses nothing because a frame stays in the buffer until the very step of the task that returns it: the
future that a reader waits on only says "your turn", and a turn that is not taken is passed on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice
from threading import get_ident
from time import monotonic
from typing import Generic, NoReturn, Self, TypeVar

from ._errors import QueueClosedError
from ._turns import Turn, turns_of
from ._types import Owning

#: A frame: bytes, or with what came along.
T = TypeVar("T")

#: Frames that `read_frames` returns at most unless told otherwise.
DEFAULT_LIMIT = 128

# … and whatever they are told.
_MOST = 4096

#: Frames that are kept in user space unless told otherwise: enough to ride out a burst, few enough for a full buffer of
#: small frames to stay in a processor's cache.
READ_BUFFER = 256

#: Bytes that are kept in user space, however few the frames are: with offloads, a frame can have 64 KiB.
BUFFER_BYTES = 4 << 20


class FrameReader(Owning, Generic[T]):
    """A bounded buffer of frames with a line of readers in front of it."""

    __slots__ = (
        "__weakref__",
        "_batch",
        "_buffer",
        "_error",
        "_flowing",
        "_high",
        "_in_line",
        "_loop",
        "_low",
        "_more",
        "_readers",
        "_receiver",
        "_thread",
        "_turns",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, high: int, low: int) -> None:
        self._loop = loop
        self._thread = get_ident()
        self._turns = turns_of(loop)
        self._high = high
        self._low = low
        self._batch = min(high, DEFAULT_LIMIT)
        self._buffer: deque[T] = deque()
        #: Futures of those who wait, in the order they asked. One leaves only when its task runs again.
        self._readers: deque[Turn] = deque()
        #: Whether the stream waits for its turn among all streams of the loop.
        self._in_line = False
        #: Set once nothing more can come; raised to readers when the buffer is empty.
        self._error: Exception | None = None
        #: Whether the source fills the buffer by itself.
        self._flowing = False
        #: Called by the loop, where a reader would be woken, when there may be frames, and once when nothing more can come.
        self._receiver: Callable[[], object] | None = None
        #: Whether the source may have more frames: it had when it was last asked, or was asked for one only.
        self._more = False

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
            self._line_up()

    def _line_up(self) -> None:
        if not self._in_line and not self._loop.is_closed():
            self._turns.join(self._loop, self._take_turn)
            self._in_line = True

    def _take_turn(self) -> None:
        self._in_line = False
        if self._readers:
            self._wake_now()
        else:
            self._fill()

    def _wake_now(self) -> None:
        """The first reader's task runs before this returns. For callbacks of the loop."""
        if self._readers:
            self._readers[0].give_now()

    def _fill(self) -> None:
        """Nobody waits: a source that is asked for its frames puts some into the buffer."""

    def _end(self, error: Exception) -> None:
        """No more frames will come. Readers get what is buffered, then *error*."""
        self._error = error
        self._more = False
        if self._readers:
            self._readers[0].give()
        if self._receiver is not None and not self._loop.is_closed():
            self._loop.call_soon(self._receiver)

    def _wrong_caller(self) -> NoReturn:
        """Called from a thread that is not the loop's, or from another loop."""
        raise_wrong_caller(self._loop, self._thread, f"a {type(self).__name__}")

    # -- for readers ---------------------------------------------------------------------------------------------------

    async def read_frame(self) -> T:
        """Waits for the next frame and returns it: a whole one, headers included as the interface was opened.

        Several tasks may read one queue; they are served in the order they asked, each frame to one of them.
        Cancelling loses no frame.

        Raises:
            QueueClosedError: The queue was closed here, before or meanwhile.
            DeviceGoneError: The interface is gone; raised after the last frame that had been read from it.
            RuntimeError: Called from another thread or event loop than the one that the queue belongs to.
        """
        if get_ident() != self._thread:
            self._wrong_caller()
        if self._readers or not self._buffer:
            await self._wait_frames(self._batch)
        if not self._flowing:
            self._make_room(1)
        frame = self._buffer.popleft()
        if self._readers:
            self._wake_reader()
        return frame

    async def read_frames(self, limit: int = DEFAULT_LIMIT) -> list[T]:
        """Waits for at least one frame and returns all that are there, in order, *limit* at most.

        This is the fast way: what one frame costs on top of the system call falls to nearly nothing. With offloads, a
        batch also ends when it has 256 KiB. Cancelling loses no frame. A *limit* over 4096 is one of 4096.

        Raises:
            QueueClosedError: The queue was closed here, before or meanwhile.
            DeviceGoneError: The interface is gone; raised after the last frame that had been read from it.
            RuntimeError: Called from another thread or event loop than the one that the queue belongs to.
            ValueError: *limit* is not a whole number of at least 1.
        """
        limit = check_limit(limit)
        if get_ident() != self._thread:
            self._wrong_caller()
        is_asked = False
        if self._readers or not self._buffer:
            is_asked = await self._wait_frames(limit)
        return self._take(limit, is_asked)

    def read_frame_nowait(self) -> T:
        """Returns a frame that is there already, in the buffer or in the kernel.

        Raises:
            BlockingIOError: There is none, or other tasks are waiting for it already.
            QueueClosedError: The queue was closed here.
            DeviceGoneError: The interface is gone; raised after the last frame that had been read from it.
            RuntimeError: Called from another thread than the one that the queue belongs to.
        """
        self._ask(1)
        if not self._flowing:
            self._make_room(1)
        return self._buffer.popleft()

    def read_frames_nowait(self, limit: int = DEFAULT_LIMIT) -> list[T]:
        """Returns the frames that are there already, in the buffer or in the kernel: at least one, *limit* at most.

        Raises:
            BlockingIOError: There is none, or other tasks are waiting for it already.
            QueueClosedError: The queue was closed here.
            DeviceGoneError: The interface is gone; raised after the last frame that had been read from it.
            RuntimeError: Called from another thread than the one that the queue belongs to.
            ValueError: *limit* is not a whole number of at least 1.
        """
        limit = check_limit(limit)
        return self._take(limit, self._ask(limit))

    def __aiter__(self) -> Self:
        """Frames as they come, until the queue is closed here. Raises DeviceGoneError when the interface goes away."""
        return self

    async def __anext__(self) -> T:
        try:
            return await self.read_frame()
        except QueueClosedError:
            raise StopAsyncIteration from None

    def _take(self, limit: int, is_asked: bool) -> list[T]:
        """Up to *limit* frames out of the buffer, which has one at least, and of the source, unless that *is_asked* already."""
        buffer = self._buffer
        if self._more and not is_asked and len(buffer) < limit:
            try:
                self._pull(limit - len(buffer))
            except BaseException:  # others wait for what is in the buffer
                self._wake_reader()
                raise
        if not self._flowing:
            self._make_room(limit)
        if len(buffer) <= limit:
            frames = list(buffer)
            buffer.clear()
        else:
            frames = list(islice(buffer, limit))  # before they leave the buffer: there may be no memory for the list
            for _ in frames:
                buffer.popleft()
        if self._readers:
            self._wake_reader()
        return frames

    def _make_room(self, count: int) -> None:
        """Lets frames flow again if there will be room. Before they leave the buffer, since it can fail."""
        if len(self._buffer) - count <= self._low:
            try:
                self._resume()
            except BaseException:
                self._wake_reader()
                raise

    def _ask(self, limit: int) -> bool:
        """Makes sure that the buffer is not empty, without waiting, or raises. Returns whether it asked the source."""
        if get_ident() != self._thread:
            self._wrong_caller()
        is_asked = not self._buffer and not self._readers and self._error is None
        if is_asked:
            self._pull(limit)
        if not self._buffer and self._error is not None:
            raise fresh(self._error)
        if self._readers or not self._buffer:
            raise BlockingIOError("no frame to read now")
        return is_asked

    async def _wait_frames(self, wanted: int) -> bool:
        """Returns when the buffer is not empty and everyone who asked earlier has been served: whether it asked the source.

        A source that may have more is asked directly, *wanted* frames at a time, as long as the slice of time lasts: a
        callback and a task switch cost as much as ten frames.
        """
        if asyncio.get_running_loop() is not self._loop:
            self._wrong_caller()
        first = not self._readers
        if first and self._more and monotonic() < self._turns.until:
            self._pull(wanted)
            if self._buffer:
                return True
        if first and self._error is not None:
            raise fresh(self._error)
        turn = Turn(loop=self._loop)
        self._readers.append(turn)
        try:
            if first and self._more:
                self._line_up()
            if not self._flowing:
                self._resume()
            while True:
                await turn
                is_asked = not self._buffer and self._more
                if is_asked:
                    self._pull(wanted)
                if self._buffer or self._error is not None:
                    break
                turn = self._readers[0] = Turn(loop=self._loop)
        except BaseException:  # cancelled, the coroutine is closed, or no memory: it must not stay in the line
            self._readers.remove(turn)
            self._wake_reader()
            raise
        self._readers.popleft()
        if not self._buffer:
            self._wake_reader()
            raise fresh(self._error)
        return is_asked


def check_limit(limit: int) -> int:
    """A limit on frames that keeps others of the loop from waiting for long."""
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit must be a whole number of at least 1, not {limit!r}")
    return min(limit, _MOST)


def parse_read_buffer(read_buffer: int | tuple[int, int]) -> tuple[int, int]:
    """The number of frames at which reading stops, and that at which it resumes."""
    match read_buffer:
        case bool():
            pass
        case int(high) if high > 0:
            return high, high // 4
        case (int(high), int(low)) if 0 <= low < high:
            return high, low
    raise ValueError(f"read_buffer {read_buffer!r}: frames to keep, or (high, low) with 0 <= low < high")


def raise_wrong_caller(loop: asyncio.AbstractEventLoop, thread: int, what: str) -> NoReturn:
    """Raises the RuntimeError that names where something belongs and where it was called."""
    try:
        running: object = asyncio.get_running_loop()
    except RuntimeError:
        running = "no event loop"
    raise RuntimeError(
        f"{what} belongs to {loop!r} in thread {thread}, and was called from {running!r} in thread {get_ident()}: use"
        " loop.call_soon_threadsafe or asyncio.run_coroutine_threadsafe from elsewhere"
    )


def fresh(error: Exception | None) -> Exception:
    """A new exception like *error*: raising one object again and again would pile up its traceback."""
    assert error is not None
    return type(error)(*error.args)
