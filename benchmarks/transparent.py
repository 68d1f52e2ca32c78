"""One TCP stream between two TUN interfaces, by a program that sees frames of 1500 bytes where the kernel's are large."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .path import Forwarder
from .report import LOOPS, table
from .transfer import compete, rows

if TYPE_CHECKING:
    from .native import Loops

_C = "C, frame by frame"
_CONTESTANTS = {
    _C: Forwarder("c"),
    **{f"aiotuntap with offloads, {loop}": Forwarder(f"aiotuntap-{loop}", offload="transparent") for loop in LOOPS},
    "C, super-frames passed through": Forwarder("c", offload="passed"),
}


def run(loops: Loops, rounds: int, quick: bool) -> None:
    results = compete(_CONTESTANTS, loops, rounds, seconds=1 if quick else 2)
    heads = ["forwarder", "throughput, C = 1", "CPU time of a byte, C = 1", "Gb/s", "ns a KiB"]
    title = "TCP from one TUN to another, MTU 1500, segmented and coalesced by the library"
    table(title, heads, rows(results, _C, lambda result: result.kibibyte))
