"""Steps about the life of interfaces: queues come and go, names and namespaces change, descriptors and threads run out."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import subprocess
import threading
import warnings
from contextlib import suppress
from random import Random
from typing import Any
from unittest import mock

import uvloop

from aiotuntap import (
    AsyncTuntap,
    DeviceGoneError,
    QueueClosedError,
    SetupError,
    TuntapProtocol,
    create_tuntap_endpoint,
)
from aiotuntap.udp import UdpStream

from ..kernel.support import PacketPeer, ip, unique
from .world import World, frame


async def change_queues(world: World, random: Random) -> None:
    """Adds and removes while frames come, some of it cancelled, several at once."""
    tun = world.port.tun

    async def add() -> None:
        await tun.add_queues(random.randrange(1, 4))
        world.port.tend()

    async def remove() -> None:
        queues = list(tun.queues)
        if len(queues) > 1:
            leaving = random.sample(queues, random.randrange(1, len(queues)))
            with suppress(ValueError):  # somebody else removed it meanwhile
                await tun.remove_queues(*leaving)

    for _ in range(random.randrange(1, 4)):
        world.port.send(30)
        tasks = [asyncio.ensure_future(add() if len(tun.queues) < 6 else remove())]
        if random.random() < 0.6:
            tasks.append(asyncio.ensure_future(remove()))
        await asyncio.sleep(random.choice([0, 0, 0.001]))
        if random.random() < 0.3:
            random.choice(tasks).cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        world.port.tend()
    if not tun.queues:
        await tun.add_queues()


async def switch_queues(world: World, random: Random) -> None:
    """Disables and enables, while frames come."""
    for _ in range(random.randrange(1, 6)):
        queue = random.choice(world.port.tun.queues)
        world.port.send(20)
        await (queue.disable() if random.random() < 0.5 else queue.enable())
        await asyncio.sleep(random.choice([0, 0.001]))
    for queue in world.port.tun.queues:
        await queue.enable()


async def rename(world: World, random: Random) -> None:
    tun = world.port.tun
    await tun.configure(up=False)
    await tun.configure(name=unique("r"))
    await tun.configure(up=True)
    world.port.peer.receive()


async def configure(world: World, random: Random) -> None:
    tun = world.port.tun
    await asyncio.gather(
        tun.configure(mtu=random.randrange(1300, 1500), txqueuelen=random.choice([500, 1000])),
        tun.configure(addresses=[f"10.{random.randrange(20, 99)}.0.1/24"]),
        tun.link(),
    )


async def watch(world: World, random: Random) -> None:
    """Starts a task that watches the interface, which may be deleted meanwhile."""
    tun = world.port.tun

    async def look() -> None:
        with suppress(DeviceGoneError, QueueClosedError, SetupError):
            async for _ in tun.watch():
                pass

    if len(world.background) < 4:
        world.start(look())


async def overrun_netlink(world: World, random: Random) -> None:
    """More changes than a watcher's socket can hold while its loop does something else."""
    await watch(world, random)
    await asyncio.sleep(0.01)
    name = world.port.tun.name
    lines = "".join(f"link set dev {name} mtu {1400 + number % 2}\n" for number in range(random.choice([50, 1500])))
    read, write = os.pipe()
    with open(write, "w") as pipe:
        pipe.write(lines[: 1 << 15].rpartition("\n")[0] + "\n")
    with open(read) as pipe:
        subprocess.run(["ip", "-batch", "-"], stdin=pipe, check=True)
    await asyncio.sleep(0)


