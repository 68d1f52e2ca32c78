"""From one frame with a virtio_net_hdr to ordinary frames, as a network card would do it."""

from __future__ import annotations

import struct
from typing import Literal

from .._errors import InvalidFrameError
from .._types import Buffer, Mode
from .checksum import word_sum
from .header import BASIC, HEADER_SIZE, VnetHeader, check_size
from .layout import CHECKSUM_AT, TCP, UDP, Layout, addresses, network_header, parse, word

# The IP versions and protocols of each kind of super-frame.
_KINDS = {
    VnetHeader.GSO_TCPV4: ((4, TCP),),
    VnetHeader.GSO_TCPV6: ((6, TCP),),
    VnetHeader.GSO_UDP_L4: ((4, UDP), (6, UDP)),
}

_WORD, _TWO_WORDS, _LONG = struct.Struct(">H"), struct.Struct(">HH"), struct.Struct(">I")

# Bytes of headers of all segments together, at most. That is enough for segments of one byte with headers of 256 bytes.
# Without a limit, a super-frame with 32 KiB of IPv6 headers and 32 KiB of payload could become 1 GiB.
_MOST_HEADERS = 1 << 24

_SHORTEST = {Mode.TUN: 1, Mode.TAP: 14}
_IP_HEADER = {0: 0, 4: 20, 6: 40}

# TCP flags that only the last segment has, and that only the first one has.
_FIN_PSH, _CWR = 0x09, 0x80


def segment(frame: Buffer, mode: Literal["tun", "tap"] | Mode, *, header_size: int = HEADER_SIZE) -> list[bytes]:
    """The ordinary frames of one frame with a header: see `aiotuntap.segment`.

    Raises:
        InvalidFrameError: The frame cannot be segmented. The message says why.
    """
    data = bytes(memoryview(frame))  # bytes() alone would take a number or a list of numbers, too
    mode = Mode(mode)
    check_size(header_size)
    plain = data[header_size:]
    if len(plain) < _SHORTEST[mode]:
        raise InvalidFrameError(
            f"the frame must have at least {header_size + _SHORTEST[mode]} bytes, {header_size} of them for the"
            f" virtio_net_hdr, not {len(data)}"
        )
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = BASIC.unpack_from(data)
    needs_checksum = flags & VnetHeader.NEEDS_CSUM
    if hdr_len > len(plain):
        raise InvalidFrameError(
            f"hdr_len is {hdr_len}, and the frame behind the virtio_net_hdr has only {len(plain)} bytes: is the header"
            f" missing, or header_size ({header_size}) wrong?"
        )
    if not gso_type:
        return [_complete(plain, mode, csum_start, csum_offset) if needs_checksum else plain]
    kinds = _KINDS.get(gso_type & ~VnetHeader.GSO_ECN)
    if kinds is None or gso_type == VnetHeader.GSO_UDP_L4 | VnetHeader.GSO_ECN:
        raise InvalidFrameError(f"frames with gso_type {gso_type:#x} cannot be segmented here")
    if not gso_size:
        raise InvalidFrameError(f"gso_size must be at least 1 with gso_type {gso_type:#x}, not 0")
    layout = parse(plain, mode)
    if (layout.version, layout.protocol) not in kinds:
        raise InvalidFrameError(
            f"gso_type {gso_type:#x} does not match the packet: IPv{layout.version} with IP protocol {layout.protocol}"
        )
    if layout.end != len(plain):
        raise InvalidFrameError(f"the frame has {len(plain) - layout.end} bytes behind the end of the packet")
    if layout.protocol == UDP and word(plain, layout.transport + 4) != layout.end - layout.transport:
        raise InvalidFrameError("the length in the UDP header is not that of the packet")
    if needs_checksum:
        if csum_start != layout.transport or csum_offset != CHECKSUM_AT[layout.protocol]:
            raise InvalidFrameError(
                f"csum_start {csum_start} and csum_offset {csum_offset} are not where the checksum of the packet is"
            )
    elif layout.protocol == UDP:
        raise InvalidFrameError("a UDP super-frame must have the flag NEEDS_CSUM")
    count = -((layout.payload - layout.end) // gso_size)
    if count * layout.payload > _MOST_HEADERS:
        raise InvalidFrameError(
            f"{count} segments with headers of {layout.payload} bytes would have more than 16 MiB of headers"
        )
    return _cut(plain, layout, gso_size)


def _complete(plain: bytes, mode: Mode, csum_start: int, csum_offset: int) -> bytes:
    """Completes a checksum. It may be that of a packet inside a tunnel."""
    network, version = network_header(plain, mode)
    at = csum_start + csum_offset
    if csum_start < network + _IP_HEADER[version] or at + 2 > len(plain):
        raise InvalidFrameError(
            f"csum_start {csum_start} and csum_offset {csum_offset} are not behind the IP header and inside the frame"
        )
    covered = plain[csum_start:]
    check = -word_sum(covered) % 65535
    # For UDP, 0 means that there is no checksum (RFC 768). Otherwise the sum is 0 only if all bytes are zeros.
    if not check and (csum_offset == CHECKSUM_AT[UDP] or not any(covered)):
        check = 0xFFFF
    return plain[:at] + _WORD.pack(check) + plain[at + 2 :]


def _cut(plain: bytes, layout: Layout, gso_size: int) -> list[bytes]:
    """The segments of a valid super-frame. If it has no payload, there is one segment without a payload."""
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
        if not check and protocol == UDP:  # 0 means that there is no checksum (RFC 768)
            check = 0xFFFF
        _WORD.pack_into(headers, check_at, check)
        segments.append(bytes(headers) + piece)
    return segments
