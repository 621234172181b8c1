"""One worker is cut off from a store, and a provider fails while Redis is away: rows 30 and 34 of the matrix."""

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from failure.killing import Conversation
from failure.matrix.aiming import LEASE_SECONDS, SWEEP_SECONDS, Standing, replay
from failure.matrix.house import AMPLE, LONG, PACED, QUICK_ANSWER, UNCOUNTED, House
from fakes.proxy import Direction, FaultProxy
from meterhouse.keys.secret import make

pytestmark = pytest.mark.slow_fault

FAILING = tuple(f"error-500?code=broken{number}" for number in range(40))
"""So many, because a breaker soon spares a deployment that only fails."""
STEADY = "paced?tokens=80&duration_ms=8000"
SHARED = {f"shared-{number}": name for number, name in enumerate(FAILING)}
"""Models of two providers, of which both fail: so that there is something to fail over to."""
SERVED = ",".join(f"{name}={upstream}" for name, upstream in SHARED.items())
HOUSE = {
    "workers": 3,
    "models": (*FAILING, STEADY),
    "providers": ("fake", "spare"),
    "environment": {"METERHOUSE_PROVIDER_FAKE_MODELS": SERVED, "METERHOUSE_PROVIDER_SPARE_MODELS": SERVED},
}
TIGHT_NANOS = 5_000_000
TIGHT = "spend 0.005 USD total"
ALLOWANCE_NANOS = TIGHT_NANOS * 2 // 100
SHORT = {"max_tokens": 16}
CUT_SECONDS = 2.0
SPEND_SECONDS = 25
RETRY_PERCENT, RETRY_FLOOR = 10, 3
"""How many extra attempts a worker may make in ten seconds: a part of its requests, and never fewer than these."""
RETRY_WINDOW_SECONDS = 10


@contextmanager
def cut_off(house: House, proxy: FaultProxy, pid: int, *directions: Direction) -> Iterator[None]:
    """Let nothing pass between one worker and a store; the others have theirs."""
    proxy.only(lambda port: house.fleet.worker_from(port, proxy.port) == pid)
    proxy.black_hole(*directions)
    try:
        yield
    finally:
        proxy.heal()
        if proxy is house.postgres_proxy:
            # For a second after its last failure PostgreSQL is not asked: that belongs to this partition still.
            unknown = [make("live").value for _ in range(4 * house.fleet.workers)]
            house.wait_for(lambda: all(house.ask(key).status == 401 for key in unknown))


async def live_through(
    house: House, keys: Sequence[str], proxy: FaultProxy, *directions: Direction
) -> list[Conversation]:
    """Keep clients busy while one worker is cut off from a store for two seconds, and a little longer."""
    async with house.crowd(keys, [QUICK_ANSWER, QUICK_ANSWER, PACED, UNCOUNTED], clients=12, **SHORT) as talks:
        await asyncio.sleep(0.3)
        with cut_off(house, proxy, house.fleet.pids()[0], *directions):
            await asyncio.sleep(CUT_SECONDS)
        await asyncio.sleep(1)
    return talks


def headers_of(talk: Conversation) -> bytes:
    return b"".join(data for _, data in talk.arrivals).partition(b"\r\n\r\n")[0].lower()


def code_of(talk: Conversation) -> str:
    """Return the code of an error answer."""
    body = b"".join(data for _, data in talk.arrivals).partition(b"\r\n\r\n")[2]
    return str(json.loads(body)["error"]["code"])


def is_refused_for_good(talk: Conversation) -> bool:
    return talk.status == 429 and code_of(talk) == "insufficient_quota"


async def check_exact(house: House, talks: Sequence[Conversation], keys: Sequence[str], *statuses: int) -> None:
    """Nothing is lost, doubled, or left held, and the meter says what the ledger says."""
    verdict = await asyncio.to_thread(house.judge, talks, allowed=(200, *statuses), is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    assert verdict.lost == verdict.doubled == 0
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key)


@pytest.mark.cell(30, "ARE")
@pytest.mark.parametrize(
    "directions",
    [
        pytest.param((), marks=pytest.mark.slow_fault),
        pytest.param((Direction.TO_SERVER,), marks=pytest.mark.slow_fault),
        (Direction.TO_CLIENT,),
    ],
    ids=["both ways", "to Redis", "from Redis"],
)
async def test_one_worker_without_redis_goes_on_and_comes_back_exact(
    house: House, directions: tuple[Direction, ...]
) -> None:
    keys = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(2)]
    failures = house.fleet.metric("meterhouse_meter_failures_total")
    talks = await live_through(house, keys, house.redis_proxy, *directions)
    # The worker that was cut off sent calls whose outcome it cannot know; all of it had to come right again.
    assert house.fleet.metric("meterhouse_meter_failures_total") > failures
    degraded = [talk for talk in talks if b"x-meterhouse-degraded: meter" in headers_of(talk)]
    assert degraded
    await check_exact(house, talks, keys)
    assert not house.fleet.metric("meterhouse_degraded", part="meter")


