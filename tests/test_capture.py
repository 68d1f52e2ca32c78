"""Recording a stream: the content of the file, and that the stream is not affected, even if writing fails."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import gc
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from aiotuntap import InvalidFrameError, Mode, PacketStream, SetupError, TuntapError
from aiotuntap._background import BackgroundWriter
from aiotuntap._pcapng import whole_blocks
from aiotuntap.capture import Capture, CapturedStream
from aiotuntap.testing import FarEnd, MemoryStream, check_packet_stream, example_frame, memory_pair

from .kernel.support import fork
from .offload_packets import Packet, vnet_header
from .pcapng import read

INBOUND, OUTBOUND = 1, 2


@asynccontextmanager
async def recorded(path: Path) -> AsyncIterator[tuple[CapturedStream, MemoryStream]]:
    stream, far = memory_pair()
    async with Capture(path) as capture:
        yield capture.wrap(stream, name="memory", mode="tap"), far


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.pcapng"


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A named pipe with a reader."""
    name = tmp_path / "pipe"
    os.mkfifo(name)
    reader = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    yield name, reader
    with contextlib.suppress(OSError):
        os.close(reader)


# -- the stream --------------------------------------------------------------------------------------------------------


async def test_a_captured_stream_conforms(path: Path) -> None:
    async with Capture(path) as capture:

        @asynccontextmanager
        async def make() -> AsyncIterator[tuple[PacketStream, FarEnd]]:
            stream, far = memory_pair()
            yield capture.wrap(stream, name="memory", mode="tap"), far

        await check_packet_stream(make)
        assert isinstance(capture.wrap(memory_pair()[0], name="memory", mode="tap"), PacketStream)
    assert len(read(path).packets) > 1000


async def test_a_captured_stream_conforms_when_recording_fails() -> None:
    async with Capture("/dev/full") as capture:

        @asynccontextmanager
        async def make() -> AsyncIterator[tuple[PacketStream, FarEnd]]:
            stream, far = memory_pair()
            yield capture.wrap(stream, name="memory", mode="tap"), far

        await check_packet_stream(make)
        assert capture.error is not None and capture.error.errno == errno.ENOSPC


async def test_a_captured_stream_has_the_attributes_of_the_wrapped_one(path: Path) -> None:
    class Plain:
        closed = False
        dropped = 7

    async with Capture(path) as capture:
        stream = capture.wrap(Plain(), name="plain", mode="tap")  # type: ignore[arg-type]
        assert not hasattr(stream, "read_frames_nowait") and not hasattr(stream, "write_frames_nowait")
        assert stream.dropped == 7


async def test_cannot_be_copied(path: Path) -> None:
    async with recorded(path) as (stream, _):
        with pytest.raises(TypeError, match="cannot be copied"):
            copy.copy(stream)


# -- what is in the file -----------------------------------------------------------------------------------------------


async def test_every_way_of_reading_and_writing(path: Path) -> None:
    frames = [example_frame(number) for number in range(14)]
    before = time.time_ns()
    async with recorded(path) as (stream, far):
        await far.write_frames(frames[:7])
        assert await stream.read_frame() == frames[0]
        assert stream.read_frame_nowait() == frames[1]
        assert await anext(stream) == frames[2]
        assert await stream.read_frames(2) == frames[3:5]
        assert stream.read_frames_nowait() == frames[5:7]
        await stream.write_frame(frames[7])
        stream.write_frame_nowait(bytearray(frames[8]))
        await stream.write_frames(iter(frames[9:12]))
        assert stream.write_frames_nowait([[frames[12][:20], memoryview(frames[12])[20:]], frames[13]]) == 2
    after = time.time_ns()
    found = read(path)
    assert found.data(INBOUND) == frames[:7] and found.data(OUTBOUND) == frames[7:]
    assert {(each.interface, each.link_type, each.queue) for each in found.packets} == {("memory", 1, 0)}
    times = [each.time for each in found.packets]
    assert [before, *times, after] == sorted([before, *times, after])
    assert len(set(times)) > 5 and any(each % 1000 for each in times)
    assert found.missed == {"memory": 0}


async def test_several_interfaces_and_queues(path: Path) -> None:
    frame = example_frame(1)
    async with Capture(path) as capture:
        for name, mode, queue in (("a", "tap", None), ("b", "tun", None), ("a", "tap", None), ("b", "tun", 9)):
            near, _ = memory_pair()
            await capture.wrap(near, name=name, mode=mode, queue=queue).write_frame(frame)
    found = read(path)
    assert found.interfaces == ["a", "b"]
    assert [(each.interface, each.link_type, each.queue) for each in found.packets] == [
        ("a", 1, 0),
        ("b", 101, 0),
        ("a", 1, 1),
        ("b", 101, 9),
    ]


