"""The state of a session: interfaces with readers on every queue, the fate of every frame, and the invariants."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from itertools import count
from random import Random
from typing import Any

from aiotuntap import AsyncTuntap, DeviceGoneError, Offload, QueueClosedError, TuntapQueue, _abi

from ..kernel.support import PacketPeer, idle_share, ip, tun_info, unique

#: Flows whose frames are told apart; the kernel chooses a queue for each.
FLOWS = 5

_numbers = count(1)

# What the names of namespaces begin with that are made here: others may be made beside.
_OWN = unique("n").partition("-")[0] + "-"


def frame(flow: int, size: int = 60) -> tuple[int, bytes]:
    """An Ethernet frame with a UDP datagram and its number. No host has the destination. Each is sent once."""
    number = next(_numbers)
    ethernet = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x08\x00"
    header = bytearray(20)
    header[0], header[8], header[9] = 0x45, 64, 17
    header[2:4] = (size - 14).to_bytes(2)
    header[12:20] = bytes([10, 11, 12, 1, 10, 11, 12, 13])
    total = sum(int.from_bytes(header[at : at + 2]) for at in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    header[10:12] = (0xFFFF - total).to_bytes(2)
    udp = (20000 + flow).to_bytes(2) + b"\x00\x09" + (size - 34).to_bytes(2) + b"\0\0"
    data = ethernet + bytes(header) + udp + flow.to_bytes(2) + number.to_bytes(8)
    return number, data.ljust(size, b"\0")


def read_back(data: bytes) -> tuple[int, int]:
    """Flow and number of a frame."""
    assert len(data) >= 52 and data[12:14] == b"\x08\x00" and not any(data[52:]), f"not one of our frames: {data!r}"
    return int.from_bytes(data[42:44]), int.from_bytes(data[44:52])


class Port:
    """An interface, its peer in the kernel, and what its readers got."""

    def __init__(self, tun: AsyncTuntap, peer: PacketPeer, random: Random) -> None:
        self.tun = tun
        self.peer = peer
        self.random = random
        self.readers: dict[TuntapQueue, list[asyncio.Task[None]]] = {}
        #: Numbers that were read, of all frames ever sent here.
        self.seen: set[int] = set()
        #: The last number of each flow that each queue gave.
        self.last: defaultdict[tuple[int, int], int] = defaultdict(int)
        self.handed: defaultdict[TuntapQueue, int] = defaultdict(int)

    def take(self, queue: TuntapQueue, frames: list[bytes]) -> None:
        """Records that these frames were read."""
        self.handed[queue] += len(frames)
        for data in frames:
            if data[12:14] == b"\x86\xdd":  # what the kernel of another namespace says by itself
                continue
            flow, number = read_back(data)
            assert number not in self.seen, f"frame {number} was handed out twice"
            self.seen.add(number)
            assert number > self.last[id(queue), flow], f"frame {number} was overtaken in its flow"
            self.last[id(queue), flow] = number

    def tend(self) -> None:
        """Makes sure that every queue has a reader."""
        for queue in list(self.readers):
            if queue not in self.tun.queues:
                del self.readers[queue]
                self.handed.pop(queue, None)
        for queue in self.tun.queues:
            tasks = [task for task in self.readers.get(queue, []) if not task.done()]
            for task in self.readers.get(queue, []):
                if task.done() and not task.cancelled():
                    task.result()
            if not tasks:
                tasks.append(asyncio.ensure_future(self._read(queue, self.random.randrange(4))))
            self.readers[queue] = tasks

    async def _read(self, queue: TuntapQueue, way: int) -> None:
        with suppress(QueueClosedError, DeviceGoneError, StopAsyncIteration):
            while True:
                if way == 0:
                    self.take(queue, [await queue.read_frame()])
                elif way == 1:
                    self.take(queue, await queue.read_frames(1 + self.random.randrange(200)))
                elif way == 2:
                    self.take(queue, [await anext(aiter(queue))])
                else:
                    try:
                        self.take(queue, queue.read_frames_nowait(64))
                    except BlockingIOError:
                        await asyncio.sleep(0.0005)

    def send(self, amount: int, size: int = 60) -> list[int]:
        """Frames of all flows for the interface's readers; the kernel drops what it has no room for."""
        numbers = []
        for _ in range(amount):
            number, data = frame(self.random.randrange(FLOWS), size)
            self.peer.send(data)
            numbers.append(number)
        return numbers

    async def probe(self) -> None:
        """Checks that all frames that the kernel accepts arrive while nothing else happens."""
        self.tend()
        await self.drain()
        numbers = set(self.send(8))
        async with asyncio.timeout(20):
            while not numbers <= self.seen:
                self.tend()
                await asyncio.sleep(0.001)
        for queue in self.tun.queues:
            read, buffered = queue.stats.frames_read, len(queue._buffer)
            assert read == self.handed[queue] + buffered, (
                f"{read} frames read, {self.handed[queue]} handed out, {buffered} buffered"
            )
        await self.write_through()

    async def drain(self) -> None:
        """Waits until nothing comes any more."""
        async with asyncio.timeout(20):
            quiet = 0
            while quiet < 5:
                before = len(self.seen)
                self.tend()
                await asyncio.sleep(0.001)
                quiet = quiet + 1 if len(self.seen) == before else 0

    async def write_through(self) -> None:
        """Frames written arrive, whole and in order."""
        self.peer.receive()
        sent = [frame(flow)[1] for flow in range(3)]
        queue = self.random.choice(self.tun.queues)
        await queue.write_frames(sent)
        got: list[bytes] = []
        async with asyncio.timeout(20):
            while len(got) < len(sent):
                got += self.peer.receive()
                await asyncio.sleep(0)
        assert got == sent, "frames that were written arrived changed"

    async def stop(self) -> None:
        tasks = [task for each in self.readers.values() for task in each]
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        self.readers.clear()


