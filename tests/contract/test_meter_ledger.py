"""What every meter must do with periods and the ledger: unknown is not zero, each settlement lands once.

One token costs one nano here, and a demand is 10 input and 100 output tokens, so that figures can be read.
"""

import asyncio

import pytest

from fakes.meter_bench import LEASE_MS, Bench
from fakes.meter_oracle import KEY, MODEL, ORGANIZATION, START_MS, admitted, build_demand, key_limits, settlement_of
from meterhouse.errors import MeterDown
from meterhouse.metering import Kind, Limit, Refusal, RefusalKind, Reservation, Scope, Use, Window

DAY_MS = 86_400_000


# --- periods


async def test_a_late_settlement_belongs_to_the_period_of_its_admission(bench: Bench) -> None:
    bench.clock.move(days=31, ms=-1)
    budget = "spend 0.000001 USD/month; spend 0.000001 USD/day; spend 0.000001 USD total"
    reservation = await bench.admit(budget)
    bench.clock.move(ms=1)
    states = await bench.meter.list_states(ORGANIZATION, key_limits(budget))
    assert [(state.spent, state.reserved) for state in states] == [(0, 0), (0, 0), (0, 110)]
    bench.settle(reservation, settlement_of(60))
    states = await bench.meter.list_states(ORGANIZATION, key_limits(budget))
    assert [(state.spent, state.reserved) for state in states] == [(0, 0), (0, 0), (60, 0)]


async def test_a_budget_begins_anew_with_its_period(bench: Bench) -> None:
    budget = "spend 0.00000011 USD/month"
    bench.settle(await bench.admit(budget), settlement_of(110))
    bench.clock.move(days=31, ms=-1)
    refusal = await bench.refuse(budget)
    assert (refusal.kind, refusal.states[0].resets_at_ms) == (RefusalKind.SPENT, START_MS + 31 * DAY_MS)
    bench.clock.move(ms=1)
    await bench.admit(budget)


async def test_the_cap_of_a_client_token_is_forgotten_after_its_end_and_not_before(bench: Bench) -> None:
    ends_at_seconds = START_MS // 1000 + 600
    scope_id = Limit.cap_scope_id(KEY, f"{KEY}.abc", ends_at_seconds)
    cap = Limit(Scope.KEY, scope_id, Kind.SPEND, Window.TOTAL, 1_000)
    limits = (*key_limits("spend 1 USD total"), cap)
    bench.settle(await bench.admit(limits), settlement_of(30))
    bench.clock.move(seconds=500)
    await bench.sweep()
    states = await bench.meter.list_states(ORGANIZATION, limits)
    assert [(state.spent, state.reserved, state.resets_at_ms) for state in states] == [(30, 0, None)] * 2
    calls = bench.oracle.calls
    bench.clock.move(days=3)
    await bench.admit((), root_key_id="key_2")  # only who is active is swept
    await bench.sweep()
    await bench.counts("spend 1 USD total")
    assert bench.oracle.calls == calls
    await bench.counts((cap,))
    assert bench.oracle.calls == calls + 1, "it was forgotten, and would be learned again"


# --- what the ledger knows


async def test_unknown_is_not_zero_after_a_restart(still_bench: Bench) -> None:
    budget = "spend 0.0000002 USD/month; tokens 1000/day; requests 9 total"
    still_bench.settle(await still_bench.admit(budget), settlement_of(90))
    await still_bench.admit(budget)
    await still_bench.restart()
    states = await still_bench.meter.list_states(ORGANIZATION, key_limits(budget))
    assert [(state.spent, state.reserved) for state in states] == [(90, 0), (90, 0), (1, 0)]
    still_bench.settle(await still_bench.admit(budget), settlement_of(1))
    await still_bench.restart()
    assert (await still_bench.refuse(budget)).kind is RefusalKind.SPENT


async def test_a_new_limit_counts_what_is_already_running(still_bench: Bench) -> None:
    clamped = await still_bench.admit("tokens 90000 total", output_tokens=9_000, is_streamed=True)
    await still_bench.admit("5/minute", output_tokens=700, choices=2)
    await still_bench.admit((), root_key_id="key_2")
    await still_bench.admit((), model="other")
    assert await still_bench.counts("spend 1 USD/month for gpt-4o") == (0, 2_058 + 1_410)
    assert await still_bench.counts("concurrent 9") == (0, 3)
    assert await still_bench.meter.extend(clamped, 10)
    assert await still_bench.counts("spend 1 USD/month for gpt-4o") == (0, 2_068 + 1_410)
    still_bench.settle(clamped, settlement_of(9))
    assert await still_bench.counts("spend 1 USD/month for gpt-4o") == (9, 1_410)
    assert await still_bench.counts("concurrent 9") == (0, 2)


async def test_a_new_limit_counts_what_was_reaped_and_settled_late(bench: Bench) -> None:
    reservation = await bench.admit()
    await bench.meter.renew({reservation.request_id: Use(is_sent=True, total_tokens=25, charge_nanos=70)})
    bench.clock.move(ms=LEASE_MS)
    await bench.sweep()
    await bench.state("spend 1 USD/month")
    assert await bench.counts("concurrent 5") == (0, 0)
    bench.settle(reservation, settlement_of(25, 90))
    await bench.reconcile()
    assert await bench.counts("spend 1 USD/month") == (90, 0)


