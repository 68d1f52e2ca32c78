"""An interface for code that is called back: a transport and a protocol, as asyncio's datagram endpoints have them.

The transport rests on one queue, which calls it where it would otherwise wake a reader: once for each time that frames
are there, and when the queue has ended. There is no task, except for the moment of closing. What a protocol takes of
the loop's time comes out of the slice that all streams share (`_turns`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from time import monotonic
from typing import Any, NoReturn, TypeVar

from ._batch import as_batch, size_of
from ._descriptor import set_done
from ._errors import DeviceGoneError, InvalidFrameError, LinkDownError, QueueClosedError, TuntapError
from ._queue import TuntapQueue
from ._reader import fresh
from ._threads import outlast
from ._tuntap import AsyncTuntap
from ._types import Frame, Owning

# Frames of the write buffer that one callback writes.
_PART = 512

# asyncio's: bytes in the write buffer from which on the protocol is asked to pause.
_HIGH_WATER = 64 * 1024

# asyncio's: frames that may be written to a closed transport in silence.
_LATE = 5

_ASKED_OF_INTERFACE = ("name", "mode", "index", "netns", "offload")

_logger = logging.getLogger(__package__)

P = TypeVar("P", bound=asyncio.BaseProtocol)


class TuntapProtocol(asyncio.BaseProtocol):
    """What an endpoint calls. Derive from it, and define what you need; the methods here do nothing.

    A protocol that defines ``frames_received(frames: list[bytes])`` gets all frames that are there at once, up to 128
    (with offloads, perhaps one super-frame's more), in place of one `frame_received` for each. That is the fast way,
    and lets `TuntapTransport.write_frames` merge what is passed on.

    An exception that a method raises goes to the loop's exception handler; the endpoint goes on.
    """

    __slots__ = ()

    def connection_made(self, transport: TuntapTransport) -> None:  # type: ignore[override]
        """Called once, before anything else. *transport* reads and writes frames."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Called once, as the last: the interface is closed, and its name is free again.

        Args:
            exc: None after `TuntapTransport.close` and `TuntapTransport.abort`; DeviceGoneError when the interface, or its namespace, was deleted;
                QueueClosedError when the queue was closed by other means than the transport.
        """

    def frame_received(self, frame: bytes) -> None:
        """Called with each frame: a whole one, headers included as the interface was opened."""

    def error_received(self, exc: Exception) -> None:
        """Called when a frame could not be written, and is dropped.

        Args:
            exc: InvalidFrameError: the kernel refuses the frame, or it is too large. LinkDownError: the interface is
                down; it is told once for all frames of one call. An OSError for what else the kernel may say, such as
                ENOBUFS.
        """

    def pause_writing(self) -> None:
        """Called when the write buffer has grown over its upper limit: stop writing, or it goes on growing."""

    def resume_writing(self) -> None:
        """Called when the write buffer has fallen to its lower limit after that."""


class TuntapTransport(Owning, asyncio.DatagramTransport):
    """One side of an endpoint, made by `create_tuntap_endpoint`. The other is a protocol, which it calls.

    Use it from the loop's own thread. No method waits. The loop keeps it alive as long as it reads, and while frames
    wait in its write buffer.
    """

    __slots__ = (
        "__weakref__",
        "_backlog",
        "_buffer",
        "_buffered",
        "_closing",
        "_ended",
        "_ending",
        "_flushing",
        "_high",
        "_in_batches",
        "_interface",
        "_late",
        "_loop",
        "_low",
        "_owns_interface",
        "_paused",
        "_protocol",
        "_protocol_paused",
        "_queue",
        "_waiting",
    )

    def __init__(
        self,
        interface: AsyncTuntap,
        queue: TuntapQueue,
        protocol: asyncio.BaseProtocol,
        *,
        owns_interface: bool,
    ) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._interface = interface
        self._queue = queue
        #: Whether closing closes all of the interface, or the queue alone.
        self._owns_interface = owns_interface
        #: Frames that were read and not yet handed over.
        self._backlog: deque[bytes] = deque()
        #: Frames that were not yet written, and their bytes.
        self._buffer: deque[Frame] = deque()
        self._buffered = 0
        #: Whether something is going to call `_flush`; and the future and its timer, if that is the kernel having room.
        self._flushing = False
        self._waiting: tuple[asyncio.Future[None], asyncio.TimerHandle] | None = None
        self._paused = self._protocol_paused = False
        #: Closing begins with `close`, and has ended when nothing is left to write.
        self._closing = self._ended = False
        self._ending: asyncio.Task[None] | None = None
        self._late = 0
        self.set_write_buffer_limits()
        self.set_protocol(protocol)

    def __repr__(self) -> str:
        state = "closed" if self._ended else "closing" if self._closing else "paused" if self._paused else "reading"
        return f"<TuntapTransport of {self._interface._interface.last_name!r} {state}, {self._buffered} bytes to write>"

    # -- what it is ----------------------------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What is known of the interface.

        Args:
            name: ``"interface"`` for the `AsyncTuntap`, with which it is configured; ``"queue"`` for the `TuntapQueue`;
                ``"name"``, ``"mode"``, ``"index"``, ``"netns"`` or ``"offload"`` for what the interface says.
            default: Returned for any other name.
        """
        if name in _ASKED_OF_INTERFACE:
            return getattr(self._interface, name)
        return {"interface": self._interface, "queue": self._queue}.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """From now on *protocol* is called. Nothing tells it or the one before it."""
        self._protocol: Any = protocol
        self._in_batches = hasattr(protocol, "frames_received")

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that is called; None after its `TuntapProtocol.connection_lost`."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def _tell(self, method: str, *arguments: object) -> None:
        try:
            getattr(self._protocol, method)(*arguments)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - handed over
            self._report(f"protocol.{method}() failed", error)

    def _report(self, message: str, error: BaseException) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
        )

    # -- reading -------------------------------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Whether the protocol gets frames: not while reading is paused, nor once closing has begun."""
        return not (self._closing or self._paused)

    def pause_reading(self) -> None:
        """The protocol gets no frame until `resume_reading`. The kernel keeps as many as its queue length, and drops more.

        Meanwhile an interface that is deleted is noticed only when a frame is written. Pausing twice is harmless.
        """
        if self.is_reading():
            self._paused = True
            self._queue._pause()

    def resume_reading(self) -> None:
        """The protocol gets frames again. Resuming twice is harmless."""
        if self._paused and not self._closing:
            self._paused = False
            self._read_on()

    def _begin(self) -> None:
        """The protocol is ready. What the queue has buffered until now comes first."""
        queue = self._queue
        if not self._closing:
            queue._pause()
            queue._receiver = self._on_frames
            if not self._paused:
                self._read_on()

    def _read_on(self) -> None:
        self._queue._resume()
        self._come_back()

    def _come_back(self) -> None:
        """The loop calls `_on_frames` for what it does not call by itself: frames that were read already, and the end."""
        if self._backlog or self._queue._buffer or self._queue._error is not None:
            self._queue._line_up()

    def _on_frames(self) -> None:
        """There may be frames, or the queue has ended."""
        queue = self._queue
        if not self.is_reading():
            if queue._error is not None:
                self._force_close(fresh(queue._error))
            else:  # somebody else has read from the queue, and let it flow again
                queue._pause()
            return
        try:
            frames = self._backlog or queue.read_frames_nowait()
        except BlockingIOError:
            return
        except (QueueClosedError, DeviceGoneError) as error:
            self._force_close(error)
            return
        except MemoryError as error:
            self._fail("reading failed", error)
            return
        if self._in_batches:
            self._backlog = deque()
            self._tell("frames_received", list(frames))
        else:
            self._hand_over(frames)
        if self.is_reading():
            self._come_back()

    def _hand_over(self, frames: Iterable[bytes]) -> None:
        """Frame by frame, as long as the slice lasts and the protocol wants them."""
        turns = self._queue._turns
        backlog = self._backlog = deque(frames)
        while backlog and not (self._paused or self._closing):
            try:
                self._protocol.frame_received(backlog.popleft())
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - handed over
                self._report("protocol.frame_received() failed", error)
            if monotonic() >= turns.until:
                break

    # -- writing -------------------------------------------------------------------------------------------------------

    def write_frame(self, frame: Frame) -> None:
        """Writes one frame at once, or keeps a copy of it in the write buffer while the send buffer is full.

        What goes wrong is told to `TuntapProtocol.error_received`, or ends the transport. An empty frame is ignored.
        So is any frame after the transport is closed; from the sixth on, a warning is logged.

        Args:
            frame: A bytes-like object, or a list or tuple of them that together are one frame.

        Raises:
            TypeError: It is not a frame.
            RuntimeError: Called from another thread than the one that the queue belongs to.
        """
        if self._ended or self._buffer:
            self._keep(frame)
            return
        try:
            self._queue.write_frame_nowait(frame)
        except BlockingIOError:
            self._keep(frame)
        except (TuntapError, OSError, MemoryError) as error:
            self._refused(error, frame)

    def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes frames in order, as `write_frame` does each, and merged as `TuntapQueue.write_frames` does with offloads.

        Raises:
            TypeError: One of them is not a frame. Those before it were written.
            RuntimeError: Called from another thread than the one that the queue belongs to.
        """
        batch = as_batch(frames)
        taken = 0 if self._ended or self._buffer else self._write_now(batch)
        for frame in islice(batch, taken, None):
            self._keep(frame)

    def sendto(self, data: Frame, addr: None = None) -> None:  # type: ignore[override]
        """Another name for `write_frame`, for code that writes to datagram transports too.

        Raises:
            ValueError: *addr* is not None: a frame has its addresses inside.
        """
        if addr is not None:
            raise ValueError(f"addr must be None, not {addr!r}: a frame has its addresses inside")
        self.write_frame(data)

    def get_write_buffer_size(self) -> int:
        """Bytes that are not yet written: none, unless the send buffer is full (`AsyncTuntap.set_send_buffer`)."""
        return self._buffered

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The lower and the upper limit, in bytes: see `set_write_buffer_limits`."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Above *high* bytes in the write buffer the protocol is asked to pause writing, and from *low* on to resume.

        Args:
            high: 65536 by default, or four times *low*.
            low: A quarter of *high* by default.

        Raises:
            ValueError: Not 0 <= *low* <= *high*.
        """
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}), and low >= 0")
        self._high, self._low = high, low
        self._maybe_pause_protocol()

    def _maybe_pause_protocol(self) -> None:
        if self._buffered > self._high and not self._protocol_paused:
            self._protocol_paused = True
            self._tell("pause_writing")

    def _maybe_resume_protocol(self) -> None:
        if self._protocol_paused and self._buffered <= self._low:
            self._protocol_paused = False
            self._tell("resume_writing")

    def _write_now(self, batch: Sequence[Frame]) -> int:
        """Writes frames until there is no room. Returns how many are done with: written, or dropped and told."""
        done = 0
        while done < len(batch):
            try:
                taken = self._queue.write_frames_nowait(batch[done : done + _PART])
            except BlockingIOError:
                return done
            except (TuntapError, OSError, MemoryError) as error:
                done += 1
                if not self._refused(error, batch[done - 1]):
                    return len(batch)
                continue
            if not taken:
                return done
            done += taken
        return done

    def _refused(self, error: Exception, frame: Frame) -> bool:
        """A frame is dropped. Returns whether those behind it may be written."""
        if isinstance(error, (QueueClosedError, DeviceGoneError)):
            return False  # the queue calls `_on_frames`, when what was read before is handed over
        if isinstance(error, MemoryError):
            self._fail("writing failed", error)
        elif not isinstance(error, InvalidFrameError) or size_of(frame):
            self._tell("error_received", error)
        return not (isinstance(error, LinkDownError) or self._ended)

    def _keep(self, frame: Frame) -> None:
        """Puts a frame at the end of the write buffer, as it is now."""
        size = size_of(frame)
        if self._ended:
            if self._late >= _LATE:
                _logger.warning("a frame was written to %r, and dropped", self)
            self._late += 1
        elif size:
            if type(frame) is not bytes:
                frame = b"".join(map(bytes, frame if isinstance(frame, (list, tuple)) else (frame,)))
            self._buffer.append(frame)
            self._buffered += size
            if not self._flushing:
                self._wait_for_room()
            self._maybe_pause_protocol()

    def _wait_for_room(self) -> None:
        self._flushing = True
        self._waiting = self._queue._ask_for_room()
        self._waiting[0].add_done_callback(self._on_room)

    def _forget_room(self) -> None:
        if self._waiting is not None:
            self._queue._forget_room(*self._waiting)
            self._waiting = None

    def _on_room(self, _: asyncio.Future[None]) -> None:
        self._forget_room()
        self._flush()

    def _flush(self) -> None:
        """Writes a part of the write buffer, and comes back for the next one."""
        buffer = self._buffer
        part = list(islice(buffer, _PART))
        done = 0 if self._ended else self._write_now(part)
        if self._ended or self._queue._error is not None:  # the queue calls `_on_frames` for that
            return
        for _ in range(done):
            self._buffered -= size_of(buffer.popleft())
        self._flushing = bool(buffer)
        if done < len(part):
            self._wait_for_room()
        elif buffer:
            self._queue._turns.join(self._loop, self._flush)
        self._maybe_resume_protocol()
        if self._closing and not buffer:
            self._end(None)

    # -- the end -------------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether closing has begun: by `close`, `abort`, or because the interface is gone."""
        return self._closing

    def close(self) -> None:
        """Ends reading at once, writes what is in the write buffer, and then closes the interface.

        If it was made of a queue, that queue alone. `TuntapProtocol.connection_lost` is called with None when that is
        done: the last close of an interface takes the kernel 14 to 55 ms. Closing twice is harmless.
        """
        if not self._closing:
            self._stop_reading()
            if not self._buffer:
                self._end(None)

    def abort(self) -> None:
        """Closes as `close` does, but drops what is in the write buffer."""
        self._force_close(None)

    def _fail(self, message: str, error: Exception) -> None:
        self._report(f"{message}: the transport is closed", error)
        self._force_close(error)

    def _force_close(self, error: Exception | None) -> None:
        if not self._ended:
            self._stop_reading()
            self._buffer.clear()
            self._buffered = 0
            self._end(error)

    def _stop_reading(self) -> None:
        self._closing = True
        if not self._loop.is_closed():
            self._queue._pause()

    def _end(self, error: Exception | None) -> None:
        """Nothing is left to do but to close, on a thread, and to tell the protocol."""
        self._ended = True
        self._queue._receiver = None
        if self._loop.is_running():
            # A task, so that a loop that is about to end waits for it.
            self._ending = self._loop.create_task(self._close_interface())
            self._ending.add_done_callback(lambda _: self._lose(error))
        else:
            self._close_here()
            if not self._loop.is_closed():
                self._loop.call_soon(self._lose, error)

    async def _close_interface(self) -> None:
        await (self._interface if self._owns_interface else self._queue).aclose()

    def _close_here(self) -> None:
        """Without a loop that runs, nobody is kept waiting."""
        interface = self._interface
        if self._owns_interface:
            interface._interface.closed = True
            interface._abandon(interface.queues)
        elif not self._queue.closed:
            interface._abandon([self._queue])

    def _lose(self, error: Exception | None) -> None:
        self._close_here()  # if the task was cancelled before it began
        self._tell("connection_lost", error)
        self._protocol = None


