"""The meter while Redis is away: rates and gauges shared out, budgets and quotas from a small allowance.

Rates and open requests are counted by a memory meter under limit / live workers, rounded up. Each budget and quota has
an allowance per period, a stated part of it, which the processes of a host draw from one file. Invariant: what all
hosts admit against a budget or quota on this path, over a whole period, is at most that part of it. Nothing left is
``MeterDown``, never a final refusal: what is really spent is not known here. The states that are shown are of these
shares and allowances, because they bind now. Not here: Redis, and when this path is taken.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from msgspec import structs

from meterhouse.limits.allowance import AllowanceFile
from meterhouse.limits.counter import CounterKey, Debit, Identity, PeriodDebit, identity_of
from meterhouse.limits.counters import meter_down
from meterhouse.limits.holds import Hold, Holds
from meterhouse.limits.memory import LEASE_MS, MemoryMeter
from meterhouse.limits.patience import patience
from meterhouse.limits.pool import Pool, Supplement, slot_of
from meterhouse.limits.sizing import Sizes, held_amount, size_demand, spend_nanos
from meterhouse.limits.window import period_of
from meterhouse.metering import (
    Clock,
    Demand,
    Kind,
    Limit,
    LimitState,
    Nature,
    Period,
    Refusal,
    RefusalKind,
    Reservation,
    Settlement,
    Sums,
    Use,
)

DRAW_WAIT_SECONDS = 1.0
"""How long a request waits for the allowance file."""
MOST_SHARED = 10_000
PERCENT = 100
_COUNTED = frozenset({Nature.RATE, Nature.GAUGE})


class _Shared(NamedTuple):
    """A principal's limits, told apart."""

    original: tuple[Limit, ...]
    """Kept so that the tuple's id, by which this is found, is not given to another."""
    live_workers: int
    counted: tuple[Limit, ...]
    """Rates and gauges with this worker's share for an amount: the same tuple each time, by which plans are found."""
    periods: tuple[Limit, ...]
    """Budgets and quotas as they are."""


class _Ceiling(NamedTuple):
    """A budget or quota of a request, its pool, and its whole allowance in the period."""

    limit: Limit
    pool: Pool
    total: int

    @property
    def hoped(self) -> int:
        return self.pool.hoped(self.total)

    def state(self) -> LimitState:
        return self.pool.state(replace(self.limit, amount=self.total))


class _Fit(NamedTuple):
    """Sizes that fit into what is drawn of these ceilings, of the periods of this moment."""

    ceilings: Sequence[_Ceiling]
    sizes: Sizes
    now_ms: int


