"""From one frame with a virtio_net_hdr to plain frames: what the network card would have done.

The segments of a super-frame differ in a few 16-bit words of their headers. `_Fields` says which and how, once for both
ways of making segments: one at a time, with numbers, and many at a time, as the rows of a matrix, with one numpy array
for each field. The matrix takes as long to set up as five segments made alone, and then a twentieth for each of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from ._checksum import word_sum
from ._errors import InvalidFrameError
from ._headers import CHECKSUM_AT, TCP, UDP, Layout, addresses, network_header, parse
from ._numpy import np
from ._types import Buffer, Mode
from ._vnet import BASIC, HEADER_SIZE, VnetHeader, check_size

_NEEDS_CSUM = VnetHeader.NEEDS_CSUM

# What each kind of super-frame may be: IP version and protocol.
_KINDS = {
    VnetHeader.GSO_TCPV4: ((4, TCP),),
    VnetHeader.GSO_TCPV6: ((6, TCP),),
    VnetHeader.GSO_UDP_L4: ((4, UDP), (6, UDP)),
}

_WORD = struct.Struct(">H")
# From the total length to the checksum, from the sequence number to the checksum, and from the length on.
_IPV4, _TCP, _UDP = struct.Struct(">HHHHH"), struct.Struct(">IIHHH"), struct.Struct(">HH")

_SHORTEST = {Mode.TUN: 1, Mode.TAP: 14}

# Segments from which the matrix is faster.
_MANY = 6

# TCP flags that only the last segment may carry, and only the first one.
_FIN_PSH, _CWR = 0x09, 0x80


def segment(frame: Buffer, mode: Mode | str, *, header_size: int = HEADER_SIZE) -> list[bytes]:
    """Turns a frame as the kernel hands it out with ``vnet_header=True`` into plain frames, ready for any wire.

    A super-frame is cut as its header says (TCP and UDP over IPv4 and IPv6, with extension headers, options and up to
    two VLAN tags), and each segment gets its own lengths, identification, sequence number, flags and checksums. Any
    other frame comes back alone, its checksum completed where the header asks for it. See segmentation-offloads.rst in
    the kernel's documentation.

    Args:
        frame: The virtio_net_hdr and the frame behind it.
        mode: Of the interface that it comes from.
        header_size: Bytes of the virtio_net_hdr: 10, or 24 with the offloads for UDP tunnels.

    Raises:
        InvalidFrameError: Header and frame do not hold together, or it is a kind that is not segmented here: legacy
            UFO, or a super-frame inside a tunnel.
    """
    data = bytes(frame)
    if type(mode) is not Mode:
        mode = Mode(mode)
    check_size(header_size)
    if len(data) - header_size < _SHORTEST[mode]:
        raise InvalidFrameError(f"{len(data)} bytes are too few for a header of {header_size} and a {mode} frame")
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = BASIC.unpack_from(data)
    if hdr_len > len(data) - header_size:
        raise InvalidFrameError(f"hdr_len {hdr_len} is more than the frame has")
    if not gso_type and not flags & _NEEDS_CSUM:
        return [data[header_size:]]
    csum_start += header_size
    if not gso_type:
        return [_complete(data, header_size, mode, csum_start, csum_offset)]
    kinds = _KINDS.get(gso_type & ~VnetHeader.GSO_ECN)
    if kinds is None or gso_type == VnetHeader.GSO_UDP_L4 | VnetHeader.GSO_ECN:
        raise InvalidFrameError(f"gso_type {gso_type:#x} cannot be segmented")
    if not gso_size:
        raise InvalidFrameError("gso_size 0: there would be no end of segments")
    layout = parse(data, header_size, mode)
    if (layout.version, layout.protocol) not in kinds:
        raise InvalidFrameError(f"gso_type {gso_type:#x} on IPv{layout.version} with protocol {layout.protocol}")
    if layout.end != len(data):
        raise InvalidFrameError(f"{len(data) - layout.end} bytes after the end of the packet")
    if layout.protocol == UDP and _WORD.unpack_from(data, layout.transport + 4)[0] != layout.end - layout.transport:
        raise InvalidFrameError("the UDP header speaks of another length than there is")
    if flags & _NEEDS_CSUM:
        if csum_start != layout.transport or csum_offset != CHECKSUM_AT[layout.protocol]:
            raise InvalidFrameError("the checksum is not where the transport header has it")
    elif layout.protocol == UDP:
        raise InvalidFrameError("a UDP super-frame without NEEDS_CSUM")
    return _cut(data, header_size, layout, gso_size)


def _complete(data: bytes, start: int, mode: Mode, csum_start: int, csum_offset: int) -> bytes:
    """A frame whose checksum field holds the sum of a pseudo header, perhaps that of a packet within a tunnel."""
    network, version = network_header(data, start, mode)
    at = csum_start + csum_offset
    if csum_start < network + {0: 0, 4: 20, 6: 40}[version] or at + 2 > len(data):
        raise InvalidFrameError(f"a checksum from byte {csum_start - start} on, kept at {at - start}, cannot be")
    check = -word_sum(data[csum_start:]) % 65535
    # For UDP, 0 means that there is none (RFC 768). And only where there is nothing but zeros, the sum is 0 itself.
    if not check and (csum_offset == CHECKSUM_AT[UDP] or not any(data[csum_start:])):
        check = 0xFFFF
    return data[start:at] + check.to_bytes(2) + data[at + 2 :]


def _cut(data: bytes, start: int, layout: Layout, gso_size: int) -> list[bytes]:
    """The segments of a super-frame that was checked. The frame proper begins at *start*."""
    flags = data[layout.transport + 13] if layout.protocol == TCP else 0
    last = max(0, (layout.end - layout.payload - 1) // gso_size)
    cut = _cut_few if np is None or last < _MANY else _cut_many
    return cut(data, start, layout, gso_size, last, flags)


def _cut_few(data: bytes, start: int, layout: Layout, gso_size: int, last: int, flags: int) -> list[bytes]:
    fields = _Fields(data, layout)
    headers = bytearray(data[start : layout.payload])
    segments = []
    for index in range(last + 1):
        at = index * gso_size
        piece = data[layout.payload + at : layout.payload + at + gso_size]
        own = flags & ~(_CWR if index else 0) & ~(_FIN_PSH if index < last else 0)
        ident, sequence = fields.ident + index & 0xFFFF, fields.sequence + at & 0xFFFFFFFF
        for place, value in fields(ident, sequence, len(piece), own, word_sum(piece)):
            _WORD.pack_into(headers, place - start, value & 0xFFFF)
        segments.append(bytes(headers) + piece)
    return segments


def _cut_many(data: bytes, start: int, layout: Layout, gso_size: int, last: int, flags: int) -> list[bytes]:
    fields = _Fields(data, layout)
    payload = layout.payload
    # A row is headers and payload, each filled up to whole 32-bit words, so that the payload can be added up as such.
    headers = payload - start
    lead = headers + -headers % 4
    before = lead - headers
    end = lead + gso_size
    rows = np.empty((last + 1, end + -end % 4), np.uint8)
    rows[:, before:lead] = np.frombuffer(data, np.uint8, headers, start)
    rows[:last, lead:end] = np.frombuffer(data, np.uint8, last * gso_size, payload).reshape(last, gso_size)
    rest = layout.end - payload - last * gso_size
    rows[last, lead : lead + rest] = np.frombuffer(data, np.uint8, rest, layout.end - rest)
    rows[last, lead + rest :] = 0
    if end % 4:
        rows[:, end:] = 0
    sums = rows[:, lead:].view("<u4").sum(1, dtype=np.uint64).view(np.int64) * 256
    words = rows[:, before:lead].view(">u2")
    idents = np.arange(fields.ident, fields.ident + last + 1)
    sequences = np.arange(fields.sequence, fields.sequence + (last + 1) * gso_size, gso_size)
    if fields.ident + last > 0xFFFF:
        idents &= 0xFFFF
    if fields.sequence + last * gso_size > 0xFFFFFFFF:
        sequences &= 0xFFFFFFFF
    for place, values in fields(idents, sequences, gso_size, flags & ~(_CWR | _FIN_PSH), sums):
        words[:, (place - start) // 2] = values  # which keeps the low 16 bits
    for index, size, own in ((0, gso_size, flags & ~_FIN_PSH), (last, rest, flags & ~_CWR)):
        if index or flags & _CWR:
            values = fields(int(idents[index]), int(sequences[index]), size, own, int(sums[index]))
            for place, value in values:
                words[index, (place - start) // 2] = value & 0xFFFF
    # One item of raw bytes for each row: numpy makes the objects in a loop of its own.
    segments: list[bytes] = rows[:, before:end].view(f"V{headers + gso_size}")[:, 0].tolist()
    if rest < gso_size:
        segments[last] = segments[last][: headers + rest]
    return segments


class _Fields:
    """What differs between the segments of one super-frame: called for each, or with arrays for all at once."""

    __slots__ = ("_ip_rest", "_layout", "_offset_byte", "_rest", "ident", "sequence")

    def __init__(self, data: bytes, layout: Layout) -> None:
        version, protocol, network, transport, payload, _ = self._layout = layout
        #: The super-frame's own, and so the first segment's: identification (IPv4), and sequence number (TCP).
        self.ident = self.sequence = 0
        # Of all words but those that change, the sum; negative, since a checksum is.
        if version == 4:
            total, self.ident, _, _, checksum = _IPV4.unpack_from(data, network + 2)
            self._ip_rest = total + self.ident + checksum - word_sum(data[network:transport])
        self._rest = -(word_sum(addresses(data, layout)) + protocol + word_sum(data[transport:payload]))
        if protocol == TCP:
            self.sequence, _, last, _, checksum = _TCP.unpack_from(data, transport + 4)
            self._offset_byte = last & 0xFF00
            self._rest += self.sequence + last + checksum
        else:
            length, checksum = _UDP.unpack_from(data, transport + 4)
            self._rest += length + checksum

    def __call__(self, ident: Any, sequence: Any, size: int, flags: int, piece_sum: Any) -> Iterator[tuple[int, Any]]:
        """Each of those words with its place in the super-frame, of which the low 16 bits count.

        *size* is that of the payload in bytes, *piece_sum* the sum of its words, *flags* are those of TCP.
        """
        version, protocol, network, transport, payload, _ = self._layout
        length = payload - transport + size
        if version == 4:
            total = transport - network + length
            yield network + 2, total
            yield network + 4, ident
            yield network + 10, (self._ip_rest - total - ident) % 65535
        else:  # extension headers count as payload of IPv6
            yield network + 4, transport - network - 40 + length
        if protocol == TCP:
            last = self._offset_byte | flags
            yield transport + 4, sequence >> 16
            yield transport + 6, sequence
            yield transport + 12, last
            yield transport + 16, (self._rest - length - last - sequence - piece_sum) % 65535
        else:
            yield transport + 4, length
            # Never 0, which means that there is no checksum (RFC 768).
            yield transport + 6, 65535 - (2 * length - self._rest + piece_sum) % 65535
