"""A Device between a TUN interface and a UDP socket: four tasks that move batches, and wait."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import socket
import time
from functools import partial
from typing import NoReturn

from aiotuntap import AsyncTuntap, InvalidFrameError, Link, QueueClosedError, SetupError
from aiotuntap.udp import Address, UdpStream

from .device import Device
from .peer import Sends
from .uapi import Changes, UapiError, apply

#: Seconds, also of the time that the machine sleeps: keys that are too old by then are not used again.
now = partial(time.clock_gettime, time.CLOCK_BOOTTIME)

#: Seconds after which the interface is looked at, until the watch for what changes is sure to have begun.
_LOOKS = 0, 0.2, 2

_log = logging.getLogger(__name__)


class Tunnel:
    """Moves packets and datagrams while the interface is up; follows it as it goes up and down."""

    def __init__(self, tun: AsyncTuntap, device: Device) -> None:
        self._tun = tun
        (self._queue,) = tun.queues
        self._device = device
        self._udp: UdpStream | None = None
        self._up = False
        self._changing = asyncio.Lock()
        #: Set when a timer is due before the time that the task for timers sleeps until.
        self._sooner = asyncio.Event()
        self._sleeps_until = math.inf

    async def run(self) -> NoReturn:
        """Runs until it is cancelled.

        Raises:
            DeviceGoneError: The interface was deleted.
        """
        try:
            async with asyncio.TaskGroup() as self._tasks:
                for work in (self._outwards, self._keep_time, self._watch, self._look):
                    self._tasks.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._unbind()
        raise AssertionError("the tasks above end by an exception")

    # -- the way of a packet -------------------------------------------------------------------------------------------

    async def _outwards(self) -> NoReturn:
        while True:
            packets = await self._queue.read_frames()
            await self._send(self._device.outbound(packets, now()))

    async def _inwards(self, udp: UdpStream) -> None:
        """One for each socket, which ends when that is closed."""
        with contextlib.suppress(QueueClosedError):
            while True:
                packets, sends = self._device.inbound(await udp.read_datagrams(), now())
                await self._send(sends)
                if packets:
                    # A peer may send what the kernel refuses. Down, or no memory: lost, as on any network. That the
                    # interface is gone is told by reading.
                    with contextlib.suppress(InvalidFrameError, OSError):
                        await self._queue.write_frames(packets)

    async def _send(self, sends: Sends) -> None:
        for address, datagrams in sends:
            if (udp := self._udp) is None:  # which may come true while one of them is sent
                break
            # No way to that address now, no memory, or closed meanwhile: lost, and sent again by whoever needs it.
            with contextlib.suppress(InvalidFrameError, OSError, QueueClosedError):
                await udp.write_datagrams(datagrams, address)
        self._look_at_timers()

    async def _keep_time(self) -> NoReturn:
        while True:
            deadline = self._device.next_deadline()
            self._sleeps_until = math.inf if deadline is None else deadline
            self._sooner.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if deadline is None else max(deadline - now(), 0)):
                    await self._sooner.wait()
            if self._sleeps_until <= now():
                await self._send(self._device.expire(now()))

    def _look_at_timers(self) -> None:
        deadline = self._device.next_deadline()
        if deadline is not None and deadline < self._sleeps_until:
            self._sooner.set()

    # -- the interface -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async for event in self._tun.watch():
            async with self._changing:
                await self._follow(event.link)

    async def _look(self) -> None:
        for seconds in _LOOKS:
            await asyncio.sleep(seconds)
            async with self._changing:  # what the watch tells meanwhile is newer, and comes after it
                await self._follow(await self._tun.link())

    async def _follow(self, link: Link) -> None:
        self._device.mtu = link.mtu
        if link.up == self._up:
            return
        self._up = link.up
        if self._up:
            try:
                await self._bind(self._device.listen_port, self._device.fwmark)
            except UapiError as error:
                _log.error("%s", error)
            self._device.up()
        else:
            self._device.down()
            await self._unbind()
        self._look_at_timers()

    # -- the configuration ---------------------------------------------------------------------------------------------

    async def change(self, changes: Changes) -> None:
        """Carries out a request.

        Raises:
            UapiError: The port or the mark cannot be had. Nothing else was changed.
        """
        async with self._changing:
            device = self._device
            mark = device.fwmark if changes.fwmark is None else changes.fwmark
            port = device.listen_port if changes.listen_port is None else changes.listen_port
            is_asked = changes.listen_port is not None
            if self._up and is_asked and (port != device.listen_port or self._udp is None):
                await self._bind(port, mark)
            else:
                await self._mark(mark)
                device.listen_port = port
            device.fwmark = mark
            apply(changes, device)
            self._look_at_timers()

    async def _bind(self, port: int, mark: int) -> None:
        """Listens on a port instead of the one before; 0 lets the kernel choose."""
        try:
            udp = await UdpStream(f":{port}", mark=mark or None).open()
        except OSError as error:
            raise _refused(error) from error
        await self._unbind()
        self._udp, self._device.listen_port = udp, udp.local.port
        self._tasks.create_task(self._inwards(udp))

    async def _unbind(self) -> None:
        udp, self._udp = self._udp, None
        if udp is not None:
            await udp.aclose()

    async def _mark(self, mark: int) -> None:
        if self._udp is not None and mark != self._device.fwmark:
            try:
                await self._udp.set_mark(mark)
            except SetupError as error:
                raise _refused(error) from error


def without_local(address: Address) -> Address:
    """For a Device: the same peer, with our own address for the kernel to choose."""
    return address.remote


def source(address: Address) -> tuple[bytes, bytes]:
    """For a Device: whom the rate of handshakes is limited for, which is a whole /64 of IPv6, and the whole address."""
    whole = address.remote
    return whole[4:8] if whole.family is socket.AF_INET else whole[8:16], whole


def _refused(error: OSError) -> UapiError:
    return UapiError(error.errno or errno.EIO, str(error.strerror))
