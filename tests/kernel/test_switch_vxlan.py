"""The switch's uplink against the kernel's own VXLAN device, and against itself."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..pcapng import read
from .support import PATIENCE, ip, iperf_server, link, named_netns, netns_exec, socket_in
from .test_switch import PORT, Example, iperf
from .test_switch_stations import until

VNI = 42


@dataclass
class Machine:
    """A machine in a namespace, by its address in the network between all machines."""

    netns: str
    address: str
    number: int

    @property
    def literal(self) -> str:
        return f"[{self.address}]" if ":" in self.address else self.address


@contextlib.contextmanager
def machines(count: int, version: int, mtu: int = 1500) -> Iterator[list[Machine]]:
    """Joined by a bridge in a namespace of its own."""
    with contextlib.ExitStack() as stack:
        middle = stack.enter_context(named_netns())
        ip("-n", middle, "link", "add", "under0", "type", "bridge", "mcast_snooping", "0")
        ip("-n", middle, "link", "set", "under0", "up")
        found = []
        for number in range(1, count + 1):
            netns = stack.enter_context(named_netns())
            quiet = "echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 0 > /proc/sys/net/ipv6/conf/default/disable_ipv6"
            subprocess.run(netns_exec(netns, "sh", "-c", quiet), check=True)
            ip("-n", middle, "link", "add", f"to{number}", "type", "veth", "peer", "name", "under0", "netns", netns)
            ip("-n", middle, "link", "set", f"to{number}", "master", "under0", "mtu", str(mtu), "up")
            address = f"10.40.0.{number}" if version == 4 else f"fd40::{number}"
            arguments = ["24"] if version == 4 else ["64", "nodad"]
            ip("-n", netns, "address", "add", f"{address}/{arguments[0]}", "dev", "under0", *arguments[1:])
            ip("-n", netns, "link", "set", "under0", "mtu", str(mtu), "up")
            found.append(Machine(netns, address, number))
        yield found


@contextlib.contextmanager
def kernel_vxlan(machine: Machine, *remotes: Machine, mtu: int = 1400, vni: int = VNI) -> Iterator[None]:
    """The kernel's device, with the address 10.50.0.N."""
    first, *others = remotes
    kind = ["type", "vxlan", "id", str(vni), "local", machine.address, "remote", first.address, "dstport", "4789"]
    mac = f"02:00:00:00:40:{machine.number:02x}"  # the same when it comes back
    ip("-n", machine.netns, "link", "add", "over0", "address", mac, "mtu", str(mtu), *kind, "dev", "under0")
    for each in others:
        fdb = ["fdb", "append", "00:00:00:00:00:00", "dst", each.address, "dev", "over0"]
        subprocess.run(["bridge", "-n", machine.netns, *fdb], check=True)
    ip("-n", machine.netns, "address", "add", f"10.50.0.{machine.number}/24", "dev", "over0")
    ip("-n", machine.netns, "link", "set", "over0", "up")
    yield
    ip("-n", machine.netns, "link", "del", "over0", check=False)


@contextlib.contextmanager
def switch(machine: Machine, *remotes: Machine, mtu: int = 1400, options: list[str] | None = None) -> Iterator[Example]:
    """The example on a machine, with one port in a namespace of its own, whose address is 10.50.0.(100 + N)."""
    uplink = f"{VNI},local={machine.address}" + "".join(f",remote={each.address}" for each in remotes)
    with named_netns() as station:
        name = f"{station}:{PORT}"
        example = Example.__new__(Example)
        example.ports = [name]
        example.station = station
        command = [sys.executable, "-m", "examples.switch", name, "--vxlan", uplink, *(options or [])]
        example.process = Example.popen(netns_exec(machine.netns, *command))
        try:
            assert example.line(example.process.stdout) == f"ready: {name} vxlan{VNI}\n"
            ip("-n", station, "link", "set", PORT, "mtu", str(mtu))
            ip("-n", station, "address", "add", f"10.50.0.{100 + machine.number}/24", "dev", PORT)
            yield example
        finally:
            example.stop()


def ping(netns: str, address: str, *options: str) -> bool:
    command = netns_exec(netns, "ping", "-n", "-c", "1", "-W", "5", *options, address)
    return "1 received" in subprocess.run(command, capture_output=True, text=True, check=False).stdout


