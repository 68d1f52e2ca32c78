"""The command line: ``python -m aiotuntap``. Each command imports what it needs when it runs, so ``--help`` is quick."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence

from .. import __version__
from .._errors import TuntapError


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
    parser.add_argument("--version", action="version", version=f"aiotuntap {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    doctor = commands.add_parser(
        "doctor",
        help="what this machine and user can do, and how to fix what they cannot",
        description="Tries what TUN/TAP needs and offers, and says how to fix what is missing. Leaves nothing behind."
        " The exit status is 0 if the demo can run.",
    )
    doctor.add_argument("--json", action="store_true", help="a list of objects: check, ok, value, detail, fix")
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

    top = commands.add_parser(
        "top",
        help="what passes through the TUN/TAP interfaces of a network namespace",
        description="Shows frames, bytes and drops a second of each TUN/TAP interface, as the kernel counts them, and"
        " which processes hold its queues. A super-frame is one frame: the column B/frame has the mean size."
        " The kernel counts nothing for single queues. Ctrl-C ends it.",
    )
    top.add_argument("--netns", metavar="NAME_OR_PATH", help="as in 'ip netns', or such as /proc/PID/ns/net")
    top.add_argument("--interval", type=_seconds, default=1.0, metavar="SECONDS", help="between two looks (1)")
    top.add_argument("--once", action="store_true", help="end after one interval")
    top.add_argument("--json", action="store_true", help="for each interval a line with a list, an object an interface")
    top.set_defaults(run=_top)
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.01 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"from 0.01 to 86400 seconds, not {text}")
    return seconds


def _fail(message: str) -> int:
    sys.stderr.write(f"aiotuntap: {message}\n")
    return 1


def _doctor(options: argparse.Namespace) -> int:
    from . import checks, facts, report

    judged = checks.judge(facts.probe())
    sys.stdout.write(report.as_json(judged) if options.json else report.as_text(judged))
    return 1 if checks.missing_for_demo(judged) else 0


def _list(options: argparse.Namespace) -> int:
    from .._netlink.link import tuntaps
    from . import listing

    links = asyncio.run(tuntaps(options.netns))
    sys.stdout.write(listing.as_json(links) if options.json else listing.as_text(links, options.netns))
    return 0


def _top(options: argparse.Namespace) -> int:
    from . import top

    asyncio.run(top.watch(options.netns, options.interval, options.once, options.json))
    return 0
