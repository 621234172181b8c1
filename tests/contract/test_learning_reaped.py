"""What becomes of reservations that were reaped, or that nobody can renew, while the meter is compared with the ledger.

Two workers, real Redis and a real ledger. One token costs one nano here.
"""

import asyncio
from dataclasses import replace

import pytest

from fakes.crew import ORGANIZATION, Crew, record_of, until
from fakes.meter_oracle import build_demand, key_limits, settlement_of
from meterhouse import cut_off
from meterhouse.db.workers import Heartbeat
from meterhouse.fleet import Rhythm
from meterhouse.limits import learning
from meterhouse.limits.layout import keys_of
from meterhouse.metering import Use

BUDGET = "spend 1 USD total"
TOKENS = "tokens 100000000 total"
MONTH = "spend 1 USD/month"


@pytest.fixture
def crew(engine, redis_url, tmp_path):
    return Crew(engine, redis_url, tmp_path)


async def reap(crew_member, redis_server, *reservations):
    """Let leases end, and have them reaped."""
    leases = keys_of(ORGANIZATION)[2]
    redis_server.cli("ZADD", leases, *(part for one in reservations for part in (0, one.request_id)))
    await crew_member.reap(len(reservations))


def stones(redis_server):
    return redis_server.cli("ZCARD", keys_of(ORGANIZATION)[0][:-1] + "y")


async def lose_hold(one, two, redis_server, used=40):
    """A request of the second worker is reaped by the first at what it has used."""
    reservation = await two.admit(BUDGET)
    await two.meter.renew({reservation.request_id: Use(is_sent=True, total_tokens=used, charge_nanos=used)})
    await reap(one, redis_server, reservation)
    return reservation


async def record(worker, reservation, truth):
    """Bring a record into the ledger before the meter hears of it."""
    worker.journal.records.append(record_of(worker.demands.pop(reservation.request_id), reservation, truth))
    await worker.journal.ship()


async def settle_late(worker, reservation, truth):
    worker.meter.settle(reservation, truth)
    await worker.arrive()


@pytest.mark.parametrize("truth", [70, 40, 15])
async def test_a_settlement_after_a_comparison_counts_once(crew, redis_server, truth):
    async with crew.hire_two() as (one, two):
        reservation = await lose_hold(one, two, redis_server)
        assert await one.counts(BUDGET) == (40, 0)
        await record(two, reservation, settlement_of(truth))
        for _ in range(2):
            await one.meter.reconcile()
            # It may still run, as far as anybody knows: what it has used is not taken back yet.
            assert await two.counts(BUDGET) == (max(truth, 40), 0)
        await settle_late(two, reservation, settlement_of(truth))
        assert await two.counts(BUDGET) == (truth, 0)
        await one.meter.reconcile()
        assert await one.counts(BUDGET) == (truth, 0)
        assert one.learner.figures.counter_drift_total == 0
        assert stones(redis_server) == 0


@pytest.mark.parametrize("truth", [70, 15, None])
async def test_what_is_silent_for_long_is_the_ledgers_to_account_for(crew, redis_server, truth):
    async with crew.hire_two() as (one, two):
        one.learner._lease_seconds = 0.15
        reservation = await lose_hold(one, two, redis_server)
        if truth is not None:
            await record(two, reservation, settlement_of(truth))
        await asyncio.sleep(0.11)
        await one.meter.reconcile()
        assert stones(redis_server) == 0
        for _ in range(2):
            assert await two.counts(BUDGET) == (truth or 0, 0)
            await settle_late(two, reservation, settlement_of(99))
        again = await one.meter.reserve(build_demand(BUDGET, request_id=reservation.request_id))
        assert again.allowance_tokens == 0, "it was settled before, so it holds and allows nothing"
        assert await two.counts(BUDGET) == (truth or 0, 0)


async def test_one_that_renews_after_its_reaping_is_not_given_up(crew, redis_server):
    async with crew.hire_two() as (one, two):
        one.learner._lease_seconds = 0.15
        reservation = await lose_hold(one, two, redis_server)
        await asyncio.sleep(0.11)
        await two.meter.renew({reservation.request_id: Use(is_sent=True, total_tokens=50, charge_nanos=50)})
        await one.meter.reconcile()
        assert await one.counts(BUDGET) == (40, 0)
        two.settle(reservation, settlement_of(70))
        await two.arrive()
        assert await one.counts(BUDGET) == (70, 0)


async def test_a_limit_that_is_met_later_counts_what_was_reaped(crew, redis_server):
    async with crew.hire_two() as (one, two):
        reservation = await lose_hold(one, two, redis_server)
        texts = [TOKENS, MONTH, "requests 900/day"]
        for text, expected in zip(texts, (40, 40, 1), strict=True):
            assert await one.counts(text) == (expected, 0)
        assert await one.counts("spend 1 USD total for other") == (0, 0)
        two.settle(reservation, settlement_of(70))
        await two.arrive()
        for text, expected in zip(texts, (70, 70, 1), strict=True):
            assert await one.counts(text) == (expected, 0)
        await one.meter.reconcile()
        assert await two.counts(TOKENS) == (70, 0)
        assert one.learner.figures.counter_drift_total == 0


async def test_a_lost_list_of_what_was_reaped_leaves_it_to_the_ledger(crew, redis_server):
    async with crew.hire_two() as (one, two):
        reservation = await lose_hold(one, two, redis_server)
        redis_server.cli("DEL", keys_of(ORGANIZATION)[0][:-1] + "y")
        await record(two, reservation, settlement_of(70))
        await one.meter.reconcile()
        assert await one.counts(BUDGET) == (70, 0)
        await settle_late(two, reservation, settlement_of(70))
        assert await one.counts(BUDGET) == (70, 0)


