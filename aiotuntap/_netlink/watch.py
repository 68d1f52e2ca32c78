"""What changes on an interface, as it changes: rtnetlink(7) notifications.

One socket listens in each namespace, however many interfaces are watched there. The kernel drops notifications that
nobody reads in time and says so (ENOBUFS), before it hands out older ones that are queued still. Those are thrown away
then, and every watcher looks for itself what is different. The same happens to a watcher that is not read in time.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from weakref import WeakKeyDictionary, WeakValueDictionary

from .._errors import WAITS_WHILE_DOWN, DeviceGoneError, SetupError, TuntapError, cannot_poll
from .._netns import Identity, Namespace
from .._types import Change, Link, LinkEvent
from .iproute import IPAddress
from .link import Where, located
from .messages import AddressChange, LinkChange, decode_change, index_of, split
from .socket import in_namespace, receive_from

# RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR: bits of struct sockaddr_nl.nl_groups.
_GROUPS = 0x001 | 0x010 | 0x100

#: Notifications that are kept for one watcher that does not read them.
PENDING = 64
_DATAGRAMS_PER_CALLBACK = 16
#: What a socket's buffer can hold is far less.
_DATAGRAMS_PER_LOOK = 4096
_LOOKS = 5

_logger = logging.getLogger("aiotuntap")

Notification = LinkChange | AddressChange


class Watcher:
    """One who watches one interface, and what it has not read yet. Make it before waiting for anything."""

    def __init__(self) -> None:
        self.pending: deque[Notification] = deque()
        #: Whether there was more than could be kept: look again.
        self.lost = False
        #: Whether the interface object was closed here.
        self.ended = False
        self._monitor: Monitor | None = None
        self._index = 0
        self._waiting: asyncio.Future[None] | None = None

    def end(self) -> None:
        """The interface object is being closed: nothing more is told. Needs no loop that runs."""
        self.ended = True
        self.stop()
        self._wake()

    def follow(self, monitor: Monitor, index: int) -> None:
        """From now on, what *monitor* hears about the interface *index* is kept."""
        before, at = self._monitor, self._index
        if (monitor, index) == (before, at):
            return
        if self.ended:
            monitor.close_if_unused()
            return
        monitor.add(self, index)
        self._monitor, self._index = monitor, index
        if before is not None:
            before.discard(self, at)

    def stop(self) -> None:
        """Nothing is kept from now on, and what was kept is forgotten."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.discard(self, self._index)
        self.forget()

    def forget(self) -> None:
        self.pending.clear()
        self.lost = False

    def look_around(self) -> None:
        """Takes in what the kernel has sent up to now, without waiting."""
        if self._monitor is not None:
            self._monitor.receive(_DATAGRAMS_PER_LOOK)

    def tell(self, notification: Notification) -> None:
        if self.lost:
            return
        if len(self.pending) < PENDING:
            self.pending.append(notification)
            self._wake()
        else:
            self.lose()

    def lose(self) -> None:
        """Something that is not known may have happened."""
        self.pending.clear()
        self.lost = True
        self._wake()

    async def wait(self) -> None:
        """Until there is something pending, or lost, or the end."""
        while not (self.pending or self.lost or self.ended):
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None

    def _wake(self) -> None:
        waiting = self._waiting
        if waiting is not None and not waiting.done() and not waiting.get_loop().is_closed():
            waiting.set_result(None)


