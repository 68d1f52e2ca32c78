"""What ``napi=True`` changes: the kernel may merge frames that are written before it looks at them (GRO)."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

from aiotuntap import AsyncTuntap, TuntapQueue

from .lab import enter_private_namespace
from .path import Forwarder
from .per_frame import packet
from .results import Figure, Table, figure
from .transfer import compete

if TYPE_CHECKING:
    from .native import Loops

_FORWARDERS = {
    "TCP from TUN to TUN, frame by frame": Forwarder("aiotuntap-asyncio", "tun"),
    "TCP from TAP to TAP, frame by frame": Forwarder("aiotuntap-asyncio", "tap"),
    "TCP from TUN to TUN, super-frames passed through": Forwarder("aiotuntap-asyncio", "tun", "passed"),
    "TCP from TAP to TAP, super-frames passed through": Forwarder("aiotuntap-asyncio", "tap", "passed"),
}
_SIZES = (64, 1400)
_FRAMES = 4096
_BATCH = 64


async def _write(queue: TuntapQueue, batch: list[bytes]) -> int:
    """Nanoseconds of CPU; what the kernel does with a frame is in it, since it does so within the system call."""
    start = time.thread_time_ns()
    for _ in range(_FRAMES // len(batch)):
        await queue.write_frames(batch)
    return time.thread_time_ns() - start


async def _write_ratios(size: int, rounds: int) -> list[float]:
    """CPU time of `write_frames` with NAPI, as multiples of that without."""
    batch = [packet(size)] * _BATCH
    ratios = []
    async with AsyncTuntap(mode="tun", napi=True) as one, AsyncTuntap(mode="tun") as other:
        for tun in (one, other):
            await tun.configure(up=True)
            await _write(tun.queues[0], batch)  # warms up
        for _ in range(rounds):
            spent = {tun: await _write(tun.queues[0], batch) for tun in random.sample((one, other), 2)}
            ratios.append(spent[one] / spent[other])
    return ratios


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    contestants = dict(_FORWARDERS)
    for label, forwarder in _FORWARDERS.items():
        contestants[f"{label}, NAPI"] = forwarder._replace(napi=True)
    results = compete(contestants, loops, rounds, seconds=1)
    rows: dict[str, list[Figure | None]] = {}
    for label in _FORWARDERS:
        pairs = list(zip(results[f"{label}, NAPI"], results[label], strict=True))
        rows[label] = [
            figure([one.gigabits / other.gigabits for one, other in pairs]),
            figure([one.kibibyte / other.kibibyte for one, other in pairs]),
        ]
    enter_private_namespace()
    for size in _SIZES:
        ratios = asyncio.run(_write_ratios(size, 10 * rounds))
        rows[f"`write_frames`, {size} B, TUN"] = [None, figure(ratios)]
    return [Table("With `napi=True`, without = 1", "", {"throughput": 2, "CPU time": 2}, rows)]