async def test_refused_frames_are_not_recorded(path: Path) -> None:
    good = [example_frame(number) for number in range(3)]
    async with recorded(path) as (stream, far):
        with pytest.raises(InvalidFrameError) as caught:
            await stream.write_frames([good[0], b"", good[1], b"", good[2]])
        assert caught.value.indexes == (1, 3)
        with pytest.raises(InvalidFrameError):
            stream.write_frame_nowait(b"")
        assert far.read_frames_nowait() == good
        await far.aclose()
        with pytest.raises(TuntapError):
            await stream.write_frames(good)
    assert read(path).data() == good


async def test_a_cancelled_read_records_nothing(path: Path) -> None:
    async with recorded(path) as (stream, far):
        reading = asyncio.create_task(stream.read_frame())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await far.write_frame(example_frame(1))
        assert await stream.read_frame() == example_frame(1)
    assert read(path).data() == [example_frame(1)]


async def test_snaplen(path: Path) -> None:
    near, _ = memory_pair()
    async with Capture(path, snaplen=30) as capture:
        stream = capture.wrap(near, name="memory", mode="tap")
        for size in (29, 30, 31):
            await stream.write_frame(example_frame(1, size))
    assert [(len(each.data), each.length) for each in read(path).packets] == [(29, 29), (30, 30), (30, 31)]


async def test_what_was_written_may_change_afterwards(path: Path) -> None:
    frame = bytearray(example_frame(1))
    async with recorded(path) as (stream, _):
        await stream.write_frame(frame)
        frame[:] = bytes(len(frame))
    assert read(path).data() == [example_frame(1)]


@pytest.mark.usefixtures("engine")
async def test_super_frames_are_segmented_and_checksums_completed(path: Path) -> None:
    packet = Packet(mode=Mode.TAP, payload=bytes(range(256)) * 20)
    unfinished = vnet_header(flags=1, csum_start=packet.transport, csum_offset=16) + packet.build(partial=True)
    near, far = memory_pair()
    async with Capture(path) as capture:
        stream = capture.wrap(near, name="memory", mode="tap", header_size=10)
        for frame in packet.super_frame(1000), unfinished:
            await far.write_frame(frame)
            assert await stream.read_frame() == frame
        await stream.write_frame(vnet_header(gso_type=0x21, gso_size=1000) + packet.build())
    assert read(path).data() == [*(piece.build() for piece in packet.pieces(1000)), packet.build(), packet.build()]


async def test_written_within_a_moment_without_closing(path: Path) -> None:
    async with recorded(path) as (stream, _):
        await stream.write_frame(example_frame(1))
        async with asyncio.timeout(10):
            while len(read(path).packets) < 1:
                await asyncio.sleep(0.01)


async def test_an_idle_capture_sets_no_timers(path: Path) -> None:
    async with recorded(path) as (stream, _):
        await stream.write_frame(example_frame(1))
        await asyncio.sleep(0.2)
        assert stream._capture._timer is None


# -- files that fail ---------------------------------------------------------------------------------------------------


async def exchange(stream: CapturedStream, far: MemoryStream, numbers: range = range(50)) -> None:
    """Frames pass in both directions."""
    frames = [example_frame(number, 1000) for number in numbers]
    for start in range(0, len(frames), 100):
        part = frames[start : start + 100]
        await far.write_frames(part)
        await stream.write_frames(part)
        assert await stream.read_frames(100) == await far.read_frames(100) == part


async def until_it_failed(capture: Capture) -> None:
    async with asyncio.timeout(10):
        while capture.error is None:
            await asyncio.sleep(0.01)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "aiotuntap.capture"]


async def test_a_full_disk_is_reported_once_and_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    near, far = memory_pair()
    async with Capture("/dev/full") as capture:
        stream = capture.wrap(near, name="memory", mode="tap")
        assert capture.error is None
        await exchange(stream, far)
        await until_it_failed(capture)
        for _ in range(3):
            await exchange(stream, far)
            await asyncio.sleep(0.06)
        assert capture.error is not None and capture.error.errno == errno.ENOSPC
    await exchange(stream, far)
    (message,) = warnings_in(caplog)
    assert message == "the capture to '/dev/full' ended with an error: No space left on device; the traffic continues"
    assert caplog.records[0].levelno == logging.WARNING


