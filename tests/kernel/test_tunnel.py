"""The tunnel example between two namespaces that a veth joins: pinged, loaded, restarted, attacked."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import support
from .support import PATIENCE, ip, iperf_server, link, named_netns, netns_exec

ROOT = Path(__file__).parents[2]
NAME, PORT = "vpn0", 51820
HELLO = b"\xff" * 8
OUTER = {"IPv4": ["192.0.2.1", "192.0.2.2"], "IPv6": ["[fd00:2::1]", "[fd00:2::2]"]}
INNER = ["10.88.0.1", "10.88.0.2"]
INNER6 = ["fd88::1", "fd88::2"]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def spaces() -> Iterator[list[str]]:
    """The namespaces of both ends. IPv6 is there, and the kernel sends nothing by itself but group reports."""
    with named_netns() as left, named_netns() as right:
        for netns in (left, right):
            support.inside(netns, turn_on_ipv6)
        ip("-n", left, "link", "add", "out", "type", "veth", "peer", "name", "out", "netns", right)
        for number, netns in enumerate((left, right)):
            for address, size in ((OUTER["IPv4"][number], 24), (OUTER["IPv6"][number].strip("[]"), 64)):
                ip("-n", netns, "address", "add", f"{address}/{size}", "dev", "out")
            ip("-n", netns, "link", "set", "out", "up")
        yield [left, right]


def turn_on_ipv6() -> None:
    for setting, value in {"accept_dad": 0, "router_solicitations": 0, "disable_ipv6": 0}.items():
        for scope in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{scope}/{setting}").write_text(str(value))


def turn_off_ipv6() -> None:
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "vpn.key"
    path.touch(0o600)
    path.write_bytes(os.urandom(32))
    return path


@pytest.fixture
def start(spaces: list[str], key: Path) -> Iterator[Start]:
    """Starts one end and returns when it is ready; kills it when the test is over."""
    started = []

    def start(
        side: int, *options: str, outer: str = "IPv4", port: int = PORT, families: int = 2, ready: bool = True
    ) -> subprocess.Popen[str]:
        command = netns_exec(spaces[side], sys.executable, str(ROOT / "examples" / "tunnel.py"), NAME, str(key))
        command += [f":{port}", f"{OUTER[outer][1 - side]}:{PORT}"]
        for address in [f"{INNER[side]}/24", f"{INNER6[side]}/64"][:families]:
            command += ["--address", address]
        command += options
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        if ready:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == f"ready: {NAME}\n", (line, process.communicate())
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_option(request: pytest.FixtureRequest) -> list[str]:
    return ["--uvloop"] if request.param == "uvloop" else []


def finish(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> None:
    """Ends it with a signal, cleanly."""
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")


def ping(netns: str, address: str, *options: str) -> None:
    """Returns when one has been answered; it tries until then, for as long as two ends may take to find each other."""
    command = netns_exec(netns, "ping", "-n", "-c", "1", "-W", "0.2", *options, address)
    end = time.monotonic() + PATIENCE
    while (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        assert time.monotonic() < end, done.stdout + done.stderr
        time.sleep(0.05)


def received(netns: str) -> int:
    """Packets that the tunnel has written to its interface."""
    packets: int = link(NAME, "-n", netns)["stats64"]["rx"]["packets"]
    return packets


def is_there(netns: str) -> bool:
    return NAME in {each["ifname"] for each in json.loads(ip("-n", netns, "-j", "link", "show"))}


# -- carrying ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", OUTER)
def test_both_families_cross(spaces: list[str], start: Start, outer: str) -> None:
    ends = [start(0, outer=outer), start(1, "--uvloop", outer=outer)]
    for side in (0, 1):
        ping(spaces[side], INNER[1 - side])
        ping(spaces[side], INNER6[1 - side])
        ping(spaces[side], INNER[1 - side], "-s", "1392", "-M", "do")  # as large as the interface takes
    for end in ends:
        finish(end)
    assert not any(map(is_there, spaces))


@pytest.mark.parametrize("options", [[], ["--no-offload"], ["--whole"]], ids=["all", "none", "whole"])
def test_streams_cross(spaces: list[str], start: Start, options: list[str]) -> None:
    """In both directions between an end on asyncio and one on uvloop."""
    start(0, *options)
    start(1, "--uvloop", *options)
    ping(spaces[0], INNER[1])
    for direction in ([], ["-R"]):
        for address in (INNER[1], INNER6[1]):
            with iperf_server(spaces[1]):  # it may still be busy with the end of the one before
                command = netns_exec(spaces[0], "iperf3", "-c", address, "-n", "8M", "-J", *direction)
                report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
                assert "error" not in report, report["error"]
                assert report["end"]["sum_sent"]["bytes"] >= 8 << 20
                # The client ends while some is under way, which the server does not count.
                assert report["end"]["sum_received"]["bytes"] >= 2 << 20


# -- one end without the other -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [0, 1])
def test_either_end_restarts(spaces: list[str], start: Start, side: int) -> None:
    ends = [start(0), start(1)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        ping(spaces[0], INNER[1])
        ends[side].send_signal(number)
        ends[side].wait(10)
        ends[side] = start(side)
    ping(spaces[0], INNER[1])
    ping(spaces[1], INNER[0])
    for end in ends:
        finish(end)


def test_a_peer_that_is_not_there_yet(spaces: list[str], start: Start, loop_option: list[str]) -> None:
    early = start(0, *loop_option)
    command = netns_exec(spaces[0], "ping", "-n", "-c", "3", "-i", "0.2", "-W", "0.2", INNER[1])
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    start(1, *loop_option)
    ping(spaces[0], INNER[1])
    finish(early)


def test_no_route_to_the_peer_for_a_while(spaces: list[str], start: Start, loop_option: list[str]) -> None:
    ip("-n", spaces[0], "link", "set", "out", "down")
    one = start(0, *loop_option)
    start(1, *loop_option)
    time.sleep(0.7)  # it says hello meanwhile
    ip("-n", spaces[0], "link", "set", "out", "up")
    ping(spaces[0], INNER[1])
    ip("-n", spaces[0], "route", "del", "192.0.2.0/24", "dev", "out")
    command = netns_exec(spaces[0], "ping", "-n", "-c", "3", "-i", "0.2", "-W", "0.2", INNER[1])
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    ip("-n", spaces[0], "route", "add", "192.0.2.0/24", "dev", "out")
    ping(spaces[0], INNER[1])
    finish(one)


# -- datagrams that are not from the peer ------------------------------------------------------------------------------


@contextlib.contextmanager
def recorder(netns: str) -> Iterator[Callable[[], list[bytes]]]:
    """Gives the datagrams that came in over the veth since the last call."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        sock.bind(("out", 0x0800))
        return sock

    def take() -> list[bytes]:
        packets = []
        while select.select([sock], [], [], 0.1)[0]:
            packet = sock.recv(65535)
            if packet[9] == socket.IPPROTO_UDP:
                packets.append(packet[28:])
        return packets

    with support.inside(netns, make) as sock:
        yield take


