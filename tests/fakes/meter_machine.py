"""Any order of what workers do to a meter, against an exact model of what it must say.

The model keeps every request for ever and adds up with fractions; the meter forgets, caches and reaps. After each
step, every limit that the meter has met must stand where the model says, and no decision may differ from the model's.
Not here: what can befall only a meter on Redis (``contract/test_meter_machine``).
"""

import asyncio
from collections.abc import Sequence
from fractions import Fraction
from math import ceil

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fakes.meter_bench import LEASE_MS, Bench
from fakes.meter_model import Request, amount_of, hold_of
from fakes.meter_oracle import ORGANIZATION, Record, build_demand, is_in_period, is_in_scope
from meterhouse.limits.limit import parse_limits
from meterhouse.limits.window import period_of
from meterhouse.metering import (
    Demand,
    Kind,
    Limit,
    LimitState,
    Meter,
    Nature,
    Period,
    Refusal,
    RefusalKind,
    Reservation,
    Scope,
    Settlement,
    Use,
    Window,
)
from meterhouse.usage import Exactness

HOUR_MS = 3_600_000
LATEST_LATE_MS = 40 * HOUR_MS
KEY_TEXT = "8/minute; tokens 30000/minute; 3 per 3 seconds; concurrent 4; requests 12/day; spend 0.00004 USD/month"
MODEL_TEXT = "tokens 40000/day for small; requests 20 total for small; concurrent 2 for small; 5/second for small"
SHARED_TEXT = "tokens 90000 total; spend 0.0003 USD/day; concurrent 6; tokens 60000/hour"


ASKED = st.fixed_dictionaries(
    {
        "key": st.sampled_from(["key_1", "key_2"]),
        "model": st.sampled_from(["small", "large"]),
        "output_tokens": st.integers(0, 9_000),
        "held_input_tokens": st.integers(0, 3_000) | st.integers(0, 60_000),
        "choices": st.integers(1, 2),
        "is_streamed": st.booleans(),
        "is_hidden": st.booleans(),
        "knows_all_limits": st.sampled_from([True, True, True, False]),
    }
)
"""What a client may ask for; one in four comes with a principal that lists only half of the limits."""


