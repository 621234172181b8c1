"""What every meter must do with holds: refuse rightly, allow and extend, reap and settle late.

One token costs one nano here, and a demand is 10 input and 100 output tokens, so that figures can be read.
"""

from fakes.meter_bench import LEASE_MS, Bench
from fakes.meter_oracle import ORGANIZATION, key_limits, settlement_of
from meterhouse.limits.limit import parse_limits
from meterhouse.metering import RefusalKind, Scope, Use

DAY_MS = 86_400_000


# --- refusals


async def test_spent_money_refuses_for_good_and_reserved_money_for_a_second(still_bench: Bench) -> None:
    budget = "spend 0.0000002 USD/month"
    first = await still_bench.admit(budget)
    refusal = await still_bench.refuse(budget)
    assert (refusal.kind, refusal.retry_after_seconds) == (RefusalKind.RESERVED, 1)
    assert (refusal.used, refusal.demanded) == (110, 110)
    still_bench.settle(first, settlement_of(91))
    refusal = await still_bench.refuse(budget)
    assert (refusal.kind, refusal.retry_after_seconds, refusal.used) == (RefusalKind.SPENT, None, 91)
    await still_bench.admit(budget, output_tokens=99)


async def test_a_demand_beyond_a_whole_limit_is_too_large_and_not_retried(still_bench: Bench) -> None:
    for limits in ("spend 0.000000109 USD/month", "tokens 109 total", "tokens 109/minute"):
        refusal = await still_bench.refuse(limits)
        assert (refusal.kind, refusal.retry_after_seconds) == (RefusalKind.TOO_LARGE, None)
        assert (refusal.demanded, refusal.states[0].limit) == (110, refusal.limit)


async def test_the_smallest_hold_decides_not_what_was_asked(still_bench: Bench) -> None:
    reservation = await still_bench.admit("tokens 1034 total", output_tokens=100_000, rate_output_tokens=4_096)
    assert reservation.allowance_tokens == 1_024
    assert await still_bench.counts("tokens 1034 total") == (0, 1_034)
    still_bench.settle(reservation, settlement_of(1))
    assert (await still_bench.refuse("tokens 1034 total", output_tokens=100_000)).kind is RefusalKind.SPENT


async def test_the_refusal_that_is_worst_for_the_caller_is_reported(bench: Bench) -> None:
    limits = "concurrent 1; 1/minute; 1/second; requests 1/day; tokens 1000 total"
    first = await bench.admit(limits)
    refusal = await bench.refuse(limits)
    assert (refusal.kind, refusal.retry_after_seconds, refusal.limit.amount) == (RefusalKind.RATE, 120, 1)
    assert len(refusal.states) == 5
    bench.settle(first, settlement_of(5))
    assert (await bench.refuse(limits)).kind is RefusalKind.SPENT
    assert (await bench.refuse(limits, output_tokens=1_000)).kind is RefusalKind.TOO_LARGE


async def test_a_short_wait_does_not_hide_a_longer_one(bench: Bench) -> None:
    await bench.admit("concurrent 1; 1/second")
    bench.clock.move(ms=1_990)
    assert (await bench.refuse("1/second")).retry_after_seconds == 0.01
    refusal = await bench.refuse("1/second; concurrent 1")
    assert (refusal.kind, refusal.retry_after_seconds) == (RefusalKind.RESERVED, 1)


# --- allowance and slices


async def test_an_allowance_is_a_quarter_of_what_is_neither_spent_nor_reserved(still_bench: Bench) -> None:
    budget = "spend 0.0001 USD/month"
    still_bench.settle(await still_bench.admit(budget), settlement_of(20_000))
    held = await still_bench.admit(budget, held_input_tokens=39_900)
    assert held.held_nanos == 40_000
    assert (await still_bench.admit(budget, output_tokens=90_000)).allowance_tokens == 10_000


async def test_the_smallest_free_amount_over_all_budgets_and_quotas_decides(still_bench: Bench) -> None:
    limits = "spend 1 USD/month; spend 0.00002 USD total; tokens 16000/day; tokens 90000 total"
    assert (await still_bench.admit(limits, output_tokens=90_000)).allowance_tokens == 4_000


