"""Narrow places that something once fell into."""

from __future__ import annotations

import array
import asyncio
import errno
import gc
import itertools
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import uvloop

from aiotuntap import (
    AsyncTuntap,
    DeviceGoneError,
    InvalidFrameError,
    Offload,
    QueueClosedError,
    SetupError,
    TuntapProtocol,
    TuntapQueue,
    _abi,
    _device,
    create_tuntap_endpoint,
)
from aiotuntap._interface import Interface
from aiotuntap._threads import run_in_thread
from aiotuntap.testing import example_frame

from .support import (
    idle_share,
    ip,
    link,
    named_netns,
    refuses_while_disabled,
    rename,
    settle,
    tap,
    tap_with_peer,
    tun_info,
    unique,
)

LOOPS: list[Callable[[], Any]] = [asyncio.new_event_loop, uvloop.new_event_loop]


async def test_deleted_while_the_first_in_line_is_being_cancelled() -> None:
    """uvloop reports the error of a deleted interface once: later readers must notice it too."""
    async with tap() as interface:
        (queue,) = interface.queues
        first, second = (asyncio.ensure_future(queue.read_frame()) for _ in range(2))
        await settle()
        ip("link", "del", interface.name)
        first.cancel()
        async with asyncio.timeout(2):
            outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(outcomes[1], DeviceGoneError)


async def test_an_exclusive_interface_can_grow() -> None:
    async with AsyncTuntap(unique(), mode="tap", exclusive=True) as interface:
        await interface.add_queues(2)
        assert tun_info(interface.name)["numqueues"] == 3


@pytest.mark.parametrize("fault", ["delete", "move"])
async def test_no_second_interface_when_the_first_goes_while_adding(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    opened = _device.QueueFile.open
    with named_netns() as name:
        async with tap() as interface:

            def fault_first() -> _device.QueueFile:
                monkeypatch.undo()
                if fault == "delete":
                    ip("link", "del", interface.name)
                else:
                    ip("link", "set", interface.name, "netns", name)
                return opened()

            monkeypatch.setattr(_device.QueueFile, "open", fault_first)
            before = ip("-br", "link").split()
            with pytest.raises(DeviceGoneError if fault == "delete" else SetupError):
                await interface.add_queues()
            assert interface.name in before and interface.name not in ip("-br", "link").split()
            assert len(interface.queues) == 1


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("afterwards", ["forget", "close"])
def test_a_loop_closed_over_a_waiting_reader(loop: Callable[[], asyncio.AbstractEventLoop], afterwards: str) -> None:
    first = loop()
    interface = first.run_until_complete(AsyncTuntap(unique(), mode="tap").open())
    name = interface.name
    reader = first.create_task(interface.queues[0].read_frame())
    first.run_until_complete(asyncio.sleep(0.01))
    reader._log_destroy_pending = False  # type: ignore[attr-defined]
    first.close()
    if afterwards == "close":
        second = loop()
        second.run_until_complete(interface.aclose())
        second.close()
        del interface, reader
        gc.collect()
    else:
        with pytest.warns(ResourceWarning, match="unclosed <AsyncTuntap"):
            del interface, reader
            gc.collect()
    assert name not in ip("link")


def test_a_warning_made_an_error_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.new_event_loop()
    interface = loop.run_until_complete(AsyncTuntap(unique(), mode="tap").open())
    name = interface.name
    loop.close()
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: told.append(what.exc_type))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        del interface
        gc.collect()
    assert told == [ResourceWarning]
    assert name not in ip("link")


async def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    own = os.stat("/proc/thread-self/ns/net").st_ino
    with named_netns() as name:
        interface = await AsyncTuntap("x0", mode="tap", netns=name).open()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(SetupError, match="cannot start a thread"):
                await interface.add_queues()
            with pytest.raises(SetupError, match="cannot start a thread"):
                await AsyncTuntap("y0", mode="tap", netns=name).open()
            await interface.aclose()
        assert os.stat("/proc/thread-self/ns/net").st_ino == own
        assert "x0" not in ip("-n", name, "link")


async def test_an_attach_that_is_refused_changes_nothing() -> None:
    async with tap(vnet_header=True, offload=Offload.CSUM | Offload.TSO4) as owner:
        import subprocess

        def offloads() -> str:
            return subprocess.run(["ethtool", "-k", owner.name], capture_output=True, text=True, check=True).stdout

        before = offloads()
        assert "tcp-segmentation-offload: on" in before
        with pytest.raises(SetupError, match="vnet_header=True"):
            await AsyncTuntap(owner.name, mode="tap").open()
        with pytest.raises(SetupError, match="headers of 10 bytes"):
            await AsyncTuntap(
                owner.name,
                mode="tap",
                vnet_header=True,
                offload=Offload.CSUM | Offload.TSO4 | Offload.UDP_TUNNEL,
            ).open()
        assert offloads() == before


