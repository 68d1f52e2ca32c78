"""From `write_frame` to the kernel: what it takes, what it refuses, when it makes one wait."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiotuntap import AsyncTuntap, InvalidFrameError, LinkDownError, QueueClosedError, Stats, TuntapQueue
from aiotuntap._device import QueueFile
from aiotuntap.testing import example_frame

from .support import PacketPeer, idle_share, ip, ipv4, link, settle, tap, tap_with_peer, tun, unique, watched_fds

pytestmark = pytest.mark.usefixtures("engine")


async def test_tap_frames_need_an_ethernet_header() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        for size in (0, 1, 13):
            with pytest.raises(InvalidFrameError, match="Ethernet header of 14 bytes"):
                await queue.write_frame(example_frame(0)[:size])
        await queue.write_frame(example_frame(0)[:14])
        assert await peer.read_frame() == example_frame(0)[:14]
        assert queue.stats.frames_refused == 3 and queue.stats.frames_written == 1


async def test_tun_packets_need_an_ip_header() -> None:
    async with tun() as interface:
        (queue,) = interface.queues
        for packet in (b"", b"\x00" * 40, b"\x75" + bytes(39), b"\xff" * 40):
            with pytest.raises(InvalidFrameError, match="IPv4 or IPv6"):
                await queue.write_frame(packet)
        await queue.write_frame(ipv4())
        assert link(interface.name)["stats64"]["rx"]["packets"] == 1


@pytest.mark.parametrize("options", [{}, {"packet_info": True}, {"vnet_header": True}])
async def test_frames_larger_than_any_are_refused_before_the_kernel_cuts_them(options: dict[str, bool]) -> None:
    async with tap_with_peer(**options) as (interface, peer):
        (queue,) = interface.queues
        largest = interface._interface.options.max_frame
        head = bytes(4 * bool(options.get("packet_info")) + 10 * bool(options.get("vnet_header")))
        await queue.write_frame(head + example_frame(1)[:14] + bytes(largest - len(head) - 14))
        before = link(interface.name)["stats64"]["rx"]["packets"]
        for frame in (bytes(largest + 1), [bytes(14), bytes(largest - 13)], bytearray(3_000_000)):
            with pytest.raises(InvalidFrameError, match="must have 1 to"):
                await queue.write_frame(frame)
            with pytest.raises(InvalidFrameError, match="must have 1 to") as caught:
                await queue.write_frames([frame])
            assert caught.value.indexes == (0,)
        assert link(interface.name)["stats64"]["rx"]["packets"] == before
        assert queue.stats.frames_refused == 6


async def test_a_bad_frame_does_not_end_a_batch() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        frames = [example_frame(number) for number in range(20)]
        bad = {0: b"short", 7: b"", 8: bytes(13), 12: bytes(100_000), 19: b"end"}
        for index, frame in bad.items():
            frames[index] = frame
        with pytest.raises(InvalidFrameError, match="5 of 20 frames") as caught:
            await queue.write_frames(frames)
        assert caught.value.indexes == tuple(bad)
        await settle()
        assert peer.receive() == [frame for index, frame in enumerate(frames) if index not in bad]
        assert queue.stats == Stats(frames_written=15, frames_refused=5)
        # Each was offered to the kernel once: TAP frames it refuses are counted nowhere, those it takes are.
        assert link(interface.name)["stats64"]["rx"]["packets"] == 15


async def test_the_kernel_is_not_asked_about_a_bad_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is at the other end of a tunnel can send many, and an ioctl may wait for the kernel's network lock."""
    asked: list[int] = []
    async with tun() as interface:
        with monkeypatch.context() as patch:
            patch.setattr(QueueFile, "ioctl", lambda _, request, *__: asked.append(request))
            with pytest.raises(InvalidFrameError):
                await interface.write_frames([bytes(20), bytes(20)])
    assert not asked


async def test_each_bad_packet_is_offered_once() -> None:
    async with tun() as interface:
        (queue,) = interface.queues
        with pytest.raises(InvalidFrameError) as caught:
            await queue.write_frames([ipv4(1), bytes(40), [bytes(20), bytes(20)], ipv4(2)])
        assert caught.value.indexes == (1, 2)
        received = link(interface.name)["stats64"]["rx"]
        assert (received["packets"], received["dropped"]) == (2, 2)


