"""Datagrams in batches: the other half of a tunnel, with the life cycle and the guarantees of a queue.

Datagrams of one size that follow each other leave in one message (UDP_SEGMENT), and what the kernel received as one
(UDP_GRO) is handed out as the datagrams that it was. See udp(7).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn, Self, cast

from . import _engine
from ._address import Address, AnyAddress, pack, split
from ._batch import size_of
from ._datagrams import IP_PKTINFO, SOL_UDP, UDP_GRO, UDP_SEGMENT, send_pieces
from ._descriptor import DescriptorStream
from ._errors import DeviceGoneError, InvalidFrameError, LinkDownError, QueueClosedError, cannot
from ._frames import LOOK, MOST, WRONG_THREAD, keep_freed_memory
from ._netns import enter, parse_namespace
from ._reader import DEFAULT_LIMIT, READ_BUFFER, parse_read_buffer
from ._threads import collect, run_in_thread
from ._turns import Turns
from ._types import Frame, Stats

__all__ = ["Address", "AnyAddress", "UdpStats", "UdpStream"]

# Bytes that are enough for one batch, and that the kernel is asked to keep either way while nobody takes them.
_ENOUGH = 1 << 18
_ROOM = 1 << 22

# SO_MARK is without a sign, and what Python makes of a number is not.
_MARK = struct.Struct("=I")

# What fits into a datagram of each family.
_LARGEST = {socket.AF_INET: 65507, socket.AF_INET6: 65527}

# Addresses that are kept, so that a sender's is made once. All are forgotten when there are more.
_MOST_ADDRESSES = 4096

# Seconds for which datagrams leave one by one that could not leave together.
_PAUSE = 10.0

# Datagrams in one message. Linux 5.10 counts the headers too, and so has no room for the last one.
_MOST_IN_RUN, _MOST_IN_OLD_RUN = 64, 63

# What the kernel answers where datagrams cannot leave together: the device cannot complete checksums (EIO), or they are
# larger than the way takes.
_NOT_TOGETHER = (errno.EIO, errno.EINVAL, errno.EMSGSIZE)

# What it answers where the own address that a datagram is to leave from is gone.
_NOT_OWN = (errno.EINVAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ENODEV)

# What an ICMP error becomes. The kernel reports it once, to whatever is called next, which then did nothing.
_ICMP = (
    errno.ECONNREFUSED,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EMSGSIZE,
    errno.EPROTO,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.EACCES,
    errno.EHOSTDOWN,
    errno.ENONET,
)
# So many times a call is repeated that an ICMP error kept from doing anything.
_TRIES = 4

# There is no way to that address now.
_NO_WAY = (
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.ENODEV,
    errno.EADDRNOTAVAIL,
    errno.ECONNREFUSED,
)
_REFUSED = (errno.EINVAL, errno.EMSGSIZE, errno.EPERM, errno.EACCES, errno.EFAULT, errno.EAFNOSUPPORT)
_DEAD = (errno.EBADF, errno.ENOTSOCK)


@dataclass(frozen=True, slots=True)
class UdpStats(Stats):
    """What went through a `UdpStream`: frames are datagrams, and super-frames messages with several of them."""

    #: ICMP errors that came back for what had been sent.
    icmp_errors: int = 0


class _Addresses(dict[bytes, Address]):
    """Senders by the bytes of their address."""

    def __missing__(self, data: bytes) -> Address:
        if len(self) >= _MOST_ADDRESSES:
            self.clear()
        address = self[data] = bytes.__new__(Address, data)
        return address


class UdpStream(DescriptorStream[Any]):
    """A UDP socket as an asynchronous stream of datagrams, read and written in batches.

    With *remote*, it is a `PacketStream`, and this is one half of a tunnel::

        async with AsyncTuntap("vpn0", mode="tun") as tun, UdpStream(":51820", "192.0.2.1:51820") as udp:
            while True:
                await udp.write_frames(await tun.queues[0].read_frames())

    Without, datagrams come and go with their addresses (`read_datagrams`, `write_datagrams`), and a reply leaves from
    the address that it was sent to.

    Nothing that comes from the network ends the stream. An ICMP error is counted (`UdpStats.icmp_errors`) and whatever
    it interrupted is done again. What the kernel says of a datagram that is being written is raised, as a queue would:
    InvalidFrameError where it refuses this one (larger than the way takes, forbidden by a firewall) and LinkDownError
    where there is no route now. As over any UDP socket, what was written may be lost on the way.

    Args:
        local: Where to receive: ``"192.0.2.1:51820"``, ``"[fd00::1]:51820"``, ``":51820"`` (all own addresses of both
            families, or of that of *remote*), or a tuple of host and port. Port 0, or nothing at all, lets the kernel
            choose.
        remote: The only address to send to and receive from, or None.
        netns: Network namespace of the socket: a name as in ``ip netns``, or a path such as ``/proc/PID/ns/net``.
        read_buffer: Datagrams that are kept in user space: a full buffer stops reading, and reading resumes when it has
            fallen to a quarter, or to the second number of a pair ``(high, low)``. It may be exceeded by one message.
            A buffer that holds 4 MiB is full as well.
        gso: Send several datagrams in one message (UDP_SEGMENT) where that is possible.
        gro: Receive several datagrams in one message (UDP_GRO).
        reuse_port: Let several sockets share the address; the kernel spreads the flows (SO_REUSEPORT).
        mark: That of each datagram, for the choice of a route (SO_MARK). It takes CAP_NET_ADMIN.

    Raises:
        ValueError, TypeError: An argument makes no sense by itself. Nothing was opened.
    """

    __slots__ = (
        "_addresses",
        "_apart",
        "_gro",
        "_gso",
        "_icmp_errors",
        "_local",
        "_mark",
        "_most",
        "_names",
        "_netns",
        "_received_together",
        "_remote",
        "_reuse_port",
        "_sock",
        "_super_frames",
    )

    _smallest = 0

    def __init__(
        self,
        local: AnyAddress = "",
        remote: AnyAddress | None = None,
        *,
        netns: str | os.PathLike[str] | None = None,
        read_buffer: int | tuple[int, int] = READ_BUFFER,
        gso: bool = True,
        gro: bool = True,
        reuse_port: bool = False,
        mark: int | None = None,
    ) -> None:
        # Until it is open it belongs to no thread, and so whoever uses it is told.
        self._thread = self._max_frame = 0
        self._fd = -1
        self._closed = False
        self._turns = Turns()
        self._engine = _engine.engine
        self._names = split(local), None if remote is None else split(remote)
        _check_families(*self._names)
        if mark is not None:
            _pack_mark(mark)
        self._high, self._low = parse_read_buffer(read_buffer)
        self._netns = None if netns is None else parse_namespace(netns)
        self._gso, self._gro, self._reuse_port, self._mark = gso, gro, reuse_port, mark
        self._local: Address | None = None
        self._remote: Address | None = None

    # -- opening and closing -------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Opens the socket and returns the object itself.

        Cancelled or failed, it leaves nothing behind.

        Raises:
            SetupError: The address is not one of this machine or is taken, there is no route to *remote*, or a right is
                missing. ``errno`` is the kernel's; also a PermissionError where that is what it is.
            ValueError: A link-local address names an interface that does not exist.
        """
        if self._thread:
            raise RuntimeError("this UdpStream was opened before: make a new one")
        if self._closed:
            raise RuntimeError("this UdpStream was closed before it was opened: make a new one")
        sock = await run_in_thread(self._make_socket, undo=socket.socket.close)
        if self._closed or self._thread:
            sock.close()
            raise QueueClosedError("this UdpStream was closed, or opened, while it was being opened")
        self._sock = sock
        try:
            self._begin(sock)
        except BaseException:
            self._release()
            raise
        return self

    def _begin(self, sock: socket.socket) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            sock.fileno(),
            _LARGEST[socket.AddressFamily(sock.family)],
            (self._high, self._low),
        )
        self._local = _address(sock.getsockname())
        self._remote = None if self._names[1] is None else _address(sock.getpeername())
        self._addresses = None if self._remote else _Addresses()
        #: Where datagrams could not leave together: bytes of the largest that can, and when more is tried again.
        self._apart: dict[bytes | None, tuple[int, float]] = {}
        #: Datagrams that are sent in one call at most.
        self._most = MOST
        #: Datagrams in each message of several, when `_pull` last met one; 0 if it left the next one where it was.
        self._received_together = 0
        #: As in `Stats`: super-frames read, segments made, super-frames written, frames coalesced, super-frames refused.
        self._super_frames = [0] * 5
        self._icmp_errors = 0
        keep_freed_memory()
        self._resume()

    def _make_socket(self) -> socket.socket:
        """The socket, bound and connected. It blocks, and stays in another namespace: for a thread of its own."""
        (host, port), remote = self._names
        enter(self._netns)
        families = [_family_of(name) for name in (host, remote[0] if remote else "") if name]
        both = not families
        try:
            sock = socket.socket(families[0] if families else socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            if not both or error.errno != errno.EAFNOSUPPORT:
                raise cannot("make a UDP socket", error) from error
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._set_options(sock, both)
            _try(f"bind {host or '*'}:{port}", sock.bind, _sockaddr(sock, host, port))
            if remote is not None:
                _try(f"send to {remote[0]}:{remote[1]}", sock.connect, _sockaddr(sock, *remote))
        except BaseException:
            sock.close()
            raise
        return sock

    def _set_options(self, sock: socket.socket, both: bool) -> None:
        is_v6 = sock.family == socket.AF_INET6
        if is_v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        if self._reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if self._mark is not None:
            _set_mark(sock, self._mark)
        for forced, option in ((32, socket.SO_SNDBUF), (33, socket.SO_RCVBUF)):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, _ROOM)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, option, _ROOM)  # as much as net.core.[rw]mem_max allows
        self._gro = self._gro and _has_option(sock, SOL_UDP, UDP_GRO, 1)
        self._gso = self._gso and _has_option(sock, SOL_UDP, UDP_SEGMENT, 0)
        if self._names[1] is None:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            if is_v6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)

    async def aclose(self) -> None:
        """Closes the socket. Who waits gets QueueClosedError. Closing twice is harmless."""
        if self._closed:
            return
        if not self._thread:
            self._closed = True
            return
        if not self._loop.is_closed():
            self._check_loop()
        self._release()

    def _release(self) -> None:
        self._shut(QueueClosedError("this UdpStream is closed"))
        self._sock.close()

    async def __aenter__(self) -> Self:
        return self if self._thread else await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            collect(self, self._loop, self._thread, self._pid, self._release)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self._fd}" if self._thread else "not open"
        way = f"{self._local or _text(self._names[0])}"
        if self._names[1] is not None:
            way += f" to {self._remote or _text(self._names[1])}"
        return f"<UdpStream {way} {state}>"

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._closed

    @property
    def local(self) -> Address:
        """The address that it is bound to. RuntimeError before it is open."""
        if self._local is None:
            self._wrong_caller()
        return self._local

    @property
    def remote(self) -> Address | None:
        """The only address that it sends to and receives from, once it is open; or None."""
        return self._remote

    @property
    def stats(self) -> UdpStats:
        """What went through since it was opened, as a new snapshot. Datagrams count when they leave the kernel.

        ``super_frames_refused`` are messages that the kernel did not take while it took their datagrams one by one; for
        ten seconds, datagrams of that size are then sent to that address one by one.
        """
        if not self._thread:
            return UdpStats()
        counts = [self._frames_read, self._frames_written, self._frames_refused, self._frames_dropped]
        return UdpStats(*[*counts, *self._super_frames, self._icmp_errors])

    async def set_mark(self, mark: int) -> None:
        """Sets the mark of datagrams from now on (SO_MARK); 0 is none.

        Raises:
            SetupError: It takes CAP_NET_ADMIN.
            ValueError: *mark* is not a number of 32 bits.
        """
        self._check_loop()
        _set_mark(self._sock, mark)

    def _check_loop(self) -> None:
        if not self._thread or asyncio.get_running_loop() is not self._loop:
            self._wrong_caller()

    def _wrong_caller(self) -> NoReturn:
        if not self._thread:
            raise RuntimeError(f"{self!r}: use 'async with', or await open()")
        super()._wrong_caller()

    # -- reading -------------------------------------------------------------------------------------------------------

    def _pull(self, limit: int) -> None:
        if self._buffer and limit < self._received_together:
            self._received_together = 0  # a second time in a row, it is read all the same
            return
        for _ in range(_TRIES):
            frames, number, messages, segments, lost = self._engine.receive_batch(
                self._sock, limit, _ENOUGH, self._addresses
            )
            self._received_together = segments // messages if messages else 0
            self._super_frames[0] += messages
            self._super_frames[1] += segments
            self._frames_dropped += lost
            self._keep(frames, number)
            if frames or not number or number == errno.EAGAIN or self._error is not None:
                return

    def _pull_one(self) -> None:
        self._pull(self._batch)  # with messages of many datagrams, to ask for one is to ask too often

    def _buffered_bytes(self) -> int:
        return super()._buffered_bytes() if self._addresses is None else sum(len(data) for data, _ in self._buffer)

    def _read_failed(self, number: int) -> None:
        if number in _DEAD:
            self._fail(self._failure(number))
        else:
            self._watch_again()
            self._icmp_errors += 1  # there may be datagrams behind it

    async def read_frame(self) -> bytes:
        """Waits for the next datagram and returns it.

        Several tasks may read; they are served in the order they asked, each datagram to one of them. Cancelling loses
        none.

        Raises:
            QueueClosedError: The stream was closed here, before or meanwhile.
            RuntimeError: It has no *remote*, is not open, or belongs to another thread or event loop.
        """
        self._check_remote()
        frame: bytes = await super().read_frame()
        return frame

    async def read_frames(self, limit: int = DEFAULT_LIMIT) -> list[bytes]:
        """Waits for at least one datagram and returns all that are there, in order, *limit* at most.

        A batch also ends when it has 256 KiB. Cancelling loses no datagram. A *limit* over 4096 is one of 4096.

        Raises:
            QueueClosedError: The stream was closed here, before or meanwhile.
            RuntimeError: It has no *remote*, is not open, or belongs to another thread or event loop.
            ValueError: *limit* is not a whole number of at least 1.
        """
        self._check_remote()
        return await super().read_frames(limit)

    def read_frame_nowait(self) -> bytes:
        """Returns a datagram that is there already, in the buffer or in the kernel.

        Raises:
            BlockingIOError: There is none, or other tasks are waiting for it already.
            QueueClosedError: The stream was closed here.
            RuntimeError: It has no *remote*, is not open, or belongs to another thread.
        """
        self._check_remote()
        frame: bytes = super().read_frame_nowait()
        return frame

    def read_frames_nowait(self, limit: int = DEFAULT_LIMIT) -> list[bytes]:
        """Returns the datagrams that are there already: at least one, *limit* at most.

        Raises:
            BlockingIOError: There is none, or other tasks are waiting for it already.
            QueueClosedError: The stream was closed here.
            RuntimeError: It has no *remote*, is not open, or belongs to another thread.
            ValueError: *limit* is not a whole number of at least 1.
        """
        self._check_remote()
        return super().read_frames_nowait(limit)

    async def read_datagrams(self, limit: int = DEFAULT_LIMIT) -> list[tuple[bytes, Address]]:
        """Waits for at least one datagram and returns all that are there, each with the address of its sender.

        As `read_frames`, for a stream without *remote*. Given back to `write_datagrams`, the address makes a reply
        leave from where the datagram came to.

        Raises:
            QueueClosedError: The stream was closed here, before or meanwhile.
            RuntimeError: It has a *remote*, is not open, or belongs to another thread or event loop.
            ValueError: *limit* is not a whole number of at least 1.
        """
        self._check_no_remote("read_frames")
        return await super().read_frames(limit)

    def read_datagrams_nowait(self, limit: int = DEFAULT_LIMIT) -> list[tuple[bytes, Address]]:
        """Returns the datagrams that are there already, with their senders: at least one, *limit* at most.

        Raises:
            BlockingIOError: There is none, or other tasks are waiting for it already.
            QueueClosedError: The stream was closed here.
            RuntimeError: It has a *remote*, is not open, or belongs to another thread.
            ValueError: *limit* is not a whole number of at least 1.
        """
        self._check_no_remote("read_frames_nowait")
        return super().read_frames_nowait(limit)

    def _check_remote(self) -> None:
        if self._names[1] is None:
            raise RuntimeError("this UdpStream has no remote: use read_datagrams and write_datagrams")

    def _check_no_remote(self, instead: str) -> None:
        if self._names[1] is not None:
            raise RuntimeError(f"this UdpStream has a remote, {self._remote or _text(self._names[1])}: use {instead}")

    # -- writing -------------------------------------------------------------------------------------------------------

    async def write_datagrams(self, datagrams: Iterable[Frame], address: AnyAddress) -> None:
        """Sends every datagram that it can to *address*, in order. As `write_frames`, for a stream without *remote*.

        Args:
            datagrams: Each a bytes-like object, or a list or tuple of them that together are one datagram.
            address: As it came from `read_datagrams`, which costs nothing, or as for `Address`.

        Raises:
            InvalidFrameError: Some datagrams were refused: ``indexes`` says which. All others were sent.
            LinkDownError: There is no route to it now. Sending ended at once; a note on the exception says where.
            QueueClosedError: The stream was closed here. The note says where sending ended.
            RuntimeError: It has a *remote*, is not open, or belongs to another thread or event loop.
            TypeError: One of them is not a datagram. The note says which.
            ValueError: *address* is not one.
        """
        self._check_no_remote("write_frames")
        await self._write_all(datagrams, Address(address))

    def write_datagrams_nowait(self, datagrams: Iterable[Frame], address: AnyAddress) -> int:
        """Sends datagrams to *address* from the front, in order, as far as that goes without waiting.

        Returns:
            How many were taken: all of them, unless the send buffer is full. A datagram that is refused was not taken,
            and neither were those behind it; it raises when it is the first one.

        Raises:
            InvalidFrameError: The kernel refuses the first datagram.
            LinkDownError: There is no route to it now.
            QueueClosedError: The stream was closed here.
            RuntimeError: It has a *remote*, is not open, or belongs to another thread.
            TypeError: The first one is not a datagram.
            ValueError: *address* is not one.
        """
        self._check_no_remote("write_frames_nowait")
        return self._write_front(datagrams, Address(address))

    def _write_batch(self, frames: Sequence[Frame], start: int, to: bytes | None) -> tuple[int, int]:
        if self._closed:
            return 0, errno.EBADF
        together = self._most_together(to) if self._gso else 0
        sent, number, tried = self._send(frames, start, self._most, together, to)
        if tried == _MOST_IN_RUN and number == errno.EINVAL and self._most == MOST:
            self._most = _MOST_IN_OLD_RUN
            return sent, 0
        if tried > 1 and number == errno.EMSGSIZE and to is None:  # an ICMP error would be told once
            again, number, tried = self._send(frames, start + sent, tried, together, to)
            sent += again
            self._icmp_errors += number != errno.EMSGSIZE
        if tried > 1 and number in _NOT_TOGETHER:
            alone, other, _ = self._send(frames, start + sent, 1, 0, to)
            if alone:
                self._send_apart(number, size_of(frames[start + sent]), to)
            sent, number = sent + alone, other
        return sent, errno.EAGAIN if number == errno.ENOBUFS else number

    def _send(
        self, frames: Sequence[Frame], start: int, most: int, together: int, to: bytes | None
    ) -> tuple[int, int, int]:
        sent, number, tried, messages, coalesced = self._engine.send_batch(
            self._sock, self._max_frame, together, start, most, frames, to
        )
        self._super_frames[2] += messages
        self._super_frames[3] += coalesced
        self._note(number)
        return sent, number, tried

    def _note(self, number: int) -> None:
        """What sending was answered: an error that the socket reported is reported to nobody else."""
        if number > 0 and number != errno.EAGAIN:
            self._watch_again()

    def _most_together(self, to: bytes | None) -> int:
        """Bytes of the largest datagram that leaves together with others."""
        if to in self._apart:
            size, until = self._apart[to]
            if monotonic() < until:
                return size
            del self._apart[to]
        return self._max_frame

    def _send_apart(self, number: int, size: int, to: bytes | None) -> None:
        """Datagrams of so many bytes cannot leave together there now, though each can."""
        self._super_frames[4] += 1
        if len(self._apart) >= _MOST_ADDRESSES:
            self._apart.clear()
        self._apart[to] = 0 if number == errno.EIO else size - 1, monotonic() + _PAUSE

    def _write_closely(self, number: int, frame: Frame, to: bytes | None = None) -> int:
        if number == WRONG_THREAD:
            self._wrong_caller()
        size = size_of(frame)
        if self._closed:
            return errno.EBADF
        if number == LOOK and size > self._max_frame:
            self._frames_refused += 1
            raise InvalidFrameError(f"a datagram of {size} bytes: there can be {self._max_frame} at most")
        if number == errno.EAGAIN or number in _DEAD:
            return number
        self._note(number)
        pieces: Any = frame if isinstance(frame, (list, tuple)) else [frame]
        way = cast("Address | None", to)
        for _ in range(_TRIES):
            if way is not None and number in _NOT_OWN:
                way = way.remote
            before, number = number, send_pieces(self._sock, pieces, way)
            self._note(number)
            if way is None and before in _ICMP and number != before:
                self._icmp_errors += 1
            if number in (0, errno.EAGAIN, errno.ENOBUFS):
                return number and errno.EAGAIN
            if number not in (*_ICMP, *_NOT_OWN):
                break
        return number

    def _refusal(self, number: int) -> Exception:
        if number in _DEAD and not self._closed:
            self._fail(self._failure(number))
        return super()._refusal(number)

    def _failure(self, number: int) -> Exception:
        cause = OSError(number, os.strerror(number))
        error: Exception
        if self._closed:
            error = QueueClosedError("this UdpStream is closed")
        elif number in _DEAD:
            error = DeviceGoneError(number, "the socket of this UdpStream was closed by something else")
        elif number in (errno.EDESTADDRREQ, errno.ENOTCONN):
            error = RuntimeError("this UdpStream has no remote: use read_datagrams and write_datagrams")
        elif number in _NO_WAY:
            error = LinkDownError(number, f"cannot send it now: {cause.strerror}; try again when there is a route")
        elif number in _REFUSED:
            error = InvalidFrameError(f"the kernel refuses the datagram: {cause.strerror}; {_reason(number)}")
        else:
            return cause
        error.__cause__ = cause
        return error


