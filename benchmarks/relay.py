"""One TCP stream between two interfaces whose super-frames are passed on as they are, header and all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .path import Forwarder
from .report import LOOPS
from .results import Figure, Table
from .transfer import compete, rows

if TYPE_CHECKING:
    from .native import Loops

_COLUMNS = {"throughput, C = 1": 2, "CPU time of a byte, C = 1": 2, "Gb/s": 2, "ns a KiB": 0}


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    found: dict[str, list[Figure | None]] = {}
    for mode in ("tun", "tap"):
        c = f"C, {mode.upper()}"
        contestants = {c: Forwarder("c", mode, "passed")}
        for loop in LOOPS:
            contestants[f"aiotuntap, {loop}, {mode.upper()}"] = Forwarder(f"aiotuntap-{loop}", mode, "passed")
        results = compete(contestants, loops, rounds, seconds=1 if quick else 2)
        found |= rows(results, c, lambda result: result.kibibyte)
    return [Table("TCP from one interface to another, MTU 1500, super-frames passed through", "relay", _COLUMNS, found)]
