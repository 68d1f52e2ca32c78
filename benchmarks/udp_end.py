"""A child process that sends UDP datagrams from Python, or one that counts them.

``send LOOP HOW NETNS ADDRESS PORT SIZE COUNT`` prints "ready" and sends batches of *COUNT* datagrams until SIGTERM.
``count LOOP HOW NETNS PORT WARM_UP TIME`` prints how many came, in how many nanoseconds, and the CPU time it used itself.
*HOW* is "stream" (`UdpStream`), "single" (the same without UDP_SEGMENT and UDP_GRO) or "endpoint" (that of the loop).
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from aiotuntap.udp import UdpStream

from .lab import socket_in
from .report import LOOPS

# Bytes that wait in the kernel, either way.
_ROOM = 1 << 22


class _Endpoint(asyncio.DatagramProtocol):
    """A program that uses asyncio's own datagram endpoints."""

    def __init__(self) -> None:
        self.count = 0
        self.writable = asyncio.Event()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.count += 1


@asynccontextmanager
async def _endpoint(netns: str, local: int, remote: tuple[str, int] | None) -> AsyncIterator[tuple[Any, _Endpoint]]:
    sock = socket_in(netns, socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    for option in (32, 33):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
        sock.setsockopt(socket.SOL_SOCKET, option, _ROOM)
    sock.bind(("", local))
    if remote:
        sock.connect(remote)
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(_Endpoint, sock=sock)
    try:
        yield transport, protocol
    finally:
        transport.close()


async def _send(how: str, netns: str, address: str, port: int, size: int, count: int) -> None:
    batch = [bytes(size)] * count
    async with AsyncExitStack() as stack:
        if how == "endpoint":
            transport, protocol = await stack.enter_async_context(_endpoint(netns, 0, (address, port)))
            print("ready", flush=True)
            while True:
                for datagram in batch:
                    transport.sendto(datagram)
                await asyncio.sleep(0)
                await protocol.writable.wait()
        wide = how == "stream"
        stream = await stack.enter_async_context(UdpStream("", (address, port), netns=netns, gso=wide, gro=wide))
        print("ready", flush=True)
        while True:
            await stream.write_frames(batch)


async def _count(how: str, netns: str, port: int, warm_up: float, duration: float) -> None:
    async with AsyncExitStack() as stack:
        if how == "endpoint":
            _, protocol = await stack.enter_async_context(_endpoint(netns, port, None))

            def counted() -> int:
                return protocol.count
        else:
            wide = how == "stream"
            stream = await stack.enter_async_context(UdpStream(f":{port}", netns=netns, gso=wide, gro=wide))
            came = 0

            async def read() -> None:
                nonlocal came
                while True:
                    came += len(await stream.read_datagrams())

            reader = asyncio.ensure_future(read())
            stack.callback(reader.cancel)

            def counted() -> int:
                return came

        await asyncio.sleep(warm_up)
        before, began, used = counted(), time.monotonic_ns(), time.process_time_ns()
        await asyncio.sleep(duration)
        print(counted() - before, time.monotonic_ns() - began, time.process_time_ns() - used)


def main(what: str, loop: str, how: str, netns: str, *arguments: str) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        if what == "send":
            address, *numbers = arguments
            runner.run(_send(how, netns, address, *map(int, numbers)))
        else:
            port, warm_up, duration = map(int, arguments)
            runner.run(_count(how, netns, port, warm_up / 1000, duration / 1000))


if __name__ == "__main__":
    main(*sys.argv[1:])
