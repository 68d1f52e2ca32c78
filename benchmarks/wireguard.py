"""``examples/wireguard`` and Debian's wireguard-go: two ends over a pair of veth, and one end with a thousand peers."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from . import iperf, lab
from .ping import round_trip
from .results import Figure, Table, figure, in_rounds

if TYPE_CHECKING:
    from .native import Loops

_GO = "wireguard-go"
_KINDS = {
    _GO: ["wireguard-go", "-f"],
    "asyncio": [sys.executable, "-m", "examples.wireguard", "-f"],
    "uvloop": [sys.executable, "-m", "examples.wireguard", "--uvloop", "-f"],
}
_PAIRS = {
    "wireguard-go, both ends": (_GO, _GO),
    "ours, asyncio": ("asyncio", "asyncio"),
    "ours, uvloop": ("uvloop", "uvloop"),
    "ours sends to wireguard-go": ("asyncio", _GO),
    "wireguard-go sends to ours": (_GO, "asyncio"),
}
_OUTER, _INNER = ("192.0.2.1", "192.0.2.2"), ("10.83.0.1", "10.83.0.2")
_PORT = 51820
_PEERS = 1000
#: Seconds that an end may take to answer wg.
_PATIENCE = 10


class _Key(NamedTuple):
    private: str
    public: str


class _Result(NamedTuple):
    gigabits: float
    #: CPU seconds of both ends for each gigabyte that arrived.
    cost: float
    #: Nanoseconds.
    round_trip: float


class _Crowd(NamedTuple):
    """With a thousand peers: seconds, but for the memory in MiB."""

    start: float
    configure: float
    show: float
    memory: float
    #: Of CPU, in each second.
    idle: float


def _new_key() -> _Key:
    private = X25519PrivateKey.generate()
    raw = private.private_bytes_raw(), private.public_key().public_bytes_raw()
    return _Key(*(base64.b64encode(each).decode() for each in raw))


def _wg(*arguments: str, text: str = "") -> str:
    return subprocess.run(["wg", *arguments], input=text, check=True, capture_output=True, text=True).stdout


def _start(stack: ExitStack, kind: str, netns: str, name: str) -> int:
    """Starts one end until the stack is closed; gives its pid once wg can reach it."""
    command = ["env", "WG_PROCESS_FOREGROUND=1", *_KINDS[kind], name]
    pid = stack.enter_context(lab.child(lab.in_namespace(netns, command), ready=None, quiet=True))
    end = time.monotonic() + _PATIENCE
    while not _listens(name):
        if time.monotonic() > end:
            raise SystemExit(f"{kind}: wg does not reach it after {_PATIENCE} seconds")
        time.sleep(0.005)
    return pid


def _listens(name: str) -> bool:
    """This does not call wg, which deletes sockets on which no process listens yet."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(f"/var/run/wireguard/{name}.sock")
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def _configuration(key: _Key, peers: dict[str, list[str]]) -> str:
    """For ``wg setconf``: peers by public key, each with the lines of its section."""
    sections = [["[Interface]", f"PrivateKey = {key.private}", f"ListenPort = {_PORT}"]]
    sections += [["[Peer]", f"PublicKey = {public}", *lines] for public, lines in peers.items()]
    return "\n".join("\n".join(lines) for lines in sections) + "\n"


def _measure(pair: tuple[str, str], stations: list[str], library: str, seconds: int, pings: int) -> _Result:
    keys, names = (_new_key(), _new_key()), [f"wgb{os.getpid() % 10000}-{number}" for number in range(2)]
    with ExitStack() as stack:
        pids = [_start(stack, *each) for each in zip(pair, stations, names, strict=True)]
        for number, name in enumerate(names):
            other = 1 - number
            lines = [f"Endpoint = {_OUTER[other]}:{_PORT}", f"AllowedIPs = {_INNER[other]}/32"]
            _wg("setconf", name, "/dev/stdin", text=_configuration(keys[number], {keys[other].public: lines}))
            lab.ip(stations[number], "address", "add", f"{_INNER[number]}/24", "dev", name)
            lab.ip(stations[number], "link", "set", name, "mtu", "1420", "up")
        subprocess.run(
            lab.in_namespace(stations[0], ["ping", "-q", "-c", "1", "-w", "9", _INNER[1]]),
            check=True,
            capture_output=True,
        )
        delay = round_trip(stations[0], _INNER[1], library, pings).half
        stack.enter_context(iperf.server(stations[1]))
        before = sum(map(lab.cpu_time, pids))
        received = iperf.stream(stations[0], _INNER[1], seconds)
        spent = sum(map(lab.cpu_time, pids)) - before
    return _Result(received.gigabits, spent / received.bytes, delay)


