"""Requests that stand in a known phase on one known worker, so that a fault meets them there; and what is asked after.

Invariant: the provider's gates hold every standing request until they are released, and all of them are of one worker.
Not here: the faults, and what must follow from them.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import asyncpg

from failure.killing import Conversation
from failure.matrix.house import HELD_AT_START, House
from fakes.fleet import ServeProcess
from fakes.truth import Attempt, GroundTruth
from fakes.words import word

GATE_TOKENS = 20
HELD_AT_HEAD = "paced?tokens=25&duration_ms=500&gate=head"
HELD_IN_STREAM = f"paced?tokens=40&duration_ms=800&usage=none&gate={GATE_TOKENS}"
HELD_AT_END = "paced?tokens=25&duration_ms=500&gate=finish"
PHASES = {"R": HELD_AT_START, "C": HELD_AT_HEAD, "S": HELD_IN_STREAM, "E": HELD_AT_END}
"""Where a request stands: reserved and sent; its head is there; in the stream; all text is there, but not the usage."""
GATED = (HELD_AT_HEAD, HELD_IN_STREAM, HELD_AT_END)
"""What a house has to have prices for."""

LEASE_SECONDS = 3.0
SWEEP_SECONDS = 0.5
"""As in ``fleet.QUICK``, where a minute and half a minute stand for production."""
LATE_SECONDS = 1.0
"""How late the loops of a busy machine may be before it is the product's fault."""
TRIES = 60
METERHOUSE = str(Path(sys.executable).parent / "meterhouse")


@dataclass
class Standing:
    """Requests on one worker. The first one chooses it, unless it was named."""

    house: House
    pid: int = 0
    talks: dict[str, Conversation] = field(default_factory=dict)
    """By phase."""
    _tasks: dict[str, asyncio.Task[Conversation]] = field(default_factory=dict)

    async def add(self, phase: str, key: str, model: str = "") -> Self:
        """Ask until a request is with the worker and stands in a phase; others are broken off by their client.

        ``model`` may name a script that does not stop: then it stands when its first token is sent.
        """
        for _ in range(TRIES):
            talk = self.house.conversation(model or PHASES[phase])
            task = asyncio.create_task(self.house.talk(talk, key))
            await self.house.up.until(lambda truth, talk=talk: _stands(truth, talk.marker, is_held=not model))
            pid = await asyncio.to_thread(self.house.fleet.worker_of, talk.local_port)
            if pid == (self.pid or pid):
                self.pid = pid
                self.talks[phase], self._tasks[phase] = talk, task
                return self
            task.cancel()
            await asyncio.wait([task])
        raise AssertionError(f"no request came to worker {self.pid} in {TRIES} tries")

    async def end(self) -> list[Conversation]:
        """Wait until every answer has ended or broken off; returns the requests."""
        await asyncio.gather(*self._tasks.values())
        return list(self.talks.values())


