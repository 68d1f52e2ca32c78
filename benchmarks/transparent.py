"""One TCP stream between two TUN interfaces, by a program that sees frames of 1500 bytes where the kernel's are large."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .path import Forwarder
from .report import LOOPS
from .results import Table
from .transfer import compete, rows

if TYPE_CHECKING:
    from .native import Loops

_C = "C, frame by frame"
_CONTESTANTS = {
    _C: Forwarder("c"),
    **{f"aiotuntap with offloads, {loop}": Forwarder(f"aiotuntap-{loop}", offload="transparent") for loop in LOOPS},
    "C, super-frames passed through": Forwarder("c", offload="passed"),
}


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    results = compete(_CONTESTANTS, loops, rounds, seconds=1 if quick else 2)
    columns = {"throughput, C = 1": 2, "CPU time of a byte, C = 1": 2, "Gb/s": 2, "ns a KiB": 0}
    found = rows(results, _C, lambda result: result.kibibyte)
    return [Table("TCP from one TUN to another, MTU 1500, segmented and coalesced", "forwarder", columns, found)]
