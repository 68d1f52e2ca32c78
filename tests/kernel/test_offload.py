"""Offloads as the kernel has them: which are on, headers that it refuses, who may attach, and what stays behind."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from aiotuntap import AsyncTuntap, InvalidFrameError, Mode, Offload, SetupError, TuntapQueue, VnetHeader, _abi
from aiotuntap._device import QueueFile, header_size
from aiotuntap._offload.flags import check
from aiotuntap._transparent import TransparentQueue
from aiotuntap.testing import example_frame

from ..engine import coalesce, segment
from ..offload_packets import (
    ACK,
    DF,
    ECE,
    GSO_TYPE,
    HOP_BY_HOP,
    NEEDS_CSUM,
    ROUTING,
    TCP,
    UDP,
    Packet,
    extension,
    extensions_of,
    filler,
    vnet_header,
)
from .support import (
    features_on,
    has_uso,
    ip,
    make_room,
    offered,
    offers,
    on_one_loop,
    raw_queue,
    settle,
    tap,
    tap_with_peer,
    tun_info,
    unique,
)

pytestmark = pytest.mark.usefixtures("engine")

CSUM, TSO4, TSO6, ECN = Offload.CSUM, Offload.TSO4, Offload.TSO6, Offload.ECN
USO, ALL = Offload.USO4 | Offload.USO6, Offload.ALL
TUNNEL, TUNNEL_CSUM = Offload.UDP_TUNNEL, Offload.UDP_TUNNEL_CSUM

UDP_SEGMENT = 103  # <linux/udp.h>

FEATURES = {
    CSUM: {"tx-checksum-ip-generic"},
    TSO4: {"tx-tcp-segmentation"},
    TSO6: {"tx-tcp6-segmentation"},
    ECN: {"tx-tcp-ecn-segmentation"},
    USO: {"tx-udp-segmentation"},
    TUNNEL: {"tx-udp_tnl-segmentation"},
    TUNNEL_CSUM: {"tx-udp_tnl-csum-segmentation"},
}


def offloads_on(name: str) -> set[str]:
    """Of the features that offloads stand for, those that ethtool shows as on."""
    return features_on(name) & set().union(*FEATURES.values())


def features(offload: Offload) -> set[str]:
    return set().union(*(names for flags, names in FEATURES.items() if flags & offload))


# -- which are on ------------------------------------------------------------------------------------------------------


async def test_combinations_are_refused_exactly_where_the_kernel_refuses_them() -> None:
    async with AsyncTuntap(unique(), mode="tap", vnet_header=True) as interface:
        file = interface.queues[0]._file
        file.set_int(_abi.TUNSETVNETHDRSZ, 24)

        def kernel_takes(value: int) -> bool:
            try:
                file.set_value(_abi.TUNSETOFFLOAD, value)
            except OSError as error:
                assert error.errno == errno.EINVAL
                return False
            return True

        def is_valid(value: int) -> bool:
            try:
                check(Offload(value))
            except ValueError:
                return False
            return True

        lacking = NONE = Offload.NONE
        for flags, company in ((USO, CSUM), (TUNNEL, CSUM | TSO4), (TUNNEL_CSUM, CSUM | TSO4 | TUNNEL)):
            if not kernel_takes((flags | company).value):
                lacking |= flags
        legacy = _abi.TUN_F_UFO  # accepted with CSUM, means nothing any more, and is no Offload
        for value in range(0x200):
            if Offload(value & ~legacy) & lacking == NONE:
                valid = is_valid(value & ~legacy) and (not value & legacy or bool(value & CSUM.value))
                assert kernel_takes(value) == valid, f"{value:#x}"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vnet_header": True},
        {"offload": CSUM},
        {"offload": CSUM | TSO4},
        {"offload": CSUM | TSO6 | ECN, "vnet_header": True},
        {"offload": CSUM | USO},
        {"offload": ALL},
        {"offload": ALL | TUNNEL, "vnet_header": True},
        {"offload": ALL | TUNNEL | TUNNEL_CSUM, "vnet_header": True},
    ],
    ids=lambda options: ", ".join(f"{option}={value}" for option, value in options.items()) or "none",
)
async def test_ethtool_shows_what_was_asked_for(options: dict[str, Any]) -> None:
    offload = options.get("offload", Offload.NONE)
    tunnels = bool(offload & (TUNNEL | TUNNEL_CSUM))
    interface = AsyncTuntap(unique(), mode="tap" if tunnels else "tun", **options)
    lacking = (offload & ~ALL if ALL in offload else offload) & ~offered(offload)
    if lacking:
        with pytest.raises(SetupError, match=re.escape(f"does not know {lacking}:")):
            await interface.open()
        return
    offload = offered(offload)
    async with interface:
        assert interface.offload == offload
        assert offloads_on(interface.name) == features(offload)
        # Without a header, nobody could tell what is left undone in a frame.
        assert tun_info(interface.name)["vnet_hdr"] == bool(options)
        (queue,) = interface.queues
        assert isinstance(queue, TransparentQueue) == (offload != Offload.NONE and "vnet_header" not in options)
        assert header_size(queue._file) == (24 if tunnels else 10)


def lacks(patch: pytest.MonkeyPatch, offload: Offload) -> None:
    """From here on the kernel does not know these."""
    set_value = QueueFile.set_value

    def refuse(file: QueueFile, request: int, value: int) -> None:
        if request == _abi.TUNSETOFFLOAD and value & offload.value:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        set_value(file, request, value)

    patch.setattr(QueueFile, "set_value", refuse)


@pytest.mark.parametrize("vnet_header", [False, True], ids=["transparent", "pass-through"])
@pytest.mark.parametrize("lacking", [USO, ECN, ALL], ids=str)
async def test_all_is_what_the_kernel_has(monkeypatch: pytest.MonkeyPatch, lacking: Offload, vnet_header: bool) -> None:
    lacks(monkeypatch, lacking)
    async with tap_with_peer(offload=ALL, vnet_header=vnet_header) as (interface, peer):
        assert interface.offload == offered() & ~lacking
        assert offloads_on(interface.name) == features(offered() & ~lacking)
        (queue,) = interface.queues
        header = bytes(10) if vnet_header else b""
        await queue.write_frames([header + example_frame(1), header + example_frame(2)])
        assert [await peer.read_frame() for _ in range(2)] == [example_frame(1), example_frame(2)]
        peer.send(example_frame(3))
        assert await queue.read_frame() == header + example_frame(3)


async def test_a_kernel_without_an_offload_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left on, though some of what was asked for could have been."""
    lacks(monkeypatch, USO)
    name = unique()
    ip("tuntap", "add", "mode", "tun", "name", name, "multi_queue")
    try:
        for vnet_header in (False, True):
            with pytest.raises(SetupError, match=r"does not know Offload.USO4\|USO6:") as caught:
                await AsyncTuntap(name, mode="tun", offload=CSUM | TSO4 | USO, vnet_header=vnet_header).open()
            assert caught.value.errno == errno.EINVAL
            assert offloads_on(name) == set()
    finally:
        ip("link", "del", name)


