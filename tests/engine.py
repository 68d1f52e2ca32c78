"""The functions that both engines have, looked up at each call: the fixture ``engine`` puts one or the other in place."""

from __future__ import annotations

from collections.abc import Sequence

from aiotuntap import Mode, Offload, _engine, coalesce, segment
from aiotuntap._engine import NATIVE, PYTHON
from aiotuntap._offload.coalesce import Merged

__all__ = ["ENGINES", "coalesce", "merge", "segment"]

#: Those that can be tested here: both, unless there was no compiler or one of them was asked for.
ENGINES = [engine for engine in (NATIVE, PYTHON) if engine is not None]


def merge(frames: Sequence[bytes], mode: Mode, offload: Offload, header_size: int) -> list[Merged]:
    merged = _engine.engine.merge(frames, mode is Mode.TAP, offload.value, header_size)
    assert merged is not None
    return [Merged(data, numbers, Offload(kind)) for data, numbers, kind in merged]
