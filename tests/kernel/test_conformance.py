"""The real queue, by the same checks as the in-memory pair: against the kernel, and against a peer queue via a bridge."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from aiotuntap import Offload, PacketStream, TuntapQueue
from aiotuntap.testing import FarEnd, check_packet_stream, example_frame

from .support import PacketPeer, ip, ipv4, tap, tun, unique


class DoomedPeer(PacketPeer):
    """The kernel's side of an interface, which can delete it."""

    async def vanish(self) -> None:
        ip("link", "del", self.name)


pytestmark = pytest.mark.usefixtures("engine")


@asynccontextmanager
async def tap_and_packet_socket() -> AsyncIterator[tuple[TuntapQueue, FarEnd]]:
    async with tap() as interface:
        with DoomedPeer(interface.name) as peer:
            yield interface.queues[0], peer


@asynccontextmanager
async def tun_and_packet_socket() -> AsyncIterator[tuple[TuntapQueue, FarEnd]]:
    async with tun() as interface:
        with DoomedPeer(interface.name, 0x0800, tun=True) as peer:
            yield interface.queues[0], peer


@asynccontextmanager
async def transparent_tap_and_packet_socket() -> AsyncIterator[tuple[TuntapQueue, FarEnd]]:
    async with tap(offload=Offload.ALL) as interface:
        with DoomedPeer(interface.name) as peer:
            yield interface.queues[0], peer


@asynccontextmanager
async def transparent_tun_and_packet_socket() -> AsyncIterator[tuple[TuntapQueue, FarEnd]]:
    async with tun(offload=Offload.ALL) as interface:
        with DoomedPeer(interface.name, 0x0800, tun=True) as peer:
            yield interface.queues[0], peer


VNET_HEADER = bytes(10)


class PeerWithHeader(DoomedPeer):
    """Has the virtio_net_hdr of an ordinary frame in front, as the queue has; the kernel's side never sees it."""

    async def write_frame(self, frame: bytes) -> None:
        assert frame.startswith(VNET_HEADER)
        self.send(frame[len(VNET_HEADER) :])

    async def read_frame(self) -> bytes:
        return VNET_HEADER + await super().read_frame()


def frame_with_header(number: int, size: int = 70) -> bytes:
    return VNET_HEADER + example_frame(number, size - len(VNET_HEADER))


@asynccontextmanager
async def vnet_tap_and_packet_socket() -> AsyncIterator[tuple[TuntapQueue, FarEnd]]:
    async with tap(vnet_header=True) as interface:
        with PeerWithHeader(interface.name) as peer:
            yield interface.queues[0], peer


@asynccontextmanager
async def two_taps_on_a_bridge() -> AsyncIterator[tuple[TuntapQueue, TuntapQueue]]:
    bridge = unique("br")
    ip("link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
    try:
        async with tap() as one, tap() as other:
            for each in (one, other):
                ip("link", "set", each.name, "master", bridge)
            ip("link", "set", bridge, "up")
            yield one.queues[0], other.queues[0]
    finally:
        ip("link", "del", bridge)


Pair = Callable[[], AbstractAsyncContextManager[tuple[PacketStream, FarEnd]]]


@pytest.mark.parametrize("pair", [transparent_tap_and_packet_socket, two_taps_on_a_bridge])
async def test_tap(pair: Pair) -> None:
    await check_packet_stream(pair)


async def test_tap_frames_up_to_its_mtu() -> None:
    """None may get lost, and one without an Ethernet header is refused."""
    await check_packet_stream(tap_and_packet_socket, sizes=(18, 1514), refused=b"too short", burst=110)


async def test_vnet_header() -> None:
    await check_packet_stream(vnet_tap_and_packet_socket, frame_with_header, burst=110)


async def test_transparent_tun() -> None:
    await check_packet_stream(transparent_tun_and_packet_socket, ipv4)


async def test_tun_frames_up_to_its_mtu() -> None:
    """None may get lost, and what is not IP is refused."""
    await check_packet_stream(tun_and_packet_socket, ipv4, sizes=(32, 1500), refused=bytes(64), burst=110)


async def test_is_a_packet_stream() -> None:
    async with tap() as interface:
        assert isinstance(interface.queues[0], PacketStream)