async def test_adding_queues_leaves_the_settings_as_they_are() -> None:
    async with AsyncTuntap(unique(), mode="tap", carrier=False) as interface:
        await interface.configure(up=True)
        await interface.set_carrier(True)
        await interface.add_queues()
        await settle()
        assert (await interface.link()).carrier


async def test_frames_of_16_bit_items_are_not_cut() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        words = array.array("I", bytes(200_000))
        for write in (queue.write_frame(words), queue.write_frames([example_frame(1), words, example_frame(2)])):  # type: ignore[arg-type, list-item]
            with pytest.raises(InvalidFrameError, match="bytes on this interface, not (200000|800000)"):
                await write
        assert queue.stats.frames_refused == 2
        sent = [frame for frame in peer.receive() if len(frame) == 60]
        assert sent == [example_frame(1), example_frame(2)]


async def test_a_frame_in_memory_with_gaps_is_written_as_its_bytes() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        gaps = memoryview(bytes(byte for each in example_frame(1) for byte in (each, 0)))[::2]
        await queue.write_frame(gaps)
        await queue.write_frames([gaps, [gaps[:20], gaps[20:]]])
        queue.write_frame_nowait(gaps)
        assert peer.receive() == [example_frame(1)] * 4


async def test_frames_of_nothing_and_of_many_pieces() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        nothing: list[Any] = [(), [], [b""], [b"", bytearray()]]
        for frame in nothing:
            with pytest.raises(InvalidFrameError):
                await queue.write_frame(frame)
        with pytest.raises(InvalidFrameError) as caught:
            await queue.write_frames([*nothing, example_frame(1)])
        assert caught.value.indexes == (0, 1, 2, 3)
        await queue.write_frame([bytes([byte]) for byte in example_frame(2, 1400)])
        assert peer.receive() == [example_frame(1), example_frame(2, 1400)]


async def test_a_batch_of_refused_frames_lets_others_run() -> None:
    async with tap() as interface:
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        others = asyncio.ensure_future(take_turns())
        with pytest.raises(InvalidFrameError):
            await interface.queues[0].write_frames([b"bad"] * 3000)
        others.cancel()
        assert turns >= 3  # as often as the streams of a loop have had their time


async def test_reading_one_by_one_keeps_to_the_buffer() -> None:
    async with tap_with_peer(read_buffer=(4, 1)) as (interface, peer):
        (queue,) = interface.queues
        for number in range(200):
            peer.send(example_frame(number))
        for number in range(200):
            assert await queue.read_frame() == example_frame(number)
            assert len(queue._buffer) <= 4


async def test_a_reader_that_had_its_share_keeps_its_place() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        for number in range(900):
            peer.send(example_frame(number))
        order: list[str] = []

        async def read(label: str) -> None:
            while len(order) < 800:
                await queue.read_frame()
                order.append(label)
                time.sleep(0.00002)  # longer than its slice in all, however fast the machine is

        await asyncio.gather(read("a"), read("b"))
        after = order[order.index("b") :]
        assert all(one != other for one, other in itertools.pairwise(after[:-1])), "not in turn"


@pytest.mark.parametrize("limit", [1.5, "3", None, 0, -1])
async def test_an_invalid_limit_leaves_no_reader_waiting(limit: Any) -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        first = asyncio.ensure_future(queue.read_frames(limit))
        second = asyncio.ensure_future(queue.read_frame())
        await settle()
        peer.send(example_frame(1))
        async with asyncio.timeout(2):
            assert await second == example_frame(1)
        with pytest.raises(ValueError, match="limit"):
            await first
        peer.send(example_frame(2))
        assert await queue.read_frames(10**30) == [example_frame(2)]


async def test_a_coroutine_closed_while_it_waits_leaves_the_line() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        abandoned = queue.read_frame()
        abandoned.send(None)
        second = asyncio.ensure_future(queue.read_frame())
        await settle()
        abandoned.close()
        peer.send(example_frame(1))
        async with asyncio.timeout(2):
            assert await second == example_frame(1)


async def test_the_last_name_is_remembered() -> None:
    async with tap() as interface:
        await interface.set_persist(True)
        new = unique("new")
        rename(interface.name, new)
        await interface.remove_queues(*interface.queues)
        assert interface.name == new
        await interface.add_queues()
        assert tun_info(new)["numqueues"] == 1
        await interface.set_persist(False)


