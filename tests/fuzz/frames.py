"""Frames for fuzzing: valid ones of every kind by a seed, and mutations of any bytes."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from aiotuntap import Mode

from ..offload_packets import ACK, CWR, DF, GSO_TYPE, PSH, TCP, Packet, extension

#: Bytes that parsers often compare with.
_EDGES = (0, 1, 2, 4, 5, 6, 7, 8, 0x0F, 0x10, 0x3F, 0x40, 0x7F, 0x80, 0xFE, 0xFF)


def mutated(data: bytes, random: Random, head: int = 100) -> bytes:
    """A few bytes or fields changed, cut, repeated or put in; most of them in the first *head* bytes."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        end = max(1, min(head, len(out)) if random.random() < 0.8 else len(out))
        at = random.randrange(end)
        kind = random.randrange(8)
        if kind == 0 or not out:
            out[at:at] = random.randbytes(random.choice((1, 2, 4, 8)))
        elif kind == 1:
            del out[at : at + random.choice((1, 2, 4, 8))]
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at : at + 2] = ((int.from_bytes(out[at : at + 2]) + random.choice((-8, -1, 1, 8))) % 65536).to_bytes(2)
        elif kind == 4:
            out[at:at] = out[at : at + random.randrange(1, 40)]
        elif kind == 5:
            out[at : at + 1] = bytes([random.choice(_EDGES)])
        elif kind == 6:
            out[at : at + 1] = bytes([out[at : at + 1][0] ^ 1 << random.randrange(8)]) if at < len(out) else b"\0"
        else:
            out[at : at + 2] = random.choice((b"\0\0", b"\xff\xff", b"\x00\x01", len(out).to_bytes(4)[-2:]))
    return bytes(out)


def packet(random: Random, mode: Mode, payload: int) -> Packet:
    """A TCP or UDP frame of any shape that hosts send."""
    version, protocol = random.choice(tuple(GSO_TYPE))
    made = Packet(
        mode=mode,
        version=version,
        protocol=protocol,
        traffic_class=random.randrange(256),
        flow_label=random.randrange(2**20),
        hops=random.randrange(2, 256),
        acknowledgement=random.randrange(2**32),
        window=random.randrange(2**16),
        payload=random.randbytes(payload),
        identification=random.choice((0, 100, 0xFFFE, random.randrange(2**16))),
        fragment=random.choice((0, DF)),
        sequence=random.choice((0, 2**32 - 100, random.randrange(2**32))),
        flags=ACK | random.choice((0, 0, PSH, CWR, 1)),
        tcp_options=b"\1" * (4 * random.choice((0, 0, 3, 10))) if protocol == TCP else b"",
    )
    if version == 6 and random.random() < 0.2:
        made = replace(made, extensions=tuple(extension(random.choice((43, 60)), 0, 0) for _ in range(1)))
    if version == 4 and random.random() < 0.2:
        made = replace(made, options=b"\1" * random.choice((4, 8, 40)))
    return made
