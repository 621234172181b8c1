"""How deployments fare: a breaker each, and a budget for extra attempts. Per process; nothing here is shared.

Invariant: an open breaker lets one probe through at a time; a request that the provider refused, or that was
cancelled, says nothing about the deployment. An account that the provider does not accept takes its deployment out at
once. Not here: the order of a route as configured (``routes``).
"""

import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from meterhouse.errors import UpstreamAccount, UpstreamBusy, UpstreamError, UpstreamRefused
from meterhouse.providers.http_client import StaleConnection
from meterhouse.providers.provider import Deployment

CONSECUTIVE_FAILURES = 5
WINDOW_SECONDS = 30
MIN_ATTEMPTS = 20
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
FIRST_ACCOUNT_PAUSE_SECONDS = 60.0
LONGEST_ACCOUNT_PAUSE_SECONDS = 600.0
"""Nobody fills an account within seconds, and a provider may block who comes with a wrong key again and again."""
PROBE_LEASE_SECONDS = 60.0
"""A probe that never reported (its request was lost) is given up after this long."""
MAX_BREAKERS = 4_096
"""Callers can name any model of a provider, so the least recently used breakers are forgotten, closed ones first."""

_NEVER = -(1 << 40)
_NO_FAILURES = (UpstreamRefused, UpstreamBusy, StaleConnection)

Monotonic = Callable[[], float]
State = Literal["closed", "busy", "open", "account"]
"""``busy``: it asked for patience, and is asked last. ``open``: it failed. ``account``: it does not accept ours."""
OnChange = Callable[[str, State, str], None]
"""Gets the deployment's id, its new state (``closed`` or one in which it is not asked), and why."""


@dataclass(frozen=True, slots=True)
class Condition:
    """How a deployment fares in this process."""

    state: State = "closed"
    reason: str = ""
    """Of the failure that opened it, for operators: a code and what the log says; no word of the provider's."""
    retry_in_seconds: float = 0.0
    """Until it is asked again."""
    in_flight: int = 0
    attempts: int = 0
    failures: int = 0
    """Both of the last 30 seconds."""


