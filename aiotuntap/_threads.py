"""Blocking set-up work on a thread of its own.

A fresh thread and not a pooled one, for two reasons: it inherits the network namespace of the thread that asks, and it
may move to another namespace without a later piece of work waking up there.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ._errors import SetupError

T = TypeVar("T")


async def run_in_thread(
    work: Callable[[], T], undo: Callable[[T], object] | None = None, *, or_here: bool = False
) -> T:
    """Runs *work* on a new thread and waits for it to end, in every case.

    Cancelling takes effect once *work* is over: its result is then handed to *undo*, on a thread as well, so that
    nothing is still going on, and nothing leaks, when CancelledError is raised.

    Args:
        work: Called on the thread.
        undo: Takes back a result that nobody is left to receive.
        or_here: When no thread can be had, as during the interpreter's shutdown, run *work* on this one.

    Raises:
        SetupError: No thread can be had.
    """
    loop = asyncio.get_running_loop()
    job = _Job(work, undo)
    done: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def body() -> None:
        job.run()
        try:
            loop.call_soon_threadsafe(finish)
        except RuntimeError:  # the loop was closed meanwhile
            job.abandon()

    try:
        threading.Thread(target=body, name="aiotuntap-setup").start()
    except RuntimeError as error:
        if not or_here:
            raise SetupError(
                errno.EAGAIN, "cannot start a thread for it: raise the limit of processes ('ulimit -u', or pids.max)"
            ) from error
        body()

    cancelled: asyncio.CancelledError | None = None
    try:
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError as error:
                cancelled = error
    except BaseException:  # the coroutine is closed, with a loop that will not run again
        job.abandon()
        raise
    if cancelled is not None:
        await run_in_thread(job.abandon, or_here=True)
        raise cancelled
    return job.result()


class _Job(Generic[T]):
    """A piece of work whose result goes to exactly one place: to who waits for it, or to *undo*."""

    def __init__(self, work: Callable[[], T], undo: Callable[[T], object] | None) -> None:
        self._work = work
        self._undo = undo
        self._results: list[T] = []
        self._errors: list[BaseException] = []
        self._abandoned = False
        self._lock = threading.Lock()

    def run(self) -> None:
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again by result()
            self._errors.append(error)
            return
        self._results.append(result)
        if self._abandoned:
            self.abandon()

    def abandon(self) -> None:
        self._abandoned = True
        with self._lock:
            results, self._results = self._results, []
        if results and self._undo is not None:
            self._undo(results[0])

    def result(self) -> T:
        if self._errors:
            raise self._errors.pop()
        return self._results.pop()