async def test_a_streamed_answer_is_held_slice_by_slice(still_bench: Bench) -> None:
    limits = "spend 0.0001 USD/month; tokens 90000 total; tokens 90000/minute; 9/minute; concurrent 2"
    counted = key_limits("tokens 90000/minute; 9/minute; concurrent 2")
    reservation = await still_bench.admit(limits, output_tokens=10_000, is_streamed=True, choices=2)
    assert (reservation.allowance_tokens, reservation.held_output_tokens) == (10_000, 4_096)
    rates = await still_bench.meter.list_states(ORGANIZATION, counted)
    assert await still_bench.meter.extend(reservation, 4_096)
    assert (reservation.held_output_tokens, reservation.held_nanos) == (8_192, 8_202)
    assert await still_bench.counts("spend 0.0001 USD/month") == (0, 8_202)
    assert await still_bench.counts("tokens 90000 total") == (0, 8_202)
    assert await still_bench.meter.list_states(ORGANIZATION, counted) == rates
    still_bench.settle(reservation, settlement_of(300))
    assert await still_bench.counts("spend 0.0001 USD/month") == (300, 0)


async def test_an_extension_is_held_by_all_budgets_and_quotas_or_none(still_bench: Bench) -> None:
    limits = "spend 1 USD/month; tokens 10000 total"
    reservation = await still_bench.admit(limits, output_tokens=2_500, is_streamed=True)
    other = await still_bench.admit(limits, held_input_tokens=5_400, output_tokens=500)
    assert not await still_bench.meter.extend(reservation, 2_043)
    assert (reservation.held_output_tokens, reservation.held_nanos) == (2_048, 2_058)
    assert await still_bench.counts("spend 1 USD/month") == (0, 2_058 + 5_900)
    assert await still_bench.meter.extend(reservation, 2_042)
    assert await still_bench.counts("tokens 10000 total") == (0, 10_000)
    still_bench.settle(other, settlement_of(1))
    assert await still_bench.meter.extend(reservation, 100)