def test_replayed_forged_and_cut_datagrams_are_dropped(spaces: list[str], start: Start, loop_option: list[str]) -> None:
    for netns in spaces:
        support.inside(netns, turn_off_ipv6)  # the kernel would send by itself
    ends = [start(side, *loop_option, families=1) for side in (0, 1)]
    make = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with recorder(spaces[1]) as take, support.inside(spaces[0], make) as attacker:

        def attack(datagrams: list[bytes]) -> None:
            """None of these becomes a packet, and the tunnel works on."""
            before = received(spaces[1])
            for datagram in datagrams:
                attacker.sendto(datagram, (OUTER["IPv4"][1], PORT))
            time.sleep(0.2)
            assert received(spaces[1]) == before
            ping(spaces[0], INNER[1])
            assert received(spaces[1]) > before
            assert ends[1].poll() is None

        ping(spaces[0], INNER[1])
        # A packet that came before this end knew its peer was not opened, and would not be opened twice.
        recorded = [each for each in take() if each.startswith(HELLO)]
        for _ in range(3):
            ping(spaces[0], INNER[1])
        recorded += take()
        assert sum(not each.startswith(HELLO) for each in recorded) >= 3
        patience = time.monotonic() + PATIENCE
        while sum(each.startswith(HELLO) for each in recorded) < 3:  # one comes every half a second
            assert time.monotonic() < patience
            recorded += take()
        attack(recorded)
        attack(
            [each[:at] + bytes([each[at] ^ 0x80]) + each[at + 1 :] for each in recorded[-5:] for at in range(len(each))]
        )
        attack(
            [each[:size] for each in recorded[-5:] for size in range(len(each))] + [each + b"\0" for each in recorded]
        )
        attack([os.urandom(size) for size in range(100)])
        for side in (1, 0):
            finish(ends[side])
            ends[side] = start(side, *loop_option, families=1)
            recorded += [each for each in take() if each.startswith(HELLO)]
            for datagram in recorded:  # before the peer was heard
                attacker.sendto(datagram, (OUTER["IPv4"][1], PORT))
            ping(spaces[0], INNER[1])
            attack(recorded)


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(spaces: list[str], start: Start, loop_option: list[str], number: signal.Signals) -> None:
    finish(start(0, *loop_option), number)
    assert not is_there(spaces[0])


