"""Finds the counters that bind a request, and learns from the ledger what they do not know yet.

A quota or budget counter that is met for the first time is attached to every live or reaped hold in its scope, and
in the same step the ledger is asked: the ledger's answer holds what was settled before, the attached holds bring
what is settled after, so each settlement lands exactly once. From then on every reservation in its scope moves it,
also one whose principal does not (or not yet, or no longer) list the limit. Gauges are attached likewise; nothing is
asked for them. Rates start at zero. Not here: the decision.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain

from meterhouse.errors import GatewayError, MeterDown
from meterhouse.limits.counter import (
    Bound,
    CounterKey,
    GaugeBound,
    GaugeCounter,
    GaugeDebit,
    Identity,
    Owner,
    PeriodBound,
    PeriodCounter,
    PeriodDebit,
    RateBound,
    identity_of,
    owners_of,
)
from meterhouse.limits.holds import Hold, Holds
from meterhouse.limits.sizing import held_amount
from meterhouse.limits.window import RateCounter, period_of
from meterhouse.metering import Correction, Demand, Kind, Limit, Nature, Period, Scope, Sums

Seed = Callable[[Sequence[Period]], Awaitable[list[Sums]]]
"""Says what the ledger knows of periods: every record settled before the call, and none settled after it."""

MOST_PLANS = 10_000
FOREVER_MS = 2**62


class Plan:
    """Which counters a principal's requests for one model meet, until a period ends."""

    __slots__ = ("bounds", "budgets", "companions", "from_ms", "limits", "missing", "token_quotas", "until_ms")

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self.limits = limits
        """Kept so that the tuple's id, by which plans are found, is not given to another."""
        self.bounds: list[Bound] = []
        self.budgets: list[PeriodBound] = []
        self.token_quotas: list[PeriodBound] = []
        self.companions: list[PeriodCounter | GaugeCounter] = []
        """Counters in scope that run along without a limit of this principal."""
        self.missing: list[Period] = []
        """Periods to be learned before anything can be decided."""
        self.from_ms = -FOREVER_MS
        self.until_ms = FOREVER_MS

    def add_period(self, limit: Limit, counter: PeriodCounter) -> None:
        """Bind a quota or budget."""
        bound = PeriodBound(limit, counter)
        self.bounds.append(bound)
        if limit.kind is Kind.SPEND:
            self.budgets.append(bound)
        elif limit.kind is Kind.TOKENS:
            self.token_quotas.append(bound)

    def expire_with(self, period: Period) -> None:
        """Hold the plan good only inside a period."""
        if period.start_ms is not None:
            self.from_ms = max(self.from_ms, period.start_ms)
        if period.end_ms is not None:
            self.until_ms = min(self.until_ms, period.end_ms)


