"""The control socket of a running switch. Each request and each answer is one line of JSON.

    {"command": "add", "port": "red:port0"}  →  {"ok": true, "result": "red:port0"}

Only root and the user who runs the switch may connect. A request to add a port may come with a descriptor of an
interface that was opened elsewhere, such as in a container.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from .ports import bind_unix
from .switch import Switch
from .uplink import VxlanFrames

Command = Callable[[dict[str, Any], list[int]], Awaitable[object]]

_LONGEST_REQUEST = 1 << 16
_MOST_CONNECTIONS = 32
#: Seconds until it accepts connections again if that failed.
_ACCEPT_AGAIN = 1.0
_CREDENTIALS = struct.Struct("iII")


def default_folder() -> Path:
    """The folder of the sockets, if the user gives no path. It is private to this user, and may not exist yet."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or ("/run" if os.geteuid() == 0 else f"/run/user/{os.geteuid()}")
    if os.access(runtime, os.W_OK):
        return Path(runtime, "aiotuntap-switch")
    return Path(f"/tmp/aiotuntap-switch-{os.geteuid()}")


def default_path() -> Path:
    """The path of this process's socket. Creates the folder. Raises OSError."""
    folder = default_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o77:
        raise PermissionError(1, f"{folder} must be private to this user (mode 0700): use --control PATH")
    return folder / str(os.getpid())


class Control:
    """Answers requests until it is closed."""

    def __init__(self, switch: Switch, path: Path) -> None:
        """Raises OSError if the socket cannot be created."""
        self._switch = switch
        self._path = path
        self._socket = bind_unix(str(path))
        self._socket.listen()
        self._started = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._commands: dict[str, Command] = {
            "ports": self._list_ports,
            "table": self._list_table,
            "stats": self._tell_stats,
            "add": self._add,
            "remove": self._remove,
        }

    async def serve(self) -> None:
        """Accepts connections until cancelled, which ends all connections."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, _ = await loop.sock_accept(self._socket)
                except OSError:  # such as no descriptor left: the client waits
                    await asyncio.sleep(_ACCEPT_AGAIN)
                    continue
                task = loop.create_task(self._converse(connection))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            for task in self._tasks:
                task.cancel()
            self._socket.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    async def _converse(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            _, uid, _ = _CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if uid not in (0, os.geteuid()) or len(self._tasks) > _MOST_CONNECTIONS:
                return
            rest = b""
            while request := await _receive(connection, rest):
                line, rest, fds = request
                try:
                    answer = await self._answer(line, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
                await asyncio.get_running_loop().sock_sendall(connection, json.dumps(answer).encode() + b"\n")

    async def _answer(self, line: bytes, fds: list[int]) -> dict[str, object]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise TypeError("a request must be a JSON object")
            command = self._commands.get(str(request.get("command")))
            if command is None:
                raise ValueError(f"command must be one of {', '.join(self._commands)}, not {request.get('command')!r}")
            return {"ok": True, "result": await command(request, fds)}
        except (ValueError, TypeError, OSError, RecursionError) as error:
            return {"ok": False, "error": getattr(error, "strerror", None) or str(error)}

    async def _list_ports(self, request: dict[str, Any], fds: list[int]) -> object:
        core, now = self._switch.core, time.monotonic()
        rows = []
        for port in self._switch.ports.values():
            came_in, out, dropped = port.counts()
            blocked = core.guard.blocked(port, now)
            rows.append({"name": port.name, "in": came_in, "out": out, "dropped": dropped, "blocked": blocked})
        return rows

    async def _list_table(self, request: dict[str, Any], fds: list[int]) -> object:
        entries = self._switch.core.table.entries(time.monotonic())
        return [
            {
                "mac": entry.address.hex(":"),
                "vlan": entry.vlan,
                "port": getattr(entry.port, "name", None),
                "silent": entry.silent,
                "static": entry.silent is None,
            }
            for entry in entries
        ]

    async def _tell_stats(self, request: dict[str, Any], fds: list[int]) -> object:
        core = self._switch.core
        counts = [port.counts() for port in self._switch.reported()]
        return {
            "seconds": time.monotonic() - self._started,
            "ports": len(self._switch.ports),
            "in": sum(each[0] for each in counts),
            "out": sum(each[1] for each in counts),
            "dropped": sum(each[2] for each in counts),
            "flooded": core.flooded,
            "returned": core.guard.returned,
            "limited": core.guard.limited,
            "stations": len(core.table),
            "learned": core.table.learned,
            "moved": core.table.moved,
            "evicted": core.table.evicted,
            "uplinks": {
                port.name: port.stream.counts()
                for port in self._switch.ports.values()
                if isinstance(port.stream, VxlanFrames)
            },
        }

    async def _add(self, request: dict[str, Any], fds: list[int]) -> object:
        name, capture = _text(request, "port"), request.get("capture")
        capture = None if capture is None else _text(request, "capture")
        if not fds:
            return await self._switch.add(name, capture=capture)
        if len(fds) != 1:
            raise ValueError(f"a port must have one descriptor, not {len(fds)}")
        return await self._switch.adopt(fds[0], name, capture=capture)

    async def _remove(self, request: dict[str, Any], fds: list[int]) -> object:
        name = _text(request, "port")
        await self._switch.remove(name)
        return name


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{key} must be a name, not {value!r}")
    return value


async def _receive(connection: socket.socket, data: bytes) -> tuple[bytes, bytes, list[int]] | None:
    """A line, what was received after it, and the descriptors that came with it. None at the end.

    *data* was received after the line before. The caller must close the descriptors.
    """
    fds: list[int] = []
    try:
        if data:
            await asyncio.sleep(0)  # many requests at once must not keep the frames waiting
        while b"\n" not in data:
            await _readable(connection)
            try:
                more, received, _, _ = socket.recv_fds(connection, _LONGEST_REQUEST, 4)
            except BlockingIOError:
                continue
            fds += received
            data += more
            if not more or len(data.partition(b"\n")[0]) > _LONGEST_REQUEST or len(fds) > 4:
                raise ConnectionError
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, OSError):
            return None
        raise
    line, _, rest = data.partition(b"\n")
    return line, rest, fds


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(connection, _set_done, ready)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def _set_done(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
