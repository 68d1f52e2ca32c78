"""Ports with streams in memory and sockets, plugged into a running switch."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from switch.ports import MachineFrames, Port, bind_unix, merged, plain
from switch.switch import Switch
from switch.table import station

from aiotuntap import DeviceGoneError, InvalidFrameError, LinkDownError, Mode, QueueClosedError, Stats
from aiotuntap.testing import MemoryStream, memory_pair

from ..offload_packets import Packet, vnet_header
from ..pcapng import read

HEADER = bytes(10)
BROADCAST = b"\xff" * 6
A, B = (bytes.fromhex(f"02000000000{digit}") for digit in "ab")


def frame(destination: bytes, source: bytes, payload: bytes = b"") -> bytes:
    return HEADER + destination + source + b"\x88\xb5" + payload.ljust(46, b"\0")


class CountedStream:
    """A stream in memory that has counters, as a queue has."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self.read = self.written = 0
        self.refuses: Exception | None = None

    @property
    def stats(self) -> Stats:
        return Stats(self.read, self.written)

    async def read_frames(self) -> list[bytes]:
        frames = await self.stream.read_frames()
        self.read += len(frames)
        return frames

    async def write_frames(self, frames: list[bytes]) -> None:
        for each in frames:
            self.write_frame_nowait(each)

    def write_frame_nowait(self, frame: bytes) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.stream.write_frame_nowait(frame)
        self.written += 1


Lab = tuple[Switch, dict[str, MemoryStream]]


def new_switch(**options: Any) -> Switch:
    return Switch(**{"age": 300, "limit": 4096, "hold": 60, "flood_limit": None, **options})


@asynccontextmanager
async def lab(*names: str, **options: Any) -> AsyncIterator[Lab]:
    """A switch that runs, and the far ends of its ports."""
    async with new_switch(**options) as switch:
        yield switch, {name: await plug(switch, name) for name in names}


async def plug(switch: Switch, name: str) -> MemoryStream:
    near, far = memory_pair()
    await switch.plug(Port(name, CountedStream(near), near.aclose))
    return far


async def nothing_arrives(*far: MemoryStream) -> None:
    await asyncio.sleep(0.01)
    for each in far:
        with pytest.raises(BlockingIOError):
            each.read_frame_nowait()


# -- the running switch ------------------------------------------------------------------------------------------------


async def test_ports_come_and_go_while_frames_pass() -> None:
    async with lab("left", "right") as (switch, far):
        await far["right"].write_frame(frame(BROADCAST, B))
        assert await far["left"].read_frame() == frame(BROADCAST, B)
        new = await plug(switch, "new")
        await far["left"].write_frame(frame(BROADCAST, A, b"1"))
        assert await new.read_frame() == await far["right"].read_frame() == frame(BROADCAST, A, b"1")
        await switch.remove("right")
        with pytest.raises(DeviceGoneError):
            await far["right"].read_frame()
        await far["left"].write_frame(frame(B, A, b"2"))
        assert await new.read_frame() == frame(B, A, b"2"), "who was behind the port is forgotten"
        assert list(switch.ports) == ["left", "new"]
        assert [str(each) for each in switch.reported()] == [
            "port left: 2 in, 1 out, 0 dropped",
            "port right: 1 in, 1 out, 0 dropped",
            "port new: 0 in, 2 out, 0 dropped",
        ]
        assert not switch.ended.done()


async def test_a_deleted_port_is_reported_and_the_last_one_ends_the_switch(capsys: pytest.CaptureFixture[str]) -> None:
    async with lab("left", "right") as (switch, far):
        await far["left"].write_frame(frame(BROADCAST, A, b"the last"))
        await far["left"].aclose()
        assert await far["right"].read_frame() == frame(BROADCAST, A, b"the last")
        while "left" in switch.ports:
            await asyncio.sleep(0.001)
        assert capsys.readouterr().err == "port left is gone\n"
        assert not switch.ended.done()
        await far["right"].aclose()
        async with asyncio.timeout(5):
            await switch.ended


