"""For tests of code that uses packet streams: a pair without a kernel, and what every stream must satisfy.

`memory_pair` gives two joined streams, so that a switch or a VPN is tested without root. `check_packet_stream` runs
the conformance checks against anything that claims to be a `PacketStream`; the package's own queues and the streams of
this module pass the same ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from ._errors import DeviceGoneError, InvalidFrameError, QueueClosedError
from ._queue import size_of
from ._reader import FrameReader
from ._types import Frame, PacketStream

_MAX_FRAME = 65535 + 18


class MemoryStream(FrameReader):
    """One end of a `memory_pair`: a `PacketStream` without a descriptor.

    It behaves like a queue of an interface: frames that nobody reads pile up to its capacity and are then dropped,
    closing here gives QueueClosedError, and the other end being closed is to this one what a deleted interface is.
    """

    __slots__ = ("_closed", "_peer", "dropped")

    def __init__(self, capacity: int) -> None:
        super().__init__(asyncio.get_running_loop(), capacity, 0)
        self._peer = self
        self._closed = False
        self._flowing = True
        #: Frames that arrived here while the buffer was full.
        self.dropped = 0

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        return self._closed

    def write_frame_nowait(self, frame: Frame) -> None:
        """Hands a copy of the frame to the other end."""
        size = size_of(frame)
        data = b"".join(frame) if isinstance(frame, (list, tuple)) else bytes(frame)  # type: ignore[arg-type]
        if self._closed:
            raise QueueClosedError("this end of the pair is closed")
        if self._peer._closed:
            raise DeviceGoneError(errno.EBADFD, "the other end of the pair was closed")
        if not 0 < size <= _MAX_FRAME:
            raise InvalidFrameError(f"a frame of {size} bytes: 1 to {_MAX_FRAME}")
        peer = self._peer
        if len(peer._buffer) >= peer._high:
            peer.dropped += 1
            return
        peer._buffer.append(data)
        peer._wake_reader()

    async def write_frame(self, frame: Frame) -> None:
        """As `write_frame_nowait`, after the other tasks of the loop had a turn."""
        await asyncio.sleep(0)
        self.write_frame_nowait(frame)

    async def write_frames(self, frames: Iterable[Frame]) -> None:
        """Writes what can be written, in order; then reports what was refused in one InvalidFrameError."""
        await asyncio.sleep(0)
        refused = []
        for index, frame in enumerate(frames):
            try:
                self.write_frame_nowait(frame)
            except InvalidFrameError:
                refused.append(index)
        if refused:
            raise InvalidFrameError(f"{len(refused)} frames were refused, the first is number {refused[0]}", refused)

    async def aclose(self) -> None:
        """Closes this end. The other one can still read what it was sent, and then gets DeviceGoneError."""
        if self._closed:
            return
        self._closed = True
        self._buffer.clear()
        self._end(QueueClosedError("this end of the pair is closed"))
        if not self._peer._closed:
            self._peer._end(DeviceGoneError(errno.EBADFD, "the other end of the pair was closed"))

    def _pull(self, limit: int) -> None:
        """Frames come by themselves."""

    def _resume(self) -> None:
        """They never stop."""


def memory_pair(*, capacity: int = 1000) -> tuple[MemoryStream, MemoryStream]:
    """Two streams: what is written to one is read from the other. Call it while the event loop runs.

    Args:
        capacity: Frames that each end keeps until they are read; a TAP interface keeps 1000 by default.
    """
    one, other = MemoryStream(capacity), MemoryStream(capacity)
    one._peer, other._peer = other, one
    return one, other


class FarEnd(Protocol):
    """The other side of a stream under test: whatever is written there is read from the stream, and vice versa."""

    async def read_frame(self) -> bytes: ...

    async def write_frame(self, frame: bytes, /) -> None: ...


#: Makes a new stream and its far end, and takes both down.
StreamMaker = Callable[[], AbstractAsyncContextManager[tuple[PacketStream, FarEnd]]]


def example_frame(number: int, size: int = 60) -> bytes:
    """A distinct Ethernet broadcast frame of the type reserved for local experiments (IEEE 802)."""
    header = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5"
    return (header + number.to_bytes(4) * (size // 4))[:size]


async def check_packet_stream(make: StreamMaker, frame: Callable[[int], bytes] = example_frame) -> None:
    """Runs all conformance checks, each against a new stream from *make*.

    They cover order, batches, ``nowait``, kinds of frame, cancelled and concurrent readers, closing, and fairness. An
    AssertionError says what does not hold; any other exception is what the stream raised where it should not have.

    Args:
        make: Returns an asynchronous context manager that yields a stream and its far end.
        frame: A valid frame, a different one for each number.
    """
    for check in CHECKS:
        async with make() as (stream, far):
            try:
                async with asyncio.timeout(10):
                    await check(stream, far, frame)
            except TimeoutError:
                raise AssertionError(f"{check.__name__.lstrip('_')}: nothing happened for too long") from None
            await stream.aclose()


async def _check_order(stream: PacketStream, far: FarEnd, frame: Callable[[int], bytes]) -> None:
    sent = [frame(number) for number in range(100)]
    for each in sent[:50]:
        await far.write_frame(each)
    assert [await stream.read_frame() for _ in range(50)] == sent[:50], "frames are not whole, or not in order"
    for each in sent[:25]:
        await stream.write_frame(each)
    await stream.write_frames(iter(sent[25:50]))
    assert [await far.read_frame() for _ in range(50)] == sent[:50], "written frames are not whole, or not in order"


async def _check_batches(stream: PacketStream, far: FarEnd, frame: Callable[[int], bytes]) -> None:
    sent = [frame(number) for number in range(30)]
    for each in sent:
        await far.write_frame(each)
    got = await stream.read_frames(7)
    assert 1 <= len(got) <= 7, "read_frames does not keep to its limit"
    while len(got) < len(sent):
        got += await stream.read_frames()
    assert got == sent, "read_frames loses frames or their order"
    await stream.write_frames([])
    try:
        await stream.read_frames(0)
    except ValueError:
        pass
    else:
        raise AssertionError("a limit of 0 must be refused")


async def _check_nowait(stream: PacketStream, far: FarEnd, frame: Callable[[int], bytes]) -> None:
    try:
        stream.read_frame_nowait()
    except BlockingIOError:
        pass
    else:
        raise AssertionError("read_frame_nowait gave a frame where there is none")
    await far.write_frame(frame(1))
    assert stream.read_frame_nowait() == frame(1)
    stream.write_frame_nowait(frame(2))
    assert await far.read_frame() == frame(2)


async def _check_kinds_of_frame(stream: PacketStream, far: FarEnd, frame: Callable[[int], bytes]) -> None:
    data = frame(1)
    kinds: list[Frame] = [
        data,
        bytearray(data),
        memoryview(data),
        [data[:14], data[14:]],
        (data[:6], memoryview(data)[6:]),
    ]
    for kind in kinds:
        await stream.write_frame(kind)
        assert await far.read_frame() == data, f"{type(kind).__name__} was not written as one frame"
    await stream.write_frames(kinds)
    assert [await far.read_frame() for _ in kinds] == [data] * len(kinds)
    for wrong in ("text", 7, None):
        for write in (stream.write_frame, lambda each: stream.write_frames([each])):
            try:
                await write(wrong)  # type: ignore[arg-type]
            except TypeError:
                continue
            raise AssertionError(f"{wrong!r} is no frame and must be refused with TypeError")


async def _check_cancelled_reads_lose_nothing(stream: PacketStream, far: FarEnd, frame: Callable[[int], bytes]) -> None:
    got: list[bytes] = []

    async def read() -> None:
        got.append(await stream.read_frame())

    sent = [frame(number) for number in range(60)]
    for number, each in enumerate(sent):
        tasks = [asyncio.ensure_future(read()) for _ in range(3)]
        await asyncio.sleep(0)
        await far.write_frame(each)
        for _ in range(number % 4):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            while len(got) < len(sent):
                got.append(await stream.read_frame())
    assert got == sent, "a cancelled read lost, repeated or reordered a frame"


async def _check_readers_take_turns(stream: PacketStream, far: FarEnd, frame: Callable[[int], bytes]) -> None:
    order: list[int] = []
    got: list[bytes] = []

    async def read(reader: int) -> None:
        for _ in range(4):
            got.append(await stream.read_frame())
            order.append(reader)

    sent = [frame(number) for number in range(12)]
    tasks = [asyncio.ensure_future(read(reader)) for reader in range(3)]
    await asyncio.sleep(0)
    for each in sent:
        await far.write_frame(each)
    await asyncio.gather(*tasks)
    assert got == sent, "several readers lost, repeated or reordered frames"
    assert order == [0, 1, 2] * 4, f"readers were not served in turn: {order}"


async def _check_closing(stream: PacketStream, far: FarEnd, frame: Callable[[int], bytes]) -> None:
    async def iterate() -> int:
        return len([each async for each in stream])

    waiting = [asyncio.ensure_future(stream.read_frame()) for _ in range(2)]
    iterating = asyncio.ensure_future(iterate())
    await asyncio.sleep(0)
    assert not stream.closed
    await stream.aclose()
    assert stream.closed
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, QueueClosedError), f"closing ended a pending read with {outcome!r}"
    assert await iterating == 0, "iteration must end when the stream is closed"
    await stream.aclose()
    uses: list[Callable[[], Awaitable[object]]] = [
        stream.read_frame,
        stream.read_frames,
        lambda: stream.write_frame(frame(1)),
        lambda: stream.write_frames([frame(1)]),
    ]
    for use in uses:
        try:
            await use()
        except QueueClosedError:
            continue
        raise AssertionError("a closed stream must raise QueueClosedError")
    for use_now in (stream.read_frame_nowait, lambda: stream.write_frame_nowait(frame(1))):
        try:
            use_now()
        except QueueClosedError:
            continue
        raise AssertionError("a closed stream must raise QueueClosedError")


async def _check_others_run(stream: PacketStream, far: FarEnd, frame: Callable[[int], bytes]) -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    others = asyncio.ensure_future(take_turns())
    for number in range(2000):
        await stream.write_frame(frame(number))
    others.cancel()
    assert turns > 1, "a writer that never has to wait must let others run all the same"


CHECKS: tuple[Callable[[PacketStream, FarEnd, Callable[[int], bytes]], Awaitable[None]], ...] = (
    _check_order,
    _check_batches,
    _check_nowait,
    _check_kinds_of_frame,
    _check_cancelled_reads_lose_nothing,
    _check_readers_take_turns,
    _check_closing,
    _check_others_run,
)
