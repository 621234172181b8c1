"""Settlements of one call: each counter is read once and written once, and how long they are remembered."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from fakes.meter_bench import DAY_MS, RedisBench, timed_bench
from fakes.meter_oracle import ORGANIZATION, START_MS, admitted, build_demand, key_limits, settlement_of
from fakes.servers import RedisServer
from meterhouse.limits.layout import encode_settle, keys_of
from meterhouse.limits.scripts import load_scripts
from meterhouse.limits.settlements import MOST_AT_ONCE
from meterhouse.metering import Settlement, Use

BUDGET = "spend 0.00001 USD total"
RATES = "tokens 9000/second; tokens 9000/minute; tokens 9000/hour"
REMEMBERED_MS = 600_000
"""How long at least."""


@pytest.fixture
async def bench(timed_redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[RedisBench]:
    async with timed_bench(timed_redis_server, tmp_path) as bench:
        yield bench


async def tell(bench: RedisBench, settlements: Iterable[tuple[str, Settlement]]) -> None:
    await bench.link.call(load_scripts().settle, keys_of(ORGANIZATION), encode_settle(settlements))


async def test_counters_of_hundreds_of_keys_are_written(bench: RedisBench) -> None:
    """They are more than Lua can pass to one command."""
    keys = [f"key_{index}" for index in range(MOST_AT_ONCE)]
    demands = [build_demand(key_limits(RATES, key), root_key_id=key) for key in keys]
    for decided in await asyncio.gather(*map(bench.meter.reserve, demands)):
        admitted(decided)
    bench.clock.move(hours=3)  # to other windows, so that each rate has its three fields written
    await tell(bench, [(demand.request_id, settlement_of(300)) for demand in demands])
    for demand in (demands[0], demands[-1]):
        states = await bench.meter.list_states(ORGANIZATION, demand.limits)
        assert [state.spent for state in states] == [190] * 3
    assert (await bench.admit(BUDGET)).allowance_tokens == 100


async def test_what_comes_back_of_the_window_before_is_free_in_this_one(bench: RedisBench) -> None:
    rate = "tokens 9000/minute"
    bench.clock.move(ms=119_000 - START_MS % 60_000)
    before = [await bench.admit(rate) for _ in range(2)]
    bench.clock.move(ms=1_000)
    await bench.admit(rate)
    assert await bench.counts(rate) == (330, 0)
    await tell(bench, [(one.request_id, settlement_of(10)) for one in before])
    assert await bench.counts(rate) == (130, 0)


async def test_a_period_that_is_over_goes_with_the_last_of_its_holds(bench: RedisBench) -> None:
    day = "tokens 9000/day"
    midnight_ms = START_MS - START_MS % DAY_MS + DAY_MS
    bench.clock.move(ms=midnight_ms - 1_000 - START_MS)
    of_yesterday = [await bench.admit(day) for _ in range(3)]
    bench.clock.move(ms=2_000)
    of_today = await bench.admit(day)
    counters, *_ = keys_of(ORGANIZATION)
    yesterday = f"{midnight_ms - DAY_MS}|s"
    first, *others = [(one.request_id, settlement_of(5)) for one in of_yesterday]

    def is_kept() -> bool:
        return any(yesterday in str(field) for field in bench.server.cli("HKEYS", counters))  # type: ignore[union-attr]

    await tell(bench, [first])
    assert is_kept()
    await tell(bench, [*others, (of_today.request_id, settlement_of(7))])
    assert not is_kept()
    assert await bench.counts(day) == (7, 0)


async def test_a_hold_that_outlived_its_slot_does_not_stop_the_others(bench: RedisBench) -> None:
    """The sweep drops a slot whose newest period is over for two days and has no holds."""
    day = "tokens 9000/day"
    oldest = await bench.admit(day)
    bench.clock.move(days=2)
    await bench.meter.renew({oldest.request_id: Use(is_sent=True, total_tokens=1, charge_nanos=1)})
    bench.settle(await bench.admit(day), settlement_of(5))
    await bench.settled()
    bench.clock.move(days=4)
    await bench.meter.renew({oldest.request_id: Use(is_sent=True, total_tokens=1, charge_nanos=1)})
    await bench.sweep()
    other = await bench.admit(BUDGET)
    await tell(bench, [(one.request_id, settlement_of(7)) for one in (other, oldest)])
    assert await bench.counts(BUDGET) == (5 + 7 + 7, 0)
    counters, *_ = keys_of(ORGANIZATION)
    assert not [field for field in bench.server.cli("HKEYS", counters) if "|day|" in str(field)]  # type: ignore[union-attr]


@pytest.mark.parametrize("at_ms", [0, 1, REMEMBERED_MS // 2, REMEMBERED_MS - 1])
async def test_one_is_remembered_whenever_others_were_told(bench: RedisBench, at_ms: int) -> None:
    """They are remembered together, and what is remembered ends by itself."""
    bench.clock.move(ms=REMEMBERED_MS - START_MS % REMEMBERED_MS)
    await bench.state(BUDGET)
    await tell(bench, [("f" * 32, settlement_of())])
    remembered = f"mh:{{{ORGANIZATION}}}:s:{bench.clock.now_ms() // REMEMBERED_MS}"
    assert 0 < bench.server.cli("PTTL", remembered) <= 2 * REMEMBERED_MS  # type: ignore[union-attr]
    bench.clock.move(ms=at_ms)
    demand = build_demand(BUDGET)
    await tell(bench, [(demand.request_id, settlement_of())])
    bench.clock.move(ms=REMEMBERED_MS - 1)
    assert admitted(await bench.meter.reserve(demand)).allowance_tokens == 0
    bench.clock.move(ms=REMEMBERED_MS + 1)
    assert admitted(await bench.meter.reserve(demand)).allowance_tokens == 100
