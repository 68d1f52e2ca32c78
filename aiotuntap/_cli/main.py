"""The command line: ``python -m aiotuntap``. Each command imports its modules when it runs, so that ``--help`` is fast."""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import sys
from collections.abc import Callable, Sequence

from .. import __version__
from .._errors import TuntapError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 if the command failed, or 2 for wrong arguments."""
    options = build_parser().parse_args(arguments)
    if sys.stdout is None:
        return _fail("standard output is closed: redirect it, for example to /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names have characters that the encoding of the terminal may not have.
        sys.stdout.reconfigure(errors="backslashreplace")
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        status = run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader has closed the pipe. Python flushes stdout again at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
        return 1
    except (TuntapError, OSError) as error:
        return _fail(getattr(error, "strerror", None) or str(error))
    except ImportError as error:
        return _fail(f"{error}; run 'python -m aiotuntap doctor' to see what is missing")
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aiotuntap", description="Checks and shows the TUN/TAP interfaces of this machine."
    )
    parser.add_argument("--version", action="version", version=f"aiotuntap {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    doctor = commands.add_parser(
        "doctor",
        help="check what this machine and user can do, and how to fix what does not work",
        description="Tries what aiotuntap needs and what the kernel offers, and says how to fix what does not work."
        " It leaves no interfaces behind. The exit status is 0 if the demo can run, which is 'make demo' in a checkout: it"
        " creates an interface, if need be in a user namespace.",
    )
    doctor.add_argument(
        "--json", action="store_true", help="print a list of objects with: check, ok, value, detail, fix"
    )
    doctor.set_defaults(run=_doctor)

    listing = commands.add_parser(
        "list",
        help="list the TUN/TAP interfaces of a network namespace",
        description="Lists the TUN/TAP interfaces of a network namespace. The counters are the kernel's: rx counts what"
        " programs wrote, tx counts what they read.",
    )
    listing.add_argument(
        "--netns", metavar="NAME_OR_PATH", help="a name as in 'ip netns', or a path such as /proc/PID/ns/net"
    )
    listing.add_argument("--json", action="store_true", help="print a list with one object for each interface")
    listing.set_defaults(run=_list)

    top = commands.add_parser(
        "top",
        help="show the traffic of the TUN/TAP interfaces of a network namespace",
        description="Shows the frames, bytes and drops per second of each TUN/TAP interface, as the kernel counts them,"
        " and the processes that hold its queues. A super-frame counts as one frame; the column B/frame shows the mean"
        " size. The kernel has no counters for single queues. Press Ctrl-C to end it.",
    )
    top.add_argument(
        "--netns", metavar="NAME_OR_PATH", help="a name as in 'ip netns', or a path such as /proc/PID/ns/net"
    )
    top.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="SECONDS", help="time between two updates (default: 1)"
    )
    top.add_argument("--once", action="store_true", help="print one interval and exit")
    top.add_argument(
        "--json",
        action="store_true",
        help="print one line for each interval: a list with one object for each interface",
    )
    top.set_defaults(run=_top)
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"must be from 0.01 to 86400 seconds, not {text}")
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
