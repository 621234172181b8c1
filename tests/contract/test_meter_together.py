"""Demands of one tick and organization are one call; each is decided as if it came alone, after those before it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from fakes.meter_bench import LEASE_MS, RedisBench, reserve_together, timed_bench
from fakes.meter_oracle import ORGANIZATION, admitted, build_demand, key_limits, settlement_of
from fakes.servers import RedisServer
from meterhouse.errors import MeterDown
from meterhouse.keys.limit_changes import MOST_LIMITS
from meterhouse.limits.layout import encode_settle, keys_of
from meterhouse.limits.redis import RedisMeter
from meterhouse.limits.reserves import MOST_TOGETHER
from meterhouse.limits.scripts import load_scripts
from meterhouse.metering import Kind, Limit, Reservation, Scope, Window

OTHER_KEY = "key_2"
BUDGET = "spend 0.00001 USD total"


@pytest.fixture
async def bench(timed_redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[RedisBench]:
    async with timed_bench(timed_redis_server, tmp_path) as bench:
        yield bench


def is_admitted(decided: Sequence[object]) -> list[bool]:
    return [isinstance(decision, Reservation) for decision in decided]


async def test_those_that_come_first_are_admitted_and_no_more_than_fit(bench: RedisBench) -> None:
    await bench.state(rate := "requests 11/minute")
    decided = await reserve_together(bench, [build_demand(rate) for _ in range(20)])
    assert is_admitted(decided) == [True] * 11 + [False] * 9
    assert await bench.counts(rate) == (11, 0)
    assert [state.spent for one in decided[:11] for state in admitted(one).states] == [*range(1, 12)]


async def test_one_that_is_too_large_stands_in_nobodys_way(bench: RedisBench) -> None:
    await bench.state(BUDGET)
    sizes = [100, 9_999_999, 100, 9_999_999, 100]
    demands = [build_demand(BUDGET, output_tokens=size, holds_whole_allowance=True) for size in sizes]
    demands[1] = msgspec.structs.replace(demands[1], held_input_tokens=9_999_999)
    decided = await reserve_together(bench, demands)
    assert is_admitted(decided)[:3] == [True, False, True]
    held = [decision.held_nanos for decision in decided if isinstance(decision, Reservation)]
    assert await bench.counts(BUDGET) == (0, sum(held))


async def test_the_same_request_twice_is_held_once(bench: RedisBench) -> None:
    await bench.state(BUDGET)
    demand = build_demand(BUDGET)
    first, second, other = await reserve_together(bench, [demand, demand, build_demand(BUDGET)])
    assert admitted(first) is admitted(second)
    flushes = bench.flushes
    assert await bench.counts(BUDGET) == (0, 220)
    assert bench.flushes == flushes, "a wrong count of holds has the organization recovered, which puts all right"
    await bench.replace_worker()
    again, new = await reserve_together(bench, [demand, build_demand(BUDGET)])
    assert (admitted(again).admitted_at_ms, admitted(again).held_nanos) == (admitted(first).admitted_at_ms, 110)
    assert await bench.counts(BUDGET) == (0, 330)
    for reservation in (other, new):
        bench.settle(admitted(reservation), settlement_of(1))


async def test_what_was_settled_or_reaped_before_holds_nothing_among_others(bench: RedisBench) -> None:
    await bench.state(BUDGET)
    settled, reaped = build_demand(BUDGET), build_demand(BUDGET)
    bench.settle(admitted((await reserve_together(bench, [settled, reaped]))[0]), settlement_of(7))
    await bench.settled()
    await bench.replace_worker()
    bench.clock.move(ms=2 * LEASE_MS)
    await bench.sweep()
    old, new, older = await reserve_together(bench, [settled, build_demand(BUDGET), reaped])
    assert [admitted(one).allowance_tokens for one in (old, new, older)] == [0, 100, 0]
    assert await bench.counts(BUDGET) == (7, 110)


async def test_an_expired_lease_is_reaped_before_any_of_them_is_judged(bench: RedisBench) -> None:
    await bench.state(gauge := "concurrent 2")
    await reserve_together(bench, [build_demand(gauge), build_demand(gauge)])
    await bench.replace_worker()
    bench.clock.move(ms=2 * LEASE_MS)
    assert is_admitted(await reserve_together(bench, [build_demand(gauge) for _ in range(3)])) == [True, True, False]
    assert await bench.counts(gauge) == (0, 2)


async def test_what_was_settled_holds_nothing_where_a_lease_is_reaped_and_the_clock_went_back(
    bench: RedisBench,
) -> None:
    """Admissions are dated by the learning that was later; what is settled is remembered by the clock."""
    await bench.state(BUDGET)
    bench.clock.move(hours=-1)
    await bench.admit(BUDGET)
    await bench.replace_worker()
    bench.clock.move(ms=2 * LEASE_MS)
    gone = build_demand(BUDGET)
    released = encode_settle([(gone.request_id, settlement_of(requests=0))])
    await bench.link.call(load_scripts().settle, keys_of(ORGANIZATION), released)
    decided = await reserve_together(bench, [gone, build_demand(BUDGET)])
    assert [admitted(one).allowance_tokens for one in decided] == [0, 100]
    assert await bench.counts(BUDGET) == (0, 110)


async def test_a_hold_that_cannot_be_read_refuses_its_own_request_alone(bench: RedisBench) -> None:
    await bench.state(BUDGET)
    broken = build_demand(BUDGET)
    await bench.meter.reserve(broken)
    assert isinstance(bench.server, RedisServer)
    bench.server.cli("HSET", keys_of(ORGANIZATION)[1], broken.request_id, b"\xc1 no hold")
    await bench.replace_worker()
    demands = [build_demand(BUDGET), broken, build_demand(BUDGET)]
    decided = await asyncio.gather(*[bench.meter.reserve(demand) for demand in demands], return_exceptions=True)
    assert is_admitted(decided) == [True, False, True]
    assert isinstance(decided[1], MeterDown)
    assert await bench.counts(BUDGET) == (0, 220)


async def test_a_demand_that_cannot_be_told_fails_alone(bench: RedisBench) -> None:
    """Nobody can ask for so much; but what is wrong with one demand must not leave all others of its tick waiting."""
    await bench.state(BUDGET)
    sizes = [100, 2**64, 100]
    demands = [*[build_demand(BUDGET, output_tokens=size) for size in sizes], build_demand(root_key_id=OTHER_KEY)]
    async with asyncio.timeout(20):
        decided = await asyncio.gather(*map(bench.meter.reserve, demands), return_exceptions=True)
    assert is_admitted(decided) == [True, False, True, True]
    assert isinstance(decided[1], OverflowError)
    assert await bench.counts(BUDGET) == (0, 220)


async def test_who_leaves_before_the_call_holds_nothing(bench: RedisBench) -> None:
    await bench.state(BUDGET)
    tasks = [asyncio.ensure_future(bench.meter.reserve(build_demand(BUDGET))) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    decided = await asyncio.gather(*tasks, return_exceptions=True)
    assert is_admitted(decided) == [True, False, True]
    assert await bench.counts(BUDGET) == (0, 220)
    assert isinstance(bench.meter, RedisMeter)
    assert bench.meter.live == 2


async def test_a_slot_of_another_key_is_debited_by_each_of_them(bench: RedisBench) -> None:
    """A project's budget binds one key; the other key's requests, which it does not judge, count in it all the same."""
    project = tuple(replace(limit, scope=Scope.PROJECT, scope_id="proj_1") for limit in key_limits(BUDGET))
    await bench.admit(project, root_key_id="key_of_another")
    _, before = await bench.counts(project)
    await bench.state(BUDGET)
    await reserve_together(bench, [build_demand(BUDGET) for _ in range(3)])
    assert await bench.counts(project) == (0, before + 330)
    assert await bench.counts(BUDGET) == (0, 330)


async def test_a_slot_of_another_key_is_debited_once_for_each_demand_whoever_lists_it(bench: RedisBench) -> None:
    """The project's gauge, which nobody was in before, binds one of the two keys that ask in the same call."""
    project = tuple(replace(limit, scope=Scope.PROJECT, scope_id="proj_1") for limit in key_limits("concurrent 3"))
    await bench.state(BUDGET)
    mine = [build_demand(BUDGET) for _ in range(2)]
    others = [build_demand(project, root_key_id=OTHER_KEY) for _ in range(2)]
    decided = await reserve_together(bench, [mine[0], others[0], mine[1], others[1]])
    assert is_admitted(decided) == [True, True, True, False]
    assert await bench.counts(project) == (0, 3)
    for one in decided[:3]:
        bench.settle(admitted(one), settlement_of(1))
    assert await bench.counts(project) == (0, 0)


