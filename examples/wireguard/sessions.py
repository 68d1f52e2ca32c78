"""The sessions of one peer: previous, current and next (whitepaper, section 6.3).

The current session sends. The previous one still receives datagrams that were on the way. A session that the peer began
is the next one until the peer uses it, which proves that the peer has its keys.
"""

from __future__ import annotations

from collections.abc import Callable

from .session import Session


class Sessions:
    """Up to three sessions. A session that is replaced is forgotten."""

    __slots__ = ("_forget", "current", "next", "previous")

    def __init__(self, forget: Callable[[Session], None]) -> None:
        """*forget* is called with each session that was replaced."""
        self._forget = forget
        self.previous: Session | None = None
        self.current: Session | None = None
        self.next: Session | None = None

    def add_begun(self, session: Session) -> None:
        """Adds a session that we began and the peer answered: it can be used at once."""
        if self.next is not None:
            self._place(self.next, session, None)
        else:
            self._place(self.current, session, None)

    def add_answered(self, session: Session) -> None:
        """Adds a session that the peer began."""
        self._place(None, self.current, session)

    def confirm_next(self) -> None:
        """Makes the next session the current one: the peer has used it."""
        self._place(self.current, self.next, None)

    def clear(self) -> None:
        """Forgets all sessions."""
        self._place(None, None, None)

    def wear_out(self) -> None:
        """Stops sending in all sessions. They still receive."""
        for session in (self.current, self.next):
            if session is not None:
                session.wear_out()

    def _place(self, previous: Session | None, current: Session | None, next_: Session | None) -> None:
        before = self.previous, self.current, self.next
        self.previous, self.current, self.next = after = previous, current, next_
        for session in before:
            if session is not None and session not in after:
                self._forget(session)