async def move(world: World, random: Random) -> None:
    """To another namespace and back."""
    name = unique("n")
    ip("netns", "add", name)
    try:
        tun = world.port.tun
        await tun.configure(netns=name, up=True)
        await tun.queues[0].write_frame(frame(1)[1])
        if len(tun.queues) < 6:
            await tun.add_queues()
        await tun.configure(netns=f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net", up=True)
        world.port.peer.__exit__()
        world.port.peer = PacketPeer(tun.name, 0x0800)
    finally:
        ip("netns", "del", name)


async def delete(world: World, random: Random) -> None:
    """Another process deletes the interface while tasks read and write."""
    port = world.port
    port.send(50)
    writer = asyncio.ensure_future(port.tun.queues[0].write_frames([frame(1)[1]] * 2000))
    await asyncio.sleep(0)
    await asyncio.create_subprocess_exec("true")  # its end is one more callback
    ip("link", "del", port.tun.name)
    with suppress(OSError):
        await writer
    async with asyncio.timeout(20):
        await asyncio.gather(*(task for each in port.readers.values() for task in each))
    for queue in port.tun.queues:
        try:
            await queue.write_frame(frame(1)[1])
        except DeviceGoneError:
            continue
        raise AssertionError("a frame was written to an interface that was deleted")
    await world.renew()


async def delete_namespace(world: World, random: Random) -> None:
    """An interface in a namespace is deleted with it, unless a watch keeps the namespace."""
    await world.stop_background()
    name = unique("n")
    ip("netns", "add", name)
    port = world.port
    try:
        await port.tun.configure(netns=name, up=True)
    finally:
        ip("netns", "del", name)
    async with asyncio.timeout(80):
        await asyncio.gather(*(task for each in port.readers.values() for task in each))
    await world.renew()


async def duplicate(world: World, random: Random) -> None:
    """A duplicate of a descriptor is held elsewhere, and its queue is closed; or the duplicate is, at last."""
    if world.duplicates:
        os.close(world.duplicates.pop())
        return
    tun = world.port.tun
    if len(tun.queues) > 1:
        world.duplicates.append(os.dup(tun.queues[0].fileno()))
        await tun.queues[0].disable()  # so that the kernel gives it no frame that nobody would read
        await tun.queues[0].aclose()
        world.port.send(20)
        await asyncio.sleep(0.001)


async def fork(world: World, random: Random) -> None:
    """A child that does what children do by accident: collects garbage, closes, and ends; or is killed."""
    world.port.send(20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        try:
            gc.collect()
            for queue in world.port.tun.queues:
                with suppress(Exception):
                    queue._owner._release([queue])  # type: ignore[attr-defined]
        finally:
            os._exit(0)
    if random.random() < 0.3:
        os.kill(child, signal.SIGKILL)
    await asyncio.sleep(0)
    os.waitpid(child, 0)


async def killed_peer(world: World, random: Random) -> None:
    """Another process holds a queue of the interface, and is killed."""
    (queue,) = await world.port.tun.add_queues()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    world.port.tend()
    await queue.aclose()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


async def forget(world: World, random: Random) -> None:
    """An interface that is only referenced by a reference cycle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        tun = await AsyncTuntap(unique("f"), mode="tap", queues=random.randrange(1, 4)).open()
        holder: list[Any] = [tun]
        holder.append(holder)
        del tun, holder
        gc.collect()
        await asyncio.sleep(0.001)
        gc.collect()


async def closed_loop(world: World, random: Random) -> None:
    """Another thread's loop is closed in the middle of reading, with everything open."""

    def run() -> None:
        loop = random.choice([asyncio.new_event_loop, uvloop.new_event_loop])()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")

            async def begin() -> AsyncTuntap:
                tun = await AsyncTuntap(unique("c"), mode="tap", queues=2).open()
                await tun.configure(up=True)
                holder.append(asyncio.ensure_future(tun.queues[0].read_frame()))
                await asyncio.sleep(0)
                return tun

            holder: list[Any] = []
            tun = loop.run_until_complete(begin())
            loop.close()
            holder.pop()._log_destroy_pending = False
            del tun
            gc.collect()

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.001)
    thread.join()


async def no_descriptors(world: World, random: Random) -> None:
    """EMFILE at any point of opening and adding: nothing is left behind."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + random.randrange(6), hard))
    try:
        with suppress(OSError):
            await world.port.tun.add_queues(random.randrange(1, 4))
        with suppress(OSError):
            async with AsyncTuntap(unique("e"), mode="tap", queues=2) as other:
                await other.configure(mtu=1400)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def no_threads(world: World, random: Random) -> None:
    """No more threads, now and then, while interfaces are opened and closed."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if random.random() < 0.5:
            raise RuntimeError("can't start new thread")
        start(self)

    with mock.patch.object(threading.Thread, "start", refuse):
        for _ in range(3):
            with suppress(OSError, RuntimeError, MemoryError):
                async with AsyncTuntap(unique("e"), mode="tap") as other:
                    await other.add_queues()
        with suppress(OSError, RuntimeError, MemoryError):
            await world.port.tun.add_queues()


async def datagrams(world: World, random: Random) -> None:
    """Two UdpStreams: what is sent and fits arrives in order, readers are cancelled, and an ICMP error ends nothing."""
    async with UdpStream("127.0.0.1:0") as server, UdpStream("127.0.0.1:0", str(server.local)) as client:
        sent = [number.to_bytes(4) + bytes(random.choice([0, 100, 1200])) for number in range(200)]
        got: list[bytes] = []

        async def read() -> None:
            got.extend(data for data, _ in await server.read_datagrams())

        for at in range(0, 200, 20):
            task = asyncio.ensure_future(read())
            await asyncio.sleep(0)
            await client.write_frames(sent[at : at + 20])
            if random.random() < 0.5:
                task.cancel()
            await asyncio.wait([task])
        async with asyncio.timeout(10):
            while len(got) < len(sent):
                await read()
        assert got == sent, "datagrams were lost or changed"
        await server.aclose()
        for _ in range(3):
            with suppress(OSError):
                await client.write_frames(sent[:20])
            await asyncio.sleep(0)
        assert not client.closed


class Careless(TuntapProtocol):
    """Counts, and raises now and then."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.frames = 0
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def frames_received(self, frames: list[bytes]) -> None:
        self.frames += len(frames)
        if self.random.random() < 0.2:
            raise RuntimeError("user code")
        self.transport.write_frames(frames)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def endpoint(world: World, random: Random) -> None:
    """An interface for a protocol that raises; it is paused, closed, aborted, or deleted."""
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda *_: None)  # it gets what the protocol raises
    try:
        transport, protocol = await create_tuntap_endpoint(lambda: Careless(random), unique("p"), mode="tap")
        tun = transport.get_extra_info("interface")
        await tun.configure(up=True)
        with PacketPeer(tun.name, 0x0800) as peer:
            for _ in range(10):
                for _ in range(random.randrange(30)):
                    peer.send(frame(1)[1])
                await asyncio.sleep(random.choice([0, 0.001]))
                if transport.is_closing():
                    break
                if random.random() < 0.3:
                    transport.pause_reading()
                    await asyncio.sleep(0)
                    transport.resume_reading()
            end = random.randrange(3)
            if end == 0:
                ip("link", "del", tun.name)
            elif end == 1:
                transport.abort()
            else:
                transport.close()
            async with asyncio.timeout(20):
                await protocol.lost
        await tun.aclose()
    finally:
        loop.set_exception_handler(handler)


LIVES = (
    change_queues,
    switch_queues,
    rename,
    configure,
    watch,
    overrun_netlink,
    move,
    delete,
    delete_namespace,
    duplicate,
    fork,
    killed_peer,
    forget,
    closed_loop,
    no_descriptors,
    no_threads,
    datagrams,
    endpoint,
)
