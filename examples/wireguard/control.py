"""The socket for ``wg``: /var/run/wireguard/INTERFACE.sock, private to its owner."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

from .uapi import Changes, UapiError, parse

DIRECTORY = Path("/var/run/wireguard")
#: From <linux/inotify.h>. IN_ATTRIB also reports a file that is deleted while it is open: its number of links changes.
_IN_ATTRIB, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x004, 0x400, 0x800

_log = logging.getLogger(__name__)


def listen(name: str) -> socket.socket:
    """The listening socket of a new interface. It replaces the file of a program that has died.

    Raises:
        OSError: EADDRINUSE if a running program serves that name.
    """
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = str(DIRECTORY / f"{name}.sock")
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        # On Linux the file gets the mode of the socket: it is never accessible to others.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(path)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


class Control:
    """Answers requests on a listening socket, and removes its file at the end."""

    def __init__(
        self,
        listener: socket.socket,
        get: Callable[[], Iterable[str]],
        set_: Callable[[Changes], Awaitable[None]],
    ) -> None:
        """*get* returns the lines of the configuration. *set_* makes changes, or raises UapiError."""
        self._listener = listener
        self._path = Path(os.fsdecode(listener.getsockname()))
        self._get = get
        self._set = set_
        self._connections: set[asyncio.StreamWriter] = set()

    async def serve(self) -> None:
        """Answers until the file is deleted. If it is cancelled or fails, it removes the file."""
        try:
            with _watched(self._path) as until_deleted:
                # With start_serving=False this does not wait: it cannot be cancelled halfway.
                server = await asyncio.start_unix_server(self._answer, sock=self._listener, start_serving=False)
                try:
                    await server.start_serving()
                    await until_deleted()
                finally:
                    server.close()
                    for connection in self._connections:
                        connection.close()
        finally:
            self._listener.close()
            self._path.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            # LimitOverrunError, ValueError: a line of more than 64 KiB, or not UTF-8: invalid in this protocol.
            # CancelledError: when the program ends, asyncio of Python 3.11 would print a traceback.
            with contextlib.suppress(
                ConnectionError,
                asyncio.IncompleteReadError,
                asyncio.LimitOverrunError,
                ValueError,
                asyncio.CancelledError,
            ):
                while operation := await reader.readline():
                    lines = await _until_empty(reader)
                    writer.writelines([*await self._lines(operation.decode().rstrip("\n"), lines), b"\n"])
                    await writer.drain()
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _lines(self, operation: str, lines: list[str]) -> list[bytes]:
        """The answer to one request, without the empty line that ends it."""
        answer: list[str] = []
        number = 0
        try:
            if operation == "get=1" and not lines:
                answer = list(self._get())
            elif operation == "set=1":
                await self._set(parse(lines))
            else:
                # The message must not show the request: it may be a key.
                raise UapiError(errno.EPROTO, "a request must be get=1 alone, or begin with set=1")
        except UapiError as error:
            _log.error("refused a request on %s: %s", self._path, error)
            number = error.number
        # Negative, as in wireguard-go: wg shows the text of -errno.
        return [f"{line}\n".encode() for line in (*answer, f"errno={-number}")]


async def _until_empty(reader: asyncio.StreamReader) -> list[str]:
    """The lines of a request. Raises IncompleteReadError if it is not complete."""
    lines = []
    while (line := (await reader.readuntil(b"\n")).decode().rstrip("\n")) != "":
        lines.append(line)
    return lines


@contextlib.contextmanager
def _watched(path: Path) -> Iterator[Callable[[], Awaitable[None]]]:
    """Yields a function that waits until the file at *path* is deleted, moved or replaced. It may be gone already."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
        return result

    fd = check(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    try:
        first = None
        with contextlib.suppress(FileNotFoundError):
            check(libc.inotify_add_watch(fd, bytes(path), _IN_ATTRIB | _IN_DELETE_SELF | _IN_MOVE_SELF))
            first = path.lstat()

        def is_there() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return first is not None and os.path.samestat(first, path.lstat())
            return False

        async def until_deleted() -> None:
            loop, changed = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(fd, changed.set)
            try:
                while is_there():
                    await changed.wait()
                    changed.clear()
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 4096)
            finally:
                loop.remove_reader(fd)

        yield until_deleted
    finally:
        os.close(fd)
