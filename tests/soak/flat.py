"""Whether memory stays flat over many frames, and a stalled reader's is bounded.

Usage: ``python -m tests.soak.flat [--frames N] [--loop NAME] [--engine NAME]``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

from aiotuntap import Offload, SlowEngineWarning, _engine

from ..conftest import LOOPS
from ..engine import ENGINES
from ..kernel.support import tap_with_peer
from .world import frame

#: Frames before the first look, in which allocators and caches take what they keep, and bytes that it may grow by then.
WARM_UP = 200_000
SLACK = 4 << 20


def resident() -> int:
    """Bytes of memory that this process has now."""
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


async def flow(frames: int, offload: Offload) -> tuple[int, int]:
    """Reads and writes so many frames; returns the resident memory after the first and after the last of them."""
    sent = [frame(number % 5, 1000)[1] for number in range(200)]
    done = first = 0
    last = time.monotonic()
    async with tap_with_peer(offload=offload) as (interface, peer):
        (queue,) = interface.queues
        while done < frames:
            for each in sent:
                peer.send(each)
            got = 0
            while got < len(sent):
                got += len(await queue.read_frames())
            await queue.write_frames(sent)
            done += 2 * len(sent)
            with suppress(BlockingIOError):
                while True:
                    peer.socket.recv(1)
            if not first and done >= min(WARM_UP, frames // 2):
                gc.collect()
                first = resident()
            if time.monotonic() - last > 10:
                last = time.monotonic()
                print(f"{done:12} frames, {resident() >> 10} KiB", flush=True)
    gc.collect()
    return first, resident()


async def stalled(offload: Offload) -> int:
    """By how many bytes memory grows while no task reads and the kernel always has frames."""
    async with tap_with_peer(offload=offload) as (interface, peer):
        await asyncio.sleep(0.01)
        before = resident()
        for _ in range(100):
            for _ in range(200):
                peer.send(frame(1, 1500)[1])
            await asyncio.sleep(0)
        assert len(interface.queues[0]._buffer) <= 256
        return resident() - before


def main() -> int:
    parser = argparse.ArgumentParser(prog="flat", description="memory over many frames")
    parser.add_argument("--frames", type=int, default=10**8)
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    parser.add_argument("--engine", choices=[engine.name for engine in ENGINES], default=ENGINES[0].name)
    options = parser.parse_args()
    warnings.simplefilter("ignore", SlowEngineWarning)
    _engine.engine = next(engine for engine in ENGINES if engine.name == options.engine)
    failed = False
    for offload in (Offload.NONE, Offload.ALL):
        with asyncio.Runner(loop_factory=LOOPS[options.loop]) as runner:
            first, last = runner.run(flow(options.frames // 2, offload))
            grown = runner.run(stalled(offload))
        print(
            f"{offload}: {options.frames // 2} frames, {first >> 10} KiB after the first, {last >> 10} KiB after all;"
        )
        print(f"  a stalled reader: {grown >> 10} KiB more")
        failed |= last - first > SLACK or grown > SLACK
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
