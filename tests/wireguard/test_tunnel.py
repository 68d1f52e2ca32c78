"""The tasks between the interface and the socket, where either of them fails or goes away."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import pytest
from wireguard import tunnel
from wireguard.device import Device
from wireguard.noise import Identity

from aiotuntap import QueueClosedError
from aiotuntap.udp import Address

from .support import ipv4

PACKETS = [ipv4("10.0.0.1", f"10.0.{number}.1") for number in range(3)]


class Interface:
    """An interface that goes up and down on request."""

    def __init__(self) -> None:
        self.queues = [self]
        self.is_up = True
        self.links: asyncio.Queue[Any] = asyncio.Queue()
        self.packets: asyncio.Queue[list[bytes]] = asyncio.Queue()

    async def link(self) -> Any:
        return SimpleNamespace(up=self.is_up, mtu=1420)

    async def watch(self) -> AsyncIterator[Any]:
        while True:
            self.is_up = await self.links.get()
            yield SimpleNamespace(link=await self.link())

    async def read_frames(self) -> list[bytes]:
        return await self.packets.get()


class Socket:
    """A socket that sends as slowly as requested, or fails."""

    local = Address("192.0.2.1:51820")

    def __init__(self) -> None:
        self.sent: list[Address] = []
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.error: Exception | None = None
        self.closed = asyncio.Event()

    def __call__(self, *arguments: Any, **options: Any) -> Socket:
        self.closed.clear()
        return self

    async def open(self) -> Socket:
        return self

    async def aclose(self) -> None:
        self.closed.set()

    async def read_datagrams(self) -> list[Any]:
        await self.closed.wait()
        raise QueueClosedError("closed")

    async def write_datagrams(self, datagrams: list[bytes], address: Address) -> None:
        self.sent.append(address)
        await self.has_room.wait()
        if self.error is not None:
            raise self.error


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def udp(monkeypatch: pytest.MonkeyPatch) -> Socket:
    made = Socket()
    monkeypatch.setattr(tunnel, "UdpStream", made)
    return made


def device() -> Device:
    """With three peers."""
    made = Device(now=tunnel.now, source=tunnel.source)
    made.private_key = b"a" * 32
    for number in range(3):
        peer = made.add_peer(Identity(bytes([number]) * 32).public_key)
        peer.endpoint = Address(f"192.0.2.{number + 2}:51820")
        made.routes.insert(ip_network(f"10.0.{number}.0/24"), peer)
    return made


async def end(task: asyncio.Task[Any]) -> None:
    assert not task.done(), task.exception()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_interface_goes_down_while_datagrams_wait_for_the_socket(udp: Socket) -> None:
    interface = Interface()
    running: Any = tunnel.Tunnel(interface, device())  # type: ignore[arg-type]
    task = asyncio.create_task(running.run())
    await until(lambda: running._udp is udp)
    udp.has_room.clear()
    interface.packets.put_nowait(PACKETS)
    await until(lambda: udp.sent)
    interface.links.put_nowait(False)
    await until(udp.closed.is_set)
    udp.has_room.set()
    await until(lambda: interface.packets.empty())
    await asyncio.sleep(0.05)
    assert len(udp.sent) == 1
    interface.links.put_nowait(True)
    await until(lambda: running._udp is udp)
    interface.packets.put_nowait(PACKETS)
    await until(lambda: len(udp.sent) == 4)
    await end(task)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOBUFS, errno.EIO, errno.ENOKEY])
async def test_an_error_for_one_peer_does_not_affect_others(udp: Socket, number: int) -> None:
    interface = Interface()
    running: Any = tunnel.Tunnel(interface, device())  # type: ignore[arg-type]
    task = asyncio.create_task(running.run())
    await until(lambda: running._udp is udp)
    udp.error = OSError(number, "no")
    interface.packets.put_nowait(PACKETS)
    await until(lambda: len(udp.sent) == 3 or task.done())
    await end(task)
