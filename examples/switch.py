"""A learning Ethernet switch whose ports are TAP interfaces, each in the network namespace of its station.

As root::

    ip netns add red
    ip netns add blue
    python examples/switch.py red:port0 blue:port0

and in a second terminal::

    ip -n red address add 10.0.0.1/24 dev port0
    ip -n blue address add 10.0.0.2/24 dev port0
    ip netns exec red ping 10.0.0.2

A port is the network card of whoever lives in its namespace, and there can be as many as you like. One that is given
without a namespace is made where the switch was started. A port that is deleted leaves the others as they are, and one
that is down drops what is meant for it. Ctrl-C ends the switch, which says what each port carried, and the ports go
with it. Then ``ip netns del red; ip netns del blue``.

Frames pass as the kernels hand them out: TCP segments of up to 64 KiB, checksums unfinished, and in front of each the
10 bytes of virtio_net_hdr that tell the next kernel what is left to do. There is no spanning tree: two ways between the
same two switches are a loop, and a broadcast never stops going round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections import OrderedDict, defaultdict
from itertools import groupby
from operator import itemgetter

from aiotuntap import AsyncTuntap, DeviceGoneError, Offload, SetupError, TuntapError

# -- who is where: no descriptor, no event loop, no clock --------------------------------------------------------------

#: What follows the virtio_net_hdr: destination and source, six bytes each, then the EtherType or the four of a VLAN tag.
header_of = itemgetter(slice(10, 26))


def stations(header: bytes) -> tuple[bytes, bytes]:
    """Destination and source of a frame, each with its VLAN behind it: one address in two VLANs is two stations."""
    vlan = int.from_bytes(header[14:16]) & 0x0FFF if header[12:14] == b"\x81\x00" else 0
    return header[:6] + vlan.to_bytes(2), header[6:12] + vlan.to_bytes(2)


class Table:
    """Which port each station is behind. Times are in seconds, and each is no earlier than the one before."""

    def __init__(self, age: float, limit: int) -> None:
        """Forgets a station that was silent for *age* seconds, or since *limit* others were heard."""
        self._age = age
        self._limit = limit
        #: The one that has been silent longest comes first: if any is too old, that one is.
        self._heard: OrderedDict[bytes, tuple[Port, float]] = OrderedDict()

    def learn(self, station: bytes, port: Port, now: float) -> None:
        """*station* was heard on *port*, wherever it was before."""
        if station[0] & 1:  # a group address sends nothing
            return
        self._heard[station] = port, now
        self._heard.move_to_end(station)
        if len(self._heard) > self._limit:
            self._heard.popitem(last=False)

    def find(self, station: bytes, now: float) -> Port | None:
        """The port of *station*; None when it is not known, as group addresses never are."""
        port, heard = self._heard.get(station, (None, now))
        return port if now - heard < self._age else None

    def forget(self, port: Port) -> None:
        """Forgets all stations behind *port*."""
        for station in [station for station, (where, _) in self._heard.items() if where is port]:
            del self._heard[station]


# -- ports and tasks ---------------------------------------------------------------------------------------------------


class Port:
    """A port, and how many frames went in and out of it."""

    def __init__(self, tap: AsyncTuntap) -> None:
        self.name = f"{tap.netns}:{tap.name}" if tap.netns else tap.name
        (self.queue,) = tap.queues
        self._offered = 0

    def __str__(self) -> str:
        stats = self.queue.stats
        dropped = self._offered - stats.frames_written
        return f"port {self.name}: {stats.frames_read} in, {stats.frames_written} out, {dropped} dropped"

    async def write(self, frames: list[bytes]) -> None:
        """Sends what can be sent. The rest met a link that is down or a kernel that refused it, and is lost."""
        self._offered += len(frames)
        with contextlib.suppress(TuntapError, OSError):
            await self.queue.write_frames(frames)


class Switch:
    """The ports that are left, and the table."""

    def __init__(self, ports: list[Port], table: Table) -> None:
        self.ports = ports
        self.table = table

    def route(self, header: bytes, source: Port, now: float) -> list[Port]:
        """Learns from a header, and returns the ports where frames that have it go."""
        destination, sender = stations(header)
        self.table.learn(sender, source, now)
        known = self.table.find(destination, now)
        return [port for port in (self.ports if known is None else [known]) if port is not source]

    async def forward(self, frames: list[bytes], source: Port) -> None:
        """Sends frames that came in on *source* on their way, in order."""
        now = time.monotonic()
        batches: defaultdict[Port, list[bytes]] = defaultdict(list)
        for header, run in groupby(frames, header_of):  # most have the header of the one before
            same = list(run)
            for port in self.route(header, source, now):
                batches[port] += same
        for port, batch in batches.items():
            await port.write(batch)

    async def serve(self, port: Port) -> None:
        """Forwards what comes in on *port*, until it is deleted."""
        with contextlib.suppress(DeviceGoneError):
            while True:
                await self.forward(await port.queue.read_frames(), port)
        print(f"port {port.name} is gone", file=sys.stderr)
        self.ports.remove(port)
        self.table.forget(port)


async def run(taps: list[AsyncTuntap], table: Table) -> None:
    """Opens the ports and serves them until none is left, or until SIGINT or SIGTERM cancels it."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with contextlib.AsyncExitStack() as stack:
        for tap in taps:
            await stack.enter_async_context(tap)
            await tap.configure(up=True)
        ports = [Port(tap) for tap in taps]
        print("ready:", *(port.name for port in ports), flush=True)
        switch = Switch(list(ports), table)
        try:
            async with asyncio.TaskGroup() as group:
                for port in ports:
                    group.create_task(switch.serve(port))
        finally:
            print(*ports, sep="\n")


def port_argument(text: str) -> AsyncTuntap:
    """The interface for one argument, not open yet."""
    netns, colon, name = text.rpartition(":")
    try:
        return AsyncTuntap(
            name,
            mode="tap",
            multi_queue=False,  # another switch must not open it as well, and take some of its frames
            vnet_header=True,
            offload=Offload.ALL,
            netns=netns if colon else None,
        )
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> int:
    parser = argparse.ArgumentParser(description="A learning Ethernet switch between network namespaces.")
    parser.add_argument(
        "ports",
        nargs="+",
        type=port_argument,
        metavar="[NETNS:]NAME",
        help="an interface to make, and the namespace (default: this one)",
    )
    parser.add_argument(
        "--age", type=float, default=300, metavar="SECONDS", help="of silence after which a station is forgotten"
    )
    parser.add_argument("--limit", type=int, default=4096, metavar="STATIONS", help="that are remembered at most")
    options = parser.parse_args()
    if options.age < 0 or options.limit < 1:
        parser.error("--age: at least 0; --limit: at least 1")
    try:
        asyncio.run(run(options.ports, Table(options.age, options.limit)))
    except asyncio.CancelledError:
        return 0
    except (SetupError, DeviceGoneError) as error:
        print(f"{parser.prog}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{parser.prog}: no port is left", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
