"""One peer: its sessions, its timers, and the packets that wait while a handshake runs."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeAlias

#: What the UDP socket gives for where a datagram came from. It is passed back unchanged.
Address: TypeAlias = Hashable
#: Datagrams to send, in this order: runs to one address, for one call of the socket each.
Sends: TypeAlias = list[tuple[Address, list[bytes]]]


class Peer:
    """One peer of a Device, which makes it (:meth:`Device.add_peer`).

    Attributes that are set take effect at once; what is to be sent then leaves with the next ``Device.expire()``, and
    ``Device.next_deadline()`` says so.
    """

    public_key: bytes
    #: 32 bytes; all zero is the same as none. The next handshake uses it.
    preshared_key: bytes
    #: Where datagrams go: configured, or where the last authenticated one came from. None: not known yet.
    endpoint: Address | None
    #: Seconds, 0 (off) to 65535.
    persistent_keepalive: int
    #: Bytes of datagrams, handshakes and keepalives counted, without UDP and IP headers.
    rx_bytes: int
    tx_bytes: int
    #: Nanoseconds since the epoch when the last handshake was completed; 0: never.
    last_handshake: int

    def send_keepalive(self) -> None:
        """Sends an empty packet, or what waits; begins a handshake where there is no session."""
        raise NotImplementedError