def _pairs(library: str, rounds: int, quick: bool) -> Table:
    results: dict[str, list[_Result]] = {label: [] for label in _PAIRS}
    with lab.namespaces(2) as stations:
        lab.ip(stations[0], "link", "add", "ve0", "type", "veth", "peer", "name", "ve0", "netns", stations[1])
        for station, address in zip(stations, _OUTER, strict=True):
            lab.ip(station, "address", "add", f"{address}/24", "dev", "ve0")
            lab.ip(station, "link", "set", "ve0", "up")
        for label in in_rounds(_PAIRS, rounds):
            result = _measure(_PAIRS[label], stations, library, 2 if quick else 4, 300 if quick else 1000)
            results[label].append(result)
    rows: dict[str, list[Figure | None]] = {}
    for label, mine in results.items():
        both = list(zip(mine, results["wireguard-go, both ends"], strict=True))
        rows[label] = [
            figure([one.gigabits / other.gigabits for one, other in both]),
            figure([one.cost / other.cost for one, other in both]),
            figure([one.round_trip / other.round_trip for one, other in both]),
            figure([one.gigabits for one in mine]),
            figure([one.cost for one in mine]),
            figure([one.round_trip / 1000 for one in mine]),
        ]
    columns = {
        "throughput, wireguard-go = 1": 2,
        "CPU time of a byte, wireguard-go = 1": 2,
        "ping, wireguard-go = 1": 2,
        "Gb/s": 2,
        "CPU seconds a gigabyte": 1,
        "µs a ping": 0,
    }
    return Table("WireGuard: one TCP stream and pings through two ends, MTU 1420", "", columns, rows)


def _crowd(kind: str, station: str, text: str, path: Path, seconds: float) -> _Crowd:
    path.write_text(text)
    name = f"wgb{os.getpid() % 10000}-2"
    with ExitStack() as stack:
        begun = time.monotonic()
        pid = _start(stack, kind, station, name)
        started = time.monotonic()
        _wg("setconf", name, str(path))
        configured = time.monotonic()
        lab.ip(station, "link", "set", name, "up")
        shown = []
        for _ in range(5):
            before = time.monotonic()
            _wg("show", name, "dump")
            shown.append(time.monotonic() - before)
        time.sleep(3)  # until what follows the start is over
        before_idle = lab.cpu_time(pid)
        time.sleep(seconds)
        idle = (lab.cpu_time(pid) - before_idle) / 1e9 / seconds
        status = Path(f"/proc/{pid}/status").read_text()
    (memory,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    return _Crowd(started - begun, configured - started, median(shown), memory / 1024, idle)


def _crowds(rounds: int, quick: bool) -> Table:
    peers = {_new_key().public: [f"AllowedIPs = 10.{n >> 8}.{n & 255}.0/24, fd00:{n:x}::/32"] for n in range(_PEERS)}
    text = _configuration(_new_key(), peers)
    rows: dict[str, list[Figure | None]] = {}
    with lab.namespaces(1) as (station,), tempfile.TemporaryDirectory() as folder:
        for kind in _KINDS:
            found = [
                _crowd(kind, station, text, Path(folder, "conf"), 2 if quick else 5) for _ in range(min(rounds, 3))
            ]
            start, configure, show, memory, idle = zip(*found, strict=True)
            rows[kind if kind == _GO else f"ours, {kind}"] = [
                *(figure([seconds * 1000 for seconds in each]) for each in (start, configure, show)),
                figure(memory),
                figure([each * 100 for each in idle]),
            ]
    columns = {
        "ms to start": 0,
        "ms for `wg setconf`": 0,
        "ms for `wg show dump`": 0,
        "MiB": 0,
        "idle: % of a CPU": 2,
    }
    return Table(f"WireGuard with {_PEERS} peers", "", columns, rows)


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    return [_pairs(loops.path, rounds, quick), _crowds(rounds, quick)]