async def test_no_descriptors_left_is_not_gone() -> None:
    import resource

    async with tap() as interface:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = [os.open("/dev/null", os.O_RDONLY)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[0] + 1, limits[1]))
        try:
            with pytest.raises(SetupError) as caught:
                await interface.add_queues()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            os.close(free[0])
        assert caught.value.errno == errno.EMFILE and not isinstance(caught.value, DeviceGoneError)


async def test_a_queue_enabled_again_has_the_send_buffer() -> None:
    async with tap(queues=2) as interface:
        queue = interface.queues[1]
        await queue.disable()
        await interface.set_send_buffer(50_000)
        await queue.enable()
        size = bytearray(4)
        queue._file.ioctl(_abi.TUNGETSNDBUF, size)
        assert int.from_bytes(size, "little") == 50_000


async def test_everyone_who_closes_waits_until_it_is_closed() -> None:
    interface = await AsyncTuntap(unique(), mode="tap").open()
    name = interface.name

    async def close() -> bool:
        await interface.aclose()
        return name in ip("link")

    assert list(await asyncio.gather(close(), close(), close())) == [False] * 3


async def test_closing_while_adding_waits_for_it() -> None:
    interface = await AsyncTuntap(unique(), mode="tap").open()
    adding = asyncio.ensure_future(interface.add_queues(30))
    await asyncio.sleep(0)
    await interface.aclose()
    assert adding.done() and interface.name not in ip("link")
    with pytest.raises((QueueClosedError, SetupError, DeviceGoneError)):
        await adding


async def test_adopting_that_fails_late_closes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tap(queues=2) as interface:
        fds = [os.dup(queue.fileno()) for queue in interface.queues]

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no more watches")

        with monkeypatch.context() as patch:
            patch.setattr(Interface, "restore", refuse)
            with pytest.raises(OSError, match="no more watches"):
                await AsyncTuntap.adopt(fds)
        for fd in fds:
            os.fstat(fd)
            os.close(fd)


async def test_adopting_one_name_from_two_namespaces() -> None:
    with named_netns() as name:
        async with tap() as one, AsyncTuntap(one.name, mode="tap", netns=name) as other:
            fds = [os.dup(each.queues[0].fileno()) for each in (one, other)]
            with pytest.raises(SetupError, match="must belong to one interface, not to several"):
                await AsyncTuntap.adopt(fds)
            for fd in fds:
                os.close(fd)


async def test_adopting_half_a_descriptor() -> None:
    fd = os.open(_abi.NODE, os.O_RDONLY)
    try:
        with pytest.raises(SetupError, match="reading and writing"):
            await AsyncTuntap.adopt([fd])
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": None}, TypeError),
        ({"name": b"x"}, TypeError),
        ({"name": "à0"}, ValueError),
        ({"offload": 1, "vnet_header": True}, TypeError),
        ({"offload": None}, TypeError),
        ({"netns": 5}, TypeError),
        ({"carrier": "x"}, TypeError),
        ({"multi_queue": 1}, TypeError),
        ({"vnet_header": None}, TypeError),
        ({"name": "all"}, ValueError),
        ({"netns": ""}, ValueError),
        ({"netns": b"x"}, TypeError),
        ({"netns": "a\0b"}, ValueError),
        ({"read_buffer": True}, ValueError),
        ({"read_buffer": "x"}, ValueError),
        ({"read_buffer": (4.5, 1)}, ValueError),
        ({"read_buffer": (4, 1, 1)}, ValueError),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        AsyncTuntap(**{"mode": "tun", **options})


async def test_wrong_arguments_later() -> None:
    async with tap() as interface:
        (queue,) = interface.queues
        for size in (0, 2**40):
            with pytest.raises(ValueError, match=f"size must be 1 to 2147483647 bytes, not {size}"):
                await interface.set_send_buffer(size)
        with pytest.raises(TypeError, match="size must be a whole number, not 1.5"):
            await interface.set_send_buffer(1.5)  # type: ignore[arg-type]
        for change in (interface.set_carrier, interface.set_persist):
            with pytest.raises(TypeError, match="(carrier|persist) must be True or False, not 'x'"):
                await change("x")  # type: ignore[arg-type]
        for change_program in (interface.set_steering, interface.set_filter):
            with pytest.raises(TypeError, match="program must be a file descriptor, .* not 'x'"):
                await change_program("x")  # type: ignore[arg-type]
        for wrong in (5, "ab", b"ab"):
            with pytest.raises(TypeError, match="fds must be a list of descriptors, not"):
                await AsyncTuntap.adopt(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="is not a TuntapQueue"):
            await interface.remove_queues(None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="descriptor"):
            await AsyncTuntap.adopt([2**31])
        with pytest.raises(ValueError, match="mtu must be a whole number of bytes .* not True"):
            await interface.configure(mtu=True)
        with pytest.raises(TypeError, match="up must be True or False, not 0"):
            await interface.configure(up=0)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="address 5"):
            await interface.configure(addresses=[5])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="write_frame takes one"):
            await queue.write_frames(b"frame")  # type: ignore[arg-type]
    closed = AsyncTuntap(unique(), mode="tap")
    await closed.aclose()
    with pytest.raises(RuntimeError, match="closed before"):
        await closed.open()


