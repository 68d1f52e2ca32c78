"""What changes on an interface is told, in order, to everyone who watches; ip(8) makes the changes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator

import pytest

from aiotuntap import AsyncTuntap, Change, LinkEvent
from aiotuntap._netlink import watch as _watch

from .support import idle_share, ip, link, named_netns, settle, tap, tun, unique

Told = tuple[str, object]


@contextlib.asynccontextmanager
async def watching(interface: AsyncTuntap) -> AsyncIterator[list[LinkEvent]]:
    """A list that fills with what is told about *interface*."""
    told: list[LinkEvent] = []

    async def watch() -> None:
        async for event in interface.watch():
            told.append(event)

    others = _watchers()
    task = asyncio.ensure_future(watch())
    while not task.done() and _watchers() == others:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    yield told
    await settle()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _watchers() -> int:
    monitors = _watch._monitors.get(asyncio.get_running_loop(), {})
    return sum(len(monitor.watchers) for monitor in monitors.values())


async def told(events: list[LinkEvent], *expected: Told) -> None:
    """Waits until the events are those expected, and checks that there are no others."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(3):
            while len(events) < len(expected):
                await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert [(event.kind, event.value) for event in events] == list(expected)
    events.clear()


async def test_each_kind_of_change() -> None:
    async with AsyncTuntap(unique(), mode="tap") as interface, watching(interface) as events:
        old, new = interface.name, unique("new")
        ip("link", "set", old, "mtu", "1400")
        await told(events, (Change.MTU, 1400))
        ip("addr", "add", "10.40.0.1/24", "dev", old)
        await told(events, (Change.ADDRESS_ADDED, "10.40.0.1/24"))
        ip("link", "set", old, "up")
        await told(events, (Change.UP, None), (Change.CARRIER, True))
        await interface.set_carrier(False)
        await told(events, (Change.CARRIER, False))
        await interface.set_carrier(True)
        await told(events, (Change.CARRIER, True))
        ip("addr", "del", "10.40.0.1/24", "dev", old)
        await told(events, (Change.ADDRESS_REMOVED, "10.40.0.1/24"))
        ip("link", "set", old, "down")
        await told(events, (Change.DOWN, None), (Change.CARRIER, False))
        ip("link", "set", old, "name", new)
        assert interface.name == new
        await told(events, (Change.RENAMED, new))
        ip("link", "set", new, "txqueuelen", "77")
        ip("link", "set", new, "promisc", "on")
        await told(events)
        ip("link", "del", new)
        await told(events, (Change.DELETED, None))


async def test_ipv6_addresses() -> None:
    async with tun() as interface:
        with open(f"/proc/sys/net/ipv6/conf/{interface.name}/disable_ipv6", "w") as sysctl:
            sysctl.write("0")
        await asyncio.sleep(0.05)
        async with watching(interface) as events:
            ip("addr", "add", "fd00:40::1/64", "dev", interface.name)
            await told(events, (Change.ADDRESS_ADDED, "fd00:40::1/64"))
            ip("addr", "del", "fd00:40::1/64", "dev", interface.name)
            await told(events, (Change.ADDRESS_REMOVED, "fd00:40::1/64"))


async def test_an_event_says_how_the_interface_is_afterwards() -> None:
    async with AsyncTuntap(unique(), mode="tap") as interface, watching(interface) as events:
        await interface.configure(mtu=1300, addresses=["10.41.0.1/24"], up=True)
        await asyncio.sleep(0.1)
        last = events[-1].link
        assert (last.name, last.mtu, last.up, last.addresses) == (interface.name, 1300, True, ("10.41.0.1/24",))
        found = await interface.link()
        assert (found.addresses, found.mtu, found.queues) == (last.addresses, last.mtu, last.queues)


