"""The meter of one process: every counter in memory, every decision one step without an await.

Invariant: for each quota and budget, spent is what the ledger's records of its period add up to, and reserved is
what live reservations hold; nothing is admitted beyond the limit. What is not known yet is learned from the ledger
before anything is decided. Not here: finding counters (``counters``), arithmetic (``sizing``, ``window``).
"""

from collections.abc import Callable, Mapping, Sequence

from meterhouse.errors import MeterDown
from meterhouse.limits.counter import Debit, GaugeCounter, GaugeDebit, PeriodBound, PeriodDebit, Verdict
from meterhouse.limits.counters import Counters, Plan, Seed, meter_down
from meterhouse.limits.holds import Hold, Holds
from meterhouse.limits.patience import patience
from meterhouse.limits.sizing import Sizes, held_amount, size_demand, spend_nanos
from meterhouse.metering import (
    Clock,
    Correction,
    Demand,
    Kind,
    Limit,
    LimitState,
    Period,
    Refusal,
    RefusalKind,
    Reservation,
    Settlement,
    Use,
)

LEASE_MS = 60_000
SEED_WAIT_SECONDS = 1.0
"""How long a request waits for the ledger."""
SEED_SECONDS = 10.0
"""How long the ledger may take to answer; later requests profit from an answer that was late for the first."""
MOST_REAPED_AT_ONCE = 50

_SEVERITY = {RefusalKind.TOO_LARGE: 2, RefusalKind.SPENT: 1, RefusalKind.RESERVED: 0, RefusalKind.RATE: 0}


