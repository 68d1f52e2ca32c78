"""One TCP stream from a TUN interface in one namespace to another in a second one, through a forwarder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .path import Forwarder
from .results import Table
from .transfer import compete, rows

if TYPE_CHECKING:
    from .native import Loops

_C = "C, epoll, `read(2)` and `write(2)`"
_CONTESTANTS = {
    _C: Forwarder("c"),
    "aiotuntap, asyncio": Forwarder("aiotuntap-asyncio"),
    "aiotuntap, uvloop": Forwarder("aiotuntap-uvloop"),
    "one `os.read` a callback into an `asyncio.Queue`": Forwarder("queue-asyncio"),
    "python-pytun with `add_reader`": Forwarder("pytun-asyncio"),
}


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    results = compete(_CONTESTANTS, loops, rounds, seconds=1 if quick else 2)
    columns = {"throughput, C = 1": 2, "CPU time, C = 1": 2, "Gb/s": 2, "ns a frame": 0}
    found = rows(results, _C, lambda result: result.frame)
    return [Table("TCP from one TUN to another, MTU 1500, frame by frame", "forwarder", columns, found)]
