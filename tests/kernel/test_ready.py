"""`ready` waits for the kernel's own duplicate address detection, against a peer in another namespace."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator

import pytest

from aiotuntap import AsyncTuntap, DeviceGoneError, QueueClosedError, SetupError, TuntapQueue

from .support import ip, link, named_netns, settle, tap, tun, unique
from .test_watch import _watchers


@contextlib.asynccontextmanager
async def joined() -> AsyncIterator[tuple[AsyncTuntap, AsyncTuntap]]:
    """An interface, and a peer in another namespace at the other end of its cable; both up, with IPv6."""

    async def carry(source: TuntapQueue, target: TuntapQueue) -> None:
        async for frame in source:
            await target.write_frame(frame)

    with named_netns() as name:
        async with (
            AsyncTuntap(unique(), mode="tap") as one,
            AsyncTuntap(unique(), mode="tap", netns=name) as other,
        ):
            for each in (one, other):
                await each.configure(ipv6=True, up=True)
            ends = one.queues[0], other.queues[0]
            tasks = [asyncio.ensure_future(carry(*way)) for way in (ends, ends[::-1])]
            try:
                yield one, other
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def can_be_used(address: str) -> bool:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            assert error.errno == errno.EADDRNOTAVAIL
            return False
        return True


async def test_it_waits_until_an_address_can_be_used() -> None:
    async with joined() as (interface, _):
        await interface.configure(addresses=["fd00::1/64"])
        seen = await interface.link()
        assert "fd00::1/64" in seen.tentative and set(seen.tentative) <= set(seen.addresses)
        assert not can_be_used("fd00::1") and "tentative" in ip("address", "show", "dev", interface.name)
        async with asyncio.timeout(20):
            await interface.ready()
        assert can_be_used("fd00::1") and "tentative" not in ip("address", "show", "dev", interface.name)
        seen = await interface.link()
        assert (seen.tentative, seen.duplicates) == ((), ())
        async with asyncio.timeout(5):
            await interface.ready()
        assert _watchers() == 0


async def test_several_wait() -> None:
    async with joined() as (interface, other):
        await interface.configure(addresses=["fd00::1/64"])
        await other.configure(addresses=["fd00::2/64"])
        async with asyncio.timeout(20):
            await asyncio.gather(interface.ready(), interface.ready(), other.ready())
        assert (await other.link()).tentative == (await interface.link()).tentative == ()


async def test_an_address_that_another_machine_has() -> None:
    async with joined() as (interface, other):
        await other.configure(addresses=["fd00::1/64"])
        async with asyncio.timeout(20):
            await other.ready()
        await interface.configure(addresses=["fd00::1/64"])
        for _ in range(2):  # also when it is known already
            async with asyncio.timeout(20):
                with pytest.raises(
                    SetupError, match="address fd00::1/64 of .* another machine on the link has"
                ) as caught:
                    await interface.ready()
            assert caught.value.errno == errno.EADDRINUSE
        seen = await interface.link()
        assert seen.duplicates == ("fd00::1/64",) and "fd00::1/64" not in seen.tentative
        assert "dadfailed" in ip("address", "show", "dev", interface.name) and not can_be_used("fd00::1")
        assert _watchers() == 0
        await interface.configure(addresses=["fd00::2/64"], replace=True)
        async with asyncio.timeout(20):
            await interface.ready()
        assert (await interface.link()).duplicates == ()


async def test_nothing_to_wait_for() -> None:
    async with tun() as interface:
        async with asyncio.timeout(5):
            await interface.ready()


async def test_it_waits_until_the_interface_is_up(caplog: pytest.LogCaptureFixture) -> None:
    def told() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "aiotuntap"]

    async with AsyncTuntap(unique(), mode="tap") as interface:
        with caplog.at_level(logging.WARNING, "aiotuntap"):
            task = asyncio.ensure_future(interface.ready())
            while not told():
                await asyncio.sleep(0.01)
            for mtu in range(1400, 1405):
                ip("link", "set", interface.name, "mtu", str(mtu))
            await settle()
            assert not task.done()
        (record,) = told()
        assert f"interface {interface.name!r} is down" in record.getMessage()
        assert "configure(up=True)" in record.getMessage()
        ip("link", "set", interface.name, "up")
        async with asyncio.timeout(5):
            await task


async def test_an_address_that_comes_while_it_waits() -> None:
    async with AsyncTuntap(unique(), mode="tap") as interface:
        await interface.configure(ipv6=True, addresses=["fd00::1/64 nodad"])
        task = asyncio.ensure_future(interface.ready())
        while not _watchers():
            await asyncio.sleep(0.01)
        await interface.configure(addresses=["fd00::2/64"], up=True)
        async with asyncio.timeout(20):
            await task
        assert can_be_used("fd00::1") and can_be_used("fd00::2")


async def test_moved_while_it_waits() -> None:
    with named_netns() as name:
        async with AsyncTuntap(unique(), mode="tap") as interface:
            task = asyncio.ensure_future(interface.ready())
            while not _watchers():
                await asyncio.sleep(0.01)
            ip("link", "set", interface.name, "netns", name)
            await asyncio.sleep(0.1)
            assert not task.done()
            ip("-n", name, "link", "set", interface.name, "up")
            async with asyncio.timeout(5):
                await task
            assert interface.index == link(interface.name, "-n", name)["ifindex"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_deleted(when: str) -> None:
    async with AsyncTuntap(unique(), mode="tap") as interface:
        if when == "before":
            ip("link", "del", interface.name)
        task = asyncio.ensure_future(interface.ready())
        if when == "meanwhile":
            while not _watchers():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            ip("link", "del", interface.name)
        async with asyncio.timeout(5):
            with pytest.raises(DeviceGoneError, match=f"interface {interface.name!r} is gone"):
                await task
        assert _watchers() == 0


@pytest.mark.parametrize("when", ["before", "at once", "meanwhile"])
async def test_closed_here(when: str) -> None:
    interface = await AsyncTuntap(unique(), mode="tap").open()
    if when == "before":
        await interface.aclose()
    task = asyncio.ensure_future(interface.ready())
    await asyncio.sleep(0)
    if when == "meanwhile":
        while not _watchers():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
    await interface.aclose()
    async with asyncio.timeout(5):
        with pytest.raises(QueueClosedError, match="is closed"):
            await task
    assert _watchers() == 0


async def test_before_it_is_open() -> None:
    with pytest.raises(RuntimeError, match="not open yet"):
        await AsyncTuntap(unique(), mode="tap").ready()


async def test_cancelling_leaves_nothing_behind() -> None:
    async with tap() as interface:
        await interface.ready()  # everything is imported
        ip("link", "set", interface.name, "down")
        before = sorted(os.listdir("/proc/self/fd"))
        for turns in range(8):
            task = asyncio.ensure_future(interface.ready())
            for _ in range(turns):
                await asyncio.sleep(0.002)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert _watchers() == 0 and sorted(os.listdir("/proc/self/fd")) == before
        ip("link", "set", interface.name, "up")
        async with asyncio.timeout(5):
            await interface.ready()
