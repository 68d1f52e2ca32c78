"""From the kernel's ring to `read_frame`: waking, batches, backpressure, sizes, packet information."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from aiotuntap import AsyncTuntap, TuntapQueue, _abi, _tuntap
from aiotuntap._descriptor import BATCH
from aiotuntap._turns import SLICE
from aiotuntap.testing import example_frame

from .support import (
    PacketPeer,
    idle_share,
    ip,
    ipv4,
    link,
    receive_from,
    settle,
    tap,
    tap_with_peer,
    tun,
    unique,
    watched_fds,
)

pytestmark = pytest.mark.usefixtures("engine")


def count_callbacks(monkeypatch: pytest.MonkeyPatch) -> list[TuntapQueue]:
    calls: list[TuntapQueue] = []
    original = TuntapQueue._on_readable

    def counted(self: TuntapQueue) -> None:
        calls.append(self)
        original(self)

    monkeypatch.setattr(TuntapQueue, "_on_readable", counted)
    return calls


async def test_an_idle_loop_makes_no_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_callbacks(monkeypatch)
    async with tap(queues=256):
        await settle()
        calls.clear()
        assert await idle_share() < 0.05
        assert calls == []


@pytest.mark.alone  # on a busy machine the kernel hands them over piece by piece
async def test_five_frames_come_with_one_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_callbacks(monkeypatch)
    async with tap_with_peer() as (interface, peer):
        sent = [example_frame(number) for number in range(5)]
        await settle()
        calls.clear()
        for frame in sent:
            peer.send(frame)
        queue = interface.queues[0]
        assert [await queue.read_frame() for _ in sent] == sent
        assert len(calls) == 1
        assert queue.stats.frames_read == 5


@pytest.mark.alone
async def test_work_per_callback_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that pile up meanwhile must not keep the loop in one callback: others get their turn in between."""
    async with tap_with_peer(read_buffer=1000) as (interface, peer):
        for number in range(900):
            peer.send(example_frame(number))
        queue = interface.queues[0]
        sizes = []
        for _ in range(4):
            await asyncio.sleep(0)
            sizes.append(len(queue._buffer))
        steps = [after - before for before, after in itertools.pairwise(sizes)]
        assert max(steps) <= BATCH
        assert [await queue.read_frame() for _ in range(900)] == [example_frame(number) for number in range(900)]


@pytest.mark.parametrize("batches", [False, True])
async def test_a_reader_that_always_finds_frames_lets_others_run(batches: bool) -> None:
    async with tap_with_peer() as (interface, peer):
        queue = interface.queues[0]
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        async def flood() -> None:
            for _ in range(40):
                for number in range(100):
                    peer.send(example_frame(number))
                await asyncio.sleep(0)

        ticking, flooding = asyncio.ensure_future(tick()), asyncio.ensure_future(flood())
        got = 0
        async with asyncio.timeout(20):
            while got < 2000:
                got += len(await queue.read_frames()) if batches else len([await queue.read_frame()])
        ticking.cancel()
        await asyncio.gather(ticking, flooding, return_exceptions=True)
        assert ticks >= 2000 / 1000


async def test_a_reader_that_uses_up_every_slice_keeps_no_other_queue_from_reading() -> None:
    async with tap_with_peer() as (busy, crowd), tap_with_peer() as (quiet, peer):
        batches = 0

        async def work() -> None:
            nonlocal batches
            for _ in range(100):
                await busy.queues[0].read_frames(10)
                time.sleep(SLICE)
                batches += 1

        working = asyncio.ensure_future(work())
        reading = asyncio.ensure_future(quiet.queues[0].read_frame())
        await asyncio.sleep(0.01)
        for number in range(1000):
            crowd.send(example_frame(number))
        peer.send(example_frame(7))
        async with asyncio.timeout(20):
            assert await reading == example_frame(7)
            assert batches <= 10
            await working


