"""`segment` and `coalesce` by themselves, on one core: no descriptor, no event loop."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from aiotuntap import coalesce, segment

from .report import ratio, table
from .super_frames import Flow, frames, super_frame

if TYPE_CHECKING:
    from .native import Loops

#: Runs of each in one sample, and samples a round.
_REPEAT = 20
_SAMPLES = 10
#: TCP segments in a super-frame, and payload of one, with timestamps and an MTU of 1500.
_SEGMENTS = 44
_PAYLOAD = {4: 1448, 6: 1428}
_ACKS = 44
_C = "C, copying each segment's payload and adding it up"


class _Case(NamedTuple):
    call: Callable[[], object]
    #: Frames on the wire, and bytes of their payload.
    frames: int
    payload: int


def _cases() -> dict[str, _Case]:
    found = {}
    for version, size in _PAYLOAD.items():
        for mode in ("tun", "tap"):
            flow = Flow(mode, version)
            found[f"`segment`, TCP over IPv{version}, {mode.upper()}"] = _segment(flow, _SEGMENTS, size)
    found["`segment`, UDP of 1400 B, TUN"] = _segment(Flow.udp(), 46, 1400)
    for version, size in _PAYLOAD.items():
        for mode in ("tun", "tap"):
            batch = frames(Flow(mode, version), _SEGMENTS, size)
            found[f"`coalesce`, TCP over IPv{version}, {mode.upper()}"] = _coalesce(batch, mode, 1, size)
    found["`coalesce`, UDP of 1400 B, TUN"] = _coalesce(frames(Flow.udp(), 46, 1400), "tun", 1, 1400)
    flows = [frames(Flow(port=40000 + number), _SEGMENTS // 4, _PAYLOAD[4]) for number in range(4)]
    mixed = [frame for some in zip(*flows, strict=True) for frame in some]
    found["`coalesce`, 4 TCP flows by turns, TUN"] = _coalesce(mixed, "tun", 4, _PAYLOAD[4])
    acks = [Flow(acknowledged=2 * _PAYLOAD[4] * number).frame(b"", number) for number in range(_ACKS)]
    found["`coalesce`, ACKs of 52 B, TUN"] = _coalesce(acks, "tun", _ACKS, 0)
    return found


def _segment(flow: Flow, count: int, size: int) -> _Case:
    frame, mode = super_frame(flow, count, size), flow.mode
    assert len(segment(frame, mode)) == count
    return _Case(lambda: segment(frame, mode), count, count * size)


def _coalesce(batch: list[bytes], mode: str, result: int, size: int) -> _Case:
    assert len(coalesce(batch, mode)) == result
    return _Case(lambda: coalesce(batch, mode), len(batch), len(batch) * size)


def run(loops: Loops, rounds: int, quick: bool) -> None:
    payload = os.urandom(_SEGMENTS * _PAYLOAD[4])
    c = _Case(lambda: loops.copy_and_sum(payload, _PAYLOAD[4], _SEGMENTS), _SEGMENTS, len(payload))
    cases = {_C: c, **_cases()}
    times: dict[str, list[float]] = {label: [] for label in cases}
    clock = time.thread_time_ns
    # The first time round warms up.
    for number in range(rounds * _SAMPLES + 1):
        for label in random.sample(list(cases), len(cases)):
            call = cases[label].call
            start = clock()
            for _ in range(_REPEAT):
                call()
            if number:
                times[label].append((clock() - start) / _REPEAT)
    rows = []
    for label, case in cases.items():
        spent = times[label]
        row = [label, "", "", "", f"{median(spent) / case.frames:.0f}"]
        if case.payload:
            factor = case.payload / c.payload
            relative = ratio([factor * each / mine for mine, each in zip(spent, times[_C], strict=True)])
            row[1:4] = relative, f"{8 * case.payload / median(spent):.1f}", f"{8 * case.payload / min(spent):.1f}"
        rows.append(row)
    heads = ["", "throughput, C = 1", "Gb/s of payload", "at best", "ns a frame on the wire"]
    table("Pure functions on one core", heads, rows)