async def test_a_pipe_that_was_closed(pipe: tuple[Path, int], caplog: pytest.LogCaptureFixture) -> None:
    name, reader = pipe
    near, far = memory_pair()
    async with Capture(name) as capture:
        stream = capture.wrap(near, name="memory", mode="tap")
        await exchange(stream, far)
        os.close(reader)
        async with asyncio.timeout(10):
            while capture.error is None:
                await exchange(stream, far)
                await asyncio.sleep(0.01)
        assert capture.error.errno == errno.EPIPE
    assert len(warnings_in(caplog)) == 1


async def test_a_pipe_that_nobody_reads_any_more(pipe: tuple[Path, int], caplog: pytest.LogCaptureFixture) -> None:
    """Frames pass, memory is bounded, and closing does not wait for ever."""
    near, far = memory_pair()
    capture = await Capture(pipe[0], buffer=200_000).open()
    stream = capture.wrap(near, name="memory", mode="tap")
    await exchange(stream, far, range(1000))
    assert 1000 < capture.missed < 2000
    assert capture._writer is not None and capture._writer.waiting + capture._size <= 200_000
    async with asyncio.timeout(5):
        await capture.aclose()
    assert capture.error is not None and capture.error.errno == errno.ETIMEDOUT
    assert len(warnings_in(caplog)) == 1


async def test_missing_packets_are_counted(pipe: tuple[Path, int], tmp_path: Path) -> None:
    near, far = memory_pair()
    capture = await Capture(pipe[0], buffer=100_000).open()
    stream = capture.wrap(near, name="memory", mode="tap")
    await exchange(stream, far, range(400))
    missed = capture.missed
    got = bytearray()

    def drain() -> None:
        with open(pipe[1], "rb", closefd=False) as file:
            os.set_blocking(pipe[1], True)
            got.extend(file.read())

    thread = threading.Thread(target=drain)
    thread.start()
    await capture.aclose()
    while thread.is_alive():
        await asyncio.sleep(0.01)
    (tmp_path / "copy").write_bytes(got)
    found = read(tmp_path / "copy")
    assert found.missed == {"memory": missed} and missed > 0
    assert len(found.packets) + missed == 800


async def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cases = {tmp_path / "no" / "file": errno.ENOENT, tmp_path: errno.EISDIR, tmp_path / "pipe": errno.ENXIO}
    for file, number in cases.items():
        capture = Capture(file)
        with pytest.raises(SetupError, match="cannot open") as caught:
            await capture.open()
        assert caught.value.errno == number
        await capture.aclose()
    with pytest.raises(SetupError, match="descriptor 9999"):
        await Capture(9999).open()


