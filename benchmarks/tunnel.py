"""One TCP stream through an encrypted tunnel between two namespaces: what both ends spend on it."""

from __future__ import annotations

import random
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from . import iperf, lab
from .report import LOOPS, ratio, table

if TYPE_CHECKING:
    from .native import Loops

_ADDRESSES = "10.81.0.1", "10.81.0.2"
_NAME = "tunnel0"
_PORTS = "40001", "40002"


class _Result(NamedTuple):
    gigabits: float
    #: CPU seconds of both ends for each gigabyte that arrived.
    cost: float


def _measure(loop: str, offload: str, stations: list[str], middle: str, seconds: int) -> _Result:
    with ExitStack() as stack:
        pids = []
        for station, address, ports in zip(stations, _ADDRESSES, (_PORTS, _PORTS[::-1]), strict=True):
            command = lab.python_module("tunnel_end", loop, offload, station, _NAME, f"{address}/24", middle, *ports)
            pids.append(stack.enter_context(lab.child(command)))
        # Its own server: one that misses the end of a stream when the tunnel closes, takes no other.
        stack.enter_context(iperf.server(stations[1]))
        before = sum(map(lab.cpu_time, pids))
        received = iperf.stream(stations[0], _ADDRESSES[1], seconds)
        spent = sum(map(lab.cpu_time, pids)) - before
    return _Result(received.gigabits, spent / received.bytes)


def run(loops: Loops, rounds: int, quick: bool) -> None:
    contestants = [(loop, offload) for loop in LOOPS for offload in ("none", "transparent")]
    results: dict[tuple[str, str], list[_Result]] = {each: [] for each in contestants}
    with lab.namespaces(3) as (left, right, middle):
        for _ in range(rounds):
            for loop, offload in random.sample(contestants, len(contestants)):
                result = _measure(loop, offload, [left, right], middle, 1 if quick else 2)
                results[loop, offload].append(result)
    rows = []
    for (loop, offload), mine in results.items():
        pairs = list(zip(mine, results[loop, "none"], strict=True))
        rows.append(
            [
                f"{'no offload' if offload == 'none' else '`Offload.ALL`'}, {loop}",
                ratio([one.gigabits / other.gigabits for one, other in pairs]),
                ratio([one.cost / other.cost for one, other in pairs]),
                f"{median(one.gigabits for one in mine):.2f}",
                f"{median(one.cost for one in mine):.1f}",
            ]
        )
    heads = ["", "throughput, without = 1", "CPU time of a byte, without = 1", "Gb/s", "CPU seconds a gigabyte"]
    table("TCP through a tunnel of ChaCha20-Poly1305 over UDP, both ends", heads, rows)
