"""The memory meter keeps nothing for ever: what it drops, when, and that dropping changes no answer."""

import asyncio
import gc
from collections import Counter

import pytest

from fakes.meter_oracle import ORGANIZATION, FakeClock, Oracle, admitted, build_demand, key_limits, settlement_of
from meterhouse.errors import MeterDown
from meterhouse.limits import holds
from meterhouse.limits.counter import GaugeCounter, PeriodCounter
from meterhouse.limits.holds import Hold
from meterhouse.limits.memory import MemoryMeter
from meterhouse.limits.window import RateCounter
from meterhouse.metering import Refusal, Reservation

LIMITS = "50/minute; tokens 9000/hour; concurrent 5; tokens 9000/day; spend 1 USD/month"


class Census:
    """Counts the objects of some kinds that were made since; those of other tests in this process do not matter."""

    def __init__(self, *kinds: type[object]) -> None:
        self._kinds = kinds
        # Kept alive, so that no new object can have the address of an old one.
        self._old = {id(thing): thing for thing in self._all()}

    def new(self) -> list[int]:
        gc.collect()
        types = Counter(type(thing) for thing in self._all() if id(thing) not in self._old)
        return [types[kind] for kind in self._kinds]

    def _all(self) -> list[object]:
        return [thing for thing in gc.get_objects() if type(thing) in self._kinds]


async def serve(meter: MemoryMeter, key_id: str) -> None:
    demand = build_demand(key_limits(LIMITS, key_id), root_key_id=key_id, organization_id=f"org_{key_id}")
    meter.settle(admitted(await meter.reserve(demand)), settlement_of(30))


async def test_nothing_of_settled_requests_stays_but_their_ids() -> None:
    meter = MemoryMeter(FakeClock(), Oracle().seed)
    census = Census(Hold, Reservation)
    for _ in range(20):
        await serve(meter, "key_1")
    assert census.new() == [0, 0]


async def test_counters_of_past_periods_idle_rates_and_empty_gauges_are_dropped() -> None:
    clock = FakeClock()
    meter = MemoryMeter(clock, Oracle().seed)
    census = Census(RateCounter, GaugeCounter, PeriodCounter)
    for number in range(10):
        await serve(meter, f"key_{number}")
    assert census.new() == [20, 10, 20]
    meter.sweep()
    assert census.new() == [20, 0, 20]
    clock.move(hours=2)
    meter.sweep()
    assert census.new() == [0, 0, 20]
    clock.move(days=1)
    meter.sweep()
    assert census.new() == [0, 0, 10]
    clock.move(days=31)
    meter.sweep()
    assert census.new() == [0, 0, 0]


async def test_a_past_period_stays_while_something_is_held_in_it() -> None:
    clock = FakeClock()
    meter = MemoryMeter(clock, Oracle().seed, lease_ms=10**12)
    census = Census(PeriodCounter)
    reservation = admitted(await meter.reserve(build_demand("tokens 9000/day")))
    clock.move(days=2)
    meter.sweep()
    assert census.new() == [1]
    meter.settle(reservation, settlement_of(30))
    meter.sweep()
    assert census.new() == [0]


async def test_a_settled_id_is_remembered_for_ten_minutes_and_not_for_ever() -> None:
    clock = FakeClock()
    meter = MemoryMeter(clock, Oracle().seed)
    demand = build_demand()
    meter.settle(admitted(await meter.reserve(demand)), settlement_of(30))
    clock.move(ms=holds.SETTLED_MS - 1)
    meter.sweep()
    assert admitted(await meter.reserve(demand)).allowance_tokens == 0
    for _ in range(2):
        clock.move(ms=holds.SETTLED_MS)
        meter.sweep()
    assert admitted(await meter.reserve(demand)).allowance_tokens is None


async def test_settled_ids_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "MOST_SETTLED", 3)
    meter = MemoryMeter(FakeClock(), Oracle().seed)
    demands = [build_demand() for _ in range(8)]
    for demand in demands:
        meter.settle(admitted(await meter.reserve(demand)), settlement_of(30))
    known = [admitted(await meter.reserve(demand)).allowance_tokens == 0 for demand in demands]
    assert known == [False] * 3 + [True] * 5


async def test_reaped_holds_are_bounded_in_time_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "MOST_REAPED", 4)
    clock = FakeClock()
    meter = MemoryMeter(clock, Oracle().seed)
    census = Census(Hold)
    for _ in range(6):
        await meter.reserve(build_demand())
    clock.move(ms=60_000)
    assert meter.sweep() == 6
    assert census.new() == [4]
    clock.move(ms=holds.REAPED_MS)
    meter.sweep()
    assert census.new() == [0]


async def test_a_ledger_that_keeps_failing_leaves_nothing_behind() -> None:
    oracle = Oracle(is_down=True)
    meter = MemoryMeter(FakeClock(), oracle.seed)
    await meter.reserve(build_demand())
    census = Census(PeriodCounter)
    for _ in range(5):
        with pytest.raises(MeterDown):
            await meter.reserve(build_demand("tokens 9000 total"))
    assert census.new() == [0]


async def test_more_plans_than_are_kept_only_cost_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterhouse.limits.counters.MOST_PLANS", 2)
    meter = MemoryMeter(FakeClock(), Oracle().seed)
    for _ in range(2):
        for number in range(4):
            await serve(meter, f"key_{number}")
    for number in range(4):
        states = await meter.list_states(ORGANIZATION, key_limits(LIMITS, f"key_{number}"))
        assert [state.spent for state in states] == [2, 60, 0, 60, 60]


async def test_a_meter_that_closes_gives_up_what_it_asked() -> None:
    oracle = Oracle(gate=asyncio.Event())
    meter = MemoryMeter(FakeClock(), oracle.seed)
    asking = asyncio.create_task(meter.reserve(build_demand("tokens 9000 total")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await meter.close()
    with pytest.raises(MeterDown):
        await asking


async def test_a_ledger_that_never_answers_is_given_up() -> None:
    oracle = Oracle(gate=asyncio.Event())
    meter = MemoryMeter(FakeClock(), oracle.seed, seed_seconds=0.01)
    with pytest.raises(MeterDown) as caught:
        await meter.reserve(build_demand("tokens 9000 total"))
    assert "did not answer in time" in caught.value.detail
    oracle.gate = None
    assert admitted(await meter.reserve(build_demand("tokens 9000 total"))).held_output_tokens == 100


async def test_a_wall_clock_that_is_set_forward_ends_no_lease() -> None:
    clock = FakeClock()
    meter = MemoryMeter(clock, Oracle().seed, lease_ms=60_000, lease_now_ms=lambda: 0)
    first = build_demand("concurrent 1")
    reservation = admitted(await meter.reserve(first))
    clock.move(seconds=3_600)
    meter.sweep()
    assert isinstance(await meter.reserve(build_demand("concurrent 1")), Refusal)
    meter.settle(reservation, settlement_of(0))
    assert isinstance(await meter.reserve(build_demand("concurrent 1")), Reservation)
