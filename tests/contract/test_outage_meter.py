"""The meter while Redis is away: shares of rates, and an allowance of budgets and quotas that is never exceeded.

One token costs one nano here; a demand is 10 input and 100 output tokens unless a test says otherwise. Budgets are
large enough that a percent of them is a number one can read: 2 % of 0.0001 USD are 2,000 nanos.
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.meter_oracle import ORGANIZATION, START_MS, admitted, build_demand, key_limits, settlement_of
from fakes.outage_host import BUDGET, LEASE_MS, QUOTA, TOTAL, Host, admit_all, counts, refusal
from meterhouse.errors import MeterDown
from meterhouse.limits import outage
from meterhouse.metering import RefusalKind, Reservation, Scope, Use


@pytest.fixture
async def host(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    if "late" not in request.node.name:  # the disk may be busy with other tests
        monkeypatch.setattr(outage, "DRAW_WAIT_SECONDS", 20)
    host = Host(tmp_path)
    yield host
    await host.close()


# --- rates and gauges


async def test_without_limits_everything_is_admitted_and_says_that_it_is_degraded(host: Host) -> None:
    reservation = admitted(await host.start().reserve(build_demand()))
    assert reservation.is_degraded
    assert (reservation.admitted_at_ms, reservation.allowance_tokens) == (START_MS, None)
    assert (reservation.held_output_tokens, reservation.held_nanos) == (None, 0)
    assert not host.path.exists()


@pytest.mark.parametrize(("live_workers", "share"), [(1, 10), (3, 4), (10, 1), (50, 1), (0, 10)])
async def test_a_rate_is_shared_among_the_live_workers_rounded_up(host: Host, live_workers: int, share: int) -> None:
    host.live_workers = live_workers
    meter = host.start()
    for _ in range(share):
        reservation = admitted(await meter.reserve(build_demand("requests 10/minute")))
    assert [state.limit.amount for state in reservation.states] == [share]
    refused = await refusal(meter.reserve(build_demand("requests 10/minute")))
    assert (refused.kind, refused.limit.amount, refused.used) == (RefusalKind.RATE, share, share)
    assert refused.retry_after_seconds


async def test_a_gauge_is_shared_too_and_freed_by_settling(host: Host) -> None:
    host.live_workers = 2
    meter = host.start()
    first, _ = [admitted(await meter.reserve(build_demand("concurrent 3"))) for _ in range(2)]
    assert (await refusal(meter.reserve(build_demand("concurrent 3")))).kind is RefusalKind.RESERVED
    meter.settle(first, settlement_of(10))
    admitted(await meter.reserve(build_demand("concurrent 3")))


async def test_shares_follow_the_number_of_live_workers(host: Host) -> None:
    meter = host.start()
    for _ in range(5):
        admitted(await meter.reserve(build_demand("requests 10/minute")))
    host.live_workers = 2
    assert (await refusal(meter.reserve(build_demand("requests 10/minute")))).kind is RefusalKind.RATE
    host.live_workers = 1
    admitted(await meter.reserve(build_demand("requests 10/minute")))


async def test_a_demand_over_the_share_of_a_rate_waits_for_redis_and_one_over_the_rate_is_too_large(host: Host) -> None:
    host.live_workers = 4
    meter = host.start()
    with pytest.raises(MeterDown, match="try again") as caught:
        await meter.reserve(build_demand("tokens 200/minute"))
    assert caught.value.retry_after_seconds == 1
    refused = await refusal(meter.reserve(build_demand("tokens 100/minute")))
    assert (refused.kind, refused.limit, refused.retry_after_seconds) == (
        RefusalKind.TOO_LARGE,
        key_limits("tokens 100/minute")[0],
        None,
    )


async def test_a_refused_rate_takes_nothing_from_the_allowance(host: Host) -> None:
    meter = host.start()
    limits = f"requests 1/minute; {BUDGET}"
    admitted(await meter.reserve(build_demand(limits)))
    assert (await refusal(meter.reserve(build_demand(limits)))).kind is RefusalKind.RATE
    assert await counts(meter, limits) == [(1, 0), (0, 110)]


# --- the allowance


@pytest.mark.parametrize("limits", [BUDGET, QUOTA])
async def test_no_more_is_held_than_the_allowance_and_what_is_left_is_never_a_final_refusal(
    host: Host, limits: str
) -> None:
    meter = host.start()
    reservations = await admit_all(meter, limits)
    assert len(reservations) == TOTAL // 110
    assert all(reservation.is_degraded and reservation.held_output_tokens == 100 for reservation in reservations)
    assert await counts(meter, limits) == [(0, 1_980)]
    with pytest.raises(MeterDown) as caught:
        await meter.reserve(build_demand(limits))
    assert (caught.value.status, caught.value.retry_after_seconds) == (503, 1)
    assert "no room" in caught.value.detail


async def test_requests_per_day_are_counted_against_their_allowance(host: Host) -> None:
    assert len(await admit_all(host.start(), "requests 200/day")) == 4


@pytest.mark.parametrize(("percent", "hosts", "admitted_requests"), [(100, 1, 9), (50, 1, 4), (50, 3, 1), (1, 1, 0)])
async def test_the_allowance_is_the_stated_part_of_the_limit_by_the_number_of_hosts(
    host: Host, percent: int, hosts: int, admitted_requests: int
) -> None:
    host.percent, host.hosts = percent, hosts
    assert len(await admit_all(host.start(), "tokens 1000 total")) == admitted_requests


async def test_zero_percent_refuses_whoever_has_a_budget_and_nobody_else(host: Host) -> None:
    host.percent = 0
    meter = host.start()
    assert await admit_all(meter, BUDGET) == []
    admitted(await meter.reserve(build_demand("requests 10/minute")))


async def test_a_demand_over_the_whole_limit_is_too_large_as_ever(host: Host) -> None:
    refused = await refusal(host.start().reserve(build_demand("tokens 109 total")))
    assert (refused.kind, refused.limit.amount, refused.demanded) == (RefusalKind.TOO_LARGE, 109, 110)
    with pytest.raises(MeterDown):
        await host.start().reserve(build_demand("tokens 110 total"))


async def test_an_answer_may_cost_a_quarter_of_the_allowance(host: Host) -> None:
    demand = build_demand("tokens 1000000 total", output_tokens=50_000, is_streamed=False)
    reservation = admitted(await host.start().reserve(demand))
    assert (reservation.allowance_tokens, reservation.held_output_tokens) == (5_000, 5_000)


async def test_settling_frees_what_was_not_used_for_others(host: Host) -> None:
    meter = host.start()
    for _ in range(5):
        reservations = await admit_all(meter, BUDGET)
        for reservation in reservations:
            meter.settle(reservation, settlement_of(11))
    assert await counts(meter, BUDGET) == [(11 * (18 + 16 + 14 + 13 + 12), 0)]


async def test_what_was_used_beyond_the_hold_is_counted_in_full(host: Host) -> None:
    meter = host.start()
    meter.settle(admitted(await meter.reserve(build_demand(BUDGET))), settlement_of(TOTAL))
    assert await counts(meter, BUDGET) == [(TOTAL, 0)]
    assert await admit_all(meter, BUDGET) == []


async def test_the_strictest_of_several_limits_decides(host: Host) -> None:
    limits = key_limits(f"tokens 100000 total; {BUDGET}; requests 600/month") + key_limits("tokens 50000 total")
    assert len(await admit_all(host.start(), limits)) == 9


async def test_a_limit_that_is_lowered_binds_what_was_drawn_before(host: Host) -> None:
    (limit,) = key_limits("tokens 100000 total")
    other, meter = host.start(), host.start()
    admitted(await other.reserve(build_demand((limit,))))
    # The file has nothing left, so that only what was drawn counts.
    for reservation in await admit_all(meter, (limit,)):
        meter.settle(reservation, settlement_of(0))
    assert len(await admit_all(meter, (replace(limit, amount=16_500),))) == 3
    assert await admit_all(meter, (replace(limit, amount=10_000),)) == []
    assert len(await admit_all(meter, (limit,))) == 13


async def test_a_limit_of_another_model_does_not_bind(host: Host) -> None:
    (limit,) = key_limits(BUDGET)
    meter = host.start()
    admitted(await meter.reserve(build_demand((replace(limit, model="other", amount=1),))))
    assert not host.path.exists()


async def test_keys_share_the_allowance_of_their_organization(host: Host) -> None:
    (limit,) = key_limits(QUOTA)
    shared = replace(limit, scope=Scope.ORGANIZATION, scope_id=ORGANIZATION)
    meter = host.start()
    reservations = [
        admitted(await meter.reserve(build_demand((shared,), root_key_id=f"key_{number}"))) for number in range(18)
    ]
    assert len(reservations) == 18
    with pytest.raises(MeterDown):
        await meter.reserve(build_demand((shared,), root_key_id="key_18"))


# --- processes and periods


async def test_a_restart_does_not_renew_the_allowance(host: Host) -> None:
    assert len(await admit_all(host.start(), BUDGET)) == 18
    assert await admit_all(host.start(), BUDGET) == []


async def test_processes_share_the_allowance_of_their_host(host: Host) -> None:
    meters = [host.start() for _ in range(3)]
    decided = await asyncio.gather(
        *[meters[number % 3].reserve(build_demand(BUDGET)) for number in range(60)], return_exceptions=True
    )
    admissions = [decision for decision in decided if isinstance(decision, Reservation)]
    # A process may keep a part of its last chunk that holds no whole demand.
    assert 18 - 2 <= len(admissions) <= 18
    assert {type(decision) for decision in decided} == {Reservation, MeterDown}


async def test_a_new_period_has_a_new_allowance(host: Host) -> None:
    meter = host.start()
    assert len(await admit_all(meter, BUDGET)) == 18
    host.clock.move(days=1)
    assert len(await admit_all(meter, BUDGET)) == 18
    host.clock.move(days=1)
    meter.sweep()
    meter.sweep()
    assert meter._pools.keys() == set()


async def test_many_requests_at_once_draw_together(host: Host) -> None:
    meter = host.start()
    await asyncio.gather(*[meter.reserve(build_demand("tokens 1000000 total")) for _ in range(100)])
    (pool,) = meter._pools.values()
    # 11,000 tokens are held: six chunks of a tenth of 20,000.
    assert pool.drawn == 12_000


async def test_a_process_that_ends_gives_back_what_it_neither_used_nor_holds(host: Host) -> None:
    """Deploys during outages do not use the allowance up: twenty processes draw a tenth of it each."""
    used = 0
    for _ in range(20):
        meter = host.start()
        reservation = admitted(await meter.reserve(build_demand(BUDGET)))
        meter.settle(reservation, settlement_of(11))
        used += (await counts(meter, BUDGET))[0][0]
        await meter.close()
    # Two of 110 are held when the last process ends, as by answers that it cannot follow to their end.
    last = host.start()
    for _ in range(2):
        admitted(await last.reserve(build_demand(BUDGET)))
    await last.close()
    assert len(await admit_all(host.start(), BUDGET)) == (TOTAL - used - 2 * 110) // 110


async def test_no_worker_finds_the_file_empty_while_the_others_have_hardly_used_it(host: Host) -> None:
    host.live_workers = 30
    meters = [host.start() for _ in range(30)]
    for meter in meters:
        admitted(await meter.reserve(build_demand("tokens 1000000 total")))


async def test_a_file_that_is_late_is_not_waited_for_longer_than_a_second(host: Host) -> None:
    meter = host.start()
    descriptor = os.open(host.folder / "allowance.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(MeterDown) as caught:
            await meter.reserve(build_demand(BUDGET))
        assert "late" in caught.value.detail
    finally:
        os.close(descriptor)
    # What came after the request had gone is there for the next.
    assert len(await admit_all(meter, BUDGET)) == 18


async def test_a_file_that_cannot_be_read_refuses_and_is_tried_again(host: Host) -> None:
    host.path.write_bytes(b"torn")
    meter = host.start()
    assert await admit_all(meter, BUDGET) == []
    host.path.unlink()
    assert await admit_all(meter, BUDGET) == []
    host.clock.move(seconds=1)
    assert len(await admit_all(meter, BUDGET)) == 18


# --- the same request again, leases


async def test_the_same_id_gets_the_same_reservation_and_nothing_after_it_was_settled(host: Host) -> None:
    meter = host.start()
    demand = build_demand(f"{BUDGET}; concurrent 5")
    first = admitted(await meter.reserve(demand))
    assert admitted(await meter.reserve(demand)) is first
    assert await counts(meter, f"{BUDGET}; concurrent 5") == [(0, 110), (0, 1)]
    meter.settle(first, settlement_of(30))
    meter.settle(first, settlement_of(50))
    again = admitted(await meter.reserve(demand))
    assert (again.allowance_tokens, again.held_output_tokens, again.is_degraded) == (0, 0, True)
    assert await counts(meter, f"{BUDGET}; concurrent 5") == [(30, 0), (0, 0)]


async def test_settling_an_unknown_id_changes_nothing(host: Host) -> None:
    meter = host.start()
    meter.settle(Reservation("unknown", START_MS, 1, 1, 1, ()), settlement_of(30))
    assert await counts(meter, BUDGET) == [(0, 0)]


async def test_an_expired_lease_is_settled_at_its_last_use_and_later_at_the_truth(host: Host) -> None:
    meter = host.start()
    limits = f"{BUDGET}; concurrent 5"
    sent, unsent, renewed = [admitted(await meter.reserve(build_demand(limits))) for _ in range(3)]
    await meter.renew({sent.request_id: Use(True, 40, 40), "unknown": Use(True, 1, 1)})
    host.clock.move(ms=LEASE_MS - 1)
    await meter.renew({renewed.request_id: Use(True, 50, 50)})
    assert meter.sweep() == 0
    host.clock.move(ms=1)
    assert meter.sweep() == 2
    assert await counts(meter, limits) == [(40, 110), (0, 1)]
    meter.settle(sent, settlement_of(60))
    meter.settle(sent, settlement_of(99))
    meter.settle(unsent, settlement_of(5))
    assert await counts(meter, limits) == [(65, 110), (0, 1)]
