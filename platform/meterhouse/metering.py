"""The words between the limits and everything that meets them: limit, demand, reservation, settlement, meter.

Amounts are integers: requests, tokens, or nanos of USD. Which kind of limit a pair of kind and window makes is
decided here once (``Limit.nature``). What is made for every request is a msgspec struct: a frozen dataclass takes
seven times as long to make.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol

import msgspec

from meterhouse.usage import Exactness


class Scope(StrEnum):
    """Whose limit it is."""

    ORGANIZATION = "organization"
    PROJECT = "project"
    KEY = "key"


class Kind(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENT = "concurrent"
    SPEND = "spend"


class Window(StrEnum):
    """The period of a limit."""

    SECOND = "second"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    TOTAL = "total"
    NONE = "none"
    """Only for ``concurrent``."""


class Nature(StrEnum):
    """How a limit behaves: a rate recovers by waiting, a quota and a budget do not, a gauge counts what is open."""

    RATE = "rate"
    QUOTA = "quota"
    BUDGET = "budget"
    GAUGE = "gauge"


CAP_MARK = "/"
"""Between the first key of a chain, a client token of it and the second it expires at, in the scope of its cap."""
WINDOW_SECONDS = {Window.SECOND: 1, Window.MINUTE: 60, Window.HOUR: 3600}


@dataclass(frozen=True, slots=True)
class Limit:
    """A ceiling. ``multiple`` stretches a rate's window (``10 per 2 minutes``) and is 1 otherwise."""

    scope: Scope
    scope_id: str
    kind: Kind
    window: Window
    amount: int
    multiple: int = 1
    model: str | None = None

    @property
    def nature(self) -> Nature:
        """Rate, quota, budget or gauge: the one rule of design.md 6."""
        if self.kind is Kind.CONCURRENT:
            return Nature.GAUGE
        if self.kind is Kind.SPEND:
            return Nature.BUDGET
        return Nature.RATE if self.window in WINDOW_SECONDS else Nature.QUOTA

    @property
    def owner_and_token(self) -> tuple[str, str | None]:
        """Whose records it counts; of a client token's cap, the chain of its key and the token."""
        owner, slash, rest = self.scope_id.partition(CAP_MARK)
        return (owner, rest.partition(CAP_MARK)[0]) if slash else (owner, None)

    @property
    def ends_at_ms(self) -> int | None:
        """When nothing new can be demanded under it: a client token's cap ends with the token, others never do."""
        seconds = self.scope_id.rpartition(CAP_MARK)[2] if self.scope_id.count(CAP_MARK) == 2 else ""  # noqa: PLR2004
        return int(seconds) * 1000 if seconds.isdecimal() else None

    @staticmethod
    def cap_scope_id(root_key_id: str, token_id: str, expires_at_seconds: int) -> str:
        """Return the scope of a client token's cap. The end is in it, so that whoever sweeps counters sees it."""
        return CAP_MARK.join((root_key_id, token_id, str(expires_at_seconds)))

    @property
    def window_ms(self) -> int:
        """The length of a rate's window in milliseconds."""
        return WINDOW_SECONDS[self.window] * self.multiple * 1000

    @property
    def is_held_in_full(self) -> bool:
        """Whether what cannot be exceeded must be held: a budget, or a quota of tokens."""
        return self.nature is Nature.BUDGET or (self.nature is Nature.QUOTA and self.kind is Kind.TOKENS)


@dataclass(frozen=True, slots=True)
class ModelBounds:
    """What the model's row says about the size of its answers and inputs; None: no bound is known."""

    max_output_tokens: int
    image_tokens: int | None
    thinks_hidden: bool
    model: str = ""
    """The name that the model is listed under, however it was asked for: limits of a model go by it."""


class Demand(msgspec.Struct, frozen=True):
    """The conservative estimate of what a request will use; the meter decides on it in one step."""

    request_id: str
    organization_id: str
    project_id: str
    root_key_id: str
    model: str
    limits: tuple[Limit, ...]
    """Every limit of the key, its project and its organization; the meter drops those of other models."""
    rate_input_tokens: int
    """Text bytes / 3: what rate windows are debited for the input."""
    held_input_tokens: int
    """What the input cannot exceed: a token per byte, 16 per message, the bounds of its images."""
    output_tokens: int
    """Per choice: asked for, or the model's maximum."""
    rate_output_tokens: int
    """Per choice: what rate windows are debited for the output at first."""
    choices: int
    is_streamed: bool
    holds_whole_allowance: bool
    """The model may think without showing it, so bytes seen do not bound tokens used: no slices."""
    input_nanos_per_million: int
    output_nanos_per_million: int
    request_nanos: int

    FLOOR_TOKENS: ClassVar[int] = 1_024
    SLICE_TOKENS: ClassVar[int] = 2_048


