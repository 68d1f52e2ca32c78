"""The cost of idle queues, and of adding and removing queues."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING

from aiotuntap import AsyncTuntap

from .lab import enter_private_namespace
from .report import LOOPS
from .results import Figure, Table, figure

if TYPE_CHECKING:
    from .native import Loops

_QUEUES = 256
_SECONDS = 2


def _resources() -> tuple[int, int, int]:
    """Open descriptors, interfaces and tasks."""
    return len(os.listdir("/proc/self/fd")), len(socket.if_nameindex()), len(asyncio.all_tasks())


async def _idle() -> float:
    """Seconds of CPU time."""
    async with AsyncTuntap(mode="tun", queues=_QUEUES) as tun:
        await tun.configure(up=True)
        await asyncio.sleep(0.2)
        start = time.process_time()
        await asyncio.sleep(_SECONDS)
        return time.process_time() - start


async def _churn(count: int) -> tuple[list[float], list[float]]:
    """Seconds that adding a queue took, and removing it."""
    added, removed = [], []
    async with AsyncTuntap(mode="tun") as tun:
        await tun.configure(up=True)
        await tun.remove_queues(*await tun.add_queues())  # what is imported or opened once, is by now
        before = _resources()
        for _ in range(count):
            start = time.perf_counter()
            queues = await tun.add_queues()
            middle = time.perf_counter()
            await tun.remove_queues(*queues)
            removed.append(time.perf_counter() - middle)
            added.append(middle - start)
        if _resources() != before:
            raise SystemExit(f"descriptors, interfaces, tasks: {before} before, {_resources()} after")
    return added, removed


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    enter_private_namespace()
    count = 200 if quick else 1000
    rows: dict[str, list[Figure | None]] = {
        f"{_QUEUES} idle queues for {_SECONDS} s: CPU time, ms": [],
        "adding a queue, ms": [],
        "removing a queue, ms": [],
    }
    for factory in LOOPS.values():
        with asyncio.Runner(loop_factory=factory) as runner:
            idle = [runner.run(_idle()) for _ in range(rounds)]
            added, removed = runner.run(_churn(count))
        for row, samples in zip(rows.values(), (idle, added, removed), strict=True):
            row.append(figure([1000 * each for each in samples]))
    title = f"Idle queues, and {count} added and removed one after another"
    return [Table(title, "", dict.fromkeys(LOOPS, 2), rows)]
