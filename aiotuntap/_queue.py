"""One queue of an interface: an asynchronous stream of frames over one descriptor.

Reading. The loop watches the descriptor (level-triggered). One callback moves up to `BATCH` frames into the buffer, or
wakes one reader, who reads on by itself; a buffer that is full unregisters the descriptor, and the kernel's own ring
fills and drops from then on. Descriptors are registered with a weak reference, so that the loop does not keep a
forgotten interface alive.

Writing. One write(2) is one frame, whole or not at all, and with the default send buffer it never blocks. The loop is
asked about writability only after EAGAIN: an interface that is up is writable nearly always, and would call back
without end. It is not asked alone either. A descriptor that waits for nothing but room is woken neither when its
interface is deleted, nor when it is down, nor when the send buffer is smaller than two frames; hence the timer.
"""

from __future__ import annotations

import asyncio
import errno
import os
import weakref
from collections import deque
from collections.abc import Iterable
from threading import get_ident
from typing import Protocol, TypeVar

from . import _abi, _engine
from ._batch import as_batch, note_end, report, size_of
from ._device import QueueFile
from ._errors import InvalidFrameError, LinkDownError, QueueClosedError, cannot, gone
from ._frames import LOOK, MOST, WRONG_THREAD, write_pieces
from ._interface import Interface
from ._reader import FrameReader
from ._types import Frame, Mode, Stats

#: Frames that one callback moves into the buffer while nobody waits for them.
BATCH = 64

# Bytes that are enough for one batch of super-frames: half of what the second-level cache of a processor holds. A batch
# that does not fit is fetched from memory again to be written. Without offloads a batch is limited by its frames alone.
_ENOUGH = 1 << 18
_ANY = 1 << 30

# Seconds after which a writer that waits for room looks again by itself.
_RECHECK = 0.05

#: What write(2) says of a frame that it refuses. Other frames may pass.
REFUSED = (errno.EINVAL, errno.EMSGSIZE, errno.EFAULT)

#: What a descriptor says whose interface was deleted; and EBADF, of one that was closed behind our back.
_GONE = (errno.EBADFD, errno.EBADF)

E = TypeVar("E", bound=Exception)


class Owner(Protocol):
    """What a queue knows of the interface object that it belongs to, and keeps alive."""

    async def remove_queues(self, *queues: TuntapQueue) -> None: ...


