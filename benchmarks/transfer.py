"""Contestants that carry one TCP stream between two namespaces, by turns: what got through, and what it cost them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from . import iperf, lab
from .path import LEFT, RIGHT, SERVER
from .results import Figure, figure, in_rounds

if TYPE_CHECKING:
    from collections.abc import Callable

    from .native import Loops
    from .path import Forwarder


class Result(NamedTuple):
    gigabits: float
    #: CPU time of the forwarder for each frame it moved, either way, in nanoseconds.
    frame: float
    #: … for each KiB of TCP's payload that arrived.
    kibibyte: float


def _measure(forwarder: Forwarder, left: str, right: str, loops: Loops, seconds: int) -> Result:
    with forwarder.running(left, right, loops.path) as pid:
        before = lab.cpu_time(pid)
        received = iperf.stream(left, SERVER, seconds)
        spent = lab.cpu_time(pid) - before
        frames = lab.written_frames(left, LEFT) + lab.written_frames(right, RIGHT)
        return Result(received.gigabits, spent / frames, spent / received.bytes * 1024)


def compete(contestants: dict[str, Forwarder], loops: Loops, rounds: int, seconds: int) -> dict[str, list[Result]]:
    """Results of each contestant, one a round; the order within a round is left to chance."""
    results: dict[str, list[Result]] = {label: [] for label in contestants}
    with lab.namespaces(2) as (left, right), iperf.server(right):
        for label in in_rounds(contestants, rounds):
            results[label].append(_measure(contestants[label], left, right, loops, seconds))
    return results


def rows(
    results: dict[str, list[Result]], reference: str, cost: Callable[[Result], float]
) -> dict[str, list[Figure | None]]:
    """For each contestant throughput and cost as ratios to those of *reference*, then Gb/s and nanoseconds."""
    found: dict[str, list[Figure | None]] = {}
    for label, mine in results.items():
        pairs = list(zip(mine, results[reference], strict=True))
        found[label] = [
            figure([one.gigabits / other.gigabits for one, other in pairs]),
            figure([cost(one) / cost(other) for one, other in pairs]),
            figure([one.gigabits for one in mine]),
            figure(list(map(cost, mine))),
        ]
    return found