def _reason(number: int) -> str:
    if number == errno.EMSGSIZE:
        return "it is larger than the way takes"
    if number in (errno.EPERM, errno.EACCES):
        return "a firewall forbids it, or it goes to a broadcast address"
    return "the address is not one that it can go to from here"


def _family_of(host: str) -> socket.AddressFamily:
    return pack(host.partition("%")[0], 0).family


def _check_families(local: tuple[str, int], remote: tuple[str, int] | None) -> None:
    if remote is None:
        return
    if not remote[0] or not remote[1]:
        raise ValueError(f"remote {_text(remote)!r} must name a host and a port, as '192.0.2.1:51820'")
    if local[0] and _family_of(local[0]) is not _family_of(remote[0]):
        raise ValueError(f"local {_text(local)!r} and remote {_text(remote)!r} must be of one family, IPv4 or IPv6")


def _text(name: tuple[str, int]) -> str:
    host, port = name
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(name: tuple[Any, ...]) -> Address:
    """What a socket tells of an address. Its text names an interface of the calling thread's namespace: the number counts."""
    host = str(name[0]).partition("%")[0]
    return pack(f"{host}%{name[3]}" if len(name) > 3 and name[3] else host, name[1])


def _sockaddr(sock: socket.socket, host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    if not host:
        return "", port
    address = pack(host, port)
    return (address.host, port) if sock.family == socket.AF_INET else (host.partition("%")[0], port, 0, address.scope)


def _set_mark(sock: socket.socket, mark: int) -> None:
    _try(f"mark datagrams with {mark}", sock.setsockopt, socket.SOL_SOCKET, socket.SO_MARK, _pack_mark(mark))


def _pack_mark(mark: int) -> bytes:
    try:
        return _MARK.pack(mark)
    except struct.error:
        raise ValueError(f"mark must be a number from 0 to 0xFFFFFFFF, not {mark!r}") from None


def _has_option(sock: socket.socket, level: int, option: int, value: int) -> bool:
    try:
        sock.setsockopt(level, option, value)
    except OSError:  # an older kernel
        return False
    return True


_HINTS = {
    errno.EADDRINUSE: "another program has it; choose another port, or reuse_port=True in both",
    errno.EADDRNOTAVAIL: "it is not an address of this machine, or of this network namespace",
    errno.EPERM: "it takes CAP_NET_ADMIN",
    errno.EACCES: "a port below 1024 takes CAP_NET_BIND_SERVICE",
    errno.ENETUNREACH: "there is no route to it",
    errno.EHOSTUNREACH: "there is no route to it",
}


def _try(action: str, call: Any, *arguments: Any) -> None:
    try:
        call(*arguments)
    except OSError as error:
        raise cannot(action, error, _HINTS.get(error.errno or 0, "")) from error
