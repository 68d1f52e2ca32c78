"""Cryptokey routing for batches: the peer of each outgoing packet, and whether a peer may send an incoming packet."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from .drops import Drops

P = TypeVar("P", bound=Hashable)


def by_peer(packets: Sequence[bytes], lookup: Callable[[bytes], P | None], drops: Drops) -> dict[P, list[bytes]]:
    """Groups IP packets by the peer of their destination, in order. Packets without a peer are counted in *drops*."""
    batches: dict[P, list[bytes]] = {}
    last, batch = b"", None
    for packet in packets:
        version = packet[0] >> 4 if packet else 0
        if version == 4 and len(packet) >= 20:
            destination = packet[16:20]
        elif version == 6 and len(packet) >= 40:
            destination = packet[24:40]
        else:
            drops.malformed += 1
            continue
        if destination != last:
            last = destination
            peer = lookup(destination)
            batch = None if peer is None else batches.setdefault(peer, [])
        if batch is None:
            drops.no_route += 1
        else:
            batch.append(packet)
    return batches


def allowed(packets: Sequence[bytes], peer: P, lookup: Callable[[bytes], P | None], drops: Drops) -> list[bytes]:
    """The IP packets, without padding, whose source belongs to *peer*. Others, except keepalives, are counted in *drops*."""
    passed = []
    last, is_allowed = b"", False
    for packet in packets:
        if not packet:
            continue
        size, version = len(packet), packet[0] >> 4
        if version == 4 and size >= 20:
            least, length, source = 20, packet[2] << 8 | packet[3], packet[12:16]
        elif version == 6 and size >= 40:
            least, length, source = 40, 40 + (packet[4] << 8 | packet[5]), packet[8:24]
        else:
            drops.malformed += 1
            continue
        if not least <= length <= size:
            drops.malformed += 1
            continue
        if source != last:
            last, is_allowed = source, lookup(source) is peer
        if not is_allowed:
            drops.disallowed_source += 1
        else:
            passed.append(packet if length == size else packet[:length])
    return passed
