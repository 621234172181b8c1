"""An hour of ordinary use (``infra/test --soak [MINUTES]``): 60 % load, a fault each minute, two at once every ten.

Real workers, Redis and PostgreSQL. 60 % is of what the clients of this process get when nobody waits, and no more than
``MOST_PER_SECOND``. After each minute every request is held against the provider's log and the ledger: nothing lost,
nothing doubled, nobody's text in another's answer, no budget overspent, no worker gone that was not killed. At the end
nothing is held, each limit says what the ledger says, and memory, files, tasks and pools are what they were once
everything that a worker ever loads was loaded. In the second half the workers are not reloaded and only the youngest is
killed, so that the oldest one has run for at least half the time when its memory is looked at.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from failure.killing import Conversation
from failure.matrix.house import AMPLE, PACED, QUICK_ANSWER, UNCOUNTED, House
from failure.matrix.launch_meterhouse import DRAIN
from failure.matrix.leaving import at_rest, figures_of
from plugins.soak import minutes
from soak.faults import Deck, Fault

TESTS = Path(__file__).resolve().parents[1]
ROUND_SECONDS = 60.0
BEGIN_SECONDS = 5.0
PAIR_EVERY = 10
LOAD = 0.6
MOST_PER_SECOND = 40.0
MOST_OPEN = 400
WARM_SECONDS = 10.0
REST_SECONDS = 300.0
NOTICED_PART = 0.01
"""Of those that a store's fault may cost their answer: a busy machine is late for other reasons, too."""
LOG_BYTES = 8_192
"""Most that is logged for each request, whatever fails: what is repeated is not said again and again."""
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

    def used(self, key_text: str) -> dict[str, int]:
        """Return what a key used since the ledger began; the database adds up, since an hour has many rows."""
        sums = "sum(charge_nanos), sum(input_tokens + output_tokens), sum(requests)"
        query = f"SELECT {sums} FROM usage_record WHERE key_id = '{self.key_id_of(key_text)}'"
        ((spend, tokens, requests),) = self.postgres.query(query, self.database_url)
        return {"spend": int(spend or 0), "tokens": int(tokens or 0), "requests": int(requests or 0)}

    def forget(self) -> int:
        """Drop what was judged: the provider's log, and lines of requests in the gateway's; returns its length then."""
        self.up.truth.forget()
        lines = self.fleet.log_path.read_bytes().splitlines(keepends=True)
        kept = b"".join(line for line in lines if b'"event":"request.finished"' not in line)
        self.fleet.log_path.write_bytes(kept)
        return len(kept)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoakHouse]:
    folder = tmp_path_factory.mktemp("soak")
    (folder / "orders").mkdir()
    launcher = [sys.executable, "-m", "failure.matrix.launch_meterhouse", "--orders", str(folder / "orders")]
    environment = {
        "PYTHONPATH": str(TESTS),
        "METERHOUSE_MAX_LAG_SECONDS": "30",
        "METERHOUSE_DRAIN_SECONDS": "3",
        # The proxies in front of the stores share this process with all clients: on a busy machine a store that is
        # well would be away for good, and each limit that of an outage.
        "METERHOUSE_REDIS_TIMEOUT_SECONDS": "2",
        "METERHOUSE_STATEMENT_TIMEOUT_SECONDS": "10",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fakes.fleet.START_SECONDS", 180)  # whoever soaks an hour may have a busy machine
        with SoakHouse(
            folder, models=BROKEN, environment=environment, providers=("fake", DRAIN), launcher=launcher
        ) as made:
            yield made


class Load:
    """Asks so many times a second, whatever becomes of the answers.

    ``talks`` is what was asked, ``stayed`` those whose client waited for the end, ``plain`` those of them that nothing
    but a fault can keep from being answered: a key with room, and a provider that is well.
    """

    def __init__(self, house: House, keys: list[str], tight: str, per_second: float, chance: random.Random) -> None:
        self._house = house
        self._keys = [*keys, tight]
        self._tight = tight
        self._pause_seconds = 1 / per_second
        self._chance = chance
        self._open: set[asyncio.Task[None]] = set()
        self.talks: list[Conversation] = []
        self.stayed: list[Conversation] = []
        self.plain: list[Conversation] = []
        self.not_asked = 0
        self._failures: list[BaseException] = []

    async def run(self, seconds: float) -> None:
        """Ask for so long, and wait for the answers; raises what the first client that failed raised."""
        began = time.monotonic()
        number = 0
        while (now := time.monotonic()) - began < seconds:
            if len(self._open) < MOST_OPEN:
                task = asyncio.create_task(self._ask())
                self._open.add(task)
                task.add_done_callback(self._close)
            else:
                self.not_asked += 1
            number += 1
            await asyncio.sleep(max(0.0, began + number * self._pause_seconds - now))
        await asyncio.wait_for(asyncio.gather(*self._open), 90)
        for failure in self._failures:
            raise failure

    def _close(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        if not task.cancelled() and (failure := task.exception()):
            self._failures.append(failure)

    async def _ask(self) -> None:
        chance = self._chance
        provider = chance.choice(("fake", "fake", DRAIN))
        talk = self._house.conversation(chance.choice(MODELS), is_streamed=chance.random() < 0.8)
        talk.more["model"] = f"{provider}/{talk.model}"
        self.talks.append(talk)
        key = chance.choice(self._keys)
        asking = self._house.talk(talk, key)
        if chance.random() >= LEAVING:
            self.stayed.append(talk)
            if key != self._tight and talk.model not in BROKEN:
                self.plain.append(talk)
            await asking
            return
        try:
            await asyncio.wait_for(asking, chance.uniform(0.01, 0.8))
        except TimeoutError:
            talk.read()


def check_answers(load: Load, faults: Sequence[Fault]) -> str:
    """Say who was refused or cut off though nothing but the fault could be why; of a store's nobody may notice much."""
    refused = Counter(talk.status for talk in load.plain if talk.status != 200)
    broken = sum(talk.status == 200 and not talk.is_whole for talk in load.plain)
    silent = [talk.model for talk in load.stayed if not talk.status or is_silently_cut(talk)]
    said = f"of {len(load.plain)} plain ones {dict(refused)} and {broken} broken; {len(silent)} left without a word"
    if not any(fault.hits_answers for fault in faults):
        assert not silent, (said, silent)
        assert refused.total() + broken <= len(load.plain) * NOTICED_PART, said
    return said


def is_silently_cut(talk: Conversation) -> bool:
    """Whether a stream ended neither whole nor with an error."""
    return talk.status == 200 and not talk.is_whole and b'"error"' not in b"".join(data for _, data in talk.arrivals)


async def warm_up(house: House, keys: list[str]) -> None:
    """Let every worker load what it ever loads, such as the tokenizer for answers without usage."""
    async with house.crowd(keys, MODELS, clients=30) as talks:
        await asyncio.sleep(WARM_SECONDS)
    await asyncio.to_thread(house.judge, talks, allowed=EXPECTED)


async def capacity_of(house: House, keys: list[str]) -> float:
    """Return how many quick answers a second there are when nobody waits."""
    async with house.crowd(keys, (QUICK_ANSWER,), clients=30) as talks:
        await asyncio.sleep(WARM_SECONDS)
        count = len(talks)
    await asyncio.to_thread(house.judge, talks)
    return count / WARM_SECONDS


async def cause(house: House, faults: Sequence[Fault], chance: random.Random) -> set[int]:
    """Cause faults at once and wait until they are over; returns the workers that have no reason to end."""
    before = set(house.fleet.serving())
    await asyncio.gather(*(fault.cause(house, chance) for fault in faults))
    after = set(house.fleet.serving())
    assert before <= after or any(fault.ends_workers for fault in faults), f"{before - after} ended by themselves"
    # Those that drain after a reload are still among them.
    return after - before if any(fault.ends_every_worker for fault in faults) else after


@pytest.mark.soak
async def test_nothing_is_lost_and_nothing_grows(house: SoakHouse, figures: Callable[..., None]) -> None:
    seed = int(time.time())
    chance = random.Random(seed)
    deck = Deck(chance)
    keys = [await asyncio.to_thread(house.new_key, AMPLE) for _ in range(4)]
    spent_keys = []
    await warm_up(house, keys)
    per_second = min(MOST_PER_SECOND, LOAD * await capacity_of(house, keys))
    before = await at_rest(house)
    kept_bytes = house.forget()
    print(f"seed {seed}; {per_second:.0f} requests a second; at rest {before}", flush=True)
    for number in range(1, minutes() + 1):
        count = 2 if number % PAIR_EVERY == 0 or (number == minutes() < PAIR_EVERY) else 1
        faults = deck.draw(count, keeps_workers=number > minutes() / 2)
        house.since = time.time() - 1
        tight = await asyncio.to_thread(house.new_key, TIGHT)
        spent_keys.append(tight)
        load = Load(house, keys, tight, per_second, chance)
        running = asyncio.create_task(load.run(ROUND_SECONDS))
        await asyncio.sleep(BEGIN_SECONDS)
        there = await cause(house, faults, chance)
        await running
        verdict = await asyncio.to_thread(house.judge, load.talks, allowed=EXPECTED)
        names = " + ".join(fault.name for fault in faults)
        print(f"{number}: {names}: {dict(verdict.statuses)}, not asked {load.not_asked}")
        log_bytes = house.fleet.log_path.stat().st_size
        print(f"   workers {figures_of(house)}, oldest first; their log has {log_bytes} bytes", flush=True)
        print(f"   {check_answers(load, faults)}", flush=True)
        assert log_bytes - kept_bytes <= LOG_BYTES * len(load.talks)
        assert not verdict.faults, verdict.faults[:20]
        assert (verdict.lost, verdict.doubled) == (0, 0)
        assert len(load.talks) > per_second * ROUND_SECONDS / 4, "hardly anybody asked"
        assert verdict.statuses[200] > len(load.talks) / 4, "hardly anybody was answered"
        ended = there - set(house.fleet.serving())
        assert not ended, f"{ended} ended by themselves"
        spent_nanos = await asyncio.to_thread(house.spent_nanos, tight)
        assert spent_nanos <= BUDGET_NANOS * (1 + OUTAGE_PART)
        figures(soak_requests=len(load.talks), soak_answered=verdict.statuses[200], soak_spent_nanos=spent_nanos)
        kept_bytes = house.forget()
    await check_rest(house, [*keys, *spent_keys], before)


async def check_rest(house: SoakHouse, keys: list[str], before: dict[int, tuple[int, int, int]]) -> None:
    """Nothing is held, every limit says what the ledger says, and no worker has more than one had at the beginning."""
    for key in keys:
        await asyncio.to_thread(house.wait_at_rest, key, seconds=REST_SECONDS)
    after = await at_rest(house)
    print(f"at rest {after}", flush=True)
    memory_bytes, files, tasks = (max(figures[index] for figures in before.values()) for index in range(3))
    for pid, (memory_now, files_now, tasks_now) in after.items():
        assert memory_now <= memory_bytes * 1.25, f"{pid}: {memory_now} bytes, {memory_bytes} at the beginning"
        assert files_now <= files + 4, f"{pid}: {files_now} files, {files} at the beginning"
        assert tasks_now <= tasks + 4, (house.folder / "orders" / f"tasks.{pid}").read_text()
    for metric in ("meterhouse_open_requests", "meterhouse_unshipped_records"):
        await asyncio.to_thread(house.wait_for, lambda metric=metric: house.fleet.metric(metric) == 0, 30)
    idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    # A loop that runs now and then may be in the middle of one.
    await asyncio.to_thread(house.wait_for, lambda: house.postgres.query(idle) == [(0,)], 30)
