"""The interface without its descriptors: IP packets, datagrams and time in; IP packets and datagrams out.

Nothing here reads a clock or a socket: a call says what time it is, and gets what is to be sent. Times are in seconds on
any clock that never goes back; CLOCK_BOOTTIME also counts while the machine sleeps, and keys then expire.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from .peer import Address, Peer, Sends
from .routes import Routes


@dataclass(slots=True)
class Drops:
    """What was thrown away, by reason: packets or datagrams since the start."""

    malformed: int = 0  #: not a WireGuard message, or not an IP packet
    no_route: int = 0  #: an IP packet to an address that is no peer's
    queue_full: int = 0  #: an IP packet that waited for a handshake, when newer ones came or the handshake failed
    no_endpoint: int = 0  #: a datagram for a peer whose address is not known
    unknown_receiver: int = 0  #: no session or handshake has this index
    expired: int = 0  #: for a session that is too old
    forged: int = 0  #: does not authenticate: MAC, key or contents
    replayed: int = 0  #: was received before, or is older than what the window knows
    disallowed_source: int = 0  #: authenticated, but the source of the IP packet inside is not the peer's
    under_load: int = 0  #: a handshake that was answered by a cookie, or is over the rate of its source


class Device:
    """All peers, the routes between them, and the key that is our own. Down until :meth:`up`."""

    #: Peers by public key. Read it; change it by add_peer and remove_peer.
    peers: dict[bytes, Peer]
    routes: Routes[Peer]
    #: Of the interface, in bytes: padding does not go over it. 0: not known.
    mtu: int
    #: Stored for the UAPI and for whoever has the socket; nothing here uses them.
    listen_port: int
    fwmark: int
    drops: Drops

    def __init__(
        self,
        *,
        now: Callable[[], float],
        rng: Callable[[int], bytes] = os.urandom,
        wall_clock: Callable[[], int] = time.time_ns,
        source: Callable[[Address], tuple[bytes, bytes]] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """A device without a key and without peers.

        Args:
            now: the time, for what is called without one: changes of the configuration.
            rng: that many random bytes; ephemeral private keys are ``rng(32)``.
            wall_clock: nanoseconds since the epoch, for the timestamps of handshakes.
            source: of an address, the host that rates are limited for, and all that a cookie is bound to (host and
                port), each as bytes. Unless given, ``(repr(address[0]), repr(address))`` for tuples.
            log: gets one line for each rare event (handshakes, keys); never called for a packet, nor for what a
                stranger sends.
        """
        raise NotImplementedError

    @property
    def private_key(self) -> bytes | None:
        """32 bytes, or None. Setting it ends all sessions by the next packet and removes a peer that is ourselves."""
        raise NotImplementedError

    @private_key.setter
    def private_key(self, key: bytes | None) -> None:
        raise NotImplementedError

    @property
    def public_key(self) -> bytes | None:
        """What belongs to the private key."""
        raise NotImplementedError

    def up(self) -> None:
        """Starts: timers run, and peers with a persistent keepalive send one."""
        raise NotImplementedError

    def down(self) -> None:
        """Stops: forgets all sessions, timers and packets that wait, and ignores what comes. Peers and routes stay."""
        raise NotImplementedError

    def add_peer(self, public_key: bytes) -> Peer:
        """The peer with this key, made if there is none.

        Raises:
            ValueError: *public_key* is not 32 bytes, or is our own.
        """
        raise NotImplementedError

    def remove_peer(self, public_key: bytes) -> None:
        """Forgets a peer, its sessions and its routes. Nothing happens where there is none."""
        raise NotImplementedError

    def outbound(self, packets: list[bytes], now: float) -> Sends:
        """IP packets from the TUN interface become datagrams, each peer's in order."""
        raise NotImplementedError

    def inbound(self, datagrams: list[tuple[bytes, Address]], now: float) -> tuple[list[bytes], Sends]:
        """Datagrams from the socket become IP packets for the TUN interface, and datagrams to send."""
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """When :meth:`expire` is to be called; None: not before something else was. It is never too late."""
        raise NotImplementedError

    def expire(self, now: float) -> Sends:
        """Does what is due, and gives what is to be sent, also because of changes of the configuration."""
        raise NotImplementedError
