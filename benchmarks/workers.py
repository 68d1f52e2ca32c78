"""``examples/workers.py`` with 20 µs of work a frame: how much faster several processes are than one.

No frames are sent during the measurement: the workers are stopped until all frames wait in the kernel.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import lab
from .report import LOOPS
from .results import Figure, Table, figure, in_rounds

if TYPE_CHECKING:
    from .native import Loops

_EXAMPLE = Path(__file__).parent.parent / "examples" / "workers.py"
_NAME = "work0"
#: Microseconds.
_WORK = 20
_WORKERS = (1, 2, 4)
_WARM_UP, _FRAMES = 1024, 16384
#: Seconds that the workers may take for them.
_PATIENCE = 20
#: An echo request without payload, and its checksum.
_REQUEST = b"\x08\0\xf7\xff\0\0\0\0"


def _answered(pid: int) -> int:
    """Frames that were written to the interface, in the namespace of a process."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == _NAME:
            return int(figures.split()[1])
    raise SystemExit(f"the interface {_NAME} is gone")


class _Result(NamedTuple):
    #: Frames a second.
    rate: float
    #: CPU time of a frame, in microseconds.
    cost: float


def _answer(parent: int, workers: list[int], sender: socket.socket, count: int) -> _Result:
    """Has *count* pings answered."""
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    wanted = _answered(parent) + count
    for number in range(count):
        # Each to another address: the kernel spreads them over the queues.
        sender.sendto(_REQUEST, (f"10.77.{1 + number // 250}.{1 + number % 250}", 0))
    used = sum(map(lab.cpu_time, workers))
    start = time.monotonic()
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    while _answered(parent) < wanted:
        if time.monotonic() - start > _PATIENCE:
            raise SystemExit(f"{len(workers)} workers: {wanted - _answered(parent)} of {count} pings have no answer")
        time.sleep(0.001)
    spent = time.monotonic() - start
    return _Result(count / spent, (sum(map(lab.cpu_time, workers)) - used) / count / 1000)


def _measure(netns: str, loop: str, workers: int) -> _Result:
    command = [sys.executable, str(_EXAMPLE), _NAME, "--address", "10.77.0.1/16", "--user", "root"]
    command += ["--workers", str(workers), "--work", str(_WORK), *(["--uvloop"] if loop == "uvloop" else [])]
    with ExitStack() as stack:
        parent = stack.enter_context(lab.child(lab.in_namespace(netns, command), ready="worker", lines=workers))
        # One queue must have room for all: which one a frame goes to, is the kernel's decision.
        lab.ip(netns, "link", "set", _NAME, "txqueuelen", str(_FRAMES))
        sender = stack.enter_context(lab.socket_in(netns, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        pids = list(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))
        assert len(pids) == workers
        _answer(parent, pids, sender, _WARM_UP)
        return _answer(parent, pids, sender, _FRAMES)


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    contestants = [(loop, workers) for loop in LOOPS for workers in _WORKERS]
    results: dict[tuple[str, int], list[_Result]] = {each: [] for each in contestants}
    with lab.namespaces(1) as (netns,):
        for loop, workers in in_rounds(contestants, rounds):
            results[loop, workers].append(_measure(netns, loop, workers))
    rows: dict[str, list[Figure | None]] = {}
    for (loop, workers), mine in results.items():
        pairs = list(zip(mine, results[loop, 1], strict=True))
        rows[f"{workers} {'process' if workers == 1 else 'processes'}, {loop}"] = [
            figure([one.rate / other.rate for one, other in pairs]),
            figure([one.cost / other.cost for one, other in pairs]),
            figure([one.rate for one in mine]),
            figure([one.cost for one in mine]),
        ]
    columns = {
        "throughput, one process = 1": 2,
        "CPU time of a frame, one process = 1": 2,
        "frames a second": 0,
        "µs a frame": 1,
    }
    return [Table(f"`examples/workers.py`, {_WORK} µs of work a frame besides its answer", "", columns, rows)]