async def test_an_extension_of_small_slices_costs_no_more_than_one_large(still_bench: Bench) -> None:
    reservation = await still_bench.admit(
        "spend 1 USD/month", output_tokens=9_000, is_streamed=True, output_nanos_per_million=300_001
    )
    for _ in range(10):
        assert await still_bench.meter.extend(reservation, 3)
    assert reservation.held_nanos == 10 + -(-2_078 * 300_001 // 1_000_000)
    assert await still_bench.counts("spend 1 USD/month") == (0, reservation.held_nanos)


async def test_a_request_without_a_hold_needs_no_extension(still_bench: Bench) -> None:
    reservation = await still_bench.admit("5/minute", is_streamed=True)
    assert await still_bench.meter.extend(reservation, 4_096)
    assert reservation.held_output_tokens is None


async def test_what_was_settled_or_reaped_is_not_extended(still_bench: Bench) -> None:
    reservation = await still_bench.admit("tokens 90000 total", is_streamed=True, output_tokens=9_000)
    still_bench.settle(reservation, settlement_of(5))
    assert not await still_bench.meter.extend(reservation, 10)
    assert await still_bench.counts("tokens 90000 total") == (5, 0)


# --- leases


async def test_an_expired_lease_that_was_never_sent_is_released(bench: Bench) -> None:
    limits = "concurrent 1; tokens 200 total; requests 1/day"
    reservation = await bench.admit(limits)
    await bench.meter.renew({reservation.request_id: Use(is_sent=False, total_tokens=0, charge_nanos=0)})
    bench.clock.move(ms=LEASE_MS - 1)
    assert (await bench.refuse(limits)).kind is RefusalKind.RESERVED
    bench.clock.move(ms=1)
    await bench.admit(limits)


async def test_an_expired_lease_is_reaped_at_its_last_renewed_use(bench: Bench) -> None:
    limits = "spend 0.000001 USD total; requests 5/day; tokens 1000/minute; concurrent 9"
    reservation = await bench.admit(limits)
    bench.clock.move(seconds=40)
    await bench.meter.renew({reservation.request_id: Use(is_sent=True, total_tokens=25, charge_nanos=70)})
    bench.clock.move(seconds=40)
    assert await bench.sweep() == 0
    bench.clock.move(seconds=20)
    assert await bench.sweep() == 1
    states = await bench.meter.list_states(
        ORGANIZATION, key_limits("spend 0.000001 USD total; requests 5/day; concurrent 9")
    )
    assert [(state.spent, state.reserved) for state in states] == [(70, 0), (1, 0), (0, 0)]


async def test_a_settlement_after_the_reaping_applies_the_difference_once(bench: Bench) -> None:
    reservation = await bench.admit("spend 0.000001 USD total; requests 5 total; concurrent 5")
    await bench.meter.renew({reservation.request_id: Use(is_sent=True, total_tokens=25, charge_nanos=70)})
    bench.clock.move(hours=47)
    await bench.sweep()
    bench.settle(reservation, settlement_of(25, 95))
    bench.meter.settle(reservation, settlement_of(25, 95))
    assert await bench.counts("spend 0.000001 USD total") == (95, 0)
    assert await bench.counts("requests 5 total") == (1, 0)
    assert await bench.counts("concurrent 5") == (0, 0)


async def test_a_settlement_long_after_the_reaping_changes_nothing(bench: Bench) -> None:
    reservation = await bench.admit("spend 0.000001 USD total")
    bench.clock.move(seconds=60)
    await bench.sweep()
    bench.clock.move(hours=48)
    await bench.sweep()
    bench.meter.settle(reservation, settlement_of(95))
    assert await bench.counts("spend 0.000001 USD total") == (0, 0)


async def test_a_renewed_lease_outlives_younger_ones(bench: Bench) -> None:
    old, young = await bench.admit("concurrent 9"), await bench.admit("concurrent 9")
    bench.clock.move(seconds=30)
    await bench.meter.renew({old.request_id: Use(is_sent=True, total_tokens=1, charge_nanos=1)})
    bench.clock.move(seconds=30)
    assert await bench.sweep() == 1
    assert not await bench.meter.extend(young, 1)
    assert await bench.meter.extend(old, 1)


async def test_reserve_reaps_fifty_expired_leases_of_its_organization_first(bench: Bench) -> None:
    limits = parse_limits("concurrent 60", Scope.ORGANIZATION, ORGANIZATION)
    for _ in range(60):
        await bench.admit(limits)
    other = parse_limits("concurrent 60", Scope.ORGANIZATION, "org_2")
    await bench.admit(other, organization_id="org_2")
    bench.clock.move(ms=LEASE_MS)
    await bench.admit(limits)
    assert await bench.counts(limits) == (0, 11)
    assert await bench.counts(other) == (0, 1)
    await bench.sweep()
    assert (await bench.counts(limits), await bench.counts(other)) == ((0, 1), (0, 0))


async def test_renewing_what_is_unknown_or_reaped_changes_nothing(bench: Bench) -> None:
    reservation = await bench.admit("tokens 1000 total")
    bench.clock.move(ms=LEASE_MS)
    await bench.sweep()
    use = Use(is_sent=True, total_tokens=5, charge_nanos=5)
    await bench.meter.renew({reservation.request_id: use, "f" * 32: use})
    assert await bench.counts("tokens 1000 total") == (0, 0)


async def test_an_overdrawn_quota_of_requests_does_not_stop_a_running_answer(still_bench: Bench) -> None:
    limits = "requests 2/day; tokens 90000 total"
    running = await still_bench.admit(limits, is_streamed=True, output_tokens=9_000)
    other = await still_bench.admit(limits)
    still_bench.settle(other, settlement_of(10, requests=5))
    assert await still_bench.counts("requests 2/day") == (5, 1)
    assert await still_bench.meter.extend(running, 100)