async def test_a_limit_that_was_away_for_a_while_missed_nothing(still_bench: Bench) -> None:
    limits = "tokens 1000 total; concurrent 5"
    still_bench.settle(await still_bench.admit(limits), settlement_of(10))
    still_bench.settle(await still_bench.admit(), settlement_of(20))
    running = await still_bench.admit()
    assert await still_bench.counts("tokens 1000 total") == (30, 110)
    assert await still_bench.counts("concurrent 5") == (0, 1)
    still_bench.settle(running, settlement_of(30))
    assert await still_bench.counts("tokens 1000 total") == (60, 0)


async def test_settlements_while_the_ledger_is_asked_land_exactly_once(still_bench: Bench) -> None:
    before, during = await still_bench.admit(), await still_bench.admit()
    still_bench.oracle.gate = asyncio.Event()
    still_bench.settle(before, settlement_of(10))
    asking = asyncio.create_task(still_bench.reserve("tokens 1000 total"))
    await still_bench.oracle.asked.wait()
    assert still_bench.oracle.calls == 1
    still_bench.settle(during, settlement_of(20))
    joined = await still_bench.admit()
    still_bench.oracle.gate.set()
    admitted(await asking)
    assert await still_bench.counts("tokens 1000 total") == (30, 220)
    still_bench.settle(joined, settlement_of(30))
    assert await still_bench.counts("tokens 1000 total") == (60, 110)


async def test_the_ledger_is_asked_once_however_many_wait(still_bench: Bench) -> None:
    decisions = await asyncio.gather(*[still_bench.reserve("tokens 1000 total; spend 1 USD/day") for _ in range(20)])
    assert sum(isinstance(decision, Reservation) for decision in decisions) == 1_000 // 110
    assert still_bench.oracle.calls == 1
    await still_bench.reserve("tokens 1000 total; spend 1 USD/day")
    assert still_bench.oracle.calls == 1


async def test_the_same_id_that_waits_twice_is_held_once(still_bench: Bench) -> None:
    demand = build_demand("tokens 1000 total")
    await asyncio.gather(still_bench.meter.reserve(demand), still_bench.meter.reserve(demand))
    assert await still_bench.counts("tokens 1000 total") == (0, 110)


async def test_a_ledger_that_fails_is_no_zero_and_no_429(still_bench: Bench) -> None:
    running = await still_bench.admit()
    still_bench.oracle.is_down = True
    with pytest.raises(MeterDown) as caught:
        await still_bench.reserve("tokens 1000 total")
    assert caught.value.retry_after_seconds == 1
    with pytest.raises(MeterDown):
        await still_bench.state("tokens 1000 total")
    still_bench.settle(running, settlement_of(40))
    still_bench.oracle.is_down = False
    assert await still_bench.counts("tokens 1000 total") == (40, 0)


async def test_a_ledger_that_is_late_refuses_now_and_serves_the_next(still_bench: Bench) -> None:
    await still_bench.lose_patience()
    running = await still_bench.admit(is_streamed=True)
    still_bench.oracle.gate = asyncio.Event()
    with pytest.raises(MeterDown):
        await still_bench.reserve("tokens 1000 total")
    with pytest.raises(MeterDown):
        await still_bench.state("tokens 1000 total")
    still_bench.settle(running, settlement_of(40))
    still_bench.oracle.gate.set()
    assert await still_bench.counts("tokens 1000 total") == (40, 0)
    assert still_bench.oracle.calls == 1


async def test_an_extension_while_the_ledger_is_asked_counts_on_the_new_limit_and_is_not_judged_by_it(
    still_bench: Bench,
) -> None:
    running = await still_bench.admit("tokens 90000 total", is_streamed=True, output_tokens=9_000)
    still_bench.oracle.gate = asyncio.Event()
    asking = asyncio.create_task(still_bench.reserve("spend 0.0000021 USD total"))
    await still_bench.oracle.asked.wait()
    assert await still_bench.meter.extend(running, 932)
    still_bench.oracle.gate.set()
    refusal = await asking
    assert isinstance(refusal, Refusal)
    assert (refusal.kind, refusal.used) == (RefusalKind.RESERVED, 2_990)


async def test_a_rate_needs_no_ledger(still_bench: Bench) -> None:
    still_bench.oracle.is_down = True
    await still_bench.admit("5/minute; tokens 1000/minute; concurrent 4")


# --- exactness under concurrency


async def test_of_200_requests_for_a_twentieth_of_the_budget_each_exactly_20_are_admitted(still_bench: Bench) -> None:
    budget = key_limits("spend 0.0000022 USD/month")
    decisions = await asyncio.gather(*[still_bench.reserve(budget) for _ in range(200)])
    admissions = [decision for decision in decisions if isinstance(decision, Reservation)]
    refusals = [decision for decision in decisions if isinstance(decision, Refusal)]
    assert len(admissions) == 20
    assert {(refusal.kind, refusal.retry_after_seconds) for refusal in refusals} == {(RefusalKind.RESERVED, 1)}
    assert len(refusals) == 180
    for reservation in admissions:
        still_bench.settle(reservation, settlement_of(55))
    decisions = await asyncio.gather(*[still_bench.reserve(budget) for _ in range(200)])
    assert sum(isinstance(decision, Reservation) for decision in decisions) == 10


async def test_the_model_of_a_limit_is_the_one_that_was_asked_for(still_bench: Bench) -> None:
    limits = f"requests 1/day for {MODEL}; requests 2/day"
    await still_bench.admit(limits)
    assert (await still_bench.refuse(limits)).limit.model == MODEL
    await still_bench.admit(limits, model="other")
    assert (await still_bench.refuse(limits, model="other")).limit.model is None
