"""The counters of quotas, budgets and gauges, and how a limit judges and debits one.

A bound is a limit with its counter; a debit is what one reservation took from a counter, and is resolved with the
truth. A period counter's ``spent`` is what the ledger says (or will say) of its period, its ``reserved`` the sum of
what live debits hold. Not here: finding counters, and choosing between refusals.
"""

from typing import NamedTuple, Protocol

from meterhouse.limits.sizing import Sizes, held_amount, settled_amount
from meterhouse.limits.window import RateCounter
from meterhouse.metering import (
    Demand,
    Kind,
    Limit,
    LimitState,
    Period,
    RefusalKind,
    Scope,
    Settlement,
    Sums,
    Window,
)
from meterhouse.usage import Exactness

Owner = tuple[Scope, str]
CounterKey = tuple["Identity", int | None]
"""An identity, and the start of the period for a quota or budget."""
RETRY_RESERVED_MS = 1_000
"""When to try again where only other reservations are in the way."""


class Identity(NamedTuple):
    """A limit without its amount: all amounts of one identity count on one counter."""

    scope: Scope
    scope_id: str
    kind: Kind
    window: Window
    multiple: int
    model: str | None

    @property
    def owner(self) -> Owner:
        """Whose limit it is."""
        return self.scope, self.scope_id

    def covers(self, demand: Demand) -> bool:
        """Whether a demand of the owner is counted: one for its model, if it names one."""
        return self.model is None or self.model == demand.model


def identity_of(limit: Limit) -> Identity:
    """Return what a limit counts, whatever its amount."""
    return Identity(limit.scope, limit.scope_id, limit.kind, limit.window, limit.multiple, limit.model)


def owners_of(demand: Demand) -> tuple[Owner, Owner, Owner]:
    """Return whose limits may bind a demand; a key's limits are those of the first key of its rotations."""
    return (
        (Scope.KEY, demand.root_key_id),
        (Scope.PROJECT, demand.project_id),
        (Scope.ORGANIZATION, demand.organization_id),
    )


class Verdict(NamedTuple):
    """Why one limit refuses; ``wait_ms`` is None where waiting does not help."""

    kind: RefusalKind
    limit: Limit
    used: int
    demanded: int
    wait_ms: int | None


class Debit(Protocol):
    """What one reservation took from one counter."""

    @property
    def counter(self) -> "RateCounter | PeriodCounter | GaugeCounter":
        """Where it was taken from."""
        ...

    def resolve(self, settlement: Settlement, now_ms: int) -> None:
        """Move the counter to what the settlement says; a second time, by the difference to the first."""
        ...


class Bound(Protocol):
    """A limit with its counter."""

    limit: Limit

    def judge(self, sizes: Sizes, now_ms: int) -> Verdict | None:
        """Say why the demand is refused, or None."""
        ...

    def debit(self, sizes: Sizes, now_ms: int) -> Debit:
        """Take what the demand holds."""
        ...

    def state(self, now_ms: int) -> LimitState:
        """Say where the limit stands."""
        ...


# --- rates


class RateDebit:
    """What a rate window was debited, and in which window."""

    __slots__ = ("amount", "counter", "index", "kind")

    def __init__(self, counter: RateCounter, kind: Kind, amount: int, index: int) -> None:
        self.counter = counter
        self.kind = kind
        self.amount = amount
        self.index = index

    def resolve(self, settlement: Settlement, now_ms: int) -> None:
        """Debit what was used beyond the estimate; give back the rest only if the provider reported it."""
        difference = settled_amount(self.kind, settlement) - self.amount
        if difference > 0 or (difference and settlement.exactness is Exactness.REPORTED):
            self.counter.correct(self.index, difference, now_ms)
            self.amount += difference


