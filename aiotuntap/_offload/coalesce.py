"""From ordinary frames to frames with a virtio_net_hdr, merged where that is safe, as receive offload does.

There is one pass over the frames. A *run* is a sequence of frames that become one super-frame. Each flow has at most one
run that may continue: that of its latest frame. A frame joins the run if its headers are equal to those of the run's
first frame, except for lengths, identification, sequence number, checksums and PSH, and if these are what the kernel
would write when it splits the super-frame again.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from .._errors import InvalidFrameError
from .._types import Mode, Offload
from .checksum import word_sum
from .header import BASIC, VnetHeader
from .layout import CHECKSUM_AT, TCP, UDP, Layout, addresses, parse, word

# The kinds of super-frames, by IP version and protocol: the offload that allows it, and the gso_type.
_KINDS = {
    (4, TCP): (Offload.TSO4, VnetHeader.GSO_TCPV4),
    (6, TCP): (Offload.TSO6, VnetHeader.GSO_TCPV6),
    (4, UDP): (Offload.USO4, VnetHeader.GSO_UDP_L4),
    (6, UDP): (Offload.USO6, VnetHeader.GSO_UDP_L4),
}

#: All offloads that merging can use.
MERGEABLE = Offload.TSO4 | Offload.TSO6 | Offload.USO4 | Offload.USO6

#: Bytes from the start of a frame to its payload, at most. A frame with longer headers is treated as neither TCP nor
#: UDP: parsing long chains of IPv6 headers would take too much time, and the kernel refuses a super-frame whose transport
#: header is behind byte 65,470 or so, because that offset and the room before it must fit into 16 bits.
MOST_HEADERS = 256

# Frames in one super-frame, and bytes of its IP packet, at most.
_MOST_FRAMES = 64
_LARGEST = 65535

# Bytes of payload. Some kernels make no smaller segments of TCP, whatever the gso_size is.
_SMALLEST_SEGMENT = 8

_PSH, _ACK, _ECE = 0x08, 0x10, 0x40
_WORD, _LONG = struct.Struct(">H"), struct.Struct(">I")


class Merged(NamedTuple):
    """One frame with a virtio_net_hdr."""

    data: bytes
    #: The numbers of the ordinary frames in it.
    indexes: list[int]
    #: The offload that it was made with: NONE for a single frame.
    kind: Offload


def merge(frames: Sequence[bytes], mode: Mode, offload: Offload, header_size: int) -> list[Merged]:
    """Frames with a header, in the order of their first frames: see `aiotuntap.coalesce`."""
    allowed = {key for key, (kind, _) in _KINDS.items() if kind in offload}
    runs: list[_Run] = []
    latest: dict[tuple[bytes, ...], _Run] = {}
    for index, frame in enumerate(frames):
        try:
            layout = parse(frame, mode, MOST_HEADERS)
        except InvalidFrameError:  # its flow is unknown: no later frame may be moved in front of it
            latest.clear()
            runs.append(_Run(index, frame, None))
            continue
        flow = _flow(frame, layout)
        can_be_merged = (layout.version, layout.protocol) in allowed and _can_be_merged(frame, layout)
        if can_be_merged and flow in latest and latest[flow].join(index, frame, layout):
            continue
        latest[flow] = run = _Run(index, frame, layout if can_be_merged else None)
        runs.append(run)
    return [run.merged(frames, header_size) for run in runs]


def _flow(frame: bytes, layout: Layout) -> tuple[bytes, ...]:
    """The flow of a frame: frames of different flows may change their order."""
    network, transport = layout.network, layout.transport
    kind = bytes((layout.version, layout.protocol))
    return kind, frame[:network], addresses(frame, layout), frame[transport : transport + 4]


def _can_be_merged(frame: bytes, layout: Layout) -> bool:
    """Whether a run may contain the frame, judged by its headers alone."""
    version, protocol, network, transport, payload, end = layout
    if end != len(frame) or payload == end:
        return False
    if version == 4 and frame[network + 6] & 0x80:  # a reserved bit
        return False
    if protocol == TCP:
        return frame[transport + 13] & ~(_PSH | _ECE) == _ACK
    # Every datagram of a UDP super-frame has a checksum.
    return word(frame, transport + 4) == end - transport and word(frame, transport + 6) != 0


def _same_in_all(frame: bytes, layout: Layout) -> bytes:
    """The headers without the fields that differ between the frames of a run. The length of each header is included."""
    version, protocol, network, transport, payload, _ = layout
    if version == 4:
        rest = frame[: network + 2] + frame[network + 6 : network + 10] + frame[network + 12 : transport + 4]
    else:
        rest = frame[: network + 4] + frame[network + 6 : transport + 4]
    if protocol == TCP:
        flags = bytes((frame[transport + 13] & ~_PSH,))
        rest += frame[transport + 8 : transport + 13] + flags
        rest += frame[transport + 14 : transport + 16] + frame[transport + 18 : payload]
    return rest


def _is_pushed(frame: bytes, layout: Layout) -> bool:
    """Whether the frame has PSH, and so ends its run: only the last segment of a super-frame has PSH."""
    return layout.protocol == TCP and frame[layout.transport + 13] & _PSH != 0


def _checksums_right(frame: bytes, layout: Layout) -> bool:
    version, protocol, network, transport, _, end = layout
    if version == 4 and word_sum(frame[network:transport]):
        return False
    pseudo = word_sum(addresses(frame, layout)) + protocol + end - transport
    return (pseudo + word_sum(frame[transport:])) % 65535 == 0


class _Run:
    """Consecutive frames of one flow that become one super-frame; or a single frame."""

    __slots__ = ("_checked", "_first", "_goes_on", "_indexes", "_layout", "_same", "_total")

    def __init__(self, index: int, first: bytes, layout: Layout | None) -> None:
        """Starts a run. Without *layout*, no other frame can join it."""
        self._first = first
        self._indexes = [index]
        self._goes_on = False
        if layout is not None:
            self._layout = layout
            self._same = _same_in_all(first, layout)
            #: Bytes of payload.
            self._total = layout.end - layout.payload
            is_too_small = layout.protocol == TCP and self._total < _SMALLEST_SEGMENT
            self._goes_on = not is_too_small and not _is_pushed(first, layout)
            #: Whether the checksums of the first frame were verified.
            self._checked = False

    def join(self, index: int, frame: bytes, layout: Layout) -> bool:
        """Adds the next frame of the flow, which can be merged, if it continues the run. Returns whether it does."""
        if not self._goes_on or _same_in_all(frame, layout) != self._same:
            return False
        _, _, network, _, payload, end = layout  # except for the end, equal to that of the first frame
        size, size_of_first = end - payload, self._layout.end - payload
        if size > size_of_first or len(self._indexes) == _MOST_FRAMES:
            return False
        if payload - network + self._total + size > _LARGEST or not self._numbers_follow(frame):
            return False
        if not self._checked:
            self._checked = self._goes_on = _checksums_right(self._first, self._layout)
        if not self._goes_on or not _checksums_right(frame, layout):
            return False
        self._indexes.append(index)
        self._total += size
        self._goes_on = size == size_of_first and not _is_pushed(frame, layout)
        return True

    def _numbers_follow(self, frame: bytes) -> bool:
        """Whether the sequence number and the identification continue those of the first frame, without wrapping."""
        version, protocol, network, transport, _, _ = self._layout
        if protocol == TCP:
            at = transport + 4
            if _LONG.unpack_from(frame, at)[0] != _LONG.unpack_from(self._first, at)[0] + self._total:
                return False
        if version == 4 and not frame[network + 6] & 0x40:  # with DF, the identification has no meaning (RFC 6864)
            at = network + 4
            return word(frame, at) == word(self._first, at) + len(self._indexes)
        return True

    def merged(self, frames: Sequence[bytes], header_size: int) -> Merged:
        """The run as one frame. *frames* are all frames that were given to `merge`."""
        if len(self._indexes) == 1:
            return Merged(bytes(header_size) + self._first, self._indexes, Offload.NONE)
        version, protocol, network, transport, payload, end = self._layout
        kind, gso_type = _KINDS[version, protocol]
        chain = [frames[index] for index in self._indexes]
        headers = bytearray(self._first[:payload])
        length = payload - transport + self._total
        if version == 4:
            _WORD.pack_into(headers, network + 2, transport - network + length)
            _WORD.pack_into(headers, network + 10, 0)
            _WORD.pack_into(headers, network + 10, -word_sum(headers[network:transport]) % 65535)
        else:
            _WORD.pack_into(headers, network + 4, transport - network - 40 + length)
        if protocol == TCP:
            headers[transport + 13] |= chain[-1][transport + 13] & _PSH
        else:
            _WORD.pack_into(headers, transport + 4, length)
        # The sum of the pseudo header, which the kernel continues. A sum that is not of zeros only is 0xFFFF and not 0.
        partial = (word_sum(addresses(self._first, self._layout)) + protocol + length) % 65535 or 0xFFFF
        check_at = CHECKSUM_AT[protocol]
        _WORD.pack_into(headers, transport + check_at, partial)
        vnet = BASIC.pack(VnetHeader.NEEDS_CSUM, gso_type, payload, end - payload, transport, check_at)
        pieces = [frame[payload:] for frame in chain]
        return Merged(b"".join([vnet.ljust(header_size, b"\0"), headers, *pieces]), self._indexes, kind)
