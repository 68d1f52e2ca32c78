"""The transport of an endpoint: it passes the frames of one queue to a protocol, and has a write buffer.

The queue calls the transport instead of waking a reader: when frames are available, and when the queue has ended. No
task runs, except while closing. The time that a protocol uses counts in the time slice that all streams of a loop share
(`_turns`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from threading import get_ident
from time import monotonic
from typing import Any

from ._batch import as_batch, size_of
from ._errors import DeviceGoneError, InvalidFrameError, LinkDownError, QueueClosedError, TuntapError
from ._queue import TuntapQueue
from ._reader import fresh
from ._tuntap import AsyncTuntap
from ._types import Frame, Owning

# Frames of the write buffer that one callback writes.
_PART = 512

# Bytes in the write buffer above which the protocol is asked to pause, as in asyncio.
_HIGH_WATER = 64 * 1024

# How many frames may be written to a closed transport before a warning is logged, as in asyncio.
_LATE = 5

_ASKED_OF_INTERFACE = ("name", "mode", "index", "netns", "offload")

_logger = logging.getLogger(__package__)


class TuntapTransport(Owning, asyncio.DatagramTransport):
    """Reads and writes the frames of one queue, and calls a protocol. Made by `create_tuntap_endpoint`.

    Use it only from the thread of the event loop. No method waits. The loop keeps the transport alive while it reads,
    and while its write buffer has frames.
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
        #: Whether closing the transport closes the whole interface, or only the queue.
        self._owns_interface = owns_interface
        #: Frames that were read, but not yet passed to the protocol.
        self._backlog: deque[bytes] = deque()
        #: Frames that were not yet written, and their bytes.
        self._buffer: deque[Frame] = deque()
        self._buffered = 0
        #: Whether `_flush` will be called; and the future and its timer, if `_flush` waits for room in the send buffer.
        self._flushing = False
        self._waiting: tuple[asyncio.Future[None], asyncio.TimerHandle] | None = None
        self._paused = self._protocol_paused = False
        #: `_closing` is set by `close`; `_ended` is set when the write buffer is empty.
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
        """Information about the interface.

        Args:
            name: ``"interface"`` for the `AsyncTuntap`, to configure it; ``"queue"`` for the `TuntapQueue`;
                ``"name"``, ``"mode"``, ``"index"``, ``"netns"`` or ``"offload"`` for that attribute of the interface.
            default: Returned for any other name.
        """
        if name in _ASKED_OF_INTERFACE:
            return getattr(self._interface, name)
        return {"interface": self._interface, "queue": self._queue}.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Replaces the protocol that is called. Neither the old nor the new one is notified."""
        self._protocol: Any = protocol
        self._in_batches = hasattr(protocol, "frames_received")

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that is called. None after its `TuntapProtocol.connection_lost`."""
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

    def _check_thread(self) -> None:
        """Raises for a call from another thread while the loop runs. Without a loop that runs, nothing can go wrong."""
        if get_ident() != self._queue._thread and self._loop.is_running():
            self._queue._wrong_caller()

    # -- reading -------------------------------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Whether the protocol gets frames. False while reading is paused, and after closing has begun."""
        return not (self._closing or self._paused)

    def pause_reading(self) -> None:
        """Stops passing frames to the protocol, until `resume_reading`. Pausing twice is harmless.

        The kernel keeps frames up to its queue length, and drops more. While reading is paused, the transport notices
        that the interface was deleted only when a frame is written.

        Raises:
            RuntimeError: Called from another thread than the one that the queue belongs to.
        """
        self._check_thread()
        if self.is_reading():
            self._paused = True
            self._queue._pause()

    def resume_reading(self) -> None:
        """Passes frames to the protocol again. Resuming twice is harmless.

        Raises:
            RuntimeError: Called from another thread than the one that the queue belongs to.
        """
        self._check_thread()
        if self._paused and not self._closing:
            self._paused = False
            self._read_on()

    def _begin(self) -> None:
        """Starts reading. Frames that the queue has buffered already come first."""
        queue = self._queue
        if not self._closing:
            queue._pause()
            queue._receiver = self._on_frames
            queue._on_first_wait()
            if not self._paused:
                self._read_on()

    def _read_on(self) -> None:
        self._queue._resume()
        self._come_back()

    def _come_back(self) -> None:
        """Schedules `_on_frames` where the descriptor triggers no callback: for buffered frames, and for the end."""
        if self._backlog or self._queue._buffer or self._queue._error is not None:
            self._queue._line_up()

    def _on_frames(self) -> None:
        """Called when frames may be available, or the queue has ended."""
        queue = self._queue
        if not self.is_reading():
            if queue._error is not None:
                self._force_close(fresh(queue._error))
            else:  # another reader has read from the queue, which resumed it
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
        """Passes frames one by one, until the time slice ends or the protocol pauses or closes."""
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

        Errors are passed to `TuntapProtocol.error_received`, or end the transport. Empty frames are ignored. Frames
        written after closing are dropped; from the sixth on, a warning is logged.

        Args:
            frame: A bytes-like object, or a list or tuple of them that together are one frame.

        Raises:
            TypeError: *frame* is not a frame.
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
        """Writes frames in order, each as `write_frame` does. With offloads, frames are merged into super-frames.

        Args:
            frames: Each is a bytes-like object, or a list or tuple of them that together are one frame.

        Raises:
            TypeError: One of *frames* is not a frame. Those before it were written.
            RuntimeError: Called from another thread than the one that the queue belongs to.
        """
        batch = as_batch(frames)
        taken = 0 if self._ended or self._buffer else self._write_now(batch)
        for frame in islice(batch, taken, None):
            self._keep(frame)

    def sendto(self, data: Frame, addr: None = None) -> None:  # type: ignore[override]
        """Another name for `write_frame`, for code that writes to datagram transports too.

        Raises:
            ValueError: *addr* is not None.
            TypeError: *data* is not a frame.
            RuntimeError: Called from another thread than the one that the queue belongs to.
        """
        if addr is not None:
            raise ValueError(f"addr must be None, not {addr!r}: a frame contains its addresses")
        self.write_frame(data)

    def get_write_buffer_size(self) -> int:
        """Size of the write buffer in bytes. It is used only while the send buffer of the interface is full."""
        return self._buffered

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The lower and the upper limit in bytes: see `set_write_buffer_limits`."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Sets when `TuntapProtocol.pause_writing` and `TuntapProtocol.resume_writing` are called.

        Args:
            high: The protocol is asked to pause above this many bytes. The default is four times *low*, or else 65536.
            low: The protocol is asked to resume at this many bytes. The default is a quarter of *high*.

        Raises:
            ValueError: *low* is negative, or larger than *high*.
            RuntimeError: Called from another thread than the one that the queue belongs to.
        """
        self._check_thread()
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high must be >= low, and low >= 0: not high={high!r} and low={low!r}")
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
        """Writes frames until the send buffer is full. Returns how many were written, or dropped with an error."""
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
        """Reports an error that dropped a frame. Returns whether the frames after it may be written."""
        if isinstance(error, (QueueClosedError, DeviceGoneError)):
            return False  # the queue calls `_on_frames` after the frames that were read before
        if isinstance(error, MemoryError):
            self._fail("writing failed", error)
        elif not isinstance(error, InvalidFrameError) or size_of(frame):
            self._tell("error_received", error)
        return not (isinstance(error, LinkDownError) or self._ended)

    def _keep(self, frame: Frame) -> None:
        """Appends a copy of the frame to the write buffer."""
        self._check_thread()
        size = size_of(frame)
        if self._ended:
            if self._late >= _LATE:
                _logger.warning("a frame was written to %r: it is dropped", self)
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
        """Writes a part of the write buffer, and schedules the next part."""
        buffer = self._buffer
        part = list(islice(buffer, _PART))
        done = 0 if self._ended else self._write_now(part)
        if self._ended or self._queue._error is not None:  # the queue calls `_on_frames`, which ends the transport
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
        """Whether closing has begun: by `close`, by `abort`, or because the interface was deleted."""
        return self._closing

    def close(self) -> None:
        """Stops reading, writes the frames in the write buffer, and then closes the interface.

        A transport that was made with ``queue=`` closes only that queue. `TuntapProtocol.connection_lost` is called with
        None after closing. Closing the last queue of an interface takes 14 to 55 ms. Closing twice is harmless.

        Raises:
            RuntimeError: Called from another thread than the one that the queue belongs to, while its loop runs.
        """
        self._check_thread()
        if not self._closing:
            self._stop_reading()
            if not self._buffer:
                self._end(None)

    def abort(self) -> None:
        """Closes as `close` does, but drops the frames in the write buffer.

        Raises:
            RuntimeError: Called from another thread than the one that the queue belongs to, while its loop runs.
        """
        self._check_thread()
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
        """Closes the interface on a thread, and then calls `TuntapProtocol.connection_lost`."""
        self._ended = True
        self._queue._receiver = None
        if self._loop.is_running():
            # A task: asyncio.run() cancels it and waits for it, so the interface is closed.
            self._ending = self._loop.create_task(self._close_interface())
            self._ending.add_done_callback(lambda _: self._lose(error))
        else:
            self._close_here()
            if not self._loop.is_closed():
                self._loop.call_soon(self._lose, error)

    async def _close_interface(self) -> None:
        await (self._interface if self._owns_interface else self._queue).aclose()

    def _close_here(self) -> None:
        """Closes without a thread: the loop does not run, or closing was cancelled."""
        interface = self._interface
        if self._owns_interface:
            interface._close_at_once()
        elif not self._queue.closed:
            interface._abandon([self._queue])

    def _lose(self, error: Exception | None) -> None:
        self._close_here()  # if the task was cancelled before it began
        self._tell("connection_lost", error)
        self._protocol = None
