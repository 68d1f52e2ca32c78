"""Makes the blocks of a pcapng file. See draft-ietf-opsawg-pcapng.

Numbers are in the byte order of this machine, which the first block declares. All times are in nanoseconds.
"""

from __future__ import annotations

import struct

from ._types import Buffer, Mode

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_MAGIC = 0x1A2B3C4D
_UNKNOWN_LENGTH = -1
_APPLICATION = 4
_IF_NAME, _IF_TSRESOL = 2, 9
_NANOSECONDS = b"\x09"
_IFDROP = 5

_LINK_TYPES = {Mode.TAP: 1, Mode.TUN: 101}

#: Directions of a packet.
INBOUND, OUTBOUND = 1, 2

# Type and length of the block, interface, both halves of the time, stored length, original length.
_PACKET_HEAD = struct.Struct("=IIIIIII")
# The options flags and queue, the end of the options, and the length of the block again.
_PACKET_TAIL = struct.Struct("=HHIHHIHHI")
_EPB_FLAGS, _EPB_QUEUE = 2, 6
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def section() -> bytes:
    """The first block of a file."""
    body = struct.pack("=IHHq", _MAGIC, 1, 0, _UNKNOWN_LENGTH)
    return _block(_SECTION, body + _option(_APPLICATION, b"aiotuntap") + _END)


def interface(name: str, mode: Mode, snaplen: int) -> bytes:
    """The block for one interface. Its number is how many such blocks came before. *snaplen* 0 means no limit."""
    body = struct.pack("=HHI", _LINK_TYPES[mode], 0, snaplen)
    return _block(_INTERFACE, body + _option(_IF_NAME, name.encode()) + _option(_IF_TSRESOL, _NANOSECONDS) + _END)


def packet(
    data: Buffer, number: int, queue: int, direction: int, time: int, length: int | None = None
) -> tuple[bytes, Buffer, bytes]:
    """The block for one packet, in three pieces, so that the packet need not be copied.

    Args:
        data: The part of the packet that is stored.
        number: Number of its interface.
        queue: Number of its queue.
        direction: `INBOUND` or `OUTBOUND`.
        time: Nanoseconds since 1970.
        length: Size of the whole packet in bytes, if only a part is stored.
    """
    size = len(data)
    padding = _PADDING[size & 3]
    total = _PACKET_HEAD.size + size + len(padding) + _PACKET_TAIL.size
    original = size if length is None else length
    head = _PACKET_HEAD.pack(_PACKET, total, number, time >> 32, time & 0xFFFFFFFF, size, original)
    return head, data, padding + _PACKET_TAIL.pack(_EPB_FLAGS, 4, direction, _EPB_QUEUE, 4, queue, 0, 0, total)


def statistics(number: int, time: int, missed: int) -> bytes:
    """The block that says how many packets of an interface are missing from the file."""
    body = struct.pack("=III", number, time >> 32, time & 0xFFFFFFFF)
    return _block(_STATISTICS, body + _option(_IFDROP, struct.pack("=Q", missed)) + _END)


def whole_blocks(data: bytes) -> int:
    """Size in bytes of all complete blocks at the start of *data*."""
    at = 0
    while at + 8 <= len(data):
        (size,) = struct.unpack_from("=I", data, at + 4)
        if at + size > len(data):
            break
        at += size
    return at


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + value + _PADDING[len(value) & 3]


_END = _option(0, b"")


def _block(kind: int, body: bytes) -> bytes:
    total = 12 + len(body)
    return struct.pack("=II", kind, total) + body + struct.pack("=I", total)
