"""A line with latency: each item arrives at its time, in the order in which the items were sent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Wire(Generic[T]):
    """Items on the way, each with the time at which it arrives.

    Args:
        loop: The event loop, whose clock is used.
        deliver: Called by the loop for each item that arrives. `send` calls it directly for an item without delay, if no
            other item is on the way.
    """

    __slots__ = ("_deliver", "_items", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[T], object]) -> None:
        self._loop = loop
        self._deliver = deliver
        self._items: deque[tuple[float, T]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._items)

    def send(self, item: T, seconds: float = 0.0) -> None:
        """Sends an item. It arrives after *seconds*, but not before those that were sent earlier."""
        if seconds <= 0 and not self._items:
            self._deliver(item)
            return
        due = self._loop.time() + seconds
        if self._items:
            due = max(due, self._items[-1][0])
        self._items.append((due, item))
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._on_time)

    def cut(self) -> None:
        """Drops all items on the way."""
        self._items.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_time(self) -> None:
        self._timer = None
        items, now = self._items, self._loop.time()
        while items and items[0][0] <= now:
            self._deliver(items.popleft()[1])
        if items and self._timer is None:
            self._timer = self._loop.call_at(items[0][0], self._on_time)
