"""A client token's cap after Redis lost everything: requests that still run under it are held against it again.

Two workers, real Redis and a real ledger. One token costs one nano, and a demand is 10 input and 100 output tokens.
"""

import msgspec
import pytest

from fakes.crew import KEY, ORGANIZATION, Crew, record_of
from fakes.meter_oracle import admitted, build_demand, settlement_of
from meterhouse.limits.layout import keys_of, slot_of
from meterhouse.metering import Kind, Limit, RefusalKind, Scope, Use, Window

TOKEN = f"{KEY}.token"
CAPS = tuple(
    Limit(Scope.KEY, Limit.cap_scope_id(KEY, token, 4_000_000_000), Kind.SPEND, Window.TOTAL, 250)
    for token in (TOKEN, f"{KEY}.another")
)
CAP, OTHER_CAP = ((cap,) for cap in CAPS)


@pytest.fixture
def crew(engine, redis_url, tmp_path):
    return Crew(engine, redis_url, tmp_path)


async def stands(worker, cap=CAP):
    (state,) = await worker.meter.list_states(ORGANIZATION, cap)
    return state.spent, state.reserved


def settle(worker, reservation, tokens):
    """Journal under the token's id, as its requests are, and settle."""
    truth = settlement_of(tokens)
    recorded = record_of(worker.demands.pop(reservation.request_id), reservation, truth)
    worker.journal.records.append(msgspec.structs.replace(recorded, key_id=TOKEN))
    worker.meter.settle(reservation, truth)


async def test_a_cap_is_not_overspent_by_what_ran_while_redis_lost_everything(crew, redis_server):
    async with crew.hire_two() as (one, two):
        settle(two, await two.admit(CAP), 30)
        running = await two.admit(CAP)
        redis_server.cli("FLUSHALL")
        assert (await one.meter.reserve(build_demand(OTHER_CAP))).allowance_tokens == 100
        refusal = await one.meter.reserve(build_demand(CAP, held_input_tokens=20))
        assert (refusal.kind, refusal.used) == (RefusalKind.RESERVED, 140)
        last = admitted(await one.meter.reserve(build_demand(CAP)))
        assert await stands(two) == (30, 220)
        assert await stands(two, OTHER_CAP) == (0, 110)
        one.meter.settle(last, settlement_of(0, requests=0))
        settle(two, running, 70)
        await one.arrive()
        await two.arrive()
        assert await stands(one) == (100, 0)
        assert await one.meter.reconcile() == 0
        assert await stands(two) == (100, 0)
        assert one.learner.figures.counter_drift_total == 0


async def test_what_is_registered_when_the_cap_is_known_is_held_against_it(crew, redis_server):
    counters, holds, leases = keys_of(ORGANIZATION)
    async with crew.hire_two() as (one, two):
        running = await two.admit(CAP)
        for lost in (("HDEL", holds), ("ZREM", leases)):
            redis_server.cli(*lost, running.request_id)
        redis_server.cli("HINCRBY", counters, "n", -1)
        redis_server.cli("HINCRBY", counters, f"{slot_of(CAPS[0])}|0|r", -110)
        assert await stands(one) == (0, 0)
        await two.meter.renew({running.request_id: Use(is_sent=True, total_tokens=10, charge_nanos=10)})
        assert await stands(one) == (0, 110)
        redis_server.cli("ZADD", leases, 0, running.request_id)
        await one.reap(1)
        assert await stands(one) == (10, 0)
        settle(two, running, 40)
        await two.arrive()
        assert await stands(one) == (40, 0)


async def test_a_cap_that_is_met_later_counts_what_was_registered_and_reaped(crew, redis_server):
    async with crew.hire_two() as (one, two):
        running = await two.admit(CAP)
        await two.meter.renew({running.request_id: Use(is_sent=True, total_tokens=25, charge_nanos=25)})
        redis_server.cli("FLUSHALL")
        await one.counts("spend 1 USD total")
        redis_server.cli("ZADD", keys_of(ORGANIZATION)[2], 0, running.request_id)
        await two.reap(1)
        assert await stands(one) == (25, 0)
        assert await stands(one, OTHER_CAP) == (0, 0)
        settle(two, running, 60)
        await two.arrive()
        assert await stands(one) == (60, 0)
