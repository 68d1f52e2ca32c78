"""UDP datagrams from one TUN interface to another: how many arrive each second, and what they cost the forwarder.

The sender never waits: datagrams for which a forwarder has no time are dropped before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import lab
from .datagrams import Arrived, arrive
from .path import SERVER, Forwarder
from .report import LOOPS
from .results import Figure, Table, figure, in_rounds

if TYPE_CHECKING:
    from .native import Loops

#: Bytes of a datagram's payload, and datagrams in what the sender hands to the kernel at once.
_SIZE, _COUNT = 1400, 40
#: Milliseconds before counting begins.
_WARM_UP = 300
_C = "C, frame by frame"
_CONTESTANTS = {
    _C: Forwarder("c"),
    **{f"aiotuntap, {loop}, frame by frame": Forwarder(f"aiotuntap-{loop}") for loop in LOOPS},
    "C, super-frames passed through": Forwarder("c", offload="passed"),
    **{
        f"aiotuntap, {loop}, super-frames passed through": Forwarder(f"aiotuntap-{loop}", offload="passed")
        for loop in LOOPS
    },
    **{f"aiotuntap, {loop}, transparent": Forwarder(f"aiotuntap-{loop}", offload="transparent") for loop in LOOPS},
}


def _measure(forwarder: Forwarder, left: str, right: str, loops: Loops, milliseconds: int) -> Arrived:
    with forwarder.running(left, right, loops.path) as pid:
        send = lab.python_module("datagrams", "send", left, SERVER, str(_SIZE), str(_COUNT), "1", loops.path)
        count = lab.python_module("datagrams", "count", right, str(_WARM_UP), str(milliseconds), str(pid), loops.path)
        return arrive(send, count)


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    results: dict[str, list[Arrived]] = {label: [] for label in _CONTESTANTS}
    with lab.namespaces(2) as (left, right):
        for label in in_rounds(_CONTESTANTS, rounds):
            forwarder = _CONTESTANTS[label]
            results[label].append(_measure(forwarder, left, right, loops, 500 if quick else 1000))
    rows: dict[str, list[Figure | None]] = {}
    for label, mine in results.items():
        pairs = list(zip(mine, results[_C], strict=True))
        rows[label] = [
            figure([one.rate / c.rate for one, c in pairs]),
            figure([one.cost / c.cost for one, c in pairs]),
            figure([one.rate for one in mine]),
            figure([one.cost for one in mine]),
        ]
    columns = {
        "datagrams, C = 1": 2,
        "CPU time of a datagram, C = 1": 2,
        "datagrams a second": 0,
        "ns a datagram": 0,
    }
    return [Table(f"UDP datagrams of {_SIZE} bytes from one TUN to another", "forwarder", columns, rows)]
