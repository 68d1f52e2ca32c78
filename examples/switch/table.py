"""The address table: which port each station is behind. No input and output; time is an argument, in seconds.

The table has a maximum size. A flood of invented addresses must not remove stations that are in use. Therefore a station
that was heard once is a newcomer. When it is heard again later, it becomes established. When the table is full, a port
with more than its share of the stations loses its oldest newcomer: this is the port that the flood comes from. If there
are no newcomers, the port with the most stations loses the one that has been silent longest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Generic, NamedTuple, TypeVar

P = TypeVar("P", bound=Hashable)

#: A newcomer that is heard again after this many seconds, or earlier if stations age fast, becomes established.
_AGAIN = 1.0


def station(address: bytes, vlan: int = 0) -> bytes:
    """The key of a station. The same address in two VLANs is two stations."""
    return address + vlan.to_bytes(2)


def stations(header: bytes) -> tuple[bytes, bytes]:
    """The keys of destination and source of a frame that begins with these 16 bytes."""
    vlan = header[14:16] if header[12:14] == b"\x81\x00" else b"\0\0"
    if vlan[:1] > b"\x0f":  # remove the priority
        vlan = bytes((vlan[0] & 15,)) + vlan[1:]
    return header[:6] + vlan, header[6:12] + vlan


class Entry(NamedTuple):
    """One line of the table."""

    address: bytes
    vlan: int
    port: object
    #: Seconds since it was heard; None for a static entry.
    silent: float | None


@dataclass(slots=True)
class _Station(Generic[P]):
    port: P
    heard: float
    #: When it was last moved to the end of its list.
    moved: float
    established: bool = False


class _Behind:
    """The stations behind one port. Those that have been silent longest come first, with an error of up to a second."""

    def __init__(self) -> None:
        self.newcomers: OrderedDict[bytes, None] = OrderedDict()
        self.established: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.newcomers) + len(self.established)


class Table(Generic[P]):
    """The address table. The time that is passed must never decrease."""

    def __init__(self, age: float, limit: int) -> None:
        """Makes a table of at most *limit* stations. It forgets a station after *age* seconds without frames."""
        self._age = age
        self._limit = limit
        self._again = min(_AGAIN, age / 16)
        self._heard: dict[bytes, _Station[P]] = {}
        self._behind: dict[P, _Behind] = {}
        self._static: dict[bytes, P] = {}
        #: How many stations were learned, moved to another port, and were removed because the table was full.
        self.learned = self.moved = self.evicted = 0

    def __len__(self) -> int:
        return len(self._heard)

    def pin(self, station: bytes, port: P) -> None:
        """Makes *station* static: it is always behind *port*."""
        self._drop(station)
        self._static[station] = port

    def learn(self, station: bytes, port: P, now: float) -> None:
        """Stores that *station* was heard on *port*."""
        known = self._heard.get(station)
        if known is not None and known.port is port:
            known.heard = now
            if now - known.moved >= self._again:
                self._refresh(station, known)
        elif not station[0] & 1 and station not in self._static:  # a group address is never a sender
            self._insert(station, port, now, known)

    def find(self, station: bytes, now: float) -> P | None:
        """The port of *station*, or None if it is unknown. Group addresses are always unknown."""
        known = self._heard.get(station)
        if known is None:
            return self._static.get(station)
        return known.port if now - known.heard < self._age else None

    def forget(self, port: P) -> None:
        """Forgets all stations behind *port*, including static ones."""
        self._static = {station: where for station, where in self._static.items() if where is not port}
        behind = self._behind.pop(port, None)
        if behind is not None:
            for station in chain(behind.newcomers, behind.established):
                del self._heard[station]

    def entries(self, now: float) -> Iterator[Entry]:
        """All stations that `find` knows."""
        for station, port in self._static.items():
            yield Entry(station[:6], int.from_bytes(station[6:]), port, None)
        for station, known in self._heard.items():
            if now - known.heard < self._age:
                yield Entry(station[:6], int.from_bytes(station[6:]), known.port, now - known.heard)

    def _insert(self, station: bytes, port: P, now: float, known: _Station[P] | None) -> None:
        if known is not None:
            self._drop(station)
            self.moved += 1
        else:
            self.learned += 1
            if len(self._heard) >= self._limit:
                self._make_room(port, now)
        self._heard[station] = _Station(port, now, now)
        self._behind.setdefault(port, _Behind()).newcomers[station] = None

    def _refresh(self, station: bytes, known: _Station[P]) -> None:
        behind = self._behind[known.port]
        if known.established:
            behind.established.move_to_end(station)
        else:
            del behind.newcomers[station]
            behind.established[station] = None
            known.established = True
        known.moved = known.heard

    def _drop(self, station: bytes) -> None:
        known = self._heard.pop(station, None)
        if known is not None:
            behind = self._behind[known.port]
            del (behind.established if known.established else behind.newcomers)[station]
            if not behind:
                del self._behind[known.port]

    def _make_room(self, port: P, now: float) -> None:
        """Removes one station. The time it takes depends on the number of ports, but not on the size of the table."""
        for behind in self._behind.values():
            for line in (behind.newcomers, behind.established):
                first = next(iter(line), None)
                if first is not None and now - self._heard[first].heard >= self._age:
                    self._drop(first)
                    return
        self._drop(self._least_needed(port))
        self.evicted += 1

    def _least_needed(self, port: P) -> bytes:
        """The station to remove, so that a new one behind *port* can be stored."""
        share = self._limit // len(self._behind)
        with_newcomers = [behind for behind in self._behind.values() if behind.newcomers]
        if over := [behind for behind in with_newcomers if len(behind) > share]:
            return next(iter(max(over, key=lambda behind: len(behind.newcomers)).newcomers))
        own = self._behind.get(port)
        if own is not None and own.newcomers:
            return next(iter(own.newcomers))
        if with_newcomers:
            return next(iter(max(with_newcomers, key=lambda behind: len(behind.newcomers)).newcomers))
        return next(iter(max(self._behind.values(), key=len).established))