class Monitor:
    """The socket of one namespace, and who listens to it, by index of interface.

    It owns the descriptor *fd*, and closes it when the last one stops listening, or when the loop is gone.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self.watchers: dict[int, list[Watcher]] = {}
        self._fd = fd
        self._loop = loop
        self._process = os.getpid()
        self._thread = threading.get_ident()
        self._dropped = False
        try:
            loop.add_reader(fd, self._on_readable)
        except BaseException as error:
            self._fd = -1
            os.close(fd)
            if isinstance(error, OSError):
                raise cannot_poll("a netlink socket", error) from error
            raise

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def add(self, watcher: Watcher, index: int) -> None:
        self.watchers.setdefault(index, []).append(watcher)

    def discard(self, watcher: Watcher, index: int) -> None:
        there = self.watchers.get(index, [])
        if watcher in there:
            there.remove(watcher)
        if not there:
            self.watchers.pop(index, None)
        self.close_if_unused()

    def close_if_unused(self) -> None:
        if not self.watchers:
            self.close()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        # A forked child shares the loop's epoll instance with its parent: unregistering there would make it deaf.
        if self._process == os.getpid() and not self._loop.is_closed():
            if self._loop.is_running() and self._thread != threading.get_ident():
                with suppress(RuntimeError):  # the loop was closed this moment
                    self._loop.call_soon_threadsafe(_unregister, self._loop, fd)
                    return
            else:
                self._loop.remove_reader(fd)
        os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def _on_readable(self) -> None:
        self.receive(_DATAGRAMS_PER_CALLBACK)

    def receive(self, datagrams: int) -> None:
        """Hands out what the kernel has sent, or throws it away up to the last after it dropped some."""
        for _ in range(datagrams):
            if self._fd < 0:
                return
            try:
                data = receive_from(self._fd)
            except BlockingIOError:
                if self._dropped:
                    self._dropped = False
                    self._lose()
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._dropped = True
                self._register_anew()
                continue
            if not self._dropped:
                self._hand_out(data)

    def _register_anew(self) -> None:
        """libuv stops polling a descriptor once it has reported an error, as that of dropped notifications is."""
        self._loop.remove_reader(self._fd)
        self._loop.add_reader(self._fd, self._on_readable)

    def _hand_out(self, data: bytes) -> None:
        for message in split(data):
            watchers = self.watchers.get(index_of(message))
            notification = decode_change(message) if watchers else None
            if notification is not None and watchers is not None:
                for watcher in watchers:
                    watcher.tell(notification)

    def _lose(self) -> None:
        for watchers in self.watchers.values():
            for watcher in watchers:
                watcher.lose()


def _unregister(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    loop.remove_reader(fd)
    os.close(fd)


#: Whoever watches keeps a monitor alive, and the loop while it is open; a table that did would keep both for ever.
_monitors: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[Identity, Monitor]] = WeakKeyDictionary()


async def _monitor(netns: Namespace) -> tuple[Identity, Monitor]:
    """The one monitor of a namespace, and which namespace that is."""
    where, fd = await in_namespace(
        netns,
        lambda route: (route.namespace, route.detach()),
        undo=lambda opened: os.close(opened[1]),
        groups=_GROUPS,
    )
    loop = asyncio.get_running_loop()
    monitors = _monitors.setdefault(loop, WeakValueDictionary())
    monitor = monitors.get(where)
    if monitor is not None and not monitor.closed:
        os.close(fd)
        return where, monitor
    monitor = monitors[where] = Monitor(loop, fd)
    return where, monitor


async def events(watcher: Watcher, where: Where, index: int) -> AsyncGenerator[LinkEvent, None]:
    """What changes from now on, until the interface is deleted, or *watcher* is told the end.

    Arguments and errors as for `states`, except that a deletion which is seen is the last event.
    """
    home: Identity | None = None
    link: Link | None = None
    try:
        async with aclosing(states(watcher, where, index)) as seen:
            async for there, after in seen:
                before, link = link, after
                if before is not None:
                    if (there, after.index) != (home, before.index):
                        yield LinkEvent(Change.MOVED, after, after.index)
                    for event in differences(before, after):
                        yield event
                home = there
    except DeviceGoneError:
        if link is None:  # before anything was seen
            raise
        yield LinkEvent(Change.DELETED, link)


async def until_ready(watcher: Watcher, where: Where, index: int) -> int:
    """Waits until the interface is up and none of its addresses is tentative, or *watcher* is told the end.

    Arguments and errors as for `states`.

    Returns:
        The interface's index.

    Raises:
        SetupError: Another machine on the link has one of its addresses.
    """
    has_warned = False
    link: Link | None = None
    async for _, link in states(watcher, where, index):
        index = link.index
        if link.duplicates or (link.up and not link.tentative):
            # The generator ends by itself. To leave it and close it would fail in a coroutine that is closed because its
            # loop is gone: before CPython 3.13, the generator is then taken to be still running.
            watcher.end()
        elif not link.up and not has_warned:
            has_warned = True
            _logger.warning(WAITS_WHILE_DOWN, link.name, "ready()")
    if link is not None and link.duplicates:
        address = link.duplicates[0]
        raise SetupError(
            errno.EADDRINUSE,
            f"address {address} of {link.name!r} cannot be used: another machine on the link has it; choose"
            f" another one, or take it from there and set it anew",
        )
    return index


async def states(watcher: Watcher, where: Where, index: int) -> AsyncGenerator[tuple[Identity, Link], None]:
    """How the interface is now, and how it is after each notification, until *watcher* is told the end.

    Args:
        watcher: A new one.
        where: What the interface's descriptor tells.
        index: Where it was seen last, 0 if that is not known.

    Raises:
        DeviceGoneError: It was deleted.
        SetupError: The kernel refused, or there is no descriptor or memory left.
    """
    try:
        while not watcher.ended:
            try:
                there, master, link = await _look(watcher, where, index)
            except TuntapError:
                if watcher.ended:
                    return  # and then nothing is left to be found
                raise
            if link is None:
                continue
            index = link.index
            yield there, link
            while not watcher.lost:
                await watcher.wait()
                if watcher.ended:
                    return
                if watcher.lost:
                    break
                notification = watcher.pending.popleft()
                if isinstance(notification, LinkChange) and (notification.removed or notification.master != master):
                    break  # deleted, or moved and then somewhere else; or the name of its master is to be asked for
                link = apply(link, notification)
                yield there, link
    finally:
        watcher.stop()


async def _look(watcher: Watcher, where: Where, index: int) -> tuple[Identity, int, Link | None]:
    """Listens where the interface is, and looks how it is: where, index of its master, and all about it.

    None when it is not there any more: look again.
    """
    async with located(where, index) as (netns, link):
        there, monitor = await _monitor(netns)
        watcher.follow(monitor, link.index)
        for _ in range(_LOOKS):
            watcher.forget()
            master, found = await in_namespace(netns, lambda route: route.link_and_master(link.index))
            watcher.look_around()
            # What was sent before the look must not be applied over it. When it never holds still, it has to be.
            if found is None or not (watcher.pending or watcher.lost):
                break
        return there, master, found


def apply(link: Link, notification: Notification) -> Link:
    """*link* as it is after what *notification* tells."""
    if isinstance(notification, LinkChange):
        return replace(
            notification.link,
            master=link.master,
            addresses=link.addresses,
            tentative=link.tentative,
            duplicates=link.duplicates,
        )
    address = str(notification.address)
    if notification.address.version == 6 and not notification.removed and address not in link.addresses:
        link = _without(link, notification.address.local)  # the kernel tells only how an address is after a change
    return replace(
        link,
        addresses=_with(link.addresses, address, not notification.removed),
        tentative=_with(link.tentative, address, notification.tentative and not notification.removed),
        duplicates=_with(link.duplicates, address, notification.duplicate and not notification.removed),
    )


def _without(link: Link, local: IPAddress) -> Link:
    """*link* without its address *local*, of which it has one, with this prefix and peer or others."""

    def others(addresses: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(each for each in addresses if not each.startswith((f"{local}/", f"{local} ")))

    return replace(
        link,
        addresses=others(link.addresses),
        tentative=others(link.tentative),
        duplicates=others(link.duplicates),
    )


def _with(addresses: tuple[str, ...], address: str, is_there: bool) -> tuple[str, ...]:
    """*addresses* with *address* among them or not; those that stay keep their places."""
    if is_there:
        return addresses if address in addresses else (*addresses, address)
    return tuple(each for each in addresses if each != address)


def differences(before: Link, after: Link) -> Iterator[LinkEvent]:
    """One event for each thing that changed, in the order in which they usually do."""
    if before.name != after.name:
        yield LinkEvent(Change.RENAMED, after, after.name)
    if before.mtu != after.mtu:
        yield LinkEvent(Change.MTU, after, after.mtu)
    if before.mac != after.mac:
        yield LinkEvent(Change.MAC, after, after.mac)
    if before.master != after.master:
        yield LinkEvent(Change.MASTER, after, after.master)
    if before.up != after.up:
        yield LinkEvent(Change.UP if after.up else Change.DOWN, after)
    if before.carrier != after.carrier:
        yield LinkEvent(Change.CARRIER, after, after.carrier)
    if before.addresses is not after.addresses:  # there may be thousands of them
        former, now = set(before.addresses), set(after.addresses)
        for address in before.addresses:
            if address not in now:
                yield LinkEvent(Change.ADDRESS_REMOVED, after, address)
        for address in after.addresses:
            if address not in former:
                yield LinkEvent(Change.ADDRESS_ADDED, after, address)
