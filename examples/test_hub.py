"""How to test a switch or a VPN without root: a hub, and its tests over links in memory, with faults.

The hub takes packet streams. In a real program they are queues of interfaces; in these tests they are in memory.

Run the tests from the root of the repository (``pip install pytest pytest-asyncio``)::

    python -m pytest -o asyncio_mode=auto examples/test_hub.py
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from aiotuntap import DeviceGoneError, InvalidFrameError, LinkDownError, PacketStream
from aiotuntap.testing import Faults, FaultyStream, MemoryStream, example_frame, memory_pair

# -- the hub -----------------------------------------------------------------------------------------------------------


async def serve(port: PacketStream, others: Sequence[PacketStream]) -> None:
    """Sends the frames of one port to all others, until the port is gone."""
    with suppress(DeviceGoneError):
        while True:
            frames = await port.read_frames()
            for other in others:
                with suppress(DeviceGoneError, LinkDownError, InvalidFrameError):  # the frames are lost, as on a cable
                    await other.write_frames(frames)


async def hub(ports: Sequence[PacketStream]) -> None:
    async with asyncio.TaskGroup() as group:
        for port in ports:
            group.create_task(serve(port, [other for other in ports if other is not port]))


# -- the tests ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def three_stations(faults: Faults, seed: int) -> AsyncIterator[tuple[list[MemoryStream], list[FaultyStream]]]:
    """Three stations, each behind a link of 100 Mbit/s and 1 ms, connected by a hub whose ports have faults."""
    pairs = [memory_pair(bandwidth=100e6, latency=0.001) for _ in range(3)]
    ports = [FaultyStream(near, seed=seed + n, reading=faults) for n, (near, _) in enumerate(pairs)]
    stations = [far for _, far in pairs]
    task = asyncio.create_task(hub(ports))
    try:
        yield stations, ports
        assert not task.done() or task.exception() is None
    finally:
        task.cancel()
        await asyncio.wait([task])
        everything: list[PacketStream] = [*ports, *stations]
        for stream in everything:
            await stream.aclose()


async def received(station: MemoryStream) -> list[bytes]:
    """The frames that a station receives, until none comes for 0.1 seconds."""
    frames: list[bytes] = []
    with suppress(TimeoutError):
        while True:
            async with asyncio.timeout(0.5):
                frames += await station.read_frames()
    return frames


FRAMES = [example_frame(number) for number in range(200)]


async def test_everyone_else_gets_every_frame() -> None:
    async with three_stations(Faults(), seed=1) as (stations, _):
        await stations[0].write_frames(FRAMES)
        assert await received(stations[1]) == FRAMES
        assert await received(stations[2]) == FRAMES
        assert await received(stations[0]) == []


@pytest.mark.parametrize("seed", range(5))  # the seed of a failed test repeats it
async def test_links_lose_and_change_frames_and_the_hub_goes_on(seed: int) -> None:
    faults = Faults(drop=0.05, duplicate=0.05, reorder=0.05, corrupt=0.05, delay=0.05)
    async with three_stations(faults, seed) as (stations, ports):
        await stations[0].write_frames(FRAMES)
        got = await received(stations[1])
        counts = ports[0].faults_read
        assert len(got) == len(FRAMES) - counts["drop"] + counts["duplicate"]
        assert len(set(FRAMES) - set(got)) == counts["drop"] + counts["corrupt"]


async def test_a_port_that_is_down_or_gone_leaves_the_others_alone() -> None:
    async with three_stations(Faults(), seed=1) as (stations, ports):
        ports[2].set_link(False)
        await stations[0].write_frames(FRAMES)
        assert await received(stations[1]) == FRAMES
        assert await received(stations[2]) == []
        await ports[2].vanish()
        await stations[1].write_frames(FRAMES)
        assert await received(stations[0]) == FRAMES
