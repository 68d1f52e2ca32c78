"""From one frame with a virtio_net_hdr to plain frames: what the network card would have done."""

from __future__ import annotations

import struct

from .._errors import InvalidFrameError
from .._types import Buffer, Mode
from .checksum import word_sum
from .header import BASIC, HEADER_SIZE, VnetHeader, check_size
from .layout import CHECKSUM_AT, TCP, UDP, Layout, addresses, network_header, parse, word

# What each kind of super-frame may be: IP version and protocol.
_KINDS = {
    VnetHeader.GSO_TCPV4: ((4, TCP),),
    VnetHeader.GSO_TCPV6: ((6, TCP),),
    VnetHeader.GSO_UDP_L4: ((4, UDP), (6, UDP)),
}

_WORD, _TWO_WORDS, _LONG = struct.Struct(">H"), struct.Struct(">HH"), struct.Struct(">I")

# Bytes of headers of all segments together, at most: one byte in each segment with headers of 256 bytes is possible. A
# super-frame with IPv6 headers of 32 KiB and as many bytes of payload would otherwise become 1 GiB.
_MOST_HEADERS = 1 << 24

_SHORTEST = {Mode.TUN: 1, Mode.TAP: 14}
_IP_HEADER = {0: 0, 4: 20, 6: 40}

# TCP flags that only the last segment may carry, and only the first one.
_FIN_PSH, _CWR = 0x09, 0x80


def segment(frame: Buffer, mode: Mode | str, *, header_size: int = HEADER_SIZE) -> list[bytes]:
    """The plain frames of one frame with a header: see `aiotuntap.segment`.

    Raises:
        InvalidFrameError: Header and frame are not a kind that can be segmented; says why.
    """
    data = bytes(frame)
    mode = Mode(mode)
    check_size(header_size)
    plain = data[header_size:]
    if len(plain) < _SHORTEST[mode]:
        raise InvalidFrameError(f"{len(data)} bytes are too few for a header of {header_size} and a {mode} frame")
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = BASIC.unpack_from(data)
    needs_checksum = flags & VnetHeader.NEEDS_CSUM
    if hdr_len > len(plain):
        raise InvalidFrameError(f"hdr_len {hdr_len} is more than the frame has")
    if not gso_type:
        return [_complete(plain, mode, csum_start, csum_offset) if needs_checksum else plain]
    kinds = _KINDS.get(gso_type & ~VnetHeader.GSO_ECN)
    if kinds is None or gso_type == VnetHeader.GSO_UDP_L4 | VnetHeader.GSO_ECN:
        raise InvalidFrameError(f"gso_type {gso_type:#x} cannot be segmented")
    if not gso_size:
        raise InvalidFrameError("gso_size 0: there would be no end of segments")
    layout = parse(plain, mode)
    if (layout.version, layout.protocol) not in kinds:
        raise InvalidFrameError(f"gso_type {gso_type:#x} on IPv{layout.version} with protocol {layout.protocol}")
    if layout.end != len(plain):
        raise InvalidFrameError(f"{len(plain) - layout.end} bytes after the end of the packet")
    if layout.protocol == UDP and word(plain, layout.transport + 4) != layout.end - layout.transport:
        raise InvalidFrameError("the UDP header says another length than there is")
    if needs_checksum:
        if csum_start != layout.transport or csum_offset != CHECKSUM_AT[layout.protocol]:
            raise InvalidFrameError("the checksum is not where the transport header has it")
    elif layout.protocol == UDP:
        raise InvalidFrameError("a UDP super-frame without NEEDS_CSUM")
    count = -((layout.payload - layout.end) // gso_size)
    if count * layout.payload > _MOST_HEADERS:
        raise InvalidFrameError(f"{count} segments with headers of {layout.payload} bytes: more than 16 MiB of headers")
    return _cut(plain, layout, gso_size)


def _complete(plain: bytes, mode: Mode, csum_start: int, csum_offset: int) -> bytes:
    """A frame whose checksum field holds the sum of a pseudo header, perhaps that of a packet within a tunnel."""
    network, version = network_header(plain, mode)
    at = csum_start + csum_offset
    if csum_start < network + _IP_HEADER[version] or at + 2 > len(plain):
        raise InvalidFrameError(f"a checksum from byte {csum_start} on, kept at {at}, cannot be")
    covered = plain[csum_start:]
    check = -word_sum(covered) % 65535
    # For UDP, 0 means that there is none (RFC 768). And only where there is nothing but zeros, the sum is 0 itself.
    if not check and (csum_offset == CHECKSUM_AT[UDP] or not any(covered)):
        check = 0xFFFF
    return plain[:at] + _WORD.pack(check) + plain[at + 2 :]


def _cut(plain: bytes, layout: Layout, gso_size: int) -> list[bytes]:
    """The segments of a super-frame that was checked; one without a payload if it has none."""
    version, protocol, network, transport, payload, end = layout
    headers = bytearray(plain[:payload])
    check_at = transport + CHECKSUM_AT[protocol]
    pseudo = word_sum(addresses(plain, layout)) + protocol
    identification = flags = sequence = 0
    if version == 4:
        identification = word(plain, network + 4)
    if protocol == TCP:
        flags = plain[transport + 13]
        (sequence,) = _LONG.unpack_from(plain, transport + 4)

    segments = []
    for index, at in enumerate(range(payload, max(end, payload + 1), gso_size)):
        piece = plain[at : at + gso_size]
        length = payload - transport + len(piece)
        if version == 4:
            _TWO_WORDS.pack_into(headers, network + 2, transport - network + length, identification + index & 0xFFFF)
            _WORD.pack_into(headers, network + 10, 0)
            _WORD.pack_into(headers, network + 10, -word_sum(headers[network:transport]) % 65535)
        else:
            _WORD.pack_into(headers, network + 4, transport - network - 40 + length)
        if protocol == TCP:
            _LONG.pack_into(headers, transport + 4, sequence + at - payload & 0xFFFFFFFF)
            own = flags
            if at > payload:
                own &= ~_CWR
            if at + gso_size < end:
                own &= ~_FIN_PSH
            headers[transport + 13] = own
        else:
            _WORD.pack_into(headers, transport + 4, length)
        _WORD.pack_into(headers, check_at, 0)
        check = -(pseudo + length + word_sum(headers[transport:] + piece)) % 65535
        if not check and protocol == UDP:  # there, 0 means that there is none (RFC 768)
            check = 0xFFFF
        _WORD.pack_into(headers, check_at, check)
        segments.append(bytes(headers) + piece)
    return segments
