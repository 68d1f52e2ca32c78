"""One queue of an interface: an asynchronous stream of frames over one descriptor.

One read(2) or write(2) is one frame, whole or not at all. With the default send buffer, a write never has to wait.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import weakref
from collections.abc import Sequence
from typing import Protocol, TypeVar

from . import _abi
from ._batch import size_of
from ._descriptor import DescriptorStream
from ._device import Options, QueueFile
from ._errors import WAITS_WHILE_DOWN, InvalidFrameError, LinkDownError, cannot, closed, gone
from ._frames import LOOK, MOST, WRONG_THREAD, write_pieces
from ._interface import Interface
from ._offload.header import HEADER_SIZE
from ._types import Frame, Mode, Stats

# Bytes that end a batch of super-frames: half of a processor's second-level cache. A larger batch would have to be
# fetched from memory again to be written. Without offloads, only the number of frames limits a batch.
_ENOUGH = 1 << 18
_ANY = 1 << 30

#: The errors of write(2) that are about one frame. Others may be accepted.
REFUSED = (errno.EINVAL, errno.EMSGSIZE, errno.EFAULT)

#: The errors of a descriptor whose interface was deleted; and EBADF, if something else closed the descriptor.
_GONE = (errno.EBADFD, errno.EBADF)

# Seconds for a program to set up the interface after it has begun to read.
_TIME_TO_COME_UP = 1.0

_logger = logging.getLogger("aiotuntap")

E = TypeVar("E", bound=Exception)


class Owner(Protocol):
    """The interface object that a queue belongs to, and keeps alive."""

    async def remove_queues(self, *queues: TuntapQueue) -> None: ...


class TuntapQueue(DescriptorStream[bytes]):
    """One queue of a TUN/TAP interface. `AsyncTuntap` makes it, and closes it.

    Use it only in the event loop that opened it. Reading and writing are independent of each other, and several tasks
    may do either. The loop does not keep a queue alive, nor a task that waits on it: keep a reference to one of them,
    as with all tasks of asyncio.
    """

    __slots__ = ("_enough", "_file", "_interface", "_owner")

    def __init__(
        self,
        owner: Owner,
        interface: Interface,
        file: QueueFile,
        loop: asyncio.AbstractEventLoop,
        read_buffer: tuple[int, int],
    ) -> None:
        super().__init__(loop, file.fd, interface.options.max_frame, read_buffer)
        self._owner = owner
        self._interface = interface
        self._enough = _ENOUGH if interface.options.has_header else _ANY
        self._file = file
        if not isinstance(loop, asyncio.SelectorEventLoop):
            # While the kernel deletes an interface, poll reports an error already, but read(2) still returns frames or
            # EAGAIN. uvloop calls back once, and then does not watch the descriptor until it is registered again.
            self._poll = select.poll()
            self._poll.register(file.fd, 0)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self._fd}"
        return f"<{type(self).__name__} of {self._interface.name!r} {state}>"

    @property
    def closed(self) -> bool:
        """Whether this program closed the queue. A queue whose interface was deleted is still to be closed."""
        return self._closed

    @property
    def enabled(self) -> bool:
        """Whether the kernel hands out frames to this queue. False after `disable`, or if it is closed or gone."""
        try:
            return not self._file.get_ifreq().flags & _abi.IFF_DETACH_QUEUE
        except OSError:
            return False

    @property
    def stats(self) -> Stats:
        """Counts what went through this queue since it was opened here. Frames count when they are read from the kernel."""
        return Stats(self._frames_read, self._frames_written, self._frames_refused, self._frames_dropped)

    async def aclose(self) -> None:
        """Closes the queue, as `AsyncTuntap.remove_queues` does. Closing twice is harmless.

        Tasks that wait on it get QueueClosedError. When cancelled, it still closes the descriptor before it ends.

        Raises:
            RuntimeError: Called from another thread or event loop than the one that the queue belongs to.
        """
        if not self._closed:
            await self._owner.remove_queues(self)

    async def disable(self) -> None:
        """Detaches the queue: the kernel gives its flows to the other queues, and drops the frames in its ring.

        Frames that were buffered in this program can still be read. Frames can still be written, except that with
        ``napi=True`` Linux refuses them with EBUSY, since 6.4 and the stable releases of that time. Disabling twice is
        harmless.

        Raises:
            SetupError: The interface has a single queue (``multi_queue=False``).
            QueueClosedError: The queue was closed by this program.
            DeviceGoneError: The interface was deleted.
            RuntimeError: Called from another thread or event loop than the one that the queue belongs to.
        """
        self._switch(_abi.IFF_DETACH_QUEUE)

    async def enable(self) -> None:
        """Attaches a disabled queue again, as the last one in the kernel's order. Enabling twice is harmless.

        Raises:
            SetupError: The interface has a single queue (``multi_queue=False``).
            QueueClosedError: The queue was closed by this program.
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
            action = "disable" if flag == _abi.IFF_DETACH_QUEUE else "enable"
            hint = "only an interface opened with multi_queue=True can do that" if error.errno == errno.EINVAL else ""
            raise cannot(f"{action} a queue of {self._interface.name!r}", error, hint) from error

    # -- reading -------------------------------------------------------------------------------------------------------

    def _on_first_wait(self) -> None:
        interface = self._interface
        if not interface.was_waited_for:
            interface.was_waited_for = True
            if self._file.is_blocked():  # once it has been up, whoever takes it down knows
                self._loop.call_later(_TIME_TO_COME_UP, _warn_if_down, weakref.ref(self))

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

    def _read_failed(self, number: int) -> None:
        if number in (errno.EINVAL, errno.EFAULT):
            # The kernel cannot hand out this frame: virtio_net_hdr cannot describe such a super-frame, or the header is
            # too short for it. The kernel has dropped it, and there may be other frames behind it.
            self._frames_dropped += 1
        else:
            self._fail(gone(self._interface.name, number))

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write_batch(self, frames: Sequence[Frame], start: int, to: bytes | None) -> tuple[int, int]:
        return self._engine.write_batch(self._fd, self._max_frame, start, MOST, frames)

    def _write_closely(self, number: int, frame: Frame, to: bytes | None = None) -> int:
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
        """The error for a frame of a size that this interface cannot have. Counts the frame."""
        self._frames_refused += 1
        options = self._interface.options
        return InvalidFrameError(
            f"a frame must have 1 to {options.max_frame} bytes on this interface, not {size}: {frame_rule(options)}"
        )

    def _refusal(self, number: int) -> Exception:
        if number in _GONE and not self._closed:
            self._fail(gone(self._interface.name, number))
        return super()._refusal(number)

    def _failure(self, number: int) -> Exception:
        cause = OSError(number, os.strerror(number))
        interface = self._interface  # to ask for its name, the kernel takes its global network lock
        if self._closed:
            return closed(f"this queue of {interface.name!r}")
        if number in _GONE:
            return _caused(gone(interface.name, number), cause)
        if number == errno.EIO:
            return _caused(
                LinkDownError(
                    number,
                    f"interface {interface.name!r} is down, so the frame was not written: call configure(up=True) first",
                ),
                cause,
            )
        if number in REFUSED:
            return _caused(
                InvalidFrameError(
                    f"the kernel refuses the frame ({cause.strerror}): {frame_rule(self._interface.options)}"
                ),
                cause,
            )
        return cause

    # -- the end -------------------------------------------------------------------------------------------------------

    def _release(self) -> QueueFile:
        """Ends the queue: see `_shut`. The caller has to close the file, and has asked for the interface's name before."""
        self._shut(closed(f"this queue of {self._interface.last_name!r}"))
        file, self._file = self._file, QueueFile(-1)
        return file


def frame_rule(options: Options) -> str:
    """What a frame of an interface must begin with."""
    if options.vnet_header:
        size = options.vnet_header_size
        return (
            f"with vnet_header=True it must begin with a virtio_net_hdr of {size} bytes that matches the frame behind it;"
            f" VnetHeader().pack({'' if size == HEADER_SIZE else size}) is the header of an ordinary frame"
        )
    if options.packet_info:
        return "with packet_info=True it must begin with 2 bytes of flags and 2 bytes of Ethernet protocol"
    if options.mode is Mode.TAP:
        return "on a TAP interface it must begin with an Ethernet header of 14 bytes"
    return "on a TUN interface it must begin with an IPv4 or IPv6 header"


def _caused(error: E, cause: OSError) -> E:
    error.__cause__ = cause
    return error


def _warn_if_down(reference: weakref.ref[TuntapQueue]) -> None:
    queue = reference()
    if queue is not None and queue._file.is_down():
        _logger.warning(WAITS_WHILE_DOWN, queue._interface.name, "reading from it")
