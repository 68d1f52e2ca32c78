"""examples/wireguard between its descriptors, on one core: packets to datagrams and back, and the cipher alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .results import Figure, Table, figure

if TYPE_CHECKING:
    from .native import Loops

#: Packets in a batch, as many as a super-frame of TCP has segments, and the sizes of a packet.
_BATCH = 45
_SIZES = (64, 576, 1420)
_SAMPLES = 200


def run(loops: Loops, rounds: int, quick: bool) -> list[Table]:
    """The samples of all four take turns."""
    rows: dict[str, list[Figure | None]] = {}
    for size in _SIZES:
        taken: dict[str, list[float]] = {"encrypt": [], "outbound": [], "decrypt": [], "inbound": []}
        contestants = _contestants(size)
        for _ in range(rounds * _SAMPLES):
            for name, call in contestants.items():
                begun = time.thread_time_ns()
                call()
                taken[name].append((time.thread_time_ns() - begun) / 1000 / _BATCH)
        for name, alone in (("outbound", "encrypt"), ("inbound", "decrypt")):
            ratios = [one / other for one, other in zip(taken[name], taken[alone], strict=True)]
            rows[f"`{name}`, {size} B"] = [figure(taken[name]), figure(taken[alone]), figure(ratios)]
    columns = {"µs a packet": 2, "the cipher alone, µs": 2, "the cipher alone = 1": 2}
    return [Table("`examples/wireguard` without descriptors", "", columns, rows)]


def _contestants(size: int) -> dict[str, Callable[[], Any]]:
    """What is measured, by name; *inbound* opens what *outbound* has sealed before."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from wireguard.device import Device

    packet = bytes([0x45, 0, *size.to_bytes(2), *bytes(8), 10, 0, 0, 1, 10, 0, 0, 2]).ljust(size, b"\0")
    packets = [packet] * _BATCH
    ours, theirs = (Device(now=lambda: 0.0) for _ in range(2))
    here, there = ("192.0.2.1", 1), ("192.0.2.2", 2)
    for device, key in ((ours, b"a"), (theirs, b"b")):
        device.mtu, device.private_key = 1420, key * 32
        device.up()
    for device, other, network, address in ((ours, theirs, "10.0.0.2", there), (theirs, ours, "10.0.0.1", here)):
        assert other.public_key is not None
        peer = device.add_peer(other.public_key)
        peer.endpoint = address
        device.routes.insert(ip_network(network), peer)
    (_, initiation), *_ = ours.outbound(packets, 0.0)
    _, ((_, response),) = theirs.inbound([(initiation[0], here)], 0.0)
    _, ((_, waiting),) = ours.inbound([(response[0], there)], 0.0)
    theirs.inbound([(datagram, here) for datagram in waiting], 0.0)

    cipher, nonce = ChaCha20Poly1305(bytes(32)), bytes(12)
    encrypted = cipher.encrypt(nonce, packet, None)
    sealed: list[tuple[bytes, tuple[str, int]]] = []

    def encrypt() -> None:
        for each in packets:
            cipher.encrypt(nonce, each, None)

    def decrypt() -> None:
        for _ in packets:
            cipher.decrypt(nonce, encrypted, None)

    def outbound() -> None:
        ((_, datagrams),) = ours.outbound(packets, 0.0)
        sealed[:] = [(datagram, here) for datagram in datagrams]

    def inbound() -> None:
        opened, _ = theirs.inbound(sealed, 0.0)
        assert len(opened) == _BATCH

    return {"encrypt": encrypt, "outbound": outbound, "decrypt": decrypt, "inbound": inbound}
