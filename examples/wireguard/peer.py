"""One peer: its sessions, and the packets that wait for a handshake.

The rules are those of the whitepaper (section 6), as the kernel and wireguard-go implement them.
"""

from __future__ import annotations

import base64
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from . import cookie, cryptokey
from .drops import Drops
from .noise import NO_KEY, HandshakeError, Identity, Initiator, Responder, tai64n
from .routes import Routes
from .schedule import Schedule
from .session import KEEPALIVE_SIZE, Session
from .sessions import Sessions
from .timers import (
    INITIATION_INTERVAL,
    KEEPALIVE_TIMEOUT,
    MAX_RETRIES,
    REJECT_AFTER_TIME,
    REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    Timers,
)

#: The address of a datagram's sender, as the UDP socket returns it: any hashable object.
Address: TypeAlias = Any
#: Datagrams to send, in order: each list goes to one address, with one call.
Sends: TypeAlias = list[tuple[Address, list[bytes]]]

#: How many packets wait for a handshake. If there are more, the newest are kept.
STAGED = 128


class Host(Protocol):
    """The attributes and methods of the device that a peer uses."""

    running: bool
    mtu: int
    drops: Drops
    routes: Routes[Peer]
    schedule: Schedule[Timers]
    outbox: Sends
    identity: Identity | None
    #: The peer and session of a datagram, by its receiver index. Without a session, it belongs to the peer's handshake.
    receivers: dict[bytes, tuple[Peer, Session | None]]

    @property
    def now(self) -> Callable[[], float]: ...
    @property
    def rng(self) -> Callable[[int], bytes]: ...
    @property
    def wall_clock(self) -> Callable[[], int]: ...
    @property
    def without_local(self) -> Callable[[Address], Address]: ...
    def log(self, line: str, /) -> None: ...


