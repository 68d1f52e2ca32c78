"""From one frame with a virtio_net_hdr to plain frames: what the network card would have done.

There are two ways that give the same. Few segments are made one after the other. Many are the rows of a matrix: what
differs in their headers are a few columns, and numpy adds up all payloads at once. The matrix takes as long to set up
as five segments made alone, and then a twentieth for each of them.
"""

from __future__ import annotations

import struct

from .._errors import InvalidFrameError
from .._types import Buffer, Mode
from ._numpy import np
from .checksum import word_sum
from .header import BASIC, HEADER_SIZE, VnetHeader, check_size
from .layout import CHECKSUM_AT, TCP, UDP, Layout, addresses, network_header, parse

_NEEDS_CSUM = VnetHeader.NEEDS_CSUM

# What each kind of super-frame may be: IP version and protocol.
_KINDS = {
    VnetHeader.GSO_TCPV4: ((4, TCP),),
    VnetHeader.GSO_TCPV6: ((6, TCP),),
    VnetHeader.GSO_UDP_L4: ((4, UDP), (6, UDP)),
}

_WORD, _TWO_WORDS, _LONG = struct.Struct(">H"), struct.Struct(">HH"), struct.Struct(">I")
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
    template = _Template(data, start, layout)
    segments = []
    for index in range(last + 1):
        at = layout.payload + index * gso_size
        piece = data[at : at + gso_size]
        own = flags & ~(_CWR if index else 0) & ~(_FIN_PSH if index < last else 0)
        segments.append(template.headers(index, index * gso_size, len(piece), own, word_sum(piece)) + piece)
    return segments


def _cut_many(data: bytes, start: int, layout: Layout, gso_size: int, last: int, flags: int) -> list[bytes]:
    version, protocol, network, transport, payload, end = layout
    template = _Template(data, start, layout)
    # A row is headers and payload, each filled up to whole 32-bit words, so that the payload can be added up as such.
    size = payload - start
    before = -size % 4
    lead = before + size
    rows = np.empty((last + 1, lead + gso_size + -gso_size % 4), np.uint8)
    rest = end - payload - last * gso_size
    whole = last + (rest == gso_size)
    rows[:whole, lead : lead + gso_size] = np.frombuffer(data, np.uint8, whole * gso_size, payload).reshape(whole, -1)
    if gso_size % 4:
        rows[:, lead + gso_size :] = 0
    if rest < gso_size:
        rows[last, lead : lead + rest] = np.frombuffer(data, np.uint8, rest, end - rest)
        rows[last, lead + rest :] = 0
    sums = np.add.reduce(rows[:, lead:].view("<u4"), 1, np.uint64).view(np.int64) * 256

    # All begin with the headers of the first one, but for its payload. A column is one 16-bit word of each; it keeps
    # the low 16 bits of what it is given. Checksums fall as the numbers grow that they cover.
    first = template.headers(0, 0, gso_size, flags & ~(_CWR | _FIN_PSH), 0)
    rows[:, before:lead] = np.frombuffer(first, np.uint8)
    columns = rows[:, before:lead].view(">u2")
    shorter = gso_size - rest
    at = (transport - start) // 2
    check_at = at + CHECKSUM_AT[protocol] // 2
    checks = _WORD.unpack_from(first, 2 * check_at)[0] - sums
    if protocol == TCP:
        sequences = np.arange(0, (last + 1) * gso_size, gso_size)
        checks -= sequences
        sequences += template.sequence
        if sequences[last] > 0xFFFFFFFF:
            checks += sequences > 0xFFFFFFFF  # what wraps is less by 2**32, and that is 1 in a sum
        columns[:, at + 2] = sequences >> 16
        columns[:, at + 3] = sequences
        columns[0, at + 6] |= flags & _CWR
        columns[last, at + 6] |= flags & _FIN_PSH
        checks[0] -= flags & _CWR
        checks[last] += shorter - (flags & _FIN_PSH)
        checks %= 65535
    else:
        columns[last, at + 2] -= shorter
        checks[last] += 2 * shorter
        checks %= 65535
        checks[checks == 0] = 0xFFFF
    columns[:, check_at] = checks
    at = (network - start) // 2
    if version == 4:
        idents = np.arange(last + 1)
        checks = _WORD.unpack_from(first, 2 * at + 10)[0] - idents
        idents += template.ident
        if idents[last] > 0xFFFF:
            checks += idents > 0xFFFF
        columns[:, at + 2] = idents
        columns[last, at + 1] -= shorter
        checks[last] += shorter
        checks %= 65535
        columns[:, at + 5] = checks
    else:
        columns[last, at + 2] -= shorter

    # One item of raw bytes for each row: numpy makes the objects in a loop of its own.
    segments: list[bytes] = rows[:, before : lead + gso_size].view(f"V{size + gso_size}")[:, 0].tolist()
    if shorter:
        segments[last] = segments[last][: size + rest]
    return segments


class _Template:
    """Headers of one super-frame, and from them those of each segment."""

    __slots__ = ("_headers", "_ip_rest", "_layout", "_offset_byte", "_rest", "_start", "ident", "sequence")

    def __init__(self, data: bytes, start: int, layout: Layout) -> None:
        version, protocol, network, transport, payload, _ = self._layout = layout
        self._start = start
        self._headers = bytearray(data[start:payload])
        #: The first segment's: identification (IPv4), and sequence number (TCP).
        self.ident = self.sequence = 0
        # What is left of the sums without the words that change; negative, since a checksum is.
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

    def headers(self, index: int, number: int, size: int, flags: int, piece_sum: int) -> bytes:
        """Those of one segment.

        Args:
            index: Its number, from 0.
            number: Bytes of payload before it.
            size: Bytes of its own payload.
            flags: Of TCP.
            piece_sum: Sum of the words of its payload.
        """
        version, protocol, network, transport, payload, _ = self._layout
        headers, start = self._headers, self._start
        length = payload - transport + size
        if version == 4:
            total = transport - network + length
            ident = self.ident + index & 0xFFFF
            _TWO_WORDS.pack_into(headers, network - start + 2, total, ident)
            _WORD.pack_into(headers, network - start + 10, (self._ip_rest - total - ident) % 65535)
        else:  # extension headers count as payload of IPv6
            _WORD.pack_into(headers, network - start + 4, transport - network - 40 + length)
        at = transport - start
        if protocol == TCP:
            sequence = self.sequence + number & 0xFFFFFFFF
            last = self._offset_byte | flags
            _LONG.pack_into(headers, at + 4, sequence)
            _WORD.pack_into(headers, at + 12, last)
            _WORD.pack_into(headers, at + 16, (self._rest - length - last - sequence - piece_sum) % 65535)
        else:
            # Never 0, which means that there is no checksum (RFC 768).
            check = 65535 - (2 * length - self._rest + piece_sum) % 65535
            _TWO_WORDS.pack_into(headers, at + 4, length, check)
        return bytes(headers)