@dataclass
class HalfSent:
    """A request of which a part is still to come: nothing of it can be decided."""

    house: House
    talk: Conversation
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rest: bytes

    @classmethod
    async def send(cls, house: House, key: str, pid: int = 0) -> tuple["HalfSent", int]:
        """Send one to a worker, or to any; returns it and the worker."""
        address = urlsplit(house.fleet.url)
        for _ in range(TRIES):
            talk = house.conversation()
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            data = talk.encode(key)
            writer.write(data[: len(data) // 2])
            port = writer.get_extra_info("sockname")[1]
            found = await asyncio.to_thread(house.wait_for, lambda port=port: _worker_of(house.fleet, port))
            if found == (pid or found):
                return cls(house, talk, reader, writer, data[len(data) // 2 :]), found
            writer.close()
        raise AssertionError(f"no connection came to worker {pid} in {TRIES} tries")

    def send_rest(self) -> None:
        """Send what is missing."""
        self.writer.write(self.rest)

    async def read(self) -> Conversation:
        """Take everything that comes, until the server closes."""
        with suppress(OSError):
            while data := await self.reader.read(1 << 16):
                self.talk.arrivals.append((time.time(), data))
        self.writer.close()
        self.talk.read()
        return self.talk


class Spool:
    """``async with Spool(house):``; while it runs, no record can be shipped, and the ledger can be read."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def __aenter__(self) -> Self:
        self._connection = await asyncpg.connect(self._house.database_url)
        self._transaction = self._connection.transaction()
        await self._transaction.start()
        await self._connection.execute("LOCK TABLE usage_record IN EXCLUSIVE MODE")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection.is_closed():  # the server may have been killed meanwhile
            return
        await self._transaction.rollback()
        await self._connection.close()


class Replacement:
    """The worker that comes for one that is to be killed; make it before the kill."""

    def __init__(self, house: House) -> None:
        self._fleet = house.fleet
        self._before = {pid: _waited_seconds(pid) for pid in (house.fleet.pid, *house.fleet.pids())}
        self.late_seconds = 0.0
        """How much of the time the parent and the new worker stood ready to run while the machine ran others."""

    def wait(self, killed: int) -> float:
        """Wait until as many serve as before; returns how long it took."""
        began = time.monotonic()
        new = set(self._fleet.wait_workers(but={killed})) - self._before.keys()
        seconds = time.monotonic() - began
        parent = self._fleet.pid
        self.late_seconds = sum(map(_waited_seconds, new)) + _waited_seconds(parent) - self._before[parent]
        return seconds


def estimate_tokens(talk: Conversation, count: int) -> int:
    """Return what input and output count before the provider reports them: bytes / 3, and per event or bytes / 4."""
    lengths = [0, *accumulate(len(word(talk.marker, index)) for index in range(count))]
    return -(-len(talk.prompt) // 3) + max(count, -(-lengths[count] // 4))


def rows_of(house: House, talks: Sequence[Conversation]) -> dict[str, list[dict[str, Any]]]:
    """Return the ledger's rows of some requests, by trace id."""
    wanted: dict[str, list[dict[str, Any]]] = {talk.trace_id: [] for talk in talks}
    for row in house.rows():
        if row["trace_id"] in wanted:
            wanted[row["trace_id"]].append(row)
    return wanted


def wait_rows(house: House, talks: Sequence[Conversation], seconds: float = 40) -> float:
    """Wait until each request has a row; returns how long it took."""
    began = time.monotonic()
    house.wait_for(lambda: all(rows_of(house, talks).values()), seconds)
    return time.monotonic() - began


def wait_released(house: House, key: str, seconds: float) -> float:
    """Wait until nothing of a key's limits is reserved; returns how long it took."""
    began = time.monotonic()
    house.wait_for(lambda: (found := house.limits(key)) and not any(limit["reserved"] for limit in found), seconds)
    return time.monotonic() - began


def spent(house: House, key: str, kind: str) -> int:
    """Return what the meter says that was spent of a key's limit."""
    found: list[dict[str, Any]] = house.wait_for(lambda: house.limits(key))
    return next(int(limit["spent"]) for limit in found if limit["kind"] == kind)


def has_clean_end(talk: Conversation) -> bool:
    """Whether an answer ended as HTTP ends one: with the chunk of no length, or with all that its head announced."""
    data = b"".join(data for _, data in talk.arrivals)
    return data.endswith(b"0\r\n\r\n") if b"transfer-encoding: chunked" in data.lower() else talk.is_whole


def replay(house: House, *, times: int = 1, data: Path | None = None) -> None:
    """Offer PostgreSQL every journal again, as an operator does; raises AssertionError if anything changes by it."""
    before = house.rows(), _projection(house)
    journals = (data or house.fleet.data) / "journals"
    for _ in range(times):
        _run(house, "replay", str(journals))
    _run(house, "rebuild", "--check")
    after = house.rows(), _projection(house)
    known = {(row["request_id"], row["attempt"]) for row in before[0]}
    new = [row for row in after[0] if (row["request_id"], row["attempt"]) not in known]
    assert not new, f"replaying added {new}"
    assert after == before, "replaying changed what was there"


def _projection(house: House) -> list[tuple[Any, ...]]:
    return sorted(house.postgres.query("SELECT * FROM usage_hour", house.database_url), key=repr)


def _run(house: House, *words: str) -> None:
    environment = {"PATH": os.environ["PATH"], **house.fleet.environment}
    done = subprocess.run(
        [METERHOUSE, "ledger", *words, "--env-file", "/dev/null"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _stands(truth: GroundTruth, marker: str, *, is_held: bool) -> bool:
    attempts: list[Attempt] = truth.by_marker(marker)
    return bool(attempts) and (attempts[-1].is_held if is_held else attempts[-1].tokens > 0)


def _worker_of(fleet: ServeProcess, port: int) -> int:
    """Return 0 while nobody has accepted the connection."""
    try:
        return fleet.worker_of(port)
    except AssertionError:
        return 0


def _waited_seconds(pid: int) -> float:
    """Return how long a process's main thread waited for a processor in its life; 0 where the kernel does not say."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0
