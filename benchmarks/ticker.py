"""How late a task that sleeps for a millisecond is called while the same loop reads floods of frames.

The sender waits for nobody: there is always another frame to read, on every queue.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import ExitStack
from statistics import median, quantiles
from typing import TYPE_CHECKING, NamedTuple

from aiotuntap import AsyncTuntap, Offload, TuntapQueue

from . import lab
from .per_frame import one_batch_a_turn
from .report import LOOPS, table

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
    #: Frames read each second.
    rate: float


def _spend(microseconds: int) -> None:
    end = time.perf_counter_ns() + 1000 * microseconds
    while time.perf_counter_ns() < end:
        pass


async def _read(queue: TuntapQueue, work: int) -> None:
    while True:
        frames = await queue.read_frames()
        if work:
            for _ in frames:
                _spend(work)


async def _tick(seconds: float) -> list[float]:
    """Delays, in milliseconds."""
    delays = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        await asyncio.sleep(_TICK)
        delays.append(1000 * (time.perf_counter() - start - _TICK))
    return delays


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
        numbers = map(str, (_SIZE, _COUNT, _FLOWS))
        with ExitStack() as stack:
            if case.one_batch:
                stack.enter_context(one_batch_a_turn())
            if case.queues:
                flood = lab.python_module("datagrams", "send", netns, _TARGET, *numbers, loops.path)
                stack.enter_context(lab.child(flood))
            readers = [asyncio.ensure_future(_read(queue, case.work)) for queue in tun.queues]
            await asyncio.sleep(_WARM_UP)
            before, start = tun.stats.frames_read, time.perf_counter()
            delays = await _tick(seconds)
            rate = (tun.stats.frames_read - before) / (time.perf_counter() - start)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
    percentiles = quantiles(delays, n=100)
    return _Result(percentiles[49], percentiles[98], rate)


def run(loops: Loops, rounds: int, quick: bool) -> None:
    contestants = [(case, loop) for case in _CASES for loop in LOOPS]
    results: dict[tuple[_Case, str], list[_Result]] = {each: [] for each in contestants}
    with lab.namespaces(1) as (netns,):
        for _ in range(rounds):
            for case, loop in random.sample(contestants, len(contestants)):
                with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                    result = runner.run(_measure(case, netns, loops, 0.4 if quick else 0.8))
                results[case, loop].append(result)
    rows = []
    for case in _CASES:
        row = [str(case)]
        for loop in LOOPS:
            mine = results[case, loop]
            half, most, rate = (median(figures) for figures in zip(*mine, strict=True))
            row += [f"{half:.1f}", f"{most:.1f}", f"{rate / 1000:.0f}"]
        rows.append(row)
    heads = ["beside the ticker", *(f"{loop}, {what}" for loop in LOOPS for what in ("50 %", "99 %", "1000 frames/s"))]
    table("A task that sleeps for 1 ms: how late it is called, in ms", heads, rows)
