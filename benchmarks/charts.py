"""Charts in ``docs/charts``, as SVG with its text as text: the same results always give the same bytes.

Each is narrow, with its labels above the bars, so that a telephone shows it whole; its background is transparent and
its colours lie halfway between black and white, so that it can be read on either.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from .pages import beside_floods, number
from .results import Figure, Results

FOLDER = Path(__file__).parent.parent / "docs" / "charts"

_OURS, _OTHERS, _TEXT = "#2f86d1", "#8d929a", "#767c85"
#: Inches: the width, and the heights of a bar with its label and of a panel's title.
_WIDTH, _ROW, _TITLE = 4.2, 0.42, 0.55
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "aiotuntap",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9.5,
    "text.color": _TEXT,
}


class _Bar(NamedTuple):
    label: str
    figure: Figure
    #: Whether it is this library.
    ours: bool = True
    #: The 99th percentile, where *figure* is the 50th.
    most: Figure | None = None


class _Panel(NamedTuple):
    title: str
    bars: Sequence[_Bar]


_Chart: TypeAlias = Callable[[Results], list[_Panel]]


def render(panels: Sequence[_Panel]) -> str:
    """Panels below one another, each with its own scale."""
    heights = [_TITLE + _ROW * len(panel.bars) for panel in panels]
    with rc_context(_STYLE):
        canvas = Canvas(figsize=(_WIDTH, sum(heights)))
        top = sum(heights)
        for panel, height in zip(panels, heights, strict=True):
            bottom = (top - height) / sum(heights)
            axes = canvas.add_axes((0.01, bottom, 0.98, height / sum(heights)))
            _draw(axes, panel, height)
            top -= height
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _draw(axes: Axes, panel: _Panel, height: float) -> None:
    """In inches from the top; bars leave a fifth of the width for the figure behind them.

    All text is placed by its baseline and its left end, which no font changes.
    """
    axes.set_axis_off()
    axes.set_ylim(height, 0)
    axes.set_xlim(-0.012, 1)  # room for half a dot at zero
    widest = max(panel.bars, key=lambda bar: (bar.most or bar.figure).high)
    scale = 0.8 / widest.figure.high if widest.most is None else 0.74 / widest.most.high
    axes.text(0, 0.3, panel.title, fontsize=10.5, fontweight="bold", va="baseline")
    for index, bar in enumerate(panel.bars):
        y = _TITLE + _ROW * index
        colour = _OURS if bar.ours else _OTHERS
        axes.text(0, y + 0.05, bar.label, va="baseline")
        middle = y + 0.2
        if bar.most is None:
            axes.barh(middle, bar.figure.median * scale, height=0.16, color=colour)
            axes.plot([bar.figure.low * scale, bar.figure.high * scale], [middle, middle], color=_TEXT, linewidth=1.2)
            end, text = bar.figure.high, number(bar.figure.median)
        else:
            ends = [bar.figure.median * scale, bar.most.median * scale]
            axes.plot(ends, [middle, middle], color=colour, linewidth=2.5, alpha=0.5, solid_capstyle="round")
            axes.plot(ends[:1], [middle], color=colour, marker="o", markersize=5.5)
            axes.plot(ends[1:], [middle], color=colour, marker="D", markersize=5.5)
            end, text = bar.most.median + 0.015 / scale, f"{number(bar.figure.median)} · {number(bar.most.median)}"
        axes.text(end * scale + 0.015, middle + 0.05, text, va="baseline", fontweight="bold")


def _per_frame(results: Results) -> list[_Panel]:
    def panel(title: str, rows: dict[str, str]) -> _Panel:
        return _Panel(
            title,
            [
                _Bar(label, results.figure("per-frame", row, "asyncio, 64 B, ns"), row.startswith("`"))
                for row, label in rows.items()
            ],
        )

    return [
        panel(
            "CPU time of reading a frame, ns",
            {
                "C, `read(2)`": "a loop in C over read(2)",
                "`read_frames`": "await queue.read_frames()",
                "`read_frame`": "await queue.read_frame()",
                "a loop over `os.read`": "a plain loop in Python over os.read",
            },
        ),
        panel(
            "CPU time of writing a frame, ns",
            {
                "C, `write(2)`": "a loop in C over write(2)",
                "`write_frames`": "await queue.write_frames(…)",
                "`write_frame`": "await queue.write_frame(…)",
                "a loop over `os.write`": "a plain loop in Python over os.write",
            },
        ),
    ]


def _throughput(results: Results) -> list[_Panel]:
    def bar(label: str, benchmark: str, row: str) -> _Bar:
        return _Bar(label, results.figure(benchmark, row, "Gb/s"), row.startswith("aiotuntap"))

    return [
        _Panel(
            "TCP through one process, Gb/s",
            [
                bar(
                    "asyncio.Queue, one os.read a callback",
                    "forward",
                    "one `os.read` a callback into an `asyncio.Queue`",
                ),
                bar("python-pytun with add_reader", "forward", "python-pytun with `add_reader`"),
                bar("C, frame by frame", "forward", "C, epoll, `read(2)` and `write(2)`"),
                bar("aiotuntap, frame by frame", "forward", "aiotuntap, asyncio"),
                bar("aiotuntap, segmenting and merging", "transparent", "aiotuntap with offloads, asyncio"),
                bar("aiotuntap, super-frames passed through", "relay", "aiotuntap, asyncio, TUN"),
                bar("C, super-frames passed through", "relay", "C, TUN"),
            ],
        )
    ]


def _vpn(results: Results) -> list[_Panel]:
    bars = {
        "wireguard-go": ("wireguard", "wireguard-go, both ends"),
        "examples/wireguard, asyncio": ("wireguard", "ours, asyncio"),
        "examples/wireguard, uvloop": ("wireguard", "ours, uvloop"),
        "examples/tunnel.py, packet by packet": ("tunnel", "no offload, asyncio"),
        "examples/tunnel.py, Offload.ALL": ("tunnel", "`Offload.ALL`, asyncio"),
        "examples/tunnel.py, super-frames sealed whole": ("tunnel", "super-frames sealed whole, asyncio"),
    }
    return [
        _Panel(title, [_Bar(label, results.figure(*row, column), "examples" in label) for label, row in bars.items()])
        for title, column in (
            ("TCP through both ends of a VPN, Gb/s", "Gb/s"),
            ("CPU seconds of both ends a gigabyte", "CPU seconds a gigabyte"),
        )
    ]


def _switch(results: Results) -> list[_Panel]:
    bars = {
        "vde_switch": "`vde_switch`",
        "examples/switch": "`examples/switch`",
        "Linux bridge, veth": "Linux bridge, veth",
        "a relay in C that looks at nothing": "C relay, the same two TAPs",
    }
    return [
        _Panel(
            title,
            [_Bar(label, results.figure("switch", row, column), "examples" in row) for label, row in bars.items()],
        )
        for title, column in (
            ("TCP between two stations, Gb/s", "Gb/s"),
            ("Median round trip of a ping, µs", "µs a ping"),
        )
    ]


def _latency(results: Results) -> list[_Panel]:
    def ping(label: str, row: str, ours: bool) -> _Bar:
        half, most = (results.figure("ping", row, f"{percent} %, µs") for percent in (50, 99))
        return _Bar(label, half, ours, most)

    def late(label: str, row: str, ours: bool = True) -> _Bar:
        half, most = (results.figure("ticker", row, f"{percent} %") for percent in (50, 99))
        return _Bar(label, half, ours, most)

    return [
        _Panel(
            "Round trip of a ping, µs: ● 50 %, ◆ 99 %",
            [
                ping("C, epoll", "C, epoll", ours=False),
                ping("asyncio, callback and os.read", "`add_reader`, `os.read`, `os.write`, asyncio", ours=False),
                ping("aiotuntap, asyncio", "aiotuntap, asyncio", ours=True),
                ping("aiotuntap, uvloop", "aiotuntap, uvloop", ours=True),
            ],
        ),
        _Panel(
            "Delay of a 1 ms sleep, ms: ● 50 %, ◆ 99 %",
            [
                late("no flood", "nothing else, asyncio", ours=False),
                *(
                    late(f"flood on {row.partition(', 0 µs')[0]}", row)
                    for row in beside_floods(results)
                    if row.endswith("asyncio")
                ),
            ],
        ),
    ]


def _scaling(results: Results) -> list[_Panel]:
    workers = {count: f"{count} process{'es' if count > 1 else ''}, asyncio" for count in (1, 2, 4)}
    queues = {count: f"{count} queue{'s' if count > 1 else ''}, asyncio" for count in (1, 2, 4, 8, 64, 256)}
    cpus = results.entry("workers").machine.cpus

    def thousands(of: Figure) -> Figure:
        return Figure(*(each / 1000 for each in of))

    return [
        _Panel(
            f"1000 frames/s by processes, {cpus} CPUs",
            [
                _Bar(row.partition(",")[0], thousands(results.figure("workers", row, "frames a second")))
                for row in workers.values()
            ],
        ),
        _Panel(
            "CPU time of a frame by queues, ns",
            [_Bar(row.partition(",")[0], results.figure("queues", row, "ns a frame")) for row in queues.values()],
        ),
    ]


CHARTS: dict[str, _Chart] = {
    "throughput": _throughput,
    "per-frame": _per_frame,
    "vpn": _vpn,
    "switch": _switch,
    "latency": _latency,
    "scaling": _scaling,
}


def texts(results: Results) -> dict[Path, str]:
    """All charts."""
    return {FOLDER / f"{name}.svg": render(chart(results)) for name, chart in CHARTS.items()}
