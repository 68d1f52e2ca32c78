"""Transparent offloads: ordinary frames here, super-frames towards the kernel, whose sockets judge every one of them."""

from __future__ import annotations

import asyncio
import errno
import io
import itertools
import random
import re
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import dpkt
import pytest

from aiotuntap import (
    AsyncTuntap,
    DeviceGoneError,
    InvalidFrameError,
    LinkDownError,
    Mode,
    Offload,
    QueueClosedError,
    SetupError,
    Stats,
    TuntapQueue,
    _abi,
    _transparent,
    coalesce,
)
from aiotuntap._descriptor import BATCH
from aiotuntap._transparent import TransparentQueue
from aiotuntap.testing import example_frame

from ..offload_packets import ACK, DESTINATION, HOP_BY_HOP, PSH, TCP, UDP, Packet, ask_dpkt, extension, filler
from .support import (
    PacketPeer,
    features_on,
    has_uso,
    idle_share,
    inject,
    inside,
    ip,
    ipv4,
    link,
    make_room,
    named_netns,
    settle,
    turn_on_ipv6,
    unique,
    until_own,
    watched_fds,
)

pytestmark = pytest.mark.usefixtures("engine")

# <linux/udp.h>, <linux/if_ether.h>, <linux/if_packet.h>
UDP_SEGMENT, UDP_GRO, ETH_P_ALL, ETH_P_IP, SOL_PACKET, PACKET_VNET_HDR = 103, 104, 3, 0x0800, 263, 15