async def test_batches_of_any_kind_and_length() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        frames = [example_frame(number) for number in range(700)]
        await queue.write_frames(frame for frame in frames[:300])
        await queue.write_frames(tuple(frames[300:600]))
        await queue.write_frames([bytearray(frames[600]), (frames[601][:14], frames[601][14:]), *frames[602:]])
        await settle()
        assert peer.receive() == frames
        assert queue.stats.frames_written == 700


async def test_a_wrong_type_is_named_and_what_stood_before_it_is_written() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        with pytest.raises(TypeError, match="not str"):
            await queue.write_frames([example_frame(1), "text", example_frame(2)])  # type: ignore[list-item]
        with pytest.raises(TypeError):
            await queue.write_frames([example_frame(3), 7])  # type: ignore[list-item]
        assert await peer.read_frame() == example_frame(1)
        with pytest.raises(TypeError, match="not int"):
            queue.write_frame_nowait(7)  # type: ignore[arg-type]


async def test_down_is_an_error_at_once_and_up_makes_it_work_again() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        await interface.configure(up=False)
        async with asyncio.timeout(0.5):
            with pytest.raises(LinkDownError) as caught:
                await queue.write_frame(example_frame(1))
        assert caught.value.errno == errno.EIO
        with pytest.raises(LinkDownError) as batch:
            await queue.write_frames([example_frame(1), example_frame(2)])
        assert batch.value.__notes__ == ["2 of 2 frames were not written; the first is number 0"]
        with pytest.raises(LinkDownError):
            queue.write_frame_nowait(example_frame(1))
        await interface.configure(up=True)
        await queue.write_frame(example_frame(2))
        assert peer.receive() == [example_frame(2)]


async def test_closed_queues_say_so() -> None:
    async with tap() as interface:
        (queue,) = interface.queues
        await queue.aclose()
        for write in (queue.write_frame(example_frame(1)), queue.write_frames([example_frame(1)])):
            with pytest.raises(QueueClosedError):
                await write
        with pytest.raises(QueueClosedError):
            queue.write_frame_nowait(example_frame(1))


def unicast(number: int) -> bytes:
    """Broadcast frames are cloned for each port of a bridge, and clones do not count in any send buffer."""
    return b"\x02\0\0\0\0\x99" + example_frame(number, 1014)[6:]


