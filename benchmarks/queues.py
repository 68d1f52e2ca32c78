"""One process that reads 1 to 256 queues of an interface, beside a sender that waits for nobody: frames, and CPU time."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple

from aiotuntap import AsyncTuntap, TuntapQueue

from . import lab
from .report import LOOPS
from .results import Figure, Table, figure, in_rounds

if TYPE_CHECKING:
    from .native import Loops

_ADDRESS, _TARGET = "10.82.0.1/24", "10.82.0.2"
_QUEUES = (1, 2, 4, 8, 64, 256)
#: Bytes of a datagram, how many of them the sender hands to the kernel at once, and from how many ports by turns.
_SIZE, _COUNT, _FLOWS = 1400, 40, 64
#: Seconds before counting begins.
_WARM_UP = 0.2


class _Result(NamedTuple):
    #: Thousands of frames a second.
    rate: float
    #: CPU time of this process for each frame, in nanoseconds.
    cost: float


async def _read(queue: TuntapQueue) -> None:
    while True:
        await queue.read_frames()


async def _measure(queues: int, netns: str, loops: Loops, seconds: float) -> _Result:
    flood = lab.python_module("datagrams", "send", netns, _TARGET, *map(str, (_SIZE, _COUNT, _FLOWS)), loops.path)
    async with AsyncExitStack() as stack:
        tun = await stack.enter_async_context(AsyncTuntap("many0", mode="tun", netns=netns, queues=queues))
        await tun.configure(addresses=[_ADDRESS], up=True)
        stack.enter_context(lab.child(flood))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        readers = [group.create_task(_read(queue)) for queue in tun.queues]
        await asyncio.sleep(_WARM_UP)
        before, start, used = _frames_read(tun), time.perf_counter(), time.process_time_ns()
        await asyncio.sleep(seconds)
        frames, spent = _frames_read(tun) - before, time.process_time_ns() - used
        rate = frames / (time.perf_counter() - start) / 1000
        for reader in readers:
            reader.cancel()
    return _Result(rate, spent / frames)


def _frames_read(tun: AsyncTuntap) -> int:
    return sum(queue.stats.frames_read for queue in tun.queues)


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    contestants = [(loop, queues) for loop in LOOPS for queues in _QUEUES]
    results: dict[tuple[str, int], list[_Result]] = {each: [] for each in contestants}
    with lab.namespaces(1) as (netns,):
        for loop, queues in in_rounds(contestants, rounds):
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                results[loop, queues].append(runner.run(_measure(queues, netns, loops, 0.4 if quick else 0.8)))
    rows: dict[str, list[Figure | None]] = {}
    for (loop, queues), mine in results.items():
        rows[f"{queues} queue{'s' if queues > 1 else ''}, {loop}"] = [
            figure([one.rate / other.rate for one, other in zip(mine, results[loop, 1], strict=True)]),
            figure([one.cost / other.cost for one, other in zip(mine, results[loop, 1], strict=True)]),
            figure([one.rate for one in mine]),
            figure([one.cost for one in mine]),
        ]
    columns = {
        "throughput, one queue = 1": 2,
        "CPU time of a frame, one queue = 1": 2,
        "1000 frames/s": 0,
        "ns a frame": 0,
    }
    return [Table("Reading several queues in one process, beside a flood", "", columns, rows)]
