"""The sessions of one peer, and how one follows another (whitepaper, section 6.3).

One is current: it sends. The one before it still receives, for what was under way. One that we answered is the next
until the peer uses it, which shows that the peer has its keys.
"""

from __future__ import annotations

from collections.abc import Callable

from .session import Session


class Sessions:
    """Three places for sessions. One that loses its place is forgotten."""

    __slots__ = ("_forget", "current", "next", "previous")

    def __init__(self, forget: Callable[[Session], None]) -> None:
        """*forget* is called with each session that has no place any more."""
        self._forget = forget
        self.previous: Session | None = None
        self.current: Session | None = None
        self.next: Session | None = None

    def add_begun(self, session: Session) -> None:
        """We began the handshake and the peer has answered: it can be used at once."""
        if self.next is not None:
            self._place(self.next, session, None)
        else:
            self._place(self.current, session, None)

    def add_answered(self, session: Session) -> None:
        """The peer began the handshake."""
        self._place(None, self.current, session)

    def confirm_next(self) -> None:
        """The peer has used the next one."""
        self._place(self.current, self.next, None)

    def clear(self) -> None:
        """All are forgotten."""
        self._place(None, None, None)

    def wear_out(self) -> None:
        """None sends any more; they still receive."""
        for session in (self.current, self.next):
            if session is not None:
                session.wear_out()

    def _place(self, previous: Session | None, current: Session | None, next_: Session | None) -> None:
        before = self.previous, self.current, self.next
        self.previous, self.current, self.next = after = previous, current, next_
        for session in before:
            if session is not None and session not in after:
                self._forget(session)
