"""What was thrown away. Whatever comes from strangers is counted here and makes no log line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Drops:
    """Packets and datagrams that were thrown away since the start, by reason."""

    malformed: int = 0  #: not a WireGuard message, or not an IP packet
    no_route: int = 0  #: an IP packet to an address that is no peer's
    queue_full: int = 0  #: an IP packet that waited for a handshake until newer ones came or the handshake was given up
    no_endpoint: int = 0  #: a datagram for a peer whose address is not known
    unknown_receiver: int = 0  #: no session or handshake has this index
    expired: int = 0  #: for a session that is too old
    forged: int = 0  #: does not authenticate
    replayed: int = 0  #: was received before, or is older than what is remembered
    disallowed_source: int = 0  #: authenticated, but the source of the IP packet inside is not the peer's
    over_rate: int = 0  #: a handshake that was answered by a cookie, or is one too many
