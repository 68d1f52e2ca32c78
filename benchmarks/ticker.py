"""How late a task that sleeps for a millisecond is called while the same loop reads floods of frames.

The sender never waits: every queue always has another frame to read.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from statistics import mean, quantiles
from typing import TYPE_CHECKING, NamedTuple

from aiotuntap import AsyncTuntap, Offload, TuntapQueue

from . import lab
from .per_frame import one_batch_a_turn
from .report import LOOPS
from .results import Figure, Table, figure, in_rounds

if TYPE_CHECKING:
    from .native import Loops

_ADDRESS, _TARGET = "10.80.0.1/24", "10.80.0.2"
_TICK = 0.001
#: Bytes of a datagram, and how many of them the sender hands to the kernel at once, and from how many ports by turns.
_SIZE, _COUNT, _FLOWS = 1400, 40, 64
#: Seconds before the delays count.
_WARM_UP = 0.1


class _Case(NamedTuple):
    #: 0 for a ticker alone.
    queues: int
    #: As in ``path.Forwarder``.
    offload: str = "none"
    #: Microseconds that the reader spends on each frame.
    work: int = 0
    one_batch: bool = False

    def __str__(self) -> str:
        if not self.queues:
            return "nothing else"
        queues = f"{self.queues} queue{'s' if self.queues > 1 else ''}"
        kind = {"none": "frames", "passed": "super-frames passed through", "transparent": "super-frames, transparent"}
        how = ", one batch a turn" if self.one_batch else ""
        return f"{queues}, {kind[self.offload]}, {self.work} µs of work a frame{how}"


_CASES = [
    _Case(0),
    *(
        _Case(queues, offload, work)
        for queues in (1, 8)
        for offload in ("none", "passed", "transparent")
        for work in (0, 20)
    ),
    *(_Case(queues, one_batch=True) for queues in (1, 8)),
]


class _Result(NamedTuple):
    #: Percentiles of the delay, in milliseconds.
    half: float
    most: float
    #: The 99th of what this thread ran for while the task slept, in milliseconds: what others on the machine do to the
    #: delay is not in it.
    cpu: float
    #: Thousands of frames read each second.
    rate: float
    #: What the least served queue had, the mean of all = 1.
    least: float


def _spend(microseconds: int) -> None:
    end = time.thread_time_ns() + 1000 * microseconds
    while time.thread_time_ns() < end:
        pass


async def _read(queue: TuntapQueue, work: int) -> None:
    while True:
        frames = await queue.read_frames()
        if work:
            for _ in frames:
                _spend(work)


async def _tick(seconds: float) -> tuple[list[float], list[float]]:
    """Delays, and what this thread ran for meanwhile, in milliseconds."""
    delays, spent = [], []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        used = time.thread_time()
        await asyncio.sleep(_TICK)
        spent.append(1000 * (time.thread_time() - used))
        delays.append(1000 * (time.perf_counter() - start - _TICK))
    return delays, spent


async def _measure(case: _Case, netns: str, loops: Loops, seconds: float) -> _Result:
    tun = AsyncTuntap(
        "tick0",
        mode="tun",
        netns=netns,
        queues=max(case.queues, 1),
        vnet_header=case.offload == "passed",
        offload=Offload.NONE if case.offload == "none" else Offload.ALL,
    )
    async with tun:
        await tun.configure(addresses=[_ADDRESS], up=True)
        flood = lab.python_module("datagrams", "send", netns, _TARGET, *map(str, (_SIZE, _COUNT, _FLOWS)), loops.path)
        with (
            one_batch_a_turn() if case.one_batch else nullcontext(),
            lab.child(flood) if case.queues else nullcontext(),
        ):
            async with asyncio.TaskGroup() as group:
                readers = [group.create_task(_read(queue, case.work)) for queue in tun.queues]
                await asyncio.sleep(_WARM_UP)
                before, start = [queue.stats.frames_read for queue in tun.queues], time.perf_counter()
                delays, spent = await _tick(seconds)
                frames = [queue.stats.frames_read - each for queue, each in zip(tun.queues, before, strict=True)]
                rate = sum(frames) / (time.perf_counter() - start) / 1000
                for reader in readers:
                    reader.cancel()
    percentiles = quantiles(delays, n=100)
    least = min(frames) / mean(frames) if any(frames) else 0
    return _Result(percentiles[49], percentiles[98], quantiles(spent, n=100)[98], rate, least)


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    contestants = [(case, loop) for case in _CASES for loop in LOOPS]
    results: dict[tuple[_Case, str], list[_Result]] = {each: [] for each in contestants}
    with lab.namespaces(1) as (netns,):
        for case, loop in in_rounds(contestants, rounds):
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                result = runner.run(_measure(case, netns, loops, 0.4 if quick else 0.8))
            results[case, loop].append(result)
    rows: dict[str, list[Figure | None]] = {}
    for (case, loop), mine in results.items():
        half, most, cpu, rate, least = (figure(column) for column in zip(*mine, strict=True))
        rows[f"{case}, {loop}"] = [
            half,
            most,
            cpu,
            rate if case.queues else None,
            least if case.queues > 1 else None,
        ]
    columns = {"50 %": 1, "99 %": 1, "CPU time, 99 %": 1, "1000 frames/s": 0, "least served queue, mean = 1": 2}
    return [Table("A task that sleeps for 1 ms: how late it is called, in ms", "beside it", columns, rows)]
