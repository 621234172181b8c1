"""What every meter must do with a demand: hold it against all limits, refuse it, settle it.

One token costs one nano here, and a demand is 10 input and 100 output tokens, so that figures can be read.
"""

import pytest

from fakes.meter_bench import Bench
from fakes.meter_oracle import ORGANIZATION, START_MS, admitted, build_demand, key_limits, settlement_of
from meterhouse.limits.limit import parse_limits
from meterhouse.metering import RefusalKind, Reservation, Scope, Use
from meterhouse.usage import Exactness

DAY_MS = 86_400_000


# --- reserving


async def test_without_limits_nothing_is_held_or_clamped(still_bench: Bench) -> None:
    reservation = await still_bench.admit()
    assert abs(reservation.admitted_at_ms - still_bench.clock.now_ms()) <= still_bench.clock_slack_ms
    assert (reservation.allowance_tokens, reservation.held_output_tokens, reservation.held_nanos) == (None, None, 0)
    assert list(reservation.states) == []
    assert still_bench.oracle.calls == 0


async def test_a_demand_that_writes_nothing_holds_its_input_alone(still_bench: Bench) -> None:
    limits = "spend 0.00000001 USD total; tokens 10 total"
    demand = build_demand(limits, output_tokens=0, rate_output_tokens=0)
    reservation = admitted(await still_bench.meter.reserve(demand))
    assert (reservation.allowance_tokens, reservation.held_output_tokens, reservation.held_nanos) == (0, 0, 10)
    still_bench.meter.settle(reservation, settlement_of(7))
    assert [await still_bench.counts(limit) for limit in limits.split("; ")] == [(7, 0), (7, 0)]


async def test_the_same_id_gets_the_same_live_reservation(still_bench: Bench) -> None:
    demand = build_demand("spend 0.000001 USD total; 5/minute; concurrent 1")
    first = admitted(await still_bench.meter.reserve(demand))
    again = admitted(await still_bench.meter.reserve(demand))
    assert (again.admitted_at_ms, again.held_nanos) == (first.admitted_at_ms, first.held_nanos)
    assert await still_bench.counts("spend 0.000001 USD total") == (0, 110)
    assert await still_bench.counts("5/minute") == (1, 0)
    assert await still_bench.counts("concurrent 1") == (0, 1)


async def test_an_id_that_was_settled_holds_nothing_when_it_comes_again(still_bench: Bench) -> None:
    demand = build_demand("tokens 1000 total")
    still_bench.meter.settle(admitted(await still_bench.meter.reserve(demand)), settlement_of(30))
    again = admitted(await still_bench.meter.reserve(demand))
    assert again.allowance_tokens == 0
    assert await still_bench.counts("tokens 1000 total") == (30, 0)


async def test_a_refusal_takes_nothing_from_any_limit(still_bench: Bench) -> None:
    limits = "5/minute; concurrent 4; requests 3/day; tokens 1000 total; spend 0.000000109 USD/month"
    await still_bench.refuse(limits)
    states = await still_bench.meter.list_states(ORGANIZATION, key_limits(limits))
    assert [(state.spent, state.reserved) for state in states] == [(0, 0)] * 5


@pytest.mark.parametrize(
    ("scope", "scope_id"), [(Scope.KEY, "key_1"), (Scope.PROJECT, "proj_1"), (Scope.ORGANIZATION, "org_1")]
)
async def test_limits_of_key_project_and_organization_bind(still_bench: Bench, scope: Scope, scope_id: str) -> None:
    wide = [(Scope.KEY, "key_1"), (Scope.PROJECT, "proj_1"), (Scope.ORGANIZATION, "org_1")]
    limits = [parse_limits("tokens 9000 total; requests 9/day", *owner)[0] for owner in wide]
    narrow = parse_limits("requests 1/day", scope, scope_id)
    await still_bench.admit((*limits, *narrow))
    assert (await still_bench.refuse((*limits, *narrow))).limit == narrow[0]


async def test_keys_of_one_organization_share_its_limit(still_bench: Bench) -> None:
    shared = parse_limits("concurrent 1", Scope.ORGANIZATION, ORGANIZATION)
    await still_bench.admit(shared, root_key_id="key_1")
    assert (await still_bench.refuse(shared, root_key_id="key_2")).kind is RefusalKind.RESERVED


