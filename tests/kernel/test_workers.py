"""The example with one unprivileged process for each queue: pinged, robbed of a worker, and ended."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .support import PATIENCE, ip, needs_root, tun_info

ROOT = Path(__file__).parents[2]
NAME = "worktest0"
ADDRESSES = [f"10.77.0.{number}" for number in range(2, 14)]

pytestmark = needs_root


class Example:
    """The running example, line by line."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples" / "workers.py"), NAME, "--address", "10.77.0.1/24", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )
        self.lines: list[str] = []
        self._rest = ""

    def line(self, pattern: str) -> re.Match[str]:
        """The next line, which must be of this form."""
        assert self.process.stdout is not None
        # Read past the file's own buffer: select() knows nothing of a line that waits there.
        fd = self.process.stdout.fileno()
        while "\n" not in self._rest:
            assert select.select([fd], [], [], PATIENCE)[0], f"no line {pattern!r} after {self.lines}"
            more = os.read(fd, 4096).decode()
            assert more, (self.lines, self.wait())
            self._rest += more
        line, _, self._rest = self._rest.partition("\n")
        self.lines.append(line)
        match = re.fullmatch(pattern, line)
        assert match, (self.lines, self.process.poll())
        return match

    def workers(self, count: int) -> dict[int, int]:
        """The processes that become ready, by number of the worker."""
        ready = [self.line(r"worker (\d+): process (\d+) is ready") for _ in range(count)]
        return {int(each[1]): int(each[2]) for each in ready}

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Ends it with a signal, and returns its status and its complaints."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err


@pytest.fixture
def start() -> Iterator[Callable[..., Example]]:
    started: list[Example] = []

    def start(*options: str) -> Example:
        started.append(Example(*options))
        return started[-1]

    yield start
    for example in started:
        example.process.kill()
        example.process.communicate()
    wait_until(lambda: NAME not in {name for _, name in socket.if_nameindex()})


def wait_until(done: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status(process: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


def runs(process: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the second while it is read
        return status(process)["State"][0] != "Z"
    return False


def queues() -> tuple[int, int]:
    """Enabled and disabled ones, as ip(8) has them."""
    info = tun_info(NAME)
    return info["numqueues"], info["numdisabled"]


def answered(address: str, seconds: int = 2) -> bool:
    command = ["ping", "-n", "-c", "1", "-W", str(seconds), address]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def all_answered() -> bool:
    return all(answered(address, 1) for address in ADDRESSES)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_answer_without_privileges(start: Callable[..., Example], number: int) -> None:
    example = start("--workers", "3")
    example.line(rf"{NAME}: 3 workers, 10\.77\.0\.1/24")
    workers = example.workers(3)
    assert sorted(workers) == [0, 1, 2]
    assert queues() == (3, 1)
    nobody = pwd.getpwnam("nobody")
    for process in workers.values():
        found = status(process)
        assert found["Uid"] == [str(nobody.pw_uid)] * 4 and found["Gid"] == [str(nobody.pw_gid)] * 4
        assert found["Groups"] == []
        assert {int(found[kind][0], 16) for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}
        fds = [os.readlink(each) for each in Path(f"/proc/{process}/fd").iterdir()]
        assert fds.count("/dev/net/tun") == 1
    parent = [os.readlink(each) for each in Path(f"/proc/{example.process.pid}/fd").iterdir()]
    assert parent.count("/dev/net/tun") == 1
    assert all_answered()
    assert example.end(number) == (0, "")
    assert NAME not in ip("link")
    assert not any(map(runs, workers.values()))


def test_a_worker_that_dies_takes_only_its_queue_along(start: Callable[..., Example]) -> None:
    example = start("--workers", "3")
    example.line(r".* 3 workers, .*")
    workers = example.workers(3)
    assert all_answered()
    for left, number in ((2, 1), (1, 0)):
        os.kill(workers[number], signal.SIGKILL)
        example.line(rf"worker {number}: process {workers[number]} was killed by SIGKILL")
        wait_until(lambda left=left: queues() == (left, 1))  # type: ignore[misc]
        wait_until(all_answered, 15)
    assert example.end() == (0, "")
    assert NAME not in ip("link")
    assert not any(map(runs, workers.values()))


def test_a_dead_worker_is_replaced(start: Callable[..., Example]) -> None:
    example = start("--workers", "2", "--replace")
    example.line(r".* 2 workers, .*")
    workers = example.workers(2)
    os.kill(workers[1], signal.SIGKILL)
    example.line(rf"worker 1: process {workers[1]} was killed by SIGKILL")
    (new,) = example.workers(1).items()
    assert new[0] == 1 and new[1] not in workers.values()
    assert queues() == (2, 1)
    wait_until(all_answered, 15)
    assert example.end() == (0, "")
    assert not any(map(runs, (*workers.values(), new[1])))


def test_it_ends_when_no_worker_is_left(start: Callable[..., Example]) -> None:
    example = start("--workers", "1")
    example.line(r".* 1 workers, .*")
    os.kill(example.workers(1)[0], signal.SIGKILL)
    assert example.wait() == (1, "all workers have ended\n")
    assert NAME not in ip("link")


def test_workers_do_not_outlive_a_parent_that_was_killed(start: Callable[..., Example]) -> None:
    example = start("--workers", "2")
    example.line(r".* 2 workers, .*")
    workers = example.workers(2)
    example.process.kill()
    wait_until(lambda: not any(map(runs, workers.values())))
    wait_until(lambda: NAME not in ip("link"))


def test_stopped_while_workers_start(start: Callable[..., Example]) -> None:
    example = start("--workers", "4")
    example.line(r".* 4 workers, .*")
    assert example.end() == (0, "")
    assert NAME not in ip("link")


@pytest.mark.parametrize("options", [[], ["--replace"]])
def test_interface_deleted_under_it(start: Callable[..., Example], options: list[str]) -> None:
    example = start("--workers", "2", *options)
    example.line(r".* 2 workers, .*")
    workers = example.workers(2)
    ip("link", "del", NAME)
    returned, err = example.wait()
    assert (returned, err.count("\n")) == (1, 1)
    assert err.startswith("workers.py: ") and f"'{NAME}' is gone" in err
    assert not any(map(runs, workers.values()))


def test_setup_failures_are_one_line(start: Callable[..., Example]) -> None:
    assert start("--user", "nobody-at-all").wait()[0] == 2
    ip("link", "add", NAME, "type", "bridge")
    try:
        returned, err = start().wait()
    finally:
        ip("link", "del", NAME)
    assert (returned, err.count("\n")) == (1, 1)
    assert err.startswith("workers.py: ") and NAME in err
