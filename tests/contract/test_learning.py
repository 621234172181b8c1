"""Learning and reconciling, with two workers, real Redis and a real ledger: exact, whatever happens meanwhile.

One token costs one nano here, and a demand is 10 input and 100 output tokens.
"""

import asyncio
import random

import pytest

from fakes.crew import ORGANIZATION, Crew, age, slot, until
from fakes.meter_oracle import settlement_of
from fakes.servers import RedisServer
from meterhouse.errors import MeterDown, StoreDown
from meterhouse.fleet import TICKETS, Rhythm
from meterhouse.limits.layout import keys_of
from meterhouse.metering import Use

BUDGET = "spend 1 USD total"
TOKENS = "tokens 100000000 total"
MONTH = "spend 1 USD/month"


@pytest.fixture
def crew(engine, redis_url, tmp_path):
    return Crew(engine, redis_url, tmp_path)


def tamper(redis_server, limits, by):
    """Put a known slot of all time off by an amount."""
    redis_server.cli("HINCRBY", keys_of(ORGANIZATION)[0], f"{slot(limits)}|0|s", by)


# --- learning


async def test_an_unknown_organization_learns_what_both_workers_hold_and_settled(crew, redis_server):
    async with crew.hire_two() as (one, two):
        for worker, tokens in ((one, 30), (two, 50)):
            worker.settle(await worker.admit(BUDGET), settlement_of(tokens))
        live = [(worker, await worker.admit(BUDGET)) for worker in (one, two, two)]
        redis_server.cli("FLUSHALL")
        assert await one.counts(BUDGET) == (80, 330)
        assert await two.counts(TOKENS) == (80, 330)
        assert await two.counts(MONTH) == (80, 330)
        for worker, reservation in live:
            worker.settle(reservation, settlement_of(7))
        await asyncio.gather(one.arrive(), two.arrive())
        assert await two.counts(BUDGET) == (101, 0)
        assert await one.counts(BUDGET) == (101, 0)
        assert await one.counts(TOKENS) == (101, 0)


async def test_a_restarted_redis_is_told_everything_again(engine, tmp_path):
    with RedisServer(tmp_path / "redis") as server:
        crew = Crew(engine, server.url, tmp_path)
        async with crew.hire_two() as workers:
            one, two = workers
            two.settle(await two.admit(BUDGET), settlement_of(50))
            live = [(worker, await worker.admit(BUDGET)) for worker in (one, two)]
            runs = [worker.link.run_id for worker in workers]
            await asyncio.to_thread(server.restart)
            await until(lambda: all(worker.link.run_id not in runs and worker.link.is_up for worker in workers))
            assert await one.counts(BUDGET) == (50, 220)
            for worker, reservation in live:
                worker.settle(reservation, settlement_of(7))
                await worker.arrive()
            assert await two.counts(BUDGET) == (64, 0)
            assert await two.counts(TOKENS) == (64, 0)


async def test_all_of_it_works_on_a_cluster(engine, redis_cluster, tmp_path):
    redis_cluster.flush()
    crew = Crew(engine, redis_cluster.url, tmp_path)
    async with crew.hire_two() as (one, two):
        two.settle(await two.admit(BUDGET), settlement_of(50))
        live = await two.admit(BUDGET)
        redis_cluster.node_of(keys_of(ORGANIZATION)[0]).cli("FLUSHALL")
        assert await one.counts(BUDGET) == (50, 110)
        two.settle(live, settlement_of(5))
        await two.arrive()
        assert await one.counts(TOKENS) == (55, 0)
        assert await one.meter.reconcile() == 0
        assert one.learner.figures.counter_drift_total == 0


async def test_a_new_limit_counts_what_other_workers_have_not_shipped_yet(crew):
    async with crew.hire_two() as (one, two):
        for _ in range(5):
            two.settle(await two.admit("5000/minute"), settlement_of(11))
        live = await two.admit("5000/minute")
        assert two.journal.shipped == 0
        assert await one.counts(BUDGET) == (55, 110)
        assert await one.counts("requests 900/day") == (5, 1)
        two.settle(live, settlement_of(5))
        assert await two.counts(BUDGET) == (60, 0)
        assert one.learner.figures.counter_drift_total == 0


async def test_a_month_and_a_model_are_learned_by_themselves(crew):
    async with crew.hire_two() as (one, two):
        one.settle(await one.admit((), model="other"), settlement_of(3))
        one.settle(await one.admit(()), settlement_of(4))
        assert await two.counts("spend 1 USD/month for other") == (3, 0)
        assert await two.counts("spend 1 USD/month for gpt-4o") == (4, 0)
        assert await two.counts("tokens 900/day") == (7, 0)


