"""`segment` and `coalesce` by themselves, on one core: no descriptor, no event loop."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from aiotuntap import Mode, coalesce, segment

from .results import Figure, Table, figure
from .super_frames import Flow, frames, super_frame

if TYPE_CHECKING:
    from .native import Loops

#: Nanoseconds that one sample takes, about, and samples a round.
_SAMPLE = 1_000_000
_SAMPLES = 10
#: TCP segments in a super-frame, and payload of one, with timestamps and an MTU of 1500.
_SEGMENTS = 45
_PAYLOAD = {4: 1448, 6: 1428}
_UDP, _UDP_SEGMENTS = 1400, 46
#: What a program writes at once, where sizes are mixed: two full segments, and one that is shorter and ends with PSH.
_WRITE = [1448, 1448, 1104]
_C = "C, copying each segment's payload and adding it up"


class _Case(NamedTuple):
    call: Callable[[], object]
    #: Frames on the wire, and bytes of their payload.
    frames: int
    payload: int


def _cases() -> dict[str, _Case]:
    found = {}
    full = _PAYLOAD[4]
    for count in (_SEGMENTS, 2):
        for version, size in _PAYLOAD.items():
            for mode in ("tun", "tap"):
                label = f"`segment`, {count} of TCP over IPv{version}, {mode.upper()}"
                found[label] = _segment(Flow(mode, version), count, size)
    found[f"`segment`, {_UDP_SEGMENTS} of UDP of {_UDP} B, TUN"] = _segment(Flow.udp(), _UDP_SEGMENTS, _UDP)
    for version, size in _PAYLOAD.items():
        for mode in ("tun", "tap"):
            label = f"`coalesce`, {_SEGMENTS} of TCP over IPv{version} in a row, {mode.upper()}"
            found[label] = _coalesce(Flow(mode, version), [size] * _SEGMENTS)
    found[f"`coalesce`, {_UDP_SEGMENTS} of UDP of {_UDP} B, TUN"] = _coalesce(Flow.udp(), [_UDP] * _UDP_SEGMENTS)
    flows = [frames(Flow(port=40000 + number), [full] * 11) for number in range(4)]
    by_turns = [frame for some in zip(*flows, strict=True) for frame in some]
    found["`coalesce`, 44 of 4 TCP flows by turns, TUN"] = _coalesce_batch(by_turns, 4, len(by_turns) * full)
    for count in (2, 4, 8):
        found[f"`coalesce`, {count} of one TCP flow, TUN"] = _coalesce(Flow(), [full] * count)
    writes = 15
    found[f"`coalesce`, {3 * writes} of TCP of mixed sizes, 3 to be merged, TUN"] = _coalesce(
        Flow(), _WRITE * writes, writes
    )
    acks = [Flow(acknowledged=2 * full * number).frame(b"", number) for number in range(_SEGMENTS)]
    found[f"`coalesce`, {_SEGMENTS} acknowledgements of 52 B, TUN"] = _coalesce_batch(acks, _SEGMENTS, 0)
    return found


def _segment(flow: Flow, count: int, size: int) -> _Case:
    frame, mode = super_frame(flow, count, size), Mode(flow.mode)
    assert len(segment(frame, mode)) == count
    return _Case(lambda: segment(frame, mode), count, count * size)


def _coalesce(flow: Flow, sizes: list[int], writes: int = 1) -> _Case:
    return _coalesce_batch(frames(flow, sizes, len(sizes) // writes), writes, sum(sizes), Mode(flow.mode))


def _coalesce_batch(batch: list[bytes], result: int, payload: int, mode: Mode = Mode.TUN) -> _Case:
    assert len(coalesce(batch, mode)) == result
    return _Case(lambda: coalesce(batch, mode), len(batch), payload)


def _repeats(call: Callable[[], object]) -> int:
    """How often to call it in one sample, of which this is the first: it warms up."""
    start = time.thread_time_ns()
    for _ in range(3):
        call()
    return max(1, min(1000, 3 * _SAMPLE // (time.thread_time_ns() - start)))


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    payload = os.urandom(_SEGMENTS * _PAYLOAD[4])
    c = _Case(lambda: loops.copy_and_sum(payload, _PAYLOAD[4], _SEGMENTS), _SEGMENTS, len(payload))
    cases = {_C: c, **_cases()}
    repeats = {label: _repeats(case.call) for label, case in cases.items()}
    times: dict[str, list[float]] = {label: [] for label in cases}
    ratios: dict[str, list[float]] = {label: [] for label in cases}
    clock = time.thread_time_ns

    def sample(label: str) -> float:
        """Nanoseconds of one call."""
        call, repeat = cases[label].call, repeats[label]
        start = clock()
        for _ in range(repeat):
            call()
        spent = (clock() - start) / repeat
        times[label].append(spent)
        return spent

    # Each is compared with the runs of C before and after it.
    for _ in range(rounds * _SAMPLES):
        before = sample(_C)
        for label in random.sample(list(cases), len(cases)):
            if label != _C:
                spent = sample(label)
                after = sample(_C)
                ratios[label].append(cases[label].payload / spent * (before + after) / 2 / c.payload)
                before = after
    ratios[_C] = [1]
    rows: dict[str, list[Figure | None]] = {}
    for label, case in cases.items():
        mine = times[label]
        speeds: list[Figure | None] = [None, None]
        if case.payload:
            speeds = [figure(ratios[label]), figure([8 * case.payload / each for each in mine])]
        rows[label] = [*speeds, figure([each / case.frames for each in mine])]
    columns = {"throughput, C = 1": 2, "Gb/s of payload": 1, "ns a frame on the wire": 0}
    return [Table("Pure functions on one core", "", columns, rows)]
