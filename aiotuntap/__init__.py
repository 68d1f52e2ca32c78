"""Asynchronous, multi-queue TUN/TAP for Linux: every queue of an interface is a stream of frames."""

import typing

from ._engine import SlowEngineWarning
from ._errors import (
    DeviceGoneError,
    InvalidFrameError,
    LinkDownError,
    QueueClosedError,
    SetupError,
    SetupPermissionError,
    TuntapError,
)
from ._offload.header import VnetHeader
from ._queue import TuntapQueue
from ._tuntap import AsyncTuntap
from ._types import Change, Counters, Frame, Link, LinkEvent, Mode, Offload, PacketStream, Stats

if typing.TYPE_CHECKING:
    from ._offload.coalesce import coalesce
    from ._offload.segment import segment

__all__ = [
    "AsyncTuntap",
    "Change",
    "Counters",
    "DeviceGoneError",
    "Frame",
    "InvalidFrameError",
    "Link",
    "LinkDownError",
    "LinkEvent",
    "Mode",
    "Offload",
    "PacketStream",
    "QueueClosedError",
    "SetupError",
    "SetupPermissionError",
    "SlowEngineWarning",
    "Stats",
    "TuntapError",
    "TuntapQueue",
    "VnetHeader",
    "coalesce",
    "segment",
]


def __getattr__(name: str) -> typing.Any:
    """These two import numpy, which takes as long as everything else together: when they are asked for."""
    if name == "segment":
        from ._offload.segment import segment

        return segment
    if name == "coalesce":
        from ._offload.coalesce import coalesce

        return coalesce
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