async def test_many_who_wait_share_one_operation(crew):
    async with crew.hire_two() as (one, _):
        sums = one.learner._sums
        calls = []

        class Counting:
            async def sum_before(self, periods, before_ms, excluded):
                calls.append(len(periods))
                return await sums.sum_before(periods, before_ms, excluded)

        one.learner._sums = Counting()
        texts = [BUDGET, TOKENS, MONTH, "requests 900/day"]
        await asyncio.gather(*(one.counts(text) for _ in range(25) for text in texts))
        assert sum(calls) == len(texts)
        assert len(calls) <= 2


async def test_learners_on_all_workers_agree(crew, redis_server):
    async with crew.hire_two() as (one, two):
        for _ in range(4):
            one.settle(await one.admit(()), settlement_of(9))
        live = await two.admit(())
        texts = [BUDGET, TOKENS, MONTH]
        for _ in range(3):
            answers = await asyncio.gather(*(worker.counts(text) for worker in (one, two) * 5 for text in texts))
            assert set(answers) == {(36, 110)}
            redis_server.cli("FLUSHALL")
        two.settle(live, settlement_of(1))
        await two.arrive()
        assert await one.counts(BUDGET) == (37, 0)


async def test_without_a_database_nothing_is_learned_and_nothing_is_guessed(crew, engine):
    async with crew.hire("one") as one:
        one.settle(await one.admit(()), settlement_of(9))
        one.meter._wait_seconds = 0.3
        one.learner._lock_seconds = 3600
        listed, one.fleet._workers.list_workers = one.fleet._workers.list_workers, down
        with pytest.raises(MeterDown):
            await one.counts(BUDGET)
        one.fleet._workers.list_workers = listed
        one.meter._wait_seconds = 30
        assert await one.counts(BUDGET) == (9, 0)


async def down():
    raise StoreDown("The database is away.")


async def test_a_cancelled_wait_stops_nobody_else(crew):
    async with crew.hire_two() as (one, two):
        two.settle(await two.admit(()), settlement_of(9))
        two.journal.gate.clear()
        waits = [asyncio.ensure_future(one.counts(BUDGET)) for _ in range(3)]
        await until(lambda: bool(two.fleet._answering))
        waits[0].cancel()
        two.journal.gate.set()
        assert await asyncio.gather(*waits[1:]) == [(9, 0), (9, 0)]
        assert waits[0].cancelled()


async def test_whoever_waits_is_told_when_everything_closes(crew):
    async with crew.hire_two() as (one, two):
        await one.admit(())
        two.journal.gate.clear()
        learning = asyncio.ensure_future(one.learner.learn(ORGANIZATION, [slot(BUDGET)]))
        await until(lambda: bool(two.fleet._answering))
        await one.learner.close()
        with pytest.raises(MeterDown):
            await learning
        flushing = asyncio.ensure_future(one.fleet.flush(ORGANIZATION, registers=True))
        await until(lambda: len(two.fleet._answering) >= 2)
        await one.fleet.close()
        with pytest.raises(MeterDown):
            await flushing
        with pytest.raises(MeterDown):
            await one.fleet.flush(ORGANIZATION, registers=True)


async def test_without_redis_a_flush_fails_at_once(engine, tmp_path):
    with RedisServer(tmp_path / "redis") as server:
        async with Crew(engine, server.url, tmp_path).hire_two() as (one, _):
            await asyncio.to_thread(server.kill)
            await until(lambda: not one.link.is_up)
            for work in (
                one.fleet.flush(ORGANIZATION, registers=False),
                one.learner.recover(ORGANIZATION),
                one.learner.learn(ORGANIZATION, [slot(BUDGET)]),
                one.learner.reconcile(ORGANIZATION, [slot(BUDGET)]),
            ):
                with pytest.raises(MeterDown):
                    await work
            await one.learner.learn(ORGANIZATION, [])


# --- silent and dead workers


async def test_a_silent_worker_is_waited_for_one_lease_and_then_made_up_for(engine, redis_url, tmp_path):
    crew = Crew(engine, redis_url, tmp_path, Rhythm(heartbeat_seconds=0.1, lease_seconds=0.7))
    async with crew.hire_two() as (one, two):
        one.settle(await one.admit(()), settlement_of(1))
        two.settle(await two.admit(()), settlement_of(10))
        await two.arrive()
        two.journal.gate.clear()
        assert await one.counts(BUDGET) == (1, 0)
        two.journal.gate.set()
        await one.meter.reconcile()
        assert await one.counts(BUDGET) == (11, 0)
        assert one.learner.figures.raised_nanos == 10