async def lacks_tunnels() -> bool:
    """Whether this kernel has no UDP tunnels, which is then what opening says."""
    if offers(CSUM | TSO4 | TUNNEL | TUNNEL_CSUM):
        return False
    with pytest.raises(SetupError, match=r"does not know Offload.UDP_TUNNEL\|UDP_TUNNEL_CSUM:") as caught:
        offload = CSUM | TSO4 | TUNNEL | TUNNEL_CSUM
        await AsyncTuntap(unique(), mode="tap", vnet_header=True, offload=offload).open()
    assert caught.value.errno == errno.EINVAL
    return True


async def test_24_bytes_in_front_with_tunnels() -> None:
    if await lacks_tunnels():
        return
    async with tap_with_peer(vnet_header=True, offload=CSUM | TSO4 | TUNNEL) as (interface, peer):
        (queue,) = interface.queues
        peer.send(example_frame(1))
        assert await queue.read_frame() == bytes(24) + example_frame(1)
        await queue.write_frame(bytes(24) + example_frame(2))
        assert await peer.read_frame() == example_frame(2)
        with pytest.raises(InvalidFrameError):
            await queue.write_frame(bytes(24) + example_frame(2)[:13])


async def test_a_super_frame_inside_a_tunnel_says_where_the_inner_packet_is() -> None:
    """UDP_SEGMENT over a vxlan that goes through the interface: the long header as the kernel fills it."""
    if await lacks_tunnels():
        return
    vxlan = unique("vx")
    async with AsyncTuntap(unique(), mode="tap", vnet_header=True, offload=ALL | TUNNEL | TUNNEL_CSUM) as interface:
        await interface.configure(addresses=["10.0.0.2/24"], up=True)
        ip("neigh", "add", "10.0.0.1", "lladdr", "02:00:00:00:00:01", "dev", interface.name)
        options = ("id", "7", "remote", "10.0.0.1", "dstport", "4789", "dev", interface.name)
        run = subprocess.run(["ip", "link", "add", vxlan, "type", "vxlan", *options], capture_output=True, check=False)
        if run.returncode:
            pytest.skip("this kernel has no vxlan")
        try:
            ip("addr", "add", "10.1.0.2/24", "dev", vxlan)
            ip("link", "set", vxlan, "up")
            ip("neigh", "add", "10.1.0.1", "lladdr", "02:00:00:00:00:09", "dev", vxlan)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
                sender.sendto(filler(10_000, 2), ("10.1.0.1", 4000))
            async with asyncio.timeout(5):
                frame = await interface.queues[0].read_frame()
            await settle()  # out of the queue's own callback
        finally:
            ip("link", "del", vxlan)
        header = VnetHeader.unpack(frame, 24)
        assert header.flags & NEEDS_CSUM
        assert header.gso_type == VnetHeader.GSO_UDP_L4 | VnetHeader.GSO_UDP_TUNNEL_IPV4
        # Ethernet 14, IPv4 20, UDP 8, vxlan 8, and inside again Ethernet 14, IPv4 20, UDP 8.
        assert (header.outer_th_offset, header.inner_nh_offset, header.csum_start) == (34, 64, 84)
        assert (header.hdr_len, header.gso_size) == (92, 1000)
        assert frame[24 + 92 :] == filler(10_000, 2)