class Peer:
    """One peer of a :class:`~wireguard.device.Device`, which makes it.

    Setting an attribute takes effect at once. If datagrams have to be sent then, the next ``Device.expire()`` returns
    them, and ``Device.next_deadline()`` returns the current time.
    """

    __slots__ = (
        "_cookies",
        "_endpoint",
        "_handshake",
        "_handshake_index",
        "_host",
        "_initiated",
        "_is_last_minute",
        "_last_consumed",
        "_last_timestamp",
        "_sessions",
        "_staged",
        "_static_shared",
        "_timers",
        "last_handshake",
        "preshared_key",
        "public_key",
        "rx_bytes",
        "tx_bytes",
    )

    def __init__(self, public_key: bytes, host: Host) -> None:
        self.public_key = public_key
        #: 32 bytes; zeros mean none. The next handshake uses it.
        self.preshared_key = NO_KEY
        #: Bytes of all datagrams, including handshakes and keepalives, without UDP and IP headers.
        self.rx_bytes = 0
        self.tx_bytes = 0
        #: When the last handshake was completed, in nanoseconds since the epoch; 0 means never.
        self.last_handshake = 0
        self._host = host
        self._timers = Timers(self, host.schedule, host.rng)
        self._endpoint: Address | None = None
        self._cookies = cookie.Sender(public_key)
        self._static_shared: bytes | None = None
        self._staged: deque[bytes] = deque(maxlen=STAGED)
        self._sessions = Sessions(self._forget)
        #: The handshake that we began and that was not answered yet.
        self._handshake: Initiator | None = None
        self._handshake_index = b""
        #: The timestamp of the newest initiation. It is kept as long as the peer exists, to detect replays.
        self._last_timestamp = b""
        self._last_consumed = -math.inf
        self._reset()

    def __str__(self) -> str:
        """The name of the peer in the log of wireguard-go."""
        text = base64.b64encode(self.public_key).decode()
        return f"peer({text[:4]}…{text[39:43]})"

    # -- configuration -------------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> Address | None:
        """The destination of datagrams: configured, or the sender of the newest authentic one. None: unknown."""
        return self._endpoint

    @endpoint.setter
    def endpoint(self, address: Address | None) -> None:
        was_unknown, self._endpoint = self._endpoint is None, address
        if address is not None:
            self._send_staged(self._host.now())
            if was_unknown:
                self.keep_alive(self._host.now())

    @property
    def persistent_keepalive(self) -> int:
        """Seconds between persistent keepalives, 1 to 65535; 0 means none. Setting it sends one at once."""
        return self._timers.persistent

    @persistent_keepalive.setter
    def persistent_keepalive(self, seconds: int) -> None:
        was_off, self._timers.persistent = not self._timers.persistent, seconds
        if was_off and seconds:
            self.send_keepalive(self._host.now())

    # -- packets -------------------------------------------------------------------------------------------------------

    def send(self, packets: Sequence[bytes], now: float) -> None:
        """Sends waiting packets and *packets*, or lets all wait for a handshake. An empty packet is a keepalive."""
        host, session = self._host, self._sessions.current
        if not host.running:
            return
        if self._staged:
            packets = [*self._staged, *packets]
            self._staged.clear()
        if session is None or not session.can_send(now):
            self._stage(packets)
            self._initiate(now)
            return
        datagrams = session.seal(packets, host.mtu)
        if len(datagrams) < len(packets):
            self._stage(packets[len(datagrams) :])
        self._timers.authenticated_sent(now)
        self._post(datagrams)
        if any(packets):
            self._timers.data_sent(now)
        is_old = session.is_initiator and now >= session.created + REKEY_AFTER_TIME
        if is_old or session.sent > REKEY_AFTER_MESSAGES:
            self._initiate(now)

    def send_keepalive(self, now: float) -> None:
        """Sends waiting packets, or an empty one if none wait. Begins a handshake if there is no session."""
        self.send(() if self._staged else (b"",), now)

    def receive(self, session: Session, datagrams: Sequence[bytes], source: Address, now: float) -> list[bytes]:
        """The IP packets in *datagrams*, all of which came from *source* for *session*."""
        host = self._host
        packets = session.open(datagrams, host.drops)
        if not packets:
            return packets
        self.rx_bytes += sum(map(len, packets)) + KEEPALIVE_SIZE * len(packets)
        self._endpoint = source
        if session is self._sessions.next:
            self._sessions.confirm_next()
            self._on_handshake_complete()
            self._send_staged(now)
        self._keep_fresh(now)
        self._timers.authenticated_received(now)
        if any(packets):
            self._timers.data_received(now)
        return cryptokey.allowed(packets, self, host.routes.lookup, host.drops)

    # -- handshakes ----------------------------------------------------------------------------------------------------

    def receive_initiation(self, responder: Responder, size: int, source: Address, now: float) -> None:
        """Answers an initiation of *size* bytes that claims to be this peer's.

        Raises:
            HandshakeError: The initiation is not from this peer. Nothing was changed.
        """
        host = self._host
        timestamp = responder.timestamp(self._shared())
        if timestamp <= self._last_timestamp:
            host.drops.replayed += 1
            return
        if now <= self._last_consumed + INITIATION_INTERVAL:
            host.drops.over_rate += 1
            return
        index = self._new_index()
        message, keys = responder.respond(self.preshared_key, ephemeral=host.rng(32), sender=index)
        self._last_timestamp, self._last_consumed = timestamp, now
        self.rx_bytes += size
        self._endpoint = source
        self._timers.authenticated_received(now)
        self._drop_handshake()
        session = Session(keys, index, responder.sender, is_initiator=False, now=now)
        host.receivers[index] = self, session
        self._sessions.add_answered(session)
        self._initiated = now
        self._timers.session_derived(now)
        self._timers.authenticated_sent(now)
        host.log(f"{self} - Received handshake initiation, sending handshake response")
        self._post([self._cookies.seal(message, now)])

    def receive_response(self, message: bytes, source: Address, now: float) -> None:
        """Completes the handshake that *message* answers.

        Raises:
            HandshakeError: *message* does not answer the running handshake. Nothing was changed.
        """
        if self._handshake is None:
            raise HandshakeError("the peer answers a handshake that is not running")
        remote_index, keys = self._handshake.finish(message, self.preshared_key)
        self._endpoint = source
        self.rx_bytes += len(message)
        self._timers.authenticated_received(now)
        session = Session(keys, self._handshake_index, remote_index, is_initiator=True, now=now)
        self._host.receivers[session.index] = self, session
        self._handshake = None
        self._sessions.add_begun(session)
        self._timers.session_derived(now)
        self._on_handshake_complete()
        self._host.log(f"{self} - Received handshake response")
        self.send_keepalive(now)

    def receive_cookie(self, message: bytes, now: float) -> bool:
        """Stores the cookie if it answers the last handshake message that was sent. Returns whether it does."""
        return self._cookies.consume(message, now)

    def _initiate(self, now: float, *, is_retry: bool = False) -> None:
        """Begins a handshake, unless one was begun or answered recently."""
        host = self._host
        if not is_retry:
            self._timers.handshake_wanted()
        is_too_early = now < self._initiated + REKEY_TIMEOUT
        if is_too_early or host.identity is None or self._endpoint is None:
            if self._staged:
                self._timers.handshake_put_off(self._initiated if is_too_early else now)
            return
        self._initiated = now
        self._drop_handshake()
        index = self._new_index()
        try:
            self._handshake = Initiator(
                host.identity,
                self.public_key,
                self._shared(),
                ephemeral=host.rng(32),
                sender=index,
                timestamp=tai64n(host.wall_clock()),
            )
        except HandshakeError as error:
            host.log(f"{self} - Cannot begin a handshake: {error}")
            return
        self._handshake_index = index
        host.receivers[index] = self, None
        self._timers.authenticated_sent(now)
        host.log(f"{self} - Sending handshake initiation")
        self._post([self._cookies.seal(self._handshake.message, now)])
        self._timers.handshake_begun(now)

    def _on_handshake_complete(self) -> None:
        self._timers.handshake_completed()
        self._is_last_minute = False
        self.last_handshake = self._host.wall_clock()

    def _keep_fresh(self, now: float) -> None:
        """Renews a session that receives and will expire soon. Only once: the peer may not answer."""
        session = self._sessions.current
        if session is None or not session.is_initiator or self._is_last_minute:
            return
        if now >= session.created + REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT:
            self._is_last_minute = True
            self._initiate(now)

    # -- for the timers ------------------------------------------------------------------------------------------------

    def try_again(self, now: float) -> None:
        """Repeats a handshake that was not answered."""
        self._forget_local()
        self._initiate(now, is_retry=True)

    def give_up(self) -> None:
        """Drops the waiting packets."""
        self._host.log(f"{self} - Handshake did not complete after {MAX_RETRIES + 2} attempts, giving up")
        self._drop_staged()

    def begin_anew(self, now: float) -> None:
        """Begins a handshake: the peer may have lost its session, or its address may have changed."""
        self._host.log(f"{self} - Beginning a handshake because nothing came back")
        self._forget_local()
        self._initiate(now)

    def forget_keys(self) -> None:
        """Removes all keys, which are too old."""
        self._host.log(f"{self} - Removing all keys, there was no new one in {3 * REJECT_AFTER_TIME:.0f} seconds")
        self._forget_all()

    # -- begin and end -------------------------------------------------------------------------------------------------

    def keep_alive(self, now: float) -> None:
        """Starts persistent keepalives, if set. Called when the device is up, has a key, or knows the endpoint."""
        if self.persistent_keepalive:
            self.send_keepalive(now)

    def stop(self) -> None:
        """Resets all but configuration and counters. Called when the device is down or the peer was removed."""
        self._forget_all()
        self._timers.clear()
        self._reset()

    def distrust(self) -> None:
        """Handles a change of our own key: sessions still receive, but sending needs a new one."""
        self._static_shared = None
        self._drop_handshake()
        self._initiated = -math.inf
        self._sessions.wear_out()

    def _reset(self) -> None:
        #: When we last began or answered a handshake.
        self._initiated = -math.inf
        self._is_last_minute = False

    def _forget_all(self) -> None:
        self._sessions.clear()
        self._drop_handshake()
        self._drop_staged()

    def _forget(self, session: Session) -> None:
        """Forgets the index of *session*: datagrams for it are not accepted any more."""
        del self._host.receivers[session.index]

    def _drop_handshake(self) -> None:
        if self._handshake is not None:
            del self._host.receivers[self._handshake_index]
            self._handshake = None

    # -- small parts ---------------------------------------------------------------------------------------------------

    def _send_staged(self, now: float) -> None:
        if self._staged:
            self.send((), now)

    def _stage(self, packets: Sequence[bytes]) -> None:
        self._host.drops.queue_full += max(0, len(self._staged) + len(packets) - STAGED)
        self._staged.extend(packets)

    def _drop_staged(self) -> None:
        self._host.drops.queue_full += len(self._staged)
        self._staged.clear()

    def _post(self, datagrams: list[bytes]) -> None:
        if self._endpoint is None:
            self._host.drops.no_endpoint += len(datagrams)
            return
        self.tx_bytes += sum(map(len, datagrams))
        self._host.outbox.append((self._endpoint, datagrams))

    def _forget_local(self) -> None:
        """Lets the kernel choose our own address: the one that the peer used may not work any more."""
        if self._endpoint is not None:
            self._endpoint = self._host.without_local(self._endpoint)

    def _shared(self) -> bytes:
        if self._static_shared is None:
            if self._host.identity is None:
                raise HandshakeError("the device has no private key")
            self._static_shared = self._host.identity.shared(self.public_key)
        return self._static_shared

    def _new_index(self) -> bytes:
        """A new index of four bytes, by which the peer identifies our handshake or session."""
        while (index := self._host.rng(4)) in self._host.receivers:
            pass
        return index
