"""Different stations at the ports of the switch example: DHCP, a virtual machine, rootless containers."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .support import PATIENCE, ip, named_netns, netns_exec
from .test_switch import PORT, ROOT, Start, starter

CTL = [sys.executable, "-m", "examples.switch.ctl"]


@pytest.fixture
def spaces() -> Iterator[list[str]]:
    with named_netns() as one, named_netns() as two:
        yield [one, two]


@pytest.fixture
def start() -> Iterator[Start]:
    with starter() as start:
        yield start


@contextmanager
def child(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program that is ended with the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def dhcp_server(netns: str, leases: Path) -> Iterator[None]:
    """A DHCP server at the port, with addresses from 10.30.0.100 on."""
    ip("-n", netns, "address", "add", "10.30.0.1/24", "dev", PORT)
    options = [
        "no-daemon", "conf-file=/dev/null", "port=0", f"interface={PORT}", "bind-interfaces", "leasefile-ro", "pid-file=",
        "dhcp-range=10.30.0.100,10.30.0.150,1h", "no-ping", "user=root", "group=root", "log-dhcp", f"log-facility={leases}",
    ]  # fmt: skip
    with child(netns_exec(netns, "dnsmasq", *(f"--{option}" for option in options))):
        until(lambda: leases.exists() and "DHCP, IP range" in leases.read_text(), "dnsmasq did not start")
        yield


def until(condition: Callable[[], object], complaint: str, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


def test_dhcp(start: Start, spaces: list[str], tmp_path: Path) -> None:
    server, client = spaces
    start(f"{server}:{PORT}", f"{client}:{PORT}")
    with dhcp_server(server, tmp_path / "log"):
        script = tmp_path / "bound"
        script.write_text('#!/bin/sh\n[ "$1" != bound ] || ip address add "$ip/24" dev "$interface"\n')
        script.chmod(0o755)
        command = netns_exec(client, "udhcpc", "-f", "-q", "-n", "-i", PORT, "-s", str(script))
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
    addresses = ip("-n", client, "-4", "-o", "address", "show", "dev", PORT)
    assert re.search(r"inet 10\.30\.0\.1[0-5]\d/24", addresses)
    assert "1 received" in subprocess.run(
        netns_exec(client, "ping", "-c", "1", "-W", "5", "10.30.0.1"), capture_output=True, text=True, check=False
    ).stdout  # fmt: skip


def test_a_virtual_machine_asks_for_an_address(start: Start, spaces: list[str], tmp_path: Path) -> None:
    """QEMU boots from its network card, as far as it gets: it asks for an address, and takes it."""
    server, _ = spaces
    mac = "02:00:00:00:00:77"
    machines = tmp_path / "machines"
    example = start(f"{server}:{PORT}", f"unix:{machines}", ready=False)
    assert example.line(example.process.stdout).startswith("ready: ")
    log = tmp_path / "log"
    with dhcp_server(server, log):
        qemu = [
            "qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-display", "none", "-nodefaults", "-boot", "n", "-no-reboot",
            "-netdev", f"stream,id=n0,server=off,addr.type=unix,addr.path={machines}",
            "-device", f"e1000,netdev=n0,mac={mac},romfile=/usr/lib/ipxe/qemu/pxe-e1000.rom",
        ]  # fmt: skip
        with child(qemu) as machine:
            until(lambda: f"DHCPACK({PORT})" in log.read_text() or machine.poll() is not None, log.read_text())
            assert machine.poll() is None, machine.communicate()[0]
            assert re.search(rf"DHCPACK\({PORT}\) 10\.30\.0\.1\d\d {mac}", log.read_text())
            rows = {row["mac"]: row["port"] for row in example.ask("table")}
            assert rows[mac] == f"unix:{machines}#1"
        assert example.line(example.process.stderr) == f"port unix:{machines}#1 is gone\n"


def test_rootless_containers(start: Start, tmp_path: Path) -> None:
    """The switch without privileges, and each station in a user namespace of its own: it brings its interface along."""
    control = tmp_path / "control"
    script = f"""
        {" ".join(CTL)} --switch {control} add eth0 --here --name "$1" && ip address add "$2/24" dev eth0 && echo ready
        read end
    """
    containers: list[subprocess.Popen[str]] = []
    switch = ["unshare", "-Urn", sys.executable, "-m", "examples.switch", "own0", "--control", str(control)]
    with subprocess.Popen(switch, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == "ready: own0\n"
            for name, address in (("red", "10.30.0.1"), ("blue", "10.30.0.2")):
                container = subprocess.Popen(
                    ["unshare", "-Urn", "sh", "-c", script, "sh", name, address],
                    cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                containers.append(container)
                assert container.stdout is not None
                assert container.stdout.readline() == f"{name}\n" and container.stdout.readline() == "ready\n"
            enter = ["nsenter", "-U", "-n", "--preserve-credentials", "-t", str(containers[0].pid)]
            run = subprocess.run(
                [*enter, "ping", "-n", "-c", "2", "-W", "5", "10.30.0.2"], capture_output=True, text=True, check=False
            )
            assert "2 received" in run.stdout, run.stdout + run.stderr
            for name, container in zip(("red", "blue"), containers, strict=True):
                container.communicate("end\n")
                # The queue that the switch holds keeps the namespace, and so the port: it ends when it is removed.
                subprocess.run([*CTL, "--switch", str(control), "remove", name], check=True, cwd=ROOT)
        finally:
            process.terminate()
            out, _ = process.communicate(timeout=PATIENCE)
            for container in containers:
                container.kill()
                container.communicate()
        assert process.returncode == 0
        assert re.match(r"port own0: .*\nport red: \d+ in, \d+ out, 0 dropped\nport blue: ", out)
