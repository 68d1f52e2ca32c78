"""What README and pages hold between ``<!-- bench: NAME -->`` and ``<!-- /bench -->``: tables and single figures.

A table stands between blank lines, a figure within a line. Tables named ``table: BENCHMARK`` have all of a benchmark; the
others choose from one or more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from .results import Results, markdown

_ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"<!-- bench: (.+?) -->(.*?)<!-- /bench -->", re.DOTALL)

#: Benchmark, row and column, and the engine unless it is C. Text stands as it is.
_Cell: TypeAlias = tuple[str, ...] | str

_LOOPS = ("asyncio", "uvloop")


def paths() -> list[Path]:
    """The README and all pages."""
    return [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))]


def fill(text: str, results: Results) -> str:
    """A page with its figures as they are now.

    Raises:
        LookupError: There is no block of such a name, or no figure for it.
    """

    def content(found: re.Match[str]) -> str:
        name = found[1]
        kind, _, benchmark = name.partition(": ")
        if kind == "table":
            new = _all_of(results, benchmark)
        elif name in BLOCKS:
            new = BLOCKS[name](results)
        else:
            raise LookupError(f"{name!r} is not a block of figures: they are {', '.join(BLOCKS)}, table: BENCHMARK")
        if new.startswith("|"):
            new = f"\n\n{new}\n\n"
        return f"<!-- bench: {name} -->{new}<!-- /bench -->"

    return _BLOCK.sub(content, text)


def texts(results: Results) -> dict[Path, str]:
    """All pages with their figures."""
    return {path: fill(path.read_text(), results) for path in paths()}


def number(value: float) -> str:
    """As many digits as mean something."""
    return f"{value:.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    return 2 if value < 3 else 1 if value < 30 else 0


def _between(values: Sequence[float]) -> str:
    decimals = _decimals(max(values))
    low, high = (f"{value:.{decimals}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _table(results: Results, heads: Sequence[str], rows: Iterable[Sequence[_Cell]]) -> str:
    def cell(of: _Cell) -> str:
        return of if isinstance(of, str) else number(results.figure(*of).median)

    return markdown(heads, [[cell(each) for each in row] for row in rows])


def _all_of(results: Results, benchmark: str) -> str:
    found = []
    for rows in results.entry(benchmark).tables.values():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        cells = [
            [name, *(number(row[column].median) if column in row else "" for column in columns)]
            for name, row in rows.items()
        ]
        found.append(markdown(["", *columns], cells))
    return "\n\n".join(found)


def _machine(results: Results) -> str:
    """One line; several if the benchmarks were not all run alike."""
    runs: dict[str, list[str]] = {}
    for engine, entries in sorted(results.entries.items()):
        for name, entry in entries.items():
            rounds = f"{entry.rounds} round{'s' if entry.rounds > 1 else ''}"
            which = name if engine == "C" else f"{name} with the engine in {engine}"
            runs.setdefault(f"{entry.machine}, {entry.date}, {rounds}", []).append(which)
    if len(runs) == 1:
        return next(iter(runs))
    most = max(runs, key=lambda run: len(runs[run]))
    others = [f"{', '.join(names)}: {run}" for run, names in runs.items() if run != most]
    return "; ".join([most, *others])


_SIZES = ("asyncio, 64 B", "asyncio, 1400 B", "uvloop, 64 B", "uvloop, 1400 B")


def _per_frame(results: Results) -> str:
    rows = {
        "`read_frames`": "CPU time of `read_frames`, a frame",
        "`read_frame`": "… of `read_frame`",
        "a loop over `os.read`": "… of a bare Python loop over `os.read`",
        "`write_frames`": "… of `write_frames`",
        "`write_frame`": "… of `write_frame`",
        "a loop over `os.write`": "… of a bare Python loop over `os.write`",
    }
    cells: list[list[_Cell]] = [[label, *(("per-frame", row, size) for size in _SIZES)] for row, label in rows.items()]
    return _table(results, ["C = 1", *_SIZES], cells)


def _throughput(results: Results) -> str:
    tcp, udp = "throughput, C = 1", "datagrams, C = 1"

    def both(benchmark: str, row: str, column: str) -> list[_Cell]:
        return [(benchmark, row.format(loop), column) for loop in _LOOPS]

    rows: list[list[_Cell]] = [
        ["TCP, frame by frame", *both("forward", "aiotuntap, {}", tcp)],
        ["… with python-pytun and `add_reader`", ("forward", "python-pytun with `add_reader`", tcp), ""],
        [
            "… with one read for each callback into an `asyncio.Queue`",
            ("forward", "one `os.read` a callback into an `asyncio.Queue`", tcp),
            "",
        ],
        [
            "TCP, segmented and merged by the library; C frame by frame = 1",
            *both("transparent", "aiotuntap with offloads, {}", tcp),
        ],
        [
            "UDP of 1400 B, segmented and merged by the library; C frame by frame = 1",
            *both("uso", "aiotuntap, {}, transparent", udp),
        ],
        [
            "UDP of 1400 B, super-frames passed through; C frame by frame = 1",
            *both("uso", "aiotuntap, {}, super-frames passed through", udp),
        ],
        ["TCP, super-frames passed through, TUN; C doing so = 1", *both("relay", "aiotuntap, {}, TUN", tcp)],
        ["… TAP", *both("relay", "aiotuntap, {}, TAP", tcp)],
    ]
    return _table(results, ["Throughput from one interface to another, C = 1", *_LOOPS], rows)


def _programs(results: Results) -> str:
    tunnel = ("throughput, no offload = 1", "CPU time of a byte, no offload = 1")
    rows: list[list[_Cell]] = [
        [
            "`examples/switch`, a Linux bridge = 1",
            ("switch", "`examples/switch`", "TCP, bridge = 1"),
            "",
        ],
        [
            "`examples/wireguard`, wireguard-go = 1",
            ("wireguard", "ours, asyncio", "throughput, wireguard-go = 1"),
            ("wireguard", "ours, asyncio", "CPU time of a byte, wireguard-go = 1"),
        ],
        [
            "`examples/tunnel.py` with `Offload.ALL`, without = 1",
            *(("tunnel", "`Offload.ALL`, asyncio", column) for column in tunnel),
        ],
        [
            "… super-frames sealed whole",
            *(("tunnel", "super-frames sealed whole, asyncio", column) for column in tunnel),
        ],
        [
            "UDP with `UdpStream`, uvloop's datagram endpoint = 1",
            ("udp", "UdpStream, asyncio", "endpoint on uvloop = 1"),
            "",
        ],
        ["… C with UDP_SEGMENT and UDP_GRO = 1", ("udp", "UdpStream, asyncio", "datagrams, C = 1"), ""],
    ]
    return _table(results, ["Programs on asyncio", "throughput", "CPU time of a byte"], rows)


def _ping(results: Results) -> str:
    columns = ("50 %, C = 1", "99 %, C = 1")
    rows = {
        "this library, `read_frame` and `write_frame`": "aiotuntap, {}",
        "`examples/echo.py`, which checks every header": "`examples/echo.py`, {}",
        "the bare event loop: `os.read` and `os.write` in a callback": "`add_reader`, `os.read`, `os.write`, {}",
    }
    cells: list[list[_Cell]] = [
        [label, *(("ping", row.format(loop), column) for loop in _LOOPS for column in columns)]
        for label, row in rows.items()
    ]
    heads = [f"{loop}, {column[:4]}" for loop in _LOOPS for column in columns]
    return _table(results, ["Round trip of a ping, C = 1", *heads], cells)


def _tunnel(results: Results) -> str:
    columns = ("throughput, no offload = 1", "CPU time of a byte, no offload = 1", "Gb/s")
    ways = {"`Offload.ALL`": "`Offload.ALL`", "super-frames sealed whole": "super-frames sealed whole (`--whole`)"}
    rows: list[list[_Cell]] = [
        [f"{label}, {loop}", *(("tunnel", f"{way}, {loop}", column) for column in columns)]
        for way, label in ways.items()
        for loop in _LOOPS
    ]
    heads = ["TCP, packet by packet (`--no-offload`) = 1", "throughput", "CPU time of a byte, both ends", "Gb/s"]
    return _table(results, heads, rows)


#: Rows of `segmentation`, by what the pages call them.
_CASES = {
    "`segment`, a super-frame of 45 segments": [
        f"`segment`, 45 of TCP over IPv{version}, {mode}" for version in (4, 6) for mode in ("TUN", "TAP")
    ],
    "`segment`, one of 2 segments": [
        f"`segment`, 2 of TCP over IPv{version}, {mode}" for version in (4, 6) for mode in ("TUN", "TAP")
    ],
    "`coalesce`, 45 frames in a row": [
        f"`coalesce`, 45 of TCP over IPv{version} in a row, {mode}" for version in (4, 6) for mode in ("TUN", "TAP")
    ],
    **{f"`coalesce`, {n} frames of one flow": [f"`coalesce`, {n} of one TCP flow, TUN"] for n in (8, 4, 2)},
    "`coalesce`, four flows by turns": ["`coalesce`, 44 of 4 TCP flows by turns, TUN"],
    "`coalesce`, mixed sizes, three frames to be merged": ["`coalesce`, 45 of TCP of mixed sizes, 3 to be merged, TUN"],
    "`coalesce`, acknowledgements, which are not merged": ["`coalesce`, 45 acknowledgements of 52 B, TUN"],
}


def _speeds(results: Results, case: str, column: str, engine: str = "C") -> list[float]:
    return [results.figure("segmentation", row, column, engine).median for row in _CASES[case]]


def _offloads(results: Results) -> str:
    rows = []
    for case in _CASES:
        acknowledgements = "acknowledgements" in case
        speed = "" if acknowledgements else _between(_speeds(results, case, "Gb/s of payload"))
        rows.append([case, speed, _between(_speeds(results, case, "ns a frame on the wire"))])
    return markdown(["", "Gb/s of payload", "ns a frame on the wire"], rows)


def _engines(results: Results) -> str:
    rows: list[list[str]] = []

    def add(label: str, show: Callable[[str], str]) -> None:
        rows.append([label, show("C"), show("Python")])

    for call in ("read_frames", "read_frame", "write_frames", "write_frame"):
        cells = [("per-frame", f"`{call}`", f"asyncio, {size} B") for size in (64, 1400)]

        def times(engine: str, cells: list[tuple[str, str, str]] = cells) -> str:
            return " / ".join(number(results.figure(*cell, engine).median) for cell in cells)

        add(f"CPU time of a frame, `{call}`, 64 / 1400 B", times)
    for label, column in (
        ("TCP, segmented and merged: throughput, C frame by frame = 1", "throughput, C = 1"),
        ("… CPU time of a byte", "CPU time of a byte, C = 1"),
    ):

        def merged(engine: str, column: str = column) -> str:
            return number(results.figure("transparent", "aiotuntap with offloads, asyncio", column, engine).median)

        add(label, merged)
    for case in _CASES:
        column = "ns a frame on the wire" if "acknowledgements" in case else "Gb/s of payload"

        def speed(engine: str, case: str = case, column: str = column) -> str:
            return _between(_speeds(results, case, column, engine))

        add(f"{case}, {'ns a frame' if column.startswith('ns') else 'Gb/s'}", speed)
    return markdown(["work", "C engine", "Python engine"], rows)


def _microseconds(benchmark: str, row: str, column: str) -> Callable[[Results], str]:
    return lambda results: f"{number(results.figure(benchmark, row, column).median / 1000)} µs"


def _late(results: Results) -> str:
    """The highest 99th percentile of a ticker beside readers that do nothing with their frames."""
    return number(max(results.figure("ticker", row, "99 %").median for row in beside_floods(results))) + " ms"


def beside_floods(results: Results) -> list[str]:
    """Rows of the ticker beside floods of frames and of super-frames, with readers that only read."""
    (rows,) = results.entry("ticker").tables.values()
    return [row for row in rows if ", 0 µs" in row and "one batch a turn" not in row]


def _gain(benchmark: str, row: str, column: str) -> Callable[[Results], str]:
    return lambda results: _between([results.figure(benchmark, row.format(loop), column).median for loop in _LOOPS])


BLOCKS: dict[str, Callable[[Results], str]] = {
    "machine": _machine,
    "per-frame": _per_frame,
    "throughput": _throughput,
    "programs": _programs,
    "ping": _ping,
    "tunnel": _tunnel,
    "offloads": _offloads,
    "engines": _engines,
    # Single figures.
    "µs of read": _microseconds("per-frame", "C, `read(2)`", "asyncio, 64 B, ns"),
    "µs of write": _microseconds("per-frame", "C, `write(2)`", "asyncio, 64 B, ns"),
    "Gb/s of C": _gain("segmentation", "C, copying each segment's payload and adding it up", "Gb/s of payload"),
    "Gb/s of segment": lambda results: _between(
        _speeds(results, "`segment`, a super-frame of 45 segments", "Gb/s of payload")
    ),
    "Gb/s of coalesce": lambda results: _between(_speeds(results, "`coalesce`, 45 frames in a row", "Gb/s of payload")),
    "gain of merging": _gain("transparent", "aiotuntap with offloads, {}", "throughput, C = 1"),
    "gain of passing": _gain("transparent", "C, super-frames passed through", "throughput, C = 1"),
    "CPU time of the tunnel": _gain("tunnel", "`Offload.ALL`, {}", "CPU time of a byte, no offload = 1"),
    "µs of the cipher": lambda results: (
        _between(
            [
                results.figure("wireguard-core", f"`{name}`, 1420 B", "the cipher alone, µs").median
                for name in ("outbound", "inbound")
            ]
        )
        + " µs"
    ),
    "ms late": _late,
    "ms of idle queues": lambda results: (
        _between([results.figure("idle", "256 idle queues for 2 s: CPU time, ms", loop).median for loop in _LOOPS])
        + " ms"
    ),
}
