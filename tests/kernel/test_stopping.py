"""The program of the page on stopping, with every way in which it may end."""

from __future__ import annotations

import signal
import socket
import time

import pytest

from .programs import program
from .support import ip, link, unique


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_option(request: pytest.FixtureRequest) -> list[str]:
    return ["--uvloop"] if request.param == "uvloop" else []


def is_there(name: str) -> bool:
    return name in {name for _, name in socket.if_nameindex()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(number: int, loop_option: list[str]) -> None:
    name = unique("stop")
    with program("stopping.py", name, *loop_option) as process:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for port in range(1000, 1020):
                sock.sendto(b"counted", ("10.77.0.2", port))
        while link(name)["stats64"]["tx"]["packets"] < 20:  # counted when they are read
            time.sleep(0.01)
        process.send_signal(number)
        assert process.ended() == (0, "stopped: 20 packets\n", "")
        assert not is_there(name)


def test_a_deleted_interface_is_told_in_one_line(loop_option: list[str]) -> None:
    name = unique("stop")
    with program("stopping.py", name, *loop_option) as process:
        ip("link", "del", name)
        status, out, err = process.ended()
        assert (status, out) == (1, "stopped: 0 packets\n")
        assert f"'{name}' is gone" in err
        assert err.count("\n") == 1


def test_the_kernel_closes_what_a_killed_program_had(loop_option: list[str]) -> None:
    name = unique("stop")
    with program("stopping.py", name, *loop_option) as process:
        assert is_there(name)
        process.kill()
        assert process.ended() == (-signal.SIGKILL, "", "")
        assert not is_there(name)
