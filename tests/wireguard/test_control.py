"""The socket for ``wg``, without an interface behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wireguard.control import Control
from wireguard.uapi import Changes


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
        made.listen()
        yield made


async def _set(changes: Changes) -> None:
    pass


def watches() -> int:
    """How many descriptors of this process are for inotify(7)."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of listdir() itself
            count += os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:inotify"
    return count


@pytest.mark.parametrize("steps", range(5))
async def test_whenever_it_is_cancelled_nothing_is_left(listener: socket.socket, steps: int, tmp_path: Path) -> None:
    task = asyncio.create_task(Control(listener, list, _set).serve())
    for _ in range(steps + 1):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("late", [False, True])
async def test_it_ends_where_its_file_is_gone_before_it_begins(
    listener: socket.socket, late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = Control(listener, list, _set)
    lstat = Path.lstat
    if late:  # between the watch and the look

        def moves(path: Path) -> os.stat_result:
            path.rename(tmp_path / "away")
            return lstat(path)

        monkeypatch.setattr(Path, "lstat", moves)
    else:
        (tmp_path / "socket").rename(tmp_path / "away")
    before = watches()
    async with asyncio.timeout(5):
        await control.serve()
    assert listener.fileno() == -1
    assert watches() == before
    assert [each.name for each in tmp_path.iterdir()] == ["away"]


async def test_nothing_is_left_where_it_cannot_begin(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Full:
        """As with too many watches of files already."""

        def inotify_init1(self, flags: int) -> int:
            return -1

    monkeypatch.setattr("wireguard.control.ctypes.CDLL", lambda *arguments, **options: Full())
    with pytest.raises(OSError, match=str(tmp_path)):
        await Control(listener, list, _set).serve()
    assert list(tmp_path.iterdir()) == []


async def test_a_client_that_does_not_read_is_closed_without_a_traceback(
    listener: socket.socket, tmp_path: Path
) -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    before = asyncio.all_tasks()
    task = asyncio.create_task(Control(listener, lambda: ["x" * 1000] * 10_000, _set).serve())
    await asyncio.sleep(0)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "socket"))
        client.sendall(b"get=1\n\n" * 3)
        await asyncio.sleep(0.1)
        # As at the end of the program: first serve(), then whatever still runs.
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        others = asyncio.all_tasks() - before
        assert others
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)
    assert problems == []


async def test_a_refused_request_shows_no_key(
    listener: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = asyncio.create_task(Control(listener, list, _set).serve())
    await asyncio.sleep(0)
    requests = ["private_key=5ec3e7\n", "set=1\nprivate_key=5ec3e7\n", "set=1 private_key=5ec3e7\n", "5ec3e7\n"]
    for request in requests:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "socket"))
        writer.write(f"{request}\n".encode())
        assert (await reader.readline()).startswith(b"errno=-")
        writer.close()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len([each for each in caplog.records if each.name != "asyncio"]) == len(requests)
    assert "5ec3e7" not in caplog.text


@pytest.mark.parametrize(
    "request_",
    [b"x" * 100_000 + b"\n\n", b"set=1\n" + b"x" * 100_000 + b"\n\n", b"set=1\n\xff\n\n", b"\xff\n\n", b"set=1\nx"],
    ids=["long first line", "long line", "not UTF-8", "first line not UTF-8", "cut off"],
)
async def test_invalid_input_ends_only_the_connection(listener: socket.socket, request_: bytes, tmp_path: Path) -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    task = asyncio.create_task(Control(listener, list, _set).serve())
    await asyncio.sleep(0.01)
    for data, answer in ((request_, b""), (b"get=1\n\n", b"errno=0\n\n")):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "socket"))
        writer.write(data)
        writer.write_eof()
        try:
            assert await reader.read() == answer
        except ConnectionResetError:  # it did not read all of what came
            assert answer == b""
        finally:
            writer.close()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert problems == []
