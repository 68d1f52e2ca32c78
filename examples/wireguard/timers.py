"""The timers of a peer, and the constants of the whitepaper (section 6).

The rules are those of the whitepaper, as the kernel and wireguard-go implement them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .schedule import NEVER, Schedule

REKEY_AFTER_MESSAGES = 2**60
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1
#: In seconds, as all that follow.
REKEY_AFTER_TIME = 120.0
REJECT_AFTER_TIME = 180.0
REKEY_ATTEMPT_TIME = 90.0
REKEY_TIMEOUT = 5.0
KEEPALIVE_TIMEOUT = 10.0
#: Retries and new handshakes are delayed by a random time below this, so that two peers do not always begin at once.
JITTER = 0.334
#: The kernel and wireguard-go do not measure REKEY_ATTEMPT_TIME, but count retries up to this number.
MAX_RETRIES = int(REKEY_ATTEMPT_TIME / REKEY_TIMEOUT)
#: The shortest time between two initiations of one peer. An earlier one is dropped.
INITIATION_INTERVAL = 1 / 50

#: The timers of a peer, as indices into its deadlines:
#: send the initiation again; answer data with a keepalive; data was sent and nothing came back; forget all keys; the
#: persistent keepalive.
RETRANSMIT, KEEPALIVE, NEW_HANDSHAKE, FORGET, PERSISTENT = range(5)


class Actor(Protocol):
    """The methods of a peer that its timers call."""

    def send_keepalive(self, now: float, /) -> None: ...
    def try_again(self, now: float, /) -> None:
        """Called when the handshake that was begun is not complete."""

    def give_up(self) -> None:
        """Called when the handshake is not complete after all retries."""

    def begin_anew(self, now: float, /) -> None:
        """Called when data was sent and nothing came back."""

    def forget_keys(self) -> None:
        """Called when there was no new session for a long time."""


class Timers:
    """The five timers of one peer. The peer reports each event by calling the method of that name."""

    __slots__ = (
        "_actor",
        "_attempts",
        "_deadlines",
        "_needs_another_keepalive",
        "_rng",
        "_schedule",
        "persistent",
        "turn",
    )

    def __init__(self, actor: Actor, schedule: Schedule[Timers], rng: Callable[[int], bytes]) -> None:
        #: The time of the next check. Only the schedule changes it.
        self.turn = NEVER
        #: Seconds between persistent keepalives; 0 means none.
        self.persistent = 0
        self._actor = actor
        self._schedule = schedule
        self._rng = rng
        self.clear()

    def clear(self) -> None:
        """Stops all timers."""
        self._schedule.remove(self)
        self._deadlines = [NEVER] * len(_HANDLERS)
        self._attempts = 0
        self._needs_another_keepalive = False

    # -- what happened -------------------------------------------------------------------------------------------------

    def data_sent(self, now: float) -> None:
        if self._deadlines[NEW_HANDSHAKE] == NEVER:
            self._set(NEW_HANDSHAKE, now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + self._jitter())

    def data_received(self, now: float) -> None:
        if self._deadlines[KEEPALIVE] == NEVER:
            self._set(KEEPALIVE, now + KEEPALIVE_TIMEOUT)
        else:
            self._needs_another_keepalive = True

    def authenticated_sent(self, now: float) -> None:
        self._deadlines[KEEPALIVE] = NEVER
        self._traversed(now)

    def authenticated_received(self, now: float) -> None:
        self._deadlines[NEW_HANDSHAKE] = NEVER
        self._traversed(now)

    def handshake_wanted(self) -> None:
        """A handshake was begun, and not as a retry."""
        self._attempts = 0

    def handshake_begun(self, now: float) -> None:
        self._set(RETRANSMIT, now + REKEY_TIMEOUT + self._jitter())

    def handshake_put_off(self, since: float) -> None:
        """What waits is tried again or given up in time, also when no other packet comes to remind us."""
        if self._deadlines[RETRANSMIT] == NEVER:
            self.handshake_begun(since)

    def handshake_completed(self) -> None:
        self._deadlines[RETRANSMIT] = NEVER

    def session_derived(self, now: float) -> None:
        self._set(FORGET, now + 3 * REJECT_AFTER_TIME)

    def _traversed(self, now: float) -> None:
        if self.persistent:
            self._set(PERSISTENT, now + self.persistent)

    # -- what is due ---------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """Does what is due, the longest due first.

        The timer that forgets keys runs first: after a long sleep of the machine, it would otherwise also forget a
        handshake that another timer has just begun.
        """
        deadlines = self._deadlines
        while (when := min(deadlines)) <= now:
            timer = FORGET if deadlines[FORGET] <= now else deadlines.index(when)
            deadlines[timer] = NEVER
            _HANDLERS[timer](self, now)
        self._schedule.add(when, self)

    def _on_retransmit(self, now: float) -> None:
        if self._attempts <= MAX_RETRIES:
            self._attempts += 1
            self._actor.try_again(now)
            return
        self._deadlines[KEEPALIVE] = NEVER
        self._actor.give_up()
        if self._deadlines[FORGET] == NEVER:
            self._set(FORGET, now + 3 * REJECT_AFTER_TIME)

    def _on_keepalive(self, now: float) -> None:
        self._actor.send_keepalive(now)
        if self._needs_another_keepalive:
            self._needs_another_keepalive = False
            self._set(KEEPALIVE, now + KEEPALIVE_TIMEOUT)

    def _on_new_handshake(self, now: float) -> None:
        self._actor.begin_anew(now)

    def _on_forget(self, now: float) -> None:
        self._actor.forget_keys()

    def _on_persistent(self, now: float) -> None:
        if self.persistent:
            self._actor.send_keepalive(now)

    def _set(self, timer: int, when: float) -> None:
        self._deadlines[timer] = when
        self._schedule.add(when, self)

    def _jitter(self) -> float:
        return int.from_bytes(self._rng(2)) / 0x10000 * JITTER


#: By timer.
_HANDLERS = (
    Timers._on_retransmit,
    Timers._on_keepalive,
    Timers._on_new_handshake,
    Timers._on_forget,
    Timers._on_persistent,
)