# -- frames with a header of their own ---------------------------------------------------------------------------------

TO_KERNEL = Packet(mode=Mode.TAP, protocol=UDP, destination_port=4000)
SMALL = replace(TO_KERNEL, payload=filler(100, 3))
UDP_DATA = replace(TO_KERNEL, payload=filler(5000, 4))
TCP_DATA = replace(UDP_DATA, protocol=TCP)
WHOLE, SIZE = SMALL.build(), len(SMALL.build())

ACCEPTED = {
    "nothing left undone": bytes(10) + WHOLE,
    "a checksum to complete": vnet_header(flags=NEEDS_CSUM, csum_start=34, csum_offset=6) + SMALL.build(partial=True),
    "flags that nobody knows": vnet_header(flags=0xF0) + WHOLE,
    "hdr_len up to the end": vnet_header(hdr_len=SIZE) + WHOLE,
    "TCP over IPv4": TCP_DATA.super_frame(1000),
    "TCP over IPv6": replace(TCP_DATA, version=6).super_frame(1000),
    "TCP, hdr_len 0": TCP_DATA.super_frame(1000, hdr_len=0),
    "TCP, no NEEDS_CSUM": vnet_header(gso_type=1, gso_size=1000) + TCP_DATA.build(),
    "TCP, gso_size past the payload": TCP_DATA.super_frame(6000),
    "TCP with ECN": TCP_DATA.super_frame(1000, gso_type=0x81),
    "TCPV6 on IPv4, no NEEDS_CSUM": vnet_header(gso_type=4, gso_size=1000) + TCP_DATA.build(),
    "TCPV4 on UDP, checksum as of TCP": UDP_DATA.super_frame(1000, gso_type=1, csum_offset=16),
    "USO": UDP_DATA.super_frame(1000),
    "USO, gso_size past the payload": UDP_DATA.super_frame(6000),
    "USO, 125 segments": replace(SMALL, payload=filler(12_500, 5)).super_frame(100),
    "USO, 128 segments": replace(SMALL, payload=filler(12_800, 5)).super_frame(100),
    "UFO": UDP_DATA.super_frame(1000, gso_type=3),
    "UFO, no NEEDS_CSUM": vnet_header(gso_type=3, gso_size=1000) + UDP_DATA.build(),
}

