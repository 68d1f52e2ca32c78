"""Whose turn is next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from wireguard.schedule import NEVER, Schedule


class Someone:
    def __init__(self) -> None:
        self.turn = NEVER


def test_the_earliest_time_that_was_asked_for_counts() -> None:
    schedule: Schedule[Someone] = Schedule()
    one, two = Someone(), Someone()
    assert schedule.next() is None
    schedule.add(NEVER, one)
    assert schedule.next() is None
    schedule.add(5, one)
    schedule.add(3, two)
    schedule.add(2, one)
    schedule.add(9, two)
    assert schedule.next() == 2
    assert schedule.pop(1.9) is None
    assert schedule.pop(2) is one
    assert schedule.next() == 3
    schedule.remove(two)
    assert schedule.next() is None
    assert schedule.pop(100) is None


@given(st.lists(st.tuples(st.sampled_from("arp"), st.integers(0, 4), st.integers(0, 50)), max_size=100))
def test_no_timer_is_late_or_forgotten(steps: list[tuple[str, int, int]]) -> None:
    schedule: Schedule[Someone] = Schedule()
    people = [Someone() for _ in range(5)]
    turns: dict[int, int] = {}
    for what, who, when in steps:
        if what == "a":
            schedule.add(when, people[who])
            turns[who] = min(when, turns.get(who, when))
        elif what == "r":
            schedule.remove(people[who])
            turns.pop(who, None)
        else:
            while (person := schedule.pop(when)) is not None:
                assert turns.pop(people.index(person)) <= when
            assert all(turn > when for turn in turns.values())
        assert schedule.next() == min(turns.values(), default=None)


def test_repeated_requests_take_no_space() -> None:
    schedule: Schedule[Someone] = Schedule()
    one = Someone()
    for count in range(1000):
        schedule.add(10 + count, one)
    assert len(schedule._heap) == 1
