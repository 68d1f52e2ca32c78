"""An rtnetlink socket that runs on any event loop and in any network namespace. See rtnetlink(7).

pyroute2 speaks the protocol. Its asyncio class hands its socket to ``loop.create_datagram_endpoint``, which uvloop
refuses for AF_NETLINK, so the transport here is built on ``loop.add_reader``, which every loop has. Importing this
module imports pyroute2, which takes a fifth of a second: do it on a thread, and only when netlink is needed.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.core import CoreDatagramProtocol

from .._netns import Namespace, enter
from .._threads import run_in_thread

# A dump comes in pieces of at most 32 KiB.
RECEIVE_SIZE = 65536
_SOL_NETLINK = 270
_NETLINK_EXT_ACK = 11
_NLM_F_DUMP_INTR = 0x10
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_DATAGRAMS_PER_CALLBACK = 16


class _NetlinkTransport(asyncio.DatagramTransport):
    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, protocol: CoreDatagramProtocol) -> None:
        super().__init__()
        self._loop = loop
        self._sock = sock
        self._protocol = protocol
        protocol.connection_made(self)
        loop.add_reader(sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        for _ in range(_DATAGRAMS_PER_CALLBACK):
            try:
                data, address = self._sock.recvfrom(RECEIVE_SIZE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._protocol.error_received(error)
                return
            self._protocol.datagram_received(data, address)

    def is_closing(self) -> bool:
        return self._sock.fileno() < 0

    def close(self) -> None:
        if self.is_closing():
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def abort(self) -> None:
        self.close()


class RouteSocket(AsyncIPRoute):  # type: ignore[misc]
    """pyroute2's asynchronous rtnetlink API on a socket made elsewhere, on asyncio and uvloop alike."""

    #: Whether the kernel said of a dump that the list changed under it. pyroute2 does not look.
    interrupted = False

    def enqueue(self, data: bytes, address: Any) -> Any:
        self.interrupted = self.interrupted or is_interrupted(data)
        return super().enqueue(data, address)

    async def setup_endpoint(self) -> None:
        if getattr(self.local, "transport", None) is not None:
            return
        protocol = CoreDatagramProtocol(self.connection_lost, self.enqueue, self._error_event, self.status)
        self.local.transport = _NetlinkTransport(self.event_loop, self.socket, protocol)
        self.local.protocol = protocol


def is_interrupted(data: bytes) -> bool:
    """Whether a message in this datagram has NLM_F_DUMP_INTR; it may be only the last one, NLMSG_DONE."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, _, flags, _, _ = _HEADER.unpack_from(data, at)
        if flags & _NLM_F_DUMP_INTR:
            return True
        at += max(length + 3 & ~3, _HEADER.size)
    return False


def make_socket(netns: Namespace) -> socket.socket:
    """A socket in *netns*, for a thread of its own: see `enter`."""
    enter(netns)
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
    return sock


@asynccontextmanager
async def route_socket(netns: Namespace) -> AsyncIterator[Any]:
    """A `RouteSocket` in *netns*, closed at the end.

    Raises:
        SetupError: The namespace cannot be entered.
    """
    sock = await run_in_thread(lambda: make_socket(netns), undo=socket.socket.close)
    try:
        route = RouteSocket(use_socket=sock)
        try:
            await route.setup_endpoint()
            yield route
        finally:
            route.close()
    finally:
        sock.close()