REFUSED = {
    "shorter than the header": bytes(9),
    "a header alone": bytes(10),
    "13 bytes behind the header": bytes(10) + WHOLE[:13],
    "hdr_len past the end": vnet_header(hdr_len=SIZE + 1) + WHOLE,
    "hdr_len within Ethernet": vnet_header(hdr_len=13) + WHOLE,
    "csum_start at the end": vnet_header(flags=NEEDS_CSUM, csum_start=SIZE) + WHOLE,
    "checksum past the end by a byte": vnet_header(flags=NEEDS_CSUM, csum_start=SIZE - 7, csum_offset=6) + WHOLE,
    "csum_offset past the end": vnet_header(flags=NEEDS_CSUM, csum_start=34, csum_offset=0xFFF0) + WHOLE,
    "checksum within Ethernet": vnet_header(flags=NEEDS_CSUM) + WHOLE,
    "gso_type 2": UDP_DATA.super_frame(1000, gso_type=2),
    "gso_type 7": UDP_DATA.super_frame(1000, gso_type=7),
    "ECN alone": vnet_header(gso_type=0x80, gso_size=1000) + WHOLE,
    "USO, gso_size 0": UDP_DATA.super_frame(0),
    "USO, gso_size 65535": UDP_DATA.super_frame(0xFFFF),
    "USO, no NEEDS_CSUM": UDP_DATA.super_frame(1000, flags=0),
    "USO with ECN": UDP_DATA.super_frame(1000, gso_type=0x85),
    "USO, 129 segments": replace(SMALL, payload=filler(12_900, 5)).super_frame(100),
    "TCP, gso_size 0": TCP_DATA.super_frame(0),
    "TCP, gso_size 65535": TCP_DATA.super_frame(0xFFFF),
    "TCP, checksum as of UDP": TCP_DATA.super_frame(1000, csum_offset=6),
    "TCPV4 on UDP": UDP_DATA.super_frame(1000, gso_type=1),
    "TCPV6 on IPv4": TCP_DATA.super_frame(1000, gso_type=4),
    "inside a tunnel over IPv4, short header": UDP_DATA.super_frame(1000, gso_type=0x25),
    "inside a tunnel over IPv6, short header": UDP_DATA.super_frame(1000, gso_type=0x45),
}

#: Of the refused ones, those that Linux 5.10 or 6.1 still takes, to drop or to cut them later on.
CHECKED_SINCE = ("TCP, gso_size 65535", "TCP, checksum as of UDP", "TCPV4 on UDP", "TCPV6 on IPv4")

#: What a UDP socket gets of those above.
DELIVERED = {
    "nothing left undone": [100],
    "a checksum to complete": [100],
    "flags that nobody knows": [100],
    "hdr_len up to the end": [100],
    "TCPV4 on UDP, checksum as of TCP": [5000],
    "USO": [1000] * 5,
    "USO, gso_size past the payload": [5000],
    "USO, 125 segments": [100] * 125,
    "USO, 128 segments": [100] * 128,
    "UFO": [5000],
    "UFO, no NEEDS_CSUM": [5000],
}


async def test_headers_that_the_kernel_takes_and_headers_that_it_refuses() -> None:
    """Each refused one is an InvalidFrameError of its own frame, and the stream goes on."""
    accepted, refused = dict(ACCEPTED), dict(REFUSED)
    if not has_uso():
        for name in [name for name in accepted if name.startswith("USO")]:
            refused[name] = accepted.pop(name)
    with raw_queue() as (fd, name):
        ip("link", "set", name, "up")
        for name in CHECKED_SINCE:
            with suppress(OSError):
                os.write(fd, refused[name])
                accepted[name] = refused.pop(name)
    async with AsyncTuntap(unique(), mode="tap", vnet_header=True, offload=ALL) as interface:
        await interface.configure(addresses=["10.0.0.2/24"], mac="02:00:00:00:00:02", up=True)
        (queue,) = interface.queues
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver:
            make_room(receiver)
            receiver.bind(("10.0.0.2", 4000))

            def received() -> list[int]:
                sizes = []
                while True:
                    try:
                        sizes.append(len(receiver.recv(_abi.READ_SIZE)))
                    except BlockingIOError:
                        return sizes

            for name, frame in accepted.items():
                try:
                    await queue.write_frame(frame)
                except InvalidFrameError as error:
                    raise AssertionError(f"{name}: {error}") from None
                arrived = received()
                assert name in CHECKED_SINCE or arrived == DELIVERED.get(name, []), name
            for name, frame in refused.items():
                for write in (queue.write_frame, write_now(queue)):
                    try:
                        await write(frame)
                    except InvalidFrameError as error:
                        assert error.indexes == (0,)
                    else:
                        raise AssertionError(f"{name}: written")
                assert received() == [], name
            assert queue.stats.frames_written == len(accepted)
            assert queue.stats.frames_refused == 2 * len(refused)

            names = sorted((ACCEPTED | REFUSED).keys() - set(CHECKED_SINCE))
            with pytest.raises(InvalidFrameError) as caught:
                await queue.write_frames([(ACCEPTED | REFUSED)[name] for name in names])
            assert [names[index] for index in caught.value.indexes] == sorted(refused.keys() - set(CHECKED_SINCE))
            delivered = [size for name in accepted.keys() & DELIVERED for size in DELIVERED[name]]
            assert sorted(received()) == sorted(delivered)


