"""One TCP stream from a TUN interface in one namespace to another in a second one, through a forwarder."""

from __future__ import annotations

import json
import random
import subprocess
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from . import lab
from .forwarders import LEFT, RIGHT
from .report import ratio, table

if TYPE_CHECKING:
    from .native import Loops

_LABELS = {
    "c": "C, epoll, `read(2)` and `write(2)`",
    "aiotuntap-asyncio": "aiotuntap, asyncio",
    "aiotuntap-uvloop": "aiotuntap, uvloop",
    "queue-asyncio": "one `os.read` a callback into an `asyncio.Queue`",
    "pytun-asyncio": "python-pytun with `add_reader`",
}
_CLIENT, _SERVER = "10.78.0.1", "10.78.0.2"


class _Result(NamedTuple):
    gigabits: float
    #: CPU time of the forwarder for each frame it moved, either way, in nanoseconds.
    cost: float


def _measure(kind: str, left: str, right: str, loops: Loops, seconds: int) -> _Result:
    with lab.child(lab.python_module("forwarders", kind, left, right, loops.path)) as pid:
        for netns, name, address in ((left, LEFT, _CLIENT), (right, RIGHT, _SERVER)):
            lab.ip(netns, "address", "add", f"{address}/24", "dev", name)
            lab.ip(netns, "link", "set", name, "up", "mtu", "1500", "txqueuelen", "1000")
        before = lab.cpu_time(pid)
        client = ["iperf3", "-4", "-c", _SERVER, "-t", str(seconds), "-J"]
        done = subprocess.run(
            lab.in_namespace(left, client), check=False, capture_output=True, text=True, timeout=seconds + 10
        )
        spent = lab.cpu_time(pid) - before
        report = json.loads(done.stdout)
        if "error" in report:
            raise SystemExit(f"{_LABELS[kind]}: iperf3: {report['error']}")
        frames = lab.written_frames(left, LEFT) + lab.written_frames(right, RIGHT)
        return _Result(report["end"]["sum_received"]["bits_per_second"] / 1e9, spent / frames)


def run(loops: Loops, rounds: int, quick: bool) -> None:
    results: dict[str, list[_Result]] = {kind: [] for kind in _LABELS}
    with lab.namespaces(2) as (left, right):
        server = ["iperf3", "-4", "-s", "--forceflush"]
        with lab.child(lab.in_namespace(right, server), ready="Server listening", quiet=True):  # it says how it ended
            for _ in range(rounds):
                for kind in random.sample(list(_LABELS), len(_LABELS)):
                    results[kind].append(_measure(kind, left, right, loops, 1 if quick else 2))
    rows = []
    for kind, label in _LABELS.items():
        pairs = list(zip(results[kind], results["c"], strict=True))
        rows.append(
            [
                label,
                ratio([mine.gigabits / c.gigabits for mine, c in pairs]),
                ratio([mine.cost / c.cost for mine, c in pairs]),
                f"{median(mine.gigabits for mine, _ in pairs):.2f}",
                f"{median(mine.cost for mine, _ in pairs):.0f}",
            ]
        )
    heads = ["forwarder", "throughput, C = 1", "CPU time, C = 1", "Gb/s", "ns a frame"]
    table("TCP from one TUN to another, MTU 1500", heads, rows)
