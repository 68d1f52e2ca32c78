"""The command line: ``python -m examples.switch [NETNS:]PORT…``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from aiotuntap import DeviceGoneError, SetupError

from .control import Control, default_path
from .ports import tap_argument
from .switch import MACHINES, Switch
from .table import station
from .uplink import open_uplink
from .vxlan import Options


async def run(options: argparse.Namespace) -> int:
    """Opens the ports and serves them until all are gone, or until SIGINT or SIGTERM cancels it."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    switch = Switch(age=options.age, limit=options.limit, hold=options.hold, flood_limit=options.flood_limit)
    async with switch, controlled(switch, options.control):
        for address, name in options.static:
            switch.pin(address, name)
        captures = dict(options.capture)
        for name in options.ports:
            await switch.add(name, capture=captures.get(name))
        for uplink in options.vxlan:
            port = await open_uplink(uplink, age=options.age, limit=options.limit)
            await switch.plug(port, captures.get(port.name))
        print("ready:", *options.ports, *(f"vxlan{uplink.vni}" for uplink in options.vxlan), flush=True)
        try:
            await switch.ended
        finally:
            print(*switch.reported(), sep="\n")
    return 1


@contextlib.asynccontextmanager
async def controlled(switch: Switch, path: str | None) -> AsyncIterator[None]:
    """Serves the control socket. With an empty path, there is none."""
    if path == "":
        yield
        return
    task = asyncio.create_task(Control(switch, default_path() if path is None else Path(path)).serve())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def port_argument(text: str) -> str:
    if not text.startswith(MACHINES):
        try:
            tap_argument(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return text


def vxlan_argument(text: str) -> Options:
    try:
        return Options.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def static_argument(text: str) -> tuple[bytes, str]:
    found = re.fullmatch(r"((?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2})(?:/(\d{1,4}))?=(.+)", text)
    if found is None or int(found[2] or 0) > 4095 or int(found[1][:2], 16) & 1:
        raise argparse.ArgumentTypeError(f"must be MAC[/VLAN]=PORT, with the address of a single station, not {text!r}")
    return station(bytes.fromhex(found[1].replace(":", "")), int(found[2] or 0)), found[3]


def capture_argument(text: str) -> tuple[str, str]:
    port, equals, file = text.partition("=")
    if not equals or not file:
        raise argparse.ArgumentTypeError(f"must be PORT=FILE, not {text!r}")
    return port, file


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.switch", description="A learning Ethernet switch between network namespaces."
    )
    parser.add_argument(
        "ports",
        nargs="+",
        type=port_argument,
        metavar="[NETNS:]NAME",
        help="name of an interface to create, and its namespace (default: this one); or unix:PATH, a socket for virtual"
        " machines (QEMU: -netdev stream,id=n0,addr.type=unix,addr.path=PATH)",
    )
    parser.add_argument(
        "--vxlan",
        type=vxlan_argument,
        action="append",
        default=[],
        metavar="VNI,local=ADDR,remote=ADDR[,remote=…][,port=4789]",
        help="an additional port to other machines: a VXLAN uplink (RFC 7348)",
    )
    parser.add_argument(
        "--age",
        type=float,
        default=300,
        metavar="SECONDS",
        help="forget a station after this time without frames (default: 300)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=4096,
        metavar="STATIONS",
        help="remember at most this many stations (default: 4096)",
    )
    parser.add_argument(
        "--static",
        type=static_argument,
        action="append",
        default=[],
        metavar="MAC[/VLAN]=PORT",
        help="this station is always behind this port; it is not learned",
    )
    parser.add_argument(
        "--flood-limit",
        type=float,
        metavar="FRAMES",
        help="frames per second that each port may flood to all others, such as broadcasts; more are dropped",
    )
    parser.add_argument(
        "--hold", type=float, default=60, metavar="SECONDS", help="block a port with a loop for this time (default: 60)"
    )
    parser.add_argument(
        "--capture",
        type=capture_argument,
        action="append",
        default=[],
        metavar="PORT=FILE",
        help="record the frames of a port in a pcapng file",
    )
    parser.add_argument(
        "--control",
        metavar="PATH",
        help="path of the socket for 'python -m examples.switch.ctl', or '' for none (default: in a private folder)",
    )
    return parser


def main() -> int:
    parser = build_parser()
    options = parser.parse_args()
    # "not" before the comparison, because it is also false for NaN, which float() accepts.
    if not options.age >= 0 or options.limit < 1:
        parser.error("--age must be at least 0, and --limit at least 1")
    if not options.hold >= 0 or (options.flood_limit is not None and not 1 <= options.flood_limit < math.inf):
        parser.error("--hold must be at least 0, and --flood-limit a finite number of at least 1")
    uplinks = [f"vxlan{uplink.vni}" for uplink in options.vxlan]
    for name, _ in options.capture:
        if name not in (*options.ports, *uplinks):
            parser.error(
                f"--capture: {name!r} is not a port: it must be one of {', '.join([*options.ports, *uplinks])}"
            )
    try:
        status = asyncio.run(run(options))
    except asyncio.CancelledError:
        return 0
    except (SetupError, DeviceGoneError, OSError, ValueError) as error:
        print(f"{parser.prog}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    print(f"{parser.prog}: all ports are gone", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