@asynccontextmanager
async def congested(rate: str = "8kbit") -> AsyncIterator[tuple[AsyncTuntap, TuntapQueue]]:
    """A queue whose send buffer is full: its frames wait in a slow token bucket on the other port of a bridge."""
    bridge, slow = unique("br"), unique("slow")
    ip("link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
    ip("link", "add", slow, "type", "veth", "peer", "name", f"{slow}p")
    try:
        async with tap() as interface:
            for name in (interface.name, slow):
                ip("link", "set", name, "master", bridge)
            for name in (bridge, slow, f"{slow}p"):
                ip("link", "set", name, "up")
            run_tc("qdisc", "add", "dev", slow, "root", "tbf", "rate", rate, "burst", "2000", "limit", "1000000")
            await interface.set_send_buffer(10_000)
            (queue,) = interface.queues
            while link(slow)["linkinfo"]["info_slave_data"]["state"] != "forwarding":
                await settle()
            for _ in range(5):  # what the bucket lets through at once makes room again
                with pytest.raises(BlockingIOError):
                    for number in range(100):
                        queue.write_frame_nowait(unicast(number))
                await asyncio.sleep(0.01)
            yield interface, queue
    finally:
        ip("link", "del", bridge, check=False)
        ip("link", "del", slow, check=False)


def run_tc(*arguments: str) -> None:
    import subprocess

    subprocess.run(["tc", *arguments], check=True, capture_output=True)


@pytest.mark.alone
async def test_a_full_send_buffer_makes_writers_wait_until_it_drains() -> None:
    async with congested("200kbit") as (_, queue):
        before = queue.stats.frames_written
        async with asyncio.timeout(10):
            writers = [asyncio.ensure_future(queue.write_frame(unicast(n))) for n in range(3)]
            await settle()
            assert not all(writer.done() for writer in writers)
            await asyncio.gather(*writers)
            await queue.write_frames([unicast(n) for n in range(20)])
        assert queue.stats.frames_written == before + 23
        await settle()
        assert not queue._writers


async def test_cancelling_a_waiting_writer_writes_nothing_and_forgets_it() -> None:
    async with congested() as (interface, queue):
        with pytest.raises(BlockingIOError):
            queue.write_frame_nowait(unicast(0))
        before = link(interface.name)["stats64"]["rx"]["packets"]
        writers = [asyncio.ensure_future(queue.write_frame(unicast(n))) for n in range(20)]
        assert await idle_share() < 0.2  # it would be 1.0 if the loop were asked about room without need
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        # The bucket lets one frame a second through, and a slow machine may have taken that long to get here.
        written = sum(not writer.cancelled() for writer in writers)
        assert written < 10
        assert link(interface.name)["stats64"]["rx"]["packets"] == before + written
        assert not queue._writers


@pytest.mark.parametrize("paused", [False, True], ids=["reading", "reading-paused"])
@pytest.mark.parametrize("fault", ["delete", "down", "close"])
async def test_a_waiting_writer_ends_when_there_is_nothing_to_wait_for(fault: str, paused: bool) -> None:
    """A descriptor watched for writability alone is not woken by any of these."""
    async with congested() as (interface, queue):
        if paused:
            queue._pause()
        writer = asyncio.ensure_future(queue.write_frame(unicast(1)))
        await settle(1)
        assert not writer.done()
        if fault == "delete":
            ip("link", "del", interface.name)
        elif fault == "down":
            ip("link", "set", interface.name, "down")
        else:
            await interface.aclose()
        expected = {"delete": "DeviceGoneError", "down": "LinkDownError", "close": "QueueClosedError"}[fault]
        async with asyncio.timeout(2):
            (outcome,) = await asyncio.gather(writer, return_exceptions=True)
        assert type(outcome).__name__ == expected


async def test_a_send_buffer_smaller_than_a_frame_still_lets_frames_through() -> None:
    """The kernel then never reports the queue as writable."""
    async with tap_with_peer() as (interface, peer):
        await interface.set_send_buffer(1)
        async with asyncio.timeout(5):
            for number in range(3):
                await interface.queues[0].write_frame(example_frame(number))
                assert await peer.read_frame() == example_frame(number)


async def test_queues_added_later_get_the_same_send_buffer() -> None:
    import fcntl

    from aiotuntap._abi import TUNGETSNDBUF

    async with tap(queues=2) as interface:
        await interface.set_send_buffer(12_345)
        await interface.add_queues(2)
        for queue in interface.queues:
            size = bytearray(4)
            fcntl.ioctl(queue.fileno(), TUNGETSNDBUF, size)
            assert int.from_bytes(size, "little") == 12_345
        with pytest.raises(ValueError, match="size must be 1 to 2147483647 bytes, not"):
            await interface.set_send_buffer(0)


async def test_writers_do_not_watch_for_writability_without_need() -> None:
    async with tap() as interface:
        await interface.queues[0].write_frames([example_frame(number) for number in range(100)])
        await settle()
        assert await idle_share() < 0.05
        assert interface.queues[0].fileno() in watched_fds()


async def test_many_writers_keep_each_frame_whole() -> None:
    async with tap_with_peer(queues=2) as (interface, peer):
        frames = [example_frame(number, 500) for number in range(400)]

        async def write(part: list[bytes], queue: TuntapQueue) -> None:
            for frame in part:
                await queue.write_frame(frame)

        await asyncio.gather(*(write(frames[start::8], interface.queues[start % 2]) for start in range(8)))
        await settle()
        assert sorted(peer.receive()) == sorted(frames)


async def test_buffers_that_are_not_bytes() -> None:
    import array

    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        words = array.array("H", example_frame(1))
        await queue.write_frame(memoryview(words))
        assert await peer.read_frame() == words.tobytes()
        with PacketPeer(interface.name) as second:
            await queue.write_frame(memoryview(bytes(2) + example_frame(2))[2:])
            assert second.receive() == [example_frame(2)]


async def test_frames_with_broken_buffers_end_a_batch() -> None:
    async with tap_with_peer() as (interface, peer):
        (queue,) = interface.queues
        released = memoryview(example_frame(9))
        released.release()
        nested: Any = [[example_frame(9)]]
        good = [example_frame(number) for number in range(3)]
        for wrong in (released, nested):
            with pytest.raises(TypeError, match="a frame must be a bytes-like object") as caught:
                await queue.write_frames([*good[:2], wrong, good[2]])
            assert caught.value.__notes__ == ["2 of 4 frames were not written; the first is number 2"]
            assert queue.write_frames_nowait([*good[:2], wrong, good[2]]) == 2
            with pytest.raises(TypeError):
                queue.write_frames_nowait([wrong, *good])
            with pytest.raises(TypeError):
                await queue.write_frame(wrong)
            assert peer.receive() == good[:2] * 2
        assert queue.stats.frames_written == 8