class World:
    """One session on one loop."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.port: Port
        #: Descriptors of the driver that are held elsewhere on purpose.
        self.duplicates: list[int] = []
        self.namespaces: list[str] = []
        self.background: list[asyncio.Task[Any]] = []
        self.frames = 0

    async def open(self) -> None:
        """A new interface that is up, in this namespace."""
        random = self.random
        options: dict[str, Any] = {"queues": random.choice([1, 1, 2, 4]), "read_buffer": random.choice([1, 8, 64, 256])}
        if random.random() < 0.4:
            options["offload"] = Offload.ALL
        if random.random() < 0.3:
            options["napi"] = True
        tun = await AsyncTuntap(unique("s"), mode="tap", **options).open()
        await tun.configure(up=True)
        self.port = Port(tun, PacketPeer(tun.name, 0x0800), Random(random.random()))
        self.port.tend()

    async def renew(self) -> None:
        """Closes the interface in whatever state it is, and opens another one."""
        await self.port.stop()
        self.port.peer.__exit__()
        await self.port.tun.aclose()
        self.frames += len(self.port.seen)
        await self.open()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        self.background.append(asyncio.ensure_future(work))

    async def stop_background(self) -> None:
        background, self.background = self.background, []
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)

    async def check(self) -> None:
        """Checks the invariants, after each step."""
        await self.port.probe()
        # Closing ends on a thread, and so does what was cancelled meanwhile.
        expected = len(self.port.tun.queues) + len(self.duplicates)
        for _ in range(200):
            if len(open_queues()) == expected:
                break
            await asyncio.sleep(0.01)
        assert len(open_queues()) == expected, f"{len(open_queues())} descriptors of the driver, not {expected}"
        if not self.duplicates:
            info = tun_info(self.port.tun.name)
            enabled = sum(queue.enabled for queue in self.port.tun.queues)
            assert info.get("numqueues", enabled) == enabled, "the kernel counts other queues"

    async def close(self) -> None:
        await self.stop_background()
        await self.port.stop()
        self.port.peer.__exit__()
        await self.port.tun.aclose()
        self.frames += len(self.port.seen)
        for fd in self.duplicates:
            os.close(fd)
        for name in self.namespaces:
            ip("netns", "del", name, check=False)
        gc.collect()
        await asyncio.sleep(0.005)
        share = await idle_share(0.1)
        assert share < 0.5, f"an idle loop uses {share:.0%} of a CPU"


def open_queues() -> list[str]:
    """Descriptors of the driver that this process has."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{entry}") == _abi.NODE:
                found.append(entry)
    return found


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """As many descriptors, interfaces, namespaces and threads afterwards as before."""

    def all_there_is() -> dict[str, object]:
        gc.collect()
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "interfaces": sorted(name for _, name in socket.if_nameindex()),
            "namespaces": sorted(name for name in ip("netns", "list").split() if name.startswith(_OWN)),
            "threads": threading.active_count(),
        }

    before = all_there_is()
    yield
    for _ in range(100):
        after = all_there_is()
        if after == before:
            return
        threading.Event().wait(0.02)
    raise AssertionError(f"left behind: {after}, and before there was {before}")
