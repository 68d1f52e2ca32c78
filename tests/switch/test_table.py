"""Who is where."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from switch.table import Entry, Table, station, stations

A, B, C, D = (station(bytes.fromhex(f"02000000000{digit}")) for digit in "abcd")
BROADCAST, MULTICAST = station(b"\xff" * 6), station(bytes.fromhex("01005e000001"))


def table(age: float = 300, limit: int = 4096) -> Table[str]:
    return Table(age, limit)


def made_up(count: int) -> list[bytes]:
    return [station(b"\x02\x66" + number.to_bytes(4)) for number in range(count)]


def test_learns_and_finds() -> None:
    known = table()
    assert known.find(A, 0) is None
    known.learn(A, "left", 0)
    known.learn(B, "right", 1)
    assert [known.find(each, 2) for each in (A, B, C)] == ["left", "right", None]
    assert (len(known), known.learned, known.moved, known.evicted) == (2, 2, 0, 0)


def test_hearing_it_again_keeps_it() -> None:
    known = table(age=10)
    known.learn(A, "left", 0)
    known.learn(A, "left", 9)
    assert known.find(A, 18.999) == "left"
    assert known.find(A, 19) is None


def test_finding_it_does_not_keep_it() -> None:
    known = table(age=10)
    known.learn(A, "left", 0)
    assert known.find(A, 9) == "left"
    assert known.find(A, 10) is None


def test_an_age_of_zero_makes_it_a_hub() -> None:
    known = table(age=0)
    known.learn(A, "left", 7)
    assert known.find(A, 7) is None


def test_follows_who_moves() -> None:
    known = table()
    known.learn(A, "left", 0)
    known.learn(A, "right", 0)
    assert known.find(A, 0) == "right"
    known.forget("left")
    assert known.find(A, 0) == "right" and known.moved == 1


@pytest.mark.parametrize("group", [BROADCAST, MULTICAST], ids=["broadcast", "multicast"])
def test_group_addresses_are_never_learned(group: bytes) -> None:
    known = table(limit=1)
    known.learn(A, "left", 0)
    known.learn(group, "right", 0)
    assert known.find(group, 0) is None
    assert known.find(A, 0) == "left"


def test_forgets_a_port() -> None:
    known = table()
    known.learn(A, "left", 0)
    known.learn(B, "right", 0)
    known.learn(C, "left", 0)
    known.learn(C, "left", 5)
    known.forget("left")
    known.forget("nobody's")
    assert [known.find(each, 5) for each in (A, B, C)] == [None, "right", None]
    assert len(known) == 1


def test_a_static_station_neither_ages_nor_moves() -> None:
    known = table(age=10)
    known.learn(A, "right", 0)
    known.pin(A, "left")
    known.learn(A, "right", 1)
    assert known.find(A, 1e9) == "left" and len(known) == 0
    assert list(known.entries(5)) == [Entry(A[:6], 0, "left", None)]
    known.forget("left")
    assert known.find(A, 1e9) is None


def test_lists_what_it_finds() -> None:
    known = table(age=10)
    known.learn(A, "left", 0)
    known.learn(station(B[:6], 7), "right", 5)
    assert list(known.entries(12)) == [Entry(B[:6], 7, "right", 7)]


# -- a table that is full ----------------------------------------------------------------------------------------------


def test_an_aged_one_makes_room_first() -> None:
    known = table(age=10, limit=3)
    known.learn(A, "left", 0)
    known.learn(B, "right", 9)
    known.learn(D, "right", 9)
    known.learn(C, "right", 10)
    assert [known.find(each, 10) for each in (A, B, D, C)] == [None, "right", "right", "right"]
    assert known.evicted == 0


def test_a_flood_does_not_grow_it() -> None:
    known = table(limit=100)
    sources = made_up(5000)
    for source in sources:
        known.learn(source, "left", 0)
    assert [source for source in sources if known.find(source, 0)] == sources[-100:]
    assert known.evicted == 4900


def test_a_flood_removes_no_active_station() -> None:
    """Neither behind other ports, where they need not speak again, nor behind the same port, where they do."""
    known = table(limit=100)
    elsewhere = [station(b"\x02\x01" + number.to_bytes(4)) for number in range(40)]
    beside = [station(b"\x02\x02" + number.to_bytes(4)) for number in range(40)]
    for each in elsewhere:
        known.learn(each, "right", 0)
    for now in (0, 2):
        for each in beside:
            known.learn(each, "left", now)
    for source in made_up(10_000):
        known.learn(source, "left", 3)
    assert all(known.find(each, 3) == "right" for each in elsewhere)
    assert all(known.find(each, 3) == "left" for each in beside)


def test_without_newcomers_the_port_with_most_stations_loses_the_most_silent() -> None:
    known = table(limit=3)
    for each, port, now in ((A, "left", 0), (B, "left", 1), (C, "right", 2)):
        known.learn(each, port, now)
        known.learn(each, port, now + 5)
    known.learn(A, "left", 8)
    known.learn(D, "right", 9)
    assert [known.find(each, 9) for each in (A, B, C, D)] == ["left", None, "right", "right"]


# -- against a model ---------------------------------------------------------------------------------------------------


@dataclass
class Heard:
    port: str
    first: float
    last: float
    #: Whether it was heard again a while after the first time.
    again: bool = False


class Model:
    """The same, slow and obvious; it does not say who has to go from a full table."""

    def __init__(self, age: float) -> None:
        self.age = age
        self.heard: dict[bytes, Heard] = {}

    def learn(self, station: bytes, port: str, now: float) -> None:
        if station[0] % 2:
            return
        known = self.heard.get(station)
        if known is None or known.port != port:
            self.heard[station] = Heard(port, now, now)
        else:
            known.last = now
            known.again = known.again or now - known.first >= min(1, self.age / 16)

    def find(self, station: bytes, now: float) -> str | None:
        known = self.heard.get(station)
        return known.port if known is not None and now - known.last < self.age else None

    def forget(self, port: str) -> None:
        self.heard = {station: known for station, known in self.heard.items() if known.port != port}

    def may_go(self, station: bytes, port: str, limit: int, now: float) -> bool:
        """Whether a full table may give up this one for a new one behind *port*."""
        known = self.heard[station]
        if any(now - each.last >= self.age for each in self.heard.values()):
            # Which of those that are too old is found depends on the order of the lines, which is good to a moment.
            return True
        stations = Counter(each.port for each in self.heard.values())
        newcomers = Counter(each.port for each in self.heard.values() if not each.again)
        if not newcomers:
            return stations[known.port] == max(stations.values())
        if known.again:
            return False
        share = limit // len(stations)
        if over := [newcomers[each] for each in newcomers if stations[each] > share]:
            return stations[known.port] > share and newcomers[known.port] == max(over)
        if newcomers[port]:
            return known.port == port
        return newcomers[known.port] == max(newcomers.values())


STATIONS = [station(bytes((first, 0, 0, 0, 0, last))) for first in (0x02, 0x03) for last in range(5)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["learn", "learn", "learn", "find", "forget"]),
        st.sampled_from(STATIONS),
        st.sampled_from(["left", "middle", "right"]),
        st.sampled_from([0, 0, 0.25, 1, 3]),
    ),
    max_size=60,
)


@given(age=st.integers(0, 8), limit=st.integers(1, 6), steps=STEPS)
def test_as_the_model_does(age: int, limit: int, steps: list[tuple[str, bytes, str, float]]) -> None:
    known, model = table(age, limit), Model(age)
    now = 0.0
    for what, who, port, passed in steps:
        now += passed
        if what == "learn":
            known.learn(who, port, now)
            if who not in model.heard and not who[0] % 2 and len(model.heard) == limit:
                (gone,) = (each for each in model.heard if each not in known._heard)
                assert model.may_go(gone, port, limit, now)
                del model.heard[gone]
            model.learn(who, port, now)
        elif what == "forget":
            known.forget(port)
            model.forget(port)
        assert [known.find(each, now) for each in STATIONS] == [model.find(each, now) for each in STATIONS]
        listed = {station(entry.address, entry.vlan): entry.port for entry in known.entries(now)}
        assert listed == {each: known.find(each, now) for each in STATIONS if known.find(each, now)}
        assert len(known) == len(model.heard) <= limit


# -- headers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "vlan"),
    [
        (b"", 0),
        (b"\x81\0\x00\x07", 7),
        (b"\x81\0\x0f\xfe", 0xFFE),
        (b"\x81\0\xf0\x07", 7),  # priority 7, drop eligible
        (b"\x81\0\xe0\x00", 0),  # a priority and no VLAN
    ],
)
def test_stations_are_told_apart_by_vlan(tag: bytes, vlan: int) -> None:
    header = (B[:6] + A[:6] + tag + b"\x88\xb5payload")[:16]
    assert stations(header) == (station(B[:6], vlan), station(A[:6], vlan))


@given(data=st.binary(min_size=2, max_size=4) | st.binary(max_size=2).map(b"\x81\0".__add__))
def test_every_frame_that_the_kernel_accepts_has_stations(data: bytes) -> None:
    destination, source = stations(B[:6] + A[:6] + data)
    assert (destination[:6], source[:6]) == (B[:6], A[:6])
    assert destination[6:] == source[6:]
