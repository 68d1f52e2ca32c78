"""The functions that both engines have, looked up at each call: a fixture may put another engine in their place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import aiotuntap
from aiotuntap import Mode, Offload
from aiotuntap._offload import coalesce as _coalesce
from aiotuntap._types import Buffer


def segment(frame: Buffer, mode: Mode | str, *, header_size: int = 10) -> list[bytes]:
    return aiotuntap.segment(frame, mode, header_size=header_size)


def coalesce(
    frames: Iterable[Buffer], mode: Mode | str, *, offload: Offload = Offload.ALL, header_size: int = 10
) -> list[bytes]:
    return aiotuntap.coalesce(frames, mode, offload=offload, header_size=header_size)


def merge(frames: Sequence[bytes], mode: Mode, offload: Offload, header_size: int) -> list[_coalesce.Merged]:
    return _coalesce.merge(frames, mode, offload, header_size)
