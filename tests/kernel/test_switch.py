"""The switch example between three namespaces: pinged, loaded, and robbed of its ports."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from switch.control import Control

from aiotuntap import SetupError

from ..switch.test_ports import new_switch
from .support import (
    PATIENCE,
    ip,
    iperf_server,
    is_root,
    link,
    make_room,
    named_netns,
    netns_exec,
    socket_in,
    tap,
    transfer,
)

ROOT = Path(__file__).parents[2]
PORT = "switch0"
BROADCAST, MULTICAST = b"\xff" * 6, bytes.fromhex("01005e000001")


class Example:
    """The running example."""

    #: The namespace of its port, where it has one only.
    station = ""

    def __init__(self, *arguments: str) -> None:
        self.ports = [each for each in arguments if each.endswith(PORT) and "=" not in each]
        self.process = self.popen([sys.executable, "-m", "examples.switch", *arguments])

    @staticmethod
    def popen(command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True)

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the other command on it."""
        command = [sys.executable, "-m", "examples.switch.ctl", "--switch", str(self.process.pid), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    def ask(self, *arguments: str) -> Any:
        """The JSON output of the ``ctl`` command."""
        run = self.ctl("--json", *arguments)
        assert (run.returncode, run.stderr) == (0, "")
        return json.loads(run.stdout)

    def line(self, file: Any) -> str:
        """The next line of its output or of its complaints, unless it takes too long."""
        # Byte by byte and past the file's own buffer: select() knows nothing of a line that waits there.
        line = ""
        while not line.endswith("\n"):
            assert select.select([file], [], [], PATIENCE)[0], f"nothing but {line!r}"
            more = os.read(file.fileno(), 1).decode()
            assert more, (line, self.wait())
            line += more
        return line

    def cpu_time(self) -> float:
        """Seconds of CPU that it has used so far."""
        return time.clock_gettime(~self.process.pid << 3 | 2)  # as clock_getcpuclockid(3) builds the number

    def idle_share(self, seconds: float = 0.3) -> float:
        """The share of one CPU, 0 to 1, that it uses while there is nothing to do."""
        before = self.cpu_time()
        time.sleep(seconds)
        return (self.cpu_time() - before) / seconds

    def is_idle(self) -> bool:
        """Whether it uses hardly any CPU. It looks up to three times: in a guest, the clock may advance by 10 ms at once."""
        return any(self.idle_share() < 0.1 for _ in range(3))

    def stop(self) -> None:
        """Ends it, so that it leaves nothing behind."""
        self.process.terminate()
        try:
            self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def wait(self) -> tuple[int, str, str]:
        """Its status, what it still printed, and its complaints."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err

    def end(self, number: int = signal.SIGTERM) -> dict[str, dict[str, int]]:
        """Ends it with a signal, cleanly. Returns the frames of each port: in, out, dropped."""
        self.process.send_signal(number)
        status, out, err = self.wait()
        assert (status, err) == (0, "")
        found = re.findall(r"^port (\S+): (\d+) in, (\d+) out, (\d+) dropped$", out, re.MULTILINE)
        assert [port for port, *_ in found] == self.ports and len(found) == out.count("\n")
        for port in self.ports:
            netns, _, name = port.rpartition(":")
            assert name not in ip(*(["-n", Path(netns).name] if netns else []), "link")
        return {port: dict(zip(("in", "out", "dropped"), map(int, counts), strict=True)) for port, *counts in found}


Start = Callable[..., Example]


@contextlib.contextmanager
def starter() -> Iterator[Start]:
    """Starts the example and returns when it is ready; kills it at the end of the block."""
    started: list[Example] = []

    def start(*arguments: str, ready: bool = True) -> Example:
        example = Example(*arguments)
        started.append(example)
        if ready:
            assert example.line(example.process.stdout) == f"ready: {' '.join(example.ports)}\n"
        return example

    try:
        yield start
    finally:
        for example in started:
            example.stop()


@pytest.fixture
def start() -> Iterator[Start]:
    with starter() as start:
        yield start


@contextlib.contextmanager
def three_namespaces() -> Iterator[list[str]]:
    """The kernel sends nothing by itself in them."""
    with named_netns() as one, named_netns() as two, named_netns() as three:
        yield [one, two, three]


@pytest.fixture
def spaces() -> Iterator[list[str]]:
    with three_namespaces() as spaces:
        yield spaces


def ports(spaces: list[str]) -> list[str]:
    return [f"{netns}:{PORT}" for netns in spaces]


def give_addresses(spaces: list[str]) -> None:
    for number, netns in enumerate(spaces, 1):
        ip("-n", netns, "address", "add", f"10.30.0.{number}/24", "dev", PORT)


def ping(netns: str, address: str) -> None:
    # One at a time: after its first answer ping waits for twice as long as that one took, whatever -W says.
    command = netns_exec(netns, "ping", "-n", "-c", "1", "-W", "5", address)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "1 received" in done.stdout and "wrong" not in done.stdout, done.stdout + done.stderr


def iperf(netns: str, address: str, *options: str) -> int:
    """Sends over TCP, and returns how many bytes arrived."""
    command = netns_exec(netns, "iperf3", "-c", address, "-J", *options)
    for _ in range(50):  # after each client, a server listens anew, and refuses another one until then
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        report = json.loads(done.stdout)
        if "unable to connect" not in report.get("error", ""):
            break
        time.sleep(0.1)
    assert "error" not in report, report["error"]
    received: int = report["end"]["sum_received"]["bytes"]
    return received


# -- stations with a packet socket -------------------------------------------------------------------------------------

_EXPERIMENTAL = b"\x88\xb5"
_ETH_P_ALL, _OUTGOING = 3, 4
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_AUXDATA = struct.Struct("IIIHHHH")
_VLAN_VALID = 1 << 4
_numbers = itertools.count()


def frame(destination: bytes, source: bytes, vlan: int | None = None) -> bytes:
    """A frame unlike any other."""
    tag = b"" if vlan is None else b"\x81\0" + vlan.to_bytes(2)
    return destination + source + tag + _EXPERIMENTAL + next(_numbers).to_bytes(4) + bytes(42)


class Station:
    """Someone in a namespace who sends frames and sees all that arrive."""

    def __init__(self, netns: str) -> None:
        self.socket = socket_in(netns, socket.AF_PACKET, socket.SOCK_RAW)
        self.socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self.socket.bind((PORT, _ETH_P_ALL))

    def send(self, frame: bytes) -> None:
        self.socket.send(frame)

    def receive(self) -> bytes:
        """The next frame that arrives, if it is one of ours."""
        while True:
            data, extra, _, address = self.socket.recvmsg(65536, socket.CMSG_SPACE(_AUXDATA.size))
            for _, _, value in extra:
                status, *_, tag, ethertype = _AUXDATA.unpack(value)
                if status & _VLAN_VALID:  # the kernel takes a tag out of the frame on arrival, known to it or not
                    data = data[:12] + ethertype.to_bytes(2) + tag.to_bytes(2) + data[12:]
            if address[2] != _OUTGOING and _EXPERIMENTAL in (data[12:14], data[16:18]):
                return data

    def receive_until(self, last: bytes) -> list[bytes]:
        got = []
        while (data := self.receive()) != last:
            got.append(data)
        return got


@contextlib.contextmanager
def stations_in(spaces: list[str]) -> Iterator[list[Station]]:
    stations = [Station(netns) for netns in spaces]
    with contextlib.ExitStack() as stack:
        for station in stations:
            stack.enter_context(station.socket)
        yield stations


@pytest.fixture(scope="module")
def stations() -> Iterator[list[Station]]:
    """One at each port of a switch that is running. Each test has addresses of its own."""
    with three_namespaces() as spaces, starter() as start:
        start(*ports(spaces))
        with stations_in(spaces) as stations:
            yield stations


def new_mac() -> bytes:
    return b"\x02\x51" + next(_numbers).to_bytes(4)


def reaches(sender: Station, sent: bytes, *others: Station) -> list[bool]:
    """Sends a frame and tells who of *others* received it.

    A broadcast from the same station follows it. As frames stay in order, whoever received that one and not the frame
    will never receive the frame.
    """
    tagged = sent[12:14] == b"\x81\0"
    last = frame(BROADCAST, sent[6:12], int.from_bytes(sent[14:16]) if tagged else None)
    sender.send(sent)
    sender.send(last)
    received = [other.receive_until(last) for other in others]
    assert all(got in ([], [sent]) for got in received), received
    return [bool(got) for got in received]


# -- traffic of real stations ------------------------------------------------------------------------------------------


def test_all_stations_ping_each_other(start: Start, spaces: list[str]) -> None:
    settings = {"all/disable_ipv6": 0, "default/disable_ipv6": 0, "default/accept_dad": 0}  # no search for duplicates
    for netns in spaces:
        command = "; ".join(f"echo {value} > /proc/sys/net/ipv6/conf/{name}" for name, value in settings.items())
        subprocess.run(netns_exec(netns, "sh", "-c", command), check=True)
    example = start(*ports(spaces))
    give_addresses(spaces)
    for number, netns in enumerate(spaces, 1):
        ip("-n", netns, "address", "add", f"fd30::{number}/64", "dev", PORT)
    macs = [link(PORT, "-n", netns)["address"] for netns in spaces]
    for here, netns in enumerate(spaces):
        for there in range(3):
            if there != here:
                for address in (f"10.30.0.{there + 1}", f"fd30::{there + 1}"):
                    ping(netns, address)
                    [neighbour] = json.loads(ip("-n", netns, "-j", "neigh", "show", address, "dev", PORT))
                    assert neighbour["lladdr"] == macs[there]
    carried = example.end()
    assert all(each["in"] > 10 and each["out"] > 10 and each["dropped"] == 0 for each in carried.values())


def test_tcp_passes_in_super_frames(start: Start, spaces: list[str]) -> None:
    example = start(*ports(spaces))
    give_addresses(spaces)
    with iperf_server(spaces[1]):
        # It counts what had arrived when the sender was done.
        assert iperf(spaces[0], "10.30.0.2", "-n", "300M") > 270 << 20
        assert iperf(spaces[0], "10.30.0.2", "-n", "100M", "-R") > 90 << 20
    sent, received, elsewhere = (link(PORT, "-n", netns)["stats64"] for netns in spaces)
    # The kernel's rx is what the switch wrote, and tx is what it read.
    for carried in (sent["tx"], received["rx"]):
        assert carried["bytes"] / carried["packets"] > 5000
    assert elsewhere["rx"]["packets"] < 100
    assert all(each["dropped"] == 0 for each in example.end().values())


def test_every_byte_arrives(start: Start, spaces: list[str]) -> None:
    start(*ports(spaces))
    give_addresses(spaces)
    payload = os.urandom(1 << 20) * 8
    received = transfer(spaces[0], spaces[1], "10.30.0.2", payload)
    assert hashlib.sha256(received).digest() == hashlib.sha256(payload).digest()


# -- where frames go ---------------------------------------------------------------------------------------------------


def test_flood_learn_and_move(stations: list[Station]) -> None:
    one, two, three = stations
    mover, other = new_mac(), new_mac()
    for destination in (BROADCAST, MULTICAST, mover):
        assert reaches(one, frame(destination, other), two, three) == [True, True]
    assert reaches(two, frame(BROADCAST, mover), one, three) == [True, True]
    assert reaches(one, frame(mover, other), two, three) == [True, False]
    assert reaches(three, frame(BROADCAST, mover), one, two) == [True, True]
    assert reaches(one, frame(mover, other), two, three) == [False, True]
    assert reaches(three, frame(other, mover), one, two) == [True, False]


def test_nothing_comes_back(stations: list[Station]) -> None:
    one, two, three = stations
    here, unknown = new_mac(), new_mac()
    for sent in (frame(BROADCAST, here), frame(unknown, here)):
        assert reaches(one, sent, two, three) == [True, True]
    assert reaches(one, frame(here, new_mac()), two, three) == [False, False]
    last = frame(BROADCAST, new_mac())
    two.send(last)
    assert one.receive_until(last) == three.receive_until(last) == []


def test_a_multicast_source_is_not_learned(stations: list[Station]) -> None:
    one, two, three = stations
    assert reaches(one, frame(BROADCAST, MULTICAST), two, three) == [True, True]
    assert reaches(two, frame(MULTICAST, new_mac()), one, three) == [True, True]


def test_vlan_tags_stay_and_vlans_are_learned_apart(stations: list[Station]) -> None:
    one, two, three = stations
    twice, other = new_mac(), new_mac()
    assert reaches(one, frame(BROADCAST, twice, vlan=7), two, three) == [True, True]
    assert reaches(three, frame(BROADCAST, twice, vlan=8), one, two) == [True, True]
    assert reaches(two, frame(twice, other, vlan=7), one, three) == [True, False]
    assert reaches(two, frame(twice, other, vlan=0xE007), one, three) == [True, False]  # with a priority
    assert reaches(two, frame(twice, other, vlan=8), one, three) == [False, True]
    assert reaches(two, frame(twice, other, vlan=9), one, three) == [True, True]
    assert reaches(two, frame(twice, other), one, three) == [True, True]
    two.send(BROADCAST + other + b"\x81\0")  # a tag that is cut off: no harm done
    assert reaches(two, frame(twice, other, vlan=7), one, three) == [True, False]


def test_age_and_limit(start: Start, spaces: list[str]) -> None:
    example = start(*ports(spaces), "--age", "0.4", "--limit", "3")
    known, other = new_mac(), new_mac()
    with stations_in(spaces) as (one, two, three):
        before = time.monotonic()
        assert reaches(two, frame(BROADCAST, known), one, three) == [True, True]
        reached = reaches(one, frame(known, other), two, three)
        assert reached == [True, False] or time.monotonic() - before > 0.4
        time.sleep(0.4)
        assert reaches(one, frame(known, other), two, three) == [True, True]
        assert reaches(two, frame(BROADCAST, known), one, three) == [True, True]
        # A port that brings more than its share makes room by itself.
        for _ in range(9):
            assert reaches(three, frame(BROADCAST, new_mac()), one, two) == [True, True]
        assert example.ask("stats")["evicted"] > 5 and example.ask("stats")["stations"] == 3


# -- ports that fail ---------------------------------------------------------------------------------------------------


def test_port_deleted_under_traffic(start: Start, spaces: list[str]) -> None:
    example = start(*ports(spaces))
    give_addresses(spaces)
    ping(spaces[0], "10.30.0.3")
    gone = f"port {spaces[2]}:{PORT} is gone\n"
    towards_it = netns_exec(spaces[0], "ping", "-q", "-i", "0.002", "10.30.0.3")
    with iperf_server(spaces[1]), subprocess.Popen(towards_it, stdout=subprocess.DEVNULL) as pinging:
        try:
            deleting = threading.Timer(0.4, ip, ("-n", spaces[2], "link", "del", PORT))
            deleting.start()
            assert iperf(spaces[0], "10.30.0.2", "-t", "1") > 10 << 20
            deleting.join()
            assert example.line(example.process.stderr) == gone
        finally:
            pinging.kill()
    ping(spaces[1], "10.30.0.1")
    assert example.is_idle()
    assert example.process.poll() is None
    example.end()


def test_ends_when_no_port_is_left(start: Start, spaces: list[str]) -> None:
    example = start(*ports(spaces))
    for netns in spaces:
        ip("-n", netns, "link", "del", PORT)
    status, out, err = example.wait()
    assert (status, out.count("port ")) == (1, 3)
    assert sorted(err.splitlines()) == [
        *sorted(f"port {port} is gone" for port in ports(spaces)),
        "python -m examples.switch: all ports are gone",
    ]


def test_port_down_and_up_again(start: Start, spaces: list[str]) -> None:
    example = start(*ports(spaces))
    give_addresses(spaces)
    ping(spaces[0], "10.30.0.3")
    ip("-n", spaces[2], "link", "set", PORT, "down")
    station = Station(spaces[0])
    with station.socket:
        for _ in range(5):
            station.send(frame(BROADCAST, new_mac()))
    ping(spaces[0], "10.30.0.2")
    ping(spaces[1], "10.30.0.1")
    ip("-n", spaces[2], "link", "set", PORT, "up")
    for netns in spaces[:2]:
        ping(netns, "10.30.0.3")
    carried = example.end()
    assert [carried[port]["dropped"] >= 5 for port in ports(spaces)] == [False, False, True]


# -- beginning and end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly_under_traffic(start: Start, spaces: list[str], number: int) -> None:
    example = start(*ports(spaces))
    give_addresses(spaces)
    with iperf_server(spaces[1]):
        client = netns_exec(spaces[0], "iperf3", "-c", "10.30.0.2", "-t", "20")
        with subprocess.Popen(client, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sending:
            try:
                while link(PORT, "-n", spaces[1])["stats64"]["rx"]["bytes"] < 1 << 20:
                    time.sleep(0.02)
                example.end(number)
            finally:
                sending.kill()


def test_namespaces_by_path_and_without(start: Start, spaces: list[str]) -> None:
    example = start(f"/run/netns/{spaces[0]}:{PORT}", PORT)
    ip("-n", spaces[0], "address", "add", "10.30.0.1/24", "dev", PORT)
    ip("address", "add", "10.30.0.9/24", "dev", PORT)
    ping(spaces[0], "10.30.0.9")
    example.end()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a-name-of-16-byte"],
        [f":{PORT}"],
        [PORT, "--limit", "0"],
        [PORT, "--age", "-1"],
        [PORT, "--flood-limit", "0"],
        [PORT, "--flood-limit", "nan"],
        [PORT, "--flood-limit", "inf"],
        [PORT, "--age", "nan"],
        [PORT, "--hold", "nan"],
        [PORT, "--static", "ff:ff:ff:ff:ff:ff=x"],
        [PORT, "--static", "02:00:00:00:00:01/4096=x"],
        [PORT, "--capture", "other=file"],
        [PORT, "--capture", "file"],
    ],
    ids=[
        "nothing",
        "name",
        "netns",
        "limit",
        "age",
        "flood",
        "flood nan",
        "flood inf",
        "age nan",
        "hold nan",
        "group",
        "vlan",
        "capture",
        "no file",
    ],
)
def test_wrong_arguments_are_explained(start: Start, arguments: list[str]) -> None:
    status, out, err = start(*arguments, ready=False).wait()
    assert (status, out) == (2, "")
    assert err.startswith("usage: ")
    assert err.count("examples.switch: error: ") == 1
    assert "Traceback" not in err


def test_setup_failure_is_one_line_and_leaves_nothing(start: Start, spaces: list[str]) -> None:
    first, second, _ = ports(spaces)
    start(second)
    for refused, told in (("no-such-netns:port0", "'no-such-netns'"), (second, f"'{PORT}'")):
        status, out, err = start(first, refused, ready=False).wait()
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("python -m examples.switch: ")
        assert told in err
        assert PORT not in ip("-n", spaces[0], "link")


# -- looking into it, and changing it ----------------------------------------------------------------------------------


def test_ports_come_and_go_while_it_runs(start: Start, spaces: list[str], tmp_path: Path) -> None:
    one, two, three = ports(spaces)
    example = start(one, two)
    capture = tmp_path / "three.pcapng"
    give_addresses(spaces[:2])
    ping(spaces[0], "10.30.0.2")
    assert example.ask("add", three, "--capture", str(capture)) == three
    ip("-n", spaces[2], "address", "add", "10.30.0.3/24", "dev", PORT)
    ping(spaces[0], "10.30.0.3")
    rows = {row["name"]: row for row in example.ask("ports")}
    assert list(rows) == [one, two, three]
    assert all(row["in"] > 0 and row["out"] > 0 and (row["dropped"], row["blocked"]) == (0, 0) for row in rows.values())
    macs = {link(PORT, "-n", netns)["address"]: port for netns, port in zip(spaces, (one, two, three), strict=True)}
    table = example.ask("table")
    assert {row["mac"]: row["port"] for row in table} == macs
    assert all(row["silent"] < 60 and row["vlan"] == 0 and not row["static"] for row in table)
    assert example.ask("remove", three) == three
    assert PORT not in ip("-n", spaces[2], "link")
    ping(spaces[0], "10.30.0.2")
    assert len(example.ask("table")) == 2 and len(example.ask("ports")) == 2
    assert b"\x08\x06\0\x01" in capture.read_bytes(), "an ARP packet"
    assert example.ask("stats")["in"] > 4
    assert example.process.poll() is None
    assert example.ask("remove", one) == one and example.ask("remove", two) == two
    assert example.ask("add", three) == three, "what was emptied by hand goes on"
    example.process.terminate()
    assert example.wait()[::2] == (0, "")


def test_ctl_as_text(start: Start, spaces: list[str]) -> None:
    one, two, _ = ports(spaces)
    example = start(one, two, "--static", f"02:00:00:00:00:01/7={two}")
    give_addresses(spaces[:2])
    ping(spaces[0], "10.30.0.2")
    assert re.fullmatch(
        rf"port +in +out +dropped +blocked\n{one} +\d+ +\d+ +0 +no\n{two} .*\n", example.ctl("ports").stdout
    )
    assert f"02:00:00:00:00:01  7     {two}  static\n" in example.ctl("table").stdout
    assert re.search(r"^stations +2$", example.ctl("stats").stdout, re.MULTILINE)
    for wrong in (("remove", "no-such"), ("add", one), ("add", "no-such-netns:x"), ("add", "a-name-of-16-byte")):
        run = example.ctl(*wrong)
        assert run.returncode == 1 and run.stdout == "" and run.stderr.count("\n") == 1, run.stderr
    ping(spaces[0], "10.30.0.2")


def test_the_socket_is_its_owners_alone_and_goes_with_the_switch(
    start: Start, spaces: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "control"
    example = start(ports(spaces)[0], "--control", str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    command = [sys.executable, "-m", "examples.switch.ctl", "--switch", str(path), "ports", "--json"]
    assert len(json.loads(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout)) == 1
    if is_root():
        path.chmod(0o666)
        path.parent.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as stranger:
            code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); print(s.recv(1))"
            every = [each for each in path.parents if not each.stat().st_mode & 1]
            if not every:
                run = subprocess.run(
                    ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", code],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert run.stdout == "b''\n" or "PermissionError" in run.stderr, run.stderr
            stranger.connect(str(path))
    example.end()
    assert not path.exists()


def test_hostile_requests_are_answered_and_harm_nobody(start: Start, spaces: list[str], tmp_path: Path) -> None:
    path = tmp_path / "control"
    example = start(*ports(spaces)[:2], "--control", str(path))
    give_addresses(spaces[:2])
    requests = [
        b"\n", b"null\n", b"[]\n", b"{}\n", b'{"command": 7}\n', b'{"command": "add"}\n', b'{"command": "add", "port": 5}\n',
        b'{"command": "add", "port": "x\\u0000y"}\n', b"[" * 5000 + b"\n", b"\xff\xfe\n",
        b'{"command": "add", "port": "unix:/no/such/folder/socket"}\n', b'{"command": "add", "port": "unix:"}\n',
    ]  # fmt: skip
    for request in requests:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.settimeout(10)
            client.sendall(request)
            answer = json.loads(client.recv(4096))
            assert answer["ok"] is False and answer["error"], request
    with contextlib.ExitStack() as stack:
        for number in range(40):  # more than it talks to, and some who say nothing or never end
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(path))
            with contextlib.suppress(OSError):
                client.sendall(b"x" * 5000 * (number % 2))
        ping(spaces[0], "10.30.0.2")
    assert example.is_idle()
    example.end()


def test_requests_may_come_at_once_and_in_pieces(start: Start, spaces: list[str], tmp_path: Path) -> None:
    path = tmp_path / "control"
    example = start(ports(spaces)[0], "--control", str(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.settimeout(10)
        with client.makefile("rb") as answers:
            client.sendall(b'{"command": "ports"}\n{"command": "table"}\n{"comm')
            assert [type(json.loads(answers.readline())["result"]) for _ in range(2)] == [list, list]
            client.sendall(b'and": "stats"}\n')
            assert json.loads(answers.readline())["result"]["ports"] == 1
    example.end()


async def test_the_control_socket_survives_a_lack_of_descriptors(tmp_path: Path) -> None:
    async with new_switch() as switch:
        serving = asyncio.create_task(Control(switch, tmp_path / "control").serve())
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), before[1]))
            try:
                with contextlib.suppress(OSError):
                    while True:
                        stack.callback(os.close, os.dup(0))
                await asyncio.get_running_loop().sock_connect(client, str(tmp_path / "control"))
                await asyncio.sleep(0.1)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            await asyncio.get_running_loop().sock_sendall(client, b'{"command": "ports"}\n')
            async with asyncio.timeout(10):
                answer = await asyncio.get_running_loop().sock_recv(client, 4096)
            assert json.loads(answer) == {"ok": True, "result": []}
        serving.cancel()
        await asyncio.wait([serving])


async def test_only_descriptors_of_ports_are_taken_and_stay_the_callers(tmp_path: Path) -> None:
    async with (
        new_switch() as switch,
        tap(multi_queue=False) as plain,
        tap(vnet_header=True, multi_queue=False) as good,
    ):
        with open("/dev/null", "rb") as file:
            for fd, complaint in (
                (file.fileno(), "must be that of a TAP"),
                (plain.queues[0].fileno(), "vnet_header=True"),
            ):
                with pytest.raises(ValueError, match=complaint):
                    await switch.adopt(fd, "port")
        before = os.listdir("/proc/self/fd")
        with pytest.raises(SetupError, match="cannot open"):
            await switch.adopt(good.queues[0].fileno(), "port", capture=str(tmp_path))
        assert os.listdir("/proc/self/fd") == before and good.queues[0].enabled and not switch.ports
        assert await switch.adopt(good.queues[0].fileno(), "port") == "port"
        with pytest.raises(ValueError, match="already exists"):
            await switch.adopt(good.queues[0].fileno(), "port")
        await switch.remove("port")
        assert good.queues[0].enabled


# -- loops and storms --------------------------------------------------------------------------------------------------


def test_a_loop_is_blocked_and_the_others_go_on(start: Start, spaces: list[str]) -> None:
    """Two ports of one station, which joins them with a bridge."""
    looped = f"{spaces[2]}:second0"
    example = start(*ports(spaces), looped, "--hold", "30", ready=False)
    example.line(example.process.stdout)
    give_addresses(spaces[:2])
    for arguments in (
        ("add", "loop0", "type", "bridge", "mcast_snooping", "0"),
        ("set", PORT, "master", "loop0"),
        ("set", "second0", "master", "loop0"),
        ("set", "loop0", "up"),
    ):
        ip("-n", spaces[2], "link", *arguments)
    station = Station(spaces[0])
    with station.socket:
        for _ in range(10):
            station.send(frame(BROADCAST, new_mac()))
            time.sleep(0.01)
        line = example.line(example.process.stderr)
    blocked = line.split()[1]
    assert blocked in (looped, ports(spaces)[2]) and line.startswith(
        f"port {blocked} is blocked for 30 s, because there is a loop"
    )
    time.sleep(0.3)
    assert example.is_idle(), "nothing goes round any more"
    states = {row["name"]: row["blocked"] for row in example.ask("ports")}
    assert [name for name, seconds in states.items() if seconds > 0] == [blocked]
    ping(spaces[0], "10.30.0.2")
    ping(spaces[1], "10.30.0.1")


def test_a_broadcast_storm_is_limited(start: Start, spaces: list[str]) -> None:
    example = start(*ports(spaces), "--flood-limit", "50")
    give_addresses(spaces[:2])
    ping(spaces[0], "10.30.0.2")
    with stations_in(spaces) as (one, _, three):
        for _ in range(500):
            one.send(frame(BROADCAST, new_mac()))
        until_carried(example, 500)
        received = 0
        three.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while three.receive():
                received += 1
    assert 0 < received < 150
    assert example.ask("stats")["limited"] > 350
    ping(spaces[1], "10.30.0.1")


def until_carried(example: Example, count: int) -> None:
    """Waits until that many frames came in altogether."""
    deadline = time.monotonic() + PATIENCE
    while example.ask("stats")["in"] < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- many ports --------------------------------------------------------------------------------------------------------


def test_64_ports(start: Start, spaces: list[str]) -> None:
    """Idle they cost nothing, and a flood to all of them loses no frame that the kernel's queues hold."""
    names = [f"{spaces[number % 3]}:p{number}" for number in range(64)]
    example = start(*names, ready=False)
    assert example.line(example.process.stdout) == f"ready: {' '.join(names)}\n"
    deadline = time.monotonic() + PATIENCE
    while example.idle_share(0.5) >= 0.02:  # at first, stations say that they are there
        assert time.monotonic() < deadline
    count = 900  # the queue of an interface holds 1000 frames
    sockets = []
    with contextlib.ExitStack() as stack:
        for number in (0, 1, 2, 63):
            station = socket_in(spaces[number % 3], socket.AF_PACKET, socket.SOCK_RAW)
            stack.enter_context(station)
            make_room(station, 1 << 24)
            station.bind((f"p{number}", 0x88B5))
            sockets.append(station)
        sent = [frame(BROADCAST, new_mac()) for _ in range(count)]
        for each in sent:
            sockets[0].send(each)
        for station in sockets[1:]:
            got: list[bytes] = []
            while len(got) < count:
                data, address = station.recvfrom(2048)
                if address[2] != _OUTGOING:
                    got.append(data)
            assert got == sent
    counts = {row["name"]: row for row in example.ask("ports")}
    assert all(row["dropped"] == 0 and row["out"] == count for name, row in counts.items() if name != names[0])
    example.process.terminate()
    status, out, err = example.wait()
    assert (status, err, out.count("\n")) == (0, "", 64)
