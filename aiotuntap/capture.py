"""Recording what goes through a stream of frames, as a pcapng file that Wireshark and tshark read.

::

    async with Capture("vm0.pcapng") as capture:
        queue = capture.wrap(tap.queues[0])
        ...  # read and write through queue

Each packet is stored with its time in nanoseconds, its direction as the program sees it (inbound is what was read,
outbound what was written), and the name and queue of its interface. Frames that carry a virtio_net_hdr are stored as
they would be on a wire: super-frames segmented, checksums complete, and without the header.

The traffic comes first. The event loop formats packets, and a thread writes them, at most 50 ms later: whatever the file
does, nobody who reads or writes frames waits for it. Packets for which there is no room meanwhile are missing from the
file, which says how many. An error, such as a full disk or a pipe that was closed, ends the capture and not the
traffic: it is logged once, as a warning of the logger ``aiotuntap.capture``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from time import time_ns
from types import TracebackType
from typing import Any, Self, TypeAlias

from ._abi import PI_SIZE
from ._background import BackgroundWriter, open_for_writing
from ._batch import as_batch
from ._errors import InvalidFrameError, QueueClosedError
from ._interface import Interface
from ._offload.header import check_size
from ._pcapng import INBOUND, OUTBOUND, interface, packet, section, statistics, whole_blocks
from ._super_frames import segment
from ._threads import outlast, run_in_thread
from ._types import Buffer, Frame, Mode, Owning, PacketStream

__all__ = ["Capture", "CapturedStream"]

File: TypeAlias = str | os.PathLike[str] | int

# Seconds until packets are handed to the thread, or as many bytes of them.
_DELAY = 0.05
_ENOUGH = 1 << 18

# Seconds that closing waits for a reader that has stopped reading.
_PATIENCE = 1.0

_logger = logging.getLogger(__name__)


class Capture(Owning):
    """One pcapng file, and any number of streams that are recorded in it.

    Args:
        file: The path of a file, which is made (readable by its owner) or emptied, or of a named pipe that is being
            read; or an open descriptor, which is duplicated and stays yours.
        snaplen: Bytes of each packet that are stored at most; 0 for all of them.
        buffer: Bytes that may wait for the file to take them. Packets beyond that are missing from it.

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
        #: Packets missing from the file, for each interface, and their names.
        self._missed: list[int] = []
        #: The number of each interface in the file, and how many of its queues are recorded.
        self._interfaces: dict[tuple[object, Mode], tuple[int, int]] = {}
        self._pieces: list[Buffer] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None

    async def open(self) -> Self:
        """Opens the file and returns the object itself. When cancelled, the file may have been made.

        Raises:
            SetupError: The file cannot be opened; ``errno`` says why.
            RuntimeError: It was opened before.
        """
        if self._loop is not None or self._closed:
            raise RuntimeError("this Capture was opened or closed before: make a new one")
        self._loop = asyncio.get_running_loop()
        try:
            fd = await run_in_thread(lambda: open_for_writing(self._file), os.close)
            try:
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
        """Writes what is left, closes the file, and leaves the streams as they are. Closing twice is harmless.

        A pipe whose reader does not read is given up after a second. Cancelling delays until the file is closed.
        """
        writer = self._end()
        if writer is None:
            return
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(_set_done, done)

        writer.end(_PATIENCE, tell)
        cancelled = await outlast(done)
        if cancelled is not None:
            raise cancelled

    def _end(self) -> BackgroundWriter | None:
        """Records nothing more. Returns what still has to be ended."""
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
        if getattr(self, "_writer", None) is None or self._closed:
            return
        try:
            warnings.warn(
                f"unclosed capture {self!r}: call aclose(), or use 'async with'",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )
        finally:  # the warning may be made an error
            writer = self._end()
            if writer is not None:
                writer.end(_PATIENCE)

    def __repr__(self) -> str:
        return f"<Capture to {_label(self._file)}{' closed' if self._closed else ''}>"

    @property
    def error(self) -> OSError | None:
        """What ended the capture early, such as ``ENOSPC`` or ``EPIPE``."""
        return None if self._writer is None else self._writer.error

    @property
    def missed(self) -> int:
        """Packets that are missing from the file, because it took them too slowly."""
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
        """A stream that does what *stream* does, and records what goes through it.

        What goes through *stream* itself is not recorded. What the new one has not by itself (``stats``, ``fileno()``,
        ``disable()``…) is that of *stream*.

        Args:
            stream: Any `PacketStream`. All further arguments are known already of queues and interfaces.
            name: Of the interface.
            mode: Of the frames: ``"tap"`` or ``"tun"``.
            queue: Its number; by default how many streams with this name were wrapped before.
            header_size: Bytes of the virtio_net_hdr that each frame begins with; 0 for none.

        Raises:
            RuntimeError: The capture is not open.
            ValueError: An argument is missing or makes no sense.
        """
        if self._writer is None or self._closed:
            raise RuntimeError("the capture is not open: 'async with', or await open()")
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
            raise ValueError(f"name and mode: both are needed for a {type(stream).__name__}")
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
        """Stores frames that have no header any more and will not change."""
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
    """A `PacketStream` that records what goes through another one. Made by `Capture.wrap`.

    Methods do, raise and return what those of the other one do. A frame is recorded when it was read, or when it was
    written: those that were refused are not in the file, and of a batch whose writing was cancelled or ended by an error
    that concerns all of it, such as a link that is down, none is.
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
        #: Bytes in front of everything else.
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
        """Closes the stream, and not the capture."""
        await self._stream.aclose()

    async def read_frame(self) -> bytes:
        """The next frame. Cancelling loses none."""
        frame: bytes = await self._stream.read_frame()
        self._record([frame], INBOUND)
        return frame

    async def read_frames(self, *limit: int, **named: int) -> list[bytes]:
        """At least one frame, and as many more as are there, up to *limit*. Cancelling loses none."""
        frames: list[bytes] = await self._stream.read_frames(*limit, **named)
        self._record(frames, INBOUND)
        return frames

    def read_frame_nowait(self) -> bytes:
        """The next frame, or BlockingIOError when there is none."""
        frame: bytes = self._stream.read_frame_nowait()
        self._record([frame], INBOUND)
        return frame

    def _read_frames_nowait(self, *limit: int, **named: int) -> list[bytes]:
        frames: list[bytes] = self._stream.read_frames_nowait(*limit, **named)
        self._record(frames, INBOUND)
        return frames

    def __aiter__(self) -> Self:
        """Frames as they come, until the stream is closed here."""
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.read_frame()
        except QueueClosedError:
            raise StopAsyncIteration from None

    async def write_frame(self, frame: Frame) -> None:
        """Writes one frame, whole or, when cancelled, not at all."""
        await self._stream.write_frame(frame)
        self._record([frame], OUTBOUND)

    async def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes what can be written, in order, and reports what was refused in one InvalidFrameError."""
        batch = as_batch(frames)
        try:
            await self._stream.write_frames(batch)
        except InvalidFrameError as error:
            self._record([frame for index, frame in enumerate(batch) if index not in error.indexes], OUTBOUND)
            raise
        self._record(batch, OUTBOUND)

    def write_frame_nowait(self, frame: Frame) -> None:
        """Writes one frame, or raises BlockingIOError when there is no room for it now."""
        self._stream.write_frame_nowait(frame)
        self._record([frame], OUTBOUND)

    def _write_frames_nowait(self, frames: Iterable[Frame]) -> int:
        batch = as_batch(frames)
        taken: int = self._stream.write_frames_nowait(batch)
        self._record(batch[:taken], OUTBOUND)
        return taken

    def _record(self, frames: Sequence[Frame], direction: int) -> None:
        if frames and self._capture._is_recording:
            plain = [piece for frame in frames for piece in self._plain(frame)]
            self._capture._record(plain, self._number, self._queue, direction)

    def _plain(self, frame: Frame) -> Sequence[Buffer]:
        """What a frame looks like on a wire, in memory that nobody changes."""
        pieces = frame if isinstance(frame, (list, tuple)) else (frame,)
        data = b"".join(map(bytes, pieces))
        if self._skip:
            data = data[self._skip :]
        if not self._header_size:
            return [data]
        try:
            return segment(data, self._mode, header_size=self._header_size)
        except InvalidFrameError:  # a super-frame within a tunnel: as one packet
            return [data[self._header_size :]]


def _label(file: File) -> str:
    return f"descriptor {file}" if isinstance(file, int) else repr(os.fspath(file))


def _report(file: File, error: OSError) -> None:
    _logger.warning("the capture to %s has ended: %s; frames pass as before", _label(file), error.strerror)


def _set_done(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
