"""Protects the network against loops and storms. No input and output; time is an argument, in seconds.

When a frame is flooded, its first bytes and its port are remembered for a second. If the frame then comes in on another
port, there is a loop: the frame is dropped, so that it cannot multiply. A port where this happens several times is
blocked for a while.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

P = TypeVar("P", bound=Hashable)

#: Flooded frames are remembered in two generations: each lasts this many seconds, and has at most this many frames.
_MEMORY = 1.0
_MOST = 4096

#: A port is blocked if this many frames come back within `_MEMORY`.
_RETURNS = 3

#: The bytes that identify a frame: the Ethernet header and what follows. The checksum of UDP over IPv4 is not included,
#: because another device may complete it.
_BEGINNING = slice(10, 50)


class Guard(Generic[P]):
    """Detects loops, and limits flooding. The time that is passed must never decrease."""

    def __init__(self, hold: float, limit: float | None, notice: Callable[[P], object]) -> None:
        """Makes a guard.

        Args:
            hold: How many seconds a port with a loop is blocked.
            limit: How many frames per second each port may flood, and how many at once. None means no limit.
            notice: Called with a port when it is blocked.
        """
        self._hold = hold
        self._limit = limit
        self._notice = notice
        self._blocked: dict[P, float] = {}
        self._recent: dict[bytes, P] = {}
        self._older: dict[bytes, P] = {}
        self._rotated = 0.0
        self._returns: Counter[P] = Counter()
        #: After a port was blocked, frames of the loop may still be on the way until this time.
        self._settling = 0.0
        #: How many frames each port may flood now, and the time of that count.
        self._allowances: dict[P, tuple[float, float]] = {}
        #: How many frames came back, and how many were over the limit.
        self.returned = self.limited = 0

    def blocked(self, port: P, now: float) -> float:
        """For how many seconds *port* is still blocked. A blocked port neither sends nor receives."""
        until = self._blocked.get(port)
        if until is None:
            return 0.0
        if now < until:
            return until - now
        del self._blocked[port]
        return 0.0

    @property
    def any_blocked(self) -> bool:
        """Whether any port may be blocked. If not, `blocked` need not be called."""
        return bool(self._blocked)

    def admit(self, frames: list[bytes], source: P, now: float) -> list[bytes]:
        """Returns the *frames* that may be flooded. Each begins with a virtio_net_hdr of 10 bytes."""
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
        """Forgets a port that was removed."""
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
