"""The echo example as a program of its own, against the kernel's network stack and the real ping."""

from __future__ import annotations

import json
import os
import pty
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

from .support import PATIENCE

ROOT = Path(__file__).parents[2]
NAME = "echotest0"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_option(request: pytest.FixtureRequest) -> list[str]:
    return ["--uvloop"] if request.param == "uvloop" else []


@pytest.fixture
def ipv6() -> Iterator[None]:
    """IPv6 for interfaces to come, whose addresses are usable at once: no search for duplicates."""
    settings = {"all/disable_ipv6": "0", "default/disable_ipv6": "0", "default/accept_dad": "0"}
    files = {Path("/proc/sys/net/ipv6/conf", name): value for name, value in settings.items()}
    before = {file: file.read_text() for file in files}
    for file, value in files.items():
        file.write_text(value)
    yield
    for file, value in before.items():
        file.write_text(value)


@pytest.fixture
def start(ipv6: None) -> Iterator[Start]:
    """Starts the example and returns when it is ready; kills it when the test is over."""
    started = []

    def start(*options: str, ready: bool = True, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples" / "echo.py"), *options],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        if ready:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("ready: "), (line, process.communicate())
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> list[dict[str, int]]:
    """Ends the example with a signal, cleanly, and returns what each queue carried."""
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert NAME not in {name for _, name in socket.if_nameindex()}
    lines = out.splitlines()
    assert all(line.startswith(f"queue {index}: ") for index, line in enumerate(lines))
    return [{what: int(count) for count, what in re.findall(r"(\d+) (\w+)", line)} for line in lines]


def ping(address: str, *prefix: str, count: int = 3, size: int = 56) -> str:
    # Until so many answers are there, for at most ten seconds. Without -w, the last one has two round trips to come.
    command = [*prefix, "ping", "-n", "-c", str(count), "-i", "0.01", "-w", "10", "-s", str(size), address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f" {count} received" in done.stdout
    return done.stdout


def echo_datagrams(family: socket.AddressFamily, address: str, flows: int = 1) -> None:
    """Sends a datagram from each of several ports to the echo port and waits for it to come back."""
    for flow in range(flows):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((address, 7))
            payload = os.urandom(flow * 40 % 1400)
            sock.send(payload)
            assert sock.recv(2000) == payload


@pytest.mark.parametrize("mode", ["tun", "tap"])
def test_echoes_on_several_queues(start: Start, loop_option: list[str], mode: str) -> None:
    process = start(NAME, "--mode", mode, "--queues", "4", *loop_option)
    for address in ("10.77.0.2", "10.77.0.254", "fd77::2", "fd77::ffff:1"):
        assert "ttl=64" in ping(address)
    echo_datagrams(socket.AF_INET, "10.77.0.7", flows=24)
    echo_datagrams(socket.AF_INET6, "fd77::7", flows=24)
    counts = finish(process)
    assert len(counts) == 4
    assert sum(count["answered"] for count in counts) >= 4 * 3 + 2 * 24
    assert all(count["read"] == count["answered"] + count["ignored"] for count in counts)
    assert sum(count["answered"] > 0 for count in counts) >= 2


def test_large_and_odd_pings(start: Start) -> None:
    process = start(NAME)
    for size in (0, 1, 1471, 1472):
        ping("10.77.0.2", size=size)
    finish(process)


def test_own_addresses(start: Start) -> None:
    process = start(NAME, "--address", "192.0.2.1/28", "--address", "2001:db8:7::1/120")
    ping("192.0.2.14")
    ping("2001:db8:7::ff")
    finish(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_cleanly_on_signal(start: Start, loop_option: list[str], number: int) -> None:
    counts = finish(start(NAME, "--queues", "2", *loop_option), number)
    assert [count["answered"] for count in counts] == [0, 0]


def test_interface_deleted_under_it(start: Start, loop_option: list[str]) -> None:
    process = start(NAME, "--queues", "3", *loop_option)
    subprocess.run(["ip", "link", "del", NAME], check=True)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err.startswith("echo.py: ")
    assert f"'{NAME}' is gone" in err
    assert err.count("\n") == 1
    assert out.count("queue ") == 3


def test_setup_failure_is_one_line(start: Start, loop_option: list[str]) -> None:
    process = start("lo", *loop_option, ready=False)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("echo.py: ")
    assert "'lo'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [["a-name-of-16-byte"], [NAME, "--queues", "0"], [NAME, "--address", "nonsense"]],
    ids=["name", "queues", "address"],
)
def test_wrong_arguments_are_explained(start: Start, options: list[str]) -> None:
    process = start(*options, ready=False)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (2, "")
    assert "usage: " in err
    assert "Traceback" not in err


def test_replies_that_meet_a_link_down_are_lost_and_later_ones_are_not(start: Start, loop_option: list[str]) -> None:
    process = start(NAME, *loop_option)
    process.send_signal(signal.SIGSTOP)  # so that requests wait in the kernel's ring
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(5):
            sock.sendto(b"lost", ("10.77.0.2", 7))
    subprocess.run(["ip", "link", "set", NAME, "down"], check=True)
    process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + PATIENCE
    while not _dropped_by_the_driver():  # what is written to an interface that is down counts there
        assert time.monotonic() < deadline
        time.sleep(0.02)
    subprocess.run(["ip", "link", "set", NAME, "up"], check=True)
    ping("10.77.0.2")
    [count] = finish(process)
    assert count["lost"] == 5
    assert count["answered"] == 3


def _dropped_by_the_driver() -> int:
    [link] = json.loads(subprocess.check_output(["ip", "-s", "-j", "link", "show", "dev", NAME]))
    dropped: int = link["stats64"]["rx"]["dropped"]
    return dropped


def test_host_keeps_its_address_when_the_kernel_looks_for_duplicates(start: Start) -> None:
    Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("1")
    process = start(NAME, "--mode", "tap")
    deadline = time.monotonic() + PATIENCE
    while subprocess.check_output(["ip", "-6", "addr", "show", "dev", NAME, "tentative"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ping("fd77::2")
    finish(process)


def test_in_another_namespace(start: Start, loop_option: list[str]) -> None:
    with subprocess.Popen(["unshare", "-n", "sleep", "60"]) as other:
        try:
            there = f"/proc/{other.pid}/ns/net"
            while os.readlink(there) == os.readlink("/proc/self/ns/net"):
                time.sleep(0.01)
            process = start(NAME, "--netns", there, *loop_option)
            assert NAME not in {name for _, name in socket.if_nameindex()}
            ping("10.77.0.2", "nsenter", "-t", str(other.pid), "-n")
            finish(process)
        finally:
            other.kill()


def test_one_line_on_a_terminal(start: Start, loop_option: list[str]) -> None:
    ours, theirs = pty.openpty()
    try:
        process = start(NAME, "--queues", "2", *loop_option, stdout=theirs, ready=False)
        assert _read_until(ours, r"q0 \d in 0 out \| q1 \d in 0 out").startswith(f"ready: {NAME}")
        ping("10.77.0.2")
        line = _read_until(ours, r"3 out")
        assert re.search(r"\r\x1b\[Kq0 \d in \d out \| q1 \d in \d out", line)
        assert "\n" not in line
        process.terminate()
        assert process.wait(10) == 0
    finally:
        os.close(ours)
        os.close(theirs)


def _read_until(fd: int, pattern: str) -> str:
    """The output of a program on its terminal, up to *pattern*. The terminal may deliver it in pieces."""
    shown = ""
    while not re.search(pattern, shown):
        assert select.select([fd], [], [], PATIENCE)[0], f"nothing but {shown!r}"
        shown += os.read(fd, 4096).decode()
    return shown