def write_now(queue: TuntapQueue) -> Callable[[bytes], Awaitable[None]]:
    async def write(frame: bytes) -> None:
        queue.write_frame_nowait(frame)

    return write


async def test_a_super_frame_of_the_kernel_is_the_same_after_it_was_segmented_and_merged() -> None:
    """Header included."""
    async with AsyncTuntap(unique(), mode="tun", vnet_header=True, offload=ALL) as tun:
        await tun.configure(addresses=["10.0.0.2/24"], up=True)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
            sender.sendto(filler(10_400, 2), ("10.0.0.1", 4000))
        whole = await tun.queues[0].read_frame()
        frames = segment(whole, "tun")
        if has_uso():
            assert len(frames) == 11
            assert coalesce(frames, "tun") == [whole]
        else:  # the first of eleven, with its checksum left undone
            assert len(frames) == 1
            assert coalesce(frames, "tun") == [bytes(10) + frames[0]]


def near_the_limits(mode: Mode) -> Iterator[tuple[Packet, list[int]]]:
    """Flows whose frames are as many, as large, as small, or with headers as long as can be merged, and somewhat more."""
    vlan = (0x88A8, 0x8100) if mode is Mode.TAP else ()
    for version, protocol in GSO_TYPE:
        flow = Packet(mode=mode, version=version, protocol=protocol, fragment=DF)
        shapes = [flow, replace(flow, vlan=vlan, source=0, destination=0, source_port=0, destination_port=0, hops=0)]
        if protocol == TCP:
            shapes.append(replace(flow, flags=ACK | ECE, reserved=15, urgent=0xFFFF, window=0))
            shapes.append(replace(flow, tcp_options=filler(40, 3)))
        if version == 4:
            shapes += [replace(shape, vlan=vlan, options=filler(40, 3)) for shape in shapes]
        else:
            shapes.append(replace(flow, extensions=(extension(HOP_BY_HOP), extension(ROUTING, 1, 2)) * 4))
            for size in (8, 176, 208, 216, 1000, 65_408, 65_432, 65_448):
                shapes.append(replace(flow, extensions=extensions_of(size)))
        smallest = 8 if protocol == TCP else 1
        for shape in shapes:
            room = 65535 - shape.header_length + shape.network
            counts = (2, 64) if shape.header_length < 1000 else (2,)
            for count in counts:
                for size in {smallest, room // count}:
                    yield shape, [size] * count
                    yield shape, [size] * (count - 1) + [1]
            yield shape, [room - 1, 1]


@on_one_loop  # nothing here waits
@pytest.mark.parametrize("napi", [False, True])
@pytest.mark.parametrize("mode", Mode)
async def test_the_kernel_takes_whatever_is_merged(mode: Mode, napi: bool) -> None:
    """Frames that the kernel would refuse merged are written one by one."""
    async with AsyncTuntap(unique(), mode=mode, vnet_header=True, offload=ALL, napi=napi) as interface:
        await interface.configure(up=True)
        (queue,) = interface.queues
        super_frames = 0
        for packet, sizes in near_the_limits(mode):
            frames = []
            for size in sizes:
                packet = replace(packet, payload=filler(size, 3))
                frames.append(packet.build())
                packet = replace(packet, sequence=packet.sequence + size)
            for frame in coalesce(frames, mode, offload=interface.offload):
                super_frames += frame[1] != 0
                try:
                    queue.write_frame_nowait(frame)
                except InvalidFrameError as error:
                    shape = f"IPv{packet.version}, protocol {packet.protocol}, headers of {packet.header_length} bytes"
                    raise AssertionError(f"{shape}, payloads of {sizes}: {error}") from None
        assert super_frames > 100


# -- who attaches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "asked", "match"),
    [
        ({}, {"offload": ALL}, "vnet_header=False, and offloads need a header"),
        ({"offload": ALL}, {}, "vnet_header=True: open it with vnet_header=True, or remove"),
        ({"vnet_header": True, "offload": ALL | TUNNEL}, {"offload": ALL}, "headers of 24 bytes, and these .* need 10"),
    ],
)
async def test_headers_that_do_not_match_are_reported(there: dict[str, Any], asked: dict[str, Any], match: str) -> None:
    """And refused before anything about the interface was changed."""
    if there.get("offload", ALL) & TUNNEL and await lacks_tunnels():
        return
    async with AsyncTuntap(unique(), mode="tap", **there) as first:
        before = features_on(first.name), header_size(first.queues[0]._file)
        with pytest.raises(SetupError, match=match) as caught:
            await AsyncTuntap(first.name, mode="tap", **asked).open()
        assert caught.value.errno == errno.EINVAL
        assert (features_on(first.name), header_size(first.queues[0]._file)) == before
        assert tun_info(first.name)["numqueues"] == 1