class TuntapQueue(FrameReader):
    """One queue of a TUN/TAP interface. Made by `AsyncTuntap`, and closed with it.

    Use it from the tasks of the event loop that opened it. Reading and writing are independent, and several tasks may
    do either; see the methods for what they get. The loop alone keeps neither a queue nor a task that waits on it
    alive: keep a reference to one of them, as asyncio asks for all tasks.
    """

    __slots__ = (
        "_closed",
        "_engine",
        "_enough",
        "_fd",
        "_file",
        "_frames_dropped",
        "_frames_read",
        "_frames_refused",
        "_frames_written",
        "_interface",
        "_max_frame",
        "_owner",
        "_pid",
        "_writers",
    )

    def __init__(
        self,
        owner: Owner,
        interface: Interface,
        file: QueueFile,
        loop: asyncio.AbstractEventLoop,
        read_buffer: tuple[int, int],
    ) -> None:
        super().__init__(loop, *read_buffer)
        self._owner = owner
        self._interface = interface
        self._engine = _engine.engine
        self._max_frame = interface.options.max_frame
        self._enough = _ENOUGH if interface.options.has_header else _ANY
        self._file = file
        #: The same number as in the file, nearer to the hot path; -1 once closed.
        self._fd = file.fd
        self._pid = os.getpid()
        self._closed = False
        self._writers: deque[asyncio.Future[None]] = deque()
        self._frames_read = self._frames_written = self._frames_refused = self._frames_dropped = 0
        self._resume()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self._fd}"
        return f"<{type(self).__name__} of {self._interface.name!r} {state}>"

    @property
    def closed(self) -> bool:
        """Whether this program closed the queue. A queue whose interface was deleted is not closed, until you do."""
        return self._closed

    @property
    def enabled(self) -> bool:
        """Whether the kernel hands frames to this queue. False after `disable`, and once closed or gone."""
        try:
            return not self._file.get_ifreq().flags & _abi.IFF_DETACH_QUEUE
        except OSError:
            return False

    @property
    def stats(self) -> Stats:
        """What went through this queue since it was opened here, as a new snapshot. Frames count when they leave the kernel."""
        return Stats(self._frames_read, self._frames_written, self._frames_refused, self._frames_dropped)

    def fileno(self) -> int:
        """The descriptor, or -1 when closed. It stays this queue's: register, read or close it and things break."""
        return self._fd

    async def aclose(self) -> None:
        """Closes the queue; the same as `AsyncTuntap.remove_queues`. Closing twice is harmless.

        Who waits on it gets QueueClosedError. Cancelling delays until the descriptor is closed.
        """
        if not self._closed:
            await self._owner.remove_queues(self)

    async def disable(self) -> None:
        """Detaches the queue: the kernel gives its flows to the other queues, and forgets what waited in its ring.

        Frames that were buffered here can still be read, and frames written still arrive (with ``napi=True``
        Linux refuses them with EBUSY, from 6.4 and the stable releases of its time on). Disabling twice is harmless.

        Raises:
            SetupError: The interface has a single queue (``multi_queue=False``).
            QueueClosedError: The queue was closed here.
            DeviceGoneError: The interface was deleted.
            RuntimeError: Called from another thread or event loop than the one that the queue belongs to.
        """
        self._switch(_abi.IFF_DETACH_QUEUE)

    async def enable(self) -> None:
        """Attaches a disabled queue again, as the last in the kernel's order. Enabling twice is harmless.

        Raises:
            SetupError: The interface has a single queue (``multi_queue=False``).
            QueueClosedError: The queue was closed here.
            DeviceGoneError: The interface was deleted.
            RuntimeError: Called from another thread or event loop than the one that the queue belongs to.
        """
        self._switch(_abi.IFF_ATTACH_QUEUE)
        self._interface.restore(self._file)

    def _switch(self, flag: int) -> None:
        self._check_loop()
        try:
            detached = bool(self._file.get_ifreq().flags & _abi.IFF_DETACH_QUEUE)
            if detached == (flag == _abi.IFF_DETACH_QUEUE):
                return
            self._file.set_ifreq(_abi.TUNSETQUEUE, "", flag)
        except OSError as error:
            if error.errno in _GONE:
                raise self._failure(error.errno) from None
            hint = "it takes an interface opened with multi_queue=True" if error.errno == errno.EINVAL else ""
            raise cannot("detach or attach the queue", error, hint) from error

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            self._wrong_caller()

    # -- reading: what FrameReader asks of its source ------------------------------------------------------------------

    def _pull(self, limit: int) -> None:
        while True:
            frames, number = self._engine.read_batch(self._fd, limit, self._enough)
            self._keep(frames, number)
            limit -= len(frames)
            if number or limit <= 0 or self._enough < _ANY:
                return

    def _pull_one(self) -> None:
        frame = self._engine.read_one(self._fd)
        if isinstance(frame, int):
            self._keep([], frame)
        else:
            self._keep([frame], 0)

    def _keep(self, frames: list[bytes], number: int | BaseException) -> None:
        """Buffers what was read, and then looks at what stopped the reading: see `_frames.read_batch`."""
        self._more = True
        buffered = len(self._buffer)
        try:
            self._buffer += frames
        finally:
            taken = len(self._buffer) - buffered
            self._frames_read += taken
            self._frames_dropped += len(frames) - taken  # there was no memory to keep them
        if number:
            if number == errno.EAGAIN:
                self._more = False
            elif isinstance(number, BaseException):
                raise number
            elif number == errno.ENOMEM:
                if not frames:
                    raise MemoryError
            else:
                self._read_failed(number)

    def _read_failed(self, number: int) -> None:
        if number in (errno.EINVAL, errno.EFAULT):
            # A frame that the kernel cannot hand out: a kind of super-frame that virtio_net_hdr has no name for, or a
            # header that is too short for it. It is used up, and there may be others behind it.
            self._frames_dropped += 1
        else:
            self._fail(number)

    def _on_readable(self) -> None:
        if self._in_line:
            self._turns.call(self._loop)
            return
        if not self._turns.begin():
            self._more = True  # so that the reader, when it has its turn, takes what is there
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
        """One frame for the reader who waits, and at once: finding out that there is no other takes a read as well."""
        if not self._buffer:
            try:
                self._pull_one()
            except MemoryError:  # the reader is told, when it tries by itself
                self._more = True
            if not self._buffer and not self._more and self._error is None:
                return
        self._wake_now()

    def _fill(self) -> None:
        if self._receiver is not None:
            self._receiver()
            return
        room = self._high - len(self._buffer)
        try:
            if room > 0 and self._error is None:
                self._pull(min(room, BATCH))
        except MemoryError:  # whoever reads next is told, and until then the frames are safe in the kernel
            self._more = True
            self._pause()
        if len(self._buffer) >= self._high:
            self._pause()

    def _pause(self) -> None:
        if self._flowing:
            self._flowing = False
            self._loop.remove_reader(self._fd)

    def _resume(self) -> None:
        if not self._flowing and self._error is None:
            if self._receiver is None:
                self._loop.add_reader(self._fd, _on_readable, weakref.ref(self))
            else:  # it is called as long as the loop runs, whoever else knows of it
                self._loop.add_reader(self._fd, self._on_readable)
            self._flowing = True

    # -- writing -------------------------------------------------------------------------------------------------------

    def write_frame_nowait(self, frame: Frame) -> None:
        """Writes one frame: a bytes-like object, or a list or tuple of them that together are one frame.

        Raises:
            BlockingIOError: The send buffer is full (`AsyncTuntap.set_send_buffer`); nothing was written.
            InvalidFrameError: The kernel refuses the frame (TAP: shorter than 14 bytes; TUN: neither IPv4 nor IPv6),
                or it is larger than any frame can be.
            LinkDownError: The interface is down.
            QueueClosedError: The queue was closed here.
            DeviceGoneError: The interface was deleted.
            RuntimeError: Called from another thread than the one that the queue belongs to.
            TypeError: It is not a frame.
        """
        number = self._engine.write_one(self._fd, self._max_frame, self._thread, frame)
        if number and (number := self._write_closely(number, frame)):
            if number == errno.EAGAIN:
                raise BlockingIOError(number, "the send buffer is full: nothing was written")
            raise self._refusal(number)
        self._frames_written += 1

    async def write_frame(self, frame: Frame) -> None:
        """Writes one frame, waiting for room in the send buffer if there is none.

        When cancelled, the frame was not written.

        Args:
            frame: A bytes-like object, or a list or tuple of them that together are one frame.

        Raises:
            InvalidFrameError: The kernel refuses the frame (TAP: shorter than 14 bytes; TUN: neither IPv4 nor IPv6),
                or it is larger than any frame can be.
            LinkDownError: The interface is down.
            QueueClosedError: The queue was closed here.
            DeviceGoneError: The interface was deleted.
            RuntimeError: Called from another thread or event loop than the one that the queue belongs to.
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

        What the kernel refuses is left out and reported when the rest is written. When cancelled, each frame was
        written whole or not at all, in order up to some point.

        Args:
            frames: Each a bytes-like object, or a list or tuple of them that together are one frame.

        Raises:
            InvalidFrameError: Some frames were refused: ``indexes`` says which. All others were written.
            LinkDownError: The interface is down. Writing ended at once; a note on the exception says where.
            QueueClosedError: The queue was closed here. The note says where writing ended.
            DeviceGoneError: The interface was deleted. The note says where writing ended.
            RuntimeError: Called from another thread or event loop than the one that the queue belongs to.
            TypeError: One of them is not a frame. The note says which.
        """
        if get_ident() != self._thread:
            self._wrong_caller()
        batch = as_batch(frames)
        refused: dict[int, InvalidFrameError] = {}
        index = 0
        while index < len(batch):
            if self._turns.credit <= 0:
                await self._more_credit()
            written, number = self._engine.write_batch(self._fd, self._max_frame, index, MOST, batch)
            self._turns.credit -= written + 1
            self._frames_written += written
            index += written
            if not number:
                continue
            try:
                if not (number := self._write_closely(number, batch[index])):
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
        """Writes frames from the front, in order, as far as that goes without waiting.

        Returns:
            How many were taken: all of them, unless the send buffer is full. A frame that is refused was not taken, and
            neither were those behind it; it raises when it is the first one.

        Raises:
            InvalidFrameError: The kernel refuses the first frame.
            LinkDownError: The interface is down.
            QueueClosedError: The queue was closed here.
            DeviceGoneError: The interface was deleted.
            RuntimeError: Called from another thread than the one that the queue belongs to.
            TypeError: The first one is not a frame.
        """
        if get_ident() != self._thread:
            self._wrong_caller()
        batch = as_batch(frames)
        index = 0
        while index < len(batch):
            written, number = self._engine.write_batch(self._fd, self._max_frame, index, MOST, batch)
            self._frames_written += written
            index += written
            if number == LOOK and not (index and self._is_wrong(batch[index])):
                number = self._write_closely(number, batch[index])
                if not number:
                    self._frames_written += 1
                    index += 1
            if number:
                if number != errno.EAGAIN and not index:
                    raise self._refusal(number)
                break
        return index

    def _is_wrong(self, frame: Frame) -> bool:
        """Whether writing raises whatever the kernel says of the frame."""
        try:
            return not 0 < size_of(frame) <= self._max_frame
        except Exception:  # noqa: BLE001 - whatever its buffer raises
            return True

    def _write_closely(self, number: int, frame: Frame) -> int:
        """Writes a frame that the engine did not try, if it can be. Returns 0 or the ``errno``, as the engine's *number*.

        Raises for what is not a frame, for a size that no frame has, and for a caller from another thread.
        """
        if number == WRONG_THREAD:
            self._wrong_caller()
        if number != LOOK:
            return number
        size = size_of(frame)
        if self._closed:
            return errno.EBADF
        if not 0 < size <= self._max_frame:
            raise self._wrong_size(size)
        return write_pieces(self._fd, frame if isinstance(frame, (list, tuple)) else [frame])  # type: ignore[list-item]

    def _wrong_size(self, size: int) -> InvalidFrameError:
        """What to raise for a frame that no interface can have. Counts it."""
        self._frames_refused += 1
        largest = self._interface.options.max_frame
        return InvalidFrameError(
            f"a frame of {size} bytes: on this interface it must have 1 to {largest}, and {self._frame_rule()}"
        )

    async def _more_credit(self) -> None:
        """Lets others run, if writers have written for as long as they may."""
        self._check_loop()
        if not self._turns.extend(self._loop):
            await self._turns.next(self._loop)

    def _refusal(self, number: int) -> Exception:
        """What to raise for the ``errno`` of write(2), EAGAIN excepted. Counts the frame where it is the frame's fault."""
        if number in _GONE and not self._closed:
            self._fail(number)
        error = self._failure(number)
        if isinstance(error, InvalidFrameError):
            self._frames_refused += 1
        return error

    def _failure(self, number: int) -> Exception:
        """What an ``errno`` of this queue means."""
        cause = OSError(number, os.strerror(number))
        name = self._interface.name
        if self._closed:
            return _caused(QueueClosedError(f"this queue of {name!r} is closed"), cause)
        if number in _GONE:
            return _caused(gone(name, number), cause)
        if number == errno.EIO:
            return _caused(
                LinkDownError(
                    number, f"interface {name!r} is down: nothing was written; configure(up=True) sets it up"
                ),
                cause,
            )
        if number in REFUSED:
            return _caused(
                InvalidFrameError(f"the kernel refuses the frame ({cause.strerror}): {self._frame_rule()}"), cause
            )
        return cause

    def _frame_rule(self) -> str:
        """What a frame of this interface begins with."""
        options = self._interface.options
        if options.vnet_header:
            return (
                f"with vnet_header=True a frame begins with a virtio_net_hdr of {options.vnet_header_size} bytes"
                " (VnetHeader.pack) that fits the frame behind it"
            )
        if options.packet_info:
            return "with packet_info=True a frame begins with 4 bytes of flags and Ethernet protocol"
        if options.mode is Mode.TAP:
            return "a TAP frame begins with an Ethernet header of 14 bytes"
        return "a TUN frame begins with an IPv4 or IPv6 header"

    async def _wait_writable(self) -> None:
        """Returns when another try may succeed, or fail for good."""
        self._check_loop()
        turn, timer = self._ask_for_room()
        try:
            await turn
        finally:
            self._forget_room(turn, timer)

    def _ask_for_room(self) -> tuple[asyncio.Future[None], asyncio.TimerHandle]:
        """A future that is done when another try may succeed, or fail for good. Then, or before, `_forget_room` it."""
        turn = self._loop.create_future()
        if not self._writers:
            self._loop.add_writer(self._fd, _on_writable, weakref.ref(self))
        self._writers.append(turn)
        return turn, self._loop.call_later(_RECHECK, set_done, turn)

    def _forget_room(self, turn: asyncio.Future[None], timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        if turn in self._writers:
            self._writers.remove(turn)
            if not self._writers:
                self._loop.remove_writer(self._fd)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._wake_writers()

    def _wake_writers(self) -> None:
        writers, self._writers = self._writers, deque()
        for turn in writers:
            set_done(turn)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _unregister(self) -> None:
        if self._loop.is_closed():  # it took its selector along
            self._flowing = False
            return
        self._pause()
        if self._writers:
            self._loop.remove_writer(self._fd)

    def _fail(self, number: int) -> None:
        """The kernel took the interface away. The descriptor would report an error for ever: stop watching it."""
        if self._error is None:
            self._unregister()
            self._end(gone(self._interface.name, number))
            self._wake_writers()

    def _release(self) -> QueueFile:
        """Ends the queue, in this order: closed, unregistered, waiters woken. The file is the caller's to close.

        Closing first would leave the loop with a registration that it can never remove while a duplicate of the
        descriptor lives, and that keeps it spinning.
        """
        self._closed = True
        file = self._file
        if os.getpid() == self._pid:  # a forked child shares the loop's epoll instance, and must leave it alone
            self._unregister()
            self._buffer.clear()
            self._end(QueueClosedError(f"this queue of {self._interface.name!r} is closed"))
            self._wake_writers()
        self._fd = -1
        self._file = QueueFile(-1)
        return file


def _on_readable(reference: weakref.ref[TuntapQueue]) -> None:
    queue = reference()
    if queue is not None:
        queue._on_readable()


def _on_writable(reference: weakref.ref[TuntapQueue]) -> None:
    queue = reference()
    if queue is not None:
        queue._on_writable()


def set_done(turn: asyncio.Future[None]) -> None:
    if not turn.done() and not turn.get_loop().is_closed():
        turn.set_result(None)


def _caused(error: E, cause: OSError) -> E:
    error.__cause__ = cause
    return error
