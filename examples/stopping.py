"""Counts the packets of two queues until SIGTERM or SIGINT, and then closes everything in order.

As root: ``python examples/stopping.py stop0``. The exit status is 0 after a signal, and 1 if the interface was deleted.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from aiotuntap import AsyncTuntap, DeviceGoneError, QueueClosedError, SetupError, TuntapQueue


async def close_when(stop: asyncio.Event, tun: AsyncTuntap) -> None:
    """Closes the interface when *stop* is set. All other tasks of the group then end by themselves."""
    await stop.wait()
    await tun.aclose()


async def count(queue: TuntapQueue) -> None:
    async for _ in queue:  # ends when the queue is closed
        pass


async def look(queue: TuntapQueue) -> None:
    """Does the same with `read_frames`, which raises QueueClosedError when the queue is closed."""
    while True:
        await queue.read_frames()


async def main(name: str) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    status = 0
    async with AsyncTuntap(name, mode="tun", queues=2) as tun:
        await tun.configure(addresses=["10.77.0.1/24"], up=True)
        print(f"ready: {tun.name}", flush=True)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(close_when(stop, tun))
                group.create_task(count(tun.queues[0]))
                group.create_task(look(tun.queues[1]))
        except* QueueClosedError:
            pass  # reading ends with this error when the program closes the queue
        except* DeviceGoneError as errors:
            print(errors.exceptions[0].args[1], file=sys.stderr)
            status = 1
    # The interface is closed, so the counters do not change any more.
    print(f"stopped: {tun.stats.frames_read} packets", flush=True)
    return status


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: stopping.py NAME [--uvloop]")
    run = asyncio.run
    if "--uvloop" in sys.argv:
        import uvloop

        run = uvloop.run
    try:
        sys.exit(run(main(sys.argv[1])))
    except SetupError as error:
        sys.exit(f"stopping.py: {error.strerror}")
    except ValueError as error:  # of the name
        sys.exit(f"stopping.py: {error}")