async def test_a_descriptor_stays_the_callers(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    near, _ = memory_pair()
    async with Capture(fd) as capture:
        await capture.wrap(near, name="memory", mode="tap").write_frame(example_frame(1))
    os.close(fd)
    assert read(path).data() == [example_frame(1)]


async def test_only_the_owner_can_read_the_file(path: Path) -> None:
    async with Capture(path):
        assert path.stat().st_mode & 0o777 == 0o600


def test_only_whole_blocks_count() -> None:
    blocks = b"".join(size.to_bytes(4, sys.byteorder) * (size // 4) for size in (12, 16, 8))
    assert [whole_blocks(blocks[:size]) for size in (0, 7, 11, 12, 27, 28, 35, 36)] == [0, 0, 0, 12, 12, 28, 28, 36]


# -- wrong use ---------------------------------------------------------------------------------------------------------


async def test_wrong_arguments(path: Path) -> None:
    for wrong in ({"snaplen": -1}, {"buffer": -1}):
        with pytest.raises(ValueError, match="at least 0"):
            Capture(path, **wrong)
    near, _ = memory_pair()
    capture = Capture(path)
    with pytest.raises(RuntimeError, match="not opened"):
        capture.wrap(near, name="memory", mode="tap")
    async with capture:
        with pytest.raises(ValueError, match="needs name= and mode= for a MemoryStream"):
            capture.wrap(near)
        with pytest.raises(ValueError, match="11"):
            capture.wrap(near, name="memory", mode="tap", header_size=11)
        with pytest.raises(RuntimeError, match="opened or closed before"):
            await capture.open()
    await capture.aclose()
    with pytest.raises(RuntimeError, match="closed: make a new one"):
        capture.wrap(near, name="memory", mode="tap")


@pytest.mark.parametrize("new_loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_a_loop_closed_inside_of_async_with(
    new_loop: Callable[[], asyncio.AbstractEventLoop], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", ignored.append)

    async def use() -> None:
        near, _ = memory_pair()
        async with Capture(path) as capture:
            stream = capture.wrap(near, name="memory", mode="tap")
            await stream.write_frame(example_frame(1))
            waits.append(True)
            await stream.read_frame()

    waits: list[bool] = []
    loop = new_loop()
    task = loop.create_task(use())
    while not waits:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task
    gc.collect()
    end = time.monotonic() + 10
    while any(thread.name == "aiotuntap-writer" for thread in threading.enumerate()):
        assert time.monotonic() < end, "the file is still open"
        time.sleep(0.01)
    assert read(path).data() == [example_frame(1)] and ignored == []


async def test_no_memory_to_record_a_frame_loses_no_frame(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = memory_pair()
    async with Capture(path) as capture:
        stream = capture.wrap(near, name="memory", mode="tap")
        for number in range(3):
            with monkeypatch.context() as patch:
                if number == 1:
                    patch.setattr("aiotuntap.capture.packet", no_memory)
                await stream.write_frame(example_frame(number))
                assert await far.read_frame() == example_frame(number)
                await far.write_frame(example_frame(number))
                assert await stream.read_frame() == example_frame(number)
        assert capture.missed == 2
    assert read(path).data(INBOUND) == read(path).data(OUTBOUND) == [example_frame(0), example_frame(2)]
    assert read(path).missed == {"memory": 2}


async def test_no_memory_to_write_the_file_ends_the_capture(
    pipe: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = memory_pair()
    monkeypatch.setattr("aiotuntap._background.BackgroundWriter._write_to_reader", no_memory)
    async with asyncio.timeout(10):
        async with Capture(pipe[0]) as capture:
            stream = capture.wrap(near, name="memory", mode="tap")
            await until_it_failed(capture)
            await exchange(stream, far)
        assert capture.error is not None and capture.error.errno == errno.ENOMEM


def no_memory(*_: object) -> None:
    raise MemoryError


async def test_forgotten(path: Path) -> None:
    near, _ = memory_pair()
    capture = await Capture(path).open()
    await capture.wrap(near, name="memory", mode="tap").write_frame(example_frame(1))
    capture._flush()
    with pytest.warns(ResourceWarning, match="unclosed <Capture to"):
        del capture
        gc.collect()
    async with asyncio.timeout(10):
        while any(thread.name == "aiotuntap-writer" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)
    assert read(path).data() == [example_frame(1)]


@pytest.mark.parametrize("how", ["collect", "close"])
async def test_a_forked_child_lets_go_of_the_file(pipe: tuple[Path, int], how: str) -> None:
    name, reader = pipe
    near, _ = memory_pair()
    capture = await Capture(name).open()
    await capture.wrap(near, name="memory", mode="tap").write_frame(example_frame(1))

    def let_go() -> int:
        os.close(reader)
        warnings.simplefilter("error")
        if how == "collect":
            capture.__del__()
        else:
            ended: list[int] = []
            writer = capture._end()
            assert writer is not None
            writer.end(1.0, lambda: ended.append(1))
            assert ended
        return 0 if all(os.readlink(f"/proc/self/fd/{fd}") != str(name) for fd in map(int, own_fds())) else 2

    pid = fork(let_go)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    await capture.aclose()
    data = b""
    while chunk := os.read(reader, 1 << 16):  # to the end of the file, and nothing is there twice
        data += chunk
    name.unlink()
    name.write_bytes(data)
    assert read(name).data() == [example_frame(1)]


def own_fds() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]


async def test_no_memory_to_write_ends_the_capture(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(BackgroundWriter, "_write", fail)
    near, _ = memory_pair()
    async with asyncio.timeout(10), Capture(path) as capture:
        stream = capture.wrap(near, name="memory", mode="tap")
        capture._flush()
        while capture.error is None:
            await asyncio.sleep(0.01)
        assert capture.error.errno == errno.ENOMEM
        await stream.write_frame(example_frame(1))


async def test_a_capture_from_another_thread(path: Path) -> None:
    near, _ = memory_pair()
    async with Capture(path) as capture:
        for call in (lambda: asyncio.run(capture.aclose()), lambda: capture.wrap(near, name="memory", mode="tap")):
            with pytest.raises(RuntimeError, match="a Capture belongs to .* in thread .*, and was called from "):
                await asyncio.to_thread(call)
        stream = capture.wrap(near, name="memory", mode="tap")
        await stream.write_frame(example_frame(1))
    assert read(path).data() == [example_frame(1)]


async def test_closed_while_it_opens(path: Path) -> None:
    fds, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    capture = Capture(path)
    opening = asyncio.ensure_future(capture.open())
    await asyncio.sleep(0)
    await capture.aclose()
    with pytest.raises(RuntimeError, match="closed while open"):
        await opening
    assert set(os.listdir("/proc/self/fd")) == fds
    assert not any(thread.name == "aiotuntap-writer" for thread in set(threading.enumerate()) - threads)