async def test_it_follows_a_move_to_another_namespace() -> None:
    with named_netns() as name:
        async with tap(queues=2) as interface, watching(interface) as events:
            ip("link", "set", interface.name, "netns", name)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    while not any(event.kind is Change.MOVED for event in events):
                        await asyncio.sleep(0.01)
            assert events[-1].kind is Change.MOVED
            assert interface.index == link(interface.name, "-n", name)["ifindex"]
            events.clear()
            await asyncio.sleep(0.05)
            ip("-n", name, "link", "set", interface.name, "mtu", "1234")
            await told(events, (Change.MTU, 1234))
            await interface.add_queues()
            assert (await interface.link()).queues == 3
            ip("-n", name, "link", "del", interface.name)
            await told(events, (Change.DELETED, None))


async def test_deleted_with_its_namespace() -> None:
    with named_netns() as name:
        async with AsyncTuntap(unique(), mode="tap") as interface:
            ip("link", "set", interface.name, "netns", name)
            async with watching(interface) as events:
                ip("netns", "del", name)
                # The socket that listens there holds the namespace; the interface goes when nothing else does.
                await asyncio.sleep(0.1)
            assert [event.kind for event in events] in ([], [Change.DELETED])


async def test_one_socket_however_many_watch() -> None:
    def netlink_sockets() -> int:
        inodes = {
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.islink(f"/proc/self/fd/{fd}")
        }
        with open("/proc/net/netlink") as table:
            return sum(f"socket:[{line.split()[-1]}]" in inodes for line in table.readlines()[1:])

    before = netlink_sockets()
    async with tap() as one, tap() as other, contextlib.AsyncExitStack() as stack:
        watched = [await stack.enter_async_context(watching(each)) for each in (one, other, one, other, one)]
        assert netlink_sockets() == before + 1
        assert _watchers() == 5
        ip("link", "set", one.name, "mtu", "1400")
        for number, events in enumerate(watched):
            await told(events, *([(Change.MTU, 1400)] if number % 2 == 0 else []))
        await stack.aclose()
        await settle()
        assert _watchers() == 0 and netlink_sockets() == before


async def test_closing_ends_it() -> None:
    interface = await AsyncTuntap(unique(), mode="tap").open()
    events: list[LinkEvent] = []

    async def watch() -> None:
        async for event in interface.watch():
            events.append(event)

    task = asyncio.ensure_future(watch())
    await asyncio.sleep(0.1)
    await interface.aclose()
    async with asyncio.timeout(2):
        await task
    assert _watchers() == 0


async def test_lost_notifications_are_made_up_for() -> None:
    async with tap() as interface, watching(interface) as events:
        (monitor,) = _watch._monitors[asyncio.get_running_loop()].values()
        monitor._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        asyncio.get_running_loop().remove_reader(monitor._socket.fileno())
        for number in range(40):
            ip("link", "set", interface.name, "mtu", str(1000 + number))
        ip("addr", "add", "10.42.0.1/24", "dev", interface.name)
        with pytest.raises(OSError) as caught:
            while True:
                monitor._socket.recv(1 << 16)
        assert caught.value.errno == errno.ENOBUFS
        monitor._tell(_watch.LOST)
        asyncio.get_running_loop().add_reader(monitor._socket.fileno(), monitor._on_readable)
        async with asyncio.timeout(2):
            while len(events) < 2:
                await asyncio.sleep(0.01)
        assert [(event.kind, event.value) for event in events][:2] == [
            (Change.MTU, 1039),
            (Change.ADDRESS_ADDED, "10.42.0.1/24"),
        ]


async def test_an_idle_watcher_costs_nothing() -> None:
    async with tap() as interface, watching(interface):
        assert await idle_share() < 0.05


async def test_leaving_a_bridge_is_no_deletion() -> None:
    bridge = unique("br")
    ip("link", "add", bridge, "type", "bridge")
    try:
        async with AsyncTuntap(unique(), mode="tap") as interface, watching(interface) as events:
            await interface.configure(master=bridge)
            await interface.configure(master="")
            await told(events)
    finally:
        ip("link", "del", bridge)
