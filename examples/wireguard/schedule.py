"""The schedule of all peers' timers.

A peer has five timers. They are set and cleared with each batch of packets, so this must be cheap. The schedule has one
time for each peer: the earliest to which any of its timers was set. Only when that time comes, the peer's timers are
checked, and perhaps none of them is due any more.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from itertools import count
from typing import Generic, Protocol, TypeVar

NEVER = math.inf


class Timed(Protocol):
    """An object in the schedule."""

    #: The earliest time that was requested, or NEVER. Only the schedule changes it.
    turn: float


T = TypeVar("T", bound=Timed)


class Schedule(Generic[T]):
    """The next object and its time. A time may be earlier than needed, but never later."""

    __slots__ = ("_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._order = count()

    def add(self, when: float, who: T) -> None:
        """Schedules *who* at *when*, unless it is scheduled earlier."""
        if when < who.turn:
            who.turn = when
            heappush(self._heap, (when, next(self._order), who))

    def remove(self, who: T) -> None:
        """Removes *who* from the schedule."""
        who.turn = NEVER

    def next(self) -> float | None:
        """The time of the next object, or None if the schedule is empty."""
        heap = self._heap
        while heap and heap[0][0] != heap[0][2].turn:
            heappop(heap)
        return heap[0][0] if heap else None

    def pop(self, now: float) -> T | None:
        """Removes and returns the next object that is due at *now*, or None."""
        when = self.next()
        if when is None or when > now:
            return None
        who = heappop(self._heap)[2]
        who.turn = NEVER
        return who