class Breaker:
    """Opens after 5 failures in a row, or when more than half of at least 20 attempts in 30 s failed."""

    def __init__(self, monotonic: Monotonic, on_change: Callable[[State, str], None] | None = None) -> None:
        self._monotonic = monotonic
        self._on_change = on_change
        self._reason = ""
        self._account_error: UpstreamAccount | None = None
        self.in_flight = 0
        """Answers that are under way."""
        self._generation = 0
        self._window = SlidingCounts(WINDOW_SECONDS, monotonic)
        self._consecutive = 0
        self._opened_at: float | None = None
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._probe_since: float | None = None
        self._busy_until = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether it refuses: True until a probe succeeded, also while one is under way."""
        return self._opened_at is not None

    @property
    def is_busy(self) -> bool:
        """Whether the provider asked for patience."""
        return self._monotonic() < self._busy_until

    @property
    def account_error(self) -> UpstreamAccount | None:
        """Why it is out, if it is because the provider does not accept our account; new each time, to be raised."""
        error = self._account_error
        return None if error is None else UpstreamAccount(error.message, detail=error.detail)

    @property
    def has_no_account(self) -> bool:
        """Whether it is out because the provider does not accept our account."""
        return self._account_error is not None

    def condition(self) -> Condition:
        """Say how it fares."""
        now = self._monotonic()
        state: State = "closed"
        wait = 0.0
        if self._opened_at is not None:
            state = "open" if self._account_error is None else "account"
            wait = self._opened_at + self._pause_seconds - now
        elif self.is_busy:
            state, wait = "busy", self._busy_until - now
        attempts, failures = self._window.sums()
        reason = self._reason if state != "closed" else ""
        return Condition(state, reason, max(0.0, wait), self.in_flight, attempts, failures)

    def try_acquire(self) -> int | None:
        """Return the leave to try, which ``record`` or ``give_back`` gets back, or None while open.

        After the pause one probe at a time may pass.
        """
        if self._opened_at is None:
            return self._generation
        now = self._monotonic()
        if now - self._opened_at < self._pause_seconds:
            return None
        if self._probe_since is not None and now - self._probe_since < PROBE_LEASE_SECONDS:
            return None
        self._probe_since = now
        self._generation += 1
        return self._generation

    def give_back(self, generation: int) -> None:
        """Return a leave that nothing was tried with: another may have it."""
        if generation == self._generation:
            self._probe_since = None

    def record(self, generation: int, error: BaseException | None) -> None:
        """Say how an attempt went, once, with the leave that it had: None is a success.

        UpstreamBusy puts the deployment last for its Retry-After; UpstreamRefused, a StaleConnection, and whatever is
        no UpstreamError (a cancellation), count for nothing; any other UpstreamError is a failure. Of an attempt from
        before the last change of state nothing else counts.
        """
        if error is not None and isinstance(error, UpstreamBusy):
            self._reason = _reason_of(error)
            wait = error.retry_after_seconds or FIRST_PAUSE_SECONDS
            self._busy_until = self._monotonic() + min(wait, LONGEST_PAUSE_SECONDS)
        if generation != self._generation:
            return
        if error is None:
            self._consecutive = 0
            if self._opened_at is None:
                self._window.add()
            else:
                self._close()
        elif isinstance(error, UpstreamAccount) and error.is_certain:
            self._lost_account(error)
        elif isinstance(error, UpstreamError) and not isinstance(error, _NO_FAILURES):
            self._failed(error)
        else:
            self._probe_since = None

    def _close(self) -> None:
        self._opened_at = None
        self._account_error = None
        self._probe_since = None
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._window.clear()
        self._generation += 1
        self._tell("closed", "")

    def _failed(self, error: UpstreamError) -> None:
        now = self._monotonic()
        if self._opened_at is not None:
            self._pause_seconds = min(self._pause_seconds * 2, LONGEST_PAUSE_SECONDS)
            self._account_error = None
            self._open(now, error)
            return
        self._consecutive += 1
        self._window.add(failures=1)
        attempts, failures = self._window.sums()
        if self._consecutive >= CONSECUTIVE_FAILURES or (attempts >= MIN_ATTEMPTS and failures * 2 > attempts):
            self._open(now, error)

    def _lost_account(self, error: UpstreamAccount) -> None:
        again = self._account_error is not None
        pause = self._pause_seconds * 2 if again else FIRST_ACCOUNT_PAUSE_SECONDS
        self._pause_seconds = min(pause, LONGEST_ACCOUNT_PAUSE_SECONDS)
        # A copy: the error itself holds on to the request that met it.
        self._account_error = UpstreamAccount(error.message, detail=error.detail)
        self._window.add(failures=1)
        self._open(self._monotonic(), error)

    def _open(self, now: float, error: UpstreamError) -> None:
        self._opened_at = now
        self._probe_since = None
        self._consecutive = 0
        self._reason = _reason_of(error)
        self._generation += 1
        self._tell("open" if self._account_error is None else "account", self._reason)

    def retire(self) -> None:
        """Say nothing any more: what it knows is of a deployment that is set otherwise now."""
        if self.is_open:
            self._tell("closed", "set anew")
        self._on_change = None

    def _tell(self, state: State, reason: str) -> None:
        if self._on_change is not None:
            self._on_change(state, reason)


class Breakers:
    """The breakers of all deployments, by id; they outlive a swap of the routes, unless their provider changed."""

    def __init__(
        self,
        monotonic: Monotonic = time.monotonic,
        *,
        on_change: OnChange | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Take the clock, who is told when a deployment goes out or comes back, and where chance comes from."""
        self._monotonic = monotonic
        self._on_change = on_change
        self._draw = draw
        self._breakers: OrderedDict[str, Breaker] = OrderedDict()

    def of(self, deployment_id: str) -> Breaker:
        """Return a deployment's breaker, made when first asked for."""
        breaker = self._breakers.get(deployment_id)
        if breaker is None:
            if len(self._breakers) >= MAX_BREAKERS:
                self._make_room()
            breaker = self._breakers[deployment_id] = Breaker(self._monotonic, self._teller(deployment_id))
        else:
            self._breakers.move_to_end(deployment_id)
        return breaker

    def forget(self, providers: Collection[str]) -> None:
        """Begin anew with the deployments of providers that are set otherwise now: a mended credential is tried."""
        for deployment_id in [name for name in self._breakers if name.partition("/")[0] in providers]:
            self._breakers.pop(deployment_id).retire()

    def condition_of(self, deployment_id: str) -> Condition:
        """Say how a deployment fares, without remembering it."""
        breaker = self._breakers.get(deployment_id)
        return breaker.condition() if breaker is not None else Condition()

    def count_out(self) -> Mapping[str, int]:
        """Return how many deployments of each provider are not asked."""
        return Counter(name.partition("/")[0] for name, breaker in self._breakers.items() if breaker.is_open)

    def count_without_account(self) -> Mapping[str, int]:
        """Return of how many of these it is because the provider does not accept our account."""
        return Counter(name.partition("/")[0] for name, breaker in self._breakers.items() if breaker.has_no_account)

    def order(self, deployments: Sequence[Deployment]) -> Sequence[Deployment]:
        """Return the deployments as they are to be tried.

        Those that are busy stand behind the others, those that are out last; then by their order. Of the same order
        the one with the least under way for its weight comes first, and among equals chance decides by weight.
        """
        return deployments if len(deployments) == 1 else sorted(deployments, key=self._rank)

    def _rank(self, deployment: Deployment) -> tuple[int, int, float, float]:
        chance = -(self._draw() ** (1 / deployment.weight))
        breaker = self._breakers.get(deployment.id)
        if breaker is None:
            return 0, deployment.order, 0.0, chance
        state = 2 if breaker.is_open else int(breaker.is_busy)
        return state, deployment.order, breaker.in_flight / deployment.weight, chance

    def _make_room(self) -> None:
        """Forget the one that was not used for longest: one that is closed, so that no caller can close another."""
        closed = (name for name, breaker in self._breakers.items() if not breaker.is_open)
        self._breakers.pop(next(closed, next(iter(self._breakers)))).retire()

    def _teller(self, deployment_id: str) -> Callable[[State, str], None] | None:
        on_change = self._on_change
        if on_change is None:
            return None
        return lambda state, reason: on_change(deployment_id, state, reason)


