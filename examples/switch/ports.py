"""Ports: a stream of frames each, and what opens and closes it.

Within the switch each frame has the kernel's virtio_net_hdr in front. A TAP interface takes it as it is. What cannot,
such as the socket of a virtual machine, gets plain frames, and what it sends is merged (`plain`, `merged`).
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
    """What a port needs of a stream of frames: a part of `aiotuntap.PacketStream`, and counters."""

    @property
    def stats(self) -> Stats: ...

    async def read_frames(self) -> list[bytes]: ...

    async def write_frames(self, frames: list[bytes], /) -> None: ...

    def write_frame_nowait(self, frame: bytes, /) -> None: ...


class Port:
    """A port, and how many frames went in and out of it."""

    def __init__(self, name: str, frames: Frames, close: Callable[[], Awaitable[object]]) -> None:
        self.name = name
        #: What it is made of, and the same with a capture around it if there is one.
        self.stream = self.frames = frames
        self._close = close
        self._offered = 0
        self._capture: Capture | None = None

    def __str__(self) -> str:
        came_in, out, dropped = self.counts()
        return f"port {self.name}: {came_in} in, {out} out, {dropped} dropped"

    def counts(self) -> tuple[int, int, int]:
        """Frames that came in, that went out, and that were lost on the way out."""
        stats = self.frames.stats
        return stats.frames_read, stats.frames_written, self._offered - stats.frames_written

    async def record(self, path: str) -> None:
        """Writes what goes through this port to a file, from now on. Raises SetupError."""
        self._capture = await Capture(path).open()
        self.frames = self._capture.wrap(
            self.frames,  # type: ignore[arg-type] # no other method of it is called
            name=self.name,
            mode="tap",
            header_size=HEADER_SIZE,
        )

    async def write(self, frames: list[bytes]) -> None:
        """Sends what can be sent. The rest met a link that is down or a kernel that refused it, and is lost."""
        self._offered += len(frames)
        with contextlib.suppress(TuntapError, OSError):
            try:
                if len(frames) == 1:
                    self.frames.write_frame_nowait(frames[0])
                else:
                    await self.frames.write_frames(frames)
            except InvalidFrameError as error:
                # Super-frames of a kind that this kernel does not know, such as those of UDP before Linux 6.2.
                refused = [frames[index] for index in error.indexes if frames[index][1]]
                pieces = [_NO_HEADER + frame for frame in plain(refused)]
                self._offered += len(pieces) - len(refused)
                await self.frames.write_frames(pieces)

    async def aclose(self) -> None:
        """Ends the port; who reads from it gets QueueClosedError."""
        await self._close()
        if self._capture is not None:
            await self._capture.aclose()


# -- TAP interfaces ----------------------------------------------------------------------------------------------------


def tap_argument(text: str) -> AsyncTuntap:
    """The interface that ``[NETNS:]NAME`` asks for, not open yet. Raises ValueError."""
    netns, colon, name = text.rpartition(":")
    return AsyncTuntap(
        name,
        mode="tap",
        multi_queue=False,  # another switch must not open it as well, and take some of its frames
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
        raise ValueError(f"not a descriptor of a TAP interface: {error.strerror}") from error
    (flags,) = struct.unpack_from("@H", request, 16)
    if not flags & _IFF_TAP or not flags & _IFF_VNET_HDR:
        raise ValueError("the interface must be opened with mode='tap' and vnet_header=True")


async def open_tap(tap: AsyncTuntap) -> Port:
    """A port whose station is the kernel of a network namespace. Raises SetupError."""
    await tap.open()
    try:
        await tap.configure(up=True)
    except BaseException:
        await tap.aclose()
        raise
    return tap_port(tap)


def tap_port(tap: AsyncTuntap, name: str | None = None) -> Port:
    """A port for an interface that is open."""
    (queue,) = tap.queues
    return Port(name or (f"{tap.netns}:{tap.name}" if tap.netns else tap.name), queue, tap.aclose)


# -- ports that know no virtio_net_hdr ---------------------------------------------------------------------------------


def plain(frames: Iterable[bytes]) -> list[bytes]:
    """What such a port is sent: super-frames segmented, checksums complete. What cannot be segmented is left out."""
    found: list[bytes] = []
    for frame in frames:
        if frame.startswith(b"\0\0"):  # nothing is left undone
            found.append(frame[HEADER_SIZE:])
        else:
            with contextlib.suppress(InvalidFrameError):
                found += segment(frame, Mode.TAP)
    return found


def merged(frames: Sequence[bytes]) -> list[bytes]:
    """What such a port sends, as the others take it: with a header, and runs of one flow in super-frames."""
    whole = [frame for frame in frames if len(frame) >= _ETHERNET_HEADER]
    return coalesce(whole, Mode.TAP) if len(whole) > 1 else [_NO_HEADER + frame for frame in whole]


# -- virtual machines --------------------------------------------------------------------------------------------------

#: The largest frame that is taken from a socket: of 64 KiB, with tags.
_LARGEST = 65535 + 22

#: Frames and bytes that wait for each other's side before frames are dropped, or not read any more.
_MOST_READ = 1024
_MOST_WRITTEN = 1 << 20


class MachineFrames(asyncio.Protocol):
    """Frames over a Unix socket as ``-netdev stream`` of QEMU has them: each behind its length in four bytes."""

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
        self._transport = cast(asyncio.Transport, transport)  # that of uvloop does not derive from it
        self._accept(self)

    def data_received(self, data: bytes) -> None:
        received, at = self._received, 0
        received += data
        while len(received) - at >= 4:
            size = int.from_bytes(received[at : at + 4])
            if size > _LARGEST:  # whoever this is does not speak of frames
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
        """At least one frame. Raises QueueClosedError when the connection has ended."""
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
        """Sends them, or drops them where the other side does not keep up."""
        self._write(frames)

    def write_frame_nowait(self, frame: bytes) -> None:
        """As `write_frames`."""
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
    """A socket where virtual machines connect, until it is closed."""

    def __init__(self, server: asyncio.AbstractServer, path: str) -> None:
        self._server = server
        self._path = path

    def close(self) -> None:
        """Accepts no others. Those that are connected stay."""
        self._server.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)


async def listen(path: str, accept: Callable[[MachineFrames], object]) -> Listener:
    """A Unix socket at *path*, for its owner alone. Each virtual machine that connects is given to *accept*.

    Raises:
        OSError: The path is taken, or cannot be made.
    """
    sock = bind_unix(path)
    server = await asyncio.get_running_loop().create_unix_server(lambda: MachineFrames(accept), sock=sock)
    return Listener(server, path)


def bind_unix(path: str) -> socket.socket:
    """A stream socket at *path* that only its owner can connect to. One that nobody listens at any more is replaced.

    Raises:
        OSError: The path is taken, or the socket cannot be made there.
    """
    sock = _unix_socket()
    try:
        if _is_abandoned(path):
            os.unlink(path)
        sock.bind(path)
        os.chmod(path, 0o600)  # before anyone can connect, which takes listen()
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot make the socket {path}: {error.strerror or error}") from error
    return sock


def _is_abandoned(path: str) -> bool:
    """Whether there is a socket that nobody listens at."""
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
