"""Answers ping as a systemd service. Restarting the service does not remove its interface.

While no process of the service runs, systemd keeps the queues in its "file descriptor store". So the interface keeps its
index, addresses, routes and firewall rules, and frames that are sent meanwhile wait in the kernel. The unit file
``kept.service`` is in the same folder. The program also runs without systemd, as root::

    python examples/kept.py kept0
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from ipaddress import ip_interface

from echo import Count, Responder, serve

from aiotuntap import AsyncTuntap, DeviceGoneError, SetupError

ADDRESS = ip_interface("10.77.0.1/24")
#: What systemd calls the descriptors that it keeps.
KEPT = "queue"


def notify(state: str, fds: Sequence[int] = ()) -> None:
    """Notifies the service manager, like sd_notify(3) and sd_pid_notify_with_fds(3). Does nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect("\0" + address[1:] if address.startswith("@") else address)
            socket.send_fds(manager, [state.encode()], fds)


def kept_descriptors() -> list[int]:
    """The descriptors that the service manager kept with this name: see sd_listen_fds_with_names(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    return [fd for fd, name in enumerate(names, start=3) if name == KEPT]


async def open_interface(name: str) -> AsyncTuntap:
    """The interface of the previous process, or a new one."""
    if fds := kept_descriptors():
        try:
            return await AsyncTuntap.adopt(fds)
        except SetupError as error:  # the interface was deleted meanwhile
            print(f"starting anew: {error.strerror}", file=sys.stderr)
            notify(f"FDSTOREREMOVE=1\nFDNAME={KEPT}")
            for fd in fds:
                os.close(fd)
    tun = await AsyncTuntap(name, mode="tun", queues=2).open()
    notify(f"FDSTORE=1\nFDNAME={KEPT}", [queue.fileno() for queue in tun.queues])
    return tun


async def main(name: str) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def close_when_asked() -> None:
        await stop.wait()
        notify("STOPPING=1")
        for task in tasks:
            task.cancel()

    status = 0
    async with await open_interface(name) as tun:
        await tun.configure(addresses=[str(ADDRESS)], up=True)  # changes what differs: after a restart, nothing
        responder = Responder(tun.mode, [ADDRESS])
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(close_when_asked())
                tasks = [group.create_task(serve(queue, responder, Count(queue))) for queue in tun.queues]
                print(f"ready: {tun.name}, number {tun.index}", flush=True)
                notify("READY=1")
        except* DeviceGoneError as errors:
            print(errors.exceptions[0].args[1], file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: kept.py NAME")
    try:
        sys.exit(asyncio.run(main(sys.argv[1])))
    except SetupError as error:
        sys.exit(f"kept.py: {error.strerror}")
    except ValueError as error:  # of the name
        sys.exit(f"kept.py: {error}")