class MeterMachine(RuleBasedStateMachine):
    """Two keys of one project, two models, limits of every kind and scope."""

    before_end_ms = 1
    """How long before the end of a month the clock may stand."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.bench = bench
        self.clock = bench.clock
        self.oracle = bench.oracle
        self.requests: list[Request] = []
        self.met: set[Limit] = set()
        self.overruns: dict[tuple[Limit, int | None], int] = {}
        self.rates: dict[Limit, dict[int, int]] = {}
        self.runner.run(bench.open())
        shared = parse_limits(SHARED_TEXT, Scope.ORGANIZATION, "org_1")
        shared += parse_limits(MODEL_TEXT, Scope.PROJECT, "proj_1")
        self.limits = {key: parse_limits(KEY_TEXT, Scope.KEY, key) + shared for key in ("key_1", "key_2")}
        self.partial = {key: limits[1::2] for key, limits in self.limits.items()}

    def teardown(self) -> None:
        self.runner.run(self.bench.close())
        self.runner.close()

    @property
    def meter(self) -> Meter:
        return self.bench.meter

    def prepare(self, limits: Sequence[Limit]) -> None:
        """Do what must be done before limits can be met exactly."""

    async def tell(self, reservation: Reservation, settlement: Settlement) -> None:
        """Settle, and wait until the meter has done it."""
        self.meter.settle(reservation, settlement)

    @initialize(hours=st.integers(0, 31 * 24))
    def begin_somewhere_in_the_month(self, hours: int) -> None:
        self.clock.move(hours=hours)

    # --- what workers do

    @rule(asked=st.lists(ASKED, min_size=1, max_size=5))
    def reserve(self, asked: list[dict[str, int]]) -> None:
        for sizes in asked:
            self.reserve_one(**sizes)

    @rule(asked=st.lists(ASKED, min_size=3, max_size=8), ms=st.integers(0, 20_000))
    def reserve_in_a_burst(self, asked: list[dict[str, int]], ms: int) -> None:
        for sizes in asked:
            self.clock.move(ms=ms)
            self.reserve_one(**sizes)

    def reserve_one(self, *, key: str, model: str, knows_all_limits: bool, is_hidden: bool, **sizes: int) -> None:
        demand = build_demand(
            (self.limits if knows_all_limits else self.partial)[key],
            root_key_id=key,
            model=model,
            rate_input_tokens=sizes["held_input_tokens"] // 3,
            rate_output_tokens=min(sizes["output_tokens"], 4_096),
            holds_whole_allowance=is_hidden,
            input_nanos_per_million=0 if model == "small" else 1_234_567,
            output_nanos_per_million=333_333 if model == "small" else 2_500_001,
            request_nanos=3,
            **sizes,
        )
        self.prepare(demand.limits)
        self.reap_expired()
        self.met |= set(demand.limits)
        before = {limit: self.expect(limit) for limit in demand.limits if limit.model in {None, model}}
        decision = self.runner.run(self.meter.reserve(demand))
        if isinstance(decision, Refusal):
            self.check_refusal(demand, decision, before)
        else:
            self.check_admission(demand, decision, before)

    @precondition(lambda self: any(request.is_usable for request in self.requests))
    @rule(data=st.data(), output_tokens=st.integers(0, 5_000))
    def extend(self, data: st.DataObject, output_tokens: int) -> None:
        request = data.draw(st.sampled_from([request for request in self.requests if request.is_usable]))
        held = request.reservation.held_output_tokens
        has_room = True
        if held is not None:
            for limit in self.limits_held_in_full(request.demand):
                more = hold_of(limit, request.demand, held + output_tokens) - hold_of(limit, request.demand, held)
                state = self.expect(limit, period_of(limit, request.reservation.admitted_at_ms))
                has_room &= output_tokens == 0 or state.spent + state.reserved + more <= limit.amount
        assert self.runner.run(self.meter.extend(request.reservation, output_tokens)) is has_room
        if held is None or not has_room:
            assert request.reservation.held_output_tokens == held
            return
        assert request.reservation.held_output_tokens == held + output_tokens
        for limit in self.unlisted(request.demand):
            more = hold_of(limit, request.demand, held + output_tokens) - hold_of(limit, request.demand, held)
            self.add_overrun(limit, request, more)

    @precondition(lambda self: any(self.can_settle(request) for request in self.requests))
    @rule(
        data=st.data(),
        shares=st.lists(st.integers(0, 130), min_size=1, max_size=5),
        exactness=st.sampled_from(Exactness),
        is_sent=st.sampled_from([True, True, True, False]),
    )
    def settle(self, data: st.DataObject, shares: list[int], exactness: Exactness, is_sent: bool) -> None:
        for share in shares:
            open_requests = [request for request in self.requests if self.can_settle(request)]
            if open_requests:
                self.settle_one(data.draw(st.sampled_from(open_requests)), share, exactness, is_sent=is_sent)

    def settle_one(self, request: Request, share: int, exactness: Exactness, *, is_sent: bool) -> None:
        demand = request.demand
        tokens = (demand.held_input_tokens + request.held_output_tokens) * share // 100
        settlement = Settlement(1, tokens, tokens * 7 // 3, exactness) if is_sent else Settlement(0, 0, 0, exactness)
        self.resolve(request, settlement, is_reaping=False)
        self.write_record(request)
        self.runner.run(self.tell(request.reservation, settlement))

    @precondition(lambda self: bool(self.requests))
    @rule(data=st.data(), tokens=st.integers(0, 9_000))
    def come_again(self, data: st.DataObject, tokens: int) -> None:
        request = data.draw(st.sampled_from(self.requests))
        if request.is_usable:
            assert self.runner.run(self.meter.reserve(request.demand)) is request.reservation
        elif request.settlement is not None:
            self.settle_again(request, Settlement(1, tokens, tokens, Exactness.REPORTED))

    def settle_again(self, request: Request, settlement: Settlement) -> None:
        self.runner.run(self.tell(request.reservation, settlement))

    def write_record(self, request: Request) -> None:
        """Let the ledger know what became of a request."""
        assert request.settlement is not None
        at_ms = request.reservation.admitted_at_ms
        self.oracle.records.append(Record(request.demand, at_ms, request.settlement))

    @precondition(lambda self: any(self.can_renew(request) for request in self.requests))
    @rule(data=st.data(), tokens=st.integers(0, 5_000), is_sent=st.booleans())
    def renew(self, data: st.DataObject, tokens: int, is_sent: bool) -> None:
        renewed = [request for request in self.requests if self.can_renew(request)]
        chosen = data.draw(st.lists(st.sampled_from(renewed), max_size=4))
        use = Use(is_sent=is_sent, total_tokens=tokens, charge_nanos=tokens * 2)
        self.runner.run(self.meter.renew({request.demand.request_id: use for request in chosen}))
        for request in chosen:
            self.note_renewal(request, use)

    def note_renewal(self, request: Request, use: Use) -> None:
        if request.is_usable:
            request.use = use
            request.expires_at_ms = self.clock.now_ms() + LEASE_MS

    @rule(looks_at_all_limits=st.booleans())
    def sweep(self, looks_at_all_limits: bool) -> None:
        assert self.runner.run(self.bench.sweep()) == self.reap_expired()
        if looks_at_all_limits:
            self.met |= {*self.limits["key_1"], *self.limits["key_2"]}

    @rule(ms=st.sampled_from([1, 400, 999, 1_000, 7_300, 30_000, 59_999, 60_000, 61_001, 3 * HOUR_MS, None]))
    def wait(self, ms: int | None) -> None:
        if ms is None:
            month = period_of(Limit(Scope.KEY, "", Kind.SPEND, Window.MONTH, 1), self.clock.now_ms())
            assert month.end_ms is not None
            ms = max(0, month.end_ms - self.clock.now_ms() - self.before_end_ms)
        self.clock.move(ms=ms)

    # --- what must hold

    @invariant()
    def every_limit_stands_where_the_model_says(self) -> None:
        limits = sorted(self.met, key=repr)
        self.prepare(limits)
        for limit, state in zip(limits, self.runner.run(self.meter.list_states(ORGANIZATION, limits)), strict=True):
            expected = self.expect(limit)
            assert (state.spent, state.reserved) == (expected.spent, expected.reserved), limit
            if limit.nature in {Nature.QUOTA, Nature.BUDGET}:
                period = period_of(limit, self.clock.now_ms())
                overrun = self.overruns.get((limit, period.start_ms), 0)
                assert state.spent + state.reserved <= limit.amount + overrun, limit
            if not any(request.is_live for request in self.requests):
                assert state.reserved == 0

    def check_admission(self, demand: Demand, reservation: Reservation, before: dict[Limit, LimitState]) -> None:
        now_ms = self.clock.now_ms()
        assert reservation.admitted_at_ms == now_ms
        assert not reservation.is_degraded
        allowance, output = reservation.allowance_tokens, reservation.held_output_tokens
        request = Request(demand, reservation, now_ms + LEASE_MS)
        assert (output is not None) == any(limit.is_held_in_full for limit in before)
        if output is not None:
            assert allowance is not None
            assert min(demand.output_tokens, 1_024) <= allowance <= demand.output_tokens
            is_sliced = demand.is_streamed and not demand.holds_whole_allowance
            assert output == (min(allowance, 2_048) if is_sliced else allowance) * demand.choices
        for limit, state in before.items():
            if limit.nature is Nature.RATE:
                amount = self.rate_demand(limit, demand, allowance)
                index = now_ms // limit.window_ms
                window = self.rates.setdefault(limit, {})
                window[index] = window.get(index, 0) + amount
                request.rate_windows[limit] = (index, amount)
            elif limit.nature is Nature.GAUGE:
                amount = 1
            else:
                amount = hold_of(limit, demand, request.held_output_tokens)
            assert state.spent + state.reserved + amount <= limit.amount, limit
        for limit in self.unlisted(demand):
            self.add_overrun(limit, request, hold_of(limit, demand, request.held_output_tokens))
        self.requests.append(request)

    def check_refusal(self, demand: Demand, refusal: Refusal, before: dict[Limit, LimitState]) -> None:
        state = before[refusal.limit]
        limit, amount = refusal.limit, refusal.limit.amount
        floor_tokens = min(demand.output_tokens, 1_024) * demand.choices
        smallest = 1 if limit.nature in {Nature.GAUGE, Nature.RATE} else hold_of(limit, demand, floor_tokens)
        if refusal.kind is RefusalKind.TOO_LARGE:
            assert refusal.demanded > amount
            assert limit.nature is Nature.RATE or refusal.demanded == smallest
        elif refusal.kind is RefusalKind.SPENT:
            assert smallest <= amount < state.spent + smallest
        elif refusal.kind is RefusalKind.RESERVED:
            assert state.spent + smallest <= amount < state.spent + state.reserved + smallest
        else:
            assert state.spent + refusal.demanded > amount >= refusal.demanded
            assert refusal.retry_after_seconds is not None
            wait_ms = round(refusal.retry_after_seconds * 1000)
            assert self.rate_used(limit, self.clock.now_ms() + wait_ms) + refusal.demanded <= amount
            assert self.rate_used(limit, self.clock.now_ms() + wait_ms - 1) + refusal.demanded > amount
        assert (refusal.retry_after_seconds is None) == (refusal.kind in {RefusalKind.TOO_LARGE, RefusalKind.SPENT})

    # --- the model

    def expect(self, limit: Limit, period: Period | None = None) -> LimitState:
        now_ms = self.clock.now_ms()
        if limit.nature is Nature.RATE:
            return LimitState(limit, self.rate_used(limit, now_ms), 0, None)
        mine = [request for request in self.requests if is_in_scope(limit, request.demand)]
        if limit.nature is Nature.GAUGE:
            return LimitState(limit, 0, sum(request.is_live for request in mine), None)
        period = period or period_of(limit, now_ms)
        mine = [request for request in mine if is_in_period(period, request.reservation.admitted_at_ms)]
        spent = sum(amount_of(limit, request.applied) for request in mine)
        reserved = sum(
            hold_of(limit, request.demand, request.held_output_tokens) for request in mine if request.is_live
        )
        return LimitState(limit, spent, reserved, None)

    def rate_used(self, limit: Limit, now_ms: int) -> int:
        windows = self.rates.get(limit, {})
        index, elapsed_ms = divmod(now_ms, limit.window_ms)
        share = 1 - Fraction(elapsed_ms, limit.window_ms)
        return windows.get(index, 0) + ceil(windows.get(index - 1, 0) * share)

    def rate_demand(self, limit: Limit, demand: Demand, allowance: int | None) -> int:
        if limit.kind is Kind.REQUESTS:
            return 1
        output = demand.rate_output_tokens if allowance is None else min(allowance, demand.rate_output_tokens)
        return demand.rate_input_tokens + output * demand.choices

    def limits_held_in_full(self, demand: Demand) -> list[Limit]:
        """The limits that judge an extension: those of the admission."""
        return [limit for limit in demand.limits if limit.is_held_in_full and limit.model in {None, demand.model}]

    def can_settle(self, request: Request) -> bool:
        return request.settlement is None and not self.is_forgotten(request) and not request.is_orphan

    def can_renew(self, request: Request) -> bool:
        """What is over may be renewed too, which changes nothing."""
        return not self.is_forgotten(request)

    def is_forgotten(self, request: Request) -> bool:
        """Whether its reaping is so long ago that the meter does not remember it."""
        return request.reaped_at_ms is not None and self.clock.now_ms() - request.reaped_at_ms > LATEST_LATE_MS

    def reap_expired(self) -> int:
        expired = [
            request for request in self.requests if request.is_live and request.expires_at_ms <= self.clock.now_ms()
        ]
        for request in expired:
            use = request.use
            is_sent = use is not None and use.is_sent
            settlement = (
                Settlement(1, use.total_tokens, use.charge_nanos, Exactness.COUNTED) if use and is_sent else None
            )
            self.resolve(request, settlement or Settlement(0, 0, 0, Exactness.COUNTED), is_reaping=True)
        return len(expired)

    def resolve(self, request: Request, settlement: Settlement, *, is_reaping: bool) -> None:
        self.count_overrun(request, settlement, held=request.is_live)
        now_ms = self.clock.now_ms()
        for limit, (index, debited) in request.rate_windows.items():
            difference = amount_of(limit, settlement) - debited
            if difference < 0 and settlement.exactness is not Exactness.REPORTED:
                continue
            now_index = now_ms // limit.window_ms
            counts = index >= now_index - 1
            if counts or difference > 0:
                window = self.rates.setdefault(limit, {})
                target = index if counts else now_index
                window[target] = window.get(target, 0) + difference
            request.rate_windows[limit] = (index, debited + difference)
        if is_reaping:
            request.reaped_at_ms = now_ms
        else:
            request.settlement = settlement

    def count_overrun(self, request: Request, settlement: Settlement, *, held: bool) -> None:
        for limit in {*self.limits["key_1"], *self.limits["key_2"]}:
            if is_in_scope(limit, request.demand) and limit.nature in {Nature.QUOTA, Nature.BUDGET}:
                hold = hold_of(limit, request.demand, request.held_output_tokens) if held else 0
                known = 0 if held else amount_of(limit, request.applied)
                self.add_overrun(limit, request, amount_of(limit, settlement) - max(hold, known))

    def unlisted(self, demand: Demand) -> list[Limit]:
        """Quotas and budgets in scope that the principal did not list: nothing holds the request back."""
        others = {*self.limits["key_1"], *self.limits["key_2"]} - set(demand.limits)
        natures = {Nature.QUOTA, Nature.BUDGET}
        return [limit for limit in others if limit.nature in natures and is_in_scope(limit, demand)]

    def add_overrun(self, limit: Limit, request: Request, amount: int) -> None:
        period = period_of(limit, request.reservation.admitted_at_ms)
        key = (limit, period.start_ms)
        self.overruns[key] = self.overruns.get(key, 0) + max(0, amount)
