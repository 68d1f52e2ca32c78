"""Records the frames of a stream in a pcapng file, which Wireshark and tshark can read.

::

    async with Capture("vm0.pcapng") as capture:
        queue = capture.wrap(tap.queues[0])
        ...  # read and write through queue

Each packet is stored with its time in nanoseconds, its direction (frames that the program read are inbound, frames that
it wrote are outbound), and the name and queue of its interface. Frames with a virtio_net_hdr are stored as they would
look on a cable: super-frames are segmented, checksums are complete, and the header is removed.

The capture never delays the traffic. The event loop formats the packets, and a thread writes them to the file within
50 ms. If the file is too slow, packets are left out, and the file says how many. An error, such as a full disk or a
closed pipe, ends the capture, but not the traffic: it is logged once, as a warning of the logger ``aiotuntap.capture``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from threading import get_ident
from time import time_ns
from types import TracebackType
from typing import Any, NoReturn, Self, TypeAlias

from ._abi import PI_SIZE
from ._background import BackgroundWriter, open_for_writing
from ._batch import as_batch
from ._errors import InvalidFrameError, QueueClosedError
from ._interface import Interface
from ._offload.header import check_size
from ._pcapng import INBOUND, OUTBOUND, interface, packet, section, statistics, whole_blocks
from ._reader import raise_wrong_caller
from ._super_frames import segment
from ._threads import collect, outlast, run_in_thread
from ._types import Buffer, Frame, Mode, Owning, PacketStream

__all__ = ["Capture", "CapturedStream"]

File: TypeAlias = str | os.PathLike[str] | int

# Packets are handed to the thread after this many seconds, or when they have this many bytes.
_DELAY = 0.05
_ENOUGH = 1 << 18

# Seconds that closing waits for the reader of a pipe that does not read.
_PATIENCE = 1.0

_NOT_OPEN = "this Capture was not opened: use 'async with', or await open()"

_logger = logging.getLogger(__name__)


class Capture(Owning):
    """One pcapng file, which records any number of streams.

    Args:
        file: Path of a file, which is created (readable only by its owner) or emptied; path of a named pipe that a
            program reads; or an open descriptor, which is duplicated: you still have to close your own.
        snaplen: How many bytes of each packet to store at most. 0 stores whole packets.
        buffer: How many bytes may wait to be written. Packets over this limit are left out of the file.

    Raises:
        ValueError: *snaplen* or *buffer* is negative.
    """

    def __init__(self, file: File, *, snaplen: int = 0, buffer: int = 1 << 24) -> None:
        if snaplen < 0:
            raise ValueError(f"snaplen must be at least 0 bytes, not {snaplen}")
        if buffer < 0:
            raise ValueError(f"buffer must be at least 0 bytes, not {buffer}")
        self._file = file
        self._snaplen = snaplen
        self._most = buffer
        self._writer: BackgroundWriter | None = None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = self._pid = 0
        #: Packets that are missing from the file, for each interface.
        self._missed: list[int] = []
        #: The number of each interface in the file, and how many of its queues are recorded.
        self._interfaces: dict[tuple[object, Mode], tuple[int, int]] = {}
        self._pieces: list[Buffer] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    async def open(self) -> Self:
        """Opens the file and returns the object itself. When cancelled, the file may have been created.

        Raises:
            SetupError: The file cannot be opened; ``errno`` says why.
            RuntimeError: This object was opened or closed before, or was closed while this waited.
        """
        if self._loop is not None or self._closed:
            raise RuntimeError("this Capture was opened or closed before: make a new one")
        self._loop, self._thread, self._pid = asyncio.get_running_loop(), get_ident(), os.getpid()
        try:
            fd = await run_in_thread(lambda: open_for_writing(self._file), os.close)
            try:
                if self._closed:
                    raise RuntimeError("this Capture was closed while open() was running: make a new one")
                self._writer = BackgroundWriter(fd, whole_blocks, partial(_report, self._file))
            except BaseException:
                os.close(fd)
                raise
        except BaseException:
            self._loop = None
            raise
        self._add(section())
        return self

    async def aclose(self) -> None:
        """Writes the remaining packets and closes the file. The streams stay open. Closing twice is harmless.

        If the reader of a pipe does not read, it waits for one second at most. When cancelled, it first closes the file.

        Raises:
            RuntimeError: Called from another thread or event loop than the one that opened it.
        """
        if self._loop is not None and not self._loop.is_closed() and asyncio.get_running_loop() is not self._loop:
            self._wrong_caller()
        writer = self._end()
        if writer is None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # Its loop was closed with this capture open, and now the coroutine that used it is being closed.
            writer.end(_PATIENCE)
            return
        done: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(_set_done, done)

        writer.end(_PATIENCE, tell)
        cancelled = await outlast(done)
        if cancelled is not None:
            raise cancelled

    def _end(self) -> BackgroundWriter | None:
        """Stops recording. Returns the writer if it still has to be ended."""
        if self._closed:
            return None
        writer = self._writer
        if writer is not None:
            for number, missed in enumerate(self._missed):
                self._add(statistics(number, time_ns(), missed))
            self._flush()
        self._closed = True
        return writer

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_writer", None) is not None and not self._closed:
            assert self._loop is not None
            collect(self, self._loop, self._thread, self._pid, self._abandon)

    def _abandon(self) -> None:
        """Ends without waiting for it."""
        writer = self._end()
        if writer is not None:
            writer.end(_PATIENCE)

    def _wrong_caller(self) -> NoReturn:
        assert self._loop is not None
        raise_wrong_caller(self._loop, self._thread, "a Capture")

    def __repr__(self) -> str:
        return f"<Capture to {_label(self._file)}{' closed' if self._closed else ''}>"

    @property
    def error(self) -> OSError | None:
        """The error that ended the capture early, such as ``ENOSPC`` or ``EPIPE``, or None."""
        return None if self._writer is None else self._writer.error

    @property
    def missed(self) -> int:
        """How many packets are missing from the file because writing it was too slow."""
        return sum(self._missed)

    def wrap(
        self,
        stream: PacketStream,
        *,
        name: str | None = None,
        mode: Mode | str | None = None,
        queue: int | None = None,
        header_size: int | None = None,
    ) -> CapturedStream:
        """Returns a stream that behaves like *stream* and records the frames that are read and written through it.

        Frames that are read or written on *stream* directly are not recorded. Every other attribute (``stats``,
        ``fileno()``, ``disable()`` and so on) is that of *stream*.

        Args:
            stream: Any `PacketStream`. For a `TuntapQueue`, all further arguments are found automatically.
            name: Name of the interface.
            mode: ``"tap"`` for Ethernet frames, or ``"tun"`` for IP packets.
            queue: Number of the queue. The default is the number of streams with this name that were wrapped before.
            header_size: Size in bytes of the virtio_net_hdr at the start of each frame; 0 if there is none.

        Raises:
            RuntimeError: The capture is not open, or belongs to another thread.
            ValueError: *name* or *mode* is missing, or an argument has an invalid value.
        """
        if self._writer is None or self._closed:
            raise RuntimeError("this Capture is closed: make a new one" if self._closed else _NOT_OPEN)
        if get_ident() != self._thread:
            self._wrong_caller()
        of = getattr(stream, "_interface", None)
        skip = 0
        if isinstance(of, Interface):
            options = of.options
            name = of.name if name is None else name
            mode = options.mode if mode is None else mode
            skip = PI_SIZE if options.packet_info else 0
            if header_size is None:
                header_size = options.vnet_header_size if options.vnet_header else 0
        if name is None or mode is None:
            raise ValueError(f"wrap() needs name= and mode= for a {type(stream).__name__}, which does not have them")
        if header_size:
            check_size(header_size)
        mode = Mode(mode)
        key = (of if isinstance(of, Interface) else name, mode)
        number, queues = self._interfaces.get(key, (len(self._missed), 0))
        if not queues:
            self._missed.append(0)
            self._add(interface(name, mode, self._snaplen))
        self._interfaces[key] = number, queues + 1
        return CapturedStream(self, stream, number, queues if queue is None else queue, mode, skip, header_size or 0)

    def _add(self, block: bytes) -> None:
        self._keep([block], len(block))

    def _record(self, plain: Sequence[Buffer], number: int, queue: int, direction: int) -> None:
        """Stores frames without their headers. The buffers must not change later."""
        assert self._writer is not None
        now = time_ns()
        pieces: list[Buffer] = []
        for frame in plain:
            if self._snaplen and len(frame) > self._snaplen:
                pieces += packet(frame[: self._snaplen], number, queue, direction, now, len(frame))
            else:
                pieces += packet(frame, number, queue, direction, now)
        size = sum(map(len, pieces))
        if self._writer.waiting + self._size + size > self._most:
            self._missed[number] += len(plain)
        else:
            self._keep(pieces, size)

    def _keep(self, pieces: Sequence[Buffer], size: int) -> None:
        self._pieces += pieces
        self._size += size
        if self._size >= _ENOUGH:
            self._flush()
        elif self._timer is None:
            assert self._loop is not None
            if not self._loop.is_closed():
                self._timer = self._loop.call_later(_DELAY, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pieces, size = self._pieces, self._size
        self._pieces, self._size = [], 0
        if pieces and self._writer is not None:
            self._writer.write(pieces, size)

    @property
    def _is_recording(self) -> bool:
        return not self._closed and self._writer is not None and self._writer.error is None


class CapturedStream(Owning):
    """A `PacketStream` that records the frames of another one. Made by `Capture.wrap`.

    Its methods do, return and raise what those of the other stream do. A frame is recorded after it was read or written.
    Refused frames are not in the file. If a batch is cancelled, or ends early with an error such as LinkDownError, none
    of its frames is in the file.
    """

    __slots__ = ("_capture", "_header_size", "_mode", "_number", "_queue", "_skip", "_stream")

    def __init__(
        self, capture: Capture, stream: PacketStream, number: int, queue: int, mode: Mode, skip: int, header_size: int
    ) -> None:
        self._capture = capture
        self._stream: Any = stream
        self._number = number
        self._queue = queue
        self._mode = mode
        #: Bytes of packet information in front of each frame.
        self._skip = skip
        self._header_size = header_size

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._stream, name)
        return {"read_frames_nowait": self._read_frames_nowait, "write_frames_nowait": self._write_frames_nowait}.get(
            name, found
        )

    def __repr__(self) -> str:
        return f"<captured {self._stream!r}>"

    @property
    def closed(self) -> bool:
        """Whether the stream was closed."""
        return bool(self._stream.closed)

    async def aclose(self) -> None:
        """Closes the stream. The capture stays open."""
        await self._stream.aclose()

    async def read_frame(self) -> bytes:
        """Waits for the next frame and returns it. Cancelling loses no frame."""
        frame: bytes = await self._stream.read_frame()
        self._record([frame], INBOUND)
        return frame

    async def read_frames(self, *limit: int, **named: int) -> list[bytes]:
        """Waits for at least one frame and returns the available ones, at most *limit*. Cancelling loses no frame."""
        frames: list[bytes] = await self._stream.read_frames(*limit, **named)
        self._record(frames, INBOUND)
        return frames

    def read_frame_nowait(self) -> bytes:
        """Returns the next frame without waiting. Raises BlockingIOError if there is none."""
        frame: bytes = self._stream.read_frame_nowait()
        self._record([frame], INBOUND)
        return frame

    def _read_frames_nowait(self, *limit: int, **named: int) -> list[bytes]:
        frames: list[bytes] = self._stream.read_frames_nowait(*limit, **named)
        self._record(frames, INBOUND)
        return frames

    def __aiter__(self) -> Self:
        """Iterates over the frames until the stream is closed here."""
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.read_frame()
        except QueueClosedError:
            raise StopAsyncIteration from None

    async def write_frame(self, frame: Frame) -> None:
        """Writes one frame. When cancelled, the frame was written whole or not at all."""
        await self._stream.write_frame(frame)
        self._record([frame], OUTBOUND)

    async def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes all frames that it can, in order, and reports the refused ones in one InvalidFrameError."""
        batch = as_batch(frames)
        try:
            await self._stream.write_frames(batch)
        except InvalidFrameError as error:
            self._record([frame for index, frame in enumerate(batch) if index not in error.indexes], OUTBOUND)
            raise
        self._record(batch, OUTBOUND)

    def write_frame_nowait(self, frame: Frame) -> None:
        """Writes one frame without waiting. Raises BlockingIOError if the send buffer is full."""
        self._stream.write_frame_nowait(frame)
        self._record([frame], OUTBOUND)

    def _write_frames_nowait(self, frames: Iterable[Frame]) -> int:
        batch = as_batch(frames)
        taken: int = self._stream.write_frames_nowait(batch)
        self._record(batch[:taken], OUTBOUND)
        return taken

    def _record(self, frames: Sequence[Frame], direction: int) -> None:
        if frames and self._capture._is_recording:
            try:
                plain = [piece for frame in frames for piece in self._plain(frame)]
                self._capture._record(plain, self._number, self._queue, direction)
            except MemoryError:  # the frames were read or written nevertheless
                self._capture._missed[self._number] += len(frames)

    def _plain(self, frame: Frame) -> Sequence[Buffer]:
        """The frame as it would look on a cable, in buffers that do not change later."""
        pieces = frame if isinstance(frame, (list, tuple)) else (frame,)
        data = b"".join(map(bytes, pieces))
        if self._skip:
            data = data[self._skip :]
        if not self._header_size:
            return [data]
        try:
            return segment(data, self._mode, header_size=self._header_size)
        except InvalidFrameError:  # segment() does not know super-frames inside UDP tunnels: store it as one packet
            return [data[self._header_size :]]


def _label(file: File) -> str:
    return f"descriptor {file}" if isinstance(file, int) else repr(os.fspath(file))


def _report(file: File, error: OSError) -> None:
    _logger.warning("the capture to %s ended with an error: %s; the traffic continues", _label(file), error.strerror)


def _set_done(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
