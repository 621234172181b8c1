"""A whole installation for the fault matrix: both stores behind fault proxies, a provider, and two or more workers.

``House`` starts and stops it; ``crowd`` keeps clients busy while a test causes a fault; ``judge`` then holds every
request against the provider's log and the ledger, and ``wait_at_rest`` every limit against the ledger.
Not here: faults.
"""

import asyncio
import json
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from failure.killing import Conversation
from fakes.fleet import ServeProcess, run_apart
from fakes.gateway import provider_environment
from fakes.nginx_server import NAME, NginxServer
from fakes.prices import set_prices
from fakes.proxy import FaultProxy
from fakes.servers import PostgresServer, RedisServer
from fakes.truth import Attempt
from fakes.upstream import FakeUpstream
from fakes.words import answer_text
from meterhouse.keys.secret import parse

INPUT_NANOS, OUTPUT_NANOS = 1_000, 4_000
"""Per token: 1 and 4 USD per million."""
QUICK_ANSWER = "normal?tokens=10"
PACED = "paced?tokens=20&duration_ms=800"
LONG = "paced?tokens=60&duration_ms=3000"
UNCOUNTED = "paced?tokens=30&duration_ms=900&usage=none"
HELD = "paced?tokens=25&duration_ms=500&gate=10"
HELD_AT_START = "paced?tokens=25&duration_ms=500&gate=start"
MODELS = (QUICK_ANSWER, PACED, LONG, UNCOUNTED, HELD, HELD_AT_START)
REST_SECONDS = 20
AMPLE = "spend 1000 USD total; tokens 100000000 total; requests 10000000 total; concurrent 1000"


@dataclass
class Verdict:
    """What a run of requests came to."""

    requests: int = 0
    reached: int = 0
    lost: int = 0
    doubled: int = 0
    faults: list[str] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=lambda: defaultdict(int))


