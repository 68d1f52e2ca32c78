"""UDP datagrams in batches, for the network side of a tunnel. A `UdpStream` opens, closes and fails as a queue does.

Consecutive datagrams of one size are sent in one message (UDP_SEGMENT). The kernel may also receive several datagrams in
one message (UDP_GRO); the reader gets the single datagrams. See udp(7).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn, Self, cast

from . import _engine
from ._address import Address, AnyAddress, split, to_text
from ._batch import size_of
from ._datagrams import send_pieces
from ._descriptor import DescriptorStream, set_done
from ._errors import DeviceGoneError, InvalidFrameError, LinkDownError, QueueClosedError, cannot_poll, closed, not_open
from ._frames import LOOK, MOST, WRONG_THREAD, keep_freed_memory
from ._netns import parse_namespace
from ._reader import DEFAULT_LIMIT, READ_BUFFER, parse_read_buffer
from ._threads import collect, outlast, run_in_thread
from ._turns import Turns
from ._types import Frame, Stats
from ._udp_socket import (
    SocketOptions,
    address_of,
    check_names,
    has_gso,
    make_socket,
    pack_mark,
    set_mark,
    turn_on_gro,
)

__all__ = ["Address", "AnyAddress", "UdpStats", "UdpStream"]

# Reading stops when a batch has this many bytes.
_ENOUGH = 1 << 18

# Largest payload of a datagram, in bytes.
_LARGEST = {socket.AF_INET: 65507, socket.AF_INET6: 65527}

# Sender addresses to cache. The cache is emptied when it is full.
_MOST_ADDRESSES = 4096

# After a message with several datagrams was refused, datagrams are sent one by one for this many seconds.
_PAUSE = 10.0

# Seconds between two tries while the kernel has no memory for a datagram (ENOBUFS). It says that the socket is writable
# meanwhile, so that waiting for that would be no pause.
_MEMORY_PAUSE = 0.01

# Datagrams in one message. Linux 5.10 includes the headers in its limit, and takes one datagram less.
_MOST_IN_RUN, _MOST_IN_OLD_RUN = 64, 63

# The kernel refuses a message with several datagrams: the device cannot complete checksums (EIO), or the datagrams are
# larger than the path MTU.
_NOT_TOGETHER = (errno.EIO, errno.EINVAL, errno.EMSGSIZE)

# The local address that a datagram must be sent from does not exist any more.
_NOT_OWN = (errno.EINVAL, errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ENODEV)

# Errors that may come from an ICMP message. The kernel reports each of them once, to the next call on the socket. That
# call then does nothing else, and has to be made again.
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
# How many times a call is made while ICMP errors interrupt it.
_TRIES = 4

# The address cannot be reached now.
_NO_ROUTE = (
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

_NO_REMOTE = "this UdpStream has no remote: use read_datagrams and write_datagrams"


@dataclass(frozen=True, slots=True)
class UdpStats(Stats):
    """Counters of a `UdpStream`. Frames are datagrams; super-frames are messages with several datagrams."""

    #: ICMP errors received for datagrams that were sent.
    icmp_errors: int = 0


class _Addresses(dict[bytes, Address]):
    """A cache of sender addresses. The key is the address as bytes."""

    def __missing__(self, data: bytes) -> Address:
        if len(self) >= _MOST_ADDRESSES:
            self.clear()
        address = self[data] = bytes.__new__(Address, data)
        return address


class UdpStream(DescriptorStream[Any]):
    """A UDP socket as an asynchronous stream of datagrams, read and written in batches.

    With *remote*, it is a `PacketStream`. This is one direction of a tunnel::

        async with AsyncTuntap("vpn0", mode="tun") as tun, UdpStream(":51820", "192.0.2.1:51820") as udp:
            while True:
                await udp.write_frames(await tun.queues[0].read_frames())

    Without *remote*, datagrams are read and written with their addresses (`read_datagrams`, `write_datagrams`). A reply
    is sent from the local address that the request was sent to.

    Nothing that is received from the network ends the stream. An ICMP error is counted (`UdpStats.icmp_errors`), and the
    call that it interrupted is repeated. If the kernel refuses a datagram, writing raises what a queue raises:
    InvalidFrameError if this datagram cannot be sent (too large for the path MTU, or forbidden by a firewall), and
    LinkDownError if there is no route now. UDP is unreliable: datagrams that were written may still be lost.

    Args:
        local: Local address: ``"192.0.2.1:51820"``, ``"[fd00::1]:51820"``, or a tuple of host and port.
            ``":51820"`` means all local addresses, of the address family of *remote* or else of both families. With
            port 0 or an empty string, the kernel chooses the port.
        remote: The only address to send to and to receive from, or None.
        netns: Network namespace of the socket: a name as in ``ip netns``, or a path such as ``/proc/PID/ns/net``.
        read_buffer: Datagrams to keep in user space. Reading from the kernel stops when the buffer is full, which it also is
            when it holds 4 MiB. Reading resumes when a quarter is left, or *low* datagrams if this is a pair
            ``(high, low)``. One message with several datagrams may exceed the limit.
        gso: Send several datagrams in one message (UDP_SEGMENT) where possible.
        gro: Receive several datagrams in one message (UDP_GRO).
        reuse_port: Let several sockets share the address (SO_REUSEPORT). The kernel distributes the flows among them.
        mark: Mark of each datagram, for policy routing and firewalls (SO_MARK). Requires CAP_NET_ADMIN.

    Raises:
        ValueError: An argument has an invalid value. Nothing was opened.
        TypeError: An argument has the wrong type. Nothing was opened.
    """

    __slots__ = (
        "_addresses",
        "_apart",
        "_gro",
        "_gso",
        "_icmp_errors",
        "_local",
        "_most",
        "_netns",
        "_options",
        "_out_of_memory",
        "_received_together",
        "_remote",
        "_sock",
        "_super_frames",
        "_under_way",
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
        # No thread has the number 0. So every use before open() raises.
        self._thread = self._max_frame = 0
        self._fd = -1
        self._closed = False
        self._turns = Turns()
        self._engine = _engine.engine
        names = split(local), None if remote is None else split(remote)
        check_names(*names)
        if mark is not None:
            pack_mark(mark)
        self._options = SocketOptions(*names, reuse_port, mark)
        self._high, self._low = parse_read_buffer(read_buffer)
        self._netns = None if netns is None else parse_namespace(netns)
        self._gso, self._gro = gso, gro
        #: A future for each call of `open` that is going on.
        self._under_way: list[asyncio.Future[None]] = []
        self._local: Address | None = None
        self._remote: Address | None = None

    # -- opening and closing -------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Opens the socket and returns the object itself.

        If it fails or is cancelled, no socket is left open.

        Raises:
            SetupError: The local address does not exist here or is in use, there is no route to *remote*, or a
                privilege is missing. ``errno`` is the kernel's. It is also a PermissionError for EPERM and EACCES.
            ValueError: A link-local address names an interface that does not exist.
            QueueClosedError: `aclose` was called while this waited.
            RuntimeError: The stream was opened or closed before.
        """
        if self._thread:
            raise RuntimeError("this UdpStream was opened before: make a new one")
        if self._closed:
            raise RuntimeError("this UdpStream was closed before it was opened: make a new one")
        over = asyncio.get_running_loop().create_future()
        self._under_way.append(over)
        try:
            await self._open()
        finally:
            self._under_way.remove(over)
            set_done(over)
        return self

    async def _open(self) -> None:
        sock = await run_in_thread(lambda: make_socket(self._options, self._netns), undo=socket.socket.close)
        if self._closed or self._thread:
            sock.close()
            if self._closed:
                raise QueueClosedError("this UdpStream was closed while open() was running")
            raise RuntimeError("open() was called twice at the same time on this UdpStream")
        self._sock = sock
        try:
            self._begin(sock)
        except BaseException as error:  # it is not registered: that is the last step
            self._fd, self._thread, self._closed = -1, 0, True
            sock.close()
            if isinstance(error, OSError):
                raise cannot_poll("a UDP socket", error) from error
            raise

    def _begin(self, sock: socket.socket) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            sock.fileno(),
            _LARGEST[socket.AddressFamily(sock.family)],
            (self._high, self._low),
        )
        self._gro = self._gro and turn_on_gro(sock)
        self._gso = self._gso and has_gso(sock)
        self._local = address_of(sock.getsockname())
        self._remote = None if self._options.remote is None else address_of(sock.getpeername())
        self._addresses = None if self._remote else _Addresses()
        #: Destinations that refused a message with several datagrams: the largest datagram, in bytes, that may still be
        #: sent together with others, and until when.
        self._apart: dict[bytes | None, tuple[int, float]] = {}
        #: The most datagrams to send in one call.
        self._most = MOST
        #: Datagrams in each message of several, when `_pull` last received one; 0 if it left the next one in the kernel.
        self._received_together = 0
        #: As in `Stats`: super-frames read, segments made, super-frames written, frames coalesced, super-frames refused.
        self._super_frames = [0] * 5
        self._icmp_errors = 0
        #: Whether `_write_closely` returned EAGAIN for lack of memory, and not for lack of room in the send buffer.
        self._out_of_memory = False
        keep_freed_memory()
        self._resume()

    async def aclose(self) -> None:
        """Closes the socket. Waiting readers and writers get QueueClosedError. Closing twice is harmless.

        When `open` is running, it waits until that has closed its socket, also when cancelled.

        Raises:
            RuntimeError: Called from another thread or event loop than the one that opened it.
        """
        if not self._thread:
            self._closed = True
            cancelled = None
            while self._under_way and self._under_way[0].get_loop() is asyncio.get_running_loop():
                cancelled = await outlast(self._under_way[0]) or cancelled
            if cancelled is not None:
                raise cancelled
            return
        if self._closed:
            return
        if not self._loop.is_closed():
            self._check_loop()
        self._release()

    def _release(self) -> None:
        self._shut(_closed())
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
        addresses = f"{self._local or to_text(*self._options.local)}"
        if self._options.remote is not None:
            addresses += f" to {self._remote_text()}"
        return f"<UdpStream {addresses} {state}>"

    def _remote_text(self) -> str:
        assert self._options.remote is not None
        return str(self._remote or to_text(*self._options.remote))

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._closed

    @property
    def local(self) -> Address:
        """The local address, with the port that the kernel chose.

        Raises:
            RuntimeError: The stream is not open yet.
        """
        if self._local is None:
            self._wrong_caller()
        return self._local

    @property
    def remote(self) -> Address | None:
        """The only address that it sends to and receives from. None without *remote*, and before it is open."""
        return self._remote

    @property
    def stats(self) -> UdpStats:
        """Counters since it was opened, as a new snapshot. A received datagram is counted when it leaves the kernel.

        ``super_frames_refused`` counts messages of several datagrams that the kernel refused, although it took their
        datagrams one by one. Datagrams of that size to that address are then sent one by one for ten seconds.
        """
        if not self._thread:
            return UdpStats()
        counts = [self._frames_read, self._frames_written, self._frames_refused, self._frames_dropped]
        return UdpStats(*[*counts, *self._super_frames, self._icmp_errors])

    async def set_mark(self, mark: int) -> None:
        """Sets the mark of all datagrams that are sent from now on (SO_MARK). 0 means no mark.

        Raises:
            SetupError: CAP_NET_ADMIN is missing.
            ValueError: *mark* is not a number from 0 to 0xFFFFFFFF.
            QueueClosedError: The stream was closed here.
            RuntimeError: It is not open, or belongs to another thread or event loop.
        """
        self._check_loop()
        if self._closed:
            raise _closed()
        set_mark(self._sock, mark)

    def _check_loop(self) -> None:
        if not self._thread or asyncio.get_running_loop() is not self._loop:
            self._wrong_caller()

    def _wrong_caller(self) -> NoReturn:
        if not self._thread:
            if self._closed:
                raise _closed()
            raise not_open(repr(self))
        super()._wrong_caller()

    # -- reading -------------------------------------------------------------------------------------------------------

    def _pull(self, limit: int) -> None:
        if self._buffer and limit < self._received_together:
            self._received_together = 0  # the next call reads even if the message may exceed the limit
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
        self._pull(self._batch)  # a message may hold many datagrams: asking for one at a time would be slow

    def _weigh(self, elements: Iterable[Any]) -> int:
        return super()._weigh(elements if self._addresses is None else (data for data, _ in elements))

    def _read_failed(self, number: int) -> None:
        if number in _DEAD:
            self._fail(self._failure(number))
        else:
            self._watch_again()
            self._icmp_errors += 1  # not the end: datagrams may follow

    async def read_frame(self) -> bytes:
        """Waits for the next datagram and returns it.

        Several tasks may read. They are served in the order in which they called, and each datagram goes to one of
        them. Cancelling loses no datagram.

        Raises:
            QueueClosedError: The stream was closed here, before or during the call.
            RuntimeError: It has no *remote*, is not open, or belongs to another thread or event loop.
        """
        self._check_remote()
        frame: bytes = await super().read_frame()
        return frame

    async def read_frames(self, limit: int = DEFAULT_LIMIT) -> list[bytes]:
        """Waits for at least one datagram and returns the datagrams that are available, in order, at most *limit*.

        A batch also ends when it has 256 KiB. A *limit* over 4096 counts as 4096. Cancelling loses no datagram.

        Raises:
            QueueClosedError: The stream was closed here, before or during the call.
            RuntimeError: It has no *remote*, is not open, or belongs to another thread or event loop.
            ValueError: *limit* is not a whole number of at least 1.
        """
        self._check_remote()
        return await super().read_frames(limit)

    def read_frame_nowait(self) -> bytes:
        """Returns the next datagram without waiting, from the buffer or from the kernel.

        Raises:
            BlockingIOError: No datagram is available, or other tasks already wait for one.
            QueueClosedError: The stream was closed here.
            RuntimeError: It has no *remote*, is not open, or belongs to another thread.
        """
        self._check_remote()
        frame: bytes = super().read_frame_nowait()
        return frame

    def read_frames_nowait(self, limit: int = DEFAULT_LIMIT) -> list[bytes]:
        """Returns the datagrams that are available without waiting: at least one, at most *limit*.

        Raises:
            BlockingIOError: No datagram is available, or other tasks already wait for one.
            QueueClosedError: The stream was closed here.
            RuntimeError: It has no *remote*, is not open, or belongs to another thread.
            ValueError: *limit* is not a whole number of at least 1.
        """
        self._check_remote()
        return super().read_frames_nowait(limit)

    async def read_datagrams(self, limit: int = DEFAULT_LIMIT) -> list[tuple[bytes, Address]]:
        """Waits for at least one datagram and returns the available ones, each with the address of its sender.

        For a stream without *remote*; otherwise like `read_frames`: in order, at most *limit*, and cancelling loses no
        datagram. Pass the address to `write_datagrams` to reply: the reply is sent from the local address that the
        datagram was sent to.

        Raises:
            QueueClosedError: The stream was closed here, before or during the call.
            RuntimeError: It has a *remote*, is not open, or belongs to another thread or event loop.
            ValueError: *limit* is not a whole number of at least 1.
        """
        self._check_no_remote("read_frames")
        return await super().read_frames(limit)

    def read_datagrams_nowait(self, limit: int = DEFAULT_LIMIT) -> list[tuple[bytes, Address]]:
        """Returns the datagrams that are available without waiting, with their senders: at least one, at most *limit*.

        Raises:
            BlockingIOError: No datagram is available, or other tasks already wait for one.
            QueueClosedError: The stream was closed here.
            RuntimeError: It has a *remote*, is not open, or belongs to another thread.
            ValueError: *limit* is not a whole number of at least 1.
        """
        self._check_no_remote("read_frames_nowait")
        return super().read_frames_nowait(limit)

    def _check_remote(self) -> None:
        if self._options.remote is None:
            raise RuntimeError(_NO_REMOTE)

    def _check_no_remote(self, instead: str) -> None:
        if self._options.remote is not None:
            raise RuntimeError(f"this UdpStream has a remote, {self._remote_text()}: use {instead}")

    # -- writing -------------------------------------------------------------------------------------------------------

    async def write_datagrams(self, datagrams: Iterable[Frame], address: AnyAddress) -> None:
        """Sends all datagrams that it can to *address*, in order. For a stream without *remote*.

        Waits for room in the send buffer. When cancelled, each datagram was sent whole or not at all, in order up to
        some point.

        Args:
            datagrams: Each is a bytes-like object, or a list or tuple of them that together are one datagram.
            address: An `Address` from `read_datagrams`, which is fastest, or what `Address` takes.

        Raises:
            InvalidFrameError: The kernel refused some datagrams: ``indexes`` says which. All others were sent.
            LinkDownError: There is no route to *address* now. Sending ended at once; a note on the exception says where.
            QueueClosedError: The stream was closed here. A note says where sending ended.
            RuntimeError: It has a *remote*, is not open, or belongs to another thread or event loop.
            TypeError: One of *datagrams* is not a datagram. A note says which.
            ValueError: *address* is not an address.
        """
        self._check_no_remote("write_frames")
        await self._write_all(datagrams, Address(address))

    def write_datagrams_nowait(self, datagrams: Iterable[Frame], address: AnyAddress) -> int:
        """Sends datagrams to *address* in order, until one cannot be sent without waiting.

        Returns:
            How many were sent. It is fewer than all where the send buffer is full, or where a datagram is refused.
            A refused datagram raises if it is the first one.

        Raises:
            InvalidFrameError: The kernel refuses the first datagram.
            LinkDownError: There is no route to *address* now.
            QueueClosedError: The stream was closed here.
            RuntimeError: It has a *remote*, is not open, or belongs to another thread.
            TypeError: The first of *datagrams* is not a datagram.
            ValueError: *address* is not an address.
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
        if tried > 1 and number == errno.EMSGSIZE and to is None:  # an ICMP error is reported only once: try again
            again, number, tried = self._send(frames, start + sent, tried, together, to)
            sent += again
            self._icmp_errors += number != errno.EMSGSIZE
        if tried > 1 and number in _NOT_TOGETHER:
            alone, other, _ = self._send(frames, start + sent, 1, 0, to)
            if alone:
                self._send_apart(number, size_of(frames[start + sent]), to)
            sent, number = sent + alone, other
        return sent, number

    async def _wait_writable(self) -> None:
        if not self._out_of_memory:
            await super()._wait_writable()
            return
        self._check_loop()
        await asyncio.sleep(_MEMORY_PAUSE)

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
        """Looks at the result of sending. The kernel reports a socket's error once: here, or to the event loop."""
        if number > 0 and number != errno.EAGAIN:
            self._watch_again()

    def _most_together(self, to: bytes | None) -> int:
        """Size in bytes of the largest datagram that may be sent together with others."""
        if to in self._apart:
            size, until = self._apart[to]
            if monotonic() < until:
                return size
            del self._apart[to]
        return self._max_frame

    def _send_apart(self, number: int, size: int, to: bytes | None) -> None:
        """Remembers that the kernel sends datagrams of *size* bytes there one by one, but not together."""
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
            raise InvalidFrameError(f"a datagram must have at most {self._max_frame} bytes, not {size}")
        self._out_of_memory = False
        if number == errno.EAGAIN or number in _DEAD:
            return number
        self._note(number)
        pieces: Any = frame if isinstance(frame, (list, tuple)) else [frame]
        address = cast("Address | None", to)
        for _ in range(_TRIES):
            if address is not None and number in _NOT_OWN:
                address = address.remote  # without the local address
            before, number = number, send_pieces(self._sock, pieces, address)
            self._note(number)
            if address is None and before in _ICMP and number != before:
                self._icmp_errors += 1
            if number in (0, errno.EAGAIN, errno.ENOBUFS):
                self._out_of_memory = number == errno.ENOBUFS
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
            error = _closed()
        elif number in _DEAD:
            error = DeviceGoneError(
                number, "other code has closed the descriptor of this UdpStream: only aclose() may close it"
            )
        elif number in (errno.EDESTADDRREQ, errno.ENOTCONN):
            error = RuntimeError(_NO_REMOTE)
        elif number in _NO_ROUTE:
            error = LinkDownError(
                number, f"cannot send the datagram now: {cause.strerror}; try again when there is a route"
            )
        elif number in _REFUSED:
            error = InvalidFrameError(f"the kernel refuses the datagram: {cause.strerror}; {_reason(number)}")
        else:
            return cause
        error.__cause__ = cause
        return error


def _closed() -> QueueClosedError:
    return closed("this UdpStream")


def _reason(number: int) -> str:
    if number == errno.EMSGSIZE:
        return "it is larger than the path MTU: send smaller datagrams"
    if number in (errno.EPERM, errno.EACCES):
        return "a firewall forbids it, or the address is a broadcast address"
    if number == errno.EAFNOSUPPORT:
        return "an IPv4 socket cannot send to an IPv6 address"
    return "this address cannot be reached from the local address of the socket"
