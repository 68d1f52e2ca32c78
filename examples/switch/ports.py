"""Ports. Each has a stream of frames, and a function that closes it.

Inside the switch, each frame begins with the kernel's virtio_net_hdr. A TAP interface takes such frames. Other ports,
such as the socket of a virtual machine, get plain frames, and the frames that they send are merged (`plain`, `merged`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, cast

from aiotuntap import (
    AsyncTuntap,
    InvalidFrameError,
    Mode,
    Offload,
    QueueClosedError,
    Stats,
    TuntapError,
    coalesce,
    segment,
)
from aiotuntap.capture import Capture

HEADER_SIZE = 10
_NO_HEADER = bytes(HEADER_SIZE)

# <linux/if_tun.h>; the number is that of most processors.
_TUNGETIFF, _IFREQ_SIZE, _IFF_TAP, _IFF_VNET_HDR = 0x800454D2, 40, 0x0002, 0x4000
_ETHERNET_HEADER = 14


class Frames(Protocol):
    """The methods of a stream that a port uses: some of `aiotuntap.PacketStream`, and counters."""

    @property
    def stats(self) -> Stats: ...

    async def read_frames(self) -> list[bytes]: ...

    async def write_frames(self, frames: list[bytes], /) -> None: ...

    def write_frame_nowait(self, frame: bytes, /) -> None: ...


class Port:
    """A port and its counters."""

    def __init__(self, name: str, frames: Frames, close: Callable[[], Awaitable[object]]) -> None:
        self.name = name
        #: The stream, and the stream wrapped by the capture if there is one.
        self.stream = self.frames = frames
        self._close = close
        self._offered = 0
        self._capture: Capture | None = None

    def __str__(self) -> str:
        came_in, out, dropped = self.counts()
        return f"port {self.name}: {came_in} in, {out} out, {dropped} dropped"

    def counts(self) -> tuple[int, int, int]:
        """How many frames came in, went out, and were dropped instead of going out."""
        stats = self.frames.stats
        return stats.frames_read, stats.frames_written, self._offered - stats.frames_written

    async def record(self, path: str) -> None:
        """Records the frames of this port in a file from now on. Raises SetupError."""
        self._capture = await Capture(path).open()
        self.frames = self._capture.wrap(
            self.frames,  # type: ignore[arg-type] # it uses no other methods
            name=self.name,
            mode="tap",
            header_size=HEADER_SIZE,
        )

    async def write(self, frames: list[bytes]) -> None:
        """Sends frames. They are dropped if the link is down or the kernel refuses them."""
        self._offered += len(frames)
        with contextlib.suppress(TuntapError, OSError):
            try:
                if len(frames) == 1:
                    self.frames.write_frame_nowait(frames[0])
                else:
                    await self.frames.write_frames(frames)
            except InvalidFrameError as error:
                # This kernel does not know this kind of super-frame, such as UDP before Linux 6.2.
                refused = [frames[index] for index in error.indexes if frames[index][1]]
                pieces = [_NO_HEADER + frame for frame in plain(refused)]
                self._offered += len(pieces) - len(refused)
                await self.frames.write_frames(pieces)

    async def aclose(self) -> None:
        """Closes the port. Its reader gets QueueClosedError."""
        await self._close()
        if self._capture is not None:
            await self._capture.aclose()


# -- TAP interfaces ----------------------------------------------------------------------------------------------------


def tap_argument(text: str) -> AsyncTuntap:
    """The interface for ``[NETNS:]NAME``. It is not open yet. Raises ValueError."""
    netns, colon, name = text.rpartition(":")
    return AsyncTuntap(
        name,
        mode="tap",
        multi_queue=False,  # so that another switch cannot open it too, and take some of its frames
        vnet_header=True,
        offload=Offload.ALL,
        netns=netns if colon else None,
    )


def check_tap(fd: int) -> None:
    """Raises ValueError if the descriptor is not a queue of an interface that was opened as above."""
    request = bytearray(_IFREQ_SIZE)
    try:
        fcntl.ioctl(fd, _TUNGETIFF, request)
    except OSError as error:
        raise ValueError(f"the descriptor must be that of a TAP interface: {error.strerror}") from error
    (flags,) = struct.unpack_from("@H", request, 16)
    if not flags & _IFF_TAP or not flags & _IFF_VNET_HDR:
        raise ValueError("the interface must be opened with mode='tap' and vnet_header=True")


async def open_tap(tap: AsyncTuntap) -> Port:
    """Opens an interface as a port. Its station is the kernel of a network namespace. Raises SetupError."""
    await tap.open()
    try:
        await tap.configure(up=True)
    except BaseException:
        await tap.aclose()
        raise
    return tap_port(tap)


def tap_port(tap: AsyncTuntap, name: str | None = None) -> Port:
    """The port of an open interface."""
    (queue,) = tap.queues
    return Port(name or (f"{tap.netns}:{tap.name}" if tap.netns else tap.name), queue, tap.aclose)


# -- ports without virtio_net_hdr --------------------------------------------------------------------------------------


def plain(frames: Iterable[bytes]) -> list[bytes]:
    """Plain frames: super-frames are segmented, checksums are complete. Frames that cannot be segmented are dropped."""
    found: list[bytes] = []
    for frame in frames:
        if frame.startswith(b"\0\0"):  # nothing to complete or to segment
            found.append(frame[HEADER_SIZE:])
        else:
            with contextlib.suppress(InvalidFrameError):
                found += segment(frame, Mode.TAP)
    return found


def merged(frames: Sequence[bytes]) -> list[bytes]:
    """Frames with a virtio_net_hdr, made of plain frames. Consecutive frames of one flow become super-frames."""
    whole = [frame for frame in frames if len(frame) >= _ETHERNET_HEADER]
    return coalesce(whole, Mode.TAP) if len(whole) > 1 else [_NO_HEADER + frame for frame in whole]


# -- virtual machines --------------------------------------------------------------------------------------------------

#: The largest frame that is accepted from a socket: 64 KiB, with VLAN tags.
_LARGEST = 65535 + 22

#: Reading pauses when more than this many frames wait; frames are dropped when more than this many bytes wait to be sent.
_MOST_READ = 1024
_MOST_WRITTEN = 1 << 20


class MachineFrames(asyncio.Protocol):
    """Frames over a Unix socket, in the format of QEMU's ``-netdev stream``: each follows its length in four bytes."""

    def __init__(self, accept: Callable[[MachineFrames], object]) -> None:
        self._accept = accept
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._frames: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._ended = False
        self._read = self._written = self._dropped = 0

    @property
    def stats(self) -> Stats:
        return Stats(frames_read=self._read, frames_written=self._written, frames_dropped=self._dropped)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport is not a subclass
        self._accept(self)

    def data_received(self, data: bytes) -> None:
        received, at = self._received, 0
        received += data
        while len(received) - at >= 4:
            size = int.from_bytes(received[at : at + 4])
            if size > _LARGEST:  # this is not a stream of frames
                self._end()
                return
            if len(received) - at < 4 + size:
                break
            self._frames.append(bytes(received[at + 4 : at + 4 + size]))
            at += 4 + size
        del received[:at]
        if len(self._frames) > _MOST_READ and self._transport is not None:
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = True
        self._wake()

    async def read_frames(self) -> list[bytes]:
        """Waits for at least one frame. Raises QueueClosedError when the connection has ended."""
        while not self._frames:
            if self._ended:
                raise QueueClosedError("the other side has closed the connection")
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        frames = merged(list(self._frames))
        self._read += len(self._frames)
        self._frames.clear()
        if self._transport is not None and not self._ended:
            self._transport.resume_reading()
        return frames

    async def write_frames(self, frames: list[bytes]) -> None:
        """Sends frames, or drops them if the other side is too slow."""
        self._write(frames)

    def write_frame_nowait(self, frame: bytes) -> None:
        """Sends one frame, or drops it if the other side is too slow."""
        self._write([frame])

    async def aclose(self) -> None:
        self._end()

    def _write(self, frames: list[bytes]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() > _MOST_WRITTEN:
            return
        self._written += len(frames)
        transport.write(b"".join(len(frame).to_bytes(4) + frame for frame in plain(frames)))

    def _end(self) -> None:
        self._ended = True
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Listener:
    """A socket to which virtual machines connect, until it is closed."""

    def __init__(self, server: asyncio.AbstractServer, path: str) -> None:
        self._server = server
        self._path = path

    def close(self) -> None:
        """Accepts no more connections. Existing connections stay."""
        self._server.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)


async def listen(path: str, accept: Callable[[MachineFrames], object]) -> Listener:
    """Makes a Unix socket at *path*, private to its owner. *accept* is called for each virtual machine that connects.

    Raises:
        OSError: The path exists already, or the socket cannot be created.
    """
    sock = bind_unix(path)
    server = await asyncio.get_running_loop().create_unix_server(lambda: MachineFrames(accept), sock=sock)
    return Listener(server, path)


def bind_unix(path: str) -> socket.socket:
    """A stream socket at *path*, private to its owner. It replaces a socket on which no process listens any more.

    Raises:
        OSError: The path exists already, or the socket cannot be created.
    """
    sock = _unix_socket()
    try:
        if _is_abandoned(path):
            os.unlink(path)
        sock.bind(path)
        os.chmod(path, 0o600)  # connecting is not possible before listen()
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot create the socket {path}: {error.strerror or error}") from error
    return sock


def _is_abandoned(path: str) -> bool:
    """Whether *path* is a socket on which no process listens."""
    if not os.path.lexists(path) or not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with _unix_socket() as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
