"""The reading half of a stream of frames: a bounded buffer, and the tasks that wait for it, first come first served.

It does not use a descriptor itself. A subclass provides the frames: `_pull` takes more from the source now, and
`_resume` tells the source that there is room again.

Cancelling loses no frame, because a frame stays in the buffer until the step of the task that returns it. The future
that a reader waits on only says that it is this reader's turn. A turn that is not used goes to the next reader.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from itertools import islice
from threading import get_ident
from time import monotonic
from typing import Generic, NoReturn, Self, TypeVar

from ._errors import QueueClosedError
from ._turns import Turn, turns_of
from ._types import Owning

#: A frame: bytes, or bytes with an address.
T = TypeVar("T")

#: Frames that `read_frames` returns at most unless told otherwise.
DEFAULT_LIMIT = 128

# The most that `read_frames` returns, whatever limit it is given.
_MOST = 4096

#: Frames that are kept in user space unless told otherwise: enough for a burst, and few enough that a full buffer of
#: small frames stays in a processor's cache.
READ_BUFFER = 256

#: Bytes at which the buffer is full, however few the frames are: with offloads, a frame can have 64 KiB.
BUFFER_BYTES = 4 << 20


class FrameReader(Owning, Generic[T]):
    """A bounded buffer of frames, and the readers that wait for them in line."""

    __slots__ = (
        "__weakref__",
        "_batch",
        "_buffer",
        "_error",
        "_flowing",
        "_has_waited",
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
        #: Futures of the tasks that wait, in the order they asked. One is removed only when its task runs again.
        self._readers: deque[Turn] = deque()
        #: Whether the stream waits for its turn among all streams of the loop (`_turns`).
        self._in_line = False
        #: Set when no more frames can come; raised by reads when the buffer is empty.
        self._error: Exception | None = None
        #: Whether the source fills the buffer by itself.
        self._flowing = False
        #: Called by the loop instead of waking a reader: when there may be frames, and once when no more can come.
        self._receiver: Callable[[], object] | None = None
        #: Whether the source may have more frames: it had more when it was last asked, or was asked for one only.
        self._more = False
        #: Whether `_on_first_wait` was called.
        self._has_waited = False

    # -- for the source ------------------------------------------------------------------------------------------------

    def _pull(self, limit: int) -> None:
        """Takes up to *limit* frames from the source into the buffer, without waiting."""
        raise NotImplementedError

    def _resume(self) -> None:
        """There is room again: let frames flow."""
        raise NotImplementedError

    def _wake_reader(self) -> None:
        """Gives the turn to the reader that asked first, if there is something to read."""
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
        """No reader waits: puts frames from the source into the buffer."""

    def _end(self, error: Exception) -> None:
        """No more frames will come. Readers get what is buffered, then *error*."""
        self._error = error
        self._more = False
        if self._readers:
            self._readers[0].give()
        if self._receiver is not None and not self._loop.is_closed():
            self._loop.call_soon(self._receiver)

    def _on_first_wait(self) -> None:
        """A reader waits for the first time: no frame was available."""

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            self._wrong_caller()

    def _check_thread(self) -> None:
        if get_ident() != self._thread:
            self._wrong_caller()

    def _wrong_caller(self) -> NoReturn:
        """Raises the RuntimeError for a call from another thread or event loop."""
        raise_wrong_caller(self._loop, self._thread, f"a {type(self).__name__}")

    # -- for readers ---------------------------------------------------------------------------------------------------

    async def read_frame(self) -> T:
        """Waits for the next frame and returns it, with the headers that the interface was opened with.

        Several tasks may read one queue: they are served in the order they asked, and each frame goes to one of them.
        Cancelling loses no frame.

        Raises:
            QueueClosedError: The queue was closed by this program, before or while this waited.
            DeviceGoneError: The interface was deleted. Frames that were buffered before are returned first.
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
        """Waits for at least one frame and returns all that are available, in order, *limit* at most.

        This is the fast way to read: it costs little more than one system call for each frame. With offloads, a batch
        also ends when it has 256 KiB. Cancelling loses no frame. A *limit* of more than 4096 means 4096.

        Raises:
            QueueClosedError: The queue was closed by this program, before or while this waited.
            DeviceGoneError: The interface was deleted. Frames that were buffered before are returned first.
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
        """Returns a frame that is available now, in the buffer or in the kernel.

        Raises:
            BlockingIOError: No frame is available, or other tasks wait for it already.
            QueueClosedError: The queue was closed by this program.
            DeviceGoneError: The interface was deleted. Frames that were buffered before are returned first.
            RuntimeError: Called from another thread than the one that the queue belongs to.
        """
        self._ask(1)
        if not self._flowing:
            self._make_room(1)
        return self._buffer.popleft()

    def read_frames_nowait(self, limit: int = DEFAULT_LIMIT) -> list[T]:
        """Returns the frames that are available now, in the buffer or in the kernel: at least one, *limit* at most.

        Raises:
            BlockingIOError: No frame is available, or other tasks wait for it already.
            QueueClosedError: The queue was closed by this program.
            DeviceGoneError: The interface was deleted. Frames that were buffered before are returned first.
            RuntimeError: Called from another thread than the one that the queue belongs to.
            ValueError: *limit* is not a whole number of at least 1.
        """
        limit = check_limit(limit)
        return self._take(limit, self._ask(limit))

    def __aiter__(self) -> Self:
        """Yields frames until the queue is closed by this program. Raises DeviceGoneError if the interface is deleted."""
        return self

    async def __anext__(self) -> T:
        try:
            return await self.read_frame()
        except QueueClosedError:
            raise StopAsyncIteration from None

    def _take(self, limit: int, is_asked: bool) -> list[T]:
        """Takes up to *limit* frames: from the buffer, which has at least one, and then, unless *is_asked*, from the source."""
        buffer = self._buffer
        if self._more and not is_asked and len(buffer) < limit:
            try:
                self._pull(limit - len(buffer))
            except BaseException:  # other readers can have what is in the buffer
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
        """Lets frames flow again if there will be room. Call it before they leave the buffer, since it can fail."""
        if len(self._buffer) - count <= self._low:
            try:
                self._resume()
            except BaseException:
                self._wake_reader()
                raise

    def _ask(self, limit: int) -> bool:
        """Makes sure, without waiting, that the buffer is not empty, or raises. Returns whether it asked the source."""
        if get_ident() != self._thread:
            self._wrong_caller()
        is_asked = not self._buffer and not self._readers and self._error is None
        if is_asked:
            self._pull(limit)
        if not self._buffer and self._error is not None:
            raise fresh(self._error)
        if self._readers or not self._buffer:
            raise BlockingIOError(errno.EAGAIN, "no frame is available now")
        return is_asked

    async def _wait_frames(self, wanted: int) -> bool:
        """Waits until the buffer is not empty and all earlier readers were served. Returns whether it asked the source.

        A source that may have more is asked directly, for *wanted* frames at a time, as long as the time slice lasts: a
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
            if not self._has_waited:
                self._has_waited = True
                self._on_first_wait()
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
        except BaseException:  # cancelled, coroutine closed, or no memory: it must not stay in the line
            self._readers.remove(turn)
            self._wake_reader()
            raise
        self._readers.popleft()
        if not self._buffer:
            self._wake_reader()
            raise fresh(self._error)
        return is_asked


