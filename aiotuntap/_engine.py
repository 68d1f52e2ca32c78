"""Chooses the implementation of the packet path: the C extension where it is installed, or plain Python.

The environment variable ``AIOTUNTAP_EXTENSION`` decides at import: with ``1`` the extension is required, with ``0`` it is
not used, and without a value it is used if it is installed. Both implementations do the same; it is documented at the
functions in Python.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import _datagrams, _frames
from ._address import Address
from ._datagrams import Received, Sent
from ._errors import InvalidFrameError
from ._offload import coalesce as _coalesce
from ._offload import segment as _segment
from ._types import Buffer, Frame, Mode, Offload

VARIABLE = "AIOTUNTAP_EXTENSION"
#: The value of the variable when this package was imported.
WANTED = os.environ.get(VARIABLE, "")

#: How to get the C engine.
INSTALL = (
    "install a C compiler and Python's headers (Debian: apt-get install build-essential python3-dev), and then install"
    " aiotuntap again"
)
#: What the engine in Python costs.
COST = "segmenting and merging super-frames takes about 50 times the CPU time that the C engine takes"

#: A frame with a virtio_net_hdr, the numbers of the ordinary frames in it, and the value of the offload it was made with.
Merged = tuple[bytes, list[int], int]


class SlowEngineWarning(UserWarning):
    """An interface with transparent offloads segments and merges super-frames with the slow engine in Python."""


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
    receive_batch: Callable[[socket.socket, int, int, Mapping[bytes, Address] | None], Received]
    send_batch: Callable[[socket.socket, int, int, int, int, Sequence[Frame], bytes | None], Sent]


def _python_segment(frame: Buffer, tap: bool, header_size: int) -> list[bytes] | None:
    """The ordinary frames, or None for an invalid frame."""
    try:
        return _segment.segment(frame, Mode.TAP if tap else Mode.TUN, header_size=header_size)
    except InvalidFrameError:
        return None


def _python_merge(frames: Sequence[Frame], tap: bool, offload: int, header_size: int) -> list[Merged] | None:
    """Frames with a header, merged where that is safe; None if one of them is not bytes."""
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
    _datagrams.receive_batch,
    _datagrams.send_batch,
)


def _cannot_be_imported(message: str) -> ImportError:
    """The error to raise, which both ways to start the command line report in one line instead of a traceback.

    Raises:
        SystemExit: The script ``aiotuntap`` runs. It imports this package before any code of its own.
    """
    if os.path.basename((sys.argv or [""])[0]) == "aiotuntap":
        raise SystemExit(f"aiotuntap: {message}")
    return ImportError(message, name=__package__)  # with this name, runpy makes it one line


def _load() -> tuple[Engine | None, str]:
    """The C engine; or None, and why it cannot be imported, if that was tried."""
    if WANTED not in ("", "0", "1"):
        raise _cannot_be_imported(f"{VARIABLE} must be 0, 1 or empty, not {WANTED!r}")
    if WANTED == "0":
        return None, ""
    try:
        # "from . import _native" would report a circular import if the module does not exist.
        from ._native import (
            coalesce,
            merge,
            read_batch,
            read_one,
            receive_batch,
            segment,
            send_batch,
            write_batch,
            write_one,
        )
    except ImportError as error:
        if WANTED == "1":
            message = (
                f"{VARIABLE}=1, but the C extension cannot be imported ({error}): {INSTALL}, or unset the variable"
            )
            raise _cannot_be_imported(message) from None
        return None, str(error)
    engine = Engine(
        "C", read_batch, read_one, write_batch, write_one, segment, coalesce, merge, receive_batch, send_batch
    )
    return engine, ""


#: The C engine or None, and why it cannot be imported.
NATIVE, MISSING = _load()

#: The engine that is used.
engine = NATIVE or PYTHON


def warn_if_slow() -> None:
    """Warns, at the calling line outside of this package, that transparent offloads use the slow engine."""
    if engine is not PYTHON:
        return
    level, frame = 1, sys._getframe()  # Python 3.12 has skip_file_prefixes for this
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        level, frame = level + 1, frame.f_back
    fix = f"unset {VARIABLE}" if WANTED == "0" else INSTALL
    warnings.warn(
        f"offload without vnet_header=True uses the engine in Python: {COST}. To use the C engine, {fix};"
        " 'python -m aiotuntap doctor' says more. To silence this warning:"
        " warnings.simplefilter('ignore', aiotuntap.SlowEngineWarning)",
        SlowEngineWarning,
        stacklevel=level,
    )
