"""Every watcher gets the events of an interface in order. ip(8) makes the changes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import socket
import struct
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest
import uvloop

from aiotuntap import (
    AsyncTuntap,
    Change,
    DeviceGoneError,
    LinkEvent,
    QueueClosedError,
    TuntapProtocol,
    _threads,
    _tuntap,
    create_tuntap_endpoint,
)
from aiotuntap._netlink import socket as _socket
from aiotuntap._netlink import watch as _watch

from .support import idle_share, ip, link, named_netns, settle, tap, tun, unique

Told = tuple[str, object]


@contextlib.asynccontextmanager
async def watching(interface: AsyncTuntap) -> AsyncIterator[list[LinkEvent]]:
    """A list to which the events of *interface* are added."""
    told: list[LinkEvent] = []

    async def watch() -> None:
        async for event in interface.watch():
            told.append(event)

    before = _watchers()
    task = asyncio.ensure_future(watch())
    while not task.done() and _watchers() == before:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    yield told
    await settle()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _watchers() -> int:
    monitors = _watch._monitors.get(asyncio.get_running_loop())
    return sum(len(each) for monitor in (monitors or {}).values() for each in monitor.watchers.values())


async def told(events: list[LinkEvent], *expected: Told) -> None:
    """Waits until the events are those expected, and checks that there are no others."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while len(events) < len(expected):
                await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert [(event.kind, event.value) for event in events] == list(expected)
    events.clear()


async def some(events: list[LinkEvent]) -> list[LinkEvent]:
    """Waits until there are events, and takes them."""
    async with asyncio.timeout(3):
        while not events:
            await asyncio.sleep(0.01)
    found = events.copy()
    events.clear()
    return found


@contextlib.contextmanager
def bridges(count: int) -> Iterator[list[str]]:
    names = [unique("br") for _ in range(count)]
    for name in names:
        ip("link", "add", name, "type", "bridge")
    try:
        yield names
    finally:
        for name in names:
            ip("link", "del", name, check=False)


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


async def test_another_peer_of_an_ipv6_address() -> None:
    """The kernel tells the address as it is then, and not that it was another one."""
    async with tap() as interface:
        await interface.configure(ipv6=True, up=True)
        ip("address", "add", "fd00::1", "peer", "fd00::2/64", "dev", interface.name)
        async with watching(interface) as events:
            ip("address", "change", "fd00::1", "peer", "fd00::3/64", "dev", interface.name)
            change = ("address removed", "fd00::1 peer fd00::2/64"), ("address added", "fd00::1 peer fd00::3/64")
            await told(events, *change)
            ip("link", "set", interface.name, "mtu", "1400")
            (event,) = await some(events)
            assert set(event.link.addresses) == set((await interface.link()).addresses)
            assert "fd00::1 peer fd00::2/64" not in event.link.tentative


async def test_events_of_an_interface_with_many_addresses_do_not_stop_the_loop() -> None:
    before = tuple(f"10.{number >> 8}.{number & 255}.1/32" for number in range(5000))
    async with tap() as interface:
        link = replace(await interface.link(), addresses=before)
        started = time.thread_time()
        for number in range(20):
            after = replace(link, addresses=(*before, f"10.255.0.{number}/32"))
            assert [event.value for event in _watch.differences(link, after)] == [f"10.255.0.{number}/32"]
        assert time.thread_time() - started < 1


async def test_an_event_says_how_the_interface_is_afterwards() -> None:
    async with AsyncTuntap(unique(), mode="tap") as interface, watching(interface) as events:
        await interface.configure(mtu=1300, addresses=["10.41.0.1/24"], up=True)
        await asyncio.sleep(0.1)
        last = events[-1].link
        assert (last.name, last.mtu, last.up, last.addresses) == (interface.name, 1300, True, ("10.41.0.1/24",))
        found = await interface.link()
        assert (found.addresses, found.mtu, found.queues) == (last.addresses, last.mtu, last.queues)


async def test_notifications_that_are_not_from_the_kernel() -> None:
    """Whoever has CAP_NET_ADMIN in the namespace can send some to all who listen there."""
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    async with tap() as interface, watching(interface) as events:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as other:
            for body in (
                struct.pack("=BxHi", 0, 0, interface.index),
                struct.pack("=BxHiII", 0, 0, interface.index, 0, 0),
            ):
                other.sendto(struct.pack("=IHHII", 16 + len(body), 16, 0, 0, 0) + body, (0, 1))
        await interface.configure(mtu=1400)
        await told(events, (Change.MTU, 1400))
    assert not problems


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


@contextlib.contextmanager
def a_small_receive_buffer() -> Iterator[None]:
    """The kernel then drops notifications after a few; they cannot be read inside, since the loop does not run."""
    (monitor,) = _watch._monitors[asyncio.get_running_loop()].values()
    with socket.socket(fileno=os.dup(monitor._fd)) as sock:
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        yield
        with open(f"/proc/{os.getpid()}/net/netlink") as table:
            inode = str(os.fstat(sock.fileno()).st_ino)
            (drops,) = [int(line.split()[8]) for line in table if line.split()[-1] == inode]
        assert drops > 0
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, before)


