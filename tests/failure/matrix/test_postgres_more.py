"""PostgreSQL hangs, holds locks, dies in COMMIT, and is away together with Redis: rows 10, 11 and 12 of the matrix."""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import asyncpg
import pytest

from failure.killing import Conversation
from failure.matrix.house import AMPLE, LONG, PACED, QUICK_ANSWER, UNCOUNTED, House, run_apart
from failure.matrix.test_postgres_away import (
    answer_of,
    check_refused,
    check_served,
    code_of,
    errors_of,
    restore,
    use_key,
)
from meterhouse.bookkeeping import take_over
from meterhouse.keys.secret import make
from meterhouse.settings import Environment
from meterhouse.stores import CLERK_CONNECTIONS, PATIENT_CONNECTIONS, open_stores

HOUSE = {"environment": {"METERHOUSE_REDIS_TIMEOUT_SECONDS": "1"}}
"""Redis is not what hangs here, also where the machine is crowded."""
MIX = (*[QUICK_ANSWER] * 4, PACED, UNCOUNTED)
CONNECTIONS = 5 + PATIENT_CONNECTIONS
"""Of each worker: the default of METERHOUSE_DATABASE_CONNECTIONS, and those of the meter's sums."""
SLACK_SECONDS = 1.0
"""What a crowded machine may add to a bound."""
STATEMENT_SECONDS, GRACE_SECONDS, LOCK_SECONDS, ACQUIRE_SECONDS = 2.0, 0.5, 0.5, 2.0
PATIENCE_SECONDS = 0.3
"""How long a key is looked for in PostgreSQL before the mirror is asked."""
GIVE_UP_SECONDS = 3.0
"""How long a key that nobody knows is looked for."""

REPEATED = 6
"""So often a worker loses the connection while it commits records; most of these commits PostgreSQL has done."""
ESTABLISHED = "01"

BUDGET_NANOS = 50_000_000
BUDGET = "spend 0.05 USD total"
ALLOWANCE_NANOS = BUDGET_NANOS * 2 // 100
SHORT = {"max_tokens": 16}


@pytest.fixture(autouse=True)
def _restored(house: House) -> Iterator[None]:
    yield
    restore(house)


@dataclass
class Gauge:
    """What the workers use, at a time."""

    rss_bytes: int
    files: int
    threads: int
    tasks: float
    connections: int

    @classmethod
    def read(cls, house: House) -> "Gauge":
        pids = house.fleet.serving()
        status = ["".join(Path(f"/proc/{pid}/status").read_text()) for pid in pids]
        return cls(
            rss_bytes=sum(1024 * int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) for text in status),
            files=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
            threads=sum(int(re.findall(r"Threads:\s+(\d+)", text)[0]) for text in status),
            tasks=house.fleet.metric("meterhouse_tasks"),
            connections=_count_connections(house.postgres_proxy.port),
        )


