"""Work on a thread, and cancelling it: once, again and again, before and after its result has come."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from aiotuntap import SetupError, _threads
from aiotuntap._threads import _Job, _start, run_in_thread


class Work:
    """Slow work, whose result has to be undone if it is not used."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.seconds = seconds
        self.done: list[int] = []
        self.undone: list[int] = []

    def __call__(self) -> int:
        time.sleep(self.seconds)
        self.done.append(threading.get_ident())
        return 7

    def undo(self, result: int) -> None:
        assert result == 7
        self.undone.append(threading.get_ident())


def setup_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aiotuntap-setup"]


async def cancel_on_every_iteration(task: asyncio.Task[object]) -> int:
    """As anyio's cancel scopes do. Returns how often that was."""
    times = 0
    while not task.done():
        task.cancel()
        times += 1
        await asyncio.sleep(0)
    return times


async def test_the_result_comes_back() -> None:
    work = Work(0)
    assert await run_in_thread(work, work.undo) == 7
    assert len(work.done) == 1 and not work.undone


async def test_cancelled_on_every_iteration_it_ends_when_the_work_does() -> None:
    work = Work()
    task = asyncio.ensure_future(run_in_thread(work, work.undo))
    await asyncio.sleep(0)
    started = threading.active_count()
    async with asyncio.timeout(10):
        times = await cancel_on_every_iteration(task)
    assert times > 10 and task.cancelled()
    assert threading.active_count() <= started
    assert work.undone == work.done  # by the thread that did it


async def test_one_cancellation_waits_for_the_work_and_undoes_it() -> None:
    work = Work()
    task = asyncio.ensure_future(run_in_thread(work, work.undo))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.undone == work.done


async def test_cancelled_when_the_result_has_come_already() -> None:
    work = Work(0)
    task = asyncio.ensure_future(run_in_thread(work, work.undo))
    await asyncio.sleep(0)
    while setup_threads():  # without a turn of the loop, which would take the result
        time.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(work.done) == len(work.undone) == 1
    assert work.undone != [threading.get_ident()]


async def test_an_error_of_the_work_is_raised_and_of_the_undoing_is_not() -> None:
    def fail(*_: object) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run_in_thread(fail)
    work = Work()
    task = asyncio.ensure_future(run_in_thread(work, fail))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await cancel_on_every_iteration(task)
    assert task.cancelled()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop])
def test_a_loop_that_is_closed_in_the_middle_leaves_nothing(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    work = Work()
    loop = new_loop()
    coroutine = run_in_thread(work, work.undo)
    task = loop.create_task(coroutine)
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    for thread in setup_threads():
        thread.join()
    assert len(work.done) == 1 and work.undone == work.done
    coroutine.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_work_that_is_over_keeps_nothing_alive() -> None:
    work = Work(0)
    reference = weakref.ref(work)
    job = _Job(work.__call__, None)
    job.run()
    del work
    gc.collect()
    assert reference() is None
    assert job.result() == 7


async def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(SetupError, match="ulimit -u"):
            await run_in_thread(lambda: 7)
        assert await run_in_thread(lambda: 7, or_here=True) == 7


async def test_no_memory_to_tell_that_the_work_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    tell, tries = loop.call_soon_threadsafe, iter(range(9))

    class Loop:
        create_future = loop.create_future

        def call_soon_threadsafe(self, *arguments: Any) -> object:
            if next(tries) < 3:
                raise MemoryError
            return tell(*arguments)

    monkeypatch.setattr(_threads, "asyncio", SimpleNamespace(get_running_loop=Loop))
    started = _start(lambda: None, lambda: None, False)
    monkeypatch.undo()
    async with asyncio.timeout(10):
        await started
    assert next(tries) == 4
