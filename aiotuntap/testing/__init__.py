"""For tests of code that uses packet streams: a pair without a kernel, and what every stream must satisfy.

`memory_pair` gives two joined streams, so that a switch or a VPN is tested without root, over links as slow and as lossy
as asked for. `FaultyStream` puts faults into any stream. `check_packet_stream` runs the conformance checks against
anything that claims to be a `PacketStream`; the package's own queues and the streams of this module pass the same ones.
"""

from __future__ import annotations

from .conformance import CHECKS, check_packet_stream
from .faults import Faults, FaultyStream
from .memory import MemoryStream, memory_pair
from .trial import FarEnd, FrameMaker, StreamMaker, example_frame

__all__ = [
    "CHECKS",
    "FarEnd",
    "Faults",
    "FaultyStream",
    "FrameMaker",
    "MemoryStream",
    "StreamMaker",
    "check_packet_stream",
    "example_frame",
    "memory_pair",
]