class OutageMeter:
    """Decides in this process alone. Call ``sweep`` every 30 s, and ``close`` at the end (the file is the caller's)."""

    def __init__(
        self,
        allowance: AllowanceFile,
        clock: Clock,
        *,
        percent: int,
        hosts: int,
        live_workers: Callable[[], int],
        lease_ms: int = LEASE_MS,
    ) -> None:
        self._allowance = allowance
        self._clock = clock
        self._percent = percent
        self._hosts = hosts
        self._live_workers = live_workers
        self._memory = MemoryMeter(clock, _know_nothing, lease_ms=lease_ms)
        self._holds = Holds(lease_ms)
        self._lease_ms = lease_ms
        self._pools: dict[tuple[Identity, int | None], Pool] = {}
        self._shared: dict[int, _Shared] = {}

    async def reserve(self, demand: Demand) -> Reservation | Refusal:
        """Hold a demand against this worker's shares and the allowance; all or nothing, idempotent by request id.

        A refusal is a rate, a gauge, or a demand that exceeds a whole limit.

        Raises:
            MeterDown: The allowance has no room, or the demand exceeds this worker's share of a rate.
        """
        hold = self._holds.find_live(demand.request_id)
        if hold is not None:
            return hold.reservation
        now_ms = self._clock.now_ms()
        if self._holds.is_resolved(demand.request_id):
            return Reservation(demand.request_id, now_ms, 0, 0, 0, (), is_degraded=True)
        shared = self._share(demand.limits)
        ceilings = self._ceilings(shared.periods, demand, now_ms)
        refusal = _find_too_large(ceilings, demand)
        if refusal is not None:
            return refusal
        try:
            async with patience(DRAW_WAIT_SECONDS):
                while (sizes := await self._draw_for(ceilings, demand)) is None:
                    pass
        except TimeoutError:
            raise meter_down("the allowance file is late") from None
        return await self._hold(demand, shared.counted, _Fit(ceilings, sizes, now_ms))

    async def extend(self, demand: Demand, reservation: Reservation, output_tokens: int) -> bool:
        """Hold more output tokens (over all choices) against every budget and token quota, or none of them.

        Also for a reservation that Redis holds: what comes on top is held here. False: the allowance has no room, or
        the reservation was settled or reaped; the hold stays as it was.
        """
        if reservation.held_output_tokens is None or output_tokens <= 0:
            return True
        if self._holds.is_resolved(reservation.request_id):
            return False
        try:
            async with patience(DRAW_WAIT_SECONDS):
                while (is_held := await self._try_extend(demand, reservation, output_tokens)) is None:
                    pass
        except TimeoutError:
            return False
        return is_held

    def settle(self, reservation: Reservation, settlement: Settlement) -> None:
        """Move everything to the truth and free the rest for others; ids that are not known here change nothing."""
        self._memory.settle(reservation, settlement)
        self._holds.settle(reservation.request_id, settlement, self._clock.now_ms())

    async def renew(self, uses: Mapping[str, Use]) -> None:
        """Move live leases forward with what each request has used so far; unknown ids are ignored."""
        await self._memory.renew(uses)
        now_ms = self._clock.now_ms()
        for request_id, use in uses.items():
            self._holds.renew(request_id, use, now_ms)

    def sweep(self) -> int:
        """Reap expired leases, and drop pools of periods that are over; returns how many leases were reaped."""
        self._memory.sweep()
        now_ms = self._clock.now_ms()
        reaped = sum(self._holds.reap(name, now_ms, now_ms) for name in self._holds.organizations())
        self._holds.forget(now_ms)
        for key, pool in list(self._pools.items()):
            counter = pool.counter
            if counter.end_ms is not None and counter.end_ms <= now_ms and not counter.reserved:
                del self._pools[key]
        return reaped

    async def list_states(self, organization_id: str, limits: Sequence[Limit]) -> list[LimitState]:
        """Say where this worker's share or allowance of each limit stands, in their order."""
        now_ms = self._clock.now_ms()
        shared = _tell_apart(tuple(limits), max(1, self._live_workers()))
        counted = iter(await self._memory.list_states(organization_id, shared.counted))
        return [next(counted) if limit.nature in _COUNTED else self._ceiling(limit, now_ms).state() for limit in limits]

    async def close(self) -> None:
        """Wait for draws that are under way, and give back what nobody holds or used."""
        await asyncio.gather(*[pool.close() for pool in self._pools.values()])
        await self._memory.close()

    # --- shares

    def _share(self, limits: tuple[Limit, ...]) -> _Shared:
        live_workers = max(1, self._live_workers())
        shared = self._shared.get(id(limits))
        if shared is None or shared.live_workers != live_workers:
            if len(self._shared) >= MOST_SHARED:
                self._shared.clear()
            shared = self._shared[id(limits)] = _tell_apart(limits, live_workers)
        return shared

    def _ceilings(self, limits: Sequence[Limit], demand: Demand, at_ms: int) -> list[_Ceiling]:
        strictest: dict[Identity, Limit] = {}
        for limit in limits:
            identity = identity_of(limit)
            if identity.covers(demand):
                other = strictest.get(identity)
                if other is None or limit.amount < other.amount:
                    strictest[identity] = limit
        return [self._ceiling(limit, at_ms) for limit in strictest.values()]

    def _ceiling(self, limit: Limit, at_ms: int) -> _Ceiling:
        return _Ceiling(limit, self._pool(period_of(limit, at_ms)), self._total(limit))

    def _total(self, limit: Limit) -> int:
        return limit.amount * self._percent // PERCENT // self._hosts

    def _pool(self, period: Period) -> Pool:
        identity = identity_of(period.limit)
        key = identity, period.start_ms
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(period, slot_of(identity), self._allowance, self._clock)
        return pool

    # --- holding

    async def _draw_for(self, ceilings: Sequence[_Ceiling], demand: Demand) -> Sizes | None:
        """Return sizes that fit into what is drawn, in the same step; None after drawing more.

        Raises:
            MeterDown: The allowance has no room.
        """
        sizes = _size(ceilings, demand)
        short: list[tuple[_Ceiling, int]] = []
        for ceiling in ceilings:
            if _smallest(ceiling.limit.kind, sizes) > ceiling.hoped:
                raise meter_down(f"the outage allowance of {slot_of(identity_of(ceiling.limit))} has no room")
            shortfall = _held(ceiling.limit.kind, sizes) - ceiling.pool.free(ceiling.total)
            if shortfall > 0:
                short.append((ceiling, shortfall))
        if not short:
            return sizes
        await self._draw(short)
        return None

    async def _draw(self, short: Sequence[tuple[_Ceiling, int]]) -> None:
        workers = -(-max(1, self._live_workers()) // self._hosts)
        await asyncio.gather(*[ceiling.pool.draw(ceiling.total, shortfall, workers) for ceiling, shortfall in short])

    async def _hold(self, demand: Demand, limits: tuple[Limit, ...], fit: _Fit) -> Reservation | Refusal:
        """Count rates and gauges, and hold the sizes. One step: a memory meter without periods awaits nothing."""
        ceilings, sizes, now_ms = fit
        rate_output_tokens = demand.rate_output_tokens
        if sizes.allowance_tokens is not None:
            rate_output_tokens = min(rate_output_tokens, sizes.allowance_tokens)
        counted = structs.replace(demand, limits=limits, rate_output_tokens=rate_output_tokens)
        decided = await self._memory.reserve(counted)
        if isinstance(decided, Refusal):
            states = [*decided.states, *[ceiling.state() for ceiling in ceilings]]
            return _widen(replace(decided, states=states), demand)
        debits: list[Debit] = [
            PeriodDebit(ceiling.pool.counter, _held(ceiling.limit.kind, sizes), ceiling.total) for ceiling in ceilings
        ]
        reservation = Reservation(
            demand.request_id,
            now_ms,
            sizes.allowance_tokens,
            sizes.output_tokens,
            sizes.held_nanos,
            [*decided.states, *[ceiling.state() for ceiling in ceilings]],
            is_degraded=True,
        )
        self._holds.add(Hold(demand, reservation, debits, self._clock.now_ms() + self._lease_ms))
        return reservation

    async def _try_extend(self, demand: Demand, reservation: Reservation, output_tokens: int) -> bool | None:
        """Hold more if it is drawn; None after drawing more."""
        held_tokens = (reservation.held_output_tokens or 0) + output_tokens
        hold = self._holds.find_live(reservation.request_id)
        demand = demand if hold is None else hold.demand
        ceilings = self._ceilings(self._share(demand.limits).periods, demand, reservation.admitted_at_ms)
        debits = _supplements(ceilings, demand, reservation) if hold is None else _held_debits(hold)
        wanted = [(ceiling, debits[ceiling.pool.counter.key]) for ceiling in ceilings]
        short: list[tuple[_Ceiling, int]] = []
        for ceiling, debit in wanted:
            more = debit.more(demand, held_tokens)
            if more > ceiling.hoped:
                return False
            if more > ceiling.pool.free(ceiling.total):
                short.append((ceiling, more - ceiling.pool.free(ceiling.total)))
        if short:
            await self._draw(short)
            return None
        for _, debit in wanted:
            debit.hold(debit.more(demand, held_tokens))
        if hold is None:
            expires_at_ms = self._clock.now_ms() + self._lease_ms
            self._holds.add(Hold(demand, reservation, list(debits.values()), expires_at_ms))
        reservation.held_output_tokens = held_tokens
        if any(ceiling.limit.kind is Kind.SPEND for ceiling in ceilings):
            reservation.held_nanos = spend_nanos(demand, held_tokens)
        return True


def _tell_apart(limits: tuple[Limit, ...], live_workers: int) -> _Shared:
    counted = [limit for limit in limits if limit.nature in _COUNTED]
    shares = [replace(limit, amount=-(-limit.amount // live_workers)) for limit in counted]
    periods = [limit for limit in limits if limit.nature not in _COUNTED]
    return _Shared(limits, live_workers, tuple(shares), tuple(periods))


def _size(ceilings: Sequence[_Ceiling], demand: Demand) -> Sizes:
    """Size a demand by what may be left of the allowances."""
    budgets = [ceiling.hoped for ceiling in ceilings if ceiling.limit.kind is Kind.SPEND]
    quotas = [ceiling.hoped for ceiling in ceilings if ceiling.limit.kind is Kind.TOKENS]
    return size_demand(demand, min(budgets, default=None), min(quotas, default=None))


def _smallest(kind: Kind, sizes: Sizes) -> int:
    if kind is Kind.SPEND:
        return sizes.smallest_nanos
    return sizes.smallest_tokens if kind is Kind.TOKENS else 1


def _held(kind: Kind, sizes: Sizes) -> int:
    if kind is Kind.SPEND:
        return sizes.held_nanos
    return sizes.held_tokens if kind is Kind.TOKENS else 1


def _find_too_large(ceilings: Sequence[_Ceiling], demand: Demand) -> Refusal | None:
    """Refuse what exceeds a whole limit, whoever uses it: waiting for Redis would not help."""
    sizes = _size(ceilings, demand)
    for ceiling in ceilings:
        demanded = _smallest(ceiling.limit.kind, sizes)
        if demanded > ceiling.limit.amount:
            states = [ceiling.state() for ceiling in ceilings]
            return Refusal(RefusalKind.TOO_LARGE, ceiling.limit, 0, demanded, None, states)
    return None


def _widen(refusal: Refusal, demand: Demand) -> Refusal:
    """Tell a demand that exceeds a whole rate from one that exceeds only this worker's share of it.

    Raises:
        MeterDown: Only the share is too small; the request may pass when Redis is back.
    """
    if refusal.kind is not RefusalKind.TOO_LARGE:
        return refusal
    identity = identity_of(refusal.limit)
    whole = min((limit for limit in demand.limits if identity_of(limit) == identity), key=lambda limit: limit.amount)
    if refusal.demanded <= whole.amount:
        raise meter_down(f"a worker's share of {slot_of(identity)} is too small for the demand")
    return replace(refusal, limit=whole)


def _supplements(
    ceilings: Sequence[_Ceiling], demand: Demand, reservation: Reservation
) -> dict[CounterKey, PeriodDebit | Supplement]:
    """Make what will hold, here, what a reservation holds beyond what Redis holds for it now."""
    held_tokens = reservation.held_output_tokens or 0
    return {
        ceiling.pool.counter.key: Supplement(ceiling.pool.counter, held_amount(ceiling.limit.kind, demand, held_tokens))
        for ceiling in ceilings
    }


def _held_debits(hold: Hold) -> dict[CounterKey, PeriodDebit | Supplement]:
    debits = [debit for debit in hold.debits if isinstance(debit, PeriodDebit | Supplement)]
    return {debit.counter.key: debit for debit in debits}


async def _know_nothing(periods: Sequence[Period]) -> list[Sums]:
    """Stand in for the ledger: the memory meter here is given no periods."""
    return [Sums() for _ in periods]