async def test_who_waits_for_the_ledger_holds_up_no_other_key(bench: RedisBench) -> None:
    await bench.state(BUDGET)
    bench.oracle.gate = asyncio.Event()
    unknown = key_limits(BUDGET, OTHER_KEY)
    waiting = asyncio.ensure_future(bench.meter.reserve(build_demand(unknown, root_key_id=OTHER_KEY)))
    decided = await bench.meter.reserve(build_demand(BUDGET))
    assert isinstance(decided, Reservation)
    assert not waiting.done()
    bench.oracle.gate.set()
    assert isinstance(await waiting, Reservation)
    assert await bench.counts(unknown) == (0, 110)


async def test_more_counters_than_one_call_can_write_are_asked_for_one_after_another(bench: RedisBench) -> None:
    """As many limits as owners may have, of eight keys in eight projects: the script cannot unpack so much at once."""
    demands = []
    for index in range(MOST_TOGETHER):
        key, project = f"key_{index}", f"proj_{index}"
        limits = tuple(
            Limit(scope, scope_id, Kind.REQUESTS, Window.MINUTE, 5, multiple)
            for scope, scope_id in ((Scope.KEY, key), (Scope.PROJECT, project))
            for multiple in range(1, MOST_LIMITS + 1)
        )
        demands.append(build_demand(limits, root_key_id=key, project_id=project))
    before = bench.link.figures.calls
    decided = await asyncio.gather(*map(bench.meter.reserve, demands))
    assert bench.link.figures.calls - before > MOST_TOGETHER
    for one in decided:
        assert [state.spent for state in admitted(one).states] == [1] * (2 * MOST_LIMITS)
