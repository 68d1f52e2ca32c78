"""An interface with a single queue is a stream of frames itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiotuntap import AsyncTuntap, Offload, PacketStream, QueueClosedError
from aiotuntap.testing import FarEnd, check_packet_stream, example_frame

from .support import tap, tap_with_peer, unique
from .test_conformance import DoomedPeer

USES: dict[str, Callable[[AsyncTuntap], Any]] = {
    "read_frame": lambda tun: tun.read_frame(),
    "read_frames": lambda tun: tun.read_frames(),
    "write_frame": lambda tun: tun.write_frame(example_frame(1)),
    "write_frames": lambda tun: tun.write_frames([example_frame(1)]),
    "read_frame_nowait": lambda tun: tun.read_frame_nowait(),
    "read_frames_nowait": lambda tun: tun.read_frames_nowait(),
    "write_frame_nowait": lambda tun: tun.write_frame_nowait(example_frame(1)),
    "write_frames_nowait": lambda tun: tun.write_frames_nowait([example_frame(1)]),
    "__anext__": lambda tun: anext(tun),
}


async def use(name: str, tun: AsyncTuntap) -> object:
    answer = USES[name](tun)
    return await answer if isinstance(answer, Awaitable) else answer


@asynccontextmanager
async def interface_and_packet_socket() -> AsyncIterator[tuple[AsyncTuntap, FarEnd]]:
    async with tap() as interface:
        with DoomedPeer(interface.name) as peer:
            yield interface, peer


@asynccontextmanager
async def transparent_interface_and_packet_socket() -> AsyncIterator[tuple[AsyncTuntap, FarEnd]]:
    async with tap(offload=Offload.ALL) as interface:
        with DoomedPeer(interface.name) as peer:
            yield interface, peer


async def test_is_a_packet_stream() -> None:
    await check_packet_stream(interface_and_packet_socket)


async def test_is_a_packet_stream_with_transparent_offloads() -> None:
    await check_packet_stream(transparent_interface_and_packet_socket)


async def test_has_the_methods_of_its_queue() -> None:
    async with tap_with_peer() as (interface, peer):
        stream: PacketStream = interface
        assert isinstance(stream, PacketStream)
        for number in range(4):
            peer.send(example_frame(number))
        assert await interface.read_frame() == example_frame(0)
        assert interface.read_frame_nowait() == example_frame(1)
        assert await interface.read_frames(1) == [example_frame(2)]
        assert interface.read_frames_nowait() == [example_frame(3)]
        with pytest.raises(BlockingIOError):
            interface.read_frames_nowait()
        await interface.write_frame(example_frame(1))
        interface.write_frame_nowait(example_frame(2))
        await interface.write_frames([example_frame(3)])
        assert interface.write_frames_nowait([example_frame(4)]) == 1
        assert peer.receive() == [example_frame(number) for number in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", USES)
async def test_where_there_are_several_queues(name: str) -> None:
    async with tap(queues=2) as interface:
        message = f"interface '{interface.name}' has 2 queues: .*'queues'.*queues\\[0\\]"
        with pytest.raises(RuntimeError, match=message):
            await use(name, interface)
        await interface.remove_queues(interface.queues[1])
        await interface.write_frame(example_frame(1))


@pytest.mark.parametrize("name", USES)
async def test_where_there_is_none(name: str) -> None:
    interface = AsyncTuntap(unique(), mode="tap")
    with pytest.raises(RuntimeError, match="is not open yet: use 'async with', or await open"):
        await use(name, interface)
    closed = StopAsyncIteration if name == "__anext__" else QueueClosedError
    async with interface:
        await interface.configure(up=True)
        await interface.remove_queues(*interface.queues)
        with pytest.raises(closed, match=None if name == "__anext__" else "has no open queue: .* add_queues"):
            await use(name, interface)
        await interface.add_queues()
        await interface.configure(up=True)
        await interface.write_frame(example_frame(1))
    with pytest.raises(closed, match=None if name == "__anext__" else f"interface '{interface.name}' is closed"):
        await use(name, interface)


async def test_iteration_ends_when_the_interface_is_closed() -> None:
    async with tap_with_peer() as (interface, peer):
        seen = []

        async def read() -> None:
            async for frame in interface:
                seen.append(frame)

        task = asyncio.create_task(read())
        peer.send(example_frame(1))
        while not seen:
            await asyncio.sleep(0.001)
        await interface.aclose()
        await task
        assert seen == [example_frame(1)]


async def test_queues_say_why_there_is_none() -> None:
    interface = AsyncTuntap(unique(), mode="tap")
    for first in (0, -1):
        with pytest.raises(IndexError, match="is not open yet: use 'async with', or await open"):
            interface.queues[first]
    assert interface.queues == () and interface.queues[:] == () and list(interface.queues) == []
    async with interface:
        assert len(interface.queues) == 1
        with pytest.raises(IndexError):
            interface.queues[1]
        await interface.queues[0].aclose()
        with pytest.raises(IndexError, match="has no open queue: .* add_queues"):
            interface.queues[0]
    with pytest.raises(IndexError, match="is closed"):
        interface.queues[0]
