"""What the contract suites of a meter need: a clock that is moved, and a ledger that is right by definition."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count

from meterhouse.errors import StoreDown
from meterhouse.limits.limit import parse_limits
from meterhouse.metering import Demand, LedgerSums, Limit, Period, Reservation, Scope, Settlement, Sums
from meterhouse.usage import Exactness

ORGANIZATION, PROJECT, KEY = "org_1", "proj_1", "key_1"
MODEL = "gpt-4o"
START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z


class FakeClock:
    """Wall time that stands still until it is moved."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def move(self, *, ms: int = 0, seconds: int = 0, hours: int = 0, days: int = 0) -> None:
        self._now_ms += ms + 1_000 * (seconds + 3_600 * (hours + 24 * days))


@dataclass(frozen=True)
class Record:
    """One settled request, as the ledger has it."""

    demand: Demand
    admitted_at_ms: int
    settlement: Settlement


@dataclass
class Oracle:
    """A ledger: it answers with what was settled before the call; ``gate`` lets it wait, ``is_down`` fail."""

    records: list[Record] = field(default_factory=list)
    calls: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it was asked, before it waits for the gate."""
    gate: asyncio.Event | None = None
    is_down: bool = False

    async def seed(self, periods: Sequence[Period]) -> list[Sums]:
        """Answer a memory meter."""
        return await self._answer([self.sums(period) for period in periods])

    async def sum_before(self, periods: Sequence[Period], before_ms: int, excluded: Collection[str]) -> LedgerSums:
        """Answer a learner."""
        left_out = {
            record.demand.request_id: Sums(
                record.settlement.requests, record.settlement.total_tokens, record.settlement.charge_nanos
            )
            for record in self.records
            if record.demand.request_id in excluded
        }
        sums = [self.sums(period, before_ms, excluded) for period in periods]
        return LedgerSums(await self._answer(sums), left_out)

    async def _answer(self, answer: list[Sums]) -> list[Sums]:
        self.calls += 1
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.is_down:
            raise StoreDown("The database is away.")
        return answer

    def sums(self, period: Period, before_ms: int | None = None, excluded: Collection[str] = ()) -> Sums:
        found = [
            record.settlement
            for record in self.records
            if is_in_scope(period.limit, record.demand)
            and is_in_period(period, record.admitted_at_ms)
            and (before_ms is None or record.admitted_at_ms < before_ms)
            and record.demand.request_id not in excluded
        ]
        return Sums(
            sum(settlement.requests for settlement in found),
            sum(settlement.total_tokens for settlement in found),
            sum(settlement.charge_nanos for settlement in found),
        )


def is_in_scope(limit: Limit, demand: Demand) -> bool:
    owner = {
        Scope.ORGANIZATION: demand.organization_id,
        Scope.PROJECT: demand.project_id,
        Scope.KEY: demand.root_key_id,
    }[limit.scope]
    return owner == limit.scope_id and limit.model in {None, demand.model}


def is_in_period(period: Period, at_ms: int) -> bool:
    return (period.start_ms is None or period.start_ms <= at_ms) and (period.end_ms is None or at_ms < period.end_ms)


@cache
def key_limits(text: str, key_id: str = KEY) -> tuple[Limit, ...]:
    """The same text gives the same tuple, as a principal's limits stay the same tuple from request to request."""
    return parse_limits(text, Scope.KEY, key_id)


_ids = count(1)


def build_demand(limits: tuple[Limit, ...] | str = (), **changes: object) -> Demand:
    """A demand of 10 input and 100 output tokens at 1 nano each; not streamed."""
    values: dict[str, object] = {
        "request_id": f"{next(_ids):032x}",
        "organization_id": ORGANIZATION,
        "project_id": PROJECT,
        "root_key_id": KEY,
        "model": MODEL,
        "limits": key_limits(limits) if isinstance(limits, str) else limits,
        "rate_input_tokens": 10,
        "held_input_tokens": 10,
        "output_tokens": 100,
        "rate_output_tokens": 100,
        "choices": 1,
        "is_streamed": False,
        "holds_whole_allowance": False,
        "input_nanos_per_million": 1_000_000,
        "output_nanos_per_million": 1_000_000,
        "request_nanos": 0,
    }
    return Demand(**(values | changes))  # type: ignore[arg-type]


def settlement_of(
    tokens: int = 0, nanos: int | None = None, *, requests: int = 1, exactness: Exactness = Exactness.REPORTED
) -> Settlement:
    """The truth about a request at 1 nano a token."""
    return Settlement(requests, tokens, tokens if nanos is None else nanos, exactness)


def admitted(decision: object) -> Reservation:
    """Return a decision that must be an admission."""
    assert isinstance(decision, Reservation), decision
    return decision