async def test_lost_notifications_are_replaced_by_the_current_state() -> None:
    """Queued notifications are older than the current state: none of them is reported after it or instead of it."""
    async with tap() as interface, watching(interface) as events:
        with a_small_receive_buffer():
            for number in range(40):
                ip("link", "set", interface.name, "mtu", str(1000 + number))
            ip("addr", "add", "10.42.0.1/24", "dev", interface.name)
        await told(events, (Change.MTU, 1039), (Change.ADDRESS_ADDED, "10.42.0.1/24"))
        ip("link", "set", interface.name, "mtu", "1100")
        await told(events, (Change.MTU, 1100))


async def test_a_deletion_is_reported_if_its_notification_was_lost() -> None:
    async with tap() as interface, watching(interface) as events:
        with a_small_receive_buffer():
            for number in range(40):
                ip("link", "set", interface.name, "mtu", str(1000 + number))
            ip("link", "del", interface.name)
        await told(events, (Change.DELETED, None))


async def test_a_deletion_lost_among_the_changes_of_others() -> None:
    async with tap() as interface, tap() as other, watching(interface) as events:
        with a_small_receive_buffer():
            for number in range(40):
                ip("link", "set", other.name, "mtu", str(1000 + number))
            ip("link", "del", interface.name)
        await told(events, (Change.DELETED, None))


async def test_lost_changes_of_other_interfaces_give_no_events() -> None:
    async with tap() as interface, tap() as other, watching(interface) as events:
        with a_small_receive_buffer():
            for number in range(40):
                ip("link", "set", other.name, "mtu", str(1000 + number))
        await told(events)
        ip("link", "set", interface.name, "mtu", "1100")
        await told(events, (Change.MTU, 1100))


async def _next(events: AsyncIterator[LinkEvent]) -> LinkEvent:
    return await anext(events)


def _only_watcher() -> _watch.Watcher:
    monitors = _watch._monitors[asyncio.get_running_loop()].values()
    (watcher,) = [each for monitor in monitors for watchers in monitor.watchers.values() for each in watchers]
    return watcher


async def test_a_watcher_that_nobody_reads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _watch.PENDING <= 64
    monkeypatch.setattr(_watch, "PENDING", 8)  # ip(8) takes a moment for each change
    async with tap() as interface, tap() as other:
        iterator = interface.watch()
        first = asyncio.ensure_future(_next(iterator))
        while not _watchers():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        watcher = _only_watcher()
        ip("link", "set", interface.name, "mtu", "1400")
        assert (await first).value == 1400
        for number in range(20):
            ip("link", "set", other.name, "mtu", str(1000 + number))
        await settle()
        assert len(watcher.pending) == 0
        for number in range(2 * _watch.PENDING):
            ip("link", "set", interface.name, "mtu", str(1000 + number))
            await settle(1)
            assert len(watcher.pending) <= _watch.PENDING
        assert watcher.lost
        async with asyncio.timeout(5):
            event = await anext(iterator)
            assert (event.kind, event.value) == (Change.MTU, 1000 + 2 * _watch.PENDING - 1)
            ip("link", "set", interface.name, "mtu", "1400")
            assert (await anext(iterator)).value == 1400
        before = len(os.listdir("/proc/self/fd"))
        ip("link", "set", interface.name, "mtu", "1401")
        await interface.aclose()
        assert not watcher.pending and _watchers() == 0
        assert len(os.listdir("/proc/self/fd")) < before - 1  # the queue, and the socket that listened
        assert [event async for event in iterator] == []


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("persist", [False, True], ids=["", "persistent"])
async def test_closing_while_watching_begins(monkeypatch: pytest.MonkeyPatch, step: int, persist: bool) -> None:
    """At whichever step of beginning the interface is closed, watching ends, also when there is no deletion to see."""
    interface = await AsyncTuntap(unique(), mode="tap").open()
    await interface.set_persist(persist)
    name = interface.name
    closing: list[asyncio.Future[None]] = []
    steps = itertools.count()
    run = _threads.run_in_thread

    async def close_and_run(*arguments: Any, **options: Any) -> Any:
        if next(steps) == step:
            closing.append(asyncio.ensure_future(interface.aclose()))
            await asyncio.sleep(0)
        return await run(*arguments, **options)

    async def watch() -> list[LinkEvent]:
        return [event async for event in interface.watch()]

    # The import, looking for the interface, listening, looking how it is, and in between.
    for module in (_tuntap, _socket):
        monkeypatch.setattr(module, "run_in_thread", close_and_run)
    async with asyncio.timeout(5):
        task = asyncio.ensure_future(watch())
        while not closing and not _watchers():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        if not closing:
            await interface.aclose()
        await asyncio.gather(*closing)
        assert await task == []
    if persist:
        ip("link", "del", name)
    assert _watchers() == 0


async def test_deleted_before_watching() -> None:
    async with AsyncTuntap(unique(), mode="tap") as interface:
        ip("link", "del", interface.name)
        with pytest.raises(DeviceGoneError):
            await anext(interface.watch())


