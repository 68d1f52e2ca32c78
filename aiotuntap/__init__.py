"""Asynchronous, multi-queue TUN/TAP for Linux: every queue of an interface is a stream of frames."""

from ._endpoint import TuntapProtocol, create_tuntap_endpoint
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
from ._super_frames import coalesce, segment
from ._transport import TuntapTransport
from ._tuntap import AsyncTuntap
from ._types import Change, Counters, Frame, Link, LinkEvent, Mode, Offload, PacketStream, Stats

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
    "TuntapProtocol",
    "TuntapQueue",
    "TuntapTransport",
    "VnetHeader",
    "coalesce",
    "create_tuntap_endpoint",
    "segment",
]

__version__ = "0.1.0"