@pytest.mark.slow_fault
@pytest.mark.cell(30, "RE")
@pytest.mark.parametrize("directions", [(), (Direction.TO_SERVER,), (Direction.TO_CLIENT,)], ids=["both", "to", "from"])
async def test_one_worker_without_redis_spends_no_more_than_its_allowance(
    house: House, directions: tuple[Direction, ...], figures: Callable[..., None]
) -> None:
    key = await asyncio.to_thread(house.new_key, TIGHT)
    async with house.crowd([key], [QUICK_ANSWER], clients=12, **SHORT) as talks:
        await asyncio.sleep(0.15)
        with cut_off(house, house.redis_proxy, house.fleet.pids()[0], *directions):
            await asyncio.sleep(CUT_SECONDS)
        # Asked on until there is nothing left, or the bound would not be put to the test.
        await asyncio.to_thread(
            house.wait_for, lambda: any(is_refused_for_good(talk) for talk in list(talks)), SPEND_SECONDS
        )
    await check_exact(house, talks, [key], 429, 503)
    spent = house.spent_nanos(key)
    figures(overrun_nanos=max(0, spent - TIGHT_NANOS))
    assert spent <= TIGHT_NANOS + ALLOWANCE_NANOS


@pytest.mark.slow_fault
@pytest.mark.cell(30, "E")
async def test_settling_again_what_redis_has_settled_changes_nothing(house: House) -> None:
    """The answers to settlements get lost on their way back, once after the other, and each is sent again."""
    key = await asyncio.to_thread(house.new_key, AMPLE)
    settle = (await asyncio.to_thread(house.redis.cli, "INFO", "commandstats"))["cmdstat_evalsha"]["calls"]
    talks = []
    for _ in range(2):
        for pid in house.fleet.pids():
            async with house.crowd([key], [PACED], clients=6) as more:
                # Every answer is under way when the worker's ear is closed: what it sends next are settlements.
                await asyncio.sleep(0.4)
                with cut_off(house, house.redis_proxy, pid, Direction.TO_CLIENT):
                    await asyncio.sleep(0.6)
            talks += more
    await check_exact(house, talks, [key])
    calls = (await asyncio.to_thread(house.redis.cli, "INFO", "commandstats"))["cmdstat_evalsha"]["calls"]
    assert calls - settle > 2 * len(talks)
    await asyncio.to_thread(replay, house)


@pytest.mark.cell(30, "ARE")
@pytest.mark.slow_fault
@pytest.mark.parametrize(
    "directions",
    [(), (Direction.TO_SERVER,), (Direction.TO_CLIENT,)],
    ids=["both ways", "to PostgreSQL", "from PostgreSQL"],
)
async def test_one_worker_without_postgres_serves_what_is_known_and_ships_later(
    house: House, directions: tuple[Direction, ...]
) -> None:
    keys = [await asyncio.to_thread(house.new_key, limits) for limits in (AMPLE, AMPLE, TIGHT)]
    for key in keys:
        assert (await asyncio.to_thread(house.ask, key)).is_whole
    talks = await live_through(house, keys, house.postgres_proxy, *directions)
    # A key that is known is never refused for want of a database. Redis may be late on a busy machine, which the tight
    # budget's allowance does not cover for long.
    assert {code_of(talk) for talk in talks if talk.status == 503} <= {"meter_unavailable"}
    await check_exact(house, talks, keys, 429, 503)
    assert house.spent_nanos(keys[2]) <= TIGHT_NANOS + ALLOWANCE_NANOS
    await asyncio.to_thread(replay, house, times=3)


@pytest.mark.slow_fault
@pytest.mark.cell(30, "A")
async def test_a_key_that_no_store_can_tell_of_is_no_wrong_key(house: House) -> None:
    """New to a worker that reaches neither store: that is 503, and 401 only where somebody has looked."""
    key = await asyncio.to_thread(house.fleet.new_key, AMPLE)
    pids = house.fleet.pids()
    with cut_off(house, house.postgres_proxy, pids[0]), cut_off(house, house.redis_proxy, pids[0]):
        talks = [house.conversation() for _ in range(30)]
        await asyncio.gather(*[house.talk(talk, key[1]) for talk in talks])
    assert {talk.status for talk in talks} <= {200, 503}
    assert [talk for talk in talks if talk.status == 200]
    await check_exact(house, talks, [key[1]], 503)


@pytest.mark.slow_fault
@pytest.mark.cell(30, "RE")
async def test_long_streams_outlive_a_partition(house: House) -> None:
    """Leases cannot be renewed meanwhile: what was reaped is settled by the difference, and nothing is cut."""
    key = await asyncio.to_thread(house.new_key, AMPLE)
    async with house.crowd([key], [LONG], clients=12) as talks:
        await asyncio.sleep(0.3)
        # Longer than the lease of three seconds.
        with cut_off(house, house.redis_proxy, house.fleet.pids()[0]):
            await asyncio.sleep(4.5)
    await check_exact(house, talks, [key])