class RateBound:
    """A rate and its sliding window."""

    __slots__ = ("counter", "counts_tokens", "limit")

    def __init__(self, limit: Limit, counter: RateCounter) -> None:
        self.limit = limit
        self.counter = counter
        self.counts_tokens = limit.kind is Kind.TOKENS

    def judge(self, sizes: Sizes, now_ms: int) -> Verdict | None:
        """Refuse what does not fit now, with the exact wait until it would."""
        demanded = sizes.rate_tokens if self.counts_tokens else 1
        used = self.counter.used(now_ms)
        limit = self.limit
        if used + demanded <= limit.amount:
            return None
        if demanded > limit.amount:
            return Verdict(RefusalKind.TOO_LARGE, limit, used, demanded, None)
        wait_ms = self.counter.wait_ms(limit.amount, demanded, now_ms)
        return Verdict(RefusalKind.RATE, limit, used, demanded, wait_ms)

    def debit(self, sizes: Sizes, now_ms: int) -> RateDebit:
        """Count the demand in the current window."""
        amount = sizes.rate_tokens if self.counts_tokens else 1
        return RateDebit(self.counter, self.limit.kind, amount, self.counter.add(amount, now_ms))

    def state(self, now_ms: int) -> LimitState:
        """Show what is used as spent; full again when both windows have passed."""
        return LimitState(self.limit, self.counter.used(now_ms), 0, self.counter.full_at_ms(now_ms))


# --- gauges


class GaugeCounter:
    """How many requests are open."""

    __slots__ = ("identity", "open_requests")

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.open_requests = 0

    @property
    def key(self) -> CounterKey:
        """What the counter is found by."""
        return self.identity, None


class GaugeDebit:
    """One open request."""

    __slots__ = ("counter", "is_open")

    def __init__(self, counter: GaugeCounter) -> None:
        self.counter = counter
        self.is_open = True
        counter.open_requests += 1

    def resolve(self, settlement: Settlement, now_ms: int) -> None:  # noqa: ARG002 - closing needs no figures
        """Close it, once."""
        if self.is_open:
            self.is_open = False
            self.counter.open_requests -= 1


class GaugeBound:
    """A ceiling on open requests."""

    __slots__ = ("counter", "limit")

    def __init__(self, limit: Limit, counter: GaugeCounter) -> None:
        self.limit = limit
        self.counter = counter

    def judge(self, sizes: Sizes, now_ms: int) -> Verdict | None:  # noqa: ARG002 - one request is one
        """Refuse while as many are open as may be."""
        used = self.counter.open_requests
        if used < self.limit.amount:
            return None
        return Verdict(RefusalKind.RESERVED, self.limit, used, 1, RETRY_RESERVED_MS)

    def debit(self, sizes: Sizes, now_ms: int) -> GaugeDebit:  # noqa: ARG002 - one request is one
        """Open one."""
        return GaugeDebit(self.counter)

    def state(self, now_ms: int) -> LimitState:  # noqa: ARG002 - nobody knows when requests end
        """Show what is open as reserved."""
        return LimitState(self.limit, 0, self.counter.open_requests, None)


# --- quotas and budgets


class PeriodCounter:
    """What is spent and reserved of one quota or budget in one period."""

    __slots__ = ("end_ms", "identity", "is_known", "is_outdated", "kind", "period", "reserved", "spent", "start_ms")

    def __init__(self, period: Period) -> None:
        self.period = period
        self.identity = identity_of(period.limit)
        self.kind = period.limit.kind
        self.start_ms = period.start_ms
        self.end_ms = period.end_ms
        self.spent = 0
        self.reserved = 0
        self.is_known = False
        """Whether the ledger's sums are in ``spent``; unknown is not zero."""
        self.is_outdated = False
        """The ledger was corrected while it was asked: what it says is not believed."""

    @property
    def key(self) -> CounterKey:
        """What the counter is found by."""
        return self.identity, self.start_ms

    def seed(self, sums: Sums) -> None:
        """Add what the ledger knew when the counter was attached to what was settled since."""
        if self.kind is Kind.SPEND:
            self.spent += sums.charge_nanos
        elif self.kind is Kind.TOKENS:
            self.spent += sums.total_tokens
        else:
            self.spent += sums.requests
        self.is_known = True

    def contains(self, at_ms: int) -> bool:
        """Whether a moment lies in the period."""
        return (self.start_ms is None or at_ms >= self.start_ms) and (self.end_ms is None or at_ms < self.end_ms)


