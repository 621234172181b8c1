"""``kill -9`` of the gateway under 50 concurrent requests, over and over on one data folder: P2 and P3 hold.

Half of the kills come at random moments, half while at least ten requests are in one phase. The provider is a process
of its own that lives on. There are two such installations, because one waits for most of its time.
``KILLS=200 pytest tests/failure/test_kill_nine.py`` soaks for longer.
"""

import asyncio
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from failure.killing import (
    LAG_SECONDS,
    LATE_SECONDS,
    MODELS,
    PHASES,
    Conversation,
    Crowd,
    Judge,
    Totals,
    TruthTail,
    classify,
)
from failure.launch_faulty import TESTS, tell
from fakes.gateway import GatewayProcess, provider_environment, read_ledger
from fakes.process import UpstreamProcess
from fakes.truth import Attempt
from meterhouse.ledger.folder import SegmentName

KILLS = int(os.environ.get("KILLS", "20"))
INSTALLATIONS = 2
"""They run beside each other, each on a loop of its own, and share the kills."""
SECONDS_PER_KILL = 30
ANSWERING = 15
"""So many must be receiving an answer before a kill is thought of."""
LEAST_AIMED = 10
SPARE = 4
"""Wanted on top where the phase is only known for sure after the kill."""
LEAST_IN_PHASE = 20
RANDOM_SECONDS = 3.2
READ_SECONDS = 0.2
"""Within it a client has read what was sent to it before."""
KILLED_STARTS = 5
"""Every so many starts are killed too, at a random moment, and tried again: adopting twice changes nothing."""
LONGEST_START_SECONDS = 1.5
LIMITS = "spend 1000 USD total; tokens 1000000000 total; requests 1000000 total; concurrent 200"
METERHOUSE = str(Path(sys.executable).parent / "meterhouse")