class House:
    """One installation. ``with House(folder) as house:``; everything that it started ends with it."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 2,
        models: Iterable[str] = (),
        environment: dict[str, str] | None = None,
        fsync: bool = False,
        providers: Sequence[str] = ("fake",),
        launcher: list[str] | None = None,
        is_guarded: bool = False,
        is_proxied: bool = True,
    ) -> None:
        """Prepare; nothing runs before ``with``.

        Args:
            folder: where all of it lies.
            workers: how many.
            models: priced, beside those of ``MODELS``.
            environment: more settings.
            fsync: whether PostgreSQL keeps what a loss of power would take.
            providers: the rows that the provider is known by.
            launcher: replaces the command ``meterhouse serve``.
            is_guarded: whether the shipped nginx.conf stands in front, and everybody comes through it.
            is_proxied: whether the stores are reached through the fault proxies. Those share this process with all
                clients: who measures what the gateway takes goes without.
        """
        self.folder = folder
        self.postgres = PostgresServer(folder / "postgres", fsync=fsync)
        self.redis = RedisServer(folder / "redis", appendonly=True)
        self.up = FakeUpstream()
        self._workers = workers
        self._models = (*MODELS, *models)
        self._environment = environment or {}
        self._providers = providers
        self._launcher = launcher
        self._is_proxied = is_proxied
        self._numbers = iter(range(1 << 30))
        socket = folder / "gateway.sock"
        self._bind = f"unix:{socket}" if is_guarded else ""
        self.edge = NginxServer(folder / "nginx", socket=socket) if is_guarded else None
        self._trust = self.edge.trust() if self.edge else None
        self.redis_proxy: FaultProxy
        self.postgres_proxy: FaultProxy
        self.fleet: ServeProcess
        self.database_url = ""
        self.requests = self.lost = self.doubled = 0
        """What was judged so far."""

    def __enter__(self) -> Self:
        self.postgres.start()
        self.redis.start()
        self.up.start()
        self.database_url = self.postgres.create_database()
        self.postgres_proxy = FaultProxy("127.0.0.1", self.postgres.port).start()
        self.redis_proxy = FaultProxy("127.0.0.1", self.redis.port).start()
        named = {
            name: value
            for provider in self._providers
            for name, value in provider_environment(provider, self.up.base_url).items()
        }
        self.fleet = ServeProcess(
            self.folder / "data",
            redis_url=self.redis_proxy.through(self.redis.url) if self._is_proxied else self.redis.url,
            database_url=self.postgres_proxy.through(self.database_url) if self._is_proxied else self.database_url,
            workers=self._workers,
            environment={**named, **self._environment},
            bind=self._bind,
            launcher=self._launcher,
        )
        self.fleet.edge = self.edge
        self.fleet.set_up()
        set_prices(
            self.fleet.environment, [(provider, model) for provider in self._providers for model in self._models]
        )
        try:
            self.fleet.start()
            if self.edge:
                self.edge.start()
        except BaseException:
            self.fleet.kill_all()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for part in (self.redis, self.postgres):
            with suppress(AssertionError, OSError):
                part.resume()
        self.fleet.__exit__()
        if self.edge:
            self.edge.kill()
        for part in (self.redis_proxy, self.postgres_proxy, self.up, self.redis):
            part.stop()
        self.postgres.discard()

    @property
    def store_ports(self) -> tuple[int, ...]:
        """Where the workers reach the stores."""
        stores = (self.redis_proxy, self.postgres_proxy) if self._is_proxied else (self.redis, self.postgres)
        return tuple(store.port for store in stores)

    @property
    def kills(self) -> int:
        """How many processes were killed with ``kill -9``, those of a server counted as one."""
        return self.fleet.kills + self.redis.kills + self.postgres.kills

    # --- asking

    def new_key(self, limits: str = AMPLE) -> str:
        """Issue a key in an organization of its own, use it once so that every worker can know it; returns its text."""
        return self.fleet.new_key(limits)[1]

    def conversation(self, model: str = QUICK_ANSWER, *, is_streamed: bool = True, **more: Any) -> Conversation:
        """Make a request with a marker of its own; ``more`` are fields of its body."""
        host = NAME if self.edge else "gateway"
        return Conversation(f"h{next(self._numbers)}", model, is_streamed, more=more, host=host)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection to whoever is in front; raises OSError."""
        if self.edge:
            return await asyncio.open_connection("127.0.0.1", self.edge.port, ssl=self._trust, server_hostname=NAME)
        address = urlsplit(self.fleet.url)
        return await asyncio.open_connection(address.hostname, address.port)

    async def talk(self, conversation: Conversation, key: str) -> Conversation:
        """Send a request and take everything that comes, until the server closes."""
        conversation.asked_at = time.time()
        with suppress(OSError):
            reader, writer = await self.connect()
            try:
                conversation.local_port = writer.get_extra_info("sockname")[1]
                writer.write(conversation.encode(key))
                while data := await reader.read(1 << 16):
                    conversation.arrivals.append((time.time(), data))
                conversation.ended_at = time.time()
            finally:
                writer.close()
        conversation.read()
        return conversation

    def ask(self, key: str, model: str = QUICK_ANSWER, *, is_streamed: bool = True, **more: Any) -> Conversation:
        """Send one request and wait for its end."""
        return run_apart(self.talk(self.conversation(model, is_streamed=is_streamed, **more), key))

    @asynccontextmanager
    async def crowd(
        self,
        keys: Sequence[str],
        models: Sequence[str] = (QUICK_ANSWER, PACED, UNCOUNTED),
        clients: int = 20,
        **more: Any,
    ) -> AsyncIterator[list[Conversation]]:
        """Keep so many clients asking while the body runs; at its end every answer is waited for."""
        talks: list[Conversation] = []
        chooser = random.Random(1)
        has_stopped = False

        async def talk_on(number: int) -> None:
            while not has_stopped:
                made = self.conversation(chooser.choice(models), is_streamed=chooser.random() < 0.8, **more)
                talks.append(made)
                await self.talk(made, keys[number % len(keys)])
                if made.status != 200:
                    await asyncio.sleep(0.02)

        tasks = [asyncio.create_task(talk_on(number)) for number in range(clients)]
        try:
            yield talks
        finally:
            has_stopped = True
            await asyncio.gather(*tasks)

    # --- judging

    def attempts(self) -> dict[str, list[Attempt]]:
        """Return what reached the provider, by marker."""
        found: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in self.up.attempts:
            found[attempt.marker].append(attempt)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Return the ledger, read past the proxy."""
        self.fleet.database_url = self.database_url
        return self.fleet.read_ledger()

    def judge(
        self, talks: Sequence[Conversation], *, allowed: Iterable[int] = (200,), is_whole: bool = False
    ) -> Verdict:
        """Hold requests against the provider's log and the ledger, once it has a row for each attempt.

        Args:
            talks: what was asked.
            allowed: the statuses that an answer may have; 0 stands for an answer that never came.
            is_whole: whether each answer with status 200 must have come to its end.
        """
        wanted = {talk.marker for talk in talks}
        sent = {marker: found for marker, found in self.attempts().items() if marker in wanted}
        traces = {talk.trace_id: talk.marker for talk in talks}
        rows = self._wait_rows(traces, sent)
        verdict = Verdict(requests=len(talks))
        for talk in talks:
            verdict.statuses[talk.status] += 1
            if talk.status not in set(allowed):
                verdict.faults.append(f"{talk.marker}: status {talk.status}: {talk.arrivals[:1]}")
            if is_whole and talk.status == 200 and not talk.is_whole:
                verdict.faults.append(f"{talk.marker}: broken off: {talk.arrivals[-1:]}")
            self._judge_one(verdict, talk, sent.get(talk.marker, []), rows[talk.marker])
        self.requests += verdict.requests
        self.lost += verdict.lost
        self.doubled += verdict.doubled
        return verdict

    def _wait_rows(
        self, traces: dict[str, str], sent: dict[str, list[Attempt]], seconds: float = REST_SECONDS
    ) -> dict[str, list[dict[str, Any]]]:
        deadline = time.monotonic() + seconds
        while True:
            rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for row in self.rows():
                if row["trace_id"] in traces and row["attempt"] > 0:
                    rows[traces[row["trace_id"]]].append(row)
            late = [marker for marker, found in sent.items() if len(rows[marker]) < len(found)]
            if not late or time.monotonic() > deadline:
                return rows
            time.sleep(0.1)

    def _judge_one(self, verdict: Verdict, talk: Conversation, sent: list[Attempt], rows: list[dict[str, Any]]) -> None:
        note = verdict.faults.append
        verdict.reached += len(sent)
        # A process may die between INTENT and the connection, a connection may not come about in time, or be cut before
        # the provider has read what was sent on it: such a row charges nothing. A client may leave when its request was
        # sent and the provider has not read it: such a row has no output.
        real = [row for row in rows if len(rows) <= len(sent) or not _is_unread(row)]
        verdict.lost += max(0, len(sent) - len(real))
        verdict.doubled += max(0, len(real) - len(sent))
        if len(real) != len(sent):
            note(
                f"{talk.marker} {talk.model}: {len(sent)} attempts, rows {[(r['attempt'], r['outcome']) for r in rows]}"
            )
        expected = answer_text(talk.marker, talk.plan.tokens)
        if talk.status == 200 and not expected.startswith(talk.text):
            note(f"{talk.marker}: got another's text: {talk.text[:200]!r}")
        ends = [row["outcome"] for row in real]
        if talk.is_whole and ends.count("completed") != 1 and "cut" not in ends:
            note(f"{talk.marker}: its client saw the end, but the ledger says {ends}")
        for row, attempt in zip(real, sent, strict=False):
            if row["exactness"] == "reported" and attempt.usage is not None:
                told = (attempt.usage["prompt_tokens"], attempt.usage["completion_tokens"])
                if row["outcome"] == "completed" and (row["input_tokens"], row["output_tokens"]) != told:
                    note(f"{talk.marker}: reported {told}, recorded {row['input_tokens']}, {row['output_tokens']}")
            charge = row["input_tokens"] * INPUT_NANOS + row["output_tokens"] * OUTPUT_NANOS
            if row["charge_nanos"] != charge:
                note(f"{talk.marker}: charged {row['charge_nanos']} instead of {charge}")

    def spent_nanos(self, key_text: str) -> int:
        """Return what the ledger says that a key spent."""
        return self.used(key_text)["spend"]

    def used(self, key_text: str) -> dict[str, int]:
        """Return what the ledger says that a key used, by the kind of limit."""
        key_id = self.key_id_of(key_text)
        rows = [row for row in self.rows() if row["key_id"] == key_id]
        return {
            "spend": sum(row["charge_nanos"] for row in rows),
            "tokens": sum(row["input_tokens"] + row["output_tokens"] for row in rows),
            "requests": sum(row["requests"] for row in rows),
        }

    @staticmethod
    def key_id_of(key_text: str) -> str:
        """Return the id inside a key's text."""
        secret = parse(key_text)
        assert secret is not None
        return secret.key_id

    def limits(self, key: str) -> list[dict[str, Any]]:
        """Return what ``GET /v1/limits`` says; empty while nobody can say."""
        status, _, body = self.fleet.request("GET", "/v1/limits", key=key)
        data: list[dict[str, Any]] = json.loads(body)["data"] if status == 200 else []
        return data

    def wait_at_rest(self, key: str, *, seconds: float = 60) -> float:
        """Wait until nothing of a key's limits is reserved and each says what the ledger says; returns how long."""
        began = time.monotonic()
        problem = "nothing was said"
        while time.monotonic() - began < seconds:
            found = self.limits(key)
            problem = self._trouble(key, found) if found else problem
            if found and not problem:
                return time.monotonic() - began
            time.sleep(0.1)
        raise AssertionError(f"not at rest after {seconds} s: {problem}")

    def _trouble(self, key: str, found: Sequence[dict[str, Any]]) -> str:
        truth = {**self.used(key), "concurrent": 0}
        for limit in found:
            if limit["reserved"]:
                return f"{limit['limit']} holds {limit['reserved']}"
            if limit["window"] not in {"second", "minute", "hour"} and limit["spent"] != truth[limit["kind"]]:
                return f"{limit['limit']}: the meter says {limit['spent']}, the ledger {truth[limit['kind']]}"
        return ""

    def wait_for(self, ask: Callable[[], Any], seconds: float = 40) -> Any:
        """Ask until the answer is true; returns it."""
        return self.fleet.wait_for(ask, seconds)


def _is_unread(row: dict[str, Any]) -> bool:
    is_free = row["outcome"] in {"worker_lost", "upstream_failed"} and not row["charge_nanos"]
    return is_free or (row["outcome"] == "client_gone" and not row["output_tokens"])
