"""The command line: ``python -m aiotuntap``. Each command imports what it needs when it runs, so ``--help`` is quick."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .._errors import TuntapError

if TYPE_CHECKING:
    from .._types import Link


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 1 when it could not do what it was asked for, 2 for a wrong call."""
    options = build_parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        status = run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read the output has seen enough. Python flushes once more at exit, and must not fail then.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
        return 1
    except (TuntapError, OSError) as error:
        return _fail(getattr(error, "strerror", None) or str(error))
    except ImportError as error:
        return _fail(f"{error}; 'python -m aiotuntap doctor' tells what is missing")
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aiotuntap", description="TUN/TAP interfaces of this machine.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    doctor = commands.add_parser(
        "doctor",
        help="what this machine and user can do, and how to mend what they cannot",
        description="Tries what TUN/TAP needs and offers, and says how to mend what is missing. Leaves nothing behind."
        " The exit status is 0 if the demo can run.",
    )
    doctor.add_argument("--json", action="store_true", help="a list of objects: check, ok, meaning, mend")
    doctor.set_defaults(run=_doctor)

    listing = commands.add_parser(
        "list",
        help="the TUN/TAP interfaces of a network namespace",
        description="Lists the TUN/TAP interfaces of a network namespace. Counters are the kernel's: rx is what"
        " programs wrote, tx what they read.",
    )
    listing.add_argument("--netns", metavar="NAME_OR_PATH", help="as in 'ip netns', or such as /proc/PID/ns/net")
    listing.add_argument("--json", action="store_true", help="a list of objects, one for each interface")
    listing.set_defaults(run=_list)
    return parser


def _fail(message: str) -> int:
    sys.stderr.write(f"aiotuntap: {message}\n")
    return 1


def _doctor(options: argparse.Namespace) -> int:
    from . import doctor

    checks = doctor.examine()
    sys.stdout.write(doctor.as_json(checks) if options.json else doctor.render(checks))
    return 1 if doctor.missing_for_demo(checks) else 0


def _list(options: argparse.Namespace) -> int:
    from .._netlink.link import tuntaps

    links = asyncio.run(tuntaps(options.netns))
    if options.json:
        sys.stdout.write(json.dumps([describe(link) for link in links], indent=2) + "\n")
    elif links:
        sys.stdout.write(render(links))
    else:
        place = "this network namespace" if options.netns is None else f"network namespace {options.netns!r}"
        sys.stdout.write(f"No TUN/TAP interfaces in {place}.\n")
    return 0


def describe(link: Link) -> dict[str, Any]:
    """A `Link` for JSON, with the names of its owner and group as far as this machine knows them."""
    return asdict(link) | {"owner_name": user_name(link.owner), "group_name": group_name(link.group)}


def render(links: Sequence[Link]) -> str:
    return "\n".join(_render_one(link) for link in links)


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
    return f"{link.name}\n" + "".join(f"    {label:<9}  {value}\n" for label, value in rows)


def _queues(link: Link) -> str:
    if link.queues is None:  # the kernel counts those of multi-queue interfaces only
        return "at most 1"
    return f"{link.queues} enabled, {link.disabled_queues or 0} disabled"


def _identity(number: int | None, name: str | None) -> str:
    if number is None:
        return "none"
    return str(number) if name is None else f"{name} ({number})"


def _count(packets: int, octets: int, errors: int, dropped: int) -> str:
    return f"{packets} packets, {octets} bytes, {errors} errors, {dropped} dropped"


def user_name(uid: int | None) -> str | None:
    import pwd

    try:
        return None if uid is None else pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def group_name(gid: int | None) -> str | None:
    import grp

    try:
        return None if gid is None else grp.getgrgid(gid).gr_name
    except KeyError:
        return None