async def test_an_error_is_not_its_own_cause() -> None:
    async with tap(queues=2, napi=True) as interface:
        await interface.queues[0].disable()
        for write in (
            interface.queues[0].write_frame(example_frame(1)),
            interface.queues[0].write_frames([example_frame(1)]),
        ):
            if not refuses_while_disabled():
                await write
                continue
            with pytest.raises(OSError) as caught:
                await write
            assert caught.value.errno == errno.EBUSY and caught.value.__cause__ is None


async def test_the_kernels_error_is_the_cause() -> None:
    async with tap() as interface:
        with pytest.raises(InvalidFrameError) as caught:
            interface.queues[0].write_frame_nowait(b"short")
        assert isinstance(caught.value.__cause__, OSError)


def test_a_result_that_nobody_receives_is_undone() -> None:
    undone: list[int] = []
    loop = asyncio.new_event_loop()
    release = threading.Event()

    def work() -> int:
        release.wait(5)
        return 7

    task = loop.create_task(run_in_thread(work, undone.append))
    loop.run_until_complete(asyncio.sleep(0.01))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    coroutine = task.get_coro()
    assert coroutine is not None
    coroutine.close()
    release.set()
    for thread in threading.enumerate():
        if thread.name == "aiotuntap-setup":
            thread.join()
    assert undone == [7]
    assert link("lo")["ifname"] == "lo"


def _late(queue: TuntapQueue, times: int) -> None:
    """As the kernel while it takes an interface away: poll reports an error already, and read(2) says EAGAIN."""
    engine, left = queue._engine, [times]

    def later(number: object) -> bool:
        left[0] -= number == errno.EBADFD
        return number == errno.EBADFD and left[0] >= 0

    def read_one(fd: int) -> bytes | int:
        frame = engine.read_one(fd)
        return errno.EAGAIN if later(frame) else frame

    def read_batch(fd: int, limit: int, enough: int) -> tuple[list[bytes], int | BaseException]:
        frames, number = engine.read_batch(fd, limit, enough)
        return frames, errno.EAGAIN if later(number) else number

    queue._engine = replace(engine, read_one=read_one, read_batch=read_batch)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("readers", [0, 1, 3])
@pytest.mark.parametrize("offload", [Offload.NONE, Offload.ALL])
async def test_a_queue_that_reads_nothing_at_first_when_its_interface_goes(readers: int, offload: Offload) -> None:
    async with tap(offload=offload) as interface:
        (queue,) = interface.queues
        tasks = [asyncio.ensure_future(queue.read_frames()) for _ in range(readers)]
        await settle()
        _late(queue, 3)
        ip("link", "del", interface.name)
        await asyncio.sleep(0.05)
        tasks = tasks or [asyncio.ensure_future(queue.read_frames())]
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, DeviceGoneError) for outcome in outcomes)
        assert await idle_share() < 0.05


async def test_an_endpoint_that_reads_nothing_at_first_when_its_interface_goes() -> None:
    lost = asyncio.get_running_loop().create_future()

    class Protocol(TuntapProtocol):
        def frame_received(self, frame: bytes) -> None:
            pass

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set_result(exc)

    transport, _ = await create_tuntap_endpoint(Protocol, unique(), mode="tap")
    interface = transport.get_extra_info("interface")
    await interface.configure(up=True)
    await settle()
    _late(interface.queues[0], 3)
    ip("link", "del", interface.name)
    async with asyncio.timeout(10):
        assert isinstance(await lost, DeviceGoneError)


@pytest.mark.usefixtures("engine")
async def test_a_queue_that_gives_a_last_frame_while_its_interface_goes() -> None:
    """The loop's only call about the error finds a frame, and the next read nothing."""
    async with tap() as interface:
        (queue,) = interface.queues
        reader = asyncio.ensure_future(queue.read_frame())
        await settle()
        engine, last = queue._engine, [example_frame(1)]
        _late(queue, 3)
        late = queue._engine

        def read_one(fd: int) -> bytes | int:
            return last.pop() if last and engine.read_one(fd) == errno.EBADFD else late.read_one(fd)

        queue._engine = replace(late, read_one=read_one)
        ip("link", "del", interface.name)
        async with asyncio.timeout(10):
            assert await reader == example_frame(1)
            with pytest.raises(DeviceGoneError):
                await queue.read_frame()
