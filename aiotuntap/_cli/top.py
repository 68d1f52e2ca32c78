"""Traffic of the interfaces of a namespace, from the kernel's counters, and the processes that hold their queues.

The driver has no counters for single queues, so the rates are those of whole interfaces. `Stats` has the counters of a
program's own queues. A super-frame counts as one frame; the mean size of the frames shows them.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

from .._netlink.link import tuntaps
from .._types import Link
from .holders import Holder, holders, namespace_identity
from .listing import printable

_WIDTH = 80
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\033[H", "\033[K", "\033[J"

#: Longest name of an interface in bytes.
_NAME = 15

_HEAD = f"{'':<{_NAME}} {'':>7}  {'read from it':^25} {'written to it':^25}"
_COLUMNS = ("frames/s", "bytes/s", "drop/s")


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction of an interface, per second."""

    frames: float
    bytes: float
    dropped: float

    @property
    def frame_size(self) -> float | None:
        """Mean size of a frame in bytes, far over the MTU if there are super-frames. None without frames."""
        return round(self.bytes / self.frames, 3) if self.frames else None


@dataclass(frozen=True, slots=True)
class Row:
    """One interface during one interval."""

    link: Link
    #: Length of the interval; 0 for an interface that did not exist when the interval began.
    seconds: float
    #: Frames that programs read from the interface, and frames that they wrote to it.
    read: Flow
    written: Flow
    holders: tuple[Holder, ...]


def rows(before: Sequence[Link], after: Sequence[Link], seconds: float, held: Sequence[Holder]) -> list[Row]:
    """The traffic between two snapshots of a namespace, sorted by the name of the interface."""
    earlier = {link.index: link for link in before}
    found = []
    for link in sorted(after, key=lambda link: link.name):
        old, new = earlier.get(link.index), link.counters
        since = seconds if old is not None else 0.0
        past = new if old is None else old.counters
        if new.rx_packets < past.rx_packets or new.tx_packets < past.tx_packets:  # another one with the same index
            since, past = 0.0, new
        each = 1 / since if since else 0.0
        read = Flow(
            (new.tx_packets - past.tx_packets) * each,
            (new.tx_bytes - past.tx_bytes) * each,
            (new.tx_dropped + new.tx_errors - past.tx_dropped - past.tx_errors) * each,
        )
        written = Flow(
            (new.rx_packets - past.rx_packets) * each,
            (new.rx_bytes - past.rx_bytes) * each,
            (new.rx_dropped + new.rx_errors - past.rx_dropped - past.rx_errors) * each,
        )
        mine = tuple(holder for holder in held if holder.interface == link.name)
        found.append(Row(link, since, read, written, mine))
    return found


def as_json(found: Sequence[Row]) -> str:
    return json.dumps([_describe(row) for row in found])


def _describe(row: Row) -> dict[str, Any]:
    link = row.link
    flows = {
        name: asdict(flow) | {"frame_size": flow.frame_size}
        for name, flow in (("read", row.read), ("written", row.written))
    }
    holding = [{key: value for key, value in asdict(each).items() if key != "interface"} for each in row.holders]
    return {
        "name": link.name,
        "index": link.index,
        "mode": link.mode,
        "up": link.up,
        "carrier": link.carrier,
        "queues": link.queues,
        "disabled_queues": link.disabled_queues,
        "seconds": row.seconds,
        **flows,
        "counters": asdict(link.counters),
        "holders": holding,
    }


def as_text(found: Sequence[Row], netns: str | None) -> list[str]:
    """Lines of at most 80 columns."""
    if not found:
        place = "this network namespace" if netns is None else f"network namespace {netns!r}"
        return [f"No TUN/TAP interfaces in {place}."]
    columns = " ".join(f"{name:>8}" for name in _COLUMNS)
    lines = [_HEAD.rstrip(), f"{'interface':<{_NAME}} {'B/frame':>7} {columns} {columns}"]
    for row in found:
        lines += _render(row)
    return lines


def _render(row: Row) -> Iterator[str]:
    link = row.link
    flows = " ".join(
        f"{human(value):>8}" for flow in (row.read, row.written) for value in (flow.frames, flow.bytes, flow.dropped)
    )
    frames = row.read.frames + row.written.frames
    size = human((row.read.bytes + row.written.bytes) / frames) if frames else "-"
    yield f"{printable(link.name):<{_NAME}} {size:>7} {flows}"[:_WIDTH]
    state = "up" if link.up and link.carrier else "no carrier" if link.up else "down"
    queues = "" if link.queues is None else f", queues: {link.queues} enabled, {link.disabled_queues or 0} disabled"
    yield f"  {link.mode}, {state}{queues}"[:_WIDTH]
    for each in row.holders:
        idle = ", disabled" if each.enabled is False else ""
        yield f"  held by {printable(each.command)} (process {each.pid}, descriptor {each.fd}{idle})"[:_WIDTH]


def human(value: float) -> str:
    """A number in at most 7 characters: ``0``, ``12.3``, ``999``, ``1.23k``, ``45.6M``."""
    unit = 0
    while value >= 999.5 and unit < len("kMGTPE"):
        value, unit = value / 1000, unit + 1
    digits = 0 if value >= 99.95 or not value else 1 if value >= 9.995 or not unit else 2
    return f"{value:.{digits}f}{' kMGTPE'[unit] if unit else ''}"


async def watch(netns: str | None, interval: float, once: bool, in_json: bool) -> None:
    """Prints the traffic of each *interval* in seconds, until cancelled or *once*."""
    namespace = namespace_identity(netns)
    before, then = await tuntaps(netns), monotonic()
    is_screen = sys.stdout.isatty() and not once and not in_json
    while True:
        await asyncio.sleep(interval)
        after, now = await tuntaps(netns), monotonic()
        held = await asyncio.to_thread(holders, namespace)
        found = rows(before, after, now - then, held)
        before, then = after, now
        if in_json:
            sys.stdout.write(as_json(found) + "\n")
        elif is_screen:
            sys.stdout.write(_screen(as_text(found, netns), *shutil.get_terminal_size()))
        else:
            sys.stdout.write("\n".join([*as_text(found, netns), ""]) + ("" if once else "\n"))
        sys.stdout.flush()
        if once:
            return


def _screen(lines: Sequence[str], width: int, height: int) -> str:
    """The escape sequences that replace the lines on the screen. A line that is too long would take two of them."""
    shown = list(lines)
    if len(shown) > height - 1:
        shown = [*shown[: max(height - 2, 1)], f"… and {len(shown) - max(height - 2, 1)} more lines"]
    return _HOME + "".join(f"{line[:width]}{_CLEAR_LINE}\n" for line in shown) + _CLEAR_BELOW
