"""Where frames go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from switch.core import Core
from switch.guard import Guard
from switch.table import Table

A, B, C = (bytes.fromhex(f"02000000000{digit}") for digit in "abc")
BROADCAST, MULTICAST = b"\xff" * 6, bytes.fromhex("01005e000001")
VNET_HEADER = bytes(range(10))
PORTS = ("left", "middle", "right")


def frame(destination: bytes, source: bytes, payload: bytes = b"", tag: bytes = b"") -> bytes:
    return VNET_HEADER + destination + source + tag + b"\x88\xb5" + payload


def core(*ports: str, age: float = 300, limit: float | None = None) -> Core[str]:
    made: Core[str] = Core(Table(age, 4096), Guard(60, limit, lambda port: None))
    for port in ports or PORTS:
        made.add(port)
    return made


@pytest.mark.parametrize("destination", [BROADCAST, MULTICAST, B], ids=["broadcast", "multicast", "unknown"])
def test_floods_everywhere_else(destination: bytes) -> None:
    sent = frame(destination, A)
    switch = core()
    assert switch.decide([sent], "left", 0) == {"middle": [sent], "right": [sent]}
    assert switch.flooded == 1


def test_known_station_gets_it_alone_and_untouched() -> None:
    switch, sent = core(), frame(A, B, bytes(60_000))
    switch.decide([frame(BROADCAST, A)], "left", 0)
    found = switch.decide([sent], "right", 0)
    assert found == {"left": [sent]} and found["left"][0] is sent


def test_nothing_goes_back_where_it_came_from() -> None:
    switch = core()
    switch.decide([frame(BROADCAST, A)], "left", 0)
    assert switch.decide([frame(A, B)], "left", 0) == {}
    assert switch.decide([frame(A, A)], "left", 0) == {}
    assert core().decide([frame(A, A)], "left", 0) == {}


def test_in_order_for_each_port() -> None:
    switch = core()
    switch.decide([frame(BROADCAST, B)], "middle", 0)
    switch.decide([frame(BROADCAST, C)], "right", 0)
    targets = [B, B, C, BROADCAST, B, C, C, BROADCAST, C]
    sent = [frame(target, A, bytes([number])) for number, target in enumerate(targets)]
    assert switch.decide(sent, "left", 0) == {
        "middle": [each for each, target in zip(sent, targets, strict=True) if target != C],
        "right": [each for each, target in zip(sent, targets, strict=True) if target != B],
    }


def test_learns_within_a_batch() -> None:
    assert core("left", "right").decide([frame(B, A, b"1"), frame(A, B, b"2")], "left", 0) == {
        "right": [frame(B, A, b"1")]
    }


def test_one_address_in_two_vlans_is_two_stations() -> None:
    switch = core()
    seven, eight = b"\x81\0\0\x07", b"\x81\0\0\x08"
    switch.decide([frame(BROADCAST, A, tag=seven)], "left", 0)
    switch.decide([frame(BROADCAST, A, tag=eight)], "right", 0)
    for tag, where in ((seven, "left"), (eight, "right")):
        sent = frame(A, B, tag=tag)
        assert switch.decide([sent], "middle", 0) == {where: [sent]}
    sent = frame(A, B)
    assert switch.decide([sent], "middle", 0) == {"left": [sent], "right": [sent]}


def test_ports_come_and_go() -> None:
    switch = core("left", "right")
    switch.decide([frame(BROADCAST, A)], "right", 0)
    switch.add("new")
    switch.remove("right")
    sent = frame(A, B)
    assert switch.decide([sent], "left", 0) == {"new": [sent]}


def test_a_loop_is_cut_and_the_port_neither_sends_nor_receives() -> None:
    switch = core()
    sent = [frame(BROADCAST, A, bytes([number])) for number in range(5)]
    assert switch.decide(sent, "left", 0) == {"middle": sent, "right": sent}
    assert switch.decide(sent, "right", 0.1) == {}
    assert switch.table.find(A + b"\0\0", 0.1) == "left", "who sent them did not move"
    assert switch.decide([frame(BROADCAST, C)], "right", 0.2) == {}
    for destination in (BROADCAST, B):
        assert switch.decide([frame(destination, A, b"next")], "left", 0.3) == {
            "middle": [frame(destination, A, b"next")]
        }
    switch.decide([frame(BROADCAST, C)], "right", 61)
    assert switch.decide([frame(C, A)], "left", 61) == {"right": [frame(C, A)]}


def test_a_known_station_behind_a_blocked_port_gets_nothing() -> None:
    switch = core()
    switch.decide([frame(BROADCAST, C)], "right", 0)
    sent = [frame(BROADCAST, A, bytes([number])) for number in range(5)]
    switch.decide(sent, "left", 0)
    switch.decide(sent, "right", 0)
    assert switch.decide([frame(C, A)], "left", 0) == {}


def test_only_flooding_is_limited() -> None:
    switch = core(limit=2)
    flooded = [frame(BROADCAST, A, bytes([number])) for number in range(5)]
    assert switch.decide(flooded, "left", 0) == {"middle": flooded[:2], "right": flooded[:2]}
    switch.decide([frame(BROADCAST, B)], "right", 0)
    direct = [frame(B, A, bytes([number])) for number in range(5)]
    assert switch.decide(direct, "left", 0) == {"right": direct}


# -- against a model ---------------------------------------------------------------------------------------------------

STATIONS = [A, B, C, BROADCAST, MULTICAST]
BATCHES = st.lists(
    st.tuples(
        st.sampled_from(PORTS),
        st.lists(st.tuples(st.sampled_from(STATIONS), st.sampled_from([A, B, C])), min_size=1, max_size=6),
        st.integers(0, 4),
    ),
    max_size=20,
)


@given(BATCHES)
def test_as_the_model_does(batches: list[tuple[str, list[tuple[bytes, bytes]], int]]) -> None:
    """The model: where each was heard last, if that was less than ten seconds ago; everybody else otherwise."""
    switch = core(age=10)
    heard: dict[bytes, tuple[str, int]] = {}
    now = number = 0
    for source, batch, pause in batches:
        now += pause
        sent = []
        expected: dict[str, list[bytes]] = {}
        for destination, sender in batch:
            number += 1
            sent.append(frame(destination, sender, number.to_bytes(24)))
            heard[sender] = source, now
            port, when = heard.get(destination, ("", -10))
            for target in [port] if now - when < 10 else PORTS:
                if target != source:
                    expected.setdefault(target, []).append(sent[-1])
        assert switch.decide(sent, source, now) == expected
