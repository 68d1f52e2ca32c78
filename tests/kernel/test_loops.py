"""An interface and its loop: closed loops, other loops and threads, forks, copies, tasks that are cancelled again and again."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import gc
import os
import pickle
import resource
import threading
import time
import warnings
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import uvloop

from aiotuntap import AsyncTuntap, QueueClosedError, SetupError, TuntapProtocol, TuntapQueue, create_tuntap_endpoint
from aiotuntap._threads import run_in_thread
from aiotuntap._turns import SLICE
from aiotuntap.testing import example_frame

from .support import PacketPeer, fork, idle_share, ip, settle, tap, tap_with_peer, unique, until, watched_fds

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


async def cancelled_again_and_again(call: Awaitable[Any], delay: float = 0.0) -> bool:
    """Cancels on every iteration of the loop, as anyio does. Whether it ended by being cancelled."""
    task = asyncio.ensure_future(call)
    await asyncio.sleep(delay)
    async with asyncio.timeout(20):
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
    if not task.cancelled():
        task.result()
    return task.cancelled()


def exists(name: str) -> bool:
    return f" {name}: " in ip("link") or f" {name}@" in ip("link")


# -- cancelled again and again -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.002, 0.005])
async def test_opening_cancelled_on_every_iteration(delay: float) -> None:
    name = unique()
    interface = AsyncTuntap(name, mode="tap")
    threads = threading.active_count()
    if not await cancelled_again_and_again(interface.open(), delay):
        await interface.aclose()
    assert threading.active_count() <= threads + 1
    assert not exists(name)


async def test_closing_cancelled_on_every_iteration_still_closes() -> None:
    for close in ("aclose", "remove_queues", "queue"):
        interface = await AsyncTuntap(unique(), mode="tap", queues=2).open()
        queue = interface.queues[0]
        calls: dict[str, Awaitable[None]] = {
            "aclose": interface.aclose(),
            "remove_queues": interface.remove_queues(*interface.queues),
            "queue": queue.aclose(),
        }
        assert await cancelled_again_and_again(calls.pop(close))
        for unused in calls.values():
            unused.close()  # type: ignore[attr-defined]
        assert queue.closed
        await interface.aclose()
        assert not exists(interface.name)


async def test_adding_and_configuring_cancelled_on_every_iteration() -> None:
    async with tap() as interface:
        for delay in (0, 0.0005, 0.002):
            await cancelled_again_and_again(interface.add_queues(2), delay)
            await cancelled_again_and_again(interface.configure(mtu=1400), delay)
            await cancelled_again_and_again(interface.link(), delay)
        descriptors = len(interface.queues)
        assert (await interface.link()).queues == descriptors


async def test_with_a_scope_of_anyio_around_it() -> None:
    name = unique()
    with anyio.move_on_after(0.05) as scope:
        async with AsyncTuntap(name, mode="tap") as interface:
            await interface.configure(up=True)
            await interface.queues[0].read_frame()
    assert scope.cancelled_caught
    assert not exists(name)


async def test_closing_during_opening_waits_for_it_also_when_cancelled() -> None:
    for again in (False, True):
        interface = AsyncTuntap(unique(), mode="tap")
        opening = asyncio.ensure_future(interface.open())
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(interface.aclose())
        await asyncio.sleep(0)
        if again:
            await cancelled_again_and_again(closing)
        else:
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
        assert closing.cancelled()
        assert opening.done() or not interface._under_way
        with pytest.raises(QueueClosedError):
            await opening
        assert not exists(interface.name)


# -- loops that end ----------------------------------------------------------------------------------------------------


@LOOPS
def test_a_loop_closed_inside_of_async_with(new_loop: NewLoop) -> None:
    name = unique()

    async def use() -> None:
        async with AsyncTuntap(name, mode="tap", queues=2) as interface:
            await interface.configure(up=True)
            await interface.queues[0].read_frame()

    loop = new_loop()
    task = loop.create_task(use())
    while "UP" not in ip("link", "show", "dev", name, check=False):
        loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the collector may find the interface before the coroutine
        del task
        gc.collect()
    assert not exists(name)


@LOOPS
def test_a_loop_closed_while_ready_waits(new_loop: NewLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    name = unique()
    ignored: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", ignored.append)

    async def use() -> None:
        async with AsyncTuntap(name, mode="tap") as interface:
            waiting.append(interface)
            await interface.ready()

    waiting: list[AsyncTuntap] = []
    loop = new_loop()
    task = loop.create_task(use())
    while not (waiting and waiting[0]._watchers and waiting[0]._watchers[0]._waiting):
        loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    waiting.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del task
        gc.collect()
    assert not exists(name) and ignored == []


@LOOPS
def test_an_interface_of_a_closed_loop_can_be_closed_from_another(new_loop: NewLoop) -> None:
    interface = AsyncTuntap(unique(), mode="tap")
    loop = new_loop()
    loop.run_until_complete(interface.open())
    loop.close()
    asyncio.run(interface.aclose())
    assert interface.closed and not exists(interface.name)


@LOOPS
def test_a_loop_closed_while_a_stream_waits_for_its_turn(new_loop: NewLoop) -> None:
    name = unique()

    async def read(queue: TuntapQueue) -> None:
        while True:
            await queue.read_frames(10)
            time.sleep(SLICE)

    async def use() -> TuntapQueue:
        interface = await AsyncTuntap(name, mode="tap").open()
        await interface.configure(up=True)
        with PacketPeer(name) as peer:
            for number in range(500):
                peer.send(example_frame(number))
        (queue,) = interface.queues
        reading.append(asyncio.ensure_future(read(queue)))
        while not queue._in_line:
            await asyncio.sleep(0)
        return queue

    reading: list[asyncio.Task[None]] = []
    loop = new_loop()
    queue = weakref.ref(loop.run_until_complete(use()))
    for task in reading:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    reading.clear()
    del task
    loop.close()
    del loop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert queue() is None and not exists(name)


# -- other loops and threads -------------------------------------------------------------------------------------------


async def test_use_from_another_thread_names_both_and_does_nothing() -> None:
    async with tap_with_peer(queues=2) as (interface, peer):
        queue = interface.queues[0]
        # Before and after the queue was in use: what one may do on credit, another thread may not.
        for _ in range(2):
            calls: list[Callable[[], Awaitable[Any]]] = [
                queue.read_frame,
                queue.read_frames,
                lambda: queue.write_frame(example_frame(1)),
                lambda: queue.write_frames([example_frame(1)]),
                queue.aclose,
                queue.disable,
                queue.enable,
                interface.add_queues,
                lambda: interface.remove_queues(queue),
                lambda: interface.configure(mtu=1400),
                interface.link,
                interface.aclose,
                lambda: interface.set_persist(True),
                lambda: interface.set_send_buffer(1000),
            ]
            for call in calls:

                async def use(call: Callable[[], Awaitable[Any]] = call) -> None:
                    await call()

                with pytest.raises(RuntimeError, match=r"belongs to .*oop.* in thread \d+, and was called from .*oop"):
                    await run_in_thread(lambda use=use: asyncio.run(use()))  # type: ignore[misc]
            for now in (queue.read_frame_nowait, queue.read_frames_nowait, lambda: queue.write_frame_nowait(b"")):
                with pytest.raises(RuntimeError, match="no event loop"):
                    await run_in_thread(now)
            assert peer.receive() == [] and not queue.closed
            await queue.write_frame(example_frame(7))
            assert peer.receive() == [example_frame(7)]
        assert (await interface.link()).mtu == 1500


@LOOPS
def test_use_from_another_loop_in_the_same_thread(new_loop: NewLoop) -> None:
    interface = AsyncTuntap(unique(), mode="tap")
    loop, other = new_loop(), new_loop()
    loop.run_until_complete(interface.open())
    loop.run_until_complete(interface.configure(up=True))
    queue = interface.queues[0]
    loop.run_until_complete(queue.write_frame(example_frame(1)))
    loop.run_until_complete(queue.write_frames([example_frame(1)] * 3))
    for call in (
        queue.read_frame,
        queue.read_frames,
        lambda: queue.write_frame(example_frame(1)),
        lambda: queue.write_frames([example_frame(1)]),
        interface.add_queues,
        interface.link,
        interface.aclose,
    ):
        with pytest.raises(RuntimeError, match="belongs to"):
            other.run_until_complete(call())
    loop.run_until_complete(interface.aclose())
    loop.close()
    other.close()


# -- forks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["collect", "close"])
async def test_a_child_that_drops_its_copy_leaves_the_parent_alone(how: str) -> None:
    interface = await AsyncTuntap(unique(), mode="tap").open()
    await interface.configure(up=True)
    with PacketPeer(interface.name) as peer:
        queue = interface.queues[0]
        before = watched_fds()

        def drop() -> int:
            if how == "collect":
                interface.__del__()
            else:
                interface._abandon(interface.queues)
            with contextlib.suppress(QueueClosedError):
                queue.write_frame_nowait(example_frame(1))
                return 3
            # The number may be another file's by now.
            return 0 if queue.fileno() == -1 and queue.closed else 2

        pid = fork(drop)
        assert await run_in_thread(lambda: os.waitpid(pid, 0)[1]) == 0
        assert watched_fds() == before
        for number in range(2):
            peer.send(example_frame(number))
            async with asyncio.timeout(5):
                assert await queue.read_frame() == example_frame(number)
        assert await idle_share() < 0.05
    await interface.aclose()
    assert not exists(interface.name)


async def test_a_child_that_collects_a_writer_that_waits_leaves_the_parent_alone() -> None:
    async with tap_with_peer(read_buffer=1) as (interface, peer):
        queue = interface.queues[0]
        peer.send(example_frame(1))
        async with asyncio.timeout(5):
            while queue._flowing:  # then the loop watches for room only
                await asyncio.sleep(0.001)
        waiting = queue._wait_writable()
        waiting.send(None)
        before = watched_fds()
        pid = fork(waiting.close)  # as the collector does
        assert os.waitpid(pid, 0)[1] == 0  # the loop does not run meanwhile, and so does not notice that there is room
        assert watched_fds() == before
        for number in range(1, 3):
            async with asyncio.timeout(5):
                assert await queue.read_frame() == example_frame(number)
            peer.send(example_frame(number + 1))
        waiting.close()


@pytest.mark.parametrize("how", ["close", "abort", "pause_reading"])
async def test_a_child_that_closes_its_copy_of_a_transport_leaves_the_parent_alone(how: str) -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()

    class Protocol(TuntapProtocol):
        def frame_received(self, frame: bytes) -> None:
            got.put_nowait(frame)

    transport, _ = await create_tuntap_endpoint(Protocol, unique(), mode="tap")
    interface = transport.get_extra_info("interface")
    await interface.configure(up=True)
    with PacketPeer(interface.name) as peer:
        await settle()
        before = watched_fds()
        pid = fork(getattr(transport, how))
        assert os.waitpid(pid, 0)[1] == 0
        assert watched_fds() == before
        for number in range(2):
            peer.send(example_frame(number))
            async with asyncio.timeout(5):
                assert await got.get() == example_frame(number)
    transport.abort()
    await until(lambda: not exists(interface.name))


async def test_interrupted_when_just_opened_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    add = AsyncTuntap._add

    async def interrupted(interface: AsyncTuntap, count: int) -> list[TuntapQueue]:
        await add(interface, count)
        raise KeyboardInterrupt

    monkeypatch.setattr(AsyncTuntap, "_add", interrupted)
    interface = AsyncTuntap(unique(), mode="tap")
    await settle()
    before = watched_fds()
    opening = interface.open()
    with pytest.raises(KeyboardInterrupt):
        await opening
    assert watched_fds() == before and not exists(interface.name)
    with pytest.raises(RuntimeError, match="not open"):
        await interface.read_frame()


async def test_no_memory_when_queues_are_registered_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tap() as interface:
        await settle()
        before, watched = sorted(os.listdir("/proc/self/fd")), watched_fds()
        resume, times = TuntapQueue._resume, iter(range(9))

        def fail_the_second(queue: TuntapQueue) -> None:
            if next(times) == 1:
                raise MemoryError
            resume(queue)

        monkeypatch.setattr(TuntapQueue, "_resume", fail_the_second)
        with pytest.raises(MemoryError):
            await interface.add_queues(3)
        monkeypatch.undo()
        assert sorted(os.listdir("/proc/self/fd")) == before and watched_fds() == watched
        assert len(interface.queues) == 1


async def test_a_loop_that_cannot_register_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: TuntapQueue) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TuntapQueue, "_resume", refuse)
    name = unique()
    with pytest.raises(SetupError, match=f"cannot poll a queue of '{name}': .*max_user_watches"):
        await AsyncTuntap(name, mode="tap").open()
    assert not exists(name)


# -- calls at once -----------------------------------------------------------------------------------------------------


async def test_adding_queues_before_opening_is_over_is_refused() -> None:
    for name in ("", unique(), "rc%d"):
        interface = AsyncTuntap(name, mode="tap")
        opening = asyncio.ensure_future(interface.open())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="not open yet"):
            await interface.add_queues()
        with pytest.raises(RuntimeError, match="opened before"):
            await interface.open()
        await opening
        assert len(interface.queues) == 1
        await interface.aclose()


async def test_closing_waits_for_what_is_under_way_also_when_a_close_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    interface = await AsyncTuntap(unique(), mode="tap").open()
    adding = asyncio.ensure_future(interface.add_queues(3))
    await asyncio.sleep(0)
    fd = interface.queues[0].fileno()
    close = os.close

    def fail(which: int) -> None:
        close(which)
        if which == fd:
            raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "close", fail)
    with pytest.raises(OSError, match="no"):
        await interface.aclose()
    monkeypatch.undo()
    assert adding.done() and not exists(interface.name)
    with pytest.raises((QueueClosedError, SetupError, OSError)):  # the number may have become one of its own
        await adding


# -- copies ------------------------------------------------------------------------------------------------------------


async def test_what_owns_descriptors_is_not_copied() -> None:
    async with tap_with_peer() as (interface, peer):
        for owner in (interface, interface.queues[0]):
            copies: list[Callable[[Any], object]] = [copy.copy, copy.deepcopy, pickle.dumps]
            for each in copies:
                with pytest.raises(TypeError, match="cannot be copied or pickled"):
                    each(owner)
        gc.collect()
        peer.send(example_frame(1))
        assert await interface.queues[0].read_frame() == example_frame(1)


# -- no descriptors left -----------------------------------------------------------------------------------------------


async def test_adding_without_descriptors_leaks_none() -> None:
    async with tap() as interface:
        await settle()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = sorted(os.listdir("/proc/self/fd"))
        highest = max(map(int, before))
        try:
            for room in range(1, 8):
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest + room, hard))
                for _ in range(3):
                    try:
                        added = await interface.add_queues(3)
                    except SetupError as error:
                        assert "ulimit -n" in str(error)
                    else:
                        await interface.remove_queues(*added)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert len(interface.queues) == 1


# -- others run meanwhile ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [1, 8])
async def test_a_flood_leaves_time_for_others(queues: int) -> None:
    """Readers that always find frames, with some work for each: other tasks run all the time."""
    async with tap(queues=queues) as interface:
        end = time.monotonic() + 0.5
        read = 0

        async def work(queue: Any) -> None:
            nonlocal read
            while True:
                for _ in await queue.read_frames():
                    read += 1
                    until = time.perf_counter() + 20e-6
                    while time.perf_counter() < until:
                        pass

        def flood() -> None:
            with PacketPeer(interface.name) as peer:
                number = 0
                while time.monotonic() < end:
                    for _ in range(50):
                        number += 1
                        peer.send(example_frame(number))
                    time.sleep(0.0005)

        tasks = [asyncio.ensure_future(work(queue)) for queue in interface.queues]
        sending = asyncio.ensure_future(asyncio.to_thread(flood))
        most = 0
        while time.monotonic() < end:
            before = read
            await asyncio.sleep(0)
            most = max(most, read - before)
        await sending
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A slice is 100 frames, and one batch of 128 is handed out within it at the latest.
        assert read > 500 and most <= 256
