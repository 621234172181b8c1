"""What befalls the meter on Redis alone: lost answers, lost servers, other workers, corrections."""

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from fakes.link_bench import until
from fakes.meter_bench import LEASE_MS, RedisBench, ServerClock, open_bench, timed_bench
from fakes.meter_oracle import KEY, ORGANIZATION, PROJECT, START_MS, admitted, build_demand, key_limits, settlement_of
from fakes.servers import RedisServer
from meterhouse.errors import MeterDown
from meterhouse.limits import outage, settlements
from meterhouse.limits.layout import keys_of
from meterhouse.limits.link import CommandRefused
from meterhouse.limits.redis import RedisMeter
from meterhouse.metering import Correction, RefusalKind, Use

BUDGET = "spend 0.000001 USD total"


@pytest.fixture
async def bench(timed_redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[RedisBench]:
    async with timed_bench(timed_redis_server, tmp_path) as bench:
        yield bench


@pytest.fixture
async def breakable(tmp_path: Path) -> AsyncIterator[RedisBench]:
    """On a server of its own, which the test may stop."""
    with RedisServer(tmp_path / "redis", fake_time=True) as server:
        async with open_bench(RedisBench(clock=ServerClock(server), server=server, folder=tmp_path)) as bench:
            assert isinstance(bench, RedisBench)
            yield bench


def meter_of(bench: RedisBench) -> RedisMeter:
    assert isinstance(bench.meter, RedisMeter)
    return bench.meter


def server_of(bench: RedisBench) -> RedisServer:
    assert isinstance(bench.server, RedisServer)
    return bench.server


def live_in_redis(bench: RedisBench) -> int:
    return int(server_of(bench).cli("HLEN", keys_of(ORGANIZATION)[1]))


async def test_a_request_whose_caller_has_gone_is_given_back(bench: RedisBench) -> None:
    await bench.state(BUDGET)
    asking = asyncio.create_task(bench.reserve(BUDGET))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert await bench.counts(BUDGET) == (0, 0)
    assert meter_of(bench).live == live_in_redis(bench) == 0


async def test_a_reservation_that_comes_after_its_settlement_holds_nothing(bench: RedisBench) -> None:
    demand = build_demand(BUDGET)
    meter = meter_of(bench)
    meter.settlements.add(ORGANIZATION, demand.request_id, settlement_of(5))
    assert admitted(await meter.reserve(demand)).allowance_tokens == 0
    assert meter.live == live_in_redis(bench) == 0


async def test_what_is_settled_waits_for_others_until_somebody_is_to_be_answered(
    bench: RedisBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlements, "PATIENCE_SECONDS", 60)
    figures = bench.link.figures
    running = [await bench.admit("concurrent 3") for _ in range(3)]
    before = figures.calls
    for reservation in running:
        bench.settle(reservation, settlement_of(5))
        await asyncio.sleep(0)  # each in a turn of the loop of its own
    assert figures.calls == before
    for _ in range(2):
        bench.meter.send_settled()
    assert figures.calls == before + 1
    assert await bench.counts("concurrent 3") == (0, 0)


async def test_what_was_settled_is_sent_before_an_answer_also_where_it_waits_for_the_end_of_a_tick(
    bench: RedisBench,
) -> None:
    gauge = key_limits("concurrent 1")
    bench.settle(await bench.admit(gauge), settlement_of(5))
    asking = asyncio.create_task(bench.counts(gauge))
    await asyncio.sleep(0)  # now it has asked, and what was settled waits with it
    before = bench.link.figures.batches
    bench.meter.send_settled()
    assert bench.link.figures.batches == before + 1
    assert await asking == (0, 0)


async def test_what_is_settled_is_sent_soon_where_nobody_is_to_be_answered(bench: RedisBench) -> None:
    for _ in range(2):
        bench.settle(await bench.admit(BUDGET), settlement_of(5))
        await until(lambda: live_in_redis(bench) == 0)


async def test_what_is_settled_twice_in_one_call_counts_once_with_the_others_of_the_call(bench: RedisBench) -> None:
    first, second = await bench.admit(BUDGET), await bench.admit(BUDGET)
    for reservation, tokens in ((first, 5), (second, 7), (first, 5)):
        meter_of(bench).settlements.add(ORGANIZATION, reservation.request_id, settlement_of(tokens))
    assert await bench.counts(BUDGET) == (12, 0)
    assert live_in_redis(bench) == 0
    assert server_of(bench).cli("ZCARD", keys_of(ORGANIZATION)[2]) == 0
    assert server_of(bench).cli("HGET", keys_of(ORGANIZATION)[0], "n") == "0"


async def test_a_hold_that_cannot_be_read_does_not_have_the_others_of_its_call_resolved_again(
    bench: RedisBench,
) -> None:
    """Its settlements are sent again and again; the counters are those of the ledger in the end."""
    first, second = await bench.admit(BUDGET), await bench.admit(BUDGET)
    server_of(bench).cli("HSET", keys_of(ORGANIZATION)[1], second.request_id, b"\xc1 no hold")
    bench.settle(first, settlement_of(5))
    bench.settle(second, settlement_of(7))
    sending = meter_of(bench).settlements
    for _ in range(3):
        await sending.drain()
        sending.send_waiting()
    await sending.drain()
    assert await bench.counts(BUDGET) == (12, 0)
    assert live_in_redis(bench) == 0
    assert sending.waiting == 0


async def test_a_hold_that_cannot_be_read_does_not_have_the_others_reaped_again(bench: RedisBench) -> None:
    await bench.admit(BUDGET)
    broken = await bench.admit(BUDGET)
    server_of(bench).cli("HSET", keys_of(ORGANIZATION)[1], broken.request_id, b"\xc1 no hold")
    await bench.replace_worker()
    bench.clock.move(ms=2 * LEASE_MS)
    for _ in range(3):
        with suppress(CommandRefused):
            await bench.sweep()
    assert await bench.counts(BUDGET) == (0, 0)
    assert live_in_redis(bench) == 0


async def test_what_a_settlement_leaves_as_it_is_counted_still(bench: RedisBench) -> None:
    """A window of requests has nothing to correct; the hold goes all the same."""
    rate = "requests 3/minute"
    bench.settle(await bench.admit(rate), settlement_of(5))
    assert await bench.counts(rate) == (1, 0)
    assert live_in_redis(bench) == 0
    bench.settle(await bench.admit(rate), settlement_of(5))
    assert await bench.counts(rate) == (2, 0)


async def test_a_redis_that_comes_back_is_told_what_was_settled_and_what_is_live(breakable: RedisBench) -> None:
    bench = breakable
    settled, running = await bench.admit(BUDGET), await bench.admit(BUDGET)
    meter = meter_of(bench)
    server_of(bench).kill()
    await until(lambda: meter.is_degraded)
    bench.settle(settled, settlement_of(30))
    await until(lambda: meter.settlements.waiting == 1)
    with pytest.raises(MeterDown):
        await bench.reserve(BUDGET)
    degraded = await bench.admit("5/minute")
    assert degraded.is_degraded
    bench.clock._now_ms += 50
    server_of(bench).start()
    server_of(bench).set_time_ms(bench.clock.now_ms())
    await until(lambda: not meter.is_degraded and meter.settlements.waiting == 0)
    assert await bench.counts(BUDGET) == (30, 220)
    assert await bench.counts("concurrent 9") == (0, 2)
    bench.settle(running, settlement_of(40))
    bench.settle(degraded, settlement_of(20))
    assert await bench.counts(BUDGET) == (90, 0)
    await bench.reconcile()
    assert bench.learner.figures.counter_drift_total == 0


async def test_who_waited_in_vain_for_the_allowance_asks_a_redis_that_is_back_by_then(
    breakable: RedisBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine without a free processor, where Redis is taken for lost for a moment and the disk is late."""
    bench, meter, server = breakable, meter_of(breakable), server_of(breakable)
    monkeypatch.setattr(outage, "DRAW_WAIT_SECONDS", 60)
    meter._outage._percent = 50
    bench.allowance._lock_wait_seconds = 60
    await bench.state(BUDGET)
    server.kill()
    await until(lambda: meter.is_degraded)
    with (bench.folder / "allowance.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asking = asyncio.create_task(bench.reserve(BUDGET))
        await until(lambda: any(pool.is_drawing for pool in meter._outage._pools.values()))
        (bench.folder / "allowance").write_bytes(b"torn")
        bench.clock._now_ms += 50
        server.start()
        server.set_time_ms(bench.clock.now_ms())
        await until(lambda: not meter.is_degraded)
    assert not admitted(await asking).is_degraded
    assert await bench.counts(BUDGET) == (0, 110)
    assert meter.live == live_in_redis(bench) == 1


async def test_renewing_registers_again_what_redis_lost(bench: RedisBench) -> None:
    reservation = await bench.admit(BUDGET)
    server_of(bench).cli("FLUSHALL", "SYNC")
    bench.clock.move(ms=50)
    use = Use(is_sent=True, total_tokens=20, charge_nanos=20)
    await bench.meter.renew({reservation.request_id: use})
    assert live_in_redis(bench) == 1
    assert await bench.counts(BUDGET) == (0, 110)
    bench.clock.move(ms=LEASE_MS)
    assert await bench.sweep() == 1
    assert await bench.counts(BUDGET) == (20, 0)


async def test_what_was_registered_is_extended_under_its_own_limits(bench: RedisBench) -> None:
    quota = "tokens 3000 total"
    reservation = await bench.admit(quota, output_tokens=2_900, is_streamed=True)
    held = reservation.held_output_tokens
    assert held == 1_024
    server_of(bench).cli("FLUSHALL", "SYNC")
    bench.clock.move(ms=50)
    assert not await bench.meter.extend(reservation, 1_967)
    assert await bench.meter.extend(reservation, 1_966)
    assert await bench.counts(quota) == (0, 3_000)


async def test_an_evicted_part_is_recovered_as_a_whole(bench: RedisBench) -> None:
    bench.settle(await bench.admit(BUDGET), settlement_of(30))
    await bench.admit(BUDGET)
    for key in keys_of(ORGANIZATION):
        server_of(bench).cli("DEL", key)
        bench.clock.move(ms=50)
        assert await bench.counts(BUDGET) == (30, 110)


async def test_a_correction_moves_the_periods_that_its_moment_lies_in(bench: RedisBench) -> None:
    limits = "spend 1 USD total; tokens 900/day; requests 5/day; tokens 900/day for gpt-4o; spend 2 USD/month"
    await bench.meter.list_states(ORGANIZATION, key_limits(limits))
    for at_ms in (START_MS, START_MS - 1):
        await bench.meter.adjust(Correction(ORGANIZATION, PROJECT, KEY, at_ms, nanos=-40, tokens=7, id=f"adj_{at_ms}"))
    await bench.meter.adjust(Correction(ORGANIZATION, PROJECT, "key_2", START_MS, nanos=1, tokens=1, id="adj_1"))
    await bench.meter.adjust(Correction(ORGANIZATION, PROJECT, None, START_MS, nanos=1, tokens=1, id="adj_2"))
    states = await bench.meter.list_states(ORGANIZATION, key_limits(limits))
    assert [state.spent for state in states] == [-80, 7, 0, 0, -40]


async def test_reconciling_corrects_what_is_off_and_says_so(bench: RedisBench) -> None:
    bench.settle(await bench.admit(BUDGET), settlement_of(30))
    await bench.counts(BUDGET)
    bench.oracle.records.clear()
    bench.clock.move(ms=5)
    await bench.reconcile()
    assert await bench.counts(BUDGET) == (0, 0)
    assert bench.learner.figures.lowered_nanos == 30


async def test_a_new_organization_is_known_and_creating_it_again_changes_nothing(bench: RedisBench) -> None:
    await bench.admit(BUDGET)
    await meter_of(bench).create(ORGANIZATION)
    assert await bench.counts(BUDGET) == (0, 110)
    assert bench.flushes == 1


async def test_idle_counters_are_dropped_and_learned_again(bench: RedisBench) -> None:
    limits = "5/minute; concurrent 4; spend 1 USD/day; spend 1 USD total"
    bench.settle(await bench.admit(limits), settlement_of(30))
    bench.clock.move(days=4)
    assert (await bench.meter.list_states(ORGANIZATION, key_limits("spend 1 USD total")))[0].spent == 30
    await bench.admit((), root_key_id="key_2")
    await bench.sweep()
    fields = server_of(bench).cli("HKEYS", keys_of(ORGANIZATION)[0])
    assert not [field for field in fields if "|minute|" in field or "|concurrent|" in field or "|day|" in field]
    states = await bench.meter.list_states(ORGANIZATION, key_limits(limits))
    assert [(state.spent, state.reserved) for state in states] == [(0, 0), (0, 0), (0, 0), (30, 0)]


async def test_leases_get_time_to_be_renewed_after_the_server_was_away_from_all(
    timed_redis_server: RedisServer, tmp_path: Path
) -> None:
    async with timed_bench(timed_redis_server, tmp_path) as bench:
        assert isinstance(bench, RedisBench)
        assert isinstance(bench.meter, RedisMeter)
        bench.meter._silence_ms = LEASE_MS * 3 // 5
        budget = "spend 0.00000015 USD total"
        held = await bench.admit(budget)
        await bench.sweep()
        bench.clock.move(seconds=61)
        # Nobody could renew in this time: the hold stands, and its owner renews it.
        assert (await bench.refuse(budget)).kind is RefusalKind.RESERVED
        await bench.meter.renew({held.request_id: Use(is_sent=True, total_tokens=1, charge_nanos=1)})
        for _ in range(3):
            bench.clock.move(seconds=25)
            await bench.sweep()
        assert await bench.counts(budget) == (1, 0)  # and ends when it is renewed no more


async def test_what_was_reaped_days_ago_costs_nobody_the_tombstones_of_today(
    timed_redis_server: RedisServer, tmp_path: Path
) -> None:
    async with timed_bench(timed_redis_server, tmp_path) as bench:
        await bench.admit(BUDGET)  # whose end nobody tells
        bench.clock.move(ms=LEASE_MS)
        assert await bench.sweep() == 1
        bench.clock.move(days=3)
        late = await bench.admit(BUDGET)
        bench.clock.move(ms=LEASE_MS)
        await bench.reconcile()
        assert await bench.counts(BUDGET) == (0, 0)
        bench.settle(late, settlement_of(70))
        await bench.settled()
        assert await bench.counts(BUDGET) == (70, 0)
