"""A child process that moves packets between two namespaces: ``KIND MODE OFFLOAD NAPI LEFT RIGHT LIBRARY``.

Each makes one interface in each namespace, named as in ``path.py``, prints "ready", and ends by SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from aiotuntap import AsyncTuntap, Mode, Offload, TuntapQueue

from .lab import enter, open_tun
from .native import Loops
from .path import LEFT, MTU, RIGHT, Forwarder
from .report import LOOPS

if TYPE_CHECKING:
    from collections.abc import Callable


async def _pump(source: TuntapQueue, sink: TuntapQueue) -> None:
    while True:
        await sink.write_frames(await source.read_frames())


async def _aiotuntap(how: Forwarder, left: str, right: str) -> None:
    def interface(name: str, netns: str) -> AsyncTuntap:
        return AsyncTuntap(
            name,
            mode=Mode(how.mode),
            netns=netns,
            vnet_header=how.offload == "passed",
            offload=Offload.NONE if how.offload == "none" else Offload.ALL,
            napi=how.napi,
        )

    async with interface(LEFT, left) as a, interface(RIGHT, right) as b:
        print("ready", flush=True)
        await asyncio.gather(_pump(a.queues[0], b.queues[0]), _pump(b.queues[0], a.queues[0]))


async def _queue_between(how: Forwarder, left: str, right: str) -> None:
    """A simple forwarder: a callback puts each frame into an asyncio.Queue, and a task takes it from there."""
    fds = open_tun(LEFT, left), open_tun(RIGHT, right)
    loop = asyncio.get_running_loop()

    def watch(source: int) -> asyncio.Queue[bytes]:
        frames: asyncio.Queue[bytes] = asyncio.Queue()
        loop.add_reader(source, lambda: frames.put_nowait(os.read(source, MTU)))
        return frames

    async def pump(frames: asyncio.Queue[bytes], sink: int) -> None:
        while True:
            os.write(sink, await frames.get())

    print("ready", flush=True)
    await asyncio.gather(pump(watch(fds[0]), fds[1]), pump(watch(fds[1]), fds[0]))


async def _pytun(how: Forwarder, left: str, right: str) -> None:
    from pytun import IFF_NO_PI, IFF_TUN, TunTapDevice

    devices = []
    for name, netns in ((LEFT, left), (RIGHT, right)):
        enter(netns)  # it opens its interface in the namespace of the thread
        devices.append(TunTapDevice(name=name, flags=IFF_TUN | IFF_NO_PI))
    loop = asyncio.get_running_loop()
    for source, sink in (devices, devices[::-1]):

        def move(read: Callable[[int], bytes] = source.read, write: Callable[[bytes], int] = sink.write) -> None:
            write(read(MTU))

        loop.add_reader(source.fileno(), move)
    print("ready", flush=True)
    await asyncio.get_running_loop().create_future()


def main(kind: str, mode: str, offload: str, napi: str, left: str, right: str, library: str) -> None:
    how = Forwarder(kind, mode, offload, napi == "napi")
    if kind == "c":
        fds = [open_tun(name, netns, mode, offload == "passed") for name, netns in ((LEFT, left), (RIGHT, right))]
        print("ready", flush=True)
        sys.exit(Loops(library).forward(*fds))
    name, _, loop = kind.partition("-")
    forwarder = {"aiotuntap": _aiotuntap, "queue": _queue_between, "pytun": _pytun}[name]
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(forwarder(how, left, right))


if __name__ == "__main__":
    main(*sys.argv[1:])
