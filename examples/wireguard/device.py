"""The WireGuard device without input and output: it turns IP packets into datagrams, and datagrams into IP packets.

The time is an argument of methods that are called often. Times are in seconds, of any clock that never goes back.
CLOCK_BOOTTIME also counts while the machine sleeps, so that keys expire meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from . import cookie, cryptokey
from .drops import Drops
from .noise import (
    COOKIE_REPLY,
    INITIATION,
    INITIATION_SIZE,
    NO_KEY,
    RESPONSE,
    RESPONSE_SIZE,
    TRANSPORT,
    HandshakeError,
    Identity,
    Responder,
)
from .peer import Address, Peer, Sends
from .routes import Routes
from .schedule import Schedule
from .session import Session
from .timers import Timers

_HANDSHAKES = {INITIATION: INITIATION_SIZE, RESPONSE: RESPONSE_SIZE, COOKIE_REPLY: cookie.COOKIE_REPLY_SIZE}


class Device:
    """All peers, the routes to them, and our own key. It is down until :meth:`up` is called."""

    def __init__(
        self,
        *,
        now: Callable[[], float],
        rng: Callable[[int], bytes] = os.urandom,
        wall_clock: Callable[[], int] = time.time_ns,
        source: Callable[[Address], tuple[bytes, bytes]] | None = None,
        without_local: Callable[[Address], Address] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """A device without a key and without peers.

        Args:
            now: Returns the time. It is used for changes of the configuration, which have no time argument.
            rng: Returns this many random bytes. Ephemeral private keys are ``rng(32)``.
            wall_clock: Returns nanoseconds since the epoch, for the timestamps of handshakes.
            source: Returns two parts of an address as bytes: the host, for rate limits; and host and port, to which a
                cookie is bound. By default, an address must be a tuple that begins with the host.
            without_local: Returns the address without our own local address. It is used if a peer does not answer.
            log: Called with a line for each rare event, such as handshakes and removed keys, but never for strangers.
        """
        #: Peers by public key. Read only: use add_peer and remove_peer to change it.
        self.peers: dict[bytes, Peer] = {}
        self.routes: Routes[Peer] = Routes()
        #: MTU of the interface in bytes: padding does not exceed it. 0 means unknown.
        self.mtu = 0
        #: For the UAPI and for the owner of the socket; this module does not use them.
        self.listen_port = 0
        self.fwmark = 0
        self.drops = Drops()
        self.now = now
        self.rng = rng
        self.wall_clock = wall_clock
        self.without_local = without_local or _unchanged
        self.log = log or _ignore
        #: The following attributes are for peers.
        self.running = False
        self.schedule: Schedule[Timers] = Schedule()
        self.outbox: Sends = []
        self.identity: Identity | None = None
        self.receivers: dict[bytes, tuple[Peer, Session | None]] = {}
        self._source = source or _source
        self._macs: cookie.Receiver | None = None
        self._load = cookie.Load()
        self._hosts = cookie.HostLimit()

    # -- configuration -------------------------------------------------------------------------------------------------

    @property
    def private_key(self) -> bytes | None:
        """The private key of 32 bytes, or None. Setting 32 zero bytes means None.

        A new key removes a peer that has the same key. Existing sessions still receive, but sending begins a handshake.
        """
        return None if self.identity is None else self.identity.private_key

    @private_key.setter
    def private_key(self, key: bytes | None) -> None:
        if key == NO_KEY:
            key = None
        if key == self.private_key:
            return
        was_without = self.identity is None
        self.identity = identity = None if key is None else Identity(key)
        self._macs = None if identity is None else cookie.Receiver(identity.public_key, self.rng)
        if identity is not None:
            self.remove_peer(identity.public_key)
        for peer in self.peers.values():
            peer.distrust()
            if identity is not None and was_without:
                peer.keep_alive(self.now())

    @property
    def public_key(self) -> bytes | None:
        """The public key of the private key."""
        return None if self.identity is None else self.identity.public_key

    def add_peer(self, public_key: bytes) -> Peer:
        """Returns the peer with this key. It is created if it does not exist.

        Raises:
            ValueError: *public_key* is not 32 bytes, or is our own.
        """
        if len(public_key) != 32:
            raise ValueError(f"a public key must have 32 bytes, not {len(public_key)}")
        if public_key == self.public_key:
            raise ValueError("a peer must not have the device's own public key")
        if public_key not in self.peers:
            self.peers[public_key] = Peer(public_key, self)
        return self.peers[public_key]

    def remove_peer(self, public_key: bytes) -> None:
        """Removes a peer, its sessions and its routes. Does nothing if the peer does not exist."""
        peer = self.peers.pop(public_key, None)
        if peer is not None:
            self.routes.remove_peer(peer)
            peer.stop()

    def up(self) -> None:
        """Starts the device: timers run, and peers with a persistent keepalive send one."""
        if not self.running:
            self.running = True
            for peer in self.peers.values():
                peer.keep_alive(self.now())

    def down(self) -> None:
        """Stops the device: it forgets sessions, timers and waiting packets, and ignores input. Peers and routes stay."""
        self.running = False
        for peer in self.peers.values():
            peer.stop()
        self.outbox.clear()

    # -- packets -------------------------------------------------------------------------------------------------------

    def outbound(self, packets: Sequence[bytes], now: float) -> Sends:
        """Turns IP packets from the TUN interface into datagrams, in order for each peer.

        Packets that wait for a handshake are sent by a later call. Packets without a route are dropped and counted.
        """
        for peer, batch in cryptokey.by_peer(packets, self.routes.lookup, self.drops).items():
            peer.send(batch, now)
        return self._sends()

    def inbound(self, datagrams: Sequence[tuple[bytes, Address]], now: float) -> tuple[list[bytes], Sends]:
        """Turns datagrams from the socket into IP packets for the TUN interface, and datagrams to send.

        Datagrams that are not authentic change no session, peer or timer, and are counted.
        """
        packets: list[bytes] = []
        if not self.running:
            return packets, self._sends()
        run: list[bytes] = []
        last_prefix: bytes | None = None
        receiver, last_source = b"", None
        for datagram, source in datagrams:
            prefix = datagram[:8]
            if prefix != last_prefix or source != last_source:
                if run:
                    packets += self._receive(receiver, run, last_source, now)
                    run = []
                if prefix[:4] != TRANSPORT:
                    self._receive_handshake(datagram, source, now)
                    continue
                last_prefix, receiver, last_source = prefix, prefix[4:], source
            run.append(datagram)
        if run:
            packets += self._receive(receiver, run, last_source, now)
        return packets, self._sends()

    # -- time ----------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When :meth:`expire` must be called. None: not before another method was called. It may be a little early."""
        return self.now() if self.outbox else self.schedule.next()

    def expire(self, now: float) -> Sends:
        """Runs the timers that are due. Returns datagrams to send, also those caused by changes of the configuration."""
        while (timers := self.schedule.pop(now)) is not None:
            timers.expire(now)
        return self._sends()

    # ------------------------------------------------------------------------------------------------------------------

    def _sends(self) -> Sends:
        sends, self.outbox = self.outbox, []
        return sends

    def _receive(self, receiver: bytes, datagrams: list[bytes], source: Address, now: float) -> list[bytes]:
        peer, session = self.receivers.get(receiver, (None, None))
        if peer is None or session is None:
            self.drops.unknown_receiver += len(datagrams)
        elif session.is_expired(now):
            self.drops.expired += len(datagrams)
        else:
            return peer.receive(session, datagrams, source, now)
        return []

    def _receive_handshake(self, message: bytes, source: Address, now: float) -> None:
        kind, drops = message[:4], self.drops
        if _HANDSHAKES.get(kind) != len(message):
            drops.malformed += 1
        elif kind == COOKIE_REPLY:
            peer, _ = self.receivers.get(message[4:8], (None, None))
            if peer is None:
                drops.unknown_receiver += 1
            elif not peer.receive_cookie(message, now):
                drops.forged += 1
        elif self.identity is None or self._macs is None or not self._macs.knows_us(message):
            drops.forged += 1
        elif self._load.add(now) and not self._is_admitted(self._macs, message, source, now):
            drops.over_rate += 1
        else:
            try:
                if kind == INITIATION:
                    self._receive_initiation(self.identity, message, source, now)
                else:
                    self._receive_response(message, source, now)
            except HandshakeError:
                drops.forged += 1

    def _is_admitted(self, macs: cookie.Receiver, message: bytes, source: Address, now: float) -> bool:
        """Under load: whether *message* gets a real answer, and not only a cookie."""
        host, whole = self._source(source)
        if macs.is_reachable(message, whole, now):
            return self._hosts.allow(host, now)
        self.outbox.append((source, [macs.reply(message, whole, now)]))
        return False

    def _receive_initiation(self, identity: Identity, message: bytes, source: Address, now: float) -> None:
        responder = Responder(identity, message)
        peer = self.peers.get(responder.remote)
        if peer is None:
            raise HandshakeError("the sender is not a peer")
        peer.receive_initiation(responder, len(message), source, now)

    def _receive_response(self, message: bytes, source: Address, now: float) -> None:
        peer, session = self.receivers.get(message[8:12], (None, None))
        if peer is None or session is not None:
            self.drops.unknown_receiver += 1
        else:
            peer.receive_response(message, source, now)


def _source(address: Address) -> tuple[bytes, bytes]:
    if not isinstance(address, tuple):
        raise TypeError(
            f"an address must be a tuple that begins with the host, not {address!r}: or pass Device(source=…)"
        )
    return repr(address[0]).encode(), repr(address).encode()


def _unchanged(address: Address) -> Address:
    return address


def _ignore(line: str) -> None:
    pass
