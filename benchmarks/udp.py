"""UDP datagrams from one process to another over a veth: how many arrive each second, and what the receiver needs for each.

The sender never waits: datagrams for which the receiver has no time are dropped before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import lab
from .datagrams import Arrived, arrive
from .report import LOOPS
from .results import Figure, Table, figure, in_rounds

if TYPE_CHECKING:
    from .native import Loops

#: Bytes of a datagram, datagrams in a batch, and the port that `datagrams` has too.
_SIZE, _COUNT, _PORT = 1400, 45, 5004
_ADDRESSES = "10.55.1.1", "10.55.1.2"
#: Milliseconds before counting begins.
_WARM_UP = 300
_C = "C, UDP_SEGMENT and UDP_GRO"
_KINDS = {
    "UdpStream": "stream",
    "UdpStream(gso=False, gro=False)": "single",
    "the loop's datagram endpoint": "endpoint",
}
_CONTESTANTS: dict[str, tuple[str, str] | None] = {
    _C: None,
    **{f"{label}, {loop}": (loop, how) for label, how in _KINDS.items() for loop in LOOPS},
}


def _measure(kind: tuple[str, str] | None, left: str, right: str, loops: Loops, milliseconds: int) -> Arrived:
    times = [str(_WARM_UP), str(milliseconds)]
    if kind is None:
        send = lab.python_module("datagrams", "send", left, _ADDRESSES[1], str(_SIZE), str(_COUNT), "1", loops.path)
        count = lab.python_module("datagrams", "count", right, *times, "0", loops.path)
    else:
        send = lab.python_module("udp_end", "send", *kind, left, _ADDRESSES[1], str(_PORT), str(_SIZE), str(_COUNT))
        count = lab.python_module("udp_end", "count", *kind, right, str(_PORT), *times)
    return arrive(send, count)


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    results: dict[str, list[Arrived]] = {label: [] for label in _CONTESTANTS}
    with lab.joined(_ADDRESSES) as (left, right):
        for label in in_rounds(_CONTESTANTS, rounds):
            results[label].append(_measure(_CONTESTANTS[label], left, right, loops, 500 if quick else 1000))
    endpoint = results["the loop's datagram endpoint, uvloop"]  # the faster one
    rows: dict[str, list[Figure | None]] = {}
    for label, mine in results.items():
        rows[label] = [
            figure([one.rate / c.rate for one, c in zip(mine, results[_C], strict=True)]),
            figure([one.rate / other.rate for one, other in zip(mine, endpoint, strict=True)]),
            figure([one.rate for one in mine]),
            figure([one.cost for one in mine]),
        ]
    columns = {
        "datagrams, C = 1": 2,
        "endpoint on uvloop = 1": 2,
        "datagrams a second": 0,
        "receiver, ns a datagram": 0,
    }
    return [Table(f"UDP datagrams of {_SIZE} bytes from one process to another", "both ends", columns, rows)]
