"""Things that go away, duplicates that stay, and loops that must not spin over either."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from aiotuntap import AsyncTuntap, DeviceGoneError, QueueClosedError, TuntapQueue
from aiotuntap.testing import example_frame

from .support import PacketPeer, idle_share, ip, named_netns, settle, tap, tap_with_peer, unique, watched_fds

pytestmark = pytest.mark.usefixtures("engine")


async def uses(queue: TuntapQueue) -> None:
    """Every use of a queue whose device is gone says so, each time."""
    calls: list[Callable[[], Awaitable[object]]] = [
        queue.read_frame,
        queue.read_frames,
        lambda: queue.write_frame(example_frame(1)),
        lambda: queue.write_frames([example_frame(1)]),
        queue.disable,
        queue.enable,
    ]
    for call in calls * 2:
        with pytest.raises(DeviceGoneError) as caught:
            await call()
        assert caught.value.errno == errno.EBADFD
    for now in (queue.read_frame_nowait, lambda: queue.write_frame_nowait(example_frame(1))):
        with pytest.raises(DeviceGoneError):
            now()
    with pytest.raises(DeviceGoneError):
        async for _ in queue:
            pass


async def test_deleted_under_waiting_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    on_readable = TuntapQueue._on_readable

    def counted(self: TuntapQueue) -> None:
        nonlocal calls
        calls += 1
        on_readable(self)

    monkeypatch.setattr(TuntapQueue, "_on_readable", counted)
    async with tap(queues=2) as interface:
        queue, second = interface.queues
        name = interface.name
        readers = [asyncio.ensure_future(queue.read_frame()) for _ in range(3)]
        readers.append(asyncio.ensure_future(second.read_frame()))
        await settle()
        calls = 0
        ip("link", "del", name)
        async with asyncio.timeout(1):
            outcomes = await asyncio.gather(*readers, return_exceptions=True)
        assert all(isinstance(outcome, DeviceGoneError) for outcome in outcomes), outcomes
        assert 2 <= calls <= 4  # one for each queue, and perhaps one that finds it on its way down
        await settle()
        assert not watched_fds() & {queue.fileno(), second.fileno()}
        assert await idle_share() < 0.05
        assert not queue.closed and interface.name == name
        await uses(queue)
        with pytest.raises(DeviceGoneError):
            await interface.add_queues()
        with pytest.raises(DeviceGoneError):
            await interface.set_persist(True)
        with pytest.raises(DeviceGoneError):
            await interface.configure(up=True)
    await settle()
    assert interface.closed


async def test_deleted_while_nobody_waits() -> None:
    async with tap() as interface:
        ip("link", "del", interface.name)
        await settle()
        assert await idle_share() < 0.05
        await uses(interface.queues[0])


async def test_deleted_and_first_noticed_by_a_writer() -> None:
    async with tap() as interface:
        (queue,) = interface.queues
        reader = asyncio.ensure_future(queue.read_frame())
        await settle()
        ip("link", "del", interface.name)
        with pytest.raises(DeviceGoneError):
            queue.write_frame_nowait(example_frame(1))
        with pytest.raises(DeviceGoneError):
            await reader


async def test_buffered_frames_are_still_handed_out() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        for number in range(5):
            peer.send(example_frame(number))
        await settle()
        ip("link", "del", interface.name)
        await settle()
        assert await queue.read_frame() == example_frame(0)
        assert queue.read_frame_nowait() == example_frame(1)
        assert await queue.read_frames(2) == [example_frame(2), example_frame(3)]
        got = []
        with pytest.raises(DeviceGoneError):
            async for frame in queue:
                got.append(frame)
        assert got == [example_frame(4)]


async def test_deleted_while_reading_is_paused() -> None:
    async with tap_with_peer(read_buffer=2) as (interface, peer):
        (queue,) = interface.queues
        for number in range(2):
            peer.send(example_frame(number))
        await settle()
        ip("link", "del", interface.name)
        assert await idle_share() < 0.05
        assert await queue.read_frames() == [example_frame(0), example_frame(1)]
        async with asyncio.timeout(1):
            await uses(queue)
        await settle()
        assert queue.fileno() not in watched_fds()


@pytest.mark.parametrize("disabled", [False, True])
async def test_its_namespace_deleted(disabled: bool) -> None:
    with named_netns() as name:
        async with AsyncTuntap(unique(), mode="tap", queues=2) as interface:
            ip("link", "set", interface.name, "netns", name)
            if disabled:
                await interface.queues[0].disable()
            readers = [asyncio.ensure_future(queue.read_frame()) for queue in interface.queues]
            await settle()
            ip("netns", "del", name)
            async with asyncio.timeout(30):  # the kernel takes namespaces down one after the other, in its own time
                outcomes = await asyncio.gather(*readers, return_exceptions=True)
            assert all(isinstance(outcome, DeviceGoneError) for outcome in outcomes), outcomes
            assert await idle_share() < 0.05
            for queue in interface.queues:
                await uses(queue)


async def test_a_queue_opened_in_a_namespace_keeps_it_alive() -> None:
    """The descriptor belongs to the namespace it was opened in: that lives on, without a name, until it is closed."""
    with named_netns() as name:
        async with AsyncTuntap("inside0", mode="tap", netns=name) as interface:
            ip("netns", "del", name)
            await settle()
            await interface.configure(up=True)
            await interface.queues[0].write_frame(example_frame(1))
            await interface.add_queues()
            assert all(queue.enabled for queue in interface.queues)


async def test_a_duplicate_that_lives_on_does_not_make_the_loop_spin() -> None:
    async with tap_with_peer(queues=2) as (interface, peer):
        queue, other = interface.queues
        await other.disable()
        duplicate = os.dup(queue.fileno())
        try:
            reader = asyncio.ensure_future(queue.read_frame())
            await settle()
            await queue.aclose()
            with pytest.raises(QueueClosedError):
                await reader
            for number in range(5):  # the duplicate is still attached, and now readable
                peer.send(example_frame(number))
            await settle()
            assert await idle_share() < 0.05
        finally:
            os.close(duplicate)


async def test_a_duplicate_keeps_the_interface() -> None:
    interface = await AsyncTuntap(unique(), mode="tap").open()
    name, duplicate = interface.name, os.dup(interface.queues[0].fileno())
    try:
        await interface.aclose()
        assert name in ip("link")
    finally:
        os.close(duplicate)
    assert name not in ip("link")


async def test_a_number_used_again_is_harmless() -> None:
    """The next interface gets the descriptor number of the last: nothing of the old one may stick to it."""
    async with tap_with_peer() as (interface, peer):
        numbers = set()
        for round_ in range(20):
            (queue,) = await interface.add_queues()
            numbers.add(queue.fileno())
            reader = asyncio.ensure_future(queue.read_frame())
            await asyncio.sleep(0)
            await interface.queues[0].aclose()
            await settle(2)
            assert not reader.done()
            peer.send(example_frame(round_))
            async with asyncio.timeout(1):
                assert await reader == example_frame(round_)
        assert len(numbers) < 20


async def test_a_forgotten_interface_is_closed_with_a_warning() -> None:
    async def forget() -> tuple[str, weakref.ref[AsyncTuntap]]:
        interface = await AsyncTuntap(unique(), mode="tap", queues=3).open()
        await settle()
        return interface.name, weakref.ref(interface)

    before = len(os.listdir("/proc/self/fd"))
    with pytest.warns(ResourceWarning, match="unclosed <AsyncTuntap") as caught:
        name, reference = await forget()
        gc.collect()
    assert len(caught) == 1
    assert reference() is None
    await settle()
    assert name not in ip("link") and len(os.listdir("/proc/self/fd")) == before
    assert await idle_share() < 0.05


async def test_forgotten_on_another_thread() -> None:
    holder = [await AsyncTuntap(unique(), mode="tap").open()]
    name = holder[0].name

    def forget() -> None:
        holder.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed <AsyncTuntap"):
        thread = threading.Thread(target=forget)
        thread.start()
        await asyncio.to_thread(thread.join)
    await settle()
    assert name not in ip("link")


async def test_an_interface_that_is_in_use_is_not_forgotten() -> None:
    async def only_the_queue() -> TuntapQueue:
        return (await AsyncTuntap(unique(), mode="tap").open()).queues[0]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        queue = await only_the_queue()
        gc.collect()
        ip("link", "set", queue._interface.name, "up")
        with PacketPeer(queue._interface.name) as peer:
            peer.send(example_frame(1))
            assert await queue.read_frame() == example_frame(1)
        await queue.aclose()


def test_a_closed_loop_leaves_nothing(request: pytest.FixtureRequest) -> None:
    import uvloop

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        loop = factory()
        interface = loop.run_until_complete(AsyncTuntap(unique(), mode="tap", queues=2).open())
        name = interface.name
        loop.close()
        with pytest.warns(ResourceWarning, match="unclosed <AsyncTuntap"):
            del interface
            gc.collect()
        assert name not in ip("link")

        loop = factory()
        interface = loop.run_until_complete(AsyncTuntap(unique(), mode="tap", queues=2).open())
        loop.close()
        other = factory()
        other.run_until_complete(interface.aclose())
        other.close()
        assert interface.name not in ip("link")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_user_code_leaves_nothing(error: type[BaseException]) -> None:
    import uvloop

    name = unique()

    async def main() -> None:
        async with AsyncTuntap(name, mode="tap", queues=2) as interface:
            pump = asyncio.ensure_future(interface.queues[0].read_frame())
            await settle()
            assert not pump.done()
            raise error

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with pytest.raises(error), asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        assert name not in ip("link")


async def test_cancel_storm_over_everything() -> None:
    async with tap_with_peer(queues=4) as (interface, peer):
        before = len(os.listdir("/proc/self/fd"))

        async def churn() -> None:
            (queue,) = await interface.add_queues()
            try:
                await queue.write_frame(example_frame(1))
                await queue.read_frame()
            finally:
                await queue.aclose()

        for round_ in range(30):
            tasks = [asyncio.ensure_future(churn()) for _ in range(5)]
            await asyncio.sleep(0.0005 * (round_ % 7))
            for task in tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
        # A cancelled opening undoes itself; one that had finished is closed by its task.
        assert len(interface.queues) == 4
        await settle()
        assert len(os.listdir("/proc/self/fd")) == before
        peer.receive()


async def test_descriptors_are_not_inherited() -> None:
    async with tap(queues=3) as interface:
        process = await asyncio.create_subprocess_exec(
            "ls", "-l", "/proc/self/fd", stdout=asyncio.subprocess.PIPE, close_fds=False
        )
        output, _ = await process.communicate()
        assert b"/dev/net/tun" not in output
        assert all(not os.get_inheritable(queue.fileno()) for queue in interface.queues)
