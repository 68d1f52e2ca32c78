"""The switch example without a kernel: who is where, and where frames go."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotuntap import DeviceGoneError, InvalidFrameError, LinkDownError, QueueClosedError
from aiotuntap.testing import MemoryStream, memory_pair


def _load_example() -> Any:
    path = Path(__file__).parents[1] / "examples" / "switch.py"
    spec = importlib.util.spec_from_file_location("aiotuntap_example_switch", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


switch = _load_example()
A, B, C = (bytes.fromhex(f"02000000000{digit}") for digit in "abc")
BROADCAST, MULTICAST = b"\xff" * 6, bytes.fromhex("01005e000001")
VNET_HEADER = bytes(range(10))


def table(age: float = 300, limit: int = 4096) -> Any:
    return switch.Table(age, limit)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_learns_and_finds() -> None:
    known = table()
    assert known.find(A, 0) is None
    known.learn(A, "left", 0)
    known.learn(B, "right", 1)
    assert (known.find(A, 1), known.find(B, 1), known.find(C, 1)) == ("left", "right", None)


def test_forgets_at_the_very_end_of_the_age() -> None:
    known = table(age=10)
    known.learn(A, "left", 5)
    assert known.find(A, 14.999) == "left"
    assert known.find(A, 15) is None
    known.learn(A, "left", 20)
    assert known.find(A, 29.999) == "left"


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


def test_age_of_nothing_makes_it_a_hub() -> None:
    known = table(age=0)
    known.learn(A, "left", 7)
    assert known.find(A, 7) is None


def test_follows_who_moves() -> None:
    known = table()
    known.learn(A, "left", 0)
    known.learn(A, "right", 0)
    assert known.find(A, 0) == "right"


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
    known.forget("left")
    known.forget("nobody's")
    assert [known.find(station, 0) for station in (A, B, C)] == [None, "right", None]


def test_full_it_drops_who_was_silent_longest() -> None:
    known = table(limit=2)
    known.learn(A, "left", 0)
    known.learn(B, "left", 1)
    known.learn(A, "left", 2)
    known.learn(C, "right", 3)
    assert [known.find(station, 3) for station in (A, B, C)] == ["left", None, "right"]


def test_full_it_drops_an_aged_one_first() -> None:
    known = table(age=10, limit=2)
    known.learn(A, "left", 0)
    known.learn(B, "left", 9)
    known.learn(C, "right", 10)
    assert [known.find(station, 10) for station in (A, B, C)] == [None, "left", "right"]


def test_a_flood_of_sources_does_not_grow_it() -> None:
    known = table(limit=100)
    sources = [b"\x02\0" + number.to_bytes(4) for number in range(5000)]
    for source in sources:
        known.learn(source, "left", 0)
    assert [source for source in sources if known.find(source, 0)] == sources[-100:]


class Model:
    """The same in slow and obvious: everything that was ever heard, and what follows from it."""

    def __init__(self, age: float, limit: int) -> None:
        self.age = age
        self.limit = limit
        self.heard: list[tuple[bytes, str, float]] = []

    def learn(self, station: bytes, port: str, now: float) -> None:
        if not station[0] % 2:
            self.heard = [each for each in self.heard if each[0] != station] + [(station, port, now)]
            while len(self.heard) > self.limit:
                aged = [each for each in self.heard if now - each[2] >= self.age]
                self.heard.remove(aged[0] if aged else self.heard[0])

    def find(self, station: bytes, now: float) -> str | None:
        for each, port, heard in self.heard:
            if each == station and now - heard < self.age:
                return port
        return None

    def forget(self, port: str) -> None:
        self.heard = [each for each in self.heard if each[1] != port]


STATIONS = [bytes((first, 0, 0, 0, 0, last)) for first in (0x02, 0x03) for last in range(5)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["learn", "learn", "learn", "find", "forget"]),
        st.sampled_from(STATIONS),
        st.sampled_from(["left", "middle", "right"]),
        st.integers(0, 3),
    ),
    max_size=60,
)


@given(age=st.integers(0, 8), limit=st.integers(1, 6), steps=STEPS)
def test_as_the_model_does(age: int, limit: int, steps: list[tuple[str, bytes, str, int]]) -> None:
    known, model = table(age, limit), Model(age, limit)
    now = 0
    for what, station, port, passed in steps:
        now += passed
        for each in (known, model):
            if what == "learn":
                each.learn(station, port, now)
            elif what == "forget":
                each.forget(port)
        assert [known.find(each, now) for each in STATIONS] == [model.find(each, now) for each in STATIONS]


# -- headers -----------------------------------------------------------------------------------------------------------


def frame(
    destination: bytes, source: bytes, payload: bytes = b"", tag: bytes = b"", kind: bytes = b"\x88\xb5"
) -> bytes:
    return VNET_HEADER + destination + source + tag + kind + payload


@pytest.mark.parametrize(
    ("tag", "vlan"),
    [
        (b"", b"\0\0"),
        (b"\x81\0\x00\x07", b"\0\x07"),
        (b"\x81\0\x0f\xfe", b"\x0f\xfe"),
        (b"\x81\0\xf0\x07", b"\0\x07"),  # priority 7, drop eligible
        (b"\x81\0\xe0\x00", b"\0\0"),  # a priority and no VLAN
    ],
)
def test_stations_are_told_apart_by_vlan(tag: bytes, vlan: bytes) -> None:
    assert switch.stations(switch.header_of(frame(B, A, b"payload", tag))) == (B + vlan, A + vlan)


@given(data=st.binary(min_size=2, max_size=12) | st.binary(max_size=6).map(b"\x81\0".__add__))
def test_whatever_the_kernel_takes_for_a_frame_has_stations(data: bytes) -> None:
    destination, source = switch.stations(switch.header_of(VNET_HEADER + B + A + data))
    assert (destination[:6], source[:6]) == (B, A)
    assert destination[6:] == source[6:] and len(source) == 8


# -- where frames go ---------------------------------------------------------------------------------------------------


class Lab:
    """A switch with ports in memory, and the far ends of its ports."""

    def __init__(self, *names: str, age: float = 300, limit: int = 4096) -> None:
        pairs = [memory_pair() for _ in names]
        self.far = dict(zip(names, (far for _, far in pairs), strict=True))
        self.ports = {
            name: switch.Port(SimpleNamespace(name=name, netns=None, queues=(near,)))
            for name, (near, _) in zip(names, pairs, strict=True)
        }
        self.switch = switch.Switch(list(self.ports.values()), table(age, limit))

    async def forward(self, source: str, *frames: bytes) -> dict[str, list[bytes]]:
        """What arrives where when *frames* come in on one port together."""
        await self.switch.forward(list(frames), self.ports[source])
        return {name: got for name, far in self.far.items() if (got := arrived(far))}


def arrived(far: MemoryStream) -> list[bytes]:
    got = []
    try:
        while True:
            got.append(far.read_frame_nowait())
    except (BlockingIOError, QueueClosedError):
        return got


@pytest.mark.parametrize("destination", [BROADCAST, MULTICAST, B], ids=["broadcast", "multicast", "unknown"])
async def test_floods_everywhere_else(destination: bytes) -> None:
    lab, sent = Lab("left", "middle", "right"), frame(destination, A)
    assert await lab.forward("left", sent) == {"middle": [sent], "right": [sent]}


async def test_known_station_gets_it_alone_and_untouched() -> None:
    lab, sent = Lab("left", "middle", "right"), frame(A, B, bytes(60_000))
    await lab.forward("left", frame(BROADCAST, A))
    assert await lab.forward("right", sent) == {"left": [sent]}


async def test_nothing_goes_back_where_it_came_from() -> None:
    lab = Lab("left", "middle", "right")
    await lab.forward("left", frame(BROADCAST, A))
    assert await lab.forward("left", frame(A, B)) == {}
    assert await lab.forward("left", frame(A, A)) == {}


async def test_one_batch_in_and_one_for_each_port_in_order() -> None:
    lab = Lab("left", "middle", "right")
    await lab.forward("middle", frame(BROADCAST, B))
    await lab.forward("right", frame(BROADCAST, C))
    targets = [B, B, C, BROADCAST, B, C, C, BROADCAST, C]
    sent = [frame(target, A, bytes([number])) for number, target in enumerate(targets)]
    got = await lab.forward("left", *sent)
    assert got == {
        "middle": [each for each, target in zip(sent, targets, strict=True) if target != C],
        "right": [each for each, target in zip(sent, targets, strict=True) if target != B],
    }


async def test_learns_within_a_batch() -> None:
    lab = Lab("left", "right")
    assert await lab.forward("left", frame(B, A, b"1"), frame(A, B, b"2")) == {"right": [frame(B, A, b"1")]}


async def test_one_address_in_two_vlans_is_two_stations() -> None:
    lab = Lab("left", "middle", "right")
    seven, eight = b"\x81\0\0\x07", b"\x81\0\0\x08"
    await lab.forward("left", frame(BROADCAST, A, tag=seven))
    await lab.forward("right", frame(BROADCAST, A, tag=eight))
    for tag, where in ((seven, "left"), (eight, "right")):
        sent = frame(A, B, tag=tag)
        assert await lab.forward("middle", sent) == {where: [sent]}
    sent = frame(A, B)
    assert await lab.forward("middle", sent) == {"left": [sent], "right": [sent]}


class Refusing:
    """A queue whose kernel refuses everything it is given, for one reason."""

    stats = SimpleNamespace(frames_read=0, frames_written=0)

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def write_frames(self, frames: Iterable[bytes]) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        LinkDownError(errno.EIO, "down"),
        DeviceGoneError(errno.EBADFD, "gone"),
        InvalidFrameError("refused"),
        OSError(errno.ENOBUFS, "no memory"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_port_that_refuses_does_not_stop_the_others(error: Exception) -> None:
    lab, sent = Lab("left", "middle", "right"), frame(BROADCAST, A)
    lab.ports["middle"].queue = Refusing(error)
    for _ in range(3):
        assert await lab.forward("left", sent) == {"right": [sent]}
    assert str(lab.ports["middle"]) == "port middle: 0 in, 0 out, 3 dropped"


async def test_a_port_that_is_gone_is_forgotten_with_its_stations(capsys: pytest.CaptureFixture[str]) -> None:
    lab = Lab("left", "middle", "right")
    await lab.forward("right", frame(BROADCAST, C))
    await lab.far["left"].write_frame(frame(C, A, b"the last"))
    await lab.far["left"].aclose()
    await lab.switch.serve(lab.ports["left"])
    assert capsys.readouterr().err == "port left is gone\n"
    assert arrived(lab.far["right"]) == [frame(C, A, b"the last")]
    assert lab.switch.ports == [lab.ports["middle"], lab.ports["right"]]
    sent = frame(A, B)
    assert await lab.forward("middle", sent) == {"right": [sent]}
