"""How often an address may ask the administration, and fail to sign in: over all workers, as slowapi counts.

The counts are in Redis. Each worker counts for itself where there is none, and for as long as it is away: then an
address may do as much at every worker. The storage blocks, so that everything here but ``knows`` is for a thread. Not
here: when it is asked (``admin.guard``).
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import TypeVar

from limits import RateLimitItem, parse
from limits.strategies import RateLimiter
from slowapi import Limiter

from meterhouse.errors import RateLimited
from meterhouse.keys.throttle import MOST_ADDRESSES, network_of

MOST_GOOD = 1_000
"""Credentials that a worker remembers to have been good; the one longest unused is forgotten."""
GOOD_SECONDS = 86_400
"""For so long all workers remember one that was good at any of them."""
TOLD_SECONDS = 3_600
"""After so long the others are told again of one that is in use."""
AWAY_SECONDS = 2.0
"""How long Redis is not asked again after it did not answer."""
_T = TypeVar("_T")


class Shared:
    """The counts of all workers, while Redis answers."""

    def __init__(self, open_limiter: Callable[[], RateLimiter], failures: tuple[type[Exception], ...]) -> None:
        """Take what connects, which may be asked again and again, and what it and the limiter raise without Redis."""
        self._open = open_limiter
        self._failures = failures
        self._limiter: RateLimiter | None = None
        self._away_until = 0.0

    @property
    def is_away(self) -> bool:
        """Whether Redis did not answer lately."""
        return time.monotonic() < self._away_until

    def ask(self, question: Callable[[RateLimiter], _T]) -> _T | None:
        """Return the answer, which is never None; None while Redis is away."""
        if self.is_away:
            return None
        try:
            if self._limiter is None:
                self._limiter = self._open()
            return question(self._limiter)
        except self._failures:
            self._away_until = time.monotonic() + AWAY_SECONDS
            return None


class AdminLimiter:
    """Counts requests and failed sign-ins per address, in slowapi's grammar (``300/minute``).

    Failures close an address only to credentials that were not good here before: many people share the address of a
    console or an office, and one who guesses there locks nobody out. What passes is verified all the same. An IPv6
    network of 64 bits is one address. In a worker's own memory, of more than ``MOST_ADDRESSES`` the one longest unseen
    is forgotten; in Redis each ends with its window.
    """

    def __init__(self, rate: str, failure_rate: str, shared: Shared | None = None) -> None:
        """Take the rates, and where all workers count; None: there is one worker."""
        self._local = Limiter(key_func=str, storage_uri="memory://").limiter
        self._shared = shared
        self._rate = parse(rate)
        self._failure_rate = parse(failure_rate)
        self._good: OrderedDict[bytes, float] = OrderedDict()
        """Digests of headers, and when the other workers were told of each."""
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = Lock()

    @property
    def is_alone(self) -> bool:
        """Whether this worker counts for itself because Redis is away."""
        return self._shared is not None and self._shared.is_away

    def admit(self, address: str, authorization: str | None = None) -> None:
        """Count a request.

        Raises:
            RateLimited: The address sent too many, or failed to sign in too often.
        """
        network = self._see(address)
        is_open = self._ask(lambda limiter: limiter.test(self._failure_rate, "failures", network))
        if not is_open and not self._was_good(_digest(authorization)):
            raise self._refuse(self._failure_rate, "failures", network, "Too many failed sign-ins from this address.")
        if not self._ask(lambda limiter: limiter.hit(self._rate, "requests", network)):
            raise self._refuse(self._rate, "requests", network, "Too many administration requests from this address.")

    def note_failure(self, address: str, authorization: str | None = None) -> None:
        """Count a failed sign-in."""
        digest, network = _digest(authorization), self._see(address)
        with self._lock:
            self._good.pop(digest, None)
        self._ask(lambda limiter: limiter.hit(self._failure_rate, "failures", network))
        if self._shared is not None:
            self._shared.ask(partial(_forget, _good_key(digest)))

    def knows(self, authorization: str | None) -> bool:
        """Say whether ``note_good`` need not be told of a credential; does not block."""
        digest = _digest(authorization)
        with self._lock:
            told_at = self._good.get(digest)
            if told_at is None or time.monotonic() - told_at > TOLD_SECONDS:
                return False
            self._good.move_to_end(digest)
        return True

    def note_good(self, authorization: str | None) -> None:
        """Remember a credential that was good, at every worker."""
        digest = _digest(authorization)
        with self._lock:
            self._good[digest] = time.monotonic()
            self._good.move_to_end(digest)
            if len(self._good) > MOST_GOOD:
                self._good.popitem(last=False)
        if self._shared is not None:
            self._shared.ask(partial(_remember, _good_key(digest)))

    def _was_good(self, digest: bytes) -> bool:
        with self._lock:
            if digest in self._good:
                return True
        return self._shared is not None and bool(
            self._shared.ask(lambda limiter: limiter.storage.get(_good_key(digest)) > 0)
        )

    def _ask(self, question: Callable[[RateLimiter], _T]) -> _T:
        answer = None if self._shared is None else self._shared.ask(question)
        return question(self._local) if answer is None else answer

    def _see(self, address: str) -> str:
        """Return what an address is counted as, and make room for it in this worker's memory."""
        network = network_of(address)
        with self._lock:
            self._seen[network] = None
            self._seen.move_to_end(network)
            if len(self._seen) > MOST_ADDRESSES:
                oldest, _ = self._seen.popitem(last=False)
                self._local.clear(self._rate, "requests", oldest)
                self._local.clear(self._failure_rate, "failures", oldest)
        return network

    def _refuse(self, rate: RateLimitItem, name: str, network: str, message: str) -> RateLimited:
        reset_at_seconds = self._ask(lambda limiter: limiter.get_window_stats(rate, name, network).reset_time)
        wait = max(1.0, reset_at_seconds - time.time())
        return RateLimited(f"{message} Try again in {wait:.0f} seconds.", retry_after_seconds=wait)


def _digest(authorization: str | None) -> bytes:
    return hashlib.sha256((authorization or "").encode()).digest()


def _forget(key: str, limiter: RateLimiter) -> bool:
    limiter.storage.clear(key)
    return True


def _remember(key: str, limiter: RateLimiter) -> int:
    limiter.storage.clear(key)  # it ends so long after it was made
    return limiter.storage.incr(key, GOOD_SECONDS)


def _good_key(digest: bytes) -> str:
    return f"good/{digest.hex()}"
