"""The interfaces of a network namespace, as text and as JSON."""

from __future__ import annotations

import grp
import json
import pwd
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .._types import Link


def as_json(links: Sequence[Link]) -> str:
    return json.dumps([describe(link) for link in links], indent=2) + "\n"


def as_text(links: Sequence[Link], netns: str | None) -> str:
    if not links:
        place = "this network namespace" if netns is None else f"network namespace {netns!r}"
        return f"No TUN/TAP interfaces in {place}.\n"
    return "\n".join(_render_one(link) for link in links)


def printable(name: str) -> str:
    """A name as it can be printed: it may have any bytes, also those that a terminal takes for commands."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name)


def describe(link: Link) -> dict[str, Any]:
    """A `Link` for JSON, with the names of its owner and group, or None where this machine has no name for them."""
    return asdict(link) | {"owner_name": user_name(link.owner), "group_name": group_name(link.group)}


def _render_one(link: Link) -> str:
    counters = link.counters
    flags = [flag for flag in ("multi_queue", "packet_info", "vnet_header", "persistent") if getattr(link, flag)]
    rows = [
        ("mode", str(link.mode)),
        ("state", f"{'up' if link.up else 'down'}, {'carrier' if link.carrier else 'no carrier'}"),
        ("mtu", str(link.mtu)),
        ("flags", " ".join(flags) or "none"),
        ("queues", _queues(link)),
        ("owner", _identity(link.owner, user_name(link.owner))),
        ("group", _identity(link.group, group_name(link.group))),
        ("addresses", " ".join(link.addresses) or "none"),
        ("rx", _count(counters.rx_packets, counters.rx_bytes, counters.rx_errors, counters.rx_dropped)),
        ("tx", _count(counters.tx_packets, counters.tx_bytes, counters.tx_errors, counters.tx_dropped)),
    ]
    return f"{printable(link.name)}\n" + "".join(f"    {label:<9}  {value}\n" for label, value in rows)


def _queues(link: Link) -> str:
    if link.queues is None:  # the kernel counts the queues of multi-queue interfaces only
        return "at most 1"
    return f"{link.queues} enabled, {link.disabled_queues or 0} disabled"


def _identity(number: int | None, name: str | None) -> str:
    if number is None:
        return "none"
    return str(number) if name is None else f"{name} ({number})"


def _count(packets: int, octets: int, errors: int, dropped: int) -> str:
    return f"{packets} packets, {octets} bytes, {errors} errors, {dropped} dropped"


def user_name(uid: int | None) -> str | None:
    try:
        return None if uid is None else pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def group_name(gid: int | None) -> str | None:
    try:
        return None if gid is None else grp.getgrgid(gid).gr_name
    except KeyError:
        return None