async def test_a_limit_for_another_model_does_not_bind(still_bench: Bench) -> None:
    limits = (
        "requests 1/day for other; 1/minute for other; concurrent 1 for other; spend 0.000000001 USD total for other"
    )
    for _ in range(3):
        assert (await still_bench.admit(limits)).states == []
    assert (await still_bench.refuse(limits, model="other")).kind is RefusalKind.TOO_LARGE


async def test_states_show_each_limit_that_bound_the_request(bench: Bench) -> None:
    bench.clock.move(ms=15_000)
    limits = key_limits("10/minute; tokens 1000/minute; concurrent 2; tokens 5000/day; tokens 9000 total")
    states = (await bench.admit(limits)).states
    assert [state.limit for state in states] == list(limits)
    assert [(state.spent, state.reserved) for state in states] == [(1, 0), (110, 0), (0, 1), (0, 110), (0, 110)]
    two_windows, next_day = START_MS + 120_000, START_MS + DAY_MS
    assert [state.resets_at_ms for state in states] == [two_windows, two_windows, None, next_day, None]
    assert states[1].free == 890


async def test_the_strictest_amount_of_one_counter_decides(still_bench: Bench) -> None:
    await still_bench.admit((*key_limits("requests 1/day"), *key_limits("requests 5/day")))
    assert (await still_bench.refuse((*key_limits("requests 5/day"), *key_limits("requests 1/day")))).limit.amount == 1


# --- rates


async def test_a_rate_of_requests_refuses_with_the_exact_wait(bench: Bench) -> None:
    bench.clock.move(ms=12_000)
    for _ in range(4):
        await bench.admit("4/minute")
    refusal = await bench.refuse("4/minute")
    assert (refusal.kind, refusal.used, refusal.demanded) == (RefusalKind.RATE, 4, 1)
    assert refusal.retry_after_seconds == 48 + 15
    bench.clock.move(ms=62_999)
    assert (await bench.refuse("4/minute")).retry_after_seconds == 0.001
    bench.clock.move(ms=1)
    await bench.admit("4/minute")


async def test_a_rate_of_tokens_is_debited_the_estimate_and_never_held(still_bench: Bench) -> None:
    await still_bench.admit("tokens 249/minute", rate_input_tokens=20, rate_output_tokens=40, choices=3)
    refusal = await still_bench.refuse("tokens 249/minute")
    assert (refusal.kind, refusal.used, refusal.demanded) == (RefusalKind.RATE, 140, 110)
    assert await still_bench.counts("tokens 249/minute") == (140, 0)


@pytest.mark.parametrize(
    ("tokens", "exactness", "expected"),
    [
        (30, Exactness.REPORTED, 30),
        (30, Exactness.COUNTED, 110),
        (30, Exactness.ASSUMED, 110),
        (150, Exactness.REPORTED, 150),
        (150, Exactness.COUNTED, 150),
    ],
)
async def test_only_reported_usage_gives_back_on_a_rate_and_more_is_always_debited(
    still_bench: Bench, tokens: int, exactness: Exactness, expected: int
) -> None:
    reservation = await still_bench.admit("tokens 1000/minute; 5/minute")
    still_bench.settle(reservation, settlement_of(tokens, exactness=exactness))
    assert (await still_bench.counts("tokens 1000/minute")) == (expected, 0)
    assert (await still_bench.counts("5/minute")) == (1, 0)


async def test_a_rate_gives_back_in_the_window_where_it_was_debited(bench: Bench) -> None:
    reservation = await bench.admit("tokens 1000/minute")
    bench.clock.move(seconds=75)
    assert await bench.counts("tokens 1000/minute") == (83, 0)  # 110 x 3/4, rounded up
    bench.settle(reservation, settlement_of(40))
    assert await bench.counts("tokens 1000/minute") == (30, 0)


@pytest.mark.parametrize(("tokens", "expected"), [(40, 0), (150, 40)])
async def test_after_two_windows_nothing_is_given_back_and_more_is_debited_now(
    bench: Bench, tokens: int, expected: int
) -> None:
    reservation = await bench.admit("tokens 1000/minute")
    for _ in range(3):
        bench.clock.move(seconds=59)
        await bench.meter.renew({reservation.request_id: Use(is_sent=True, total_tokens=0, charge_nanos=0)})
        assert await bench.sweep() == 0
    bench.settle(reservation, settlement_of(tokens))
    assert await bench.counts("tokens 1000/minute") == (expected, 0)


async def test_a_multiplied_window_is_one_window(bench: Bench) -> None:
    await bench.admit("1 per 2 minutes")
    bench.clock.move(seconds=119)
    assert (await bench.refuse("1 per 2 minutes")).retry_after_seconds == 121
    bench.clock.move(seconds=121)
    await bench.admit("1 per 2 minutes")


