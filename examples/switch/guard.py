"""What keeps one port from doing harm to all others: loops and storms. Pure code, with time as an argument, in seconds.

A frame that is flooded is remembered for a second, by its beginning and the port that it came from. If it then comes in
on another port, it has gone round a loop: it goes no further, so that it cannot multiply, and a port where that happens
several times is blocked for a while.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

P = TypeVar("P", bound=Hashable)

#: Seconds that flooded frames are remembered, at least; and how many of them, at most twice.
_MEMORY = 1.0
_MOST = 4096

#: Frames that have to come back within `_MEMORY` before a port is blocked.
_RETURNS = 3

#: What of a frame tells it from others: the Ethernet header and what follows, but not the checksum of UDP over IPv4, which
#: somebody on the way may have completed.
_BEGINNING = slice(10, 50)


class Guard(Generic[P]):
    """Each call's time is no earlier than that of the one before."""

    def __init__(self, hold: float, limit: float | None, notice: Callable[[P], object]) -> None:
        """Blocks a port for *hold* seconds after telling *notice* about it.

        *limit* is how many frames a second each port may have flooded, and as many at once; None for all of them.
        """
        self._hold = hold
        self._limit = limit
        self._notice = notice
        self._blocked: dict[P, float] = {}
        self._recent: dict[bytes, P] = {}
        self._older: dict[bytes, P] = {}
        self._rotated = 0.0
        self._returns: Counter[P] = Counter()
        #: Until when the frames of a loop that was cut may still be under way.
        self._settling = 0.0
        #: Frames that each port may still have flooded, and when that was.
        self._allowances: dict[P, tuple[float, float]] = {}
        #: Frames that came back, and frames beyond the limit.
        self.returned = self.limited = 0

    def blocked(self, port: P, now: float) -> float:
        """Seconds for which *port* neither sends nor receives yet."""
        until = self._blocked.get(port)
        if until is None:
            return 0.0
        if now < until:
            return until - now
        del self._blocked[port]
        return 0.0

    @property
    def any_blocked(self) -> bool:
        """Whether `blocked` has to be asked."""
        return bool(self._blocked)

    def admit(self, frames: list[bytes], source: P, now: float) -> list[bytes]:
        """Those of *frames* that are to be flooded. Each begins with a virtio_net_hdr of 10 bytes."""
        if now - self._rotated >= _MEMORY or len(self._recent) >= _MOST:
            self._rotate(now)
        recent, older = self._recent, self._older
        admitted = []
        for frame in frames:
            beginning = frame[_BEGINNING]
            origin = recent[beginning] if beginning in recent else older.get(beginning, source)
            if origin is source:
                recent[beginning] = source
                admitted.append(frame)
            else:
                self._came_back(source, now)
        if self._limit is not None:
            admitted = self._within_limit(admitted, source, now, self._limit)
        return admitted

    def forget(self, port: P) -> None:
        """The port is gone."""
        self._blocked.pop(port, None)
        self._returns.pop(port, None)
        self._allowances.pop(port, None)
        for memory in (self._recent, self._older):
            for beginning in [beginning for beginning, origin in memory.items() if origin is port]:
                del memory[beginning]

    def _rotate(self, now: float) -> None:
        self._older = {} if now - self._rotated >= 2 * _MEMORY else self._recent
        self._recent = {}
        self._rotated = now
        self._returns.clear()

    def _came_back(self, port: P, now: float) -> None:
        self.returned += 1
        self._returns[port] += 1
        if self._returns[port] >= _RETURNS and now >= self._settling and not self.blocked(port, now):
            self._blocked[port] = now + self._hold
            self._settling = now + _MEMORY
            self._returns.clear()
            self._notice(port)

    def _within_limit(self, frames: list[bytes], port: P, now: float, limit: float) -> list[bytes]:
        allowance, then = self._allowances.get(port, (limit, now))
        allowance = min(limit, allowance + (now - then) * limit)
        count = min(len(frames), int(allowance))
        self._allowances[port] = allowance - count, now
        self.limited += len(frames) - count
        return frames[:count]
