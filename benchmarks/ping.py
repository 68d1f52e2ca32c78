"""Round trip of a ping that a program on a TUN interface answers, one at a time and a millisecond apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import lab
from .report import LOOPS
from .results import Figure, Table, figure, in_rounds

if TYPE_CHECKING:
    from .native import Loops

_NAME = "ping0"
_ADDRESS, _TARGET = "10.77.0.1/24", "10.77.0.2"
_EXAMPLE = Path(__file__).parent.parent / "examples" / "echo.py"


class RoundTrip(NamedTuple):
    """Percentiles of the round trip, in nanoseconds: the 50th and the 99th."""

    half: float
    most: float


def _responders(netns: str, library: str) -> dict[str, list[str]]:
    kinds = {"C, epoll": "c"}
    for loop in LOOPS:
        kinds[f"aiotuntap, {loop}"] = f"aiotuntap-{loop}"
        kinds[f"`add_reader`, `os.read`, `os.write`, {loop}"] = f"plain-{loop}"
    found = {label: lab.python_module("responders", kind, netns, _NAME, library) for label, kind in kinds.items()}
    if _EXAMPLE.exists():
        example = [sys.executable, str(_EXAMPLE), _NAME, "--mode", "tun", "--queues", "1", "--address", _ADDRESS]
        found["`examples/echo.py`, asyncio"] = lab.in_namespace(netns, example)
        found["`examples/echo.py`, uvloop"] = lab.in_namespace(netns, [*example, "--uvloop"])
    return found


def round_trip(netns: str, target: str, library: str, count: int) -> RoundTrip:
    """Of *count* pings from a namespace to an address."""
    client = lab.python_module("responders", "ping", netns, target, library, str(count))
    output = subprocess.run(client, check=True, capture_output=True, text=True).stdout
    return RoundTrip(*map(float, output.split()))


def _measure(command: list[str], netns: str, library: str, count: int) -> RoundTrip:
    with lab.child(command):
        lab.ip(netns, "address", "replace", _ADDRESS, "dev", _NAME)
        lab.ip(netns, "link", "set", _NAME, "up")
        return round_trip(netns, _TARGET, library, count)


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    with lab.namespaces(1) as (netns,):
        responders = _responders(netns, loops.path)
        results: dict[str, list[RoundTrip]] = {name: [] for name in responders}
        for name in in_rounds(responders, rounds):
            results[name].append(_measure(responders[name], netns, loops.path, 200 if quick else 1000))
    reference = results["C, epoll"]
    rows: dict[str, list[Figure | None]] = {}
    for name, mine in results.items():
        pairs = list(zip(mine, reference, strict=True))
        rows[name] = [
            figure([one.half / c.half for one, c in pairs]),
            figure([one.most / c.most for one, c in pairs]),
            figure([one.half / 1000 for one in mine]),
            figure([one.most / 1000 for one in mine]),
        ]
    columns = {"50 %, C = 1": 2, "99 %, C = 1": 2, "50 %, µs": 1, "99 %, µs": 1}
    return [Table("Round trip of a ping", "responder", columns, rows)]
