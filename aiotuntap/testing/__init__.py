"""Tools to test code that uses packet streams: streams in memory, faults, and conformance checks.

`memory_pair` returns two connected streams in memory. With them, a switch or a VPN can be tested without root, over
links with limited bandwidth, latency and loss. `FaultyStream` adds faults to any stream. `check_packet_stream` runs the
conformance checks for a `PacketStream`. The queues of this package and the streams of this module pass them.
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