async def test_closed_before_watching() -> None:
    interface = await AsyncTuntap(unique(), mode="tap").open()
    iterator = interface.watch()
    await interface.aclose()
    with pytest.raises(QueueClosedError):
        await anext(iterator)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_loop_closed_while_watching_is_let_go(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    first = loop()
    interface = first.run_until_complete(AsyncTuntap(unique(), mode="tap").open())

    async def watch(interface: AsyncTuntap) -> None:
        async for _ in interface.watch():
            pass

    async def begin(watching: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(watching)
        while not _watchers():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        return task

    task = first.run_until_complete(begin(watch(interface)))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    first.close()
    second = loop()
    second.run_until_complete(interface.aclose())
    second.close()
    gone = weakref.ref(first), weakref.ref(interface)
    del first, second, interface, task
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_closing_in_another_loop_ends_it(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The loop that watched is closed: its socket is too, although the interface object and the task are still there."""
    before = len(os.listdir("/proc/self/fd"))
    first, second = loop(), loop()
    interface = first.run_until_complete(AsyncTuntap(unique(), mode="tap").open())
    events = interface.watch()

    async def begin() -> asyncio.Task[LinkEvent]:
        task = asyncio.ensure_future(anext(events))
        while not _watchers():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        return task

    task = first.run_until_complete(begin())
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    first.close()
    second.run_until_complete(interface.aclose())
    second.close()
    assert len(os.listdir("/proc/self/fd")) == before
    del task


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_transport_closed_while_its_loop_does_not_run_ends_it(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    runner = asyncio.Runner(loop_factory=loop)
    with runner:
        transport, _ = runner.run(create_tuntap_endpoint(TuntapProtocol, unique(), mode="tap"))

        async def begin() -> asyncio.Task[list[LinkEvent]]:
            async def watch() -> list[LinkEvent]:
                return [event async for event in transport.get_extra_info("interface").watch()]

            task = asyncio.ensure_future(watch())
            while not _watchers():
                await asyncio.sleep(0.01)
            return task

        task = runner.run(begin())
        transport.close()
        assert runner.run(asyncio.wait_for(task, 5)) == []


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_forked_child_does_not_take_the_parents_events(loop: str) -> None:
    """The child shares the loop's epoll instance: it may close its descriptor, and unregister nothing."""
    code = f"""
        import asyncio, os, subprocess, {loop}
        from aiotuntap import AsyncTuntap
        from aiotuntap._netlink import watch

        async def main():
            async with AsyncTuntap({unique()!r}, mode="tap") as interface:
                told = []

                async def listen():
                    async for event in interface.watch():
                        told.append(event.value)

                task = asyncio.ensure_future(listen())
                while not (monitors := watch._monitors.get(asyncio.get_running_loop())):
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
                (monitor,) = monitors.values()
                ((watcher,),) = monitor.watchers.values()
                fd = monitor._fd
                if (pid := os.fork()) == 0:
                    watcher.end()
                    os._exit(os.path.exists(f"/proc/self/fd/{{fd}}"))
                print("child", os.waitpid(pid, 0)[1])
                subprocess.run(["ip", "link", "set", interface.name, "mtu", "1400"], check=True)
                for _ in range(200):
                    if told:
                        break
                    await asyncio.sleep(0.01)
                print(told)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        {loop}.run(main())
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == ["child 0", "[1400]"], run.stderr


async def test_an_idle_watcher_costs_nothing() -> None:
    async with tap() as interface, watching(interface):
        assert await idle_share() < 0.05


async def test_another_master() -> None:
    """The kernel tells of leaving a bridge in the same kind of message as of a deletion."""
    with bridges(2) as (one, other):
        async with AsyncTuntap(unique(), mode="tap") as interface, watching(interface) as events:
            for master in (one, other):
                ip("link", "set", interface.name, "master", master)
                await told(events, (Change.MASTER, master))
                assert (await interface.link()).master == master
                ip("link", "set", interface.name, "mtu", "1400" if master is one else "1300")
                (event,) = await some(events)
                assert event.kind is Change.MTU and event.link.master == master
                ip("link", "set", interface.name, "nomaster")
                await told(events, (Change.MASTER, None))
            ip("link", "set", interface.name, "master", one)
            await told(events, (Change.MASTER, one))
            ip("link", "del", one)
            await told(events, (Change.MASTER, None))


async def test_another_mac() -> None:
    async with AsyncTuntap(unique(), mode="tap") as interface, watching(interface) as events:
        for mac in ("02:00:00:00:aa:01", "02:00:00:00:aa:02"):
            ip("link", "set", interface.name, "address", mac)
            await told(events, (Change.MAC, mac))
        await interface.configure(mac="02:00:00:00:AA:02")
        await told(events)


async def test_closing_the_generator_stops_watching() -> None:
    async with tap() as interface:
        async with contextlib.aclosing(interface.watch()) as events:
            first = asyncio.ensure_future(_next(events))
            while not _watchers():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            ip("link", "set", interface.name, "mtu", "1400")
            assert (await first).kind is Change.MTU
        assert _watchers() == 0