def _count_connections(port: int) -> int:
    """Count what the workers hold open; a PostgreSQL that hangs does not notice what they closed."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(fields[2].endswith(f":{port:04X}") and fields[3] == ESTABLISHED for fields in lines)


@dataclass
class Asked:
    """How requests went that need PostgreSQL, and how long each took."""

    unknown: list[float] = field(default_factory=list)
    admin: list[float] = field(default_factory=list)
    gauges: list[Gauge] = field(default_factory=list)


async def ask_for_postgres(house: House, seconds: float) -> Asked:
    """Ask on and on what only PostgreSQL can answer; each answer is a 503."""
    asked = Asked()
    ends_at = time.monotonic() + seconds

    async def unknown() -> None:
        while time.monotonic() < ends_at:
            began = time.monotonic()
            check_refused(await house.talk(house.conversation(), make("live").value))
            asked.unknown.append(time.monotonic() - began)

    async def administer() -> None:
        while time.monotonic() < ends_at:
            began = time.monotonic()
            status, headers, _ = await asyncio.to_thread(
                house.fleet.request, "GET", "/admin/keys", key=house.fleet.admin_key
            )
            assert (status, headers["retry-after"]) == (503, "1")
            asked.admin.append(time.monotonic() - began)

    async def look() -> None:
        while time.monotonic() < ends_at:
            asked.gauges.append(await asyncio.to_thread(Gauge.read, house))
            assert (await asyncio.to_thread(house.fleet.request, "GET", "/health/ready"))[0] == 200
            await asyncio.sleep(0.3)

    await asyncio.gather(*(unknown() for _ in range(4)), *(administer() for _ in range(8)), look())
    return asked


def check_flat(asked: Asked, before: Gauge, workers: int) -> None:
    """Nothing grows while PostgreSQL hangs: the second half of the time uses no more than the first."""
    connections = [gauge.connections for gauge in asked.gauges]
    # One that is given up closes while the next is opened in its place.
    most = workers * CONNECTIONS + CLERK_CONNECTIONS
    assert median(connections) <= most >= max(connections) / 2
    half = len(asked.gauges) // 2
    early, late = asked.gauges[: half + 1], asked.gauges[half:]
    # So many requests of ours wait at a time, each with a few tasks and a connection at both ends.
    most_waiting = 40
    assert max(g.tasks for g in late) <= max(g.tasks for g in early) + most_waiting
    assert max(g.tasks for g in asked.gauges) <= before.tasks + 8 * most_waiting
    assert max(g.files for g in late) <= max(g.files for g in early) + most_waiting
    assert max(g.rss_bytes for g in late) <= max(g.rss_bytes for g in early) * 1.05


def wait_for_baseline(house: House, before: Gauge) -> None:
    """Return once all that was in use during the fault is given back, but for two of each in a worker."""
    # A pool keeps what connections it was allowed to open.
    spare = house.fleet.workers * (CONNECTIONS + 2)
    deadline = time.monotonic() + 30
    while True:
        now = Gauge.read(house)
        is_back = now.files <= before.files + spare and now.rss_bytes <= before.rss_bytes * 1.05
        most = 2 * house.fleet.workers
        if is_back and now.tasks <= before.tasks + most and now.threads <= before.threads + most:
            return
        assert time.monotonic() < deadline, f"{now} is more than {before}"
        time.sleep(0.2)


def is_behind(house: House) -> bool:
    """Whether a worker says that it cannot ship."""
    return house.fleet.metric("meterhouse_degraded", part="ledger") > 0


async def check_traffic(house: House, keys: Sequence[str], talks: Sequence[Conversation]) -> None:
    """Every request was served whole, and the ledger and the meter know it."""
    verdict = await asyncio.to_thread(house.judge, talks, is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key)
    await asyncio.to_thread(house.wait_for, lambda: not is_behind(house))
    assert not errors_of(house)


def slowest(talks: Sequence[Conversation], begin: float, end: float) -> float:
    """Return how long the slowest quick answer took whose request came in between; Unix seconds."""
    quick = [talk for talk in talks if talk.model == QUICK_ANSWER and begin < talk.asked_at < end]
    assert len(quick) > 20
    return max(talk.ended_at - talk.asked_at for talk in quick)


@pytest.mark.slow_fault
@pytest.mark.cell(10, "AP")
async def test_postgres_hangs_under_load_and_goes_on(house: House, figures: Callable[..., None]) -> None:
    keys = [await asyncio.to_thread(use_key, house) for _ in range(2)]
    unused = await asyncio.to_thread(house.new_key)
    async with house.crowd(keys, MIX, clients=8) as warm:
        await asyncio.sleep(2)
    before = await asyncio.to_thread(Gauge.read, house)
    async with house.crowd(keys, MIX, clients=8) as talks:
        house.postgres.pause()
        began = time.time()
        try:
            asked = await ask_for_postgres(house, 12)
        finally:
            house.postgres.resume()
        ended = time.time()
        await asyncio.sleep(0.5)
    check_flat(asked, before, house.fleet.workers)
    assert max(asked.unknown) < GIVE_UP_SECONDS + SLACK_SECONDS
    assert median(asked.unknown) < PATIENCE_SECONDS, "PostgreSQL is asked once in a second, and nobody else waits"
    # A statement on a connection that hangs, then the connection that is opened in its place.
    assert max(asked.admin) < STATEMENT_SECONDS + GRACE_SECONDS + ACQUIRE_SECONDS + SLACK_SECONDS
    added = slowest(talks, began, ended) - slowest(warm, 0, began)
    figures(added_seconds_with_postgres_stopped=added)
    assert added < PATIENCE_SECONDS + SLACK_SECONDS
    await check_traffic(house, keys, [*warm, *talks])
    await asyncio.to_thread(check_served, house, unused)
    await asyncio.to_thread(wait_for_baseline, house, before)


@asynccontextmanager
async def locked(house: House, tables: str) -> AsyncIterator[None]:
    """Keep tables from everybody, as a careless migration does."""
    connection = await asyncpg.connect(house.database_url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


@pytest.mark.slow_fault
@pytest.mark.cell(10, "AP")
@pytest.mark.parametrize("tables", ["usage_record, usage_hour", "key, project, admin_key, usage_record, worker"])
async def test_a_lock_is_waited_for_half_a_second(house: House, tables: str) -> None:
    keys = [await asyncio.to_thread(use_key, house) for _ in range(2)]
    unused = await asyncio.to_thread(house.new_key)
    async with house.crowd(keys, MIX, clients=8) as warm:
        await asyncio.sleep(1)
    before = await asyncio.to_thread(Gauge.read, house)
    async with house.crowd(keys, MIX, clients=8) as talks:
        async with locked(house, tables):
            began = time.time()
            if "admin_key" in tables:
                asked = await ask_for_postgres(house, 6)
                check_flat(asked, before, house.fleet.workers)
                # For a connection that others wait with, then for the lock.
                assert max(asked.admin) < 2 * LOCK_SECONDS + SLACK_SECONDS
                assert max(asked.unknown) < LOCK_SECONDS + SLACK_SECONDS
            else:
                await asyncio.sleep(3)
                assert await asyncio.to_thread(house.ask, unused)
            assert await asyncio.to_thread(is_behind, house)
            ended = time.time()
        await asyncio.sleep(0.5)
    assert slowest(talks, began, ended) - slowest(warm, 0, began) < PATIENCE_SECONDS + SLACK_SECONDS
    await check_traffic(house, keys, [*warm, *talks])
    await asyncio.to_thread(check_served, house, unused)
    await asyncio.to_thread(wait_for_baseline, house, before)


@pytest.mark.slow_fault
@pytest.mark.cell(11, "P")
async def test_a_commit_without_an_answer_is_repeated_harmlessly(house: House) -> None:
    key = await asyncio.to_thread(use_key, house)
    began = len(house.fleet.events("shipper.retrying"))
    async with house.crowd([key], MIX, clients=10) as talks:
        while len(house.fleet.events("shipper.retrying")) - began < REPEATED:
            # The same batch may meet it three times.
            for is_forwarded in (True, True, False):
                cut = house.postgres_proxy.cut_at(b"COMMIT;", is_forwarded=is_forwarded)
                assert await asyncio.to_thread(cut.wait, 10)
            await asyncio.to_thread(house.wait_for, lambda: not is_behind(house))
    await check_traffic(house, [key], talks)
    rows = house.rows()
    for _ in range(3):
        assert await asyncio.to_thread(run_apart, replay(house)) == 0
    assert house.rows() == rows
    await asyncio.to_thread(house.wait_at_rest, key)


@pytest.mark.slow_fault
@pytest.mark.cell(11, "P")
async def test_postgres_comes_and_goes(house: House) -> None:
    keys = [await asyncio.to_thread(use_key, house) for _ in range(2)]
    chooser = random.Random(2)
    async with house.crowd(keys, MIX, clients=10) as talks:
        for _ in range(12):
            await asyncio.to_thread(house.postgres_proxy.refuse)
            await asyncio.sleep(chooser.uniform(0, 0.4))
            await asyncio.to_thread(house.postgres_proxy.heal)
            await asyncio.sleep(chooser.uniform(0, 0.4))
            await asyncio.to_thread(house.postgres_proxy.reset)
            await asyncio.sleep(chooser.uniform(0, 0.3))
    await check_traffic(house, keys, talks)


async def replay(house: House) -> int:
    """Offer all journals once more, as ``meterhouse ledger replay`` does; returns how many records were new."""
    settings = Environment(house.fleet.environment).settings()
    async with open_stores(settings) as stores:
        done = await take_over(stores, settings.data / "journals", "replay", lambda _: None)
    assert done.report.nanos > 0
    assert not done.damages
    return done.report.records


# --- both stores


def both_refuse(house: House) -> None:
    house.postgres_proxy.refuse()
    house.redis_proxy.refuse()


def both_die(house: House) -> None:
    house.postgres.kill()
    house.redis.kill()


def redis_heals(house: House) -> None:
    house.redis_proxy.heal()


def postgres_heals(house: House) -> None:
    house.postgres_proxy.heal()


@dataclass(frozen=True)
class Double:
    """How both go away, and in which order they come back."""

    begin: Callable[[House], object]
    first: Callable[[House], object]
    second: Callable[[House], object]


DOUBLES = {
    "refused, Redis back first": Double(both_refuse, redis_heals, postgres_heals),
    "refused, PostgreSQL back first": Double(both_refuse, postgres_heals, redis_heals),
    "killed": Double(both_die, lambda house: house.redis.start(), lambda house: house.postgres.start()),
}


async def teach(house: House, key: str) -> None:
    """Use a key until each worker has it in its cache."""
    left = set(house.fleet.serving())
    address = urlsplit(house.fleet.url)
    deadline = time.monotonic() + 20
    while left:
        assert time.monotonic() < deadline
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(house.conversation(PACED).encode(key))
        assert b"200 OK" in await reader.read(1 << 16)
        left.discard(await asyncio.to_thread(house.fleet.worker_of, writer.get_extra_info("sockname")[1]))
        await reader.read()
        writer.close()
        await writer.wait_closed()


@pytest.mark.slow_fault
@pytest.mark.cell(12, "ARSEP")
@pytest.mark.parametrize("double", DOUBLES.values(), ids=DOUBLES.keys())
async def test_both_stores_are_away(house: House, double: Double, figures: Callable[..., None]) -> None:
    rich = await asyncio.to_thread(use_key, house, AMPLE)
    poor = await asyncio.to_thread(use_key, house, BUDGET)
    unused = await asyncio.to_thread(house.new_key)
    for key in (rich, poor):
        await teach(house, key)
    running = [house.conversation(LONG) for _ in range(6)]
    streams = [asyncio.create_task(house.talk(talk, rich)) for talk in running]
    await asyncio.to_thread(house.wait_for, lambda: all(talk.arrivals for talk in running))
    async with (
        house.crowd([rich], clients=4) as rich_talks,
        house.crowd([poor], [QUICK_ANSWER], clients=6, **SHORT) as talks,
    ):
        await asyncio.to_thread(double.begin, house)
        away_at = time.time()
        await asyncio.sleep(4)
        for key in (make("live").value, unused):
            check_refused(await asyncio.to_thread(house.ask, key))
        assert (await asyncio.to_thread(house.fleet.request, "GET", "/health/ready"))[0] == 200
        status = (await asyncio.to_thread(house.fleet.request, "GET", "/admin/keys", key=house.fleet.admin_key))[0]
        assert status == 503
        for part in ("meter", "ledger"):
            assert await asyncio.to_thread(house.fleet.metric, "meterhouse_degraded", part=part)
        away = [talk for talk in talks if talk.ended_at and talk.asked_at > away_at]
        await asyncio.to_thread(double.first, house)
        await asyncio.sleep(1.5)
        await asyncio.to_thread(double.second, house)
    await asyncio.gather(*streams)
    refused = [talk for talk in talks if talk.status != 200]
    for talk in refused:
        check_refused(talk, "meter_unavailable")
    assert {200, 503} <= {talk.status for talk in away}
    assert all(talk.is_whole for talk in running)
    verdict = await asyncio.to_thread(house.judge, [*running, *rich_talks, *talks], allowed=(200, 503), is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    assert all(talk.status == 200 for talk in rich_talks), [answer_of(t)[1] for t in rich_talks if t.status != 200]
    for key in (rich, poor):
        await asyncio.to_thread(house.wait_at_rest, key)
    spent = await asyncio.to_thread(house.spent_nanos, poor)
    figures(allowance_nanos=ALLOWANCE_NANOS, overrun_nanos=max(0, spent - BUDGET_NANOS))
    costs = {row["trace_id"]: row["charge_nanos"] for row in house.rows()}
    assert sum(costs[talk.trace_id] for talk in away if talk.status == 200) <= ALLOWANCE_NANOS
    assert not errors_of(house)
    await asyncio.to_thread(check_served, house, unused)
    assert (last := await asyncio.to_thread(house.ask, poor, **SHORT)).is_whole, code_of(last)
