"""Whose turn is next.

A peer has five timers. They are set and cleared with each batch of packets, so that costs next to nothing: the schedule
has for each peer the earliest time that any of its timers was set to, and only when that comes are the timers asked
which of them is due, if one still is.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from itertools import count
from typing import Generic, Protocol, TypeVar

NEVER = math.inf


class Timed(Protocol):
    """What has a turn."""

    #: The earliest turn that was asked for, NEVER if none. The schedule's own.
    turn: float


T = TypeVar("T", bound=Timed)


class Schedule(Generic[T]):
    """Whose turn is next. A turn may come earlier than it is needed, and never later."""

    __slots__ = ("_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._order = count()

    def add(self, when: float, who: T) -> None:
        """*who* has a turn at *when*, if none comes before that."""
        if when < who.turn:
            who.turn = when
            heappush(self._heap, (when, next(self._order), who))

    def remove(self, who: T) -> None:
        """*who* has no turn any more."""
        who.turn = NEVER

    def next(self) -> float | None:
        """When the next turn is; None: there is none."""
        heap = self._heap
        while heap and heap[0][0] != heap[0][2].turn:
            heappop(heap)
        return heap[0][0] if heap else None

    def pop(self, now: float) -> T | None:
        """Whose turn it is at *now*, which is then over."""
        when = self.next()
        if when is None or when > now:
            return None
        who = heappop(self._heap)[2]
        who.turn = NEVER
        return who
