"""A stream of frames over one non-blocking descriptor that the event loop watches.

Reading. The loop watches the descriptor (level-triggered). One callback moves up to `BATCH` frames into the buffer, or
wakes one reader, which then reads on by itself. When the buffer is full, the descriptor is unregistered, and from then
on the kernel's own queue fills and then drops. The callback is registered with a weak reference, so that the loop does
not keep a forgotten stream alive.

Writing. The loop is asked to watch for writability only after EAGAIN, because a descriptor is nearly always writable
and the loop would call back without end. There is also a timer: a TUN/TAP descriptor that is watched for writability
is not woken when its interface is deleted or down, nor if the send buffer is smaller than two frames.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from threading import get_ident
from typing import cast

from . import _engine
from ._batch import as_batch, note_end, report, size_of
from ._errors import InvalidFrameError
from ._frames import LOOK
from ._reader import BUFFER_BYTES, FrameReader, T
from ._types import Frame

#: Frames that one callback moves into the buffer while nobody waits for them.
BATCH = 64

# Seconds after which a writer that waits for room tries again without being woken.
_RECHECK = 0.05


class DescriptorStream(FrameReader[T]):
    """The common part of a queue of an interface and a UDP socket.

    A subclass reads and writes frames (`_pull`, `_pull_one`, `_write_batch`, `_write_closely`) and knows what an
    ``errno`` means (`_read_failed`, `_failure`). When it is ready for callbacks, it registers the descriptor with
    `_resume`.
    """

    __slots__ = (
        "_closed",
        "_engine",
        "_fd",
        "_frames_dropped",
        "_frames_read",
        "_frames_refused",
        "_frames_weighed",
        "_frames_written",
        "_max_frame",
        "_pid",
        "_poll",
        "_weight",
        "_writers",
    )

    #: Size in bytes of the smallest frame that can be written.
    _smallest = 1

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, max_frame: int, read_buffer: tuple[int, int]) -> None:
        super().__init__(loop, *read_buffer)
        self._engine = _engine.engine
        #: -1 once closed.
        self._fd = fd
        self._max_frame = max_frame
        self._pid = os.getpid()
        self._closed = False
        #: On uvloop: tells whether the descriptor reports an error, which that loop would report only once.
        self._poll: select.poll | None = None
        self._writers: deque[asyncio.Future[None]] = deque()
        self._frames_read = self._frames_written = self._frames_refused = self._frames_dropped = 0
        #: As of the last look at the bytes in the buffer: `_frames_read`, and as many bytes at least.
        self._frames_weighed = self._weight = 0

    def fileno(self) -> int:
        """The descriptor, or -1 when closed. It belongs to this stream: do not register, read, write or close it."""
        return self._fd

    # -- for a subclass ------------------------------------------------------------------------------------------------

    def _pull_one(self) -> None:
        """Takes one frame from the source, if there is one. It may take more if they cannot be taken one by one."""
        raise NotImplementedError

    def _read_failed(self, number: int) -> None:
        """Reading failed with this ``errno``, which is neither EAGAIN nor ENOMEM."""
        raise NotImplementedError

    def _write_batch(self, frames: Sequence[Frame], start: int, to: bytes | None) -> tuple[int, int]:
        """Writes frames from number *start* on, and returns what `_frames.write_batch` returns.

        Args:
            to: The address to send to, for a stream that has several.
        """
        raise NotImplementedError

    def _write_closely(self, number: int, frame: Frame, to: bytes | None = None) -> int:
        """Writes a frame that the engine did not write, for the reason *number*, if it can. Returns 0 or the ``errno``.

        Raises:
            TypeError: It is not a frame.
            InvalidFrameError: Its size is wrong.
            RuntimeError: Called from another thread than the one that the stream belongs to.
        """
        raise NotImplementedError

    def _failure(self, number: int) -> Exception:
        """The exception for an ``errno`` of this stream."""
        raise NotImplementedError

    def _refusal(self, number: int) -> Exception:
        """The exception for the ``errno`` of a write, except EAGAIN. Counts the frame if it was refused."""
        error = self._failure(number)
        if isinstance(error, InvalidFrameError):
            self._frames_refused += 1
        return error

    # -- reading: the source of a FrameReader --------------------------------------------------------------------------

    def _keep(self, frames: list[T], number: int | BaseException) -> None:
        """Buffers the frames that were read, and then handles what stopped reading: see `_frames.read_batch`."""
        self._more = True
        buffered = len(self._buffer)
        try:
            self._buffer += frames
        finally:
            taken = len(self._buffer) - buffered
            self._frames_read += taken
            self._frames_dropped += len(frames) - taken  # no memory to keep them
        if number:
            if number == errno.EAGAIN:
                self._more = False
                if self._poll is not None and self._flowing and self._poll.poll(0):
                    self._watch_again()
            elif isinstance(number, BaseException):
                raise number
            elif number == errno.ENOMEM:
                if not frames:
                    raise MemoryError
            else:
                self._read_failed(number)

    def _on_readable(self) -> None:
        if self._in_line:
            self._turns.call(self._loop)
            return
        if not self._turns.begin():
            self._more = True  # so that the reader takes what is there when it has its turn
            self._line_up()
            return
        try:
            if self._readers:
                self._answer_reader()
            else:
                self._fill()
        finally:
            self._turns.pause()

    def _answer_reader(self) -> None:
        """Gives one frame to the reader that waits, at once: to find out that there is no other would take another read."""
        if not self._buffer:
            try:
                self._pull_one()
            except MemoryError:  # the reader gets it, when it tries by itself
                self._more = True
            if not self._buffer and not self._more and self._error is None:
                return
        self._wake_now()

    def _fill(self) -> None:
        if self._receiver is not None:
            self._receiver()
            return
        before = len(self._buffer)
        room = self._high - before
        try:
            if room > 0 and self._error is None:
                self._pull(min(room, BATCH))
        except MemoryError:  # the next reader gets it, and until then the frames are safe in the kernel
            self._more = True
            self._pause()
        # What one callback reads into an empty buffer has less than BUFFER_BYTES, and need not be weighed.
        if len(self._buffer) >= self._high or (before and self._is_heavy()):
            self._pause()

    def _is_heavy(self) -> bool:
        """Whether the buffer has as many bytes as it may have."""
        buffer, count = self._buffer, len(self._buffer)
        if count * self._max_frame < BUFFER_BYTES:
            return False
        # Each frame is weighed once, and all that are left only where the sum, which those taken are still part of,
        # reaches the limit: to weigh a long buffer for each batch would take longer than reading it.
        new = self._frames_read - self._frames_weighed
        self._frames_weighed = self._frames_read
        if new < count:
            self._weight += self._weigh(islice(reversed(buffer), new))
        if new >= count or self._weight >= BUFFER_BYTES:
            self._weight = self._weigh(buffer)
        return self._weight >= BUFFER_BYTES

    def _weigh(self, elements: Iterable[T]) -> int:
        """Bytes of elements of the buffer, if each is a frame."""
        return sum(map(len, cast("Iterable[bytes]", elements)))

    def _watch_again(self) -> None:
        """Registers again after the descriptor has reported an error: libuv, which uvloop uses, then stops watching it."""
        if self._flowing:
            self._pause()
            self._resume()

    def _pause(self) -> None:
        if self._flowing:
            self._flowing = False
            if self._is_own():
                self._loop.remove_reader(self._fd)

    def _resume(self) -> None:
        if not self._flowing and self._error is None:
            if self._receiver is None:
                self._loop.add_reader(self._fd, _on_readable, weakref.ref(self))
            else:  # it keeps the stream alive as long as the loop runs
                self._loop.add_reader(self._fd, self._on_readable)
            self._flowing = True

    # -- writing -------------------------------------------------------------------------------------------------------

    def write_frame_nowait(self, frame: Frame) -> None:
        """Writes one frame.

        Args:
            frame: A bytes-like object, or a list or tuple of them that together are one frame.

        Raises:
            BlockingIOError: The send buffer is full; nothing was written.
            InvalidFrameError: The kernel refuses the frame, or its size is wrong.
            LinkDownError: The interface is down, or, for UDP, there is no route.
            QueueClosedError: The stream was closed by this program.
            DeviceGoneError: The interface was deleted.
            RuntimeError: Called from another thread than the one that the stream belongs to.
            TypeError: It is not a frame.
        """
        number = self._engine.write_one(self._fd, self._max_frame, self._thread, frame)
        if number and (number := self._write_closely(number, frame)):
            if number == errno.EAGAIN:
                raise BlockingIOError(number, "the send buffer is full: the frame was not written")
            raise self._refusal(number)
        self._frames_written += 1

    async def write_frame(self, frame: Frame) -> None:
        """Writes one frame. Waits while the send buffer is full.

        When cancelled, the frame was not written.

        Args:
            frame: A bytes-like object, or a list or tuple of them that together are one frame.

        Raises:
            InvalidFrameError: The kernel refuses the frame, or its size is wrong.
            LinkDownError: The interface is down, or, for UDP, there is no route.
            QueueClosedError: The stream was closed by this program.
            DeviceGoneError: The interface was deleted.
            RuntimeError: Called from another thread or event loop than the one that the stream belongs to.
            TypeError: It is not a frame.
        """
        turns = self._turns
        turns.credit = credit = turns.credit - 1
        if credit < 0:
            await self._more_credit()
        write_one = self._engine.write_one
        while number := write_one(self._fd, self._max_frame, self._thread, frame):
            if not (number := self._write_closely(number, frame)):
                break
            if number != errno.EAGAIN:
                raise self._refusal(number)
            await self._wait_writable()
        self._frames_written += 1

    async def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes every frame that it can, in order.

        Frames that the kernel refuses are skipped, and reported after the others were written. When cancelled, the
        frames up to some point were written, each of them whole, and those behind it were not.

        Args:
            frames: Each a bytes-like object, or a list or tuple of them that together are one frame.

        Raises:
            InvalidFrameError: Some frames were refused: ``indexes`` says which. All others were written.
            LinkDownError: The interface is down, or, for UDP, there is no route. Writing ended at once; a note on the
                exception says which frames were not written.
            QueueClosedError: The stream was closed by this program. A note says which frames were not written.
            DeviceGoneError: The interface was deleted. A note says which frames were not written.
            RuntimeError: Called from another thread or event loop than the one that the stream belongs to.
            TypeError: One of them is not a frame; a note says which. Those before it were written.
        """
        await self._write_all(frames)

    async def _write_all(self, frames: Iterable[Frame], to: bytes | None = None) -> None:
        if get_ident() != self._thread:
            self._wrong_caller()
        batch = as_batch(frames)
        refused: dict[int, InvalidFrameError] = {}
        index = 0
        while index < len(batch):
            if self._turns.credit <= 0:
                await self._more_credit()
            written, number = self._write_batch(batch, index, to)
            self._turns.credit -= written + 1
            self._frames_written += written
            index += written
            if not number:
                continue
            try:
                if not (number := self._write_closely(number, batch[index], to)):
                    self._frames_written += 1
                    index += 1
                    continue
                if number == errno.EAGAIN:
                    await self._wait_writable()
                    continue
                raise self._refusal(number)
            except InvalidFrameError as error:
                refused[index] = error
                index += 1
            except Exception as error:
                note_end(error, len(batch), range(index, len(batch)), refused)
                raise
        report(refused, len(batch))

    def write_frames_nowait(self, frames: Iterable[Frame]) -> int:
        """Writes frames in order, from the first one on, as many as it can without waiting.

        Returns:
            The number of frames that were written, all of them unless the send buffer is full or a frame is wrong. Call
            it again with the rest; if the first frame is wrong, it raises.

        Raises:
            InvalidFrameError: The kernel refuses the first frame.
            LinkDownError: The interface is down, or, for UDP, there is no route.
            QueueClosedError: The stream was closed by this program.
            DeviceGoneError: The interface was deleted.
            RuntimeError: Called from another thread than the one that the stream belongs to.
            TypeError: The first one is not a frame.
        """
        return self._write_front(frames)

    def _write_front(self, frames: Iterable[Frame], to: bytes | None = None) -> int:
        if get_ident() != self._thread:
            self._wrong_caller()
        batch = as_batch(frames)
        index = 0
        while index < len(batch):
            written, number = self._write_batch(batch, index, to)
            self._frames_written += written
            index += written
            if number and number != errno.EAGAIN and not (number == LOOK and index and self._is_wrong(batch[index])):
                number = self._write_closely(number, batch[index], to)
                if not number:
                    self._frames_written += 1
                    index += 1
            if number:
                if number != errno.EAGAIN and not index:
                    raise self._refusal(number)
                break
        return index

    def _is_wrong(self, frame: Frame) -> bool:
        """Whether writing this frame raises without the kernel being asked."""
        try:
            return not self._smallest <= size_of(frame) <= self._max_frame
        except Exception:  # noqa: BLE001 - whatever its buffer raises
            return True

    async def _more_credit(self) -> None:
        """Lets other tasks run, if writers have used up their time."""
        self._check_loop()
        if not self._turns.extend(self._loop):
            await self._turns.next(self._loop)

    async def _wait_writable(self) -> None:
        """Waits until another try may succeed, or fail for good."""
        self._check_loop()
        turn, timer = self._ask_for_room()
        try:
            await turn
        finally:
            self._forget_room(turn, timer)

    def _ask_for_room(self) -> tuple[asyncio.Future[None], asyncio.TimerHandle]:
        """A future that is done when another try may succeed, or fail for good. `_forget_room` has to be called with it."""
        turn = self._loop.create_future()
        if not self._writers:
            self._loop.add_writer(self._fd, _on_writable, weakref.ref(self))
        self._writers.append(turn)
        return turn, self._loop.call_later(_RECHECK, set_done, turn)

    def _forget_room(self, turn: asyncio.Future[None], timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        if turn in self._writers:
            self._writers.remove(turn)
            if not self._writers and self._is_own():
                self._loop.remove_writer(self._fd)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._wake_writers()

    def _wake_writers(self) -> None:
        writers, self._writers = self._writers, deque()
        for turn in writers:
            set_done(turn)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _is_own(self) -> bool:
        """False in a forked child: it shares the loop's epoll instance with its parent, and must leave that alone."""
        return os.getpid() == self._pid

    def _unregister(self) -> None:
        if self._loop.is_closed():  # it took its selector along
            self._flowing = False
            return
        self._pause()
        if self._writers:
            self._loop.remove_writer(self._fd)

    def _fail(self, error: Exception) -> None:
        """Stops watching the descriptor, which can no longer be used and would report that for ever."""
        if self._error is None:
            self._unregister()
            self._end(error)
            self._wake_writers()

    def _shut(self, error: Exception) -> None:
        """Ends the stream, in this order: closed, unregistered, waiters woken. The caller has to close the descriptor.

        If it were closed first while a duplicate of it exists, the loop could never remove the registration, and would
        spin.
        """
        self._closed = True
        if self._is_own():
            self._unregister()
            self._buffer.clear()
            self._end(error)
            self._wake_writers()
        self._fd = -1


def _on_readable(reference: weakref.ref[DescriptorStream[T]]) -> None:
    stream = reference()
    if stream is not None:
        stream._on_readable()


def _on_writable(reference: weakref.ref[DescriptorStream[T]]) -> None:
    stream = reference()
    if stream is not None:
        stream._on_writable()


def set_done(turn: asyncio.Future[None]) -> None:
    if not turn.done() and not turn.get_loop().is_closed():
        turn.set_result(None)
