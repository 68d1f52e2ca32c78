"""Which implementation of the packet path runs: the C extension where it is installed, or plain Python.

The environment variable ``AIOTUNTAP_EXTENSION`` decides at import: ``1`` demands the extension, ``0`` leaves it out,
unset takes it if it is there. Both do the same; see the functions in Python for what that is.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import _frames
from ._errors import InvalidFrameError
from ._offload import coalesce as _coalesce
from ._offload import segment as _segment
from ._types import Buffer, Frame, Mode, Offload

VARIABLE = "AIOTUNTAP_EXTENSION"

#: A frame with a virtio_net_hdr, the numbers of the plain frames in it, and the value of the offload that it takes.
Merged = tuple[bytes, list[int], int]


class SlowEngineWarning(UserWarning):
    """Offloads are on, and the engine that runs is the one in Python, which moves a fraction of what the C one does."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The functions that have two implementations. None of them waits."""

    name: str
    read_batch: Callable[[int, int, int], tuple[list[bytes], int | BaseException]]
    read_one: Callable[[int], bytes | int]
    write_batch: Callable[[int, int, int, int, Sequence[Frame]], tuple[int, int]]
    write_one: Callable[[int, int, int, Frame], int]
    segment: Callable[[Buffer, bool, int], list[bytes] | None]
    coalesce: Callable[[Sequence[Frame], bool, int, int], list[bytes] | None]
    merge: Callable[[Sequence[Frame], bool, int, int], list[Merged] | None]


def _python_segment(frame: Buffer, tap: bool, header_size: int) -> list[bytes] | None:
    """The plain frames, or None for a frame that is refused."""
    try:
        return _segment.segment(frame, Mode.TAP if tap else Mode.TUN, header_size=header_size)
    except InvalidFrameError:
        return None


def _python_merge(frames: Sequence[Frame], tap: bool, offload: int, header_size: int) -> list[Merged] | None:
    """Frames with a header, merged where that is safe; None when there is one that is not bytes."""
    if not all(type(frame) is bytes for frame in frames):
        return None
    merged = _coalesce.merge(frames, Mode.TAP if tap else Mode.TUN, Offload(offload), header_size)  # type: ignore[arg-type]
    return [(data, indexes, kind.value) for data, indexes, kind in merged]


def _python_coalesce(frames: Sequence[Frame], tap: bool, offload: int, header_size: int) -> list[bytes] | None:
    merged = _python_merge(frames, tap, offload, header_size)
    return None if merged is None else [each[0] for each in merged]


PYTHON = Engine(
    "Python",
    _frames.read_batch,
    _frames.read_one,
    _frames.write_batch,
    _frames.write_one,
    _python_segment,
    _python_coalesce,
    _python_merge,
)


def _load() -> Engine | None:
    """The C engine, or None where it is not installed or not wanted."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "0":
        return None
    try:
        from . import _native
    except ImportError as error:
        if wanted == "1":
            raise ImportError(
                f"{VARIABLE}=1, but the C extension cannot be imported ({error}): install a C compiler and Python's"
                " headers (Debian: gcc python3-dev) and then this package again, or unset the variable",
                name="aiotuntap._native",
            ) from error
        return None
    return Engine(
        "C",
        _native.read_batch,
        _native.read_one,
        _native.write_batch,
        _native.write_one,
        _native.segment,
        _native.coalesce,
        _native.merge,
    )


NATIVE = _load()

#: The one that runs.
engine = NATIVE or PYTHON


def warn_if_slow() -> None:
    """Says once for each place in a program that offloads are on with the slow engine."""
    if engine is PYTHON:
        warnings.warn(
            "offloads without vnet_header=True are slow without the C engine: install a C compiler and Python's headers"
            " and then aiotuntap again; 'python -m aiotuntap doctor' says more. To silence this:"
            " warnings.simplefilter('ignore', aiotuntap.SlowEngineWarning)",
            SlowEngineWarning,
            stacklevel=3,
        )