class RetryBudget:
    """Bounds extra attempts: a tenth of the requests of the last 10 s, and never fewer than 3 in that time.

    Without it, retries multiply the load of a provider that is already failing.
    """

    WINDOW_SECONDS = 10
    PERCENT = 10
    FLOOR = 3

    def __init__(self, monotonic: Monotonic = time.monotonic) -> None:
        self.requests = SlidingCounts(self.WINDOW_SECONDS, monotonic)
        """Whoever has a request adds it, once, however many attempts it has."""
        self._extra = SlidingCounts(self.WINDOW_SECONDS, monotonic)
        self.spent = 0
        """Extra attempts since the start."""
        self.refused = 0
        """Extra attempts that the budget did not have since the start."""

    def try_spend(self) -> bool:
        """Take one extra attempt out of the budget; False: it is used up, so the error is the answer."""
        requests, _ = self.requests.sums()
        extra, _ = self._extra.sums()
        if extra >= max(self.FLOOR, requests * self.PERCENT // 100):
            self.refused += 1
            return False
        self.spent += 1
        self._extra.add()
        return True


class SlidingCounts:
    """Counts of the last seconds, in a ring of one bucket per second: constant memory at any rate."""

    __slots__ = ("_attempts", "_began", "_failures", "_monotonic", "_seconds", "_size", "_slot")

    def __init__(self, window_seconds: int, monotonic: Monotonic) -> None:
        self._monotonic = monotonic
        self._size = window_seconds
        self._seconds = [_NEVER] * window_seconds
        self._attempts = [0] * window_seconds
        self._failures = [0] * window_seconds
        self._began, self._slot = _NEVER, 0

    def add(self, failures: int = 0) -> None:
        """Count one."""
        now = self._monotonic()
        if not self._began <= now < self._began + 1:
            self._turn(int(now))
        self._attempts[self._slot] += 1
        if failures:
            self._failures[self._slot] += failures

    def _turn(self, second: int) -> None:
        """Go on to the bucket of a second."""
        self._began, self._slot = second, second % self._size
        if self._seconds[self._slot] != second:
            self._seconds[self._slot] = second
            self._attempts[self._slot] = 0
            self._failures[self._slot] = 0

    def sums(self) -> tuple[int, int]:
        """Return (counted, failed) of the window."""
        oldest = int(self._monotonic()) - self._size
        fresh = [slot for slot in range(self._size) if self._seconds[slot] > oldest]
        return sum(self._attempts[slot] for slot in fresh), sum(self._failures[slot] for slot in fresh)

    def clear(self) -> None:
        """Forget everything."""
        self._seconds = [_NEVER] * self._size
        self._began = _NEVER


def _reason_of(error: UpstreamError) -> str:
    return f"{error.code}: {error.detail}" if error.detail else str(error.code)
