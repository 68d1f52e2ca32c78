"""Two stations behind ``examples/switch``, a relay in C, a bridge of the kernel, or ``vde_switch``: TCP, then pings."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from . import iperf, lab
from .path import LEFT, RIGHT, Forwarder
from .ping import round_trip
from .results import Figure, Table, figure, in_rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from .native import Loops

_PORT = "port0"
_ADDRESSES = "10.79.0.1", "10.79.0.2"
_EXAMPLE = ["-m", "examples.switch", "--control="]
_BRIDGE, _VDE, _RELAY = "Linux bridge, veth", "`vde_switch`", "C relay, the same two TAPs"
#: Seconds that `vde_switch` may take to make its interfaces.
_PATIENCE = 10


class _Result(NamedTuple):
    gigabits: float
    #: Nanoseconds.
    round_trip: float


@contextmanager
def _example(left: str, right: str, middle: str) -> Iterator[None]:
    with lab.child([sys.executable, *_EXAMPLE, f"{left}:{_PORT}", f"{right}:{_PORT}"]):
        yield


@contextmanager
def _relay(left: str, right: str, library: str) -> Iterator[None]:
    """What it costs to move super-frames between the same two interfaces without looking at them."""
    with Forwarder("c", mode="tap", offload="passed").running(left, right, library):
        for netns, name in ((left, LEFT), (right, RIGHT)):
            lab.ip(netns, "link", "set", name, "down", "name", _PORT)
        yield


@contextmanager
def _bridge(left: str, right: str, middle: str) -> Iterator[None]:
    """If the block fails, the interfaces are removed together with their namespaces."""
    lab.ip(middle, "link", "add", "bridge0", "up", "type", "bridge")
    for name, station in (("left0", left), ("right0", right)):
        lab.ip(middle, "link", "add", name, "type", "veth", "peer", "name", _PORT, "netns", station)
        lab.ip(middle, "link", "set", name, "master", "bridge0", "up")
    yield
    for name in ("left0", "right0", "bridge0"):
        lab.ip(middle, "link", "delete", name)


@contextmanager
def _vde_switch(left: str, right: str, middle: str) -> Iterator[None]:
    names = {"left0": left, "right0": right}
    with tempfile.TemporaryDirectory(prefix="aiotuntap-bench-") as folder:
        command = ["vde_switch", "--sock", f"{folder}/control"]
        for name in names:
            command += ["--tap", name]
        with lab.child(lab.in_namespace(middle, command), ready=None, quiet=True):  # it says nothing when it is ready
            for name, station in names.items():
                _wait_for(middle, name)
                lab.ip(middle, "link", "set", name, "netns", station, "name", _PORT)
            yield


def _wait_for(netns: str, name: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while subprocess.run(["ip", "-n", netns, "link", "show", name], check=False, capture_output=True).returncode:
        if time.monotonic() > deadline:
            raise SystemExit(f"vde_switch did not make the interface {name}")
        time.sleep(0.02)


def _measure(
    switch: AbstractContextManager[None], left: str, right: str, loops: Loops, seconds: int, pings: int
) -> _Result:
    with switch:
        for netns, address in zip((left, right), _ADDRESSES, strict=True):
            lab.ip(netns, "address", "add", f"{address}/24", "dev", _PORT)
            lab.ip(netns, "link", "set", _PORT, "up")
        received = iperf.stream(left, _ADDRESSES[1], seconds)
        return _Result(received.gigabits, round_trip(left, _ADDRESSES[1], loops.path, pings).half)


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    switches: dict[str, Callable[[str, str, str], AbstractContextManager[None]]] = {
        _BRIDGE: _bridge,
        _VDE: _vde_switch,
        _RELAY: lambda left, right, middle: _relay(left, right, loops.path),
        "`examples/switch`": _example,
    }
    results: dict[str, list[_Result]] = {label: [] for label in switches}
    with lab.namespaces(3) as (left, right, middle), iperf.server(right):
        for label in in_rounds(switches, rounds):
            switch = switches[label](left, right, middle)
            results[label].append(_measure(switch, left, right, loops, *((1, 200) if quick else (2, 1000))))
    rows: dict[str, list[Figure | None]] = {}
    for label, mine in results.items():
        others = list(zip(mine, results[_BRIDGE], results[_VDE], results[_RELAY], strict=True))
        rows[label] = [
            figure([one.gigabits / relay.gigabits for one, _, _, relay in others]),
            figure([one.gigabits / bridge.gigabits for one, bridge, _, _ in others]),
            figure([one.gigabits / vde.gigabits for one, _, vde, _ in others]),
            figure([one.round_trip / vde.round_trip for one, _, vde, _ in others]),
            figure([one.gigabits for one in mine]),
            figure([one.round_trip / 1000 for one in mine]),
        ]
    columns = {
        "TCP, C relay = 1": 2,
        "TCP, bridge = 1": 2,
        "TCP, `vde_switch` = 1": 2,
        "ping, `vde_switch` = 1": 2,
        "Gb/s": 2,
        "µs a ping": 1,
    }
    return [Table("TCP and ping between two stations of a switch", "switch", columns, rows)]