# --- concurrent, quotas, budgets


async def test_concurrent_frees_a_place_at_settlement(still_bench: Bench) -> None:
    first = await still_bench.admit("concurrent 1")
    refusal = await still_bench.refuse("concurrent 1")
    assert (refusal.kind, refusal.retry_after_seconds, refusal.used) == (RefusalKind.RESERVED, 1, 1)
    still_bench.settle(first, settlement_of(5))
    await still_bench.admit("concurrent 1")


async def test_a_quota_of_requests_is_retryable_until_it_is_spent(bench: Bench) -> None:
    first = await bench.admit("requests 1/day")
    refusal = await bench.refuse("requests 1/day")
    assert (refusal.kind, refusal.retry_after_seconds) == (RefusalKind.RESERVED, 1)
    bench.settle(first, settlement_of(5))
    refusal = await bench.refuse("requests 1/day")
    assert (refusal.kind, refusal.retry_after_seconds, refusal.used) == (RefusalKind.SPENT, None, 1)
    bench.clock.move(days=1)
    await bench.admit("requests 1/day")


async def test_a_request_that_reached_no_provider_is_given_back_to_quotas(still_bench: Bench) -> None:
    limits = "requests 1/day; tokens 200/day; spend 0.0000002 USD/day"
    still_bench.settle(await still_bench.admit(limits), settlement_of(requests=0, exactness=Exactness.COUNTED))
    states = await still_bench.meter.list_states(ORGANIZATION, key_limits(limits))
    assert [(state.spent, state.reserved) for state in states] == [(0, 0)] * 3


async def test_a_token_quota_holds_the_bound_of_the_input_and_the_allowance(still_bench: Bench) -> None:
    reservation = await still_bench.admit("tokens 1000/month", held_input_tokens=50, choices=2, output_tokens=60)
    assert (reservation.allowance_tokens, reservation.held_output_tokens) == (60, 120)
    assert reservation.held_nanos == 0
    assert await still_bench.counts("tokens 1000/month") == (0, 170)


async def test_a_budget_holds_the_dearest_price_of_both_rounded_up(still_bench: Bench) -> None:
    reservation = await still_bench.admit(
        "spend 1 USD/month",
        held_input_tokens=7,
        output_tokens=3,
        input_nanos_per_million=150_000,
        output_nanos_per_million=600_000,
        request_nanos=5,
    )
    assert reservation.held_nanos == 2 + 2 + 5
    assert await still_bench.counts("spend 1 USD/month") == (0, 9)


async def test_settlement_moves_a_budget_to_exactly_the_charge_whatever_its_exactness(still_bench: Bench) -> None:
    for exactness, expected in ((Exactness.REPORTED, 40), (Exactness.COUNTED, 80), (Exactness.ASSUMED, 120)):
        reservation = await still_bench.admit("spend 0.000001 USD/month; tokens 1000/month")
        still_bench.settle(reservation, settlement_of(40, exactness=exactness))
        assert await still_bench.counts("spend 0.000001 USD/month") == (expected, 0)
        assert await still_bench.counts("tokens 1000/month") == (expected, 0)


async def test_an_overrun_is_recorded_in_full(still_bench: Bench) -> None:
    still_bench.settle(await still_bench.admit("spend 0.00000011 USD total"), settlement_of(500))
    assert await still_bench.counts("spend 0.00000011 USD total") == (500, 0)
    assert (await still_bench.state("spend 0.00000011 USD total")).free == 0
    assert (await still_bench.refuse("spend 0.00000011 USD total")).kind is RefusalKind.SPENT


async def test_settling_twice_changes_nothing(still_bench: Bench) -> None:
    limits = "spend 0.000001 USD total; concurrent 5; tokens 1000/minute"
    reservation = await still_bench.admit(limits)
    for _ in range(3):
        still_bench.meter.settle(reservation, settlement_of(40))
    states = await still_bench.meter.list_states(ORGANIZATION, key_limits(limits))
    assert [(state.spent, state.reserved) for state in states] == [(40, 0), (0, 0), (40, 0)]


async def test_settling_what_was_never_reserved_changes_nothing(bench: Bench) -> None:
    await bench.state("tokens 1000 total")
    bench.meter.settle(Reservation("f" * 32, START_MS, 5, 5, 5, ()), settlement_of(40))
    assert await bench.counts("tokens 1000 total") == (0, 0)