def test_it_says_that_its_interface_was_deleted(spaces: list[str], start: Start, loop_option: list[str]) -> None:
    end = start(0, *loop_option)
    ip("-n", spaces[0], "link", "del", NAME)
    out, err = end.communicate(timeout=PATIENCE)
    assert (end.returncode, out) == (1, "")
    assert err.count("\n") == 1 and f"interface '{NAME}' is gone" in err


def test_an_interface_that_is_down_for_a_while(spaces: list[str], start: Start, loop_option: list[str]) -> None:
    ends = [start(0, *loop_option), start(1, *loop_option)]
    ping(spaces[0], INNER[1])
    ip("-n", spaces[1], "link", "set", NAME, "down")
    command = netns_exec(spaces[0], "ping", "-n", "-c", "3", "-i", "0.2", "-W", "0.2", INNER[1])
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    ip("-n", spaces[1], "link", "set", NAME, "up")
    ping(spaces[0], INNER[1])
    for end in ends:
        finish(end)


@pytest.mark.parametrize(("port", "complaint"), [(PORT, f"bind *:{PORT}"), (PORT + 1, NAME)])
def test_a_second_one_is_refused(start: Start, port: int, complaint: str) -> None:
    start(0)
    second = start(0, port=port, ready=False)
    out, err = second.communicate(timeout=PATIENCE)
    assert (second.returncode, out) == (1, "")
    assert err.count("\n") == 1 and complaint in err


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602, 0o601])
def test_a_key_that_others_can_read_or_change_is_refused(spaces: list[str], start: Start, key: Path, mode: int) -> None:
    key.chmod(mode)
    end = start(0, ready=False)
    out, err = end.communicate(timeout=PATIENCE)
    assert (end.returncode, out) == (2, "")
    assert str(key) in err and f"mode {mode:o}" in err and "chmod 600" in err
    assert not is_there(spaces[0])


@pytest.mark.parametrize("size", [0, 31, 33, 1000])
def test_a_key_of_another_size_is_refused(spaces: list[str], start: Start, key: Path, size: int) -> None:
    key.write_bytes(bytes(size))
    end = start(0, ready=False)
    _, err = end.communicate(timeout=PATIENCE)
    assert end.returncode == 2 and f"not {size} " in err
    assert not is_there(spaces[0])


def test_a_key_file_that_is_not_there(start: Start, key: Path) -> None:
    key.unlink()
    end = start(0, ready=False)
    _, err = end.communicate(timeout=PATIENCE)
    assert end.returncode == 1
    assert err.count("\n") == 1 and f"No such file or directory: '{key}'" in err
