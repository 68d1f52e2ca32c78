"""Steps that move frames: floods, cancellation, full buffers, and what goes wrong while they are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from random import Random
from typing import Any

from aiotuntap import InvalidFrameError, QueueClosedError, TuntapQueue

from ..kernel.support import ip
from .world import World, frame


async def flood(world: World, random: Random) -> None:
    """More frames than there is room for, perhaps large ones."""
    world.port.send(random.choice([1, 10, 300, 2000]), random.choice([60, 60, 1300]))
    await asyncio.sleep(random.choice([0, 0.001]))


async def cancel_readers(world: World, random: Random) -> None:
    """Again and again, while frames come: some tasks are cancelled twice, some before they ran."""
    for _ in range(random.randrange(1, 20)):
        world.port.send(random.randrange(5))
        for _ in range(random.randrange(3)):
            await asyncio.sleep(0)
        tasks = [task for each in world.port.readers.values() for task in each if random.random() < 0.6]
        for task in tasks:
            task.cancel()
            if random.random() < 0.3:
                task.cancel()
        if random.random() < 0.7:
            await asyncio.gather(*tasks, return_exceptions=True)
        world.port.tend()


async def many_readers(world: World, random: Random) -> None:
    """Several tasks read one queue, and some of them only for a moment."""
    queue = random.choice(world.port.tun.queues)

    async def read() -> None:
        with suppress(TimeoutError, QueueClosedError):
            async with asyncio.timeout(random.random() * 0.01):
                world.port.take(queue, await queue.read_frames(1 + random.randrange(4)))

    tasks = [asyncio.ensure_future(read()) for _ in range(random.randrange(1, 8))]
    await asyncio.sleep(0)
    for _ in range(5):
        world.port.send(random.randrange(4))
        await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)


async def stall(world: World, random: Random) -> None:
    """No task reads until the buffers and the kernel's rings are full."""
    await world.port.stop()
    for _ in range(3):
        world.port.send(600)
        await asyncio.sleep(0.002)


async def write_storm(world: World, random: Random) -> None:
    """Writers at once, with a small send buffer or without, some cancelled, some frames refused."""
    small = random.random() < 0.5
    if small:
        await world.port.tun.set_send_buffer(random.choice([1, 2000, 20000]))

    async def write() -> None:
        queue = random.choice(world.port.tun.queues)
        frames = [frame(random.randrange(5), 200)[1] for _ in range(random.choice([1, 20, 200]))]
        if random.random() < 0.3:
            frames[random.randrange(len(frames))] = b"short"
        with suppress(InvalidFrameError):
            if random.random() < 0.5:
                await queue.write_frames(frames)
            else:
                for each in frames[:20]:
                    await queue.write_frame(each)

    tasks = [asyncio.ensure_future(write()) for _ in range(random.randrange(1, 6))]
    for _ in range(random.randrange(4)):
        await asyncio.sleep(random.choice([0, 0.001]))
        random.choice(tasks).cancel()
    await asyncio.sleep(0.002)
    for task in tasks:
        if small and random.random() < 0.5:
            task.cancel()
    if small:
        await world.port.tun.set_send_buffer(2**31 - 1)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in done:
        if isinstance(outcome, Exception):
            raise outcome


@contextmanager
def _engine_of(queue: TuntapQueue, **functions: Any) -> Iterator[None]:
    before = queue._engine
    queue._engine = replace(before, **functions)
    try:
        yield
    finally:
        queue._engine = before


async def no_memory(world: World, random: Random) -> None:
    """Reading sometimes fails for lack of memory: frames stay in the kernel, and readers get MemoryError or try again."""
    queue = random.choice(world.port.tun.queues)
    engine = queue._engine

    def read_one(fd: int) -> bytes | int:
        if random.random() < 0.4:
            raise MemoryError
        return engine.read_one(fd)

    def read_batch(fd: int, limit: int, enough: int) -> tuple[list[bytes], int | BaseException]:
        return ([], MemoryError()) if random.random() < 0.4 else engine.read_batch(fd, limit, enough)

    await world.port.stop()
    with _engine_of(queue, read_one=read_one, read_batch=read_batch):
        for _ in range(20):
            world.port.send(random.randrange(10))
            with suppress(MemoryError, TimeoutError, QueueClosedError):
                async with asyncio.timeout(0.005):
                    world.port.take(queue, await queue.read_frames())


async def no_memory_in_the_kernel(world: World, random: Random) -> None:
    """write(2) says ENOMEM and ENOBUFS: an OSError, and nothing else changes."""
    queue = random.choice(world.port.tun.queues)

    def write_one(fd: int, largest: int, thread: int, data: Any) -> int:
        return random.choice([12, 105])

    def write_batch(fd: int, largest: int, start: int, most: int, frames: Sequence[Any]) -> tuple[int, int]:
        return 0, random.choice([12, 105])

    with _engine_of(queue, write_one=write_one, write_batch=write_batch):
        for write in (queue.write_frame(frame(1)[1]), queue.write_frames([frame(1)[1]] * 3)):
            try:
                await write
            except OSError as error:
                assert error.errno in (12, 105)


async def user_code_raises(world: World, random: Random) -> None:
    """The task that reads ends with an exception of its own; what it did not take stays for the next."""
    queue = random.choice(world.port.tun.queues)
    await world.port.stop()

    async def read() -> None:
        async for data in queue:
            world.port.take(queue, [data])
            raise RuntimeError("user code")

    task = asyncio.ensure_future(read())
    world.port.send(20)
    await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])


async def down_in_the_middle(world: World, random: Random) -> None:
    """Down and up again from outside while everybody reads and writes."""
    name = world.port.tun.name
    world.port.send(50)
    writer = asyncio.ensure_future(random.choice(world.port.tun.queues).write_frames([frame(1)[1]] * 500))
    await asyncio.sleep(0)
    ip("link", "set", name, "down")
    with suppress(OSError):
        await writer
    world.port.peer.receive()
    await asyncio.sleep(random.choice([0, 0.002]))
    ip("link", "set", name, "up")
    world.port.peer.receive()


TRAFFIC = (
    flood,
    cancel_readers,
    many_readers,
    stall,
    write_storm,
    no_memory,
    no_memory_in_the_kernel,
    user_code_raises,
    down_in_the_middle,
)
