"""How the streams of one event loop share its time with each other and with everything else that runs there.

A reader that finds a frame every time it asks never has to wait, and neither does a writer: either could keep all other
tasks of the loop from running. So there is a limit in time, `SLICE`, that all streams of a loop share. Within it they go
on at once, which saves a trip around the loop for each batch. Whoever comes later waits in one line, and the loop
goes round before the next in line has its turn.

No loop says when it goes round. But a stream that is called after a pause, `PAUSE`, was called by a loop that waited
for events, or ran something else: then a new slice begins without the line.
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

#: Seconds that the streams of a loop may take in a row.
SLICE = 0.002

#: Times that the loop goes round after a slice before the next one begins. A timer is called in the first round, and the
#: task that it wakes runs in the second: with fewer, a slice would come before each of the two.
ROUNDS = 2

#: Frames that a writer may write at most without a look at the clock, or as many as are in one batch.
CREDIT = 64

#: Seconds without any stream at work after which others have had their time.
PAUSE = 0.0005


class Turn(asyncio.Future[None]):
    """What one reader or writer waits on. Unlike any future, it can resume its task without another trip around the loop.

    When a future gets its result, the loop schedules the task for its next iteration and polls once more before that:
    a fifth of the time from a frame's arrival to its answer. A callback of the loop, in which no task is running, may
    run the one that waits directly instead. So the callbacks are kept here and not in the future.
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
        """The task runs at the loop's next opportunity."""
        if not self.done():
            self.set_result(None)
            self._schedule()

    def give_now(self) -> None:
        """The task runs before this returns. For callbacks of the loop only, never from within a task."""
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
        #: Until when, by `time.monotonic`, streams may go on without waiting in line.
        self.until = 0.0
        #: Frames that may be written before somebody looks at the clock and at the loop, which cost as much as a tenth
        #: of a frame.
        self.credit = 0
        self._grant = 1
        self._forgetting = False
        self._began_at = self._paused_at = 0.0
        self._line: deque[Callable[[], object]] = deque()
        #: Whether the loop is going to call `_go_on`.
        self._called = False

    def begin(self) -> bool:
        """Whether a stream that the loop calls may go to work now. If not, it has to `join` the line."""
        now = monotonic()
        if now - self._paused_at > PAUSE and not self._line:  # others have had their time
            self.until = now + SLICE
        elif now >= self.until:
            return False
        self._began_at = now
        return True

    def pause(self) -> None:
        """A stream that the loop called has done its work."""
        self._paused_at = monotonic()
        self.credit = 0
        self._grant = 1

    def extend(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a writer whose credit is used up may go on, with a new one. If not, it has to wait for the `next` turn.

        A credit is small at first, and it ends with the loop's round, so that a caller from elsewhere has none.
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
        """*work* is called once by the loop, in the order of joining, when it has gone round."""
        self.call(loop)
        self._line.append(work)

    def call(self, loop: asyncio.AbstractEventLoop) -> None:
        """Makes sure that the loop calls back, also when there was no memory for that before."""
        if not self._called:
            loop.call_soon(self._go_on, loop, ROUNDS if self._is_used_up() else 0)
            self._called = True

    async def next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Waits in line. On return, a new slice has begun or there is time left in it."""
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
            with suppress(MemoryError):  # then without another round
                loop.call_soon(self._go_on, loop, rounds - 1)
                self._called = True
                return
        self._began_at = monotonic()
        self.until = self._began_at + SLICE
        try:
            # Who joins meanwhile comes next time.
            for _ in range(len(self._line)):
                self._line.popleft()()
                if monotonic() >= self.until:
                    break
        finally:
            if self._line:
                self.call(loop)
            self.pause()


# The streams keep them. Kept here, a line that was not empty when its loop was closed would keep the loop, and so itself.
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, ReferenceType[Turns]] = WeakKeyDictionary()


def turns_of(loop: asyncio.AbstractEventLoop) -> Turns:
    """Those that all streams of *loop* share."""
    reference = _turns.get(loop)
    turns = None if reference is None else reference()
    if turns is None:
        turns = Turns()
        _turns[loop] = ReferenceType(turns)
    return turns
