"""Adding, removing, disabling, enabling: the kernel's count is the second opinion."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import threading
from contextlib import suppress

import pytest

from aiotuntap import AsyncTuntap, DeviceGoneError, QueueClosedError, SetupError, Stats, _abi, _device
from aiotuntap.testing import example_frame

from .support import (
    idle_share,
    ip,
    link,
    refuses_while_disabled,
    settle,
    tap,
    tap_with_peer,
    tun_info,
    unique,
    watched_fds,
)


async def test_create_two_add_two_remove_two() -> None:
    async with tap(queues=2) as interface:
        added = await interface.add_queues(2)
        assert len(added) == 2 and interface.queues[2:] == tuple(added)
        assert tun_info(interface.name)["numqueues"] == 4
        await interface.remove_queues(*added)
        assert tun_info(interface.name)["numqueues"] == 2
        assert all(queue.closed for queue in added) and len(interface.queues) == 2


async def test_adding_is_all_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tap() as interface:
        opened = _device.QueueFile.open
        count = 0

        def fail_the_third() -> _device.QueueFile:
            nonlocal count
            count += 1
            if count == 3:
                raise SetupError(errno.EMFILE, "made to fail")
            return opened()

        monkeypatch.setattr(_device.QueueFile, "open", fail_the_third)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(SetupError):
            await interface.add_queues(5)
        assert len(os.listdir("/proc/self/fd")) == before
        assert len(interface.queues) == tun_info(interface.name)["numqueues"] == 1


@pytest.mark.parametrize("count", [0, -1])
async def test_invalid_counts(count: int) -> None:
    async with tap() as interface:
        with pytest.raises(ValueError, match="at least 1"):
            await interface.add_queues(count)


async def test_cancelling_while_adding_leaves_nothing() -> None:
    async with tap() as interface:
        before = len(os.listdir("/proc/self/fd"))
        for delay in (0, 0.0001, 0.0003, 0.001, 0.003):
            have = len(interface.queues)
            task = asyncio.ensure_future(interface.add_queues(20))
            await asyncio.sleep(delay)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await interface.remove_queues(*await task)
            assert len(interface.queues) == tun_info(interface.name)["numqueues"] == have
        assert len(os.listdir("/proc/self/fd")) == before


async def test_closing_while_adding_leaves_nothing() -> None:
    async with tap() as interface:
        name = interface.name
        task = asyncio.ensure_future(interface.add_queues(20))
        await asyncio.sleep(0)
        await interface.aclose()
        with pytest.raises((QueueClosedError, SetupError)):
            await task
    assert name not in ip("link")


async def test_several_may_add_at_once() -> None:
    async with tap() as interface:
        await asyncio.gather(*(interface.add_queues(5) for _ in range(8)))
        assert len(interface.queues) == tun_info(interface.name)["numqueues"] == 41


async def test_added_queues_follow_a_rename() -> None:
    async with tap() as interface:
        old, new = interface.name, unique("new")
        ip("link", "set", old, "down")
        ip("link", "set", old, "name", new)
        assert interface.name == new
        await interface.add_queues(2)
        assert tun_info(new)["numqueues"] == 3
        assert old not in ip("link")


async def test_removing_refuses_what_is_not_its_own_before_it_closes_anything() -> None:
    async with tap(queues=3) as interface, tap() as other:
        one, two, three = interface.queues
        await one.aclose()
        for wrong, match in (
            ((two, one), "closed already"),
            ((two, *other.queues), f"is not a queue of '{interface.name}'"),
            ((two, two), "twice"),
        ):
            with pytest.raises(ValueError, match=match):
                await interface.remove_queues(*wrong)
            assert not two.closed and not three.closed and not other.queues[0].closed
        await interface.remove_queues()
        assert tun_info(interface.name)["numqueues"] == 2


async def test_the_order_of_removing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed, unregistered, waiters woken, descriptor closed: in this order."""
    async with tap(queues=2) as interface:
        queue = interface.queues[0]
        fd = queue.fileno()
        seen: list[str] = []
        loop = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(queue.read_frame())
        await settle()
        os_close = os.close

        def remove_reader(removed: int) -> bool:
            seen.append(f"remove_reader closed={queue.closed} waiting={not queue._readers[0].done()}")
            return type(loop).remove_reader(loop, removed)

        def close(closed: int) -> None:
            if closed == fd:
                seen.append(f"close fileno={queue.fileno()} woken={not queue._readers or queue._readers[0].done()}")
            os_close(closed)

        if hasattr(loop, "__dict__"):
            monkeypatch.setattr(loop, "remove_reader", remove_reader)
        else:  # a loop of C takes no attributes
            pause = type(queue)._pause

            def seen_pause(self: object) -> None:
                seen.append(f"remove_reader closed={queue.closed} waiting={not queue._readers[0].done()}")
                pause(queue)

            monkeypatch.setattr(type(queue), "_pause", seen_pause)
        monkeypatch.setattr(os, "close", close)
        await queue.aclose()
        monkeypatch.undo()
        assert seen == ["remove_reader closed=True waiting=True", "close fileno=-1 woken=True"]
        with pytest.raises(QueueClosedError):
            await waiting


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets an entry each time a descriptor is asked for the interface's name."""
    looks: list[int] = []
    ask = _device.QueueFile.get_ifreq

    def counted(file: _device.QueueFile) -> _abi.Ifreq:
        looks.append(file.fd)
        return ask(file)

    monkeypatch.setattr(_device.QueueFile, "get_ifreq", counted)
    return looks


