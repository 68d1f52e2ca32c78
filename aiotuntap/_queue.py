"""One queue of an interface: an asynchronous stream of frames over one descriptor.

One read(2) or write(2) is one frame, whole or not at all, and with the default send buffer a write never blocks.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
from collections.abc import Sequence
from typing import Protocol, TypeVar

from . import _abi
from ._batch import size_of
from ._descriptor import DescriptorStream
from ._device import QueueFile
from ._errors import InvalidFrameError, LinkDownError, QueueClosedError, cannot, gone
from ._frames import LOOK, MOST, WRONG_THREAD, write_pieces
from ._interface import Interface
from ._types import Frame, Mode, Stats

# Bytes that are enough for one batch of super-frames: half of what the second-level cache of a processor holds. A batch
# that does not fit is fetched from memory again to be written. Without offloads a batch is limited by its frames alone.
_ENOUGH = 1 << 18
_ANY = 1 << 30

#: What write(2) says of a frame that it refuses. Other frames may pass.
REFUSED = (errno.EINVAL, errno.EMSGSIZE, errno.EFAULT)

#: What a descriptor says whose interface was deleted; and EBADF, of one that was closed behind our back.
_GONE = (errno.EBADFD, errno.EBADF)

E = TypeVar("E", bound=Exception)


class Owner(Protocol):
    """What a queue knows of the interface object that it belongs to, and keeps alive."""

    async def remove_queues(self, *queues: TuntapQueue) -> None: ...


class TuntapQueue(DescriptorStream[bytes]):
    """One queue of a TUN/TAP interface. Made by `AsyncTuntap`, and closed with it.

    Use it from the tasks of the event loop that opened it. Reading and writing are independent, and several tasks may
    do either; see the methods for what they get. The loop alone keeps neither a queue nor a task that waits on it
    alive: keep a reference to one of them, as asyncio asks for all tasks.
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
            # While the kernel takes an interface away, poll reports an error already, and read(2) still gives frames or
            # EAGAIN. uvloop calls back once and then watches the descriptor no longer, until it is registered again.
            self._poll = select.poll()
            self._poll.register(file.fd, 0)
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

    # -- reading -------------------------------------------------------------------------------------------------------

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
            # A frame that the kernel cannot hand out: a kind of super-frame that virtio_net_hdr has no name for, or a
            # header that is too short for it. It is used up, and there may be others behind it.
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
        """What to raise for a frame that no interface can have. Counts it."""
        self._frames_refused += 1
        largest = self._interface.options.max_frame
        return InvalidFrameError(
            f"a frame of {size} bytes: on this interface it must have 1 to {largest}, and {self._frame_rule()}"
        )

    def _refusal(self, number: int) -> Exception:
        if number in _GONE and not self._closed:
            self._fail(gone(self._interface.name, number))
        return super()._refusal(number)

    def _failure(self, number: int) -> Exception:
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

    # -- the end -------------------------------------------------------------------------------------------------------

    def _release(self) -> QueueFile:
        """Ends the queue: see `_shut`. The file is the caller's to close."""
        self._shut(QueueClosedError(f"this queue of {self._interface.name!r} is closed"))
        file, self._file = self._file, QueueFile(-1)
        return file


def _caused(error: E, cause: OSError) -> E:
    error.__cause__ = cause
    return error
