"""One queue of an interface: an asynchronous stream of frames over one descriptor.

Reading. The loop watches the descriptor (level-triggered). One callback moves up to `BATCH` frames into the buffer and
wakes one reader; a buffer that is full unregisters the descriptor, and the kernel's own ring fills and drops from then
on. Descriptors are registered with a weak reference, so that the loop does not keep a forgotten interface alive.

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
from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import length_hint
from typing import Protocol, TypeVar

from . import _abi
from ._device import Options, QueueFile
from ._errors import DeviceGoneError, InvalidFrameError, LinkDownError, QueueClosedError, SetupError
from ._reader import FrameReader, Turn, fresh
from ._types import Frame, Mode, Stats

# Frames that one callback moves into the buffer while nobody waits for them.
BATCH = 64

# Frames that one writer may write before the other tasks of the loop get their turn.
_WRITES_PER_TURN = 256

# Buffers that one writev(2) takes: IOV_MAX.
_MAX_PIECES = 1024

# Seconds after which a writer that waits for room looks again by itself.
_RECHECK = 0.05


E = TypeVar("E", bound=Exception)


class Owner(Protocol):
    """What a queue knows of the interface object that it belongs to, and keeps alive."""

    @property
    def name(self) -> str: ...

    def restore(self, file: QueueFile) -> None:
        """Sets what the kernel sets on the queues of the moment only."""

    async def remove_queues(self, *queues: TuntapQueue) -> None: ...


class TuntapQueue(FrameReader):
    """One queue of a TUN/TAP interface. Made by `AsyncTuntap`, and closed with it.

    Use it from the tasks of the event loop that opened it. Reading and writing are independent, and several tasks may
    do either; see the methods for what they get. The loop alone keeps neither a queue nor a task that waits on it
    alive: keep a reference to one of them, as asyncio asks for all tasks.
    """

    __slots__ = (
        "_closed",
        "_fd",
        "_file",
        "_frames_dropped",
        "_frames_read",
        "_frames_refused",
        "_frames_written",
        "_max_frame",
        "_mode",
        "_owner",
        "_writers",
        "_writes",
    )

    def __init__(
        self,
        owner: Owner,
        file: QueueFile,
        loop: asyncio.AbstractEventLoop,
        options: Options,
        read_buffer: tuple[int, int],
    ) -> None:
        super().__init__(loop, *read_buffer)
        self._owner = owner
        self._mode = options.mode
        self._max_frame = options.max_frame
        self._file = file
        #: The same number as in the file, nearer to the hot path; -1 once closed.
        self._fd = file.fd
        self._closed = False
        self._writers: deque[asyncio.Future[None]] = deque()
        self._writes = 0
        self._frames_read = self._frames_written = self._frames_refused = self._frames_dropped = 0
        self._resume()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self._fd}"
        return f"<{type(self).__name__} of {self._owner.name!r} {state}>"

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
            QueueClosedError, DeviceGoneError: There is nothing to disable any more.
        """
        self._switch(_abi.IFF_DETACH_QUEUE)

    async def enable(self) -> None:
        """Attaches a disabled queue again, as the last in the kernel's order. Errors as for `disable`."""
        self._switch(_abi.IFF_ATTACH_QUEUE)
        self._owner.restore(self._file)

    def _switch(self, flag: int) -> None:
        try:
            detached = bool(self._file.get_ifreq().flags & _abi.IFF_DETACH_QUEUE)
            if detached == (flag == _abi.IFF_DETACH_QUEUE):
                return
            self._file.set_ifreq(_abi.TUNSETQUEUE, "", flag)
        except OSError as error:
            if error.errno in (errno.EBADF, errno.EBADFD):
                raise self._explain(error) from None
            raise SetupError(
                error.errno,
                "the kernel refuses to detach or attach the queue: it takes an interface opened with multi_queue=True",
            ) from error

    # -- reading: what FrameReader asks of its source ------------------------------------------------------------------

    def _pull(self, limit: int) -> None:
        frames: list[bytes] = []
        try:
            self._read(frames, limit)
            self._more = True
        except BlockingIOError:
            self._more = False
        except OSError as error:
            self._read_failed(error)
        self._buffer += frames
        self._frames_read += len(frames)

    def _read(self, frames: list[bytes], limit: int) -> None:
        # A loop in C: extend() keeps what it got when the last read finds the ring empty.
        frames.extend(map(os.read, repeat(self._fd, limit), repeat(_abi.READ_SIZE)))

    def _on_readable(self) -> None:
        self._pulls = 0
        if self._readers:
            turn = self._readers[0]
            if not turn.done() and not turn.later:
                self._answer_reader(turn)
                return
        room = self._high - len(self._buffer)
        if room > 0:
            self._pull(min(room, BATCH))
        if len(self._buffer) >= self._high:
            self._pause()

    def _answer_reader(self, turn: Turn) -> None:
        """One frame for the reader who waits, and at once: finding out that there is no other takes a read as well."""
        if not self._buffer:
            try:
                self._buffer.append(os.read(self._fd, _abi.READ_SIZE))
            except BlockingIOError:
                return
            except OSError as error:
                self._read_failed(error)
                return
            self._more = True
            self._frames_read += 1
        turn.give_now()

    def _read_failed(self, error: OSError) -> None:
        if error.errno in (errno.EINVAL, errno.EFAULT):
            # A frame that the kernel cannot put into words: a kind of super-frame that virtio_net_hdr has no name for,
            # or a header that is too short for it. It is used up, and there may be others behind it.
            self._frames_dropped += 1
            self._more = True
        else:
            self._fail(error)

    def _pause(self) -> None:
        if self._flowing:
            self._flowing = False
            self._loop.remove_reader(self._fd)

    def _resume(self) -> None:
        if not self._flowing and self._error is None:
            self._loop.add_reader(self._fd, _on_readable, weakref.ref(self))
            self._flowing = True

    # -- writing -------------------------------------------------------------------------------------------------------

    def write_frame_nowait(self, frame: Frame) -> None:
        """Writes one frame: a bytes-like object, or a list or tuple of them that together are one frame.

        Raises:
            BlockingIOError: The send buffer is full (`AsyncTuntap.set_send_buffer`); nothing was written.
            InvalidFrameError: The kernel refuses the frame (TAP: shorter than 14 bytes; TUN: neither IPv4 nor IPv6),
                or it is larger than any frame can be.
            LinkDownError: The interface is down.
            QueueClosedError, DeviceGoneError: There is nothing to write to any more.
        """
        try:
            self._write(frame)
        except BlockingIOError:
            raise
        except OSError as error:
            raise self._explain(error)  # noqa: B904 - which sets the cause
        self._frames_written += 1

    async def write_frame(self, frame: Frame) -> None:
        """Writes one frame, waiting for room in the send buffer if there is none.

        When cancelled, the frame was not written. Errors are those of `write_frame_nowait`, BlockingIOError excepted.
        """
        if self._writes >= _WRITES_PER_TURN:
            self._writes = 0
            await asyncio.sleep(0)
        self._writes += 1
        while True:
            try:
                if type(frame) is bytes and len(frame) <= self._max_frame:
                    os.write(self._fd, frame)  # as in _write, without the call
                else:
                    self._write(frame)
                break
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._explain(error)  # noqa: B904
            await self._wait_writable()
        self._frames_written += 1

    async def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes every frame that it can, in order.

        What the kernel refuses is left out and reported when the rest is written. When cancelled, each frame was
        written whole or not at all, in order up to some point.

        Raises:
            InvalidFrameError: Some frames were refused: ``indexes`` says which. All others were written.
            LinkDownError, QueueClosedError, DeviceGoneError: Writing ended at once; a note on the exception says where.
        """
        batch = as_batch(frames)
        plain = self._is_plain(batch)
        refused: dict[int, InvalidFrameError] = {}
        index = 0
        while index < len(batch):
            if self._writes >= _WRITES_PER_TURN:
                self._writes = 0
                await asyncio.sleep(0)
            run = batch if len(batch) <= _WRITES_PER_TURN and not index else batch[index : index + _WRITES_PER_TURN]
            pending = iter(run)
            try:
                # As when reading, a loop in C; the iterator knows afterwards how far it got.
                sum(map(os.write, repeat(self._fd), pending) if plain else map(self._write, pending))  # type: ignore[arg-type]
            except (OSError, InvalidFrameError, TypeError, BufferError) as error:
                failure: Exception = error
                written = len(run) - length_hint(pending) - 1
            else:
                self._writes += len(run)
                self._frames_written += len(run)
                index += len(run)
                continue
            self._writes += written + 1
            self._frames_written += written
            index += written
            if isinstance(failure, BlockingIOError):
                await self._wait_writable()
                continue
            if isinstance(failure, TypeError) and plain:
                plain = False  # a frame in pieces, perhaps: from here on one by one
                continue
            if isinstance(failure, OSError):
                failure = self._explain(failure)
            if not isinstance(failure, InvalidFrameError):
                failure.add_note(f"frame {index} of {len(batch)} and those after it were not written")
                if refused:
                    failure.add_note(f"of those before it, the kernel refused {list(refused)}")
                raise failure
            refused[index] = failure
            index += 1
        report(refused, len(batch))

    def _is_plain(self, batch: Sequence[Frame]) -> bool:
        """Whether none of the frames can be too large, so that write(2) may have them without another look.

        The unit of len() may be wider than a byte, in an array of numbers up to 16 bytes.
        """
        try:
            longest = len(max(batch, key=len, default=b""))
        except TypeError:
            return False
        if longest * 16 <= self._max_frame:
            return True
        return longest <= self._max_frame and set(map(type, batch)) <= {bytes, bytearray}

    def _write(self, frame: Frame) -> int:
        """Writes one frame now and returns its size in bytes. OSError comes as the kernel says it."""
        if type(frame) is bytes or type(frame) is bytearray:
            size = len(frame)
            if size <= self._max_frame:
                return os.write(self._fd, frame)
        else:
            size = size_of(frame)
            if 0 < size <= self._max_frame:
                if not isinstance(frame, (list, tuple)):
                    return os.write(self._fd, frame)  # type: ignore[arg-type]
                return os.writev(self._fd, frame if len(frame) <= _MAX_PIECES else [b"".join(frame)])
        raise self._wrong_size(size, self._max_frame)

    def _wrong_size(self, size: int, largest: int) -> InvalidFrameError:
        self._frames_refused += 1
        return InvalidFrameError(f"a frame of {size} bytes: from 1 to {largest}, the largest of this interface")

    def _explain(self, error: OSError) -> Exception:
        """What an error of read(2) or write(2) means on this queue."""
        number = error.errno
        if self._closed:
            return _caused(QueueClosedError(f"this queue of {self._owner.name!r} is closed"), error)
        if number in (errno.EBADFD, errno.EBADF):
            self._fail(error)
            return _caused(fresh(self._error), error)
        if number == errno.EIO:
            return _caused(LinkDownError(number, f"interface {self._owner.name!r} is down: nothing was written"), error)
        if number in (errno.EINVAL, errno.EMSGSIZE, errno.EFAULT):
            self._frames_refused += 1
            rule = (
                "a TAP frame has an Ethernet header of 14 bytes"
                if self._mode is Mode.TAP
                else "a TUN frame starts with an IPv4 or IPv6 header"
            )
            return _caused(InvalidFrameError(f"the kernel refuses the frame ({error.strerror}): {rule}"), error)
        return error

    async def _wait_writable(self) -> None:
        """Returns when another try may succeed, or fail for good."""
        turn = self._loop.create_future()
        if not self._writers:
            self._loop.add_writer(self._fd, _on_writable, weakref.ref(self))
        self._writers.append(turn)
        timer = self._loop.call_later(_RECHECK, _set_done, turn)
        try:
            await turn
        finally:
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
            _set_done(turn)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _unregister(self) -> None:
        if self._loop.is_closed():  # it took its selector along
            self._flowing = False
            return
        self._pause()
        if self._writers:
            self._loop.remove_writer(self._fd)

    def _fail(self, error: OSError) -> None:
        """The kernel took the interface away. The descriptor would report an error for ever: stop watching it."""
        if self._error is None:
            self._unregister()
            self._end(
                DeviceGoneError(
                    error.errno, f"interface {self._owner.name!r} is gone: it, or its namespace, was deleted"
                )
            )
            self._wake_writers()

    def _release(self) -> QueueFile:
        """Ends the queue, in this order: closed, unregistered, waiters woken. The file is the caller's to close.

        Closing first would leave the loop with a registration that it can never remove while a duplicate of the
        descriptor lives, and that keeps it spinning.
        """
        self._closed = True
        self._unregister()
        file, self._fd = self._file, -1
        self._file = QueueFile(-1)
        self._buffer.clear()
        self._end(QueueClosedError(f"this queue of {self._owner.name!r} is closed"))
        self._wake_writers()
        return file


def _on_readable(reference: weakref.ref[TuntapQueue]) -> None:
    queue = reference()
    if queue is not None:
        queue._on_readable()


def _on_writable(reference: weakref.ref[TuntapQueue]) -> None:
    queue = reference()
    if queue is not None:
        queue._on_writable()


def _set_done(turn: asyncio.Future[None]) -> None:
    if not turn.done() and not turn.get_loop().is_closed():
        turn.set_result(None)


def _caused(error: E, cause: OSError) -> E:
    error.__cause__ = cause
    return error


def as_batch(frames: Iterable[Frame]) -> Sequence[Frame]:
    """What `write_frames` was given, so that it can be counted."""
    if isinstance(frames, (bytes, bytearray, memoryview, str)):
        raise TypeError("write_frames takes several frames: write_frame takes one")
    return frames if isinstance(frames, (list, tuple)) else list(frames)


def report(refused: dict[int, InvalidFrameError], count: int) -> None:
    """Raises one error for all frames of a batch that were refused, if any were."""
    if refused:
        first = min(refused)
        raise InvalidFrameError(
            f"{len(refused)} of {count} frames were refused; the first is number {first}: {refused[first]}",
            tuple(sorted(refused)),
        ) from refused[first]


def size_of(frame: Frame) -> int:
    """Bytes of one frame, in one piece or a list or tuple of pieces.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(frame, (list, tuple)):
        return sum(map(size_of, frame))
    try:
        return memoryview(frame).nbytes  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"a frame is a bytes-like object, or a list or tuple of them, not {type(frame).__name__}"
        ) from None