def check_limit(limit: int) -> int:
    """The limit to use for *limit*: not so many frames that other tasks of the loop would wait for long."""
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit must be a whole number of at least 1, not {limit!r}")
    return min(limit, _MOST)


def parse_read_buffer(read_buffer: int | tuple[int, int]) -> tuple[int, int]:
    """The number of frames at which reading stops, and the number at which it resumes."""
    match read_buffer:
        case bool():
            pass
        case int(high) if high > 0:
            return high, high // 4
        case (int(high), int(low)) if 0 <= low < high:
            return high, low
    raise ValueError(
        f"read_buffer must be a number of frames, at least 1, or (high, low) with 0 <= low < high, not {read_buffer!r}"
    )


def raise_wrong_caller(loop: asyncio.AbstractEventLoop, thread: int, what: str) -> NoReturn:
    """Raises the RuntimeError that says to which loop and thread something belongs, and from which it was called."""
    try:
        caller = repr(asyncio.get_running_loop())
    except RuntimeError:
        caller = "no event loop"
    if loop.is_closed():
        fix = "that loop is closed; open and use it in one loop, as inside one asyncio.run()"
    else:
        fix = "from elsewhere, use asyncio.run_coroutine_threadsafe() or loop.call_soon_threadsafe()"
    raise RuntimeError(
        f"{what} belongs to {loop!r} in thread {thread}, and was called from {caller} in thread {get_ident()}: {fix}"
    )


def fresh(error: Exception | None) -> Exception:
    """A new exception like *error*: raising one object again and again would make its traceback longer each time."""
    assert error is not None
    return type(error)(*error.args)
