"""A correction and a comparison with the ledger, step by step in every order: nothing is lost, nothing counts twice.

A correction is committed, then told to Redis; a comparison begins on Redis, reads the ledger, and finishes on Redis.
Real Redis, and the ledger on SQLite and PostgreSQL. Not here: a correction alone (``test_meter_corrections``).
"""

from dataclasses import dataclass, field

import pytest

from fakes.crew import KEY, ORGANIZATION, PROJECT, Crew, slot
from fakes.meter_oracle import settlement_of
from meterhouse.billing.rerate import corrections_of
from meterhouse.db.ledger import Adjustment
from meterhouse.db.tables import RERATED_ID_PREFIX
from meterhouse.ids import new_id, new_request_id
from meterhouse.limits.layout import keys_of

BUDGET = "spend 1000000 USD total"
OTHER = "spend 900000 USD/month"
SPENT = 10**15
"""More digits than a script may write without care."""
ORDERS = [(committed, told) for committed in range(4) for told in range(committed, 4)]
"""Before which step of a comparison a correction is committed, and told; 3: after the last."""


@dataclass
class Interleaved:
    """Stands where a learner's ledger and scripts are, and lets a correction take its steps between."""

    crew: Crew
    worker: object
    nanos: int
    committed_before: int
    told_before: int
    records: int = 0
    """Where it is of so many records that are charged later."""
    step: int = 0
    entries: list[Adjustment] = field(init=False)

    def __post_init__(self):
        at_ms = self.worker.meter._clock.now_ms()
        ids = [f"{RERATED_ID_PREFIX}{new_request_id()}_1" for _ in range(self.records)] or [new_id("adj")]
        self.entries = [
            Adjustment(name, ORGANIZATION, PROJECT, KEY, at_ms, self.nanos // len(ids), 0, "late", at_ms, "op")
            for name in ids
        ]
        learner = self.worker.learner
        self.begin, self.sums, self.correct = learner._begin, learner._sums, learner._correct
        learner._begin, learner._sums, learner._correct = self._begin, self, self._correct

    async def reach(self, step):
        """Take those steps of the correction that come before a step of the comparison."""
        while self.step <= step:
            if self.step == self.committed_before:
                for entry in self.entries:
                    await self.crew.ledger.insert_adjustment(entry)
            if self.step == self.told_before:
                (told,) = corrections_of(self.entries)
                await self.worker.meter.adjust(told)
            self.step += 1

    async def _begin(self, *asked):
        await self.reach(0)
        return await self.begin(*asked)

    async def sum_before(self, *asked):
        await self.reach(1)
        return await self.sums.sum_before(*asked)

    async def _correct(self, *asked):
        await self.reach(2)
        await self.correct(*asked)

    async def end(self):
        await self.reach(3)
        learner = self.worker.learner
        learner._begin, learner._sums, learner._correct = self.begin, self.sums, self.correct


@pytest.fixture
async def worker(engine, redis_url, tmp_path):
    async with Crew(engine, redis_url, tmp_path).hire("one") as worker:
        worker.settle(await worker.admit(BUDGET), settlement_of(0, SPENT))
        await worker.journal.ship()
        await worker.arrive()
        yield worker


@pytest.fixture
def crew(engine, redis_url, tmp_path):
    return Crew(engine, redis_url, tmp_path)


async def compare(worker, limits=BUDGET):
    await worker.learner.reconcile(ORGANIZATION, [slot(limits)])


@pytest.mark.parametrize("nanos", [70 + SPENT // 20, -70 - SPENT // 20])
async def test_a_correction_counts_once_whenever_it_comes(crew, worker, nanos):
    for count, order in enumerate(ORDERS, 1):
        interleaved = Interleaved(crew, worker, nanos, *order)
        await compare(worker)
        await interleaved.end()
        assert await worker.counts(BUDGET) == (SPENT + count * nanos, 0), order
        assert await crew.sums(BUDGET) == SPENT + count * nanos
    for _ in range(2):
        await compare(worker)
        assert await worker.counts(BUDGET) == (SPENT + count * nanos, 0)


async def test_records_that_are_charged_later_count_once_though_the_meter_hears_of_them_as_one(crew, worker):
    for count, order in enumerate(ORDERS, 1):
        interleaved = Interleaved(crew, worker, 90, *order, records=3)
        await compare(worker)
        await interleaved.end()
        assert await worker.counts(BUDGET) == (SPENT + count * 90, 0), order


@pytest.mark.parametrize("nanos", [70, -70])
async def test_a_limit_that_is_met_just_then_is_learned_with_it(crew, worker, redis_server, nanos):
    for count, order in enumerate(ORDERS, 1):
        redis_server.cli("FLUSHALL")
        interleaved = Interleaved(crew, worker, nanos, *order)
        assert (await worker.counts(OTHER))[0] - SPENT in {(count - 1) * nanos, count * nanos}
        await interleaved.end()
        for _ in range(2):
            assert await worker.counts(OTHER) == (SPENT + count * nanos, 0), order
            await compare(worker, OTHER)


async def test_a_credit_counts_also_where_a_comparison_may_lower_nothing(crew, worker, redis_server, monkeypatch):
    async def is_sure(*_, **__):
        return False  # somebody may hold a record back

    monkeypatch.setattr(worker.fleet, "flush", is_sure)
    redis_server.cli("HINCRBY", keys_of(ORGANIZATION)[0], f"{slot(BUDGET)}|0|s", 30)
    for count, order in enumerate(ORDERS, 1):
        interleaved = Interleaved(crew, worker, -70, *order)
        await compare(worker)
        await interleaved.end()
        assert await worker.counts(BUDGET) == (SPENT + 30 - 70 * count, 0), order
