"""Blocking set-up work on a thread of its own.

A fresh thread and not a pooled one, for two reasons: it inherits the network namespace of the thread that asks, and it
may move to another namespace without a later piece of work waking up there.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from ._errors import SetupError

T = TypeVar("T")


async def run_in_thread(
    work: Callable[[], T], undo: Callable[[T], object] | None = None, *, or_here: bool = False
) -> T:
    """Runs *work* on a new thread and waits for it to end, in every case.

    Cancelling, once or again and again, takes effect when *work* is over: its result is then handed to *undo*, on a
    thread as well, so that nothing is still going on, and nothing leaks, when CancelledError is raised.

    Args:
        work: Called on the thread.
        undo: Takes back a result that nobody is left to receive.
        or_here: When no thread can be started, as during the interpreter's shutdown, run *work* on this one.

    Raises:
        SetupError: No thread can be started.
    """
    job = _Job(work, undo)
    try:
        cancelled = await outlast(_start(job.run, job.discard, or_here), job.abandon)
    except BaseException:  # the coroutine is closed, with a loop that will not run again
        job.discard()
        raise
    if cancelled is None:
        return job.result()
    if job.has_result:  # it had come before the cancellation, and so the thread did not undo it
        await outlast(_start(job.take_back, _nothing, or_here=True))
    raise cancelled


async def outlast(
    done: asyncio.Future[None], on_cancel: Callable[[], object] | None = None
) -> asyncio.CancelledError | None:
    """Waits for *done* through any number of cancellations, and returns the last of them for the caller to raise.

    Args:
        done: What to wait for. Its result does not matter.
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
    """Closes what *owner*, which is being collected, has open, where that is safe, and warns. For ``__del__``.

    Args:
        owner: What was not closed.
        loop: Where it is registered.
        thread: That of the loop.
        pid: The process that opened it.
        close: Closes it here and now.
    """
    if os.getpid() != pid:  # a forked child has copies of the descriptors, and nothing to lose
        close()
        return
    try:
        warnings.warn(
            f"unclosed {owner!r}: call aclose(), or use 'async with'; of an endpoint, close the transport",
            ResourceWarning,
            stacklevel=2,
            source=owner,
        )
    finally:  # the warning may be made an error
        if loop.is_running() and threading.get_ident() != thread:
            # Collected on another thread, where a loop that runs must not be touched.
            loop.call_soon_threadsafe(close)
        else:
            close()


def _nothing() -> None:
    pass


def _start(work: Callable[[], object], if_closed: Callable[[], object], or_here: bool) -> asyncio.Future[None]:
    """Calls *work*, which raises nothing, on a new thread. *if_closed*: when nobody can be told, the loop being closed."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def body() -> None:
        work()
        try:
            loop.call_soon_threadsafe(finish)
        except RuntimeError:  # the loop was closed meanwhile
            if_closed()

    try:
        threading.Thread(target=body, name="aiotuntap-setup").start()
    except (RuntimeError, MemoryError) as error:
        if not or_here:
            raise SetupError(
                errno.EAGAIN, "cannot start a thread for it: raise the limit of processes ('ulimit -u', or pids.max)"
            ) from error
        work()
        finish()
    return done


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
        work = self._work
        del self._work  # the thread may live a little longer than who waits for it, and keep alive what it belongs to
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised again by result()
            self._errors.append(error)
            return
        with self._lock:
            self._results.append(result)
            abandoned = self._abandoned
        if abandoned:
            self.take_back()

    @property
    def has_result(self) -> bool:
        return bool(self._results)

    def abandon(self) -> None:
        """Nobody waits for the result any more: when it comes, it is undone where it comes."""
        with self._lock:
            self._abandoned = True

    def take_back(self) -> None:
        """Undoes the result, if there is one that nobody took."""
        with self._lock:
            results, self._results = self._results, []
        if results and self._undo is not None:
            with suppress(Exception):  # there is nobody to tell
                self._undo(results[0])

    def discard(self) -> None:
        self.abandon()
        self.take_back()

    def result(self) -> T:
        if self._errors:
            raise self._errors.pop()
        return self._results.pop()