@pytest.mark.alone
async def test_a_full_ring_is_read_without_starving_a_ticker() -> None:
    """All frames are there before reading starts: the reader could go on without ever waiting."""
    async with tap_with_peer() as (interface, peer):
        queue = interface.queues[0]
        sent = [example_frame(number) for number in range(1000)]
        for frame in sent:
            peer.send(frame)
        longest = run = 0

        async def tick() -> None:
            nonlocal run
            while True:
                await asyncio.sleep(0)
                run = 0

        ticking = asyncio.ensure_future(tick())
        await asyncio.sleep(0)
        got: list[bytes] = []
        while len(got) < 1000:
            got.append(await queue.read_frame())
            run += 1
            longest = max(longest, run)
            until = time.perf_counter() + 20e-6
            while time.perf_counter() < until:
                pass
        ticking.cancel()
        assert got == sent
        # A slice is 100 frames, and what was read within it, 128 at most, is in the buffer.
        assert longest <= 256


async def test_a_full_buffer_stops_reading_and_reading_resumes_it() -> None:
    async with tap_with_peer(read_buffer=(8, 2)) as (interface, peer):
        (queue,) = interface.queues
        sent = [example_frame(number) for number in range(40)]
        for frame in sent:
            peer.send(frame)
        await settle()
        assert len(queue._buffer) == 8
        assert queue.fileno() not in watched_fds()
        assert await idle_share() < 0.05
        got = [await queue.read_frame() for _ in range(5)]
        await settle()
        assert len(queue._buffer) == 3 and queue.fileno() not in watched_fds()
        got.append(await queue.read_frame())
        await settle()
        assert len(queue._buffer) == 8
        while len(got) < len(sent):
            got += await queue.read_frames(3)
        assert got == sent
        await settle()
        assert queue.fileno() in watched_fds()


async def test_a_buffer_of_large_frames_is_full_before_it_has_many() -> None:
    async with tap_with_peer(read_buffer=1000) as (interface, peer):
        (queue,) = interface.queues
        await interface.configure(mtu=65521, txqueuelen=1000)
        sent = [example_frame(number, 65535).ljust(65535, b"x") for number in range(300)]
        for frame in sent:
            peer.send(frame)
        await settle()
        assert queue.fileno() not in watched_fds()
        assert len(queue._buffer) <= 2 * 64  # those that the buffer may have, and a batch
        assert await idle_share() < 0.05
        got: list[bytes] = []
        while len(got) < len(sent):
            got += await queue.read_frames(7)
            await asyncio.sleep(0)
        assert got == sent
        await settle()
        assert queue.fileno() in watched_fds()