KERNEL = {4: "10.0.0.2", 6: "fd00::2"}
BEYOND = {4: "10.0.0.1", 6: "fd00::1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
MODES = pytest.mark.parametrize("mode", list(Mode))


@asynccontextmanager
async def transparent(
    mode: str = "tun", *, ipv6: bool = False, **options: Any
) -> AsyncIterator[tuple[AsyncTuntap, TuntapQueue]]:
    """An interface on which the kernel is 10.0.0.2 and fd00::2, with a way to 10.0.0.1 and fd00::1."""
    async with AsyncTuntap(unique(), mode=Mode(mode), **{"offload": Offload.ALL, **options}) as interface:
        if ipv6:
            turn_on_ipv6(interface.name)
        addresses = [f"{KERNEL[4]}/24"] + [f"{KERNEL[6]}/64"] * ipv6
        await interface.configure(addresses=addresses, mac="02:00:00:00:00:02" if mode == "tap" else None, up=True)
        if ipv6:
            await until_own(KERNEL[6])
        if mode == "tap":
            for version in (4, 6) if ipv6 else (4,):
                ip("neigh", "add", BEYOND[version], "lladdr", "02:00:00:00:00:01", "dev", interface.name)
        yield interface, interface.queues[0]


class Datagrams:
    """A UDP socket of the kernel's side: what arrives there, and in which sizes the kernel had it together."""

    def __init__(self, version: int = 4, port: int = 4000, *, gro: bool = False, netns: str | None = None) -> None:
        self.socket = inside(netns, lambda: socket.socket(FAMILY[version], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        make_room(self.socket)
        self.socket.setsockopt(socket.IPPROTO_UDP, UDP_GRO, int(gro))
        self.socket.bind((KERNEL[version], port))
        #: gso_size of each message that stood for several datagrams.
        self.sizes: list[int] = []

    def receive(self) -> list[bytes]:
        """All datagrams that are there, in order."""
        got: list[bytes] = []
        while True:
            try:
                data, control, _, _ = self.socket.recvmsg(_abi.READ_SIZE, 64)
            except BlockingIOError:
                return got
            size = len(data)
            for level, kind, value in control:
                if (level, kind) == (socket.IPPROTO_UDP, UDP_GRO):
                    (size,) = struct.unpack("@i", value)
                    self.sizes.append(size)
            got += [data[at : at + size] for at in range(0, len(data), size)]

    async def wait(self, count: int) -> list[bytes]:
        got: list[bytes] = []
        async with asyncio.timeout(10):
            while len(got) < count:
                await asyncio.sleep(0)
                got += self.receive()
        return got

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@contextmanager
def sender(
    version: int = 4, gso_size: int = 1000, to: dict[int, str] = BEYOND, port: int = 5201
) -> Iterator[socket.socket]:
    """A UDP socket of the kernel's side that hands over as one what is to go out as datagrams of *gso_size*."""
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, gso_size)
        sock.connect((to[version], port))
        yield sock


class SuperFrames:
    """A packet(7) socket of the kernel's side that hands over as one what is to be TCP segments of *gso_size* bytes.

    Any kernel does so, where the same of UDP takes an interface that has USO.
    """

    def __init__(self, queue: TuntapQueue, gso_size: int = 100) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.socket.bind((queue._file.get_ifreq().name, ETH_P_IP))
        self._gso_size = gso_size

    def send(self, data: bytes) -> None:
        self.socket.send(Packet(payload=data).super_frame(self._gso_size))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def numbered(numbers: Iterable[int], size: int = 100) -> bytes:
    """One datagram of *size* bytes for each number."""
    return b"".join(number.to_bytes(4) * (size // 4) for number in numbers)


def numbers_of(frames: Iterable[bytes]) -> list[int]:
    return [int.from_bytes(frame[-4:]) for frame in frames]


def row(packet: Packet, count: int, size: int = 1000, last: int | None = None) -> list[Packet]:
    """Consecutive packets of one flow; the last one perhaps shorter."""
    return [
        replace(
            packet,
            identification=packet.identification + number,
            sequence=packet.sequence + number * size,
            payload=filler(size if number < count - 1 or last is None else last, 2 + number),
        )
        for number in range(count)
    ]


def build(packets: Iterable[Packet]) -> list[bytes]:
    return [packet.build() for packet in packets]


def payloads(packets: Iterable[Packet]) -> list[bytes]:
    return [packet.payload for packet in packets]


def udp(mode: str = "tun", **fields: Any) -> Packet:
    return Packet(mode=Mode(mode), protocol=UDP, **{"destination_port": 4000, **fields})


def tcpdump(frames: list[bytes], mode: str) -> str:
    """The output of tcpdump for these frames."""
    file = io.BytesIO()
    writer = dpkt.pcap.Writer(
        file, snaplen=_abi.READ_SIZE, linktype=dpkt.pcap.DLT_RAW if mode == "tun" else dpkt.pcap.DLT_EN10MB
    )
    for frame in frames:
        writer.writepkt(frame, ts=0)
    # Root's tcpdump changes to another user, which it cannot in a user namespace: there is none in a second one.
    command = ["unshare", "-U", "tcpdump", "-nvv", "-r", "-"]
    run = subprocess.run(command, input=file.getvalue(), capture_output=True, check=True)
    return run.stdout.decode()


# -- segments and super-frames, by the kernel's own senders and receivers ----------------------------------------------


@MODES
async def test_super_frames_from_the_kernel_are_read_as_plain_frames(mode: str) -> None:
    async with transparent(mode, ipv6=True) as (interface, queue):
        async with asyncio.timeout(20):
            for version in (4, 6):
                before, sent = queue.stats, filler(40_300, version)
                with sender(version) as sock:
                    sock.send(sent)
                    sock.send(b"alone")  # of this one, only the checksum is left undone
                frames: list[bytes] = []
                while len(frames) < 42:  # among others that the kernel sends by itself, over IPv6
                    frames += [frame for frame in await queue.read_frames() if is_stream(frame, mode)]
                headers = 28 + 20 * (version == 6) + 14 * (mode == "tap")
                assert [len(frame) - headers for frame in frames] == [1000] * 40 + [300, 5]
                assert b"".join(ask_dpkt(frame, Mode(mode))[1].data for frame in frames) == sent + b"alone"
                # Without USO, the kernel cuts it before it comes here.
                assert queue.stats.super_frames_read == before.super_frames_read + has_uso()
                assert queue.stats.segments_made == before.segments_made + 41 * has_uso()
        assert queue.stats.frames_dropped == 0


async def transfer(payload: bytes, version: int, netns: str) -> bytes:
    """The part of *payload* that a TCP server in the namespace receives from a client in this one."""
    loop = asyncio.get_running_loop()
    listener = inside(netns, lambda: socket.socket(FAMILY[version], socket.SOCK_STREAM))
    with listener, socket.socket(FAMILY[version], socket.SOCK_STREAM) as client:
        listener.setblocking(False)
        client.setblocking(False)
        listener.bind((KERNEL[version], 4000))
        listener.listen()
        accepting = asyncio.ensure_future(loop.sock_accept(listener))
        await loop.sock_connect(client, (KERNEL[version], 4000))
        connection, _ = await accepting
        with connection:
            sending = asyncio.ensure_future(loop.sock_sendall(client, payload))
            received = bytearray()
            while len(received) < len(payload):
                data = await loop.sock_recv(connection, 1 << 20)
                assert data
                received += data
            await sending
    return bytes(received)


async def forward(here: TuntapQueue, there: TuntapQueue, seen: list[bytes]) -> None:
    while True:
        frames = await here.read_frames()
        seen += frames
        await there.write_frames(frames)


@MODES
async def test_streams_of_every_kind_between_two_interfaces(mode: Mode) -> None:
    """From a kernel that sends super-frames to one that takes them, and what goes between is fit for any wire."""
    there: list[bytes] = []
    back: list[bytes] = []
    with named_netns() as far:
        async with (
            AsyncTuntap(unique(), mode=mode, offload=Offload.ALL) as one,
            AsyncTuntap(unique(), mode=mode, offload=Offload.ALL, netns=far) as other,
        ):
            for interface, netns, addresses in ((one, None, BEYOND), (other, far, KERNEL)):
                turn_on_ipv6(interface.name, netns)
                await interface.configure(addresses=[f"{addresses[4]}/24", f"{addresses[6]}/64"], up=True)
                await until_own(addresses[6], netns)
            tasks = [
                asyncio.ensure_future(forward(one.queues[0], other.queues[0], there)),
                asyncio.ensure_future(forward(other.queues[0], one.queues[0], back)),
            ]
            async with asyncio.timeout(30):
                for version in (4, 6):
                    before = other.stats
                    payload = filler(1_000_000, version)
                    assert await transfer(payload, version, far) == payload
                    with (
                        Datagrams(version, gro=True, netns=far) as receiver,
                        sender(version, to=KERNEL, port=4000) as sock,
                    ):
                        for number in range(5):
                            data = filler(20_500, 10 + number)
                            sock.send(data)
                            assert b"".join(await receiver.wait(21)) == data
                        assert receiver.sizes == [1000] * 5 * has_uso()
                    assert other.stats.super_frames_written > before.super_frames_written + 5
            await settle()
            assert not any(task.done() for task in tasks), tasks
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            sent, taken = one.stats, other.stats
            arrived = link(other.name, "-n", far)["stats64"]["rx"]
    assert sent.super_frames_read > 10 and sent.frames_read == len(there) == taken.frames_written
    assert taken.super_frames_written > 10 and taken.frames_coalesced > 1000
    assert sent.segments_made > 1000
    assert sent.frames_dropped == sent.frames_refused == taken.frames_refused == taken.super_frames_refused == 0
    # How much there is to merge at a time depends on how fast all of them are.
    assert arrived["packets"] == taken.frames_written - taken.frames_coalesced + taken.super_frames_written
    streams = [frame for frame in there + back if is_stream(frame, mode)]
    assert len(streams) > 1400
    for frame in streams:
        assert len(frame) <= 1500 + 14 * (mode == "tap")
        ask_dpkt(frame, Mode(mode))
    sample = random.Random(1).sample(streams, 200)
    says = await asyncio.to_thread(tcpdump, sample, mode)
    assert says.count("(correct)") + says.count("[udp sum ok]") == len(sample)
    assert "bad cksum" not in says and "incorrect" not in says
    spoiled = [frame[:-1] + bytes([frame[-1] ^ 1]) for frame in sample]
    says = await asyncio.to_thread(tcpdump, spoiled, mode)
    assert says.count("(incorrect") + says.count("[bad udp cksum") == len(sample)


def is_stream(frame: bytes, mode: str) -> bool:
    """Whether it is TCP or UDP: the kernel also sends ICMPv6 and ARP by itself."""
    packet = frame[14:] if mode == "tap" else frame
    return {4: packet[9], 6: packet[6]}.get(packet[0] >> 4) in (TCP, UDP)


SHAPES = {
    "IPv4": udp(),
    "IPv6": udp(version=6),
    "IPv4 with DF": udp(fragment=0x4000),
    "IPv4 options": udp(options=b"\x01\x01\x01\x01"),
    "IPv6 destination options": udp(version=6, extensions=(extension(DESTINATION),)),
    "IPv6 hop-by-hop and destination options": udp(
        version=6, extensions=(extension(HOP_BY_HOP), extension(DESTINATION))
    ),
}


@MODES
async def test_runs_of_datagrams_arrive_as_they_were(mode: str) -> None:
    """At a socket that takes them together, and at one for which the kernel cuts them again."""
    async with transparent(mode, ipv6=True) as (interface, queue):
        for name, shape in SHAPES.items():
            packets = row(replace(shape, mode=Mode(mode)), 20, last=77)
            for gro in (True, False):
                before, arrived = queue.stats, link(interface.name)["stats64"]["rx"]["packets"]
                with Datagrams(shape.version, gro=gro) as receiver:
                    await queue.write_frames(build(packets))
                    assert receiver.receive() == payloads(packets), name
                    assert receiver.sizes == [1000] * (gro and has_uso()), name
                packets_arrived = link(interface.name)["stats64"]["rx"]["packets"] - arrived
                assert packets_arrived == (1 if has_uso() else 20), name
                assert queue.stats.super_frames_written == before.super_frames_written + has_uso()
                assert queue.stats.frames_coalesced == before.frames_coalesced + 20 * has_uso()
                assert queue.stats.frames_written == before.frames_written + 20
        assert queue.stats.frames_refused == 0


@MODES
async def test_runs_of_tcp_arrive_as_one_frame(mode: str) -> None:
    async with transparent(mode, ipv6=True) as (interface, queue):
        for version, ethertype in ((4, 0x0800), (6, 0x86DD)):
            packets = row(Packet(mode=Mode(mode), version=version, tcp_options=b"\x01" * 12), 30, 1400, last=5)
            packets[-1] = replace(packets[-1], flags=ACK | PSH)
            with PacketPeer(interface.name, ethertype, tun=mode == "tun") as peer:
                await queue.write_frames(build(packets))
                (frame,) = peer.receive()
            headers = packets[0].header_length
            assert len(frame) == headers + 29 * 1400 + 5
            assert frame[headers:] == b"".join(payloads(packets))
            assert frame[packets[0].transport + 13] == ACK | PSH
        assert queue.stats.super_frames_written == 2


async def test_only_what_the_offloads_allow_is_merged() -> None:
    cases = {Offload.CSUM: (0, 0), Offload.CSUM | Offload.TSO4: (1, 0), Offload.CSUM | Offload.TSO6: (0, 0)}
    uso = Offload.CSUM | Offload.USO4 | Offload.USO6
    if has_uso():
        cases[uso] = (0, 1)
    else:
        with pytest.raises(SetupError, match="does not know"):
            await AsyncTuntap(unique(), mode="tun", offload=uso).open()
    for offload, expected in cases.items():
        async with transparent(offload=offload) as (_, queue):
            counts = []
            for packet in (Packet(), udp()):
                before = queue.stats.super_frames_written
                await queue.write_frames(build(row(packet, 5)))
                counts.append(queue.stats.super_frames_written - before)
            assert tuple(counts) == expected
            assert queue.stats.frames_written == 10


async def test_interleaved_flows_keep_their_order() -> None:
    """Of datagrams in sizes that merge now and then, with and without what cannot be merged in between."""
    chance = random.Random(3)
    flows = [udp(version=4 + 2 * (port % 2), destination_port=4000 + port) for port in range(5)]
    frames: list[bytes] = []
    expected: list[list[bytes]] = [[] for _ in flows]
    for number in range(600):
        which = chance.randrange(len(flows))
        payload = filler(chance.choice((400, 400, 400, 400, 300, 800)), 2 + number)
        frames.append(replace(flows[which], identification=len(expected[which]), payload=payload).build())
        expected[which].append(payload)
        if not number % 50:
            frames.append(ipv4(number))
    async with transparent(ipv6=True) as (_, queue):
        receivers = [Datagrams(flow.version, flow.destination_port) for flow in flows]
        try:
            await queue.write_frames(frames)
            for receiver, datagrams in zip(receivers, expected, strict=True):
                assert receiver.receive() == datagrams
        finally:
            for receiver in receivers:
                receiver.socket.close()
        assert queue.stats.frames_written == len(frames)
        assert 250 < queue.stats.frames_coalesced < 600 if has_uso() else queue.stats.frames_coalesced == 0


@MODES
async def test_refused_frames_do_not_end_a_batch(mode: str) -> None:
    packets = row(udp(mode), 30)
    frames: list[Any] = build(packets)
    bad: list[Any] = [b"", bytes(70_000), bytes(13) if mode == "tap" else b"\x75" + bytes(39), [b"", b""]]
    for place, frame in zip((0, 7, 8, 20), bad, strict=True):
        frames.insert(place, frame)
    frames.append(bad[2])
    async with transparent(mode) as (interface, queue):
        with Datagrams() as receiver:
            with pytest.raises(InvalidFrameError, match="5 of 35 frames") as caught:
                await queue.write_frames(frames)
            assert caught.value.indexes == (0, 7, 8, 20, 34)
            assert receiver.receive() == payloads(packets)
        assert (queue.stats.frames_written, queue.stats.frames_refused) == (30, 5)
        assert (queue.stats.super_frames_written >= 2) == has_uso() and queue.stats.super_frames_refused == 0


async def test_frames_with_wrong_checksums_go_alone_and_as_they_came() -> None:
    """The kernel drops them, as it would have without offloads, and nothing else."""
    packets = row(udp(), 30)
    frames = build(packets)
    for place in (3, 4, 20):
        frames[place] = frames[place][:-1] + bytes([frames[place][-1] ^ 0x55])
    frames[25] = frames[25][:10] + b"\0\0" + frames[25][12:]  # of the IPv4 header

    def counter(protocol: str, name: str) -> int:
        lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
        names, values = (line for line in lines if line[0] == f"{protocol}:")
        return int(values[names.index(name)])

    async with transparent() as (_, queue):
        before = counter("Udp", "InCsumErrors"), counter("Ip", "InHdrErrors")
        with Datagrams() as receiver:
            await queue.write_frames(frames)
            assert receiver.receive() == [
                packet.payload for place, packet in enumerate(packets) if place not in (3, 4, 20, 25)
            ]
        assert counter("Udp", "InCsumErrors") == before[0] + 3
        assert counter("Ip", "InHdrErrors") == before[1] + 1
        assert queue.stats.frames_written == 30
        assert queue.stats.frames_coalesced == 26 * has_uso()


async def test_the_largest_super_frames() -> None:
    """64 frames, or 65535 bytes behind an Ethernet header with two VLAN tags."""
    async with transparent("tap") as (interface, queue):
        for vlan, protocol in itertools.product(((), (0x8100,), (0x88A8, 0x8100)), (TCP, UDP)):
            packet = replace(udp("tap", vlan=vlan), protocol=protocol)
            full = row(packet, 47, 1400, last=65535 - packet.header_length + packet.network - 46 * 1400)
            merged = merges(packet)
            before = queue.stats
            with PacketPeer(interface.name, ETH_P_ALL) as peer:
                await queue.write_frames(build(full) + build(row(packet, 65, 100)))
                assert len(peer.receive()) == (3 if merged else 47 + 65)
            assert queue.stats.super_frames_written == before.super_frames_written + 2 * merged
            assert queue.stats.frames_coalesced == before.frames_coalesced + (47 + 64) * merged
        assert queue.stats.super_frames_refused == 0


# -- a kernel that refuses ---------------------------------------------------------------------------------------------

KINDS = {
    "TCP over IPv4": (1, Packet()),
    "TCP over IPv6": (4, Packet(version=6)),
    "UDP over IPv4": (5, udp()),
    "UDP over IPv6": (5, udp(version=6)),
}


def merges(packet: Packet) -> bool:
    """Whether this kernel takes runs of such packets as one."""
    return packet.protocol == TCP or has_uso()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_kind_that_the_kernel_refuses_merged_is_not_merged_again(kind: str) -> None:
    gso_type, packet = KINDS[kind]
    version = packet.version
    frames = build(row(packet, 10))
    other_frames = {name: build(row(other, 10)) for name, (_, other) in KINDS.items() if name != kind}

    def refuses(data: bytes) -> int:
        return errno.EINVAL if data[1] == gso_type and data[10] >> 4 == version else 0

    async with transparent(ipv6=True) as (_, queue):
        offered = inject(queue, judge=refuses)
        await queue.write_frames(frames)
        refused = int(merges(packet))
        assert [data[10:] for data in offered[refused:]] == frames
        assert queue.stats == Stats(
            frames_read=queue.stats.frames_read, frames_written=10, super_frames_refused=refused
        )
        offered.clear()
        await queue.write_frames(frames + frames)
        assert [data[10:] for data in offered] == frames + frames
        assert queue.stats.super_frames_refused == refused
        for name, others in other_frames.items():
            offered.clear()
            await queue.write_frames(others)
            assert len(offered) == (1 if merges(KINDS[name][1]) else 10)
        merged = sum(merges(KINDS[name][1]) for name in other_frames)
        assert queue.stats.super_frames_written == merged and queue.stats.frames_coalesced == 10 * merged
        assert queue.stats.frames_written == 60 and queue.stats.frames_refused == 0


async def test_what_is_written_without_waiting_is_merged_where_it_is_in_a_row() -> None:
    packets = row(udp(), 10)
    frames: list[Any] = build(packets)
    async with transparent() as (_, queue):
        with Datagrams(gro=True) as receiver:
            offered = inject(queue)
            assert queue.write_frames_nowait([]) == 0
            assert queue.write_frames_nowait(frames) == 10 and len(offered) == (1 if has_uso() else 10)
            # Flows by turns, and frames that are not bytes: one by one, in order.
            other = build(row(udp(destination_port=4001), 10))
            by_turns = [frame for pair in zip(frames, other, strict=True) for frame in pair]
            offered.clear()
            assert queue.write_frames_nowait(by_turns) == 20
            assert [data[10:] for data in offered] == by_turns
            assert queue.write_frames_nowait([frames[0], bytearray(frames[1]), [frames[2]]]) == 3
            assert receiver.receive() == payloads(packets) * 2 + payloads(packets[:3])
        assert queue.stats.super_frames_written == has_uso() and queue.stats.frames_written == 33


async def test_writing_without_waiting_takes_what_stands_in_front() -> None:
    frames: list[Any] = build(row(Packet(), 10))
    other = build(row(Packet(destination_port=4001), 10))
    async with transparent() as (_, queue):
        engine = queue._engine
        for full in range(3):
            count = itertools.count()
            limit = full
            inject(queue, judge=lambda _: errno.EAGAIN * (next(count) >= limit))  # noqa: B023
            assert queue.write_frames_nowait([*frames, *other]) == 10 * full
            queue._engine = engine
        # A super-frame that is refused: its frames one by one. A frame that is refused ends it, and raises in front.
        inject(queue, judge=lambda data: errno.EINVAL if data[1] or frames[7] in data else 0)
        assert queue.write_frames_nowait(frames) == 7
        with pytest.raises(InvalidFrameError):
            queue.write_frames_nowait(frames[7:])
        assert queue.write_frames_nowait(frames[8:]) == 2
        queue._engine = engine
        texts: list[Any] = ["text", *frames]
        assert queue.write_frames_nowait([*frames, *texts]) == 10
        with pytest.raises(TypeError):
            queue.write_frames_nowait(texts)
        assert queue.stats.frames_written == 10 * 3 + 9 + 10 and queue.stats.frames_refused == 1


async def test_a_kind_that_is_refused_by_nowait_is_not_merged_again() -> None:
    frames = build(row(Packet(), 10))
    async with transparent() as (_, queue):
        offered = inject(queue, judge=lambda data: errno.EINVAL if data[1] else 0)
        assert queue.write_frames_nowait(frames) == 10 and len(offered) == 11
        assert queue.stats.super_frames_refused == 1 and queue.stats.frames_written == 10
        assert queue.write_frames_nowait(frames) == 10 and len(offered) == 21


async def test_a_closed_queue_says_so_whatever_it_is_given() -> None:
    async with transparent() as (_, queue):
        await queue.aclose()
        for frame in (b"", bytes(100_000), b"bad"):
            with pytest.raises(QueueClosedError):
                await queue.write_frame(frame)
            with pytest.raises(QueueClosedError):
                queue.write_frame_nowait(frame)
        assert queue.stats.frames_refused == 0


async def test_a_batch_of_super_frames_ends_by_its_size() -> None:
    async with transparent() as (_, queue), transparent() as (_, other):
        supers = coalesce(build(row(udp(), 40, 1400)), "tun")
        data = supers[0]
        other._engine = replace(other._engine, read_one=lambda _: data)
        other._more = True
        assert len(other.read_frames_nowait(4096)) <= 40 * 6


async def test_a_kind_that_was_refused_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_transparent, "_PAUSE", 0.05)
    frames = build(row(Packet(), 10))
    async with transparent() as (_, queue):
        refusing = True
        offered = inject(queue, judge=lambda data: errno.EINVAL if data[1] and refusing else 0)
        await queue.write_frames(frames)
        refusing = False
        await asyncio.sleep(0.1)
        offered.clear()
        await queue.write_frames(frames)
        assert len(offered) == 1 and queue.stats.super_frames_written == 1


async def test_the_frames_of_a_refused_super_frame_arrive_in_order() -> None:
    flows = [row(udp(destination_port=4000 + flow), 100, 200) for flow in range(2)]
    frames = [packet.build() for pair in zip(*flows, strict=True) for packet in pair]
    async with transparent() as (_, queue):
        inject(queue, judge=lambda data: errno.EINVAL if data[1] else 0)
        with Datagrams(port=4000) as one, Datagrams(port=4001) as other:
            await queue.write_frames(frames)
            assert one.receive() == payloads(flows[0]) and other.receive() == payloads(flows[1])
        # All super-frames of the first batch were made before the first one was offered.
        assert (queue.stats.super_frames_refused >= 1) == has_uso()
        assert (queue.stats.frames_written, queue.stats.frames_refused) == (200, 0)
        assert queue.stats.super_frames_written == queue.stats.frames_coalesced == 0


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EMSGSIZE, errno.EFAULT])
async def test_a_super_frame_with_one_bad_frame_does_not_stop_merging(number: int) -> None:
    packets = row(udp(), 20)
    bad = packets[13].payload
    async with transparent() as (_, queue):
        inject(queue, judge=lambda data: number if bad in data else 0)
        with Datagrams() as receiver:
            with pytest.raises(InvalidFrameError) as caught:
                await queue.write_frames([example_frame(0)[:0], *build(packets)])
            assert caught.value.indexes == (0, 14)
            assert receiver.receive() == [payload for payload in payloads(packets) if payload != bad]
            assert queue.stats == Stats(frames_written=19, frames_refused=2)
            await queue.write_frames(build(packets[:13]))
            assert receiver.receive() == payloads(packets[:13])
        assert queue.stats.super_frames_written == has_uso() and queue.stats.super_frames_refused == 0


async def test_the_link_going_down_on_the_way_through_a_refused_super_frame() -> None:
    """Frames that were written one by one before are not reported as not written."""
    frames = build(row(udp(), 20))
    async with transparent() as (_, queue):
        last = frames[7]

        def judge(data: bytes) -> int:
            if data[1]:
                return errno.EINVAL
            return errno.EIO if data.endswith(last) else 0

        inject(queue, judge=judge)
        with pytest.raises(LinkDownError) as caught:
            await queue.write_frames(frames)
        assert caught.value.__notes__ == ["13 of 20 frames were not written; the first is number 7"]
        assert queue.stats.frames_written == 7


# -- invalid frames from the kernel --------------------------------------------------------------------------------------

BROKEN = [
    struct.pack("=BBHHHH", 1, 0, 0, 0, 60_000, 6),  # a checksum outside
    struct.pack("=BBHHHH", 1, 0, 0, 0, 0, 0),  # one within the IP header
    struct.pack("=BBHHHH", 1, 5, 28, 0, 20, 6),  # segments without an end
    struct.pack("=BBHHHH", 1, 3, 28, 1000, 20, 6),  # legacy UFO
    struct.pack("=BBHHHH", 1, 4, 40, 1000, 20, 16),  # over IPv6 what is IPv4
    struct.pack("=BBHHHH", 0, 5, 28, 1000, 0, 0),  # UDP whose checksums nobody can know
    struct.pack("=BBHHHH", 1, 5, 65_535, 1000, 20, 6),  # headers longer than the frame
    struct.pack("=BBHHHH", 1, 0x25, 28, 1000, 20, 6),  # inside a tunnel
]


async def test_invalid_frames_are_dropped_and_counted() -> None:
    """Those between them come in order, super-frames or not, with each way of reading."""
    headers = itertools.cycle(BROKEN)

    def spoil(data: bytes) -> bytes:
        return next(headers) + data[10:] if int.from_bytes(data[-4:]) % 2 else data

    async with transparent() as (interface, queue):
        inject(queue, change=spoil)
        with PacketPeer(interface.name, 0x0800, tun=True) as peer, SuperFrames(queue) as sock:

            def send(numbers: range) -> list[int]:
                """Every third is sent as a super-frame of two. Returns what is to be read: the even ones."""
                for number in numbers:
                    if number % 3:
                        peer.send(ipv4(number, 32))
                    else:
                        sock.send(numbered((number, number)))
                return [number for number in numbers if not number % 2 for _ in range(1 if number % 3 else 2)]

            got: list[int] = []
            expected = send(range(120))
            async with asyncio.timeout(10):
                while len(got) < len(expected):
                    got += numbers_of(await queue.read_frames(7))
                assert got == expected
                await settle()
                expected = send(range(120, 180))
                assert numbers_of([await queue.read_frame() for _ in expected]) == expected
            await settle()
            expected = send(range(181, 300))
            assert numbers_of([queue.read_frame_nowait() for _ in expected]) == expected
            with pytest.raises(BlockingIOError):
                queue.read_frame_nowait()
        assert queue.stats.frames_dropped == 150
        assert (queue.stats.super_frames_read, queue.stats.segments_made) == (50 - 1, 100 - 2)  # not number 180
        assert queue.stats.frames_read == 100 - 2 + 100


async def test_a_frame_that_there_is_no_memory_to_segment_is_counted() -> None:
    async with transparent() as (interface, queue):
        engine = queue._engine

        def no_memory(*_: object) -> list[bytes]:
            raise MemoryError

        with PacketPeer(interface.name, 0x0800, tun=True) as peer:
            queue._pause()
            for number in range(4):
                peer.send(ipv4(number))
                queue._engine = replace(engine, segment=no_memory) if number == 1 else engine
                if number == 1:
                    with pytest.raises(MemoryError):
                        queue.read_frames_nowait()
                else:
                    assert queue.read_frames_nowait() == [ipv4(number)]
        assert (queue.stats.frames_read, queue.stats.frames_dropped) == (3, 1)


async def test_a_reader_keeps_waiting_after_invalid_frames() -> None:
    broken = True
    async with transparent() as (interface, queue):
        inject(queue, change=lambda data: BROKEN[0] + data[10:] if broken else data)
        with PacketPeer(interface.name, 0x0800, tun=True) as peer:
            for read in (queue.read_frame, queue.read_frames):
                broken = True
                reader: asyncio.Future[Any] = asyncio.ensure_future(read())
                await settle()
                # More than one callback takes.
                for number in range(3 * BATCH):
                    peer.send(ipv4(number))
                await settle()
                assert not reader.done()
                assert await idle_share() < 0.05
                broken = False
                peer.send(ipv4(7))
                async with asyncio.timeout(5):
                    assert await reader in (ipv4(7), [ipv4(7)])
                await settle()
        assert queue.stats.frames_dropped == 6 * BATCH
        assert queue.stats.frames_read == 2


# -- reading -----------------------------------------------------------------------------------------------------------


async def test_cancel_storm_loses_nothing() -> None:
    async with transparent() as (_, queue):
        got: list[bytes] = []

        async def read(batch: bool) -> None:
            if batch:
                got.extend(await queue.read_frames(3))
            else:
                got.append(await queue.read_frame())

        with SuperFrames(queue) as sock:
            for start in range(0, 1200, 20):
                sock.send(numbered(range(start, start + 20)))
                tasks = [asyncio.ensure_future(read(bool(number % 2))) for number in range(12)]
                for _ in range(start // 20 % 5):
                    await asyncio.sleep(0)
                for task in tasks[start // 20 % 3 :: 2]:
                    task.cancel()
                await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5):
            while len(got) < 1200:
                got += await queue.read_frames()
        assert numbers_of(got) == list(range(1200))


async def test_timeouts_lose_nothing() -> None:
    async with transparent() as (_, queue):
        got: list[bytes] = []
        loop = asyncio.get_running_loop()
        with SuperFrames(queue) as sock:
            numbers = itertools.count(0, 10)
            for turn in range(50):
                loop.call_later(turn * 0.002, lambda: sock.send(numbered(range(start := next(numbers), start + 10))))
            async with asyncio.timeout(20):
                while len(got) < 500:
                    with suppress(TimeoutError):
                        got.append(await asyncio.wait_for(queue.read_frame(), 0.0005))
        assert numbers_of(got) == list(range(500))


async def test_a_full_buffer_stops_reading_and_reading_resumes_it() -> None:
    """The buffer may be larger than asked for by what one super-frame has, and not by more."""
    async with transparent(read_buffer=(8, 2)) as (_, queue):
        with SuperFrames(queue) as sock:
            for start in range(0, 100, 20):
                sock.send(numbered(range(start, start + 20)))
        await settle()
        assert len(queue._buffer) == 20
        assert queue.fileno() not in watched_fds()
        assert await idle_share() < 0.05
        got = [await queue.read_frame() for _ in range(17)]
        await settle()
        assert len(queue._buffer) == 3 and queue.fileno() not in watched_fds()
        got.append(await queue.read_frame())
        await settle()
        assert len(queue._buffer) == 22 and queue.fileno() not in watched_fds()
        async with asyncio.timeout(5):
            while len(got) < 100:
                got += await queue.read_frames(3)
        assert numbers_of(got) == list(range(100))
        await settle()
        assert queue.fileno() in watched_fds()


@pytest.mark.parametrize("high", [1, 30, 256])
async def test_never_more_than_the_limit(high: int) -> None:
    async with transparent(read_buffer=high) as (interface, queue):
        got: list[bytes] = []
        count = 0
        with SuperFrames(queue) as sock, PacketPeer(interface.name, 0x0800, tun=True) as peer:
            async with asyncio.timeout(10):
                for limit in (1, 2, 39, 40, 41, 79, 80, 81, 1000):
                    for _ in range(3):
                        sock.send(numbered(range(count, count + 40)))
                        peer.send(ipv4(count + 40, 32))
                        count += 41
                    while len(got) < count:
                        frames = await queue.read_frames(limit)
                        assert 1 <= len(frames) <= limit
                        got += frames
        assert numbers_of(got) == list(range(count))


async def test_super_frames_are_read_up_to_the_limit_and_not_cut_in_two() -> None:
    """If the halves were written separately, only each half could be merged."""
    async with transparent(read_buffer=1) as (_, queue):
        with SuperFrames(queue) as sock:
            for start in range(0, 200, 10):
                sock.send(numbered(range(start, start + 10)))
        got = [await queue.read_frames(64) for _ in range(4)]
        assert [len(frames) for frames in got] == [60, 60, 60, 20]
        assert numbers_of(itertools.chain(*got)) == list(range(200))


async def test_a_limit_beyond_the_buffer_takes_what_the_kernel_has() -> None:
    async with transparent(read_buffer=16) as (interface, queue):
        with PacketPeer(interface.name, 0x0800, tun=True) as peer:
            for number in range(400):
                peer.send(ipv4(number, 32))
        assert numbers_of(await queue.read_frames(10_000)) == list(range(400))


async def test_nowait() -> None:
    async with transparent() as (_, queue):
        with pytest.raises(BlockingIOError):
            queue.read_frame_nowait()
        with SuperFrames(queue) as sock:
            sock.send(numbered(range(40)))
        assert numbers_of(queue.read_frame_nowait() for _ in range(40)) == list(range(40))
        with pytest.raises(BlockingIOError):
            queue.read_frame_nowait()


async def test_readers_are_served_in_turn() -> None:
    async with transparent() as (_, queue):
        order: list[int] = []
        got: list[bytes] = []

        async def read(reader: int) -> None:
            for _ in range(8):
                got.append(await queue.read_frame())
                order.append(reader)

        tasks = [asyncio.ensure_future(read(reader)) for reader in range(3)]
        await asyncio.sleep(0)
        with SuperFrames(queue) as sock:
            sock.send(numbered(range(12)))
            await settle()
            sock.send(numbered(range(12, 24)))
        await asyncio.gather(*tasks)
        assert numbers_of(got) == list(range(24))
        assert order == [0, 1, 2] * 8


async def test_deleted_after_a_super_frame_was_read() -> None:
    """The frames of the super-frame are still returned."""
    async with transparent() as (interface, queue):
        reader = asyncio.ensure_future(queue.read_frame())
        await settle()
        with SuperFrames(queue) as sock:
            sock.send(numbered(range(10)))
        assert numbers_of([await reader]) == [0]
        await settle()
        ip("link", "del", interface.name)
        await settle()
        assert numbers_of(await queue.read_frames(4)) == [1, 2, 3, 4]
        assert numbers_of([queue.read_frame_nowait()]) == [5]
        got: list[bytes] = []
        with pytest.raises(DeviceGoneError):
            async for frame in queue:
                got.append(frame)
        assert numbers_of(got) == [6, 7, 8, 9]
        for write in (queue.write_frame(ipv4()), queue.write_frames([ipv4(1), ipv4(2)])):
            with pytest.raises(DeviceGoneError):
                await write
        assert await idle_share() < 0.05


async def test_an_idle_queue_costs_nothing() -> None:
    async with transparent() as (_, queue):
        with SuperFrames(queue) as sock:
            sock.send(numbered(range(10)))
        async with asyncio.timeout(5):
            got = [await queue.read_frame() for _ in range(10)]
        assert numbers_of(got) == list(range(10))
        with Datagrams():
            await queue.write_frames(build(row(udp(), 10)))
        reader = asyncio.ensure_future(queue.read_frame())
        await settle()
        assert await idle_share() < 0.05
        await queue.aclose()
        with pytest.raises(QueueClosedError):
            await reader


# -- writing -----------------------------------------------------------------------------------------------------------


async def test_every_kind_of_frame_is_written_whole_and_merged() -> None:
    packets = row(udp(), 8)
    frames = build(packets)

    def kinds(data: list[bytes]) -> list[Any]:
        return [
            data[0],
            bytearray(data[1]),
            memoryview(data[2]),
            [data[3][:20], data[3][20:]],
            (data[4][:3], memoryview(data[4])[3:]),
            [bytearray(data[5])],
            memoryview(data[6]).cast("H"),  # items of two bytes
            [data[7][at : at + 1] for at in range(len(data[7]))],  # more pieces than one writev(2) takes
        ]

    async with transparent() as (interface, queue):
        with Datagrams(gro=True) as receiver:
            for frame in kinds(frames):
                await queue.write_frame(frame)
            for frame in kinds(frames):
                queue.write_frame_nowait(frame)
            assert receiver.receive() == payloads(packets) * 2
            assert queue.stats.super_frames_written == 0 and receiver.sizes == []
            for batch in (kinds(frames), tuple(kinds(frames)), iter(kinds(frames))):
                await queue.write_frames(batch)
            assert receiver.receive() == payloads(packets) * 3
            assert queue.stats.super_frames_written == 3 * has_uso() and receiver.sizes == [1000] * 3 * has_uso()
            await queue.write_frames([])
        assert queue.stats.frames_written == 40


async def test_a_wrong_type_is_named_and_what_stood_before_it_is_written() -> None:
    packets = row(udp(), 6)
    frames: list[Any] = build(packets)
    async with transparent() as (_, queue):
        with Datagrams() as receiver:
            wrongs: list[Any] = ["text", 7, None, [b"", "text"]]
            for wrong in wrongs:
                with pytest.raises(
                    TypeError, match="a frame must be a bytes-like object, or a list or tuple"
                ) as caught:
                    await queue.write_frames([*frames[:3], b"", wrong, *frames[3:]])
                assert caught.value.__notes__ == [
                    "4 of 8 frames were not written; the first is number 4",
                    "of the others, these were refused: [3]",
                ]
                assert receiver.receive() == payloads(packets[:3])
                with pytest.raises(TypeError):
                    await queue.write_frame(wrong)
                with pytest.raises(TypeError):
                    queue.write_frame_nowait(wrong)
            batches: list[Any] = [frames[0], bytearray(frames[0]), memoryview(frames[0]), "text"]
            for batch in batches:
                with pytest.raises(TypeError, match="several frames"):
                    await queue.write_frames(batch)
            assert receiver.receive() == []


@MODES
async def test_single_frames_that_are_refused(mode: str) -> None:
    wrong = {b"": "on this interface, not 0:", bytes(65_536 + 22): "on this interface, not 65558:"}
    wrong[bytes(13) if mode == "tap" else b"\x75" + bytes(39)] = "the kernel refuses the frame"
    async with transparent(mode) as (_, queue):
        for frame, why in wrong.items():
            with pytest.raises(InvalidFrameError, match=why):
                await queue.write_frame(frame)
            with pytest.raises(InvalidFrameError, match=why):
                queue.write_frame_nowait(frame)
        assert queue.stats == Stats(frames_refused=6)
        with Datagrams() as receiver:
            await queue.write_frame(udp(mode, payload=b"good").build())
            assert receiver.receive() == [b"good"]


async def test_the_largest_frames_are_those_without_offloads() -> None:
    for mode in ("tun", "tap"):
        plain = AsyncTuntap(mode=mode)._interface.options.max_frame
        async with transparent(mode) as (_, queue):
            with pytest.raises(
                InvalidFrameError, match=f"must have 1 to {plain} bytes on this interface, not {plain + 1}"
            ):
                await queue.write_frame(bytes(plain + 1))
            await queue.write_frame(b"\x45" * plain)


async def test_down_in_the_middle_of_a_batch_says_where() -> None:
    packets = row(udp(fragment=0x4000), 2000, 100)
    async with transparent() as (interface, queue):

        async def take_down() -> None:
            ip("link", "set", interface.name, "down")

        with Datagrams(gro=True) as receiver:
            taking_down = asyncio.ensure_future(take_down())
            with pytest.raises(LinkDownError) as caught:
                await queue.write_frames([b"", *build(packets)])
            await taking_down
            note, refused = caught.value.__notes__
            match = re.fullmatch(r"(\d+) of 2001 frames were not written; the first is number (\d+)", note)
            assert match is not None, note
            left, first = map(int, match.groups())
            assert first + left == 2001 and 0 < left < 2000
            assert refused == "of the others, these were refused: [0]"
            assert receiver.receive() == payloads(packets[: first - 1])
            assert queue.stats.frames_written == first - 1
            with pytest.raises(LinkDownError):
                await queue.write_frame(packets[0].build())
            with pytest.raises(LinkDownError):
                queue.write_frame_nowait(packets[0].build())
            await interface.configure(up=True)
            await queue.write_frames(build(packets[:10]))
            assert receiver.receive() == payloads(packets[:10])


@asynccontextmanager
async def congested() -> AsyncIterator[tuple[AsyncTuntap, TuntapQueue, str]]:
    """A transparent TAP with little send buffer: its frames wait in a slow token bucket of a bridge's other port.

    The last one is the interface at which they arrive.
    """
    bridge, slow = unique("br"), unique("slow")
    for switch in Path("/proc/sys/net/bridge").glob("bridge-nf-call-ip*tables"):
        switch.write_text("0")  # netfilter on a bridge takes IP packets off the account of who sent them
    ip("link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
    ip("link", "add", slow, "type", "veth", "peer", "name", f"{slow}p")
    try:
        async with AsyncTuntap(unique(), mode="tap", offload=Offload.ALL) as interface:
            (queue,) = interface.queues
            for name in (interface.name, slow):
                ip("link", "set", name, "master", bridge)
            for name in (interface.name, bridge, slow, f"{slow}p"):
                ip("link", "set", name, "up")
            limits = ("rate", "2mbit", "burst", "2000", "limit", "1000000")
            subprocess.run(["tc", "qdisc", "add", "dev", slow, "root", "tbf", *limits], check=True)
            while link(slow)["linkinfo"]["info_slave_data"]["state"] != "forwarding":
                await settle()
            await interface.set_send_buffer(10_000)
            yield interface, queue, f"{slow}p"
    finally:
        ip("link", "del", bridge, check=False)
        ip("link", "del", slow, check=False)


async def test_a_full_send_buffer_makes_a_batch_wait_and_nothing_is_lost() -> None:
    """Super-frames too, in order, also if the bridge and the token bucket filter segment them."""
    packets = row(udp("tap", destination=9, fragment=0x4000), 150, 1000)
    async with congested() as (_, queue, beyond):
        with PacketPeer(beyond, 0x0800) as peer:
            writing = asyncio.ensure_future(queue.write_frames(build(packets)))
            got: list[bytes] = []
            waited = False
            async with asyncio.timeout(20):
                while len(got) < len(packets):
                    await asyncio.sleep(0.01)
                    waited |= bool(queue._writers)
                    got += pieces(peer.receive())
                await writing
            assert waited
            assert got == payloads(packets)
            assert (queue.stats.super_frames_written >= 2) == has_uso() and queue.stats.frames_refused == 0
            assert not queue._writers


def pieces(frames: list[bytes]) -> list[bytes]:
    """Payloads of 1000 bytes, of frames that the kernel may still have together."""
    return [frame[at : at + 1000] for frame in frames for at in range(42, len(frame), 1000)]


@pytest.mark.parametrize("fault", ["delete", "down", "close"])
async def test_a_batch_that_waits_ends_when_there_is_nothing_to_wait_for(fault: str) -> None:
    packets = row(udp("tap", destination=9, fragment=0x4000), 1000, 1000)
    async with congested() as (interface, queue, _):
        writing = asyncio.ensure_future(queue.write_frames(build(packets)))
        async with asyncio.timeout(5):
            while not queue._writers:
                await asyncio.sleep(0)
        written = queue.stats.frames_written
        assert not writing.done()
        if fault == "delete":
            ip("link", "del", interface.name)
        elif fault == "down":
            ip("link", "set", interface.name, "down")
        else:
            await interface.aclose()
        expected = {"delete": DeviceGoneError, "down": LinkDownError, "close": QueueClosedError}[fault]
        with pytest.raises(expected) as caught:
            async with asyncio.timeout(5):
                await writing
        assert queue.stats.frames_written == written
        assert caught.value.__notes__ == [
            f"{1000 - written} of 1000 frames were not written; the first is number {written}"
        ]


async def test_cancelling_a_batch_writes_each_frame_whole_or_not_at_all() -> None:
    packets = row(udp(fragment=0x4000), 400, 100)
    async with transparent() as (_, queue):
        with Datagrams(gro=True) as receiver:
            for blocked in range(1, 8):
                engine = queue._engine
                count = itertools.count(1)
                full = blocked
                offered = inject(queue, judge=lambda _: errno.EAGAIN * (next(count) >= full))  # noqa: B023
                writing = asyncio.ensure_future(queue.write_frames(build(packets)))
                await settle()
                assert not writing.done() and queue._writers
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
                assert writing.cancelled() and not queue._writers
                queue._engine = engine
                assert receiver.receive() == payloads(packets[: (64 if has_uso() else 1) * (blocked - 1)])
                assert len(offered) >= blocked and len(set(offered)) == blocked  # the same one again and again


# -- NAPI --------------------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("vnet_header", [False, True], ids=["transparent", "pass-through"])
async def test_napi_takes_and_sends_super_frames(mode: str, vnet_header: bool) -> None:
    packets = row(udp(mode), 30, last=10)
    async with transparent(mode, napi=True, vnet_header=vnet_header) as (interface, queue):
        assert isinstance(queue, TransparentQueue) is not vnet_header
        assert queue._file.get_ifreq().flags & _abi.IFF_NAPI
        assert ("tx-udp-segmentation" in features_on(interface.name)) == has_uso()
        frames = build(packets)
        if vnet_header:
            whole = replace(packets[0], payload=b"".join(payloads(packets))).super_frame(1000)
            if not has_uso():
                with pytest.raises(InvalidFrameError):
                    await queue.write_frame(whole)
            frames = [whole] if has_uso() else [bytes(10) + frame for frame in frames]
        with Datagrams(gro=True) as receiver:
            await queue.write_frames([*frames, bytes(10) * vnet_header + packets[0].build()])
            assert await receiver.wait(31) == [*payloads(packets), packets[0].payload]
            # The kernel's own GRO may add to what comes as one.
            assert set(receiver.sizes) <= {1000} and (receiver.sizes[:1] == [1000] or not has_uso())
        with sender() as sock:
            sock.send(filler(5000, 2))
        whole_again = vnet_header and has_uso()
        async with asyncio.timeout(5):
            got = [await queue.read_frame() for _ in range(1 if whole_again else 5)]
        assert b"".join(frame[-5000 if whole_again else -1000 :] for frame in got) == filler(5000, 2)


async def test_plain_frames_pass_through_the_receive_offload_of_the_kernel() -> None:
    """With NAPI, single frames of one flow may arrive together; without a loss either way."""
    packets = row(Packet(), 20)
    async with transparent(napi=True, offload=Offload.CSUM) as (interface, queue):
        with PacketPeer(interface.name, 0x0800, tun=True) as peer:
            await queue.write_frames(build(packets))
            got: list[bytes] = []
            async with asyncio.timeout(5):
                while sum(len(frame) - 40 for frame in got) < 20_000:
                    await asyncio.sleep(0)
                    got += peer.receive()
        assert b"".join(frame[40:] for frame in got) == b"".join(payloads(packets))
        assert queue.stats.super_frames_written == 0 and queue.stats.frames_written == 20


async def test_a_queue_of_several_behaves_like_a_single_one() -> None:
    """Four queues, each with its own flow, both ways."""
    packets = [row(udp(source_port=40000 + number), 10) for number in range(4)]
    async with transparent(queues=4) as (interface, _):
        with Datagrams() as receiver:
            for queue, flow in zip(interface.queues, packets, strict=True):
                await queue.write_frames(build(flow))
            assert receiver.receive() == [packet.payload for flow in packets for packet in flow]
            assert [queue.stats.frames_coalesced for queue in interface.queues] == [10 * has_uso()] * 4
            receiver.socket.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
            for number, queue in enumerate(interface.queues):
                # The reply to a flow comes to the queue that wrote it.
                receiver.socket.sendto(numbered(range(20)), (BEYOND[4], 40000 + number))
                async with asyncio.timeout(5):
                    assert numbers_of([await queue.read_frame() for _ in range(20)]) == list(range(20))
        assert interface.stats.super_frames_read == interface.stats.super_frames_written == 4 * has_uso()
