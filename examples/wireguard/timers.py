"""When things happen: the constants of the whitepaper (section 6) and whose turn is next.

A peer has five timers. They are set and cleared with each batch of packets, so that costs next to nothing: the schedule
has for each peer the earliest time that any of its timers was set to, and only when that comes are the timers asked
which of them is due, if one still is.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from itertools import count
from typing import Generic, Protocol, TypeVar

REKEY_AFTER_MESSAGES = 2**60
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1
#: Seconds, as all that follow.
REKEY_AFTER_TIME = 120.0
REJECT_AFTER_TIME = 180.0
REKEY_ATTEMPT_TIME = 90.0
REKEY_TIMEOUT = 5.0
KEEPALIVE_TIMEOUT = 10.0
#: Retries and new handshakes are put off by less than this, so that two peers do not begin at once for ever.
JITTER = 0.334
#: The kernel and wireguard-go count attempts instead of seconds: the first, and retries until this many have failed.
MAX_RETRIES = int(REKEY_ATTEMPT_TIME / REKEY_TIMEOUT)
#: Two initiations of one peer that come closer together than this are one too many.
INITIATION_INTERVAL = 1 / 50

NEVER = math.inf

#: The timers of a peer, as indices into its deadlines:
#: send the initiation again; answer data with a keepalive; data was sent and nothing came back; forget all keys; the
#: persistent keepalive.
RETRANSMIT, KEEPALIVE, NEW_HANDSHAKE, FORGET, PERSISTENT = range(5)


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
