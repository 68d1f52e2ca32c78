"""Captures of real interfaces as tshark reads them, and a disk that fills up."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiotuntap import AsyncTuntap, Offload, PacketStream
from aiotuntap.capture import Capture
from aiotuntap.testing import FarEnd, check_packet_stream, example_frame

from ..pcapng import read
from .support import inside, ipv4, link, named_netns, receive_from, tap, tap_with_peer, transfer, tun, unique, until
from .test_conformance import DoomedPeer

CHECKS = [f"{protocol}.check_checksum:TRUE" for protocol in ("ip", "tcp", "udp")]


def tshark(path: Path, *fields: str, only: str = "") -> list[list[str]]:
    """The fields that tshark reads, one list for each packet. It must not report errors."""
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-Y", only]
    for check in CHECKS:
        command += ["-o", check]
    for field in fields:
        command += ["-e", field]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in run.stderr.splitlines() if not line.startswith("Running as user")]
    assert run.returncode == 0 and complaints == [], run.stderr
    return [line.split("\t") for line in run.stdout.splitlines()]


@asynccontextmanager
async def captured_tap() -> AsyncIterator[tuple[PacketStream, FarEnd]]:
    async with tap() as interface, Capture("/dev/null") as capture:
        with DoomedPeer(interface.name) as peer:
            yield capture.wrap(interface.queues[0]), peer


async def test_conformance() -> None:
    await check_packet_stream(captured_tap, sizes=(18, 1514), refused=b"too short", burst=110)


async def test_tshark_reads_times_directions_names_and_queues(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    async with tap_with_peer(queues=2) as (interface, peer), Capture(path) as capture:
        first, second = map(capture.wrap, interface.queues)
        for number, queue in enumerate((first, second, first)):
            await queue.write_frame(example_frame(number))
        peer.send(example_frame(7))
        reading = [asyncio.create_task(each.read_frame()) for each in (first, second)]
        done, pending = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        number = reading.index(done.pop())
        assert second.fileno() == interface.queues[1].fileno() and second.stats.frames_written == 1
        name = interface.name
    fields = ("frame.interface_name", "frame.interface_queue", "frame.packet_flags_direction", "frame.time_epoch")
    rows = tshark(path, *fields)
    outbound, inbound = "0x00000002", "0x00000001"
    assert [row[0] for row in rows] == [name] * 4
    assert [row[1] for row in rows] == ["0", "1", "0", str(number)]
    assert [row[2] for row in rows] == [outbound] * 3 + [inbound]
    assert [row[3].partition(".")[0] + row[3].partition(".")[2] for row in rows] == [
        str(each.time) for each in read(path).packets
    ]


async def test_tun_with_packet_info(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    async with tun(packet_info=True) as interface, Capture(path) as capture:
        await capture.wrap(interface.queues[0]).write_frame(b"\0\0\x08\0" + ipv4(7))
    assert tshark(path, "frame.protocols", "ip.id", "ip.checksum.status") == [["raw:ip:udp:data", "0x0007", "1"]]
    assert read(path).data() == [ipv4(7)]


# -- super-frames ------------------------------------------------------------------------------------------------------

_UDP_SEGMENT = 103


async def relay(source: PacketStream, target: PacketStream) -> None:
    while True:
        await target.write_frames(await source.read_frames())


@asynccontextmanager
async def captured_cable(path: Path, **options: Any) -> AsyncIterator[list[str]]:
    """Two namespaces, 10.31.0.1 and 10.31.0.2, joined by a relay; what comes from and goes to the first is recorded."""
    names = [unique(), unique()]
    with named_netns() as one, named_netns() as two:
        common: dict[str, Any] = {"mode": "tap", "offload": Offload.ALL, **options}
        async with (
            AsyncTuntap(names[0], netns=one, **common) as left,
            AsyncTuntap(names[1], netns=two, **common) as right,
            Capture(path) as capture,
        ):
            await left.configure(addresses=["10.31.0.1/24"], up=True)
            await right.configure(addresses=["10.31.0.2/24"], up=True)
            a, b = capture.wrap(left.queues[0]), right.queues[0]
            relays = [asyncio.create_task(relay(*pair)) for pair in ((a, b), (b, a))]
            yield [one, two]
            for task in relays:
                task.cancel()
            await asyncio.gather(*relays, return_exceptions=True)
            assert capture.error is None and capture.missed == 0


@pytest.mark.parametrize("vnet_header", [True, False])
async def test_tshark_reads_a_tcp_stream_that_passed_in_super_frames(tmp_path: Path, vnet_header: bool) -> None:
    path, payload = tmp_path / "a.pcapng", os.urandom(1 << 16) * 32
    async with captured_cable(path, vnet_header=vnet_header) as spaces:
        assert await asyncio.to_thread(transfer, spaces[0], spaces[1], "10.31.0.2", payload, 20) == payload
        super_frames = link_of(spaces[0])["tx"]
        assert super_frames["bytes"] / super_frames["packets"] > 2000
    rows = tshark(path, "frame.len", "ip.checksum.status", "tcp.checksum.status", only="tcp")
    assert len(rows) > len(payload) / 1500
    assert {tuple(row[1:]) for row in rows} == {("1", "1")}, "a wrong checksum"
    assert max(int(row[0]) for row in rows) == 1514
    follow = ["tshark", "-n", "-q", "-r", str(path), "-z", "follow,tcp,raw,0"]
    lines = subprocess.run(follow, capture_output=True, text=True, check=True).stdout.splitlines()
    sent = b"".join(bytes.fromhex(line) for line in lines if line and set(line) <= set("0123456789abcdef"))
    assert hashlib.sha256(sent).digest() == hashlib.sha256(payload).digest()


async def test_tshark_reads_udp_that_passed_in_super_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    async with captured_cable(path, vnet_header=True) as spaces:
        sender, receiver = (inside(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for netns in spaces)
        with sender, receiver:
            receiver.bind(("10.31.0.2", 4000))
            receiver.setblocking(False)
            sender.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, 1000)
            sender.sendto(bytes(10_500), ("10.31.0.2", 4000))
            got = [len((await receive_from(receiver))[0]) for _ in range(11)]
            assert got == [1000] * 10 + [500]
    rows = tshark(path, "udp.length", "udp.checksum.status", only="udp")
    assert rows == [["1008", "1"]] * 10 + [["508", "1"]]


def link_of(netns: str) -> dict[str, dict[str, int]]:
    """Counters of the one interface in a namespace besides lo."""
    (name,) = inside(netns, lambda: [name for _, name in socket.if_nameindex() if name != "lo"])
    counters: dict[str, dict[str, int]] = link(name, "-n", netns)["stats64"]
    return counters


# -- a disk ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_disk_that_fills_up(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file has whole packets up to that moment, and the traffic continues."""
    path = small_disk / "a.pcapng"
    async with tap_with_peer() as (interface, peer), Capture(path) as capture:
        queue = capture.wrap(interface.queues[0])
        sent = [example_frame(number, 1000) for number in range(200)]
        await queue.write_frames(sent)
        async with asyncio.timeout(10):
            while capture.error is None:
                await asyncio.sleep(0.01)
        assert capture.error.errno == errno.ENOSPC
        await queue.write_frames(sent)
        await until(lambda: peer.receive()[-1:] == sent[-1:])
    recorded = read(path).data()
    assert 40 < len(recorded) < 65 and recorded == sent[: len(recorded)]
    assert len(tshark(path, "frame.len")) == len(recorded)
    assert len([each for each in caplog.records if each.name == "aiotuntap.capture"]) == 1
