"""The real queue, by the same checks as the in-memory pair: against the kernel, and against a peer queue via a bridge."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from aiotuntap import Offload, PacketStream, TuntapQueue
from aiotuntap.testing import FarEnd, check_packet_stream

from .support import PacketPeer, ip, ipv4, tap, tap_with_peer, tun, unique

pytestmark = pytest.mark.usefixtures("engine")


@asynccontextmanager
async def tap_and_packet_socket() -> AsyncIterator[tuple[TuntapQueue, FarEnd]]:
    async with tap_with_peer() as (interface, peer):
        yield interface.queues[0], peer


@asynccontextmanager
async def tun_and_packet_socket() -> AsyncIterator[tuple[TuntapQueue, FarEnd]]:
    async with tun() as interface:
        with PacketPeer(interface.name, 0x0800, tun=True) as peer:
            yield interface.queues[0], peer


@asynccontextmanager
async def transparent_tap_and_packet_socket() -> AsyncIterator[tuple[TuntapQueue, FarEnd]]:
    async with tap_with_peer(offload=Offload.ALL) as (interface, peer):
        yield interface.queues[0], peer


@asynccontextmanager
async def transparent_tun_and_packet_socket() -> AsyncIterator[tuple[TuntapQueue, FarEnd]]:
    async with tun(offload=Offload.ALL) as interface:
        with PacketPeer(interface.name, 0x0800, tun=True) as peer:
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


@pytest.mark.parametrize("pair", [tap_and_packet_socket, transparent_tap_and_packet_socket, two_taps_on_a_bridge])
async def test_tap(pair: Pair) -> None:
    await check_packet_stream(pair)


@pytest.mark.parametrize("pair", [tun_and_packet_socket, transparent_tun_and_packet_socket])
async def test_tun(pair: Pair) -> None:
    await check_packet_stream(pair, ipv4)


async def test_is_a_packet_stream() -> None:
    async with tap() as interface:
        assert isinstance(interface.queues[0], PacketStream)
