"""What changes on an interface, as it changes: rtnetlink(7) notifications. Imports pyroute2: see `_netlink`.

One socket listens in each namespace, however many interfaces are watched there. The kernel drops notifications that
nobody reads in time, and says so: then every watcher looks for itself what is different.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from .._errors import DeviceGoneError
from .._netns import Identity, Namespace, identity
from .._threads import run_in_thread
from .._types import Change, Link, LinkEvent
from .link import find, parse, parse_address
from .socket import RECEIVE_SIZE, make_socket

# RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR: bits of struct sockaddr_nl.nl_groups.
_GROUPS = 0x001 | 0x010 | 0x100

#: Stands for notifications that the kernel dropped.
LOST = object()
#: Stands for the end: the interface object was closed here.
END = None

Watcher = asyncio.Queue[Any]


class Monitor:
    """The socket of one namespace, and who listens to it, by index of interface."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.watchers: set[Watcher] = set()
        self._loop = loop
        self._socket = sock
        self._marshal = MarshalRtnl()
        loop.add_reader(sock.fileno(), self._on_readable)

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._tell(LOST)
            return
        for message in self._marshal.parse(data):
            self._tell(message)

    def _tell(self, message: Any) -> None:
        for watcher in self.watchers:
            watcher.put_nowait(message)


_monitors: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Identity, Monitor]] = WeakKeyDictionary()


def _open(netns: Namespace) -> tuple[socket.socket, Identity]:
    sock = make_socket(netns)
    sock.bind((0, _GROUPS))
    return sock, identity()


@asynccontextmanager
async def listening(netns: Namespace, watcher: Watcher) -> AsyncIterator[None]:
    """*watcher* gets all notifications of *netns* meanwhile."""
    loop = asyncio.get_running_loop()
    sock, where = await run_in_thread(lambda: _open(netns), undo=lambda opened: opened[0].close())
    monitors = _monitors.setdefault(loop, {})
    monitor = monitors.get(where)
    if monitor is None:
        monitor = monitors[where] = Monitor(loop, sock)
    else:
        sock.close()
    monitor.watchers.add(watcher)
    try:
        yield
    finally:
        monitor.watchers.discard(watcher)
        if not monitor.watchers:
            monitor.close()
            del monitors[where]


async def events(
    watcher: Watcher, where: Callable[[], AbstractContextManager[tuple[str, Namespace]]]
) -> AsyncIterator[LinkEvent]:
    """What changes from now on, until the interface is deleted, or *watcher* is told END.

    Args:
        watcher: A new queue.
        where: Gives the interface's name and namespace as they are now; DeviceGoneError when it was deleted.
    """
    link: Link | None = None
    while True:
        try:
            with where() as (name, netns):
                async with listening(netns, watcher):
                    found = await find(name, netns)
                    if found is None:
                        raise DeviceGoneError(errno.ENODEV, f"interface {name!r} is gone")
                    if link is not None:
                        yield LinkEvent(Change.MOVED, found, found.index)
                        for event in differences(link, found):  # what happened there before anyone listened
                            yield event
                    link = found
                    while (message := await watcher.get()) is not END:
                        if message is LOST:
                            after = await find(link.name, netns) or link
                        elif message.get("index") != link.index:
                            continue
                        elif message["event"] == "RTM_DELLINK" and message["family"] == socket.AF_UNSPEC:
                            break  # deleted, or moved: then it is somewhere else
                        else:
                            after = apply(link, message)
                        for event in differences(link, after):
                            yield event
                        link = after
                    else:
                        return
        except DeviceGoneError:
            if link is not None:
                yield LinkEvent(Change.DELETED, link)
            return


def apply(link: Link, message: Any) -> Link:
    """*link* as it is after what *message* tells."""
    match message["event"]:
        case "RTM_NEWLINK" if message["family"] == socket.AF_UNSPEC:
            return replace(parse(message), addresses=link.addresses)
        case "RTM_NEWADDR":
            address = parse_address(message)
            return link if address in link.addresses else replace(link, addresses=(*link.addresses, address))
        case "RTM_DELADDR":
            address = parse_address(message)
            return replace(link, addresses=tuple(each for each in link.addresses if each != address))
    return link


def differences(before: Link, after: Link) -> Iterator[LinkEvent]:
    """One event for each thing that changed, in the order in which they usually do."""
    if before.name != after.name:
        yield LinkEvent(Change.RENAMED, after, after.name)
    if before.mtu != after.mtu:
        yield LinkEvent(Change.MTU, after, after.mtu)
    if before.up != after.up:
        yield LinkEvent(Change.UP if after.up else Change.DOWN, after)
    if before.carrier != after.carrier:
        yield LinkEvent(Change.CARRIER, after, after.carrier)
    for address in before.addresses:
        if address not in after.addresses:
            yield LinkEvent(Change.ADDRESS_REMOVED, after, address)
    for address in after.addresses:
        if address not in before.addresses:
            yield LinkEvent(Change.ADDRESS_ADDED, after, address)