class Counters:
    """All counters of the process."""

    def __init__(self, seed: Seed, holds: Holds, seed_seconds: float) -> None:
        self._seed = seed
        self._holds = holds
        self._seed_seconds = seed_seconds
        self._rates: dict[Identity, RateCounter] = {}
        # Counters that run along with everything in their owner's scope: gauges, and periods known or being learned.
        self._attached: dict[Owner, dict[CounterKey, PeriodCounter | GaugeCounter]] = {}
        self._flights: dict[CounterKey, asyncio.Task[GatewayError | None]] = {}
        self._plans: dict[tuple[int, str, str], Plan] = {}

    def plan(self, demand: Demand, now_ms: int) -> Plan:
        """Return what binds a demand now; cached, because a principal's limits stay the same tuple."""
        key = (id(demand.limits), demand.model, demand.root_key_id)
        plan = self._plans.get(key)
        if plan is not None and plan.from_ms <= now_ms < plan.until_ms:
            return plan
        plan = self._make_plan(demand, now_ms)
        if not plan.missing:
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def find_unlearned(self, hold: Hold) -> list[Period]:
        """Return the periods of the limits that bind a live hold of which the counters are not known any more."""
        known = {
            debit.counter.key for debit in hold.debits if isinstance(debit, PeriodDebit) and debit.counter.is_known
        }
        limits = [limit for limit in _strictest(hold.demand).values() if limit.nature in {Nature.QUOTA, Nature.BUDGET}]
        periods = [period_of(limit, hold.reservation.admitted_at_ms) for limit in limits]
        return [period for period in periods if (identity_of(period.limit), period.start_ms) not in known]

    def bind(self, limits: Iterable[Limit], now_ms: int) -> Plan:
        """Return a plan of exactly these limits, for looking at them."""
        plan = Plan(())
        for limit in limits:
            self._bind(plan, limit, now_ms)
        return plan

    async def learn(self, periods: Iterable[Period]) -> None:
        """Ask the ledger about periods, once however many requests wait for the answer.

        Raises:
            MeterDown: The ledger could not say.
        """
        wanted = {(identity_of(period.limit), period.start_ms): period for period in periods}
        fresh = {key: period for key, period in wanted.items() if key not in self._flights}
        if fresh:
            task = asyncio.create_task(self._fly(list(fresh.values())))
            self._flights |= dict.fromkeys(fresh, task)
        flights = {self._flights[key] for key in wanted}
        await asyncio.wait(flights)
        for flight in flights:
            failure = MeterDown("The meter was closed.") if flight.cancelled() else flight.result()
            if failure is not None:
                raise meter_down(f"seed failed: {failure.message} {failure.detail}") from failure

    def unlearn(self, correction: Correction) -> None:
        """Forget the counters that a correction of the ledger changes; the next request learns them again."""
        owners: tuple[Owner, ...] = (
            (Scope.KEY, correction.root_key_id or ""),
            (Scope.PROJECT, correction.project_id),
            (Scope.ORGANIZATION, correction.organization_id),
        )
        found = [counter for owner in owners for counter in self._attached.get(owner, {}).values()]
        for counter in found:
            if isinstance(counter, PeriodCounter) and counter.contains(correction.at_ms):
                if counter.is_known:
                    self._detach(counter)
                counter.is_outdated = True

    async def close(self) -> None:
        """Give up what is being learned."""
        flights = set(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        self._flights.clear()

    def forget(self, now_ms: int) -> None:
        """Drop what cannot matter again: periods that are over, gauges nobody is in, rates idle for two windows.

        A debit may still point at a period or gauge that was dropped; nobody asks for that one again. Not so a rate:
        what a long answer used beyond its estimate must reach the counter that the next request meets.
        """
        for counter in [counter for counters in self._attached.values() for counter in counters.values()]:
            if _is_over(counter, now_ms):
                self._remove(counter)
        idle = [(identity, rate) for identity, rate in self._rates.items() if rate.is_idle(now_ms)]
        if idle:
            in_use = {id(debit.counter) for hold in self._holds for debit in hold.debits}
            for identity, rate in idle:
                if id(rate) not in in_use:
                    del self._rates[identity]
            self._plans.clear()

    # --- binding

    def _make_plan(self, demand: Demand, now_ms: int) -> Plan:
        plan = Plan(demand.limits)
        strictest = _strictest(demand)
        for limit in strictest.values():
            self._bind(plan, limit, now_ms)
        for counter in chain.from_iterable(self._attached.get(owner, {}).values() for owner in owners_of(demand)):
            if counter.identity in strictest or not counter.identity.covers(demand):
                continue
            if isinstance(counter, GaugeCounter):
                plan.companions.append(counter)
            elif counter.contains(now_ms):
                plan.companions.append(counter)
                plan.expire_with(counter.period)
        return plan

    def _bind(self, plan: Plan, limit: Limit, now_ms: int) -> None:
        identity = identity_of(limit)
        if limit.nature is Nature.RATE:
            rate = self._rates.get(identity)
            if rate is None:
                rate = self._rates[identity] = RateCounter(limit.window_ms)
            plan.bounds.append(RateBound(limit, rate))
            return
        attached = self._attached.get(identity.owner, {})
        if limit.nature is Nature.GAUGE:
            gauge = attached.get((identity, None))
            if not isinstance(gauge, GaugeCounter):
                gauge = GaugeCounter(identity)
                self._attach(gauge)
            plan.bounds.append(GaugeBound(limit, gauge))
            return
        period = period_of(limit, now_ms)
        plan.expire_with(period)
        counter = attached.get((identity, period.start_ms))
        if isinstance(counter, PeriodCounter) and counter.is_known:
            plan.add_period(limit, counter)
        else:
            plan.missing.append(period)

    # --- learning

    async def _fly(self, periods: list[Period]) -> GatewayError | None:
        """Attach counters, ask the ledger, and add its answer; returns why it failed."""
        counters = [PeriodCounter(period) for period in periods]
        is_learned = False
        try:
            for counter in counters:
                self._attach(counter)
            async with asyncio.timeout(self._seed_seconds):
                # The seed's body starts within this step: nothing is settled between attaching and asking.
                sums = await self._seed(periods)
            for counter, known in zip(counters, sums, strict=True):
                counter.seed(known)
            is_learned = not any(counter.is_outdated for counter in counters)
        except TimeoutError:
            return MeterDown("The ledger did not answer in time.")
        except GatewayError as error:
            return error
        finally:
            for counter in counters:
                del self._flights[counter.key]
                if not is_learned:
                    self._detach(counter)
        return None

    def _attach(self, counter: PeriodCounter | GaugeCounter) -> None:
        """Let a counter run along, with what is held or was reaped in its scope before it was met."""
        owner = counter.identity.owner
        for hold in self._holds:
            if owner in owners_of(hold.demand) and counter.identity.covers(hold.demand):
                if isinstance(counter, GaugeCounter):
                    _open_in(counter, hold)
                elif counter.contains(hold.reservation.admitted_at_ms):
                    _hold_in(counter, hold)
        self._attached.setdefault(owner, {})[counter.key] = counter
        self._plans.clear()

    def _detach(self, counter: PeriodCounter) -> None:
        """Undo an attachment: the next attempt begins anew, with what the ledger knows by then."""
        for hold in self._holds:
            hold.debits[:] = [debit for debit in hold.debits if debit.counter is not counter]
        self._remove(counter)

    def _remove(self, counter: PeriodCounter | GaugeCounter) -> None:
        owner = counter.identity.owner
        del self._attached[owner][counter.key]
        if not self._attached[owner]:
            del self._attached[owner]
        self._plans.clear()


def meter_down(detail: str) -> MeterDown:
    """Make the error of a request that the meter cannot decide."""
    return MeterDown(
        "Usage limits cannot be checked right now. Please try again.", detail=detail, retry_after_seconds=1
    )


def _strictest(demand: Demand) -> dict[Identity, Limit]:
    """Return the limits that bind a demand: of those that count on one counter the one with the least amount."""
    strictest: dict[Identity, Limit] = {}
    for limit in demand.limits:
        identity = identity_of(limit)
        if identity.covers(demand):
            other = strictest.get(identity)
            if other is None or limit.amount < other.amount:
                strictest[identity] = limit
    return strictest


def _is_over(counter: PeriodCounter | GaugeCounter, now_ms: int) -> bool:
    if isinstance(counter, GaugeCounter):
        return not counter.open_requests
    limit_ends_at_ms = counter.period.limit.ends_at_ms
    end_ms = counter.end_ms if limit_ends_at_ms is None else limit_ends_at_ms
    is_past = end_ms is not None and end_ms <= now_ms
    return is_past and counter.is_known and not counter.reserved


def _open_in(gauge: GaugeCounter, hold: Hold) -> None:
    if hold.reaped_at_ms is None:
        hold.debits.append(GaugeDebit(gauge))


def _hold_in(counter: PeriodCounter, hold: Hold) -> None:
    """Hold in a counter what a reservation holds, or count what a reaped one was resolved at."""
    if hold.reaped_at_ms is None:
        held = held_amount(counter.kind, hold.demand, hold.held_output_tokens)
        # Where a correction had the counter forgotten, the limit that admitted the hold goes on to bind it.
        limit = _strictest(hold.demand).get(counter.identity)
        hold.debits.append(PeriodDebit(counter, held, None if limit is None else limit.amount))
        return
    debit = PeriodDebit(counter, 0, None)
    debit.resolve(hold.last_known(), hold.reaped_at_ms)
    hold.debits.append(debit)
