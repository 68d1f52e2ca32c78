"""One TCP stream through ``examples/tunnel.py`` between two namespaces that a veth joins: what both ends spend on it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import iperf, lab
from .results import Figure, Table, figure, in_rounds

if TYPE_CHECKING:
    from .native import Loops

_EXAMPLE = Path(__file__).parent.parent / "examples" / "tunnel.py"
_NAME, _PORT = "tunnel0", 51820
_OUTSIDE = "10.81.1.1", "10.81.1.2"
_INSIDE = "10.81.0.1", "10.81.0.2"
_LOOPS = {"asyncio": [], "uvloop": ["--uvloop"]}
_WAYS = {"no offload": ["--no-offload"], "`Offload.ALL`": [], "super-frames sealed whole": ["--whole"]}
#: Seconds that the two ends may take to find each other.
_PATIENCE = 10


class _Result(NamedTuple):
    gigabits: float
    #: CPU seconds of both ends for each gigabyte that arrived.
    cost: float


def _measure(spaces: list[str], key: str, options: list[str], seconds: int) -> _Result:
    with ExitStack() as stack:
        pids = []
        for side, netns in enumerate(spaces):
            ends = [f"{_OUTSIDE[side]}:{_PORT}", f"{_OUTSIDE[1 - side]}:{_PORT}"]
            command = [sys.executable, str(_EXAMPLE), _NAME, key, *ends, "--address", f"{_INSIDE[side]}/24", *options]
            pids.append(stack.enter_context(lab.child(lab.in_namespace(netns, command))))
        _wait(spaces[0])
        # Its own server: one that misses the end of a stream when the tunnel closes, takes no other.
        stack.enter_context(iperf.server(spaces[1]))
        before = sum(map(lab.cpu_time, pids))
        received = iperf.stream(spaces[0], _INSIDE[1], seconds)
        spent = sum(map(lab.cpu_time, pids)) - before
    return _Result(received.gigabits, spent / received.bytes)


def _wait(netns: str) -> None:
    """Until the tunnel carries packets."""
    ping = lab.in_namespace(netns, ["ping", "-c", "1", "-W", "0.2", _INSIDE[1]])
    end = time.monotonic() + _PATIENCE
    while subprocess.run(ping, capture_output=True, check=False).returncode:
        if time.monotonic() > end:
            raise SystemExit("the two ends of the tunnel do not find each other")


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    contestants = [(loop, way) for loop in _LOOPS for way in _WAYS]
    results: dict[tuple[str, str], list[_Result]] = {each: [] for each in contestants}
    with lab.joined(_OUTSIDE) as spaces, tempfile.NamedTemporaryFile() as key:  # which others cannot read
        key.write(os.urandom(32))
        key.flush()
        for loop, way in in_rounds(contestants, rounds):
            options = [*_LOOPS[loop], *_WAYS[way]]
            results[loop, way].append(_measure(spaces, key.name, options, 1 if quick else 2))
    rows: dict[str, list[Figure | None]] = {}
    for (loop, way), mine in results.items():
        pairs = list(zip(mine, results[loop, "no offload"], strict=True))
        rows[f"{way}, {loop}"] = [
            figure([one.gigabits / other.gigabits for one, other in pairs]),
            figure([one.cost / other.cost for one, other in pairs]),
            figure([one.gigabits for one in mine]),
            figure([one.cost for one in mine]),
        ]
    columns = {
        "throughput, no offload = 1": 2,
        "CPU time of a byte, no offload = 1": 2,
        "Gb/s": 2,
        "CPU seconds a gigabyte": 1,
    }
    title = "TCP through `examples/tunnel.py`, ChaCha20-Poly1305 over UDP, both ends"
    return [Table(title, "", columns, rows)]
