"""How streams share the time of a loop, and what a reader or a writer waits on."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from aiotuntap._turns import CREDIT, PAUSE, SLICE, Turn, Turns, turns_of
from aiotuntap.testing import example_frame, memory_pair


async def test_a_turn_keeps_every_callback_and_forgets_those_that_are_removed() -> None:
    turn = Turn()
    called: list[int] = []

    def first(_: object) -> None:
        called.append(1)

    def second(_: object) -> None:
        called.append(2)

    turn.add_done_callback(first)
    turn.add_done_callback(second)
    turn.add_done_callback(first)
    assert turn.remove_done_callback(first) == 2
    assert turn.remove_done_callback(first) == 0
    turn.add_done_callback(first)
    turn.give()
    turn.add_done_callback(second)  # it is done: at the next opportunity
    assert called == []
    await asyncio.sleep(0)
    assert called == [2, 1, 2]


async def test_a_turn_can_be_waited_for_by_others_too() -> None:
    turn = Turn()
    tasks = [asyncio.ensure_future(asyncio.wait([turn])) for _ in range(2)]
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(turn.give_now)
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    cancelled = Turn()
    waiter = asyncio.ensure_future(asyncio.wait([cancelled]))
    await asyncio.sleep(0)
    cancelled.cancel()
    async with asyncio.timeout(5):
        done, _ = await waiter
    assert done == {cancelled}


async def test_who_waits_in_line_comes_in_order_and_not_before_the_loop_went_round() -> None:
    loop = asyncio.get_running_loop()
    turns = turns_of(loop)
    assert turns_of(loop) is turns
    order: list[object] = []
    for number in range(3):
        turns.join(loop, lambda number=number: order.append(number))  # type: ignore[misc]
    loop.call_soon(order.append, "another")
    assert order == []
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [each for each in order if each != "another"] == [0, 1, 2] and "another" in order


async def test_a_slice_that_is_used_up_lets_the_loop_go_round() -> None:
    loop = asyncio.get_running_loop()
    turns = Turns()
    order: list[str] = []

    def work() -> None:
        order.append("work")
        time.sleep(SLICE)

    for _ in range(3):
        turns.join(loop, work)

    async def other() -> None:
        while order.count("work") < 3:
            order.append("other")
            await asyncio.sleep(0)

    await other()
    assert order.count("work") == 3
    assert "work work" not in " ".join(order)


async def test_a_stream_that_is_called_after_a_pause_goes_to_work_at_once() -> None:
    turns = Turns()
    assert turns.begin()
    time.sleep(SLICE + 0.001)
    turns.pause()
    assert not turns.begin()
    time.sleep(2 * PAUSE)
    assert turns.begin()


def test_a_slice_begins_anew_when_others_have_had_their_time() -> None:
    turns = Turns()
    assert turns.begin()
    turns.pause()
    first = turns.until
    time.sleep(2 * PAUSE)
    assert turns.begin()
    turns.pause()
    assert turns.until >= first + 2 * PAUSE
    second = turns.until
    assert turns.begin()
    assert turns.until == second


async def test_an_exception_in_a_turn_keeps_nobody_waiting() -> None:
    loop = asyncio.get_running_loop()
    turns = Turns()
    told: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    order: list[int] = []
    turns.join(loop, lambda: 1 / 0)
    turns.join(loop, lambda: order.append(1))
    for _ in range(4):
        await asyncio.sleep(0)
    assert order == [1] and isinstance(told[0]["exception"], ZeroDivisionError)


async def test_no_memory_for_a_callback_leaves_no_task_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop:
        """One that has no memory at first."""

        def __init__(self) -> None:
            self.refusals = 1
            self.calls: list[tuple[object, ...]] = []

        def call_soon(self, *call: object) -> None:
            if self.refusals:
                self.refusals -= 1
                raise MemoryError
            self.calls.append(call)

    loop: Any = Loop()
    turns = Turns()
    order: list[int] = []
    with pytest.raises(MemoryError):
        turns.join(loop, lambda: order.append(1))
    turns.join(loop, lambda: order.append(2))
    turns.join(loop, lambda: turns.join(loop, lambda: order.append(3)))
    loop.refusals = 1
    callback, *arguments = loop.calls.pop()
    with pytest.raises(MemoryError):
        callback(*arguments)
    turns.call(loop)
    turns.join(loop, lambda: order.append(4))
    (call,) = loop.calls
    call[0](*call[1:])
    assert order == [2, 4] or order == [2, 3, 4]


async def test_after_a_slice_a_timer_and_the_task_that_it_wakes_come_first() -> None:
    loop = asyncio.get_running_loop()
    turns = Turns()
    order: list[str] = []

    def work() -> None:
        order.append("work")
        time.sleep(1.5 * SLICE)

    async def tick() -> None:
        await asyncio.sleep(SLICE / 2)
        order.append("tick")

    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(0)
    for _ in range(3):
        turns.join(loop, work)  # the timer expires during the first
    await ticking
    while len(order) < 4:
        await asyncio.sleep(0)
    assert order == ["work", "tick", "work", "work"]


async def test_within_a_slice_there_is_one_round_between_turns() -> None:
    loop = asyncio.get_running_loop()
    turns = Turns()
    rounds = 0
    for _ in range(5):
        waiting = asyncio.ensure_future(turns.next(loop))
        while not waiting.done():
            await asyncio.sleep(0)
            rounds += 1
    assert rounds <= 15


async def test_writers_look_at_the_clock_now_and_then() -> None:
    loop = asyncio.get_running_loop()
    turns = Turns()
    granted = 0
    while turns.extend(loop):
        granted += turns.credit
        turns.credit = 0
    assert CREDIT <= granted <= 2 * CREDIT  # and after that, no more without a turn
    await turns.next(loop)
    assert turns.credit == CREDIT and turns.extend(loop)
    for _ in range(3):
        await asyncio.sleep(0)
    assert turns.credit == 0  # it ends with the loop's round


async def test_streams_that_always_find_frames_let_others_run() -> None:
    pairs = [memory_pair() for _ in range(8)]

    async def relay(number: int) -> None:
        _, far = pairs[number]
        while True:
            for _ in await far.read_frames(10):
                time.sleep(20e-6)

    async def flood() -> None:
        while True:
            for near, _ in pairs:
                for number in range(20):
                    near.write_frame_nowait(example_frame(number))
            await asyncio.sleep(0)

    tasks = [asyncio.ensure_future(flood()), *(asyncio.ensure_future(relay(number)) for number in range(8))]
    most = 0
    for _ in range(20):  # where others keep the processor busy, one of these times has it for itself
        turns, end = 0, time.monotonic() + 0.2
        while time.monotonic() < end:
            await asyncio.sleep(0)
            turns += 1
        most = max(most, turns)
        if most > 10:
            break
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most > 10
