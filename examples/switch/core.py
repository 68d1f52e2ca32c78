"""Decides where frames go. No input and output: a port is any hashable object, and time is an argument, in seconds.

Each frame begins with the kernel's virtio_net_hdr of 10 bytes, which this module ignores.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import groupby
from operator import itemgetter
from typing import Generic, TypeVar

from .guard import Guard
from .table import Table, stations

P = TypeVar("P", bound=Hashable)

#: The 16 bytes after the virtio_net_hdr: destination, source, and EtherType or VLAN tag.
header_of = itemgetter(slice(10, 26))


class Core(Generic[P]):
    """The ports, the stations behind them, and which ports are blocked."""

    def __init__(self, table: Table[P], guard: Guard[P]) -> None:
        self.table = table
        self.guard = guard
        self.ports: list[P] = []
        #: Frames that went to all ports.
        self.flooded = 0

    def add(self, port: P) -> None:
        """Adds a port. It gets all frames that are flooded from now on."""
        self.ports.append(port)

    def remove(self, port: P) -> None:
        """Forgets the port and the stations behind it."""
        self.ports.remove(port)
        self.table.forget(port)
        self.guard.forget(port)

    def decide(self, frames: list[bytes], source: P, now: float) -> dict[P, list[bytes]]:
        """Returns the frames for each port, in order. Learns where the senders are."""
        guard = self.guard
        if guard.any_blocked and guard.blocked(source, now):
            return {}
        found: dict[P, list[bytes]] = {}
        if len(frames) == 1:
            self._decide_run(header_of(frames[0]), frames, source, now, found)
        else:
            for header, run in groupby(frames, header_of):  # consecutive frames often have the same header
                self._decide_run(header, list(run), source, now, found)
        return found

    def _decide_run(self, header: bytes, run: list[bytes], source: P, now: float, found: dict[P, list[bytes]]) -> None:
        """Decides for frames with the same header."""
        guard = self.guard
        destination, sender = stations(header)
        port = source if destination == sender else self.table.find(destination, now)
        if port is None:
            run = guard.admit(run, source, now)
            if not run or (guard.any_blocked and guard.blocked(source, now)):
                return
            self.flooded += len(run)
            targets = self.ports
        else:
            targets = [port]
        self.table.learn(sender, source, now)
        for port in targets:
            if port is not source and not (guard.any_blocked and guard.blocked(port, now)):
                if port in found:
                    found[port] += run
                else:
                    found[port] = run if len(targets) == 1 else list(run)
