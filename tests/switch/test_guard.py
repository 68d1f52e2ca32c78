"""Loops and storms."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from switch.guard import Guard

HEADER = bytes(10)


def frame(number: int) -> bytes:
    return HEADER + b"\xff" * 6 + b"\x02" + number.to_bytes(5) + b"\x88\xb5" + bytes(46)


def guard(hold: float = 60, limit: float | None = None) -> tuple[Guard[str], list[str]]:
    told: list[str] = []
    return Guard(hold, limit, told.append), told


def test_a_frame_that_comes_back_is_dropped_and_blocks_the_port() -> None:
    watch, told = guard()
    sent = [frame(number) for number in range(5)]
    assert watch.admit(sent, "left", 0) == sent
    assert watch.admit(sent[:2], "right", 0.1) == []
    assert watch.blocked("right", 0.1) == 0 and told == []
    assert watch.admit([*sent[2:], frame(9)], "right", 0.2) == [frame(9)]
    assert watch.blocked("right", 0.2) == 60 and watch.blocked("left", 0.2) == 0
    assert told == ["right"] and watch.returned == 5


def test_a_blocked_port_is_tried_again() -> None:
    watch, told = guard(hold=10)
    for now in (0, 20):
        watch.admit([frame(now)], "left", now)
        watch.admit([frame(now)] * 3, "right", now)
        assert watch.blocked("right", now + 9.5) == 0.5
        assert watch.blocked("right", now + 10) == 0
        assert not watch.any_blocked
    assert told == ["right", "right"]


def test_one_end_of_a_loop_is_blocked_and_not_the_other() -> None:
    watch, told = guard()
    sent = [frame(number) for number in range(10)]
    watch.admit(sent, "left", 0)
    for each in sent:  # each goes round in both directions
        watch.admit([each], "right", 0.1)
        watch.admit([each], "middle", 0.1)
    assert told == ["right"]


def test_a_port_may_send_the_same_frame_again() -> None:
    watch, told = guard()
    for now in range(10):
        assert watch.admit([frame(1)] * 5, "left", now / 10) == [frame(1)] * 5
    assert told == [] and watch.returned == 0


def test_a_frame_is_forgotten_after_a_while() -> None:
    """Who moves from one port to another may say there what it said before."""
    watch, told = guard()
    watch.admit([frame(1)], "left", 0)
    assert watch.admit([frame(1)], "right", 2.1) == [frame(1)]
    assert watch.admit([frame(1)], "left", 5) == [frame(1)]
    assert told == []


def test_a_checksum_that_was_completed_on_the_way_makes_no_difference() -> None:
    watch, _ = guard()
    sent = bytearray(HEADER + b"\xff" * 6 + b"\x02" + bytes(5) + b"\x08\0" + bytes(60))
    watch.admit([bytes(sent)], "left", 0)
    sent[0] = 1
    sent[10 + 14 + 20 + 6] = 0x77
    assert watch.admit([bytes(sent)], "right", 0) == []


def test_it_remembers_a_bounded_number_of_frames() -> None:
    watch, _ = guard()
    for number in range(20_000):
        watch.admit([frame(number)], "left", 0.5)
    assert len(watch._recent) + len(watch._older) <= 2 * 4096


def test_a_port_that_is_gone_is_forgotten() -> None:
    watch, _ = guard(limit=5)
    watch.admit([frame(1)] * 5, "left", 0)
    watch.admit([frame(1)] * 3, "right", 0)
    watch.forget("right")
    watch.forget("left")
    assert watch.blocked("right", 0) == 0
    assert watch.admit([frame(1)] * 5, "right", 0) == [frame(1)] * 5


@given(
    limit=st.integers(1, 20),
    arrivals=st.lists(
        st.tuples(st.sampled_from(["left", "right"]), st.integers(0, 30), st.sampled_from([0, 0.125, 0.5, 3]))
    ),
)
def test_flooding_is_limited_for_each_port(limit: int, arrivals: list[tuple[str, int, float]]) -> None:
    watch, _ = guard(limit=limit)
    now, number = 0.0, 0
    passed: dict[str, list[float]] = {"left": [], "right": []}
    allowance = dict.fromkeys(passed, float(limit))
    last = dict.fromkeys(passed, 0.0)
    for port, count, pause in arrivals:
        now += pause
        frames = [frame(number + each) for each in range(count)]
        number += count
        admitted = watch.admit(frames, port, now)
        allowance[port] = min(limit, allowance[port] + (now - last[port]) * limit)
        last[port] = now
        assert admitted == frames[: int(allowance[port])]
        allowance[port] -= len(admitted)
        passed[port] += [now] * len(admitted)
    for times in passed.values():
        for start in set(times):
            assert sum(start <= time < start + 1 for time in times) <= 2 * limit
