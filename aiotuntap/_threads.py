"""Blocking set-up work on a separate thread.

It is a new thread and not one of a pool, for two reasons: a new thread is in the network namespace of the thread that
starts it, and it may move to another namespace without later work being done there by mistake.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar, cast

from ._errors import no_thread

T = TypeVar("T")

# Seconds between two tries while there is no memory to tell that the work has ended.
_MEMORY_PAUSE = 0.01


async def run_in_thread(
    work: Callable[[], T], undo: Callable[[T], object] | None = None, *, or_here: bool = False
) -> T:
    """Runs *work* on a new thread and waits until it has ended, also when cancelled.

    Cancelling, once or several times, takes effect when *work* has ended: its result is then handed to *undo*, also on a
    thread. When CancelledError is raised, nothing is still running, and nothing is leaked.

    Args:
        work: Called on the thread.
        undo: Called with the result if the caller cannot receive it any more.
        or_here: If no thread can be started, as during the interpreter's shutdown, run *work* on this thread.

    Raises:
        SetupError: No thread could be started.
    """
    job = _Job(work, undo)
    try:
        cancelled = await outlast(_start(job.run, job.discard, or_here), job.abandon)
    except BaseException:  # the coroutine was closed, and the loop will not run again
        job.discard()
        raise
    if cancelled is None:
        return job.result()
    if job.has_result:  # it was there before the cancellation, and so the thread did not undo it
        await outlast(_start(job.take_back, _nothing, or_here=True))
    raise cancelled


async def outlast(
    done: asyncio.Future[None], on_cancel: Callable[[], object] | None = None
) -> asyncio.CancelledError | None:
    """Waits for *done*, also when cancelled, and returns the last cancellation for the caller to raise.

    Args:
        done: The future to wait for. Its result is ignored.
        on_cancel: Called at the first cancellation.
    """
    cancelled = None
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError as error:
            if cancelled is None and on_cancel is not None:
                on_cancel()
            cancelled = error
    return cancelled


def collect(owner: object, loop: asyncio.AbstractEventLoop, thread: int, pid: int, close: Callable[[], object]) -> None:
    """Closes what *owner* has open, where that is safe, and gives a ResourceWarning. For ``__del__``.

    Args:
        owner: The object that was not closed, and is being collected.
        loop: The event loop that it is registered with.
        thread: The thread of the loop.
        pid: The process that opened it.
        close: Closes it at once.
    """
    if os.getpid() != pid:  # a forked child has copies of the descriptors, and may close them
        close()
        return
    try:
        warnings.warn(
            f"unclosed {owner!r}: call aclose() or use 'async with'; of an endpoint, close the transport",
            ResourceWarning,
            stacklevel=2,
            source=owner,
        )
    finally:  # a filter can make the warning an error
        if loop.is_running() and threading.get_ident() != thread:
            # Collected on another thread, which must not use a loop that is running.
            loop.call_soon_threadsafe(close)
        else:
            close()


def _nothing() -> None:
    pass


def _start(work: Callable[[], object], if_closed: Callable[[], object], or_here: bool) -> asyncio.Future[None]:
    """Calls *work*, which does not raise, on a new thread; and then *if_closed*, if the loop was closed meanwhile."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def body() -> None:
        work()
        while True:
            try:
                loop.call_soon_threadsafe(finish)
            except MemoryError:  # whoever waits would wait for ever
                time.sleep(_MEMORY_PAUSE)
                continue
            except RuntimeError:  # the loop was closed meanwhile
                if_closed()
            return

    try:
        threading.Thread(target=body, name="aiotuntap-setup").start()
    except (RuntimeError, MemoryError):
        if not or_here:
            raise no_thread("to set up the interface") from None
        work()
        finish()
    return done


class _Job(Generic[T]):
    """A piece of work whose result is used exactly once: by the task that waits for it, or by *undo*.

    To keep the result takes no memory that is not there before: otherwise it could be lost, with what it owns.
    """

    def __init__(self, work: Callable[[], T], undo: Callable[[T], object] | None) -> None:
        self._work = work
        self._undo = undo
        self._result: T | None = None
        self._error: BaseException | None = None
        self._abandoned = False
        self._lock = threading.Lock()
        self.has_result = False

    def run(self) -> None:
        work = self._work
        del self._work  # the thread may end a little later than the task that waits for it, and keep objects alive
        try:
            self._result = work()
        except BaseException as error:  # noqa: BLE001 - raised again by result()
            self._error = error
            return
        with self._lock:
            self.has_result = True
            abandoned = self._abandoned
        if abandoned:
            self.take_back()

    def abandon(self) -> None:
        """No task waits for the result any more: the thread has to undo it."""
        with self._lock:
            self._abandoned = True

    def take_back(self) -> None:
        """Undoes the result, if there is one that was not used."""
        with self._lock:
            had_result, self.has_result = self.has_result, False
        if had_result and self._undo is not None:
            with suppress(Exception):  # there is no caller to raise it to
                self._undo(self._take())

    def discard(self) -> None:
        self.abandon()
        self.take_back()

    def result(self) -> T:
        error, self._error = self._error, None
        if error is not None:
            raise error
        self.has_result = False
        return self._take()

    def _take(self) -> T:
        result, self._result = self._result, None
        return cast("T", result)
