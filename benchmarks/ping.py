"""Round trip of a ping that a program on a TUN interface answers, one at a time and a millisecond apart."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from . import lab
from .report import LOOPS, ratio, table

if TYPE_CHECKING:
    from .native import Loops

_NAME = "ping0"
_ADDRESS, _TARGET = "10.77.0.1/24", "10.77.0.2"
_EXAMPLE = Path(__file__).parent.parent / "examples" / "echo.py"


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


def round_trip(netns: str, target: str, library: str, count: int) -> float:
    """The median of *count* pings from a namespace to an address, in nanoseconds."""
    client = lab.python_module("responders", "ping", netns, target, library, str(count))
    return float(subprocess.run(client, check=True, capture_output=True, text=True).stdout)


def _measure(command: list[str], netns: str, library: str, count: int) -> float:
    with lab.child(command):
        lab.ip(netns, "address", "replace", _ADDRESS, "dev", _NAME)
        lab.ip(netns, "link", "set", _NAME, "up")
        return round_trip(netns, _TARGET, library, count)


def run(loops: Loops, rounds: int, quick: bool) -> None:
    with lab.namespaces(1) as (netns,):
        responders = _responders(netns, loops.path)
        results: dict[str, list[float]] = {name: [] for name in responders}
        for _ in range(rounds):
            for name in random.sample(list(responders), len(responders)):
                results[name].append(_measure(responders[name], netns, loops.path, 200 if quick else 1000))
    reference = results["C, epoll"]
    rows = [
        [name, ratio([mine / c for mine, c in zip(times, reference, strict=True)]), f"{median(times) / 1000:.1f}"]
        for name, times in results.items()
    ]
    table("Ping", ["responder", "median round trip, C = 1", "µs"], rows)
