"""One TCP stream between two interfaces whose super-frames are passed on as they are, header and all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .path import Forwarder
from .report import LOOPS, table
from .transfer import compete, rows

if TYPE_CHECKING:
    from .native import Loops

_C = "C, epoll, `read(2)` and `write(2)`"


def run(loops: Loops, rounds: int, quick: bool) -> None:
    for mode in ("tun", "tap"):
        contestants = {_C: Forwarder("c", mode, "passed")}
        for loop in LOOPS:
            contestants[f"aiotuntap, {loop}"] = Forwarder(f"aiotuntap-{loop}", mode, "passed")
        results = compete(contestants, loops, rounds, seconds=1 if quick else 2)
        heads = ["relay", "throughput, C = 1", "CPU time of a byte, C = 1", "Gb/s", "ns a KiB"]
        title = f"TCP from one {mode.upper()} to another, MTU 1500, super-frames passed through"
        table(title, heads, rows(results, _C, lambda result: result.kibibyte))
