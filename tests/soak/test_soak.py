"""An hour of ordinary use (``infra/test --soak [MINUTES]``): 60 % load, a fault each minute, two at once every ten.

Real workers, Redis and PostgreSQL. After each minute every request is held against the provider's log and the ledger:
nothing lost, nothing doubled, nobody's text in another's answer, no budget overspent. At the end nothing is held, each
limit says what the ledger says, and memory, files, tasks and pools are what they were at the beginning.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from failure.killing import Conversation
from failure.matrix.house import AMPLE, PACED, QUICK_ANSWER, UNCOUNTED, House
from failure.matrix.launch_meterhouse import DRAIN
from failure.matrix.leaving import at_rest
from plugins.soak import minutes
from soak.faults import FAULTS

TESTS = Path(__file__).resolve().parents[1]
ROUND_SECONDS = 60.0
BEGIN_SECONDS = 5.0
PAIR_EVERY = 10
LOAD = 0.6
MOST_PER_SECOND = 40.0
MOST_OPEN = 400
WARM_SECONDS = 10.0
LEAVING = 0.1
"""The part of the clients that leaves before the end."""
BUDGET_NANOS = 20_000_000
TIGHT = "spend 0.02 USD total"
OUTAGE_PART = 0.02
BROKEN = ("reset?tokens=20", "eof-early?tokens=20", "error-500?tokens=20")
MODELS = (QUICK_ANSWER, QUICK_ANSWER, PACED, UNCOUNTED, *BROKEN)
EXPECTED = (0, 200, 429, 502, 503, 504)
"""0: the worker was killed. 429: the tight budgets. The others: while a part is away, or the provider broken."""


class SoakHouse(House):
    """A house that forgets what was judged, so that an hour fits into memory."""

    since: float = 0.0

    def rows(self) -> list[dict[str, object]]:  # type: ignore[override]
        """Return the ledger since this round began."""
        query = "SELECT to_jsonb(row) FROM usage_record row WHERE admitted_at_ms >= {} ORDER BY request_id, attempt"
        found = self.postgres.query(query.format(int(self.since * 1000)), self.database_url)
        return [json.loads(row) for (row,) in found]

    def forget(self) -> None:
        """Drop what was judged: the provider's log, and lines of requests in the gateway's."""
        self.up.truth.forget()
        lines = self.fleet.log_path.read_bytes().splitlines(keepends=True)
        self.fleet.log_path.write_bytes(b"".join(line for line in lines if b'"event":"request.finished"' not in line))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoakHouse]:
    folder = tmp_path_factory.mktemp("soak")
    (folder / "orders").mkdir()
    launcher = [sys.executable, "-m", "failure.matrix.launch_meterhouse", "--orders", str(folder / "orders")]
    environment = {"PYTHONPATH": str(TESTS), "METERHOUSE_MAX_LAG_SECONDS": "30", "METERHOUSE_DRAIN_SECONDS": "3"}
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("fakes.fleet.START_SECONDS", 180)  # whoever soaks an hour may have a busy machine
    with SoakHouse(
        folder, models=BROKEN, environment=environment, providers=("fake", DRAIN), launcher=launcher
    ) as made:
        yield made


class Load:
    """Asks so many times a second, whatever becomes of the answers; ``talks`` is what was asked."""

    def __init__(self, house: House, keys: list[str], per_second: float, chance: random.Random) -> None:
        self._house = house
        self._keys = keys
        self._pause_seconds = 1 / per_second
        self._chance = chance
        self._open: set[asyncio.Task[None]] = set()
        self.talks: list[Conversation] = []
        self.not_asked = 0

    async def run(self, seconds: float) -> None:
        """Ask for so long, and wait for the answers."""
        began = time.monotonic()
        number = 0
        while (now := time.monotonic()) - began < seconds:
            if len(self._open) < MOST_OPEN:
                task = asyncio.create_task(self._ask())
                self._open.add(task)
                task.add_done_callback(self._open.discard)
            else:
                self.not_asked += 1
            number += 1
            await asyncio.sleep(max(0.0, began + number * self._pause_seconds - now))
        await asyncio.wait_for(asyncio.gather(*self._open), 90)

    async def _ask(self) -> None:
        chance = self._chance
        provider = chance.choice(("fake", "fake", DRAIN))
        talk = self._house.conversation(chance.choice(MODELS), is_streamed=chance.random() < 0.8)
        talk.more["model"] = f"{provider}/{talk.model}"
        self.talks.append(talk)
        asking = self._house.talk(talk, chance.choice(self._keys))
        if chance.random() >= LEAVING:
            await asking
            return
        try:
            await asyncio.wait_for(asking, chance.uniform(0.01, 0.8))
        except TimeoutError:
            talk.read()


async def capacity_of(house: House, keys: list[str]) -> float:
    """Return how many quick answers a second there are when nobody waits."""
    async with house.crowd(keys, (QUICK_ANSWER,), clients=30) as talks:
        await asyncio.sleep(WARM_SECONDS)
        count = len(talks)
    await asyncio.to_thread(house.judge, talks)
    return count / WARM_SECONDS


@pytest.mark.soak
async def test_nothing_is_lost_and_nothing_grows(house: SoakHouse, figures: Callable[..., None]) -> None:
    chance = random.Random(int(time.time()))
    keys = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(4)]
    per_second = min(MOST_PER_SECOND, LOAD * await capacity_of(house, keys))
    before = await at_rest(house)
    print(f"{per_second:.0f} requests a second; at rest {before}", flush=True)
    for number in range(1, minutes() + 1):
        count = 2 if number % PAIR_EVERY == 0 or (number == minutes() < PAIR_EVERY) else 1
        causes = chance.sample(sorted(FAULTS), count)
        began = time.time()
        house.since = began - 1
        tight = await asyncio.to_thread(house.new_key, TIGHT)
        load = Load(house, [*keys, tight], per_second, chance)
        running = asyncio.create_task(load.run(ROUND_SECONDS))
        await asyncio.sleep(BEGIN_SECONDS)
        await asyncio.gather(*(FAULTS[cause](house, chance) for cause in causes))
        await running
        verdict = await asyncio.to_thread(house.judge, load.talks, allowed=EXPECTED)
        print(f"{number}: {' + '.join(causes)}: {dict(verdict.statuses)}, not asked {load.not_asked}", flush=True)
        assert not verdict.faults, verdict.faults[:20]
        assert (verdict.lost, verdict.doubled) == (0, 0)
        assert verdict.statuses[200] > len(load.talks) / 4, "hardly anybody was answered"
        spent_nanos = await asyncio.to_thread(house.spent_nanos, tight)
        assert spent_nanos <= BUDGET_NANOS * (1 + OUTAGE_PART)
        figures(soak_requests=len(load.talks), soak_answered=verdict.statuses[200], soak_spent_nanos=spent_nanos)
        house.forget()
    await check_rest(house, keys, before)


async def check_rest(house: SoakHouse, keys: list[str], before: dict[int, tuple[int, int, int]]) -> None:
    """Nothing is held, every limit says what the ledger says, and no worker has more than one had at the beginning."""
    house.since = 0.0
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key, seconds=90)
    after = await at_rest(house)
    print(f"at rest {after}", flush=True)
    memory_bytes, files, tasks = (max(figures[index] for figures in before.values()) for index in range(3))
    for pid, (memory_now, files_now, tasks_now) in after.items():
        assert memory_now <= memory_bytes * 1.25, f"{pid}: {memory_now} bytes, {memory_bytes} at the beginning"
        assert files_now <= files + 4, f"{pid}: {files_now} files, {files} at the beginning"
        assert tasks_now <= tasks + 4, (house.folder / "orders" / f"tasks.{pid}").read_text()
    assert await asyncio.to_thread(house.fleet.metric, "meterhouse_open_requests") == 0
    assert await asyncio.to_thread(house.fleet.metric, "meterhouse_unshipped_records") == 0
    idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    # A loop that runs now and then may be in the middle of one.
    await asyncio.to_thread(house.wait_for, lambda: house.postgres.query(idle) == [(0,)], 30)