async def test_a_long_buffer_is_weighed_as_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of it for each batch, which would take longer than reading it. A reader in between changes nothing."""
    weighed: list[int] = []

    class Counted(TuntapQueue):
        def _weigh(self, elements: Iterable[bytes]) -> int:
            frames = list(elements)
            weighed.append(len(frames))
            return super()._weigh(frames)

    monkeypatch.setattr(_tuntap, "TuntapQueue", Counted)
    async with tap_with_peer(read_buffer=2000) as (interface, peer):
        queue = interface.queues[0]
        for start in range(0, 1800, 60):
            for number in range(start, start + 60):
                peer.send(example_frame(number))
            await settle()
            if start == 900:
                assert [await queue.read_frame() for _ in range(400)] == [example_frame(each) for each in range(400)]
        assert 1000 < sum(weighed) <= 1800
        assert len(queue._buffer) == 1400


async def test_a_buffer_that_is_read_meanwhile_is_full_of_bytes_all_the_same() -> None:
    async with tap_with_peer(read_buffer=1000) as (interface, peer):
        await interface.configure(mtu=65521, txqueuelen=1000)
        queue = interface.queues[0]
        sent = got = 0
        while queue.fileno() in watched_fds() and sent < 400:
            peer.send(example_frame(sent, 60_000))
            sent += 1
            await settle(2)
            if sent % 3 == 0 and sent <= 150:
                await queue.read_frame()
                got += 1
        assert 60 < sent - got < 2 * BATCH + 10


async def test_what_nobody_reads_is_dropped_by_the_kernel_and_counted_there() -> None:
    async with tap_with_peer(read_buffer=10) as (interface, peer):
        await interface.configure(txqueuelen=50)
        (queue,) = interface.queues
        sent = [example_frame(number) for number in range(100)]
        for frame in sent[:10]:
            peer.send(frame)
        await settle()
        for frame in sent[10:]:
            with suppress(OSError):
                peer.send(frame)
        dropped = link(interface.name)["stats64"]["tx"]["dropped"]
        assert dropped >= 40  # more than that: the ring gives back the slots of frames that were read 16 at a time
        assert [await queue.read_frame() for _ in range(100 - dropped)] == sent[: 100 - dropped]


async def test_a_limit_beyond_the_buffer_takes_what_the_kernel_has() -> None:
    async with tap_with_peer(read_buffer=16) as (interface, peer):
        sent = [example_frame(number) for number in range(500)]
        for frame in sent:
            peer.send(frame)
        assert await interface.queues[0].read_frames(10_000) == sent


@pytest.mark.parametrize("mtu", [1500, 9000, 65521])
async def test_the_largest_frame_of_a_tap_comes_whole(mtu: int) -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        await interface.configure(mtu=mtu)
        frame = example_frame(1, 14 + mtu).ljust(14 + mtu, b"x")
        peer.send(frame)
        assert await queue.read_frame() == frame
        await queue.write_frame(frame)
        assert await peer.read_frame() == frame


@pytest.mark.parametrize("mtu", [1500, 9000, 65535])
async def test_the_largest_packet_of_a_tun_comes_whole(mtu: int) -> None:
    async with tun() as interface:
        (queue,) = interface.queues
        await interface.configure(mtu=mtu)
        with PacketPeer(interface.name, 0x0800, tun=True) as peer:
            packet = ipv4(1, mtu)
            peer.send(packet)
            assert await queue.read_frame() == packet
            await queue.write_frame(packet)
            assert await peer.read_frame() == packet


async def test_an_mtu_raised_by_another_program_truncates_nothing() -> None:
    async with tap_with_peer() as (interface, peer):
        ip("link", "set", interface.name, "mtu", "40000")
        peer.send(example_frame(5, 40014))
        assert len(await interface.queues[0].read_frame()) == len(example_frame(5, 40014))


async def test_packet_information_is_in_front() -> None:
    async with tap_with_peer(packet_info=True) as (interface, peer):
        (queue,) = interface.queues
        peer.send(example_frame(1))
        assert await queue.read_frame() == struct.pack("=H", 0) + b"\x88\xb5" + example_frame(1)
        await queue.write_frame([b"\0\0\x88\xb5", example_frame(2)])
        assert await peer.read_frame() == example_frame(2)


async def test_a_header_of_ten_bytes_is_in_front() -> None:
    async with tap_with_peer(vnet_header=True) as (interface, peer):
        (queue,) = interface.queues
        peer.send(example_frame(1))
        assert await queue.read_frame() == bytes(10) + example_frame(1)
        await queue.write_frame(bytes(10) + example_frame(2))
        assert await peer.read_frame() == example_frame(2)


async def test_iteration_goes_on_over_down_and_up() -> None:
    async with tap_with_peer() as (interface, peer):
        got: list[bytes] = []

        async def iterate() -> None:
            async for frame in interface.queues[0]:
                got.append(frame)

        task = asyncio.ensure_future(iterate())
        peer.send(example_frame(1))
        await settle()
        await interface.configure(up=False)
        await settle()
        await interface.configure(up=True)
        # Coming up, the interface takes a moment to have its carrier seen; until then frames are dropped.
        for _ in range(200):
            with suppress(OSError):
                peer.send(example_frame(2))
            await asyncio.sleep(0.005)
            if len(got) > 1:
                break
        assert got[0] == example_frame(1) and got[-1] == example_frame(2)
        await interface.aclose()
        await task


async def test_frames_queued_before_the_link_went_down_can_still_be_read() -> None:
    async with tap_with_peer(read_buffer=1) as (interface, peer):
        for number in range(3):
            peer.send(example_frame(number))
        await interface.configure(up=False)
        assert [await interface.queues[0].read_frame() for _ in range(3)] == [example_frame(n) for n in range(3)]


async def test_adding_and_removing_a_reader_midway_keeps_the_order() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        impatient = asyncio.ensure_future(queue.read_frame())
        patient = asyncio.ensure_future(queue.read_frames())
        await asyncio.sleep(0)
        impatient.cancel()
        for number in range(3):
            peer.send(example_frame(number))
        assert await patient == [example_frame(number) for number in range(3)]
        with pytest.raises(BlockingIOError):
            queue.read_frame_nowait()


async def test_nowait_leaves_frames_to_those_who_wait() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        waiting = asyncio.ensure_future(queue.read_frame())
        await settle()
        peer.send(example_frame(1))
        with pytest.raises(BlockingIOError):
            queue.read_frame_nowait()
        assert await waiting == example_frame(1)


async def test_cancel_storm_loses_nothing() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        got: list[bytes] = []

        async def read(batch: bool) -> None:
            if batch:
                got.extend(await queue.read_frames(3))
            else:
                got.append(await queue.read_frame())

        sent = [example_frame(number) for number in range(1000)]
        for start in range(0, len(sent), 10):
            for frame in sent[start : start + 10]:
                peer.send(frame)
            tasks = [asyncio.ensure_future(read(bool(number % 2))) for number in range(8)]
            for _ in range(start % 5):
                await asyncio.sleep(0)
            for task in tasks[start % 3 :: 2]:
                task.cancel()
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        while len(got) < len(sent):
            got += await queue.read_frames()
        assert got == sent


async def test_wait_for_with_a_timeout_loses_nothing() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        got: list[bytes] = []
        numbers = itertools.count()
        loop = asyncio.get_running_loop()
        for number in range(100):
            loop.call_later(number * 0.001, lambda: peer.send(example_frame(next(numbers))))
        while len(got) < 100:
            with suppress(TimeoutError):
                got.append(await asyncio.wait_for(queue.read_frame(), 0.0005))
        assert got == [example_frame(number) for number in range(100)]


async def test_replies_come_to_the_queue_that_wrote_the_flow() -> None:
    async with tun(queues=4) as interface:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with server:
            server.bind(("10.11.12.1", 9))
            for number, queue in enumerate(interface.queues):
                request = bytearray(ipv4(number, destination="10.11.12.1"))
                request[12:16] = bytes([10, 11, 12, 40 + number])
                request[10:12] = b"\0\0"
                total = sum(struct.unpack("!10H", request[:20]))
                request[10:12] = (0xFFFF - (total & 0xFFFF) - (total >> 16)).to_bytes(2)
                await queue.write_frame(request)
                _, address = await receive_from(server)
                server.sendto(b"reply", address)
                async with asyncio.timeout(1):
                    assert (await queue.read_frame())[16:20] == bytes([10, 11, 12, 40 + number])


@pytest.mark.parametrize("options", [{}, {"packet_info": True}, {"vnet_header": True}])
def test_the_read_size_holds_the_largest_frame(options: dict[str, Any]) -> None:
    largest = AsyncTuntap(unique(), mode="tap", **options)._interface.options.max_frame
    assert largest < _abi.READ_SIZE


async def test_an_unexpected_error_ends_the_queue_and_is_kept() -> None:
    """An unexpected error of the kernel is reported with its errno, and the loop does not spin."""
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        waiting = asyncio.ensure_future(queue.read_frame())
        await settle()
        queue._engine = replace(queue._engine, read_one=lambda _: errno.EIO, read_batch=lambda *_: ([], errno.EIO))
        peer.send(example_frame(1))
        await settle()
        with pytest.raises(OSError) as caught:
            await waiting
        assert caught.value.errno == errno.EIO
        assert await idle_share() < 0.05


async def test_no_memory_for_a_frame_is_told_to_who_reads_and_loses_nothing() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        engine = queue._engine

        def no_memory(_: int) -> bytes:
            raise MemoryError

        answers: list[tuple[list[bytes], int | BaseException]] = [([], errno.ENOMEM), ([], MemoryError())]
        for answer in answers:
            reader = asyncio.ensure_future(queue.read_frame())
            await settle()
            queue._engine = replace(engine, read_one=no_memory, read_batch=lambda *_, answer=answer: answer)
            peer.send(example_frame(1))
            with pytest.raises(MemoryError):
                await reader
            assert await idle_share() < 0.05
            with pytest.raises(MemoryError):
                await queue.read_frames()
            queue._engine = engine
            readers = [asyncio.ensure_future(queue.read_frame()) for _ in range(3)]
            for number in (2, 3):
                peer.send(example_frame(number))
            async with asyncio.timeout(10):
                assert await asyncio.gather(*readers) == [example_frame(number) for number in (1, 2, 3)]


async def test_an_exception_in_the_middle_of_a_batch_loses_no_frame() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        engine = queue._engine

        def read_some(fd: int, limit: int, enough: int) -> tuple[list[bytes], int | BaseException]:
            frames, number = engine.read_batch(fd, min(limit, 3), enough)
            return frames, KeyboardInterrupt() if frames else number

        queue._engine = replace(engine, read_batch=read_some)
        sent = [example_frame(number) for number in range(20)]
        for frame in sent:
            peer.send(frame)
        got: list[bytes] = []
        while len(got) < len(sent):
            try:
                got += queue.read_frames_nowait()
            except KeyboardInterrupt:
                continue
        assert got == sent
        assert queue.stats.frames_read == len(sent)


async def test_a_failure_to_resume_reading_loses_no_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    async with tap_with_peer(read_buffer=(2, 0)) as (interface, peer):
        (queue,) = interface.queues
        sent = [example_frame(number) for number in range(6)]
        for frame in sent:
            peer.send(frame)
        await settle()
        assert queue.fileno() not in watched_fds()  # the buffer is full
        loop = asyncio.get_running_loop()
        failing = True

        def refuse(self: TuntapQueue) -> None:
            if failing:
                raise MemoryError
            resume(self)

        resume = TuntapQueue._resume
        monkeypatch.setattr(TuntapQueue, "_resume", refuse)
        got: list[bytes] = []
        reads: list[Callable[[], Awaitable[Any]]] = [queue.read_frame, queue.read_frames]
        for read in reads:
            with pytest.raises(MemoryError):
                while True:
                    frames = await read()
                    got += frames if isinstance(frames, list) else [frames]
        failing = False
        assert loop.is_running()
        while len(got) < len(sent):
            got += await queue.read_frames()
        assert got == sent


async def test_no_memory_in_the_middle_of_a_read_wakes_the_next_reader() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        engine = queue._engine

        def read_batch(fd: int, limit: int, enough: int) -> tuple[list[bytes], int | BaseException]:
            frames, number = engine.read_batch(fd, limit, enough)
            return frames, MemoryError() if frames else number

        readers = [asyncio.ensure_future(queue.read_frames()), asyncio.ensure_future(queue.read_frame())]
        await settle()
        queue._engine = replace(engine, read_batch=read_batch)
        for number in range(2):
            peer.send(example_frame(number))
        async with asyncio.timeout(10):
            with pytest.raises(MemoryError):
                await readers[0]
            queue._engine = engine
            assert await readers[1] == example_frame(0)
            assert await queue.read_frame() == example_frame(1)


async def test_a_huge_limit_is_a_bounded_piece_of_work() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        engine = queue._engine
        queue._engine = replace(engine, read_batch=lambda _, limit, __: ([example_frame(1)] * min(limit, 256), 0))
        peer.send(example_frame(1))
        assert 128 <= len(await queue.read_frames(10**9)) <= 4096 + 1
        queue._engine = engine
