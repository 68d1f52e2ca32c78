"""Inspects and changes a running switch: ``python -m examples.switch.ctl``. See ``--help``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiotuntap import TuntapError

from .control import default_folder
from .ports import tap_argument

#: The columns of the tables.
_PORTS = ("port", "in", "out", "dropped", "blocked")
_TABLE = ("mac", "vlan", "port", "silent")


def find_switch(given: str | None) -> socket.socket:
    """A connection to a switch, given by path or process number, or to the only one that runs.

    Raises:
        OSError: There is none, or there are several.
    """
    if given is not None and not given.isdecimal():
        return _connect(Path(given))
    folder = default_folder()
    if given is not None:
        return _connect(folder / given)
    found: dict[str, socket.socket] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            found[path.name] = _connect(path)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # the switch was killed
        except OSError:
            continue
    if len(found) != 1:
        for each in found.values():
            each.close()
        which = (
            f"several switches are running: choose one with --switch {' or '.join(found)}"
            if found
            else "no switch is running"
        )
        raise OSError(2, which)
    return next(iter(found.values()))


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise type(error)(error.errno, f"no switch answers at {path}: {error.strerror}") from error
    return sock


def ask(connection: socket.socket, request: dict[str, object], fds: Sequence[int] = ()) -> Any:
    """The result of a request. Raises OSError with the message of the switch if it refuses."""
    line = json.dumps(request).encode() + b"\n"
    if fds:
        socket.send_fds(connection, [line], list(fds))
    else:
        connection.sendall(line)
    answer = b""
    while not answer.endswith(b"\n"):
        more = connection.recv(1 << 16)
        if not more:
            raise OSError(104, "the switch has closed the connection: it belongs to another user, or it is ending")
        answer += more
    reply = json.loads(answer)
    if not reply["ok"]:
        raise OSError(22, reply["error"])
    return reply["result"]


async def add_from_here(connection: socket.socket, request: dict[str, object], name: str) -> Any:
    """Opens the interface *name* in the namespace of this process, and passes it to the switch."""
    tap = tap_argument(name)
    async with tap:
        await tap.configure(up=True)
        return ask(connection, request, [tap.queues[0].fileno()])


def as_text(command: str, result: Any) -> str:
    """The result as text."""
    if command == "ports":
        rows = [
            [row["name"], row["in"], row["out"], row["dropped"], f"{row['blocked']:.0f} s" if row["blocked"] else "no"]
            for row in result
        ]
        return _columns(_PORTS, rows)
    if command == "table":
        rows = [
            [row["mac"], row["vlan"] or "-", row["port"], "static" if row["static"] else f"{row['silent']:.0f} s"]
            for row in result
        ]
        return _columns(_TABLE, rows)
    if command == "stats":
        lines = [f"{name:<9} {value:.0f}\n" for name, value in result.items() if name != "uplinks"]
        for name, counts in result["uplinks"].items():
            lines.append(f"{name}: " + ", ".join(f"{value} {key}" for key, value in counts.items()) + " dropped\n")
        return "".join(lines)
    return f"{result}\n"


def _columns(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = [list(heads), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in cells
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.switch.ctl", description="Controls a running switch.")
    parser.add_argument(
        "--switch",
        metavar="PATH_OR_PID",
        help="control socket or process number of the switch (default: the only one that runs)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    commands.add_parser("ports", help="show the ports and their counters")
    commands.add_parser("table", help="show the known stations and their ports")
    commands.add_parser("stats", help="show the counters of the switch")
    add = commands.add_parser("add", help="add a port")
    add.add_argument("port", metavar="PORT", help="[NETNS:]NAME, or unix:PATH for virtual machines")
    add.add_argument("--capture", metavar="FILE", help="record its frames in a pcapng file")
    add.add_argument(
        "--here",
        action="store_true",
        help="create the interface NAME in the namespace of this command, such as in a container, not in that of the switch",
    )
    add.add_argument("--name", help="name of the port in the switch; only with --here")
    remove = commands.add_parser("remove", help="remove a port")
    remove.add_argument("port", metavar="PORT", help="name of the port, as 'ports' shows it")
    for each in commands.choices.values():
        each.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    options = parser.parse_args(arguments)
    request: dict[str, object] = {"command": options.command}
    if options.command in ("add", "remove"):
        request["port"] = options.port
    if options.command == "add" and options.capture is not None:
        request["capture"] = os.path.abspath(options.capture)
    try:
        with find_switch(options.switch) as connection:
            if options.command == "add" and options.here:
                request["port"] = options.name or options.port
                result = asyncio.run(add_from_here(connection, request, options.port))
            else:
                result = ask(connection, request)
    except (TuntapError, OSError, ValueError) as error:
        print(f"{parser.prog}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    sys.stdout.write(json.dumps(result) + "\n" if options.json else as_text(options.command, result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