@pytest.mark.parametrize(
    "error",
    [
        LinkDownError(errno.EIO, "down"),
        DeviceGoneError(errno.EBADFD, "gone"),
        InvalidFrameError("refused"),
        OSError(errno.ENOBUFS, "no memory"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_port_that_refuses_does_not_stop_the_others(error: Exception) -> None:
    async with lab("left", "middle", "right") as (switch, far):
        switch.ports["middle"].frames.refuses = error  # type: ignore[attr-defined]
        for number in range(3):
            await far["left"].write_frame(frame(BROADCAST, A, bytes([number])))
            assert await far["right"].read_frame() == frame(BROADCAST, A, bytes([number]))
        assert str(switch.ports["middle"]) == "port middle: 0 in, 0 out, 3 dropped"


async def test_names_are_unique_and_unknown_ports_cannot_be_removed() -> None:
    async with lab("left") as (switch, _):
        near, far = memory_pair()
        with pytest.raises(ValueError, match="'left' already exists"):
            await switch.plug(Port("left", CountedStream(near), near.aclose))
        assert near.closed
        with pytest.raises(ValueError, match="port 'right' does not exist"):
            await switch.remove("right")


async def test_removed_ports_are_forgotten() -> None:
    async with lab("left") as (switch, _):
        for number in range(300):
            await plug(switch, f"{number}")
            await switch.remove(f"{number}")
        reported = [port.name for port in switch.reported()]
        assert reported == ["left", *(f"{number}" for number in range(300 - len(reported) + 1, 300))]
        assert 250 < len(reported) < 260


async def test_a_loop_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    async with lab("left", "middle", "right", hold=30) as (switch, far):
        for number in range(10):
            await far["left"].write_frame(frame(BROADCAST, A, bytes([number])))
            await far["right"].write_frame(await far["middle"].read_frame())  # a cable between the two
        await asyncio.sleep(0.01)
        assert capsys.readouterr().err == (
            "port right is blocked for 30 s, because there is a loop: frames that were sent to other ports come back there\n"
        )
        assert switch.core.guard.returned >= 3


async def test_a_static_station_stays_at_its_port() -> None:
    async with lab("left", "middle") as (switch, far):
        switch.pin(station(B), "right")
        await far["left"].write_frame(frame(B, A, b"1"))
        assert await far["middle"].read_frame() == frame(B, A, b"1")
        for _ in range(2):
            right = await plug(switch, "right")
            await far["left"].write_frame(frame(B, A, b"2"))
            assert await right.read_frame() == frame(B, A, b"2")
            await nothing_arrives(far["middle"])
            await switch.remove("right")


async def test_a_port_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    near, far = memory_pair()
    async with lab("left") as (switch, others):
        await switch.plug(Port("right", CountedStream(near), near.aclose), str(path))
        await far.write_frame(frame(BROADCAST, B))
        await others["left"].read_frame()
        super_frame = Packet(mode=Mode.TAP, payload=bytes(3000)).super_frame(1000)
        await others["left"].write_frame(super_frame)
        assert await far.read_frame() == super_frame
        assert str(switch.ports["right"]) == "port right: 1 in, 1 out, 0 dropped"
    found = read(path)
    assert found.interfaces == ["right"]
    assert found.data(1) == [frame(BROADCAST, B)[10:]] and [len(each) for each in found.data(2)] == [1054] * 3


# -- ports without a virtio_net_hdr ------------------------------------------------------------------------------------


def test_plain_frames_and_back() -> None:
    packet = Packet(mode=Mode.TAP, payload=bytes(range(256)) * 20)
    unfinished = vnet_header(flags=1, csum_start=packet.transport, csum_offset=16) + packet.build(partial=True)
    segments = [piece.build() for piece in packet.pieces(1000)]
    tunnelled = vnet_header(gso_type=0x21, gso_size=1000) + packet.build()
    assert plain([HEADER + b"as it is" * 2, packet.super_frame(1000), tunnelled, unfinished]) == [
        b"as it is" * 2,
        *segments,
        packet.build(),
    ]
    (together,) = merged(segments)
    assert plain([together]) == segments
    assert merged([b"too short", bytes(14)]) == [bytes(24)]


@asynccontextmanager
async def machine_at(switch: Switch, path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    before = len(switch.ports)
    reader, writer = await asyncio.open_unix_connection(path)
    async with asyncio.timeout(5):
        while len(switch.ports) == before:
            await asyncio.sleep(0.001)
    yield reader, writer
    writer.close()


def wrapped(frame: bytes) -> bytes:
    return len(frame).to_bytes(4) + frame


async def until_ports(switch: Switch, *names: str) -> None:
    async with asyncio.timeout(5):
        while list(switch.ports) != list(names):
            await asyncio.sleep(0.001)


async def test_machines_at_a_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, sent = tmp_path / "machines", frame(BROADCAST, B)[10:]
    async with lab("left") as (switch, far):
        name = f"unix:{path}"
        assert await switch.add(name) == name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(ValueError, match="already exists"):
            await switch.add(name)
        async with machine_at(switch, path) as (reader, writer), machine_at(switch, path) as (other, _):
            assert list(switch.ports) == ["left", f"{name}#1", f"{name}#2"]
            for piece in (wrapped(sent)[:2], wrapped(sent)[2:30], wrapped(sent)[30:] + wrapped(b"short")):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001)
            assert await far["left"].read_frame() == HEADER + sent
            assert await other.readexactly(len(sent) + 4) == wrapped(sent)
            packet = Packet(mode=Mode.TAP, payload=bytes(5000))
            await far["left"].write_frame(packet.super_frame(1000))
            for segment in packet.pieces(1000):
                assert await reader.readexactly(len(segment.build()) + 4) == wrapped(segment.build())
        await until_ports(switch, "left")
        assert sorted(capsys.readouterr().err.splitlines()) == [f"port {name}#{number} is gone" for number in (1, 2)]
        async with machine_at(switch, path) as (reader, writer):
            await switch.remove(name)
            assert await reader.read() == b""
            assert list(switch.ports) == ["left"] and not path.exists()


async def test_a_stream_from_a_machine_is_merged(tmp_path: Path) -> None:
    path = tmp_path / "machines"
    packet = Packet(mode=Mode.TAP, payload=bytes(5000))
    async with lab("left") as (switch, far):
        await switch.add(f"unix:{path}")
        async with machine_at(switch, path) as (_, writer):
            writer.write(b"".join(wrapped(piece.build()) for piece in packet.pieces(1000)))
            assert plain([await far["left"].read_frame()]) == [piece.build() for piece in packet.pieces(1000)]


async def test_a_machine_that_sends_invalid_data_is_disconnected(tmp_path: Path) -> None:
    path = tmp_path / "machines"
    async with lab("left") as (switch, _):
        await switch.add(f"unix:{path}")
        async with machine_at(switch, path) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            assert await reader.read() == b""
        await until_ports(switch, "left")


async def test_a_machine_that_does_not_read_costs_others_nothing(tmp_path: Path) -> None:
    path = tmp_path / "machines"
    async with lab("left", "right") as (switch, far):
        await switch.add(f"unix:{path}")
        async with machine_at(switch, path):
            port = switch.ports[f"unix:{path}#1"]
            for number in range(200):
                await far["left"].write_frame(frame(BROADCAST, A, number.to_bytes(20)).ljust(60_000, b"\0"))
                await far["right"].read_frame()
            _, out, dropped = port.counts()
            assert out + dropped == 200 and 10 < out < 40


async def test_a_machine_that_floods_is_read_no_faster_than_frames_go_on() -> None:
    frames = MachineFrames(lambda _: None)
    paused: list[bool] = []

    class Transport(asyncio.Transport):
        def pause_reading(self) -> None:
            paused.append(True)

        def resume_reading(self) -> None:
            paused.append(False)

    frames.connection_made(Transport())
    frames.data_received(wrapped(bytes(60)) * 1100)
    assert paused == [True]
    assert len(await frames.read_frames()) == 1100 and paused == [True, False]
    frames.connection_lost(None)
    with pytest.raises(QueueClosedError):
        await frames.read_frames()


def test_a_socket_that_nobody_listens_at_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with bind_unix(path) as first:
        first.listen()
        with pytest.raises(OSError, match="cannot create the socket") as caught:
            bind_unix(path)
        assert caught.value.errno == errno.EADDRINUSE
    with bind_unix(path) as second:
        assert second.getsockname() == path
    (tmp_path / "file").write_text("not a socket")
    with pytest.raises(OSError, match="cannot create the socket"):
        bind_unix(str(tmp_path / "file"))
    assert os.path.exists(tmp_path / "file")


async def test_unsupported_super_frames_arrive_as_plain_frames() -> None:
    """Such as those of UDP, before Linux 6.2."""
    near, far = memory_pair()

    class OldKernel(CountedStream):
        async def write_frames(self, frames: list[bytes]) -> None:
            refused = [number for number, each in enumerate(frames) if each[1]]
            await super().write_frames([each for each in frames if not each[1]])
            if refused:
                raise InvalidFrameError("no such super-frames", refused)

        def write_frame_nowait(self, frame: bytes) -> None:
            if frame[1]:
                raise InvalidFrameError("no such super-frames")
            super().write_frame_nowait(frame)

    port = Port("old", OldKernel(near), near.aclose)
    whole = Packet(mode=Mode.TAP, payload=bytes(range(200)) * 10).super_frame(700)
    expected = [HEADER + each for each in plain([whole])]
    assert len(expected) == 3
    await port.write([whole])
    await port.write([frame(A, B), whole])
    got = [far.read_frame_nowait() for _ in range(7)]
    assert got == [*expected, frame(A, B), *expected]
    assert port.counts() == (0, 7, 0)
    await port.aclose()