class MemoryMeter:
    """Implements ``metering.Meter``. Call ``sweep`` every 30 s, and ``close`` at the end."""

    def __init__(
        self,
        clock: Clock,
        seed: Seed,
        *,
        lease_ms: int = LEASE_MS,
        lease_now_ms: Callable[[], int] | None = None,
        seed_wait_seconds: float = SEED_WAIT_SECONDS,
        seed_seconds: float = SEED_SECONDS,
    ) -> None:
        self._clock = clock
        self._lease_ms = lease_ms
        # A wall clock that is set forward would end the leases of requests that run.
        self._lease_now_ms = lease_now_ms or clock.now_ms
        self._seed_wait_seconds = seed_wait_seconds
        self._holds = Holds(lease_ms)
        self._counters = Counters(seed, self._holds, seed_seconds)

    async def reserve(self, demand: Demand) -> Reservation | Refusal:
        """Hold a demand against all limits or none; the same id gets the same live reservation.

        An id that was settled or reaped before gets a reservation that holds and allows nothing.

        Raises:
            MeterDown: The ledger did not say in time what is spent.
        """
        decided = self._try(demand)
        if not isinstance(decided, Plan):
            return decided
        try:
            async with patience(self._seed_wait_seconds):
                while isinstance(decided, Plan):
                    await self._counters.learn(decided.missing)
                    decided = self._try(demand)
        except TimeoutError:
            raise meter_down("seed is late") from None
        return decided

    async def extend(self, reservation: Reservation, output_tokens: int) -> bool:
        """Hold more output tokens (over all choices) against every budget and token quota, or none of them.

        The limits under which the request was admitted decide. False: one of them has no room, or the reservation is
        not live, or the ledger did not say in time what is spent of it; the hold stays as it was. A reservation that
        holds nothing in full needs no more: True.
        """
        extended = self._try_extend(reservation, output_tokens)
        if isinstance(extended, bool):
            return extended
        try:
            async with patience(self._seed_wait_seconds):
                while not isinstance(extended, bool):
                    await self._counters.learn(extended)
                    extended = self._try_extend(reservation, output_tokens)
        except (TimeoutError, MeterDown):
            return False
        return extended

    def settle(self, reservation: Reservation, settlement: Settlement) -> None:
        """Move every quota and budget to exactly the settlement; a second time, or an unknown id, changes nothing.

        After a reaping, the difference to what the reaping charged is applied once.
        """
        self._holds.settle(reservation.request_id, settlement, self._clock.now_ms())

    def send_settled(self) -> None:
        """Do nothing: what is settled is done."""

    async def renew(self, uses: Mapping[str, Use]) -> None:
        """Move live leases forward with what each request has used so far; unknown ids are ignored."""
        now_ms = self._lease_now_ms()
        for request_id, use in uses.items():
            self._holds.renew(request_id, use, now_ms)

    async def list_states(self, organization_id: str, limits: Sequence[Limit]) -> list[LimitState]:  # noqa: ARG002 - here limits say it all
        """Say where each of these limits stands now, in their order.

        Raises:
            MeterDown: The ledger did not say in time what is spent.
        """
        try:
            async with patience(self._seed_wait_seconds):
                while True:
                    now_ms = self._clock.now_ms()
                    plan = self._counters.bind(limits, now_ms)
                    if not plan.missing:
                        return [bound.state(now_ms) for bound in plan.bounds]
                    await self._counters.learn(plan.missing)
        except TimeoutError:
            raise meter_down("seed is late") from None

    async def adjust(self, correction: Correction) -> None:
        """Move what is spent by a correction that the ledger has."""
        self._counters.unlearn(correction)

    def sweep(self) -> int:
        """Reap every expired lease and drop what cannot matter again; returns how many leases were reaped."""
        now_ms = self._clock.now_ms()
        lease_now_ms = self._lease_now_ms()
        reaped = sum(self._holds.reap(name, now_ms, lease_now_ms) for name in self._holds.organizations())
        self._holds.forget(now_ms)
        self._counters.forget(now_ms)
        return reaped

    async def close(self) -> None:
        """Give up what is being learned from the ledger."""
        await self._counters.close()

    def _try(self, demand: Demand) -> Reservation | Refusal | Plan:
        """Decide in one step; returns the plan if something must be learned first."""
        hold = self._holds.find_live(demand.request_id)
        if hold is not None:
            return hold.reservation
        now_ms = self._clock.now_ms()
        if self._holds.is_resolved(demand.request_id):
            return Reservation(demand.request_id, now_ms, 0, 0, 0, ())
        self._holds.reap(demand.organization_id, now_ms, self._lease_now_ms(), MOST_REAPED_AT_ONCE)
        plan = self._counters.plan(demand, now_ms)
        if plan.missing:
            return plan
        sizes = size_demand(demand, _least_free(plan.budgets), _least_free(plan.token_quotas))
        worst: Verdict | None = None
        for bound in plan.bounds:
            verdict = bound.judge(sizes, now_ms)
            if verdict is not None and (worst is None or _gravity(verdict) > _gravity(worst)):
                worst = verdict
        if worst is not None:
            return _refuse(worst, plan, now_ms)
        return self._hold(demand, plan, sizes, now_ms)

    def _try_extend(self, reservation: Reservation, output_tokens: int) -> bool | list[Period]:
        """Decide in one step; returns the periods that must be learned first, if there are any."""
        hold = self._holds.find_live(reservation.request_id)
        if hold is None:
            return False
        if hold.reservation.held_output_tokens is None or output_tokens <= 0:
            return True
        return self._counters.find_unlearned(hold) or _extend(hold, hold.reservation.held_output_tokens + output_tokens)

    def _hold(self, demand: Demand, plan: Plan, sizes: Sizes, now_ms: int) -> Reservation:
        debits: list[Debit] = [bound.debit(sizes, now_ms) for bound in plan.bounds]
        reservation = Reservation(
            demand.request_id,
            now_ms,
            sizes.allowance_tokens,
            sizes.output_tokens,
            sizes.held_nanos,
            [bound.state(now_ms) for bound in plan.bounds],
        )
        hold = Hold(demand, reservation, debits, self._lease_now_ms() + self._lease_ms)
        for counter in plan.companions:
            if isinstance(counter, GaugeCounter):
                debits.append(GaugeDebit(counter))
            else:
                held = held_amount(counter.kind, demand, hold.held_output_tokens)
                debits.append(PeriodDebit(counter, held, None))
        self._holds.add(hold)
        return reservation


def _least_free(bounds: Sequence[PeriodBound]) -> int | None:
    return min([bound.free for bound in bounds]) if bounds else None


def _gravity(verdict: Verdict) -> tuple[int, int]:
    """Order refusals by how bad they are for the caller: final before waiting, then the longest wait."""
    return _SEVERITY[verdict.kind], verdict.wait_ms or 0


def _refuse(verdict: Verdict, plan: Plan, now_ms: int) -> Refusal:
    return Refusal(
        kind=verdict.kind,
        limit=verdict.limit,
        used=verdict.used,
        demanded=verdict.demanded,
        retry_after_seconds=None if verdict.wait_ms is None else verdict.wait_ms / 1000,
        states=[bound.state(now_ms) for bound in plan.bounds],
    )


def _extend(hold: Hold, held_tokens: int) -> bool:
    reservation = hold.reservation
    debits = [debit for debit in hold.debits if isinstance(debit, PeriodDebit)]
    wanted = [(debit, debit.more(hold.demand, held_tokens)) for debit in debits]
    if not all(debit.has_room(more) for debit, more in wanted):
        return False
    for debit, more in wanted:
        debit.hold(more)
    reservation.held_output_tokens = held_tokens
    if any(debit.counter.kind is Kind.SPEND and debit.limit_amount is not None for debit in debits):
        reservation.held_nanos = spend_nanos(hold.demand, held_tokens)
    return True