async def test_a_short_lock_is_made_longer_for_a_silent_worker(engine, redis_url, tmp_path):
    crew = Crew(engine, redis_url, tmp_path, Rhythm(heartbeat_seconds=0.1, lease_seconds=2))
    async with crew.hire_two() as (one, two):
        one.learner._lock_seconds = 0.2
        two.settle(await two.admit(()), settlement_of(10))
        two.journal.gate.clear()
        counting = asyncio.ensure_future(one.counts(BUDGET))
        await until(lambda: len(two.fleet._answering) >= 2)
        two.journal.gate.set()
        assert await counting == (10, 0)


async def test_a_dead_worker_is_not_waited_for_but_missed_until_it_is_adopted(crew, redis_server):
    async with crew.hire_two() as (one, two):
        assert await one.counts(BUDGET) == (0, 0)
        async with crew.hire("dead") as dead:
            dead.settle(await dead.admit(BUDGET), settlement_of(5))
            await until(lambda: dead.meter.live == 0)
            dead.journal.gate.clear()
            await one.fleet._workers.beat(dead.fleet._heartbeat(is_leaving=True))
            dead.fleet._hear = lambda payload: None
            assert await one.fleet.flush(ORGANIZATION, registers=False) is False
            tamper(redis_server, BUDGET, 100)
            await one.meter.reconcile()
            assert await one.counts(BUDGET) == (105, 0), "it was lowered, though somebody may have a record back"
            dead.journal.gate.set()
            await dead.journal.ship()
            await two.fleet._workers.remove_journal("journal of dead")
            assert await one.fleet.flush(ORGANIZATION, registers=False) is True
            await one.meter.reconcile()
            assert await one.counts(BUDGET) == (5, 0)


# --- reconciling


async def test_a_counter_that_is_off_is_put_right_and_counted(crew, redis_server):
    async with crew.hire_two() as (one, two):
        assert await one.counts(BUDGET) == (0, 0)
        one.settle(await one.admit(BUDGET), settlement_of(20))
        live = await two.admit(BUDGET)
        await one.meter.reconcile()
        assert one.learner.figures.counter_drift_total == 0
        tamper(redis_server, BUDGET, -13)
        await one.meter.reconcile()
        assert await two.counts(BUDGET) == (20, 110)
        tamper(redis_server, BUDGET, 1_000)
        await two.meter.reconcile()
        assert await two.counts(BUDGET) == (20, 110)
        two.settle(live, settlement_of(5))
        await two.arrive()
        assert await one.counts(BUDGET) == (25, 0)
        assert (one.learner.figures.raised_nanos, one.learner.figures.lowered_nanos) == (13, 0)
        assert (two.learner.figures.raised_nanos, two.learner.figures.lowered_nanos) == (0, 1_000)
        assert one.learner.figures.counter_drift_total == two.learner.figures.counter_drift_total == 1


async def test_reconciling_everywhere_at_once_corrects_once(crew, redis_server):
    async with crew.hire_two() as (one, two):
        one.settle(await one.admit(BUDGET), settlement_of(20))
        assert await one.counts(BUDGET) == (20, 0)
        for by in (-7, 50):
            tamper(redis_server, BUDGET, by)
            await asyncio.gather(*(worker.meter.reconcile() for worker in (one, two, one, two)))
            assert await one.counts(BUDGET) == (20, 0)


# --- flushes


async def test_flushes_of_a_moment_share_a_ticket(crew):
    async with crew.hire_two() as (one, two):
        heard = []
        two.notices.on("flush", lambda ticket: heard.append(ticket[0]))
        names = [f"org_{i}" for i in range(40)]
        assert all(await asyncio.gather(*(one.fleet.flush(name, registers=True) for name in names)))
        assert len(set(heard)) == 1
        await until(lambda: one.fleet.live_workers == two.fleet.live_workers == 2)


async def test_a_flush_ships_what_was_journaled_before_it(crew):
    async with crew.hire_two() as (one, two):
        for _ in range(5):
            for worker in (one, two):
                worker.settle(await worker.admit(()), settlement_of(1))
            position = len(two.journal.records)
            assert await one.fleet.flush(ORGANIZATION, registers=False)
            assert two.journal.shipped >= position
            assert one.journal.shipped >= position


async def test_without_pub_sub_tickets_are_found_at_the_next_heartbeat(crew, redis_server):
    async with crew.hire("one", has_notices=False) as one, crew.hire("two", has_notices=False) as two:
        two.settle(await two.admit(()), settlement_of(10))
        assert await one.counts(BUDGET) == (10, 0)
        await until(lambda: redis_server.cli("LLEN", TICKETS) == 0)