@pytest.mark.parametrize("end", ["close", "delete"])
async def test_the_end_of_many_queues_asks_for_their_name_seldom(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Each time, the loop may have to wait for the kernel's global network lock."""
    async with tap(queues=16) as interface:
        reading = [asyncio.ensure_future(queue.read_frame()) for queue in interface.queues]
        await settle()
        looks = count_looks(monkeypatch)
        if end == "close":
            await interface.aclose()
        else:
            ip("link", "del", interface.name)
        errors = await asyncio.gather(*reading, return_exceptions=True)
        assert {type(error) for error in errors} == {QueueClosedError if end == "close" else DeviceGoneError}
        assert len(looks) <= (1 if end == "close" else 2 * len(errors))


async def test_removing_wakes_only_the_waiters_of_that_queue() -> None:
    async with tap_with_peer(queues=2) as (interface, peer):
        one, two = interface.queues
        readers = [asyncio.ensure_future(one.read_frame()) for _ in range(3)]
        other = asyncio.ensure_future(two.read_frame())
        await settle()
        await interface.remove_queues(one)
        for reader in readers:
            with pytest.raises(QueueClosedError):
                await reader
        await settle()
        assert not other.done()
        peer.send(example_frame(1))
        assert await other == example_frame(1)


async def test_one_failing_close_does_not_keep_the_others_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tap(queues=4) as interface:
        queues = interface.queues[1:]
        doomed = {queues[0].fileno(), queues[1].fileno()}
        os_close = os.close

        def close(fd: int) -> None:
            os_close(fd)
            if fd in doomed:
                raise OSError(errno.EIO, "made to fail")

        monkeypatch.setattr(os, "close", close)
        with pytest.raises(ExceptionGroup, match="closing some descriptors failed"):
            await interface.remove_queues(*queues)
        monkeypatch.undo()
        assert all(queue.closed for queue in queues) and len(interface.queues) == 1
        assert tun_info(interface.name)["numqueues"] == 1


async def test_a_loop_that_closes_the_last_queue_is_not_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes 14 to 40 ms to unregister an interface; the loop goes round meanwhile."""
    interface = await AsyncTuntap(unique(), mode="tap").open()
    fd, loop, original = interface.queues[0].fileno(), asyncio.get_running_loop(), os.close
    went_round: list[bool] = []

    def close(number: int) -> None:
        if number == fd and not went_round:
            turned = threading.Event()
            loop.call_soon_threadsafe(turned.set)
            went_round.append(turned.wait(5))
        original(number)

    monkeypatch.setattr(os, "close", close)
    await interface.aclose()
    assert went_round == [True]


async def test_closing_twice_is_harmless() -> None:
    async with tap(queues=2) as interface:
        queue = interface.queues[0]
        await asyncio.gather(queue.aclose(), queue.aclose())
        await queue.aclose()
        await asyncio.gather(interface.aclose(), interface.aclose())
    await interface.aclose()
    with pytest.raises(QueueClosedError):
        await interface.add_queues()
    with pytest.raises(QueueClosedError):
        await interface.configure(up=True)
    await AsyncTuntap(unique(), mode="tun").aclose()


async def test_cancelling_a_close_still_closes() -> None:
    for delay in (0, 0.001):
        interface = await AsyncTuntap(unique(), mode="tap", queues=3).open()
        task = asyncio.ensure_future(interface.aclose())
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert interface.queues == () and interface.name not in ip("link")


async def test_stats_include_closed_queues() -> None:
    async with tap_with_peer(queues=2) as (interface, peer):
        for queue in interface.queues:
            await queue.write_frame(example_frame(1))
        with suppress(ValueError):
            await interface.queues[0].write_frame(b"")
        await interface.queues[0].aclose()
        total = interface.stats
        assert total == Stats(frames_written=2, frames_refused=1)
        assert len(peer.receive()) == 2
    assert interface.stats == total


async def test_an_interface_without_queues_can_get_new_ones() -> None:
    async with tap() as interface:
        await interface.remove_queues(*interface.queues)
        assert interface.queues == () and not interface.closed
        await interface.add_queues(2)
        assert tun_info(interface.name)["numqueues"] == 2


async def test_disable_and_enable() -> None:
    async with tap_with_peer(queues=2) as (interface, peer):
        one, two = interface.queues
        await one.disable()
        await one.disable()
        assert not one.enabled and two.enabled
        info = tun_info(interface.name)
        assert (info["numqueues"], info["numdisabled"]) == (1, 1)
        for number in range(20):
            peer.send(example_frame(number))
        assert await two.read_frames(20) == [example_frame(number) for number in range(20)]
        with pytest.raises(BlockingIOError):
            one.read_frame_nowait()
        await one.write_frame(example_frame(50))
        assert await peer.read_frame() == example_frame(50)
        assert await idle_share() < 0.05
        await one.enable()
        await one.enable()
        assert one.enabled
        await two.disable()
        reading = asyncio.ensure_future(one.read_frame())
        await settle()
        peer.send(example_frame(60))
        async with asyncio.timeout(2):
            assert await reading == example_frame(60)


async def test_disabling_loses_what_waits_in_the_kernel_but_not_what_is_buffered() -> None:
    async with tap_with_peer(queues=2, read_buffer=3) as (interface, peer):
        one, two = interface.queues
        await two.disable()
        for number in range(10):
            peer.send(example_frame(number))
        await settle()
        await one.disable()
        assert await one.read_frames() == [example_frame(number) for number in range(3)]
        with pytest.raises(BlockingIOError):
            one.read_frame_nowait()


async def test_all_disabled_leaves_the_interface_up_and_drops() -> None:
    async with tap_with_peer(queues=2) as (interface, peer):
        for queue in interface.queues:
            await queue.disable()
        with suppress(OSError):
            peer.send(example_frame(1))
        state = link(interface.name)
        assert "LOWER_UP" in state["flags"] and state["stats64"]["tx"]["dropped"] == 1
        with pytest.raises(SetupError):
            await interface.set_carrier(True)


async def test_a_single_queue_cannot_be_disabled() -> None:
    async with tap(multi_queue=False) as interface:
        with pytest.raises(SetupError, match="multi_queue=True"):
            await interface.queues[0].disable()


async def test_with_napi_a_disabled_queue_refuses_frames() -> None:
    async with tap_with_peer(queues=2, napi=True) as (interface, peer):
        queue = interface.queues[0]
        await queue.disable()
        if not refuses_while_disabled():
            await queue.write_frame(example_frame(1))
            assert await peer.read_frame() == example_frame(1)
            return
        with pytest.raises(OSError) as caught:
            await queue.write_frame(example_frame(1))
        assert caught.value.errno == errno.EBUSY


def steps(text: str) -> list[str]:
    return text.split("-")


@pytest.mark.parametrize(
    "order",
    [
        "delete-disable-close",
        "disable-delete-close",
        "disable-close-delete",
        "enable-delete-close",
        "enable-close-delete",
    ],
)
async def test_the_kernels_own_selftest_orders(order: str) -> None:
    """As tools/testing/selftests/net/tun.c does it, through the library."""
    async with tap(queues=2) as interface:
        queue = interface.queues[1]
        if order.startswith("enable"):
            await queue.disable()
        deleted = False
        for step in steps(order):
            match step:
                case "delete":
                    ip("link", "del", interface.name)
                    deleted = True
                case "close":
                    await queue.aclose()
                case _ if deleted:
                    with pytest.raises(DeviceGoneError):
                        await getattr(queue, step)()
                case _:
                    await getattr(queue, step)()
        await settle()
        assert queue.fileno() == -1
        assert await idle_share() < 0.05


async def test_a_disabled_queue_keeps_the_interface() -> None:
    async with tap(queues=2) as interface:
        one, two = interface.queues
        await one.disable()
        await two.aclose()
        info = tun_info(interface.name)
        assert (info["numqueues"], info["numdisabled"]) == (0, 1)
        await one.enable()
        assert tun_info(interface.name)["numqueues"] == 1


async def test_enabling_after_deletion() -> None:
    async with tap(queues=2) as interface:
        await interface.queues[0].disable()
        ip("link", "del", interface.name)
        with pytest.raises(DeviceGoneError):
            await interface.queues[0].enable()
        assert not interface.queues[0].enabled and not interface.queues[1].enabled


async def test_hundreds_of_queues_leave_nothing_behind() -> None:
    async with tap() as interface:
        await interface.remove_queues(*await interface.add_queues())
        await settle()
        before = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()), watched_fds(), ip("-br", "link")
        for _ in range(300):
            (queue,) = await interface.add_queues()
            await interface.remove_queues(queue)
        await settle()
        assert before == (len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()), watched_fds(), ip("-br", "link"))
        assert tun_info(interface.name)["numqueues"] == 1


async def test_attaching_twice_with_one_descriptor() -> None:
    async with tap() as interface:
        with pytest.raises(OSError) as caught:
            fcntl.ioctl(
                interface.queues[0].fileno(),
                _abi.TUNSETIFF,
                _abi.Ifreq("other", interface._interface.options.flags).pack(),
            )
        assert caught.value.errno == errno.EEXIST


async def test_a_requested_index() -> None:
    """TUNSETIFINDEX before attaching: what an adopted descriptor may come with."""
    for wanted in (7777, 1):
        fd = os.open(_abi.NODE, os.O_RDWR)
        try:
            fcntl.ioctl(fd, _abi.TUNSETIFINDEX, struct.pack("=I", wanted))
            request = _abi.Ifreq(unique(), _abi.IFF_TAP | _abi.IFF_NO_PI | _abi.IFF_MULTI_QUEUE).pack()
            if wanted == 1:  # lo has it
                with pytest.raises(OSError) as caught:
                    fcntl.ioctl(fd, _abi.TUNSETIFF, request)
                assert caught.value.errno == errno.EBUSY
                os.close(fd)
                continue
            fcntl.ioctl(fd, _abi.TUNSETIFF, request)
        except BaseException:
            os.close(fd)
            raise
        interface = await AsyncTuntap.adopt([fd])
        assert interface.index == wanted
        await interface.aclose()
