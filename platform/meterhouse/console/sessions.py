"""Who is signed in. The secret stays here; the browser has the id of a session in a cookie, and a token for its forms.

Invariant: sessions are bounded in number, in idle time and in all; an id is found by its hash. Not here: whether a
secret is good (the gateway says so), cookies (``app``).
"""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

IDLE_SECONDS = 1_800.0
LONGEST_SECONDS = 43_200.0
MOST_SESSIONS = 1_000
MOST_FAILURES = 10
MOST_FAILURES_IN_ALL = 15
"""Of all addresses; then one that has failed waits. Below the gateway's default for the one address of the console."""
FAILURE_SECONDS = 60.0
MOST_ADDRESSES = 10_000

Role = Literal["operator", "owner", "reader", "tenant"]
"""What somebody may do: the first three administrate, a tenant's key has pages of its own."""


@dataclass(slots=True)
class Session:
    """One sign-in."""

    secret: str = field(repr=False)
    role: Role
    form_token: str = field(repr=False)
    """What a page must send with everything that changes something."""
    began_at: float
    used_at: float

    def has_token(self, value: str) -> bool:
        """Whether this is the token of its forms, compared in constant time."""
        return hmac.compare_digest(self.form_token.encode(), value.encode())


class Sessions:
    """The sessions of this process: they end with it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def open(self, secret: str, role: Role) -> tuple[str, Session]:
        """Begin a session; returns the value of its cookie. The one that was idle the longest makes room."""
        if len(self._sessions) >= MOST_SESSIONS:
            self._sessions.popitem(last=False)
        value = secrets.token_urlsafe(32)
        now = self._now()
        session = Session(secret, role, secrets.token_urlsafe(32), now, now)
        self._sessions[_digest(value)] = session
        return value, session

    def find(self, value: str, *, is_use: bool = True) -> Session | None:
        """Return the session of a cookie, unless it has ended by itself.

        Args:
            value: of the cookie.
            is_use: whether somebody is there; what a page does by itself keeps no session open.
        """
        digest = _digest(value)
        session = self._sessions.get(digest)
        if session is None:
            return None
        now = self._now()
        if now - session.used_at > IDLE_SECONDS or now - session.began_at > LONGEST_SECONDS:
            del self._sessions[digest]
            return None
        if is_use:
            session.used_at = now
            self._sessions.move_to_end(digest)
        return session

    def close(self, value: str) -> None:
        """End a session."""
        self._sessions.pop(_digest(value), None)


class Throttle:
    """Counts failed sign-ins per address: the gateway sees all of them come from the console."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._failures: OrderedDict[str, list[float]] = OrderedDict()
        self._in_all: list[float] = []

    def wait_seconds(self, address: str) -> float:
        """Return how long an address must wait before it may try again; 0: not at all."""
        recent = self._recent(address)
        is_storm = len(self._in_all) == MOST_FAILURES_IN_ALL and self._in_all[0] > self._now() - FAILURE_SECONDS
        most = 1 if is_storm else MOST_FAILURES
        return 0.0 if len(recent) < most else max(0.0, recent[0] + FAILURE_SECONDS - self._now())

    def note_failure(self, address: str) -> None:
        """Count a failed sign-in."""
        recent = self._recent(address)
        recent.append(self._now())
        self._in_all = [*self._in_all, self._now()][-MOST_FAILURES_IN_ALL:]
        self._failures[address] = recent[-MOST_FAILURES:]
        self._failures.move_to_end(address)
        if len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)

    def _recent(self, address: str) -> list[float]:
        since = self._now() - FAILURE_SECONDS
        return [at for at in self._failures.get(address, ()) if at > since]


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode()).digest()