async def create_tuntap_endpoint(
    protocol_factory: Callable[[], P], name: str = "", *, queue: TuntapQueue | None = None, **options: Any
) -> tuple[TuntapTransport, P]:
    """Opens an interface for a protocol that is called back, as ``loop.create_datagram_endpoint`` does with a socket.

    ::

        transport, protocol = await create_tuntap_endpoint(Echo, "vpn0", mode="tun")
        await transport.get_extra_info("interface").configure(addresses=["10.0.0.1/24"], up=True)

    Cancelled or failed, it leaves nothing behind.

    Args:
        protocol_factory: Called without arguments when the interface is open; returns a protocol, such as one derived
            from `TuntapProtocol`.
        name: As for `AsyncTuntap`, and so are the *options*; ``mode`` is required. There is one queue.
        queue: Instead of a name and options, an open queue that nobody reads. The transport closes it, and it alone:
            with this, an interface of several queues has a transport for each. If *protocol_factory* raises, it stays
            open.

    Returns:
        The transport and the protocol, whose `TuntapProtocol.connection_made` has been called.

    Raises:
        SetupError: The interface cannot be opened; see `AsyncTuntap.open`.
        ValueError, TypeError: An argument makes no sense by itself. Nothing was opened.
        QueueClosedError: *queue* is closed.
        RuntimeError: *queue* belongs to another event loop, or has a transport already.
    """
    if queue is not None:
        interface = _owner_of(queue, name, options)
    else:
        if options.get("queues", 1) != 1:
            _raise_one_queue(options["queues"])
        interface = await AsyncTuntap(name, **options).open()
    transport: TuntapTransport | None = None
    try:
        protocol = protocol_factory()
        transport = TuntapTransport(interface, queue or interface.queues[0], protocol, owns_interface=queue is None)
        loop = asyncio.get_running_loop()
        made = loop.create_future()
        loop.call_soon(transport._tell, "connection_made", transport)
        loop.call_soon(transport._begin)
        loop.call_soon(set_done, made)
        await made
        if transport._ending is not None:  # closed in connection_made: connection_lost comes before this returns
            await asyncio.wait([transport._ending])
    except BaseException:
        if transport is not None:
            transport.abort()
            if transport._ending is not None:
                await outlast(transport._ending)
        elif queue is None:
            await interface.aclose()
        raise
    return transport, protocol


def _owner_of(queue: TuntapQueue, name: str, options: dict[str, Any]) -> AsyncTuntap:
    if name or options:
        raise ValueError(f"a queue that is open takes neither name nor options, not {[name, *options]}")
    if not isinstance(queue, TuntapQueue):
        raise TypeError(f"queue must be a TuntapQueue, not {queue!r}")
    queue._check_loop()
    if queue.closed:
        raise QueueClosedError(f"{queue!r} is closed")
    if queue._receiver is not None:
        raise RuntimeError(f"{queue!r} has a transport already")
    assert isinstance(queue._owner, AsyncTuntap)
    return queue._owner


def _raise_one_queue(queues: object) -> NoReturn:
    raise ValueError(
        f"queues must be 1 for an endpoint, not {queues!r}: for several, open an AsyncTuntap, and make an endpoint of each"
        " of its queues with queue="
    )
