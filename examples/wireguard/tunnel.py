"""Connects a Device to a TUN interface and a UDP socket, with four tasks."""

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

#: The time in seconds. It also counts while the machine sleeps, so that keys expire meanwhile.
now = partial(time.clock_gettime, time.CLOCK_BOOTTIME)

#: After these seconds the state of the interface is read: `AsyncTuntap.watch` may not have started before.
_LOOKS = 0, 0.2, 2

_log = logging.getLogger(__name__)


class Tunnel:
    """Moves packets and datagrams while the interface is up. It follows the state of the interface."""

    def __init__(self, tun: AsyncTuntap, device: Device) -> None:
        self._tun = tun
        (self._queue,) = tun.queues
        self._device = device
        self._udp: UdpStream | None = None
        self._up = False
        self._changing = asyncio.Lock()
        #: Set when a timer becomes due before the task for timers wakes up.
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
        raise AssertionError("the tasks never end without an exception")

    # -- packets -------------------------------------------------------------------------------------------------------

    async def _outwards(self) -> NoReturn:
        while True:
            packets = await self._queue.read_frames()
            await self._send(self._device.outbound(packets, now()))

    async def _inwards(self, udp: UdpStream) -> None:
        """Runs once for each socket, and ends when the socket is closed."""
        with contextlib.suppress(QueueClosedError):
            while True:
                packets, sends = self._device.inbound(await udp.read_datagrams(), now())
                await self._send(sends)
                if packets:
                    # A peer may send packets that the kernel refuses. They are lost, also if the interface is down or
                    # there is no memory. If the interface was deleted, reading raises DeviceGoneError.
                    with contextlib.suppress(InvalidFrameError, OSError):
                        await self._queue.write_frames(packets)

    async def _send(self, sends: Sends) -> None:
        for address, datagrams in sends:
            if (udp := self._udp) is None:  # the socket may be closed while datagrams are sent
                break
            # No route now, no memory, or closed meanwhile: the datagrams are lost, as on any network.
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
            async with self._changing:  # events of the watch are newer, and are handled afterwards
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
            UapiError: The port is in use, or the mark is not allowed. Nothing else was changed.
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
        """Opens a socket on another port and closes the old one. With 0, the kernel chooses the port."""
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
    """For a Device: the same address without the local one, which the kernel then chooses."""
    return address.remote


def source(address: Address) -> tuple[bytes, bytes]:
    """For a Device: the host for the rate limit of handshakes (for IPv6 its /64), and the whole address."""
    whole = address.remote
    return whole[4:8] if whole.family is socket.AF_INET else whole[8:16], whole


def _refused(error: OSError) -> UapiError:
    return UapiError(error.errno or errno.EIO, str(error.strerror))
