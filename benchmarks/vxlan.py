"""TCP over VXLAN between two machines over veth: the switch example's uplink at one end, the kernel's device at the other.

The kernel's device at both ends is the reference: over veth it hands super-frames over whole, which no wire would carry.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import iperf, lab
from .results import Figure, Table, figure, in_rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from .native import Loops

_VNI, _PORT, _DEVICE, _MTU = "42", "port0", "over0", "1400"
_UNDER = {4: ("10.80.0.1/24", "10.80.0.2/24"), 6: ("fd80::1/64", "fd80::2/64")}
_STATIONS = "10.81.0.1", "10.81.0.2"


def _host(address: str) -> str:
    return address.partition("/")[0]


@contextmanager
def _underlay(left: str, right: str, version: int) -> Iterator[tuple[str, str]]:
    lab.ip(left, "link", "add", "under0", "type", "veth", "peer", "name", "under0", "netns", right)
    for netns, address in zip((left, right), _UNDER[version], strict=True):
        lab.ip(netns, "link", "set", "under0", "addrgenmode", "none", "up")
        lab.ip(netns, "address", "add", address, "dev", "under0", *(["nodad"] if version == 6 else []))
    yield _host(_UNDER[version][0]), _host(_UNDER[version][1])
    lab.ip(left, "link", "delete", "under0")


def _device(netns: str, local: str, remote: str, address: str) -> None:
    kind = ["type", "vxlan", "id", _VNI, "local", local, "remote", remote, "dstport", "4789", "dev", "under0"]
    lab.ip(netns, "link", "add", _DEVICE, "mtu", _MTU, *kind)
    lab.ip(netns, "address", "add", f"{address}/24", "dev", _DEVICE)
    lab.ip(netns, "link", "set", _DEVICE, "up")


@contextmanager
def _kernel(station: str, machine: str, ends: tuple[str, str]) -> Iterator[str]:
    """The namespace of the first station."""
    _device(machine, *ends, _STATIONS[0])
    yield machine
    lab.ip(machine, "link", "delete", _DEVICE)


@contextmanager
def _example(station: str, machine: str, ends: tuple[str, str]) -> Iterator[str]:
    uplink = f"{_VNI},local={ends[0]},remote={ends[1]}"
    command = [sys.executable, "-m", "examples.switch", "--control=", f"{station}:{_PORT}", "--vxlan", uplink]
    with lab.child(lab.in_namespace(machine, command)):
        lab.ip(station, "link", "set", _PORT, "mtu", _MTU)
        lab.ip(station, "address", "add", f"{_STATIONS[0]}/24", "dev", _PORT)
        yield station


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    ways: dict[str, Callable[[str, str, tuple[str, str]], AbstractContextManager[str]]] = {
        "kernel to kernel": _kernel,
        "`examples/switch` to kernel": _example,
    }
    seconds = 1 if quick else 3
    rows: dict[str, list[Figure | None]] = {}
    with lab.namespaces(3) as (station, machine, other):
        lab.enable_ipv6(machine, other)
        for version in (4, 6):
            results: dict[tuple[str, bool], list[float]] = {(way, out): [] for way in ways for out in (True, False)}
            for label in in_rounds(ways, rounds):
                with _underlay(machine, other, version) as ends:
                    _device(other, ends[1], ends[0], _STATIONS[1])
                    with ways[label](station, machine, ends) as netns:
                        with iperf.server(other):
                            there = iperf.stream(netns, _STATIONS[1], seconds)
                        with iperf.server(netns):
                            back = iperf.stream(other, _STATIONS[0], seconds)
                    lab.ip(other, "link", "delete", _DEVICE)
                results[label, True].append(there.gigabits)
                results[label, False].append(back.gigabits)
            for (label, outwards), mine in results.items():
                reference = results["kernel to kernel", outwards]
                rows[f"{label}, IPv{version}{'' if outwards else ', the other way'}"] = [
                    figure([one / kernel for one, kernel in zip(mine, reference, strict=True)]),
                    figure(mine),
                ]
    return [Table("TCP over VXLAN", "from and to", {"throughput, kernel = 1": 2, "Gb/s": 2}, rows)]