async def test_offloads_are_those_of_the_last_who_opened_a_persistent_interface() -> None:
    name = unique()
    openings: list[dict[str, Any]] = [
        {"vnet_header": True, "offload": ALL | offered(TUNNEL)},
        {"offload": CSUM | TSO4},
        {"vnet_header": True},
        {"offload": ALL},
        {},
        {"vnet_header": True, "offload": CSUM},
    ]
    ip("tuntap", "add", "mode", "tap", "name", name, "multi_queue")
    try:
        for options in openings:
            async with AsyncTuntap(name, mode="tap", **options) as interface:
                offload = offered(options.get("offload", Offload.NONE))
                assert interface.offload == offload and offloads_on(name) == features(offload)
                assert tun_info(name)["vnet_hdr"] == bool(options)
                if options:
                    assert header_size(interface.queues[0]._file) == (24 if offload & TUNNEL else 10)
    finally:
        ip("link", "del", name)


async def test_queues_that_are_added_are_of_the_same_kind() -> None:
    async with tap_with_peer(queues=2, offload=ALL) as (interface, peer):
        added = await interface.add_queues(2)
        assert [type(queue) for queue in interface.queues] == [TransparentQueue] * 4
        assert tun_info(interface.name)["numqueues"] == 4
        for number, queue in enumerate(interface.queues):
            await queue.write_frame(example_frame(number))
            assert await peer.read_frame() == example_frame(number)
        await interface.remove_queues(*interface.queues[:2])
        for queue in added:
            await queue.write_frames([example_frame(5), example_frame(6)])
            assert [await peer.read_frame() for _ in range(2)] == [example_frame(5), example_frame(6)]
        assert interface.stats.frames_written == 8
        assert offloads_on(interface.name) == features(offered())


async def test_adopting_with_transparent_offloads(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks(monkeypatch, USO)
    async with tap_with_peer(queues=2, vnet_header=True) as (first, peer):
        fds = [os.dup(queue.fileno()) for queue in first.queues]
        with pytest.raises(SetupError, match="vnet_header=True"):
            await AsyncTuntap.adopt(fds, vnet_header=False)
        async with await AsyncTuntap.adopt(fds, offload=ALL, vnet_header=False) as adopted:
            assert [type(queue) for queue in adopted.queues] == [TransparentQueue] * 2
            assert adopted.offload == offered() & ~USO and offloads_on(first.name) == features(offered() & ~USO)
            for number, queue in enumerate(adopted.queues):
                await queue.write_frame(example_frame(number))
                assert await peer.read_frame() == example_frame(number)
    async with tap() as plain:
        fd = os.dup(plain.queues[0].fileno())
        try:
            with pytest.raises(SetupError, match="vnet_header=False, and offloads need a header"):
                await AsyncTuntap.adopt([fd], offload=ALL)
            assert offloads_on(plain.name) == set()
        finally:
            os.close(fd)
