"""Adjustments of the ledger move what a budget or token quota says is spent, and nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.meter_bench import Bench, open_bench, timed_bench
from fakes.meter_oracle import KEY, ORGANIZATION, PROJECT, Record, build_demand, settlement_of
from fakes.servers import RedisServer
from meterhouse.ids import new_id
from meterhouse.metering import Correction, Demand, LedgerSums, RefusalKind

SLICE_TOKENS = Demand.SLICE_TOKENS


async def correct(bench: Bench, nanos: int, tokens: int = 0, *, root_key_id: str | None = KEY, times: int = 1) -> None:
    """Write an adjustment into the ledger and tell the meter, as the command line does; once, or again and again."""
    now_ms = bench.clock.now_ms()
    # An adjustment counts whenever it was made; the oracle knows only records, so this one is made a moment earlier.
    bench.oracle.records.append(Record(build_demand(), now_ms - 1, settlement_of(tokens, nanos, requests=0)))
    correction = Correction(ORGANIZATION, PROJECT, root_key_id, now_ms, nanos, tokens, new_id("adj"))
    for _ in range(times):
        await bench.meter.adjust(correction)


async def test_a_credit_makes_room_in_a_spent_budget(still_bench: Bench) -> None:
    budget = "spend 0.000001 USD total"
    still_bench.settle(await still_bench.admit(budget), settlement_of(950))
    assert (await still_bench.refuse(budget)).kind is RefusalKind.SPENT
    await correct(still_bench, -800)
    assert await still_bench.counts(budget) == (150, 0)
    await still_bench.admit(budget)


async def test_a_later_charge_uses_a_budget_and_a_token_quota_up(still_bench: Bench) -> None:
    limits = "spend 0.000001 USD total; tokens 1000 total; requests 5/day"
    still_bench.settle(await still_bench.admit(limits), settlement_of(100))
    await correct(still_bench, 850, 40)
    assert await still_bench.counts("spend 0.000001 USD total") == (950, 0)
    assert await still_bench.counts("tokens 1000 total") == (140, 0)
    assert await still_bench.counts("requests 5/day") == (1, 0)
    assert (await still_bench.refuse(limits)).kind is RefusalKind.SPENT


@pytest.mark.parametrize("when", ["before the limit is met", "while a request runs"])
async def test_a_correction_counts_once_whenever_it_comes(still_bench: Bench, when: str) -> None:
    budget = "spend 0.00001 USD total"
    if when == "before the limit is met":
        await correct(still_bench, 300)
        reservation = await still_bench.admit(budget)
    else:
        reservation = await still_bench.admit(budget)
        await correct(still_bench, 300)
    assert await still_bench.counts(budget) == (300, 110)
    still_bench.settle(reservation, settlement_of(60))
    assert await still_bench.counts(budget) == (360, 0)
    await still_bench.reconcile()
    assert await still_bench.counts(budget) == (360, 0)


async def test_a_correction_that_is_told_again_because_its_answer_was_lost_counts_once(still_bench: Bench) -> None:
    limits = "spend 0.00001 USD total; tokens 1000 total"
    still_bench.settle(await still_bench.admit(limits), settlement_of(500))
    assert await still_bench.counts("tokens 1000 total") == (500, 0)
    await correct(still_bench, -200, -100, times=3)
    await correct(still_bench, -50, times=2)
    assert await still_bench.counts("spend 0.00001 USD total") == (250, 0)
    assert await still_bench.counts("tokens 1000 total") == (400, 0)


@pytest.mark.parametrize("looks_between", [False, True])
async def test_an_answer_that_runs_stays_bound_by_its_limits_after_a_correction(
    still_bench: Bench, looks_between: bool
) -> None:
    limits = "tokens 10000 total; spend 0.00002 USD total"
    reservation = await still_bench.admit(limits, output_tokens=9_000, is_streamed=True)
    assert reservation.held_output_tokens == SLICE_TOKENS
    await correct(still_bench, 0, 7_000)
    if looks_between:
        assert await still_bench.counts("tokens 10000 total") == (7_000, SLICE_TOKENS + 10)
    assert not await still_bench.meter.extend(reservation, 943)
    assert await still_bench.counts("tokens 10000 total") == (7_000, SLICE_TOKENS + 10)
    assert await still_bench.meter.extend(reservation, 942)
    assert reservation.held_output_tokens == reservation.held_nanos - 10 == SLICE_TOKENS + 942
    assert await still_bench.counts("tokens 10000 total") == (7_000, 3_000)
    assert not await still_bench.meter.extend(reservation, 1)
    still_bench.settle(reservation, settlement_of(60))
    assert await still_bench.counts("tokens 10000 total") == (7_060, 0)


async def test_an_answer_gets_no_more_while_the_ledger_cannot_say_what_a_correction_left() -> None:
    """In memory; Redis is told how much a correction moves, and asks nobody."""
    async with open_bench(Bench()) as bench:
        reservation = await bench.admit("tokens 10000 total", output_tokens=9_000, is_streamed=True)
        await correct(bench, 0, 10)
        bench.oracle.is_down = True
        assert not await bench.meter.extend(reservation, 1)
        bench.oracle.is_down = False
        assert await bench.meter.extend(reservation, 1)
        assert await bench.counts("tokens 10000 total") == (10, SLICE_TOKENS + 11)


@pytest.mark.parametrize("limit", ["tokens 10000/day", "tokens 10000/month"])
async def test_the_first_that_comes_in_a_new_period_may_be_a_correction(bench: Bench, limit: str) -> None:
    bench.settle(await bench.admit(limit), settlement_of(100))
    bench.clock.move(days=31, seconds=1)
    await correct(bench, 0, 7_000, times=2)
    assert await bench.counts(limit) == (7_000, 0)
    bench.settle(await bench.admit(limit), settlement_of(50))
    await bench.reconcile()
    assert await bench.counts(limit) == (7_050, 0)


async def test_a_comparison_that_a_period_ends_in_takes_no_correction_of_the_next(
    timed_redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees that the ledger has the correction, and adds up the period before."""
    limit = "tokens 10000/day"
    async with timed_bench(timed_redis_server, tmp_path) as bench:
        bench.clock.move(hours=23, seconds=3_599)
        bench.settle(await bench.admit(limit), settlement_of(100))
        assert await bench.counts(limit) == (100, 0)
        sum_before = bench.oracle.sum_before
        correction = Correction(ORGANIZATION, PROJECT, KEY, bench.clock.now_ms() + 2_000, 0, 7_000, new_id("adj"))

        async def sum_after_midnight(*asked: Any) -> LedgerSums:
            bench.clock.move(seconds=2)
            return replace(await sum_before(*asked), corrections=(correction.id,))

        monkeypatch.setattr(bench.oracle, "sum_before", sum_after_midnight)
        await bench.reconcile()
        await bench.meter.adjust(correction)
        assert await bench.counts(limit) == (7_000, 0)
