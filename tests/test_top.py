"""The arithmetic and the layout of ``top``, without a kernel."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotuntap import Counters, Link, Mode
from aiotuntap._cli.holders import Holder
from aiotuntap._cli.top import Row, _screen, as_json, as_text, human, rows

LINK = Link(7, "vm0", "tun", 1500, "02:00:00:00:00:07", True, True, 1000, None, Counters(), mode=Mode.TAP)
HUGE = Link(
    1, "x" * 15, "tun", 1500, None, True, True, 1000, None, Counters(), mode=Mode.TUN, queues=256, disabled_queues=256
)


def counted(link: Link, **counters: int) -> Link:
    return replace(link, counters=replace(link.counters, **counters))


def one(before: list[Link], after: Link, seconds: float = 2.0) -> Row:
    (row,) = rows(before, [after], seconds, [])
    return row


def test_rates() -> None:
    before = counted(LINK, rx_packets=10, rx_bytes=1000, tx_packets=5, tx_bytes=50, tx_dropped=1)
    after = counted(
        LINK, rx_packets=20, rx_bytes=4000, rx_dropped=2, tx_packets=9, tx_bytes=250, tx_dropped=5, tx_errors=2
    )
    row = one([before], after)
    assert (row.written.frames, row.written.bytes, row.written.dropped, row.written.frame_size) == (5, 1500, 1, 300)
    assert (row.read.frames, row.read.bytes, row.read.dropped, row.read.frame_size) == (2, 100, 3, 50)


@pytest.mark.parametrize(
    "before",
    [[], [counted(replace(LINK, index=8), tx_packets=1)], [counted(LINK, rx_packets=100)]],
    ids=["nothing", "another", "another with its index"],
)
def test_an_interface_that_is_new_has_no_rates_yet(before: list[Link]) -> None:
    row = one(before, counted(LINK, rx_packets=10, tx_packets=10, rx_bytes=100, tx_bytes=100))
    assert row.seconds == row.read.frames == row.written.frames == row.read.bytes == row.written.bytes == 0
    assert row.read.frame_size is None


def test_in_the_order_of_names_with_those_who_hold_them() -> None:
    other = replace(LINK, index=2, name="vm1")
    held = [Holder("vm1", 12, "switch", 5, True), Holder("vm2", 1, "init", 5, True)]
    found = rows([], [other, LINK], 1, held)
    assert [row.link.name for row in found] == ["vm0", "vm1"]
    assert [row.holders for row in found] == [(), (held[0],)]
    described = json.loads(as_json(found))
    assert described[1]["holders"] == [{"pid": 12, "command": "switch", "fd": 5, "enabled": True}]
    assert described[0]["mode"] == "tap" and described[0]["read"] == {
        "frames": 0, "bytes": 0, "dropped": 0, "frame_size": None
    }  # fmt: skip


def test_80_columns_are_enough() -> None:
    after = counted(
        HUGE,
        **dict.fromkeys(("rx_packets", "rx_bytes", "rx_dropped", "tx_packets", "tx_bytes", "tx_dropped"), 2**64 - 1),
    )
    held = [Holder(HUGE.name, 4194304, "y" * 60, 1048576, False)]
    lines = as_text(rows([HUGE], [after], 0.01, held), None)
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("xxxxxxxxxxxxxxx ") and "queues: 256 enabled, 256 disabled" in lines[3]


def test_text_without_interfaces() -> None:
    assert as_text([], None) == ["No TUN/TAP interfaces in this network namespace."]
    assert as_text([], "red") == ["No TUN/TAP interfaces in network namespace 'red'."]


def test_no_more_lines_than_the_screen_has() -> None:
    lines = [f"line {number}" for number in range(10)]
    assert _screen(lines, 80, 11).count("\n") == 10 and "more" not in _screen(lines, 80, 11)
    drawn = _screen(lines, 80, 10)
    assert drawn.count("\n") == 9 and "line 7" in drawn and "line 8" not in drawn and "… and 2 more lines" in drawn


def test_no_wider_than_the_screen() -> None:
    """A line that the terminal breaks would take two, and the picture would move up with each interval."""
    assert _screen(["x" * 80], 40, 24).count("x") == 40


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.04, "0.0"), (1.25, "1.2"), (12.34, "12.3"), (999.4, "999"), (999.6, "1.00k"), (1234, "1.23k"),
     (45_600_000, "45.6M"), (9.996e9, "10.0G"), (999_600, "1.00M")],
)  # fmt: skip
def test_human(value: float, text: str) -> None:
    assert human(value) == text


@given(st.floats(0, 1e20))
def test_numbers_are_short_and_nearly_exact(value: float) -> None:
    text = human(value)
    assert len(text) <= 7
    number = float(text.rstrip("kMGTPE")) * 1000 ** " kMGTPE".index(text[-1] if text[-1].isalpha() else " ")
    assert number == pytest.approx(value, rel=0.006, abs=0.06)