@pytest.mark.slow_fault
@pytest.mark.cell(30, "R")
async def test_what_a_worker_without_redis_holds_is_not_given_to_others(house: House) -> None:
    """It cannot renew for longer than a lease, but it says in PostgreSQL that it lives."""
    key = await asyncio.to_thread(house.new_key, AMPLE)
    standing = await Standing(house).add("S", key, STEADY)
    before = holds(house)
    assert before
    async with house.crowd([key], [QUICK_ANSWER], clients=4, **SHORT) as talks:
        with cut_off(house, house.redis_proxy, standing.pid):
            until = time.monotonic() + LEASE_SECONDS + 4 * SWEEP_SECONDS
            while time.monotonic() < until:
                await asyncio.sleep(0.2)
                assert before <= await asyncio.to_thread(holds, house)
    talks += await standing.end()
    await check_exact(house, talks, [key])


def holds(house: House) -> set[tuple[str, str]]:
    """Return what Redis holds: the organization's key and the request of each reservation."""
    names = house.redis.cli("KEYS", "mh:{*}:h")
    return {(name, request_id) for name in names for request_id in house.redis.cli("HKEYS", name)}


# --- row 34


def rss_bytes(house: House) -> int:
    """Return the memory of all workers."""
    pages = [re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()) for pid in house.fleet.pids()]
    return sum(int(found[1]) * 1024 for found in pages if found)


@pytest.mark.slow_fault
@pytest.mark.cell(34, "RCP")
@pytest.mark.parametrize(("seconds", "first", "last"), [(2, 0, 10), (12, 10, 40)])
async def test_a_failing_provider_while_redis_is_away_is_bounded(
    house: House, seconds: float, first: int, last: int, figures: Callable[..., None]
) -> None:
    keys = [await asyncio.to_thread(house.new_key, limits) for limits in (AMPLE, TIGHT)]
    async with house.crowd(keys, [QUICK_ANSWER], clients=12, **SHORT) as warm:
        await asyncio.sleep(1.5)
    baseline = rss_bytes(house)
    house.redis_proxy.reset(new_too=True)
    logged_before = house.fleet.log_path.stat().st_size
    began = time.monotonic()
    try:
        async with house.crowd(keys, [QUICK_ANSWER], clients=4, **SHORT) as good:
            talks = await fail_for(house, keys, list(SHARED)[first:last], seconds)
            most = await asyncio.to_thread(rss_bytes, house)
    finally:
        house.redis_proxy.heal()
    took = time.monotonic() - began
    logged = house.fleet.log_path.stat().st_size - logged_before
    check_bounded(house, talks, len(warm) + len(good), took)
    assert most <= baseline * 1.2, f"{baseline} bytes before, {most} during"
    assert logged / (len(talks) + len(good)) <= 2048
    figures(log_bytes_per_request=logged / (len(talks) + len(good)), rss_growth_percent=100 * most / baseline - 100)
    await check_exact(house, [*warm, *talks, *good], keys, 429, 500, 502, 503)
    assert house.spent_nanos(keys[1]) <= TIGHT_NANOS + ALLOWANCE_NANOS


async def fail_for(house: House, keys: Sequence[str], models: Sequence[str], seconds: float) -> list[Conversation]:
    """Keep twelve clients asking for models that fail at both of their providers; returns what they asked."""
    talks: list[Conversation] = []
    end_at = time.monotonic() + seconds

    async def ask_on(key: str) -> None:
        while time.monotonic() < end_at:
            model = models[len(talks) % len(models)]
            talk = house.conversation(SHARED[model], **SHORT)
            talk.more["model"] = model
            talks.append(talk)
            await house.talk(talk, key)
            await asyncio.sleep(0.02)

    await asyncio.gather(*[ask_on(keys[number % len(keys)]) for number in range(12)])
    return talks


def check_bounded(house: House, talks: Sequence[Conversation], others: int, took: float) -> None:
    """Nobody's request was tried more than once at each provider, and all together within the retry budget.

    The budget is a part of all requests, also of the ``others`` that were asked beside these and just before.
    """
    found = house.attempts()
    counts = [len(found.get(talk.marker, ())) for talk in talks]
    assert 0 < max(counts) <= 2
    extra = sum(max(0, count - 1) for count in counts)
    windows = math.ceil(took / RETRY_WINDOW_SECONDS) + 1
    assert extra, "nothing was ever tried again, so that this shows nothing"
    assert extra <= (len(talks) + others) * RETRY_PERCENT // 100 + windows * RETRY_FLOOR * house.fleet.workers