class Killing:
    """One data folder, one provider, many lives of the gateway."""

    def __init__(self, folder: Path, upstream: UpstreamProcess, chooser: random.Random) -> None:
        self._upstream = upstream
        self._chooser = chooser
        self._folder = folder
        self._control = folder / "control"
        self._data = folder / "data"
        environment = provider_environment(
            "fake", upstream.base_url, METERHOUSE_JOURNAL_SEGMENT_BYTES="65536", PYTHONPATH=str(TESTS)
        )
        launcher = [sys.executable, "-m", "failure.launch_faulty", "--control", str(self._control)]
        self._sound = GatewayProcess(self._data, environment)
        self._faulty = GatewayProcess(self._data, environment, launcher)
        self._gateway = self._sound
        self._key = ""
        self._starts = 0
        self._tail = TruthTail(upstream.log_path)
        self._lock: sqlite3.Connection | None = None
        self.totals = Totals()
        self.judge = Judge(self.totals)

    async def start(self, aim: str) -> None:
        """Start for the next kill; that adopts what the last one left."""
        self._gateway = self._faulty if aim == "barrier" else self._sound
        self._starts += 1
        if self._starts % KILLED_STARTS == 0:
            await self._start_in_vain()
        began = time.monotonic()
        await asyncio.to_thread(self._gateway.start)
        self.totals.restart_seconds.append(time.monotonic() - began)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def furnish(self) -> None:
        """Make the prices and the key."""
        for model in MODELS:
            price = {"provider": "fake", "model": model, "input_usd": "1", "output_usd": "4"}
            self._ask("POST", "/admin/prices", price, key=self._gateway.admin_key)
        project = self._ask("GET", "/admin/projects", key=self._gateway.admin_key)["data"][0]["id"]
        order = {"name": "crowd", "project_id": project, "limits": LIMITS}
        self._key = self._ask("POST", "/admin/keys", order, key=self._gateway.admin_key)["value"]
        self._ask("GET", "/v1/limits", key=self._key)

    async def kill(self, number: int, aim: str, next_aim: str) -> str:
        """Kill under load, start again, judge what was under way; returns a line about it."""
        crowd = Crowd(f"k{number}", self._gateway.url, self._key, self._chooser, aim)
        crowd.start()
        await self._until(lambda: sum(bool(c.arrivals) for c in crowd.conversations) >= ANSWERING)
        await asyncio.sleep(self._chooser.uniform(0, RANDOM_SECONDS / (2 if aim else 1)))
        if aim:
            await self._reach(aim, crowd)
        crowd.hush()
        killed_at = time.time()
        await asyncio.to_thread(self._gateway.kill)
        await crowd.end()
        if self._lock is not None:
            self._lock.execute("ROLLBACK")
        await asyncio.to_thread(self._upstream.wait_for, lambda state: not state["open"])
        shipped = self._peek()
        starting = asyncio.create_task(self.start(next_aim))
        await asyncio.sleep(0)
        for conversation in crowd.conversations:
            conversation.read()
        attempts = self._tail.read()
        phases = self._count_phases(crowd.conversations, attempts, shipped)
        await starting
        rows = read_ledger(self._data)
        by_trace: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_trace[row["trace_id"]].append(row)
        self.judge.judge(crowd.conversations, attempts, by_trace, killed_at)
        self._judge_rest(number, rows)
        if aim and phases[aim] < LEAST_AIMED:
            self.judge.faults.append(f"kill {number} met {phases[aim]} requests in the phase {aim}")
        counts = ", ".join(f"{phase} {phases[phase]:2}" for phase in (*PHASES, "unsent", "done"))
        return f"kill {number:2} {aim or 'random':10} {counts}; back in {self.totals.restart_seconds[-1]:.2f} s"

    async def stop(self) -> None:
        """Stop in good order; then everything is in SQL, once, and the books agree."""
        assert await asyncio.to_thread(self._gateway.stop) == 0
        left = [path.name for path in (self._data / "journals").glob("*.seg")]
        assert not left, f"not adopted: {left}"
        rows = read_ledger(self._data)
        assert len(rows) == self.totals.reached + self.totals.unsent_rows
        assert len(self._tail.truth.attempts) == self.totals.reached
        checked = await asyncio.to_thread(
            subprocess.run,
            [METERHOUSE, "ledger", "rebuild", "--check", "--data", str(self._data), "--env-file", "/dev/null"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr

    def give_up(self) -> None:
        """End what runs, whatever has happened."""
        if self._lock is not None:
            self._lock.close()
        if self._gateway.process is not None and self._gateway.process.poll() is None:
            self._gateway.kill()

    async def _start_in_vain(self) -> None:
        """Kill a start, wherever it is; it may be over by then, too."""
        before = self._gateway.process
        starting = asyncio.create_task(asyncio.to_thread(self._gateway.start))
        await self._until(lambda: self._gateway.process is not before)
        await asyncio.sleep(self._chooser.uniform(0, LONGEST_START_SECONDS))
        await asyncio.to_thread(self._gateway.kill)
        with suppress(AssertionError):
            await starting

    async def _reach(self, aim: str, crowd: Crowd) -> None:
        """Return when ten requests are where they shall be."""
        if aim == "barrier":
            tell(self._control, "hold")
            since = time.time()
            await self._until(lambda: self._count_finished(crowd, since) >= LEAST_AIMED + SPARE)
        elif aim == "shipping":
            database = self._data / "ledger.db"
            self._lock = sqlite3.connect(database, isolation_level=None, timeout=10, check_same_thread=False)
            # The crowd reads on meanwhile: what it reads late of before the lock would be taken for later.
            await asyncio.to_thread(self._lock.execute, "BEGIN IMMEDIATE")
            await asyncio.sleep(READ_SECONDS)
            since = time.time()
            await self._until(lambda: sum(c.ended_at > since for c in crowd.conversations) >= LEAST_AIMED + SPARE)
        else:
            await asyncio.to_thread(
                self._upstream.wait_for, lambda state: state["open"].get("held", 0) >= LEAST_AIMED, 15
            )
            if aim == "stream":
                # What a quiet stream sent before is covered by a checkpoint by now, however late that may be.
                await asyncio.sleep(LAG_SECONDS + LATE_SECONDS + 0.2)

    def _count_finished(self, crowd: Crowd, since: float) -> int:
        """Count the answers whose end the provider has sent since then."""
        attempts = self._tail.read()
        mine = [attempt for c in crowd.conversations for attempt in attempts.get(c.marker, ()) if attempt.has_finish]
        return sum(attempt.events[-1]["at_us"] > since * 1_000_000 for attempt in mine)

    def _peek(self) -> set[str]:
        """Return the trace ids that SQL had when the gateway died, from a copy that leaves its files as they are."""
        copy = self._folder / "copy"
        copy.mkdir(exist_ok=True)
        for path in copy.iterdir():
            path.unlink()
        for path in self._data.glob("ledger.db*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, copy)
        return {row["trace_id"] for row in read_ledger(copy)}

    def _count_phases(
        self, conversations: list[Conversation], attempts: dict[str, list[Attempt]], shipped: set[str]
    ) -> Counter[str]:
        phases = Counter(
            classify(c, attempts.get(c.marker, []), is_in_sql=c.trace_id in shipped) for c in conversations
        )
        self.totals.phases += phases
        return phases

    def _judge_rest(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Nothing is reserved, what is spent is what the ledger says, and no dead journal is left."""
        spent = {
            "spend": sum(row["charge_nanos"] for row in rows),
            "tokens": sum(row["input_tokens"] + row["output_tokens"] for row in rows),
            "requests": sum(row["requests"] for row in rows),
            "concurrent": 0,
        }
        for limit in self._ask("GET", "/v1/limits", key=self._key)["data"]:
            if (limit["spent"], limit["reserved"]) != (spent[limit["kind"]], 0):
                self.judge.faults.append(f"after kill {number}: {limit}, but the ledger says {spent}")
        names = [SegmentName.parse(path.name) for path in (self._data / "journals").glob("*.seg")]
        if len({name.journal_id for name in names if name}) > 1:
            self.judge.faults.append(f"after kill {number}, dead journals are left: {names}")

    def _ask(self, method: str, path: str, body: object = None, *, key: str) -> Any:
        status, _, answer = self._gateway.request(method, path, body, key=key)
        assert status in {200, 201}, answer
        return json.loads(answer)

    @staticmethod
    async def _until(predicate: Callable[[], bool], seconds: float = 40) -> None:
        deadline = time.monotonic() + seconds
        while not predicate():
            assert time.monotonic() < deadline, "not seen in time"
            await asyncio.sleep(0.02)


def choose_aims(chooser: random.Random) -> list[str]:
    """Return what each kill is aimed at, in random order; half of them, at the phases in turn."""
    aims = [*islice(cycle(PHASES), KILLS // 2), *[""] * (KILLS - KILLS // 2)]
    chooser.shuffle(aims)
    return aims


def summarize(totals: Totals) -> str:
    times = sorted(totals.restart_seconds)
    return "\n".join(
        (
            f"{KILLS} kills, {totals.requests} requests, {totals.reached} reached the provider: "
            f"lost {totals.lost}, doubled {totals.doubled}; "
            + ", ".join(f"{name} {count}" for name, count in sorted(totals.outcomes.items())),
            "requests per phase: " + ", ".join(f"{phase} {totals.phases[phase]}" for phase in PHASES),
            f"a broken stream was charged at most {totals.lag_tokens} tokens less, {totals.lag_seconds:.2f} s behind",
            f"back after {times[len(times) // 2]:.2f} s (median), {times[-1]:.2f} s (longest)",
        )
    )


async def run_installation(folder: Path, chooser: random.Random, aims: dict[int, str]) -> Totals:
    """Kill one installation again and again; ``aims`` are those of its kills, by their numbers."""
    next_aims = [*list(aims.values())[1:], ""]
    with UpstreamProcess(folder / "upstream.log") as upstream:
        killing = Killing(folder, upstream, chooser)
        try:
            await killing.start(next(iter(aims.values())))
            killing.furnish()
            for (number, aim), next_aim in zip(aims.items(), next_aims, strict=True):
                print(await killing.kill(number, aim, next_aim), flush=True)
                assert not killing.judge.faults, "\n".join(killing.judge.faults[:20])
            await killing.stop()
        finally:
            killing.give_up()
    return killing.totals


@pytest.mark.timeout(60 + KILLS * SECONDS_PER_KILL)
def test_after_kill_nine_every_request_is_in_the_ledger_once_with_what_its_client_got(tmp_path_factory, capsys):
    seed = random.getrandbits(32)
    aims = choose_aims(random.Random(seed))
    running = []
    with capsys.disabled(), ThreadPoolExecutor(INSTALLATIONS) as pool:
        print(f"\nseed {seed}")
        for index in range(min(INSTALLATIONS, KILLS)):
            mine = {number: aims[number] for number in range(index, KILLS, INSTALLATIONS)}
            work = run_installation(tmp_path_factory.mktemp("killed"), random.Random(seed + index), mine)
            running.append(pool.submit(asyncio.run, work))
        totals = Totals.of(one.result() for one in running)
        print(summarize(totals), flush=True)
    assert KILLS < 20 or all(totals.phases[phase] >= LEAST_IN_PHASE for phase in PHASES), totals.phases
