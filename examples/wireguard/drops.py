"""Counts dropped packets and datagrams. Input from unknown senders is only counted here, and never logged."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Drops:
    """How many packets and datagrams were dropped since the start, by reason."""

    malformed: int = 0  #: not a WireGuard message, or not an IP packet
    no_route: int = 0  #: an IP packet to an address that does not belong to a peer
    queue_full: int = 0  #: an IP packet that waited for a handshake: newer packets replaced it, or the handshake failed
    no_endpoint: int = 0  #: a datagram for a peer whose address is not known
    unknown_receiver: int = 0  #: no session or handshake has this index
    expired: int = 0  #: for a session that is too old
    forged: int = 0  #: does not authenticate
    replayed: int = 0  #: was received before, or is too old to know
    disallowed_source: int = 0  #: authentic, but the source of the inner IP packet does not belong to the peer
    over_rate: int = 0  #: a handshake message that was answered by a cookie, or came too soon
