"""``python -m examples.wireguard [-f] INTERFACE``: a replacement for wireguard-go. See README.md."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from aiotuntap import AsyncTuntap, DeviceGoneError, Offload, SetupError

from .control import Control, listen
from .device import Device
from .keylog import KeyLog
from .tunnel import Tunnel, now, source, without_local
from .uapi import describe

#: 1500 bytes without the headers of IPv6 and UDP and WireGuard's 32 bytes.
MTU = 1420

_LEVELS = {"verbose": logging.DEBUG, "debug": logging.DEBUG, "error": logging.ERROR, "silent": logging.CRITICAL + 1}

_log = logging.getLogger(__package__)


async def run(name: str, ready: Callable[[], None]) -> None:
    """Creates the interface, or adopts it from WG_TUN_FD, and runs until the end. Then the interface is removed."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with await _open(name) as tun:
        _log_as(tun.name)
        await tun.configure(mtu=MTU)
        log = KeyLog.from_environment()
        rng = log.rng if log else os.urandom
        device = Device(now=now, rng=rng, source=source, without_local=without_local, log=_log.debug)
        if log is not None:
            log.device = device
        device.mtu = MTU
        tunnel = Tunnel(tun, device)
        listener = listen(tun.name) if (fd := _descriptor("WG_UAPI_FD")) is None else _listener(fd)
        control = Control(listener, lambda: describe(device), tunnel.change)
        ready()
        _log.debug("%s is ready", tun.name)
        await _first_to_end(stop.wait(), control.serve(), tunnel.run())
        _log.debug("ends; dropped: %s", device.drops)


def _log_as(name: str) -> None:
    logging.basicConfig(format=f"%(levelname)s: ({name}) %(asctime)s %(message)s", force=True)


async def _open(name: str) -> AsyncTuntap:
    if (fd := _descriptor("WG_TUN_FD")) is None:
        return await AsyncTuntap(name, mode="tun", multi_queue=False, offload=Offload.ALL).open()
    try:
        return await AsyncTuntap.adopt([fd], vnet_header=False, offload=Offload.ALL)
    except SetupError:  # it was opened without virtio_net_hdr, so it has no offloads
        pass
    try:
        return await AsyncTuntap.adopt([fd])
    except SetupError as error:
        raise ValueError(f"WG_TUN_FD: {error.strerror}") from error


def _descriptor(variable: str) -> int | None:
    """The descriptor that an environment variable names. None if the variable is not set."""
    text = os.environ.get(variable)
    if not text:
        return None
    if not text.isdecimal():
        raise ValueError(f"{variable} must be the number of an open descriptor, not {text!r}")
    return int(text)


def _listener(fd: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=fd)
    except OSError as error:
        raise ValueError(f"WG_UAPI_FD must be a listening Unix socket, and {fd} is none: {error.strerror}") from error
    if listener.family != socket.AF_UNIX or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError(f"WG_UAPI_FD must be a listening Unix socket, and {fd} is none")
    return listener


async def _first_to_end(*work: Coroutine[Any, Any, object]) -> None:
    """Runs all of *work* until the first of it ends, cancels the rest, and raises the error of the first if it failed."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def daemonise() -> Callable[[], None]:
    """Continues in a child process. The child gets a function, and the parent exits when the child calls it.

    If the child exits before, the parent exits with the same status.
    """
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        if os.read(reading, 1):
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF or 1)
    os.close(reading)
    os.setsid()

    def ready() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0,) if os.environ.get("LOG_LEVEL", "silent") != "silent" else (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        os.write(writing, b"!")
        os.close(writing)

    return ready


def main() -> int:
    parser = argparse.ArgumentParser(prog="wireguard", description="WireGuard in user space. Configure it with wg(8).")
    parser.add_argument(
        "name",
        metavar="INTERFACE",
        help="name of the interface, such as wg0; with 'wg%%d' the kernel chooses the number",
    )
    parser.add_argument("-f", "--foreground", action="store_true", help="do not become a daemon")
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop (pip install uvloop)")
    options = parser.parse_args()
    level = _LEVELS.get(os.environ.get("LOG_LEVEL", ""), logging.ERROR)
    _log_as(options.name)
    _log.setLevel(level)
    logging.getLogger("aiotuntap").setLevel(max(level, logging.ERROR))  # that the interface is down is no mistake here
    foreground = options.foreground or os.environ.get("WG_PROCESS_FOREGROUND") == "1"
    ready = (lambda: None) if foreground else daemonise()
    try:
        if options.uvloop:
            import uvloop

            uvloop.run(run(options.name, ready))
        else:
            asyncio.run(run(options.name, ready))
    except DeviceGoneError:
        _log.debug("the interface was deleted")
    except (OSError, ValueError) as error:
        _log.error("%s", error.strerror if isinstance(error, SetupError) else error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