def uplink_of(example: Example) -> dict[str, Any]:
    (row,) = (row for row in example.ask("ports") if row["name"] == f"vxlan{VNI}")
    found: dict[str, Any] = row
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_with_the_kernels_device_in_both_directions(version: int) -> None:
    with machines(2, version) as (here, there), switch(here, there) as example, kernel_vxlan(there, here):
        assert ping(example.station, "10.50.0.2") and ping(there.netns, "10.50.0.101")
        assert ping(example.station, "10.50.0.2", "-s", "1372", "-M", "do"), "as large as the MTU of 1400"
        with iperf_server(there.netns):
            assert iperf(example.station, "10.50.0.2", "-n", "100M") > 80 << 20
            assert iperf(example.station, "10.50.0.2", "-n", "100M", "-R") > 80 << 20
        sent, received = (link(PORT, "-n", example.station)["stats64"][way] for way in ("tx", "rx"))
        for carried in (sent, received):
            assert carried["bytes"] / carried["packets"] > 2500, "merged on the way in, in super-frames on the way out"
        neighbour = json.loads(ip("-n", there.netns, "-j", "neigh", "show", "10.50.0.101", "dev", "over0"))
        assert neighbour[0]["lladdr"] == link(PORT, "-n", example.station)["address"]
        row = uplink_of(example)
        assert row["in"] > 1000 and row["out"] > 100 and row["dropped"] == 0
        assert {entry["port"] for entry in example.ask("table")} == {f"vxlan{VNI}", example.ports[0]}
        (fragments,) = (line for line in inside_netstat(here.netns) if line.startswith("Frag"))
        assert fragments == "FragCreates 0"


def test_udp_super_frames_arrive_as_the_datagrams_that_they_were() -> None:
    with machines(2, 4) as (here, there), switch(here, there) as example, kernel_vxlan(there, here):
        assert ping(example.station, "10.50.0.2")
        for source, target, address in (
            (example.station, there.netns, "10.50.0.2"),
            (there.netns, example.station, "10.50.0.101"),
        ):
            sender, receiver = (socket_in(netns, socket.AF_INET, socket.SOCK_DGRAM) for netns in (source, target))
            with sender, receiver:
                receiver.bind((address, 4000))
                sender.setsockopt(socket.IPPROTO_UDP, 103, 1000)  # UDP_SEGMENT
                payload = random.randbytes(10_500)
                sender.sendto(payload, (address, 4000))
                assert [receiver.recv(65536) for _ in range(11)] == [
                    payload[at : at + 1000] for at in range(0, 10_500, 1000)
                ]


def inside_netstat(netns: str) -> list[str]:
    """Whether IPv4 or IPv6 packets were cut when they left."""
    v4 = subprocess.run(netns_exec(netns, "cat", "/proc/net/snmp"), capture_output=True, text=True, check=True).stdout
    heads, values = (line.split() for line in v4.splitlines()[:2])
    v6 = subprocess.run(netns_exec(netns, "cat", "/proc/net/snmp6"), capture_output=True, text=True, check=True).stdout
    (other,) = (int(line.split()[1]) for line in v6.splitlines() if line.startswith("Ip6FragCreates"))
    return [f"FragCreates {int(values[heads.index('FragCreates')]) + other}"]


@pytest.mark.parametrize("version", [4, 6])
def test_frames_over_the_path_mtu_are_cut_or_reported(version: int) -> None:
    """The stations use an MTU of 1500 bytes. TCP still works; other frames are dropped, and reported once."""
    with machines(2, version) as (here, there), switch(here, there, mtu=1500) as example, kernel_vxlan(there, here):
        assert ping(example.station, "10.50.0.2")
        with iperf_server(there.netns):
            # What is still under way at the end does not count, which may be several megabytes in a slow guest.
            assert iperf(example.station, "10.50.0.2", "-n", "20M", "-M", "1448") > 5 << 20
        assert not ping(example.station, "10.50.0.2", "-s", "1450", "-W", "1")
        largest = 1450 if version == 4 else 1430
        line = example.line(example.process.stderr)
        assert line.startswith(
            f"port vxlan{VNI}: to {there.address}, a frame must have at most {largest + 14} bytes, not 1492;"
        )
        assert line.endswith(f"set the MTU of the stations to {largest} or less\n")
        assert not ping(example.station, "10.50.0.2", "-s", "1450", "-W", "1")
        assert ping(example.station, "10.50.0.2", "-s", str(largest - 28), "-M", "do")
        assert uplink_of(example)["dropped"] >= 2
        assert inside_netstat(here.netns) == ["FragCreates 0"]
        example.process.terminate()
        assert example.wait()[2] == "", "it was reported once"