class PeriodDebit:
    """What a reservation holds of a quota or budget (``held``), or was resolved at (``applied``)."""

    __slots__ = ("applied", "counter", "held", "limit_amount")

    def __init__(self, counter: PeriodCounter, held: int, limit_amount: int | None) -> None:
        self.counter = counter
        self.held = held
        self.applied = 0
        self.limit_amount = limit_amount
        """None: the counter runs along; the reservation was not admitted under a limit of it."""
        counter.reserved += held

    def resolve(self, settlement: Settlement, now_ms: int) -> None:  # noqa: ARG002 - the period was decided at admission
        """Replace the hold by the truth, whatever its exactness."""
        counter = self.counter
        amount = settled_amount(counter.kind, settlement)
        counter.reserved -= self.held
        counter.spent += amount - self.applied
        self.held = 0
        self.applied = amount

    def more(self, demand: Demand, output_tokens: int) -> int:
        """Return what more must be held for this much output over all choices."""
        return held_amount(self.counter.kind, demand, output_tokens) - self.held

    def has_room(self, more: int) -> bool:
        """Whether so much more may be held. Nothing more always may, also of a limit that is overdrawn."""
        limit_amount = self.limit_amount
        return limit_amount is None or more <= 0 or more <= limit_amount - self.counter.spent - self.counter.reserved

    def hold(self, more: int) -> None:
        """Hold so much more."""
        self.held += more
        self.counter.reserved += more


class PeriodBound:
    """A quota or budget and the counter of its current period."""

    __slots__ = ("counter", "kind", "limit")

    def __init__(self, limit: Limit, counter: PeriodCounter) -> None:
        self.limit = limit
        self.kind = limit.kind
        self.counter = counter

    @property
    def free(self) -> int:
        """What is neither spent nor reserved; negative after an overrun."""
        return self.limit.amount - self.counter.spent - self.counter.reserved

    def judge(self, sizes: Sizes, now_ms: int) -> Verdict | None:  # noqa: ARG002 - the period was decided before
        """Refuse finally only where spent alone leaves no room for the smallest hold."""
        demanded = 1
        if self.kind is Kind.SPEND:
            demanded = sizes.smallest_nanos
        elif self.kind is Kind.TOKENS:
            demanded = sizes.smallest_tokens
        limit = self.limit
        spent = self.counter.spent
        used = spent + self.counter.reserved
        if used + demanded <= limit.amount:
            return None
        if demanded > limit.amount:
            return Verdict(RefusalKind.TOO_LARGE, limit, used, demanded, None)
        if spent + demanded > limit.amount:
            return Verdict(RefusalKind.SPENT, limit, spent, demanded, None)
        return Verdict(RefusalKind.RESERVED, limit, used, demanded, RETRY_RESERVED_MS)

    def debit(self, sizes: Sizes, now_ms: int) -> PeriodDebit:  # noqa: ARG002 - the period was decided before
        """Hold what the demand was sized to."""
        held = 1
        if self.kind is Kind.SPEND:
            held = sizes.held_nanos
        elif self.kind is Kind.TOKENS:
            held = sizes.held_tokens
        return PeriodDebit(self.counter, held, self.limit.amount)

    def state(self, now_ms: int) -> LimitState:  # noqa: ARG002 - the period was decided before
        """Show spent and reserved; full again when the period ends."""
        return LimitState(self.limit, self.counter.spent, self.counter.reserved, self.counter.end_ms)