class LimitState(msgspec.Struct, frozen=True):
    """What a limit says of itself now; ``resets_at_ms`` is when it is full again (None: never, or when they end)."""

    limit: Limit
    spent: int
    reserved: int
    resets_at_ms: int | None

    @property
    def free(self) -> int:
        """What is left, never below zero."""
        return max(0, self.limit.amount - self.spent - self.reserved)


class Reservation(msgspec.Struct):
    """A demand held against every limit; resolved exactly once, by ``Meter.settle``."""

    request_id: str
    admitted_at_ms: int
    allowance_tokens: int | None
    """Output tokens per choice that will be allowed at most; None: nothing is clamped."""
    held_output_tokens: int | None
    """Output tokens over all choices that are held now; None: nothing is held in full."""
    held_nanos: int
    """Money held now, by the demand's dearest price; 0 without a budget."""
    states: Sequence[LimitState]
    is_degraded: bool = False
    """Admitted while the meter could not be asked, out of the outage allowance."""

    @property
    def is_held_in_full(self) -> bool:
        """Whether a budget or a token quota applies."""
        return self.held_output_tokens is not None


class RefusalKind(StrEnum):
    """The four ways to be refused (design.md 6)."""

    SPENT = "spent"
    RESERVED = "reserved"
    TOO_LARGE = "too_large"
    RATE = "rate"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing was held; ``retry_after_seconds`` is None where waiting does not help."""

    kind: RefusalKind
    limit: Limit
    used: int
    demanded: int
    retry_after_seconds: float | None
    states: Sequence[LimitState]


class Settlement(msgspec.Struct, frozen=True):
    """The truth about a request, as its ledger rows say it."""

    requests: int
    total_tokens: int
    charge_nanos: int
    exactness: Exactness


class Use(msgspec.Struct, frozen=True):
    """What a live reservation has used so far: its lease is renewed with it, and a reaping settles at it."""

    is_sent: bool
    total_tokens: int
    charge_nanos: int


@dataclass(frozen=True, slots=True)
class Correction:
    """What an adjustment changes: signed amounts of the periods that a moment lies in."""

    organization_id: str
    project_id: str
    root_key_id: str | None
    at_ms: int
    nanos: int
    tokens: int
    id: str
    """Of the adjustment, or of the first of those that it sums up: a correction that is told again changes nothing."""


class Meter(Protocol):
    """Holds and settles. ``reserve`` is all-or-nothing over all limits and idempotent by request id."""

    async def reserve(self, demand: Demand) -> Reservation | Refusal:
        """Hold a demand; raises MeterDown when it cannot be decided."""
        ...

    async def extend(self, reservation: Reservation, output_tokens: int) -> bool:
        """Hold more output tokens; False leaves the hold as it was."""
        ...

    def settle(self, reservation: Reservation, settlement: Settlement) -> None:
        """Resolve a reservation with the truth, at once or soon. Synchronous: nothing can cancel it."""
        ...

    def send_settled(self) -> None:
        """Have what was settled done before whatever anybody asks from now on, such as a client that is answered."""
        ...

    async def renew(self, uses: Mapping[str, Use]) -> None:
        """Renew the leases of live reservations, by request id, with what each has used so far."""
        ...

    async def list_states(self, organization_id: str, limits: Sequence[Limit]) -> list[LimitState]:
        """Say where each of these limits, all of one organization's principals, stands now."""
        ...

    async def adjust(self, correction: Correction) -> None:
        """Move what is spent by a correction that the ledger has; raises MeterDown when it must be tried again."""
        ...


@dataclass(frozen=True, slots=True)
class Period:
    """The part of the ledger that a quota or budget counts; None means unbounded on that side."""

    limit: Limit
    start_ms: int | None
    end_ms: int | None


@dataclass(frozen=True, slots=True)
class Sums:
    """What the ledger says of a period."""

    requests: int = 0
    total_tokens: int = 0
    charge_nanos: int = 0


@dataclass(frozen=True, slots=True)
class LedgerSums:
    """What the ledger says in one snapshot."""

    periods: Sequence[Sums]
    """Of each period that was asked for, without the requests that were left out."""
    left_out: Mapping[str, Sums]
    """Of each request that was left out and has records, by its id."""
    corrections: Sequence[str] = ()
    """The ids of the young corrections among them: those of which the meter may not have been told yet."""


class Clock(Protocol):
    """Wall time, injected so that tests can move it."""

    def now_ms(self) -> int:
        """Return Unix milliseconds."""
        ...