def test_three_machines_and_one_that_goes_away_and_comes_back() -> None:
    with machines(3, 4) as (one, two, three), switch(one, two, three) as a, switch(two, one, three) as b:
        with kernel_vxlan(three, one, two):
            assert ping(a.station, "10.50.0.102") and ping(a.station, "10.50.0.3") and ping(three.netns, "10.50.0.102")
        ip("-n", three.netns, "link", "set", "under0", "down")
        for _ in range(3):
            assert not ping(a.station, "10.50.0.3", "-W", "1")
            assert ping(a.station, "10.50.0.102")
        ip("-n", three.netns, "link", "set", "under0", "up")
        with kernel_vxlan(three, one, two):
            until(lambda: ping(a.station, "10.50.0.3"), "the machine that came back is not reached")
        for example in (a, b):
            assert example.is_idle()


def test_strangers_are_dropped_and_counted(tmp_path: Path) -> None:
    capture = tmp_path / "uplink.pcapng"
    options = ["--capture", f"vxlan{VNI}={capture}"]
    with machines(3, 4) as (here, there, stranger), switch(here, there, options=options) as example:
        frame = b"\xff" * 6 + bytes.fromhex("020000000009") + b"\x88\xb5" + bytes(46)
        good = bytes.fromhex("0800000000002a00")
        peer = socket_in(there.netns, socket.AF_INET, socket.SOCK_DGRAM)
        other = socket_in(stranger.netns, socket.AF_INET, socket.SOCK_DGRAM)
        watcher = socket_in(example.station, socket.AF_PACKET, socket.SOCK_RAW)
        with peer, other, watcher:
            watcher.bind((PORT, 0x88B5))
            target = (here.address, 4789)
            other.sendto(good + frame, target)
            for wrong in (
                b"",
                b"\x08",
                good,
                good + frame[:13],
                b"\0" + good[1:] + frame,
                good[:6] + b"\x2b\0" + frame,
            ):
                peer.sendto(wrong, target)
            peer.sendto(good + frame, target)
            assert watcher.recv(2048) == frame
            watcher.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                pytest.fail(f"arrived: {watcher.recv(2048)!r}")
        assert uplink_of(example)["in"] == 1
        counts = example.ask("stats")["uplinks"][f"vxlan{VNI}"]
        assert (counts["strangers"], counts["malformed"], counts["other_vnis"]) == (1, 5, 1)
        example.process.terminate()
        assert example.wait()[0] == 0
        assert read(capture).data(1) == [frame]


def test_flows_have_source_ports_of_their_own() -> None:
    with machines(2, 4) as (here, there), switch(here, there) as example:
        sniffer = socket_in(there.netns, socket.AF_INET, socket.SOCK_DGRAM)
        station = socket_in(example.station, socket.AF_PACKET, socket.SOCK_RAW)
        with sniffer, station:
            sniffer.bind((there.address, 4789))
            station.bind((PORT, 0x88B5))
            ports: dict[int, set[int]] = {}
            for number in range(60):
                frame = b"\xff" * 6 + b"\x02\0\0\0\0" + bytes((number % 20,)) + b"\x88\xb5" + bytes(46)
                station.send(frame)
                while True:
                    data, address = sniffer.recvfrom(2048)
                    if data[8:] == frame:
                        break
                ports.setdefault(number % 20, set()).add(address[1])
        assert all(len(mine) == 1 for mine in ports.values())
        assert len(set.union(*ports.values())) > 3
        assert all(port >= 49152 for mine in ports.values() for port in mine)


def test_wrong_options() -> None:
    for wrong in ("x", "1,local=10.0.0.1", "1,local=10.0.0.1,remote=::1"):
        command = [sys.executable, "-m", "examples.switch", PORT, "--vxlan", wrong]
        with Example.popen(command) as process:
            _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2 and "--vxlan" in err and "Traceback" not in err
