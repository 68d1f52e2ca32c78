"""Frames to segment and to coalesce, built from their RFCs alone. Payload is random; the two ends are always the same."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_ETHERNET = bytes.fromhex("020000000002020000000001")
_ETHER_TYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
_ENDS = {
    4: bytes((10, 77, 0, 1, 10, 77, 0, 2)),
    6: bytes.fromhex("fd770000000000000000000000000001fd770000000000000000000000000002"),
}
#: No operation twice, then timestamps: what Linux sends.
_TIMESTAMPS = bytes.fromhex("0101080a0102030405060708")
_TCP, _UDP = 6, 17
_NEEDS_CSUM, _CSUM_OFFSET = 1, {_TCP: 16, _UDP: 6}
_GSO_TYPES = {(4, _TCP): 1, (6, _TCP): 4, (4, _UDP): 5, (6, _UDP): 5}
_ACK, _PSH = 0x10, 0x08


def _sum(data: bytes) -> int:
    """The ones' complement sum of RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Flow(NamedTuple):
    """One direction of a connection."""

    mode: str = "tun"
    version: int = 4
    protocol: int = _TCP
    port: int = 40000
    acknowledged: int = 9000

    @classmethod
    def udp(cls) -> Flow:
        return cls(protocol=_UDP)

    def frame(self, payload: bytes, index: int = 0, position: int = 0, push: bool = False) -> bytes:
        """A plain frame, after *index* others with *position* bytes in all."""
        headers, transport = self._headers(len(payload), index, position, push)
        at = transport + _CSUM_OFFSET[self.protocol]
        checksum = 0xFFFF - _sum(headers[transport:] + payload) or 0xFFFF
        return headers[:at] + struct.pack("!H", checksum) + headers[at + 2 :] + payload

    def super_frame(self, payload: bytes, size: int) -> bytes:
        """A frame that the kernel leaves to be cut into segments of *size* bytes, with its virtio_net_hdr."""
        headers, transport = self._headers(len(payload), 0, 0, push=True)
        kind = _GSO_TYPES[self.version, self.protocol]
        offset = _CSUM_OFFSET[self.protocol]
        return struct.pack("=BBHHHH", _NEEDS_CSUM, kind, len(headers), size, transport, offset) + headers + payload

    def _headers(self, size: int, index: int, position: int, push: bool) -> tuple[bytes, int]:
        """All headers, with the sum of the pseudo header as checksum, and where the transport header begins."""
        if self.protocol == _TCP:
            flags = _ACK | (_PSH if push else 0)
            transport = struct.pack(
                "!HHIIBBHHH", self.port, 5001, 7000 + position, self.acknowledged, 8 << 4, flags, 502, 0, 0
            )
            transport += _TIMESTAMPS
        else:
            transport = struct.pack("!HHHH", self.port, 5001, 8 + size, 0)
        length = len(transport) + size
        at = _CSUM_OFFSET[self.protocol]
        pseudo = _sum(_ENDS[self.version] + struct.pack("!II", length, self.protocol))
        transport = transport[:at] + struct.pack("!H", pseudo) + transport[at + 2 :]
        if self.version == 4:
            # Linux counts on the identification from segment to segment, although it forbids fragments.
            network = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1 + index, 0x4000, 64, self.protocol, 0) + _ENDS[4]
            network = network[:10] + struct.pack("!H", 0xFFFF - _sum(network)) + network[12:]
        else:
            network = struct.pack("!IHBB", 6 << 28, length, self.protocol, 64) + _ENDS[6]
        link = _ETHERNET + _ETHER_TYPES[self.version] if self.mode == "tap" else b""
        return link + network + transport, len(link) + len(network)


def super_frame(flow: Flow, count: int, size: int) -> bytes:
    """One that holds *count* segments of *size* bytes."""
    return flow.super_frame(os.urandom(count * size), size)


def frames(flow: Flow, sizes: Sequence[int], write: int = 0) -> list[bytes]:
    """Plain frames with payload of these sizes, which follow each other. Each *write* of them end with PSH, or the last."""
    found: list[bytes] = []
    position = 0
    for index, size in enumerate(sizes):
        push = (index + 1) % (write or len(sizes)) == 0
        found.append(flow.frame(os.urandom(size), index, position, push))
        position += size
    return found