async def test_hundreds_that_were_reaped_are_reconciled_in_parts(crew, redis_server):
    async with crew.hire_two() as (one, two):
        reservations = await asyncio.gather(*(two.admit(BUDGET) for _ in range(900)))
        use = Use(is_sent=True, total_tokens=40, charge_nanos=40)
        await two.meter.renew({one.request_id: use for one in reservations})
        await reap(one, redis_server, *reservations)
        for reservation in reservations:
            two.journal.records.append(
                record_of(two.demands.pop(reservation.request_id), reservation, settlement_of(70))
            )
        await two.journal.ship()
        await one.meter.reconcile()
        assert await one.counts(BUDGET) == (900 * 70, 0)
        for reservation in reservations:
            two.meter.settle(reservation, settlement_of(70))
        await two.arrive()
        assert await one.counts(BUDGET) == (900 * 70, 0)
        assert stones(redis_server) == 0


async def test_of_too_many_that_were_reaped_the_rest_is_left_to_the_ledger(crew, redis_server):
    async with crew.hire_two() as (one, two):
        reservations = await asyncio.gather(*(two.admit(BUDGET) for _ in range(1_100)))
        await reap(one, redis_server, *reservations)
        assert stones(redis_server) == 1_000
        for reservation in reservations:
            two.settle(reservation, settlement_of(70))
        await two.arrive()
        assert await one.counts(BUDGET) == (1_000 * 70, 0)
        await one.meter.reconcile()
        assert await two.counts(BUDGET) == (1_100 * 70, 0)


async def test_a_comparison_tells_rates_nothing_that_is_hours_old(crew, redis_server):
    async with crew.hire_two() as (one, two):
        limits = f"{BUDGET}; tokens 1000/minute"
        reservation = await two.admit(limits)
        await two.meter.renew({reservation.request_id: Use(is_sent=True, total_tokens=60, charge_nanos=60)})
        await reap(one, redis_server, reservation)
        await record(two, reservation, settlement_of(2_000))
        await one.meter.reconcile()
        spend, rate = await one.meter.list_states(ORGANIZATION, key_limits(limits))
        assert spend.spent == 2_000
        assert rate.spent <= 110


async def test_what_runs_on_after_its_counters_were_lost_is_held_again(crew, redis_server):
    async with crew.hire_two() as (one, two):
        reservation = await lose_hold(one, two, redis_server)
        for key in (*keys_of(ORGANIZATION), keys_of(ORGANIZATION)[0][:-1] + "y"):
            redis_server.cli("DEL", key)
        assert await one.counts(BUDGET) == (0, 110)
        two.settle(reservation, settlement_of(70))
        await two.arrive()
        assert await one.counts(BUDGET) == (70, 0)


async def test_sums_that_take_long_are_waited_for_with_a_lock_as_long(crew, monkeypatch):
    monkeypatch.setattr(learning, "SUM_SECONDS", 0.1)
    async with crew.hire_two() as (one, two):
        two.settle(await two.admit(()), settlement_of(9))
        sums, asked = one.learner._sums, []

        class Slow:
            async def sum_before(self, *what):
                asked.append(what)
                await asyncio.sleep(0.5)
                return await sums.sum_before(*what)

        one.learner._sums = Slow()
        assert await one.counts(BUDGET) == (9, 0)
        assert len(asked) == 2


# --- a worker that cannot renew


async def test_while_a_worker_is_cut_off_nothing_is_reaped_of_whom_it_has_reservations(crew, redis_server):
    crew.rhythm = Rhythm(heartbeat_seconds=0.05, lease_seconds=20)
    async with crew.hire_two() as (one, two):
        reservation = await two.admit(BUDGET)
        cut_off_of = {ORGANIZATION}
        two.fleet._member = replace(two.fleet._member, list_cut_off=lambda: cut_off_of)
        two.fleet.beat_soon()
        await until(lambda: not one.fleet.may_reap(ORGANIZATION))
        other = await one.admit("", organization_id="org_2")
        redis_server.cli("ZADD", keys_of("org_2")[2], 0, other.request_id)
        await one.reap(1)
        redis_server.cli("ZADD", keys_of(ORGANIZATION)[2], 0, reservation.request_id)
        assert await one.meter.sweep() == 0
        settled = await one.admit(BUDGET)
        assert await one.counts(BUDGET) == (0, 220)
        one.settle(settled, settlement_of(5))
        cut_off_of.clear()
        await until(lambda: one.fleet.may_reap(ORGANIZATION))
        await one.reap(1)
        assert await one.counts(BUDGET) == (5, 0)


async def test_a_dead_worker_that_was_cut_off_does_not_keep_others_from_reaping(crew):
    crew.rhythm = Rhythm(heartbeat_seconds=0.05, lease_seconds=0.5)
    async with crew.hire("one") as one:
        await one.fleet._workers.beat(Heartbeat("dead", "host", "journal of dead", 0, is_cut_off=True))
        await until(lambda: not any(map(one.fleet.may_reap, (ORGANIZATION, "org_2"))))
        await until(lambda: all(map(one.fleet.may_reap, (ORGANIZATION, "org_2"))))


async def test_a_worker_that_is_cut_off_of_too_many_names_none(crew, monkeypatch):
    monkeypatch.setattr(cut_off, "MOST_NAMED", 2)
    crew.rhythm = Rhythm(heartbeat_seconds=0.05, lease_seconds=20)
    async with crew.hire_two() as (one, two):
        two.fleet._member = replace(two.fleet._member, list_cut_off=lambda: {"org_1", "org_2", "org_3"})
        two.fleet.beat_soon()
        await until(lambda: not one.fleet.may_reap("org_9"))
