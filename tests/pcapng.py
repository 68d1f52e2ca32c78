"""An independent reader of pcapng files, written from the specification."""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Packet:
    interface: str
    link_type: int
    queue: int
    direction: int
    time: int
    data: bytes
    length: int


@dataclass
class Recorded:
    """The content of a file."""

    packets: list[Packet] = field(default_factory=list)
    interfaces: list[str] = field(default_factory=list)
    #: By name of the interface.
    missed: dict[str, int] = field(default_factory=dict)

    def data(self, direction: int | None = None) -> list[bytes]:
        return [each.data for each in self.packets if direction in (None, each.direction)]


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while data:
        code, size = struct.unpack_from("=HH", data)
        if code == 0:
            assert (size, len(data)) == (0, 4)
            break
        found[code] = data[4 : 4 + size]
        data = data[4 + (size + 3) // 4 * 4 :]
    return found


def read(path: Path) -> Recorded:
    """Every block of the file is whole, and of a kind that is known here."""
    data, found = path.read_bytes(), Recorded()
    link_types = []
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("=II", data, at)
        assert size % 4 == 0 and data[at + size - 4 : at + size] == size.to_bytes(4, sys.byteorder), (
            "a block is not whole"
        )
        body = data[at + 8 : at + size - 4]
        if kind == 0x0A0D0D0A:
            assert at == 0 and struct.unpack_from("=IHHq", body) == (0x1A2B3C4D, 1, 0, -1)
        elif kind == 1:
            link_types.append(struct.unpack_from("=H", body)[0])
            options = _options(body[8:])
            assert options[9] == b"\x09"
            found.interfaces.append(options[2].decode())
        elif kind == 6:
            number, high, low, stored, length = struct.unpack_from("=IIIII", body)
            options = _options(body[20 + (stored + 3) // 4 * 4 :])
            (direction,), (queue,) = struct.unpack("=I", options[2]), struct.unpack("=I", options[6])
            packet = body[20 : 20 + stored]
            place = found.interfaces[number], link_types[number]
            found.packets.append(Packet(*place, queue, direction, high << 32 | low, packet, length))
        else:
            assert kind == 5, kind
            (number,) = struct.unpack_from("=I", body)
            (found.missed[found.interfaces[number]],) = struct.unpack("=Q", _options(body[12:])[5])
        at += size
    return found
