"""How the streams of one event loop share its time with each other and with all other tasks of the loop.

A reader that finds a frame each time it asks never has to wait, and neither does a writer: either could keep all other
tasks of the loop from running. So all streams of a loop share a time slice, `SLICE`. Within it they go on at once, which
saves an iteration of the loop for each batch. After it, streams wait in one line, and the loop completes an iteration
before the next in line has its turn.

A loop does not tell when an iteration begins. But if a stream is called after a pause, `PAUSE`, the loop has waited for
events or run something else meanwhile: then a new slice begins, without the line.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

#: Seconds that the streams of a loop may use without a break.
SLICE = 0.002

#: Iterations of the loop between two slices. A timer is called in the first one, and the task that it wakes runs in the
#: second one: with fewer, there would be a slice before each of the two.
ROUNDS = 2

#: Frames that a writer may write without reading the clock, at most, except that a batch is not interrupted.
CREDIT = 64

#: Seconds without any stream at work after which other tasks have had their time.
PAUSE = 0.0005


class Turn(asyncio.Future[None]):
    """What one reader or writer waits on. Unlike other futures, it can resume its task in the same loop iteration.

    When a future gets its result, the loop schedules the task for its next iteration, and polls once more before that:
    a fifth of the time from a frame's arrival to its answer. Instead, a callback of the loop may run the waiting task
    directly, since no other task is running then. For that, the callbacks are kept here and not in the future.
    """

    _waiting: list[tuple[Callable[[Any], object], Context | None]] | None = None

    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: Context | None = None) -> None:
        if self._waiting is None:
            self._waiting = []
        self._waiting.append((fn, context))
        if self.done():
            self._schedule()

    def remove_done_callback(self, fn: Callable[[Any], object], /) -> int:
        before = self._waiting or []
        self._waiting = [each for each in before if each[0] != fn]
        return len(before) - len(self._waiting)

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._schedule()
        return cancelled

    def give(self) -> None:
        """The task runs in the next iteration of the loop."""
        if not self.done():
            self.set_result(None)
            self._schedule()

    def give_now(self) -> None:
        """The task runs before this returns. Only for callbacks of the loop, and not to be called from a task."""
        if self.done():
            return
        self.set_result(None)
        waiting, self._waiting = self._waiting, None
        for fn, context in waiting or ():
            if context is None:
                fn(self)
            else:
                context.run(fn, self)

    def _schedule(self) -> None:
        waiting, self._waiting = self._waiting, None
        loop = self.get_loop()
        if waiting and not loop.is_closed():
            for fn, context in waiting:
                loop.call_soon(fn, self, context=context)


class Turns:
    """The slice and the line of one event loop."""

    __slots__ = (
        "__weakref__",
        "_began_at",
        "_called",
        "_forgetting",
        "_grant",
        "_line",
        "_paused_at",
        "credit",
        "until",
    )

    def __init__(self) -> None:
        #: The time, by `time.monotonic`, until which streams may go on without waiting in line.
        self.until = 0.0
        #: Frames that may be written before the clock and the running loop are looked at, which costs as much as a tenth
        #: of a frame.
        self.credit = 0
        self._grant = 1
        self._forgetting = False
        self._began_at = self._paused_at = 0.0
        self._line: deque[Callable[[], object]] = deque()
        #: Whether the loop will call `_go_on`.
        self._called = False

    def begin(self) -> bool:
        """Whether a stream that the loop calls may work now. If not, it has to `join` the line."""
        now = monotonic()
        if now - self._paused_at > PAUSE and not self._line:  # others have had their time
            self.until = now + SLICE
        elif now >= self.until:
            return False
        self._began_at = now
        return True

    def pause(self) -> None:
        """A stream that the loop called has finished its work."""
        self._paused_at = monotonic()
        self.credit = 0
        self._grant = 1

    def extend(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a writer that has used up its credit may go on, with a new one. If not, it has to wait for the `next` turn.

        A credit is small at first and ends with the loop's iteration, so that a caller from another loop has none.
        """
        if not self._is_at_work and not self._forgetting:
            loop.call_soon(self._forget)
            self._forgetting = True
        if self._grant < CREDIT and self.credit > -CREDIT:  # or it has written a large batch on credit
            self._grant *= 2
        elif monotonic() >= self.until:
            return False
        self.credit = self._grant
        return True

    def join(self, loop: asyncio.AbstractEventLoop, work: Callable[[], object]) -> None:
        """The loop will call *work* once, in the order of joining, after it has completed an iteration."""
        self.call(loop)
        self._line.append(work)

    def call(self, loop: asyncio.AbstractEventLoop) -> None:
        """Makes sure that the loop calls `_go_on`, also if there was no memory for that before."""
        if not self._called:
            loop.call_soon(self._go_on, loop, ROUNDS if self._is_used_up() else 0)
            self._called = True

    async def next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Waits in line. On return, a new slice has begun, or this one has time left."""
        turn = Turn(loop=loop)
        self.join(loop, turn.give_now)
        await turn
        self.credit = CREDIT

    def _forget(self) -> None:
        self._forgetting = False
        self.credit = 0
        self._grant = 1

    @property
    def _is_at_work(self) -> bool:
        """Whether a stream that the loop called is at work now."""
        return self._began_at > self._paused_at

    def _is_used_up(self) -> bool:
        """Whether streams have just had a whole slice."""
        now = monotonic()
        return now >= self.until and (self._is_at_work or now - self._paused_at <= PAUSE)

    def _go_on(self, loop: asyncio.AbstractEventLoop, rounds: int) -> None:
        self._called = False
        if rounds:
            with suppress(MemoryError):  # then without another iteration
                loop.call_soon(self._go_on, loop, rounds - 1)
                self._called = True
                return
        self._began_at = monotonic()
        self.until = self._began_at + SLICE
        try:
            # A stream that joins meanwhile has its turn the next time.
            for _ in range(len(self._line)):
                self._line.popleft()()
                if monotonic() >= self.until:
                    break
        finally:
            if self._line:
                self.call(loop)
            self.pause()


# Only the streams hold strong references: a line that is not empty refers to its loop, and would keep it alive for ever.
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, ReferenceType[Turns]] = WeakKeyDictionary()


def turns_of(loop: asyncio.AbstractEventLoop) -> Turns:
    """The one that all streams of *loop* share."""
    reference = _turns.get(loop)
    turns = None if reference is None else reference()
    if turns is None:
        turns = Turns()
        _turns[loop] = ReferenceType(turns)
    return turns