async def test_a_table_that_was_away_says_nothing_about_who_is_silent(crew):
    crew.rhythm = Rhythm(heartbeat_seconds=20, lease_seconds=20)
    async with crew.hire("one") as one, crew.hire("two"):
        await one.fleet._beat()
        await age(crew.engine, "two", 60_000)
        assert await one.fleet.flush(ORGANIZATION, registers=False) is False
        listed, one.fleet._workers.list_workers = one.fleet._workers.list_workers, down
        one.fleet._rhythm = Rhythm(heartbeat_seconds=0.05, lease_seconds=20)
        running = asyncio.ensure_future(one.fleet.run())
        await until(lambda: one.fleet._failed_at is not None)
        running.cancel()
        assert one.fleet.live_workers == 2
        with pytest.raises(StoreDown):
            await one.fleet.flush(ORGANIZATION, registers=False)
        one.fleet._workers.list_workers = listed
        one.fleet._rhythm = crew.rhythm
        assert await one.fleet.flush(ORGANIZATION, registers=False) is True
        await one.fleet._beat()
        assert one.fleet.live_workers == 2


async def test_a_worker_that_leaves_with_records_behind_is_missed(crew):
    crew.rhythm = Rhythm(heartbeat_seconds=20, lease_seconds=20)
    async with crew.hire("one") as one:
        async with crew.hire("two") as two:
            two.settle(await two.admit(()), settlement_of(10))
            await two.fleet.close()
            assert two.journal.count_unshipped() == 1
            assert await one.fleet.flush(ORGANIZATION, registers=False) is False
        assert await one.fleet.flush(ORGANIZATION, registers=False) is True


async def test_a_worker_that_leaves_with_everything_shipped_is_not_missed(crew):
    async with crew.hire("one") as one:
        async with crew.hire("two") as two:
            two.settle(await two.admit(()), settlement_of(10))
        assert await one.fleet.flush(ORGANIZATION, registers=False) is True
        assert await one.counts(BUDGET) == (10, 0)


# --- while everything happens at once


class Traffic:
    """Requests at random on both workers, until stopped; then every one of them is settled."""

    def __init__(self, workers, chance):
        self.workers = workers
        self.chance = chance
        self.is_over = False
        self.settled = 0

    async def run(self, lanes=6):
        await asyncio.gather(*(self._lane() for _ in range(lanes)))

    async def _lane(self):
        chance = self.chance
        while not self.is_over:
            worker = chance.choice(self.workers)
            limits = chance.choice([(), "5000/minute", BUDGET])
            reservation = await worker.admit(limits, is_streamed=True, output_tokens=chance.randrange(1, 3_000))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                await worker.meter.extend(reservation, 10)
            if chance.random() < 0.2:
                await worker.meter.renew({reservation.request_id: Use(is_sent=True, total_tokens=3, charge_nanos=3)})
            if chance.random() < 0.2:
                await asyncio.sleep(chance.random() / 50)
            worker.settle(reservation, settlement_of(chance.randrange(200)))
            self.settled += 1
            if chance.random() < 0.2:
                await worker.journal.ship()


@pytest.mark.parametrize("seed", range(5))
async def test_settlements_that_race_with_learning_land_once(crew, seed):
    chance = random.Random(seed)
    async with crew.hire_two() as workers:
        traffic = Traffic(workers, chance)
        running = asyncio.ensure_future(traffic.run())
        texts = [f"{kind} {window}" for kind in ("spend 1 USD", "tokens 100000000") for window in ("total",)]
        texts += [f"{text} for {model}" for text in texts for model in ("gpt-4o", "none")]
        chance.shuffle(texts)
        for text in texts:
            await asyncio.sleep(chance.random() / 20)
            await asyncio.gather(*(worker.counts(text) for worker in chance.sample(workers, chance.choice([1, 2]))))
            if chance.random() < 0.5:
                await chance.choice(workers).meter.reconcile()
        traffic.is_over = True
        await running
        await check(crew, workers, texts)
        assert traffic.settled > 20
        figures = [worker.learner.figures for worker in workers]
        assert sum(one.counter_drift_total for one in figures) == 0, "something was off before it was reconciled"


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_redis_loses_is_made_good(crew, redis_server, seed):
    chance = random.Random(1_000 + seed)
    async with crew.hire_two() as workers:
        traffic = Traffic(workers, chance)
        running = asyncio.ensure_future(traffic.run())
        for _ in range(3):
            await chance.choice(workers).counts(BUDGET)
            await asyncio.sleep(chance.random() / 20)
            lost = chance.choice(["all", *keys_of(ORGANIZATION)])
            redis_server.cli(*(["FLUSHALL"] if lost == "all" else ["DEL", lost]))
        traffic.is_over = True
        await running
        for worker in workers:
            await worker.meter.reconcile()
        await check(crew, workers, [BUDGET, TOKENS])


async def check(crew, workers, texts):
    """Compare what each worker is told with the ledger: nothing reserved, everything spent."""
    for worker in workers:
        await worker.arrive()
        await worker.journal.ship()
    for text in texts:
        truth = await crew.sums(text, tokens=text.startswith("tokens"))
        assert [await worker.counts(text) for worker in workers] == [(truth, 0)] * 2, text
