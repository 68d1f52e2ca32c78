"""The in-memory pair, by the same checks as the real queue, and what is its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aiotuntap import DeviceGoneError, InvalidFrameError, PacketStream, QueueClosedError
from aiotuntap.testing import CHECKS, MemoryStream, check_packet_stream, example_frame, memory_pair


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[MemoryStream, MemoryStream]]:
    one, other = memory_pair()
    yield one, other
    await other.aclose()


async def test_conforms() -> None:
    await check_packet_stream(pair)


async def test_is_a_packet_stream() -> None:
    one, _ = memory_pair()
    assert isinstance(one, PacketStream)


async def test_drops_when_full_as_a_kernel_ring_does() -> None:
    one, other = memory_pair(capacity=3)
    await one.write_frames([example_frame(number) for number in range(5)])
    assert other.dropped == 2
    assert await other.read_frames() == [example_frame(number) for number in range(3)]


async def test_the_other_end_closed_is_a_device_gone() -> None:
    one, other = memory_pair()
    await one.write_frame(b"last")
    await one.aclose()
    assert await other.read_frame() == b"last"
    with pytest.raises(DeviceGoneError):
        await other.read_frame()
    with pytest.raises(DeviceGoneError):
        await other.write_frame(b"x")
    await other.aclose()
    with pytest.raises(QueueClosedError):
        await other.read_frame()


async def test_refused_frames_are_named_and_the_rest_is_written() -> None:
    one, other = memory_pair()
    with pytest.raises(InvalidFrameError) as caught:
        await one.write_frames([b"a", b"", b"b", b"x" * 70000])
    assert caught.value.indexes == (1, 3)
    assert await other.read_frames() == [b"a", b"b"]


class Loses(MemoryStream):
    """A stream that fails the checks: it takes the frame before it waits for its turn."""

    async def read_frame(self) -> bytes:
        import asyncio

        frame = await super().read_frame()
        await asyncio.sleep(0)
        return frame


async def test_the_checks_can_fail() -> None:
    @asynccontextmanager
    async def lossy() -> AsyncIterator[tuple[MemoryStream, MemoryStream]]:
        one, other = Loses(1000), MemoryStream(1000)
        one._peer, other._peer = other, one
        yield one, other

    with pytest.raises(AssertionError, match="cancelled read lost"):
        await check_packet_stream(lossy)
    assert len(CHECKS) == 8
