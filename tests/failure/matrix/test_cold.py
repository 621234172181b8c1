"""Every worker begins anew, or Redis forgets all, while ten thousand keys are in use: row 33 of the matrix."""

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Self
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis

from failure.killing import Conversation
from failure.matrix.house import House
from fakes.fleet import PEPPER
from meterhouse.keys.secret import Peppers, make
from meterhouse.limits.scripts import load_scripts
from meterhouse.stores import CLERK_CONNECTIONS, PATIENT_CONNECTIONS

pytestmark = pytest.mark.slow_fault

CONNECTIONS = 4
HOUSE = {
    "environment": {
        "METERHOUSE_DATABASE_CONNECTIONS": str(CONNECTIONS),
        # As in production, so that what is read again was forgotten and is not merely old.
        "METERHOUSE_KEY_FRESH_SECONDS": "30",
        # Only what requests set off is to be counted, and not what runs beside them.
        "METERHOUSE_RECONCILE_SECONDS": "600",
    }
}
MANY, FEW = 10_000, 500
TIMES = 3
"""How often each key asks at once."""
CLIENTS = 48
LIMITS = (("spend", "total", 1_000_000_000_000), ("requests", "total", 10_000_000))


class Keys:
    """Many keys in one organization with limits of its own, made directly in SQL."""

    def __init__(self, house: House, count: int) -> None:
        _, first = house.fleet.new_key()
        self._peppers = Peppers({int(PEPPER.partition(":")[0]): PEPPER.partition(":")[2].encode()})
        self.first = first
        self.secrets = [make("live") for _ in range(count)]
        self.texts = [secret.value for secret in self.secrets]
        self.project_id, self.organization_id = house.postgres.query(
            f"SELECT k.project_id, p.organization_id FROM key k JOIN project p ON p.id = k.project_id "
            f"WHERE k.id = '{house.key_id_of(first)}'",
            house.database_url,
        )[0]

    async def insert(self, database_url: str) -> Self:
        """Write them, and the limits of their organization."""
        columns = ["id", "root_key_id", "project_id", "name", "hash", "pepper_version", "redacted"]
        columns += ["scopes", "ip_ranges", "created_at_ms"]
        rows = []
        for secret in self.secrets:
            version, digest = self._peppers.hash(secret.value)
            key_id = secret.key_id
            identity = (key_id, key_id, self.project_id, "one of many", digest, version, secret.redacted)
            rows.append((*identity, '["inference", "usage"]', "[]", 1_700_000_000_000))
        connection = await asyncpg.connect(database_url)
        try:
            await connection.copy_records_to_table("key", records=rows, columns=columns)
            for kind, window, amount in LIMITS:
                await connection.execute(
                    'INSERT INTO limit_rule (id, scope, scope_id, kind, "window", multiple, amount, model) '
                    "VALUES ($1, 'organization', $2, $3, $4, 1, $5, '')",
                    f"limit_{kind}{self.organization_id[4:]}",
                    self.organization_id,
                    kind,
                    window,
                    amount,
                )
        finally:
            await connection.close()
        return self


class HighWater:
    """``with HighWater(ask) as mark:``; the most that was ever seen, looked at all the time."""

    def __init__(self, ask: Callable[[], int]) -> None:
        self.most = 0
        self._ask = ask
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._has_ended.wait(0.002):
            self.most = max(self.most, self._ask())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()


class Commands:
    """``with Commands(house) as seen:``; how often each script was called for an organization."""

    def __init__(self, house: House, organization_id: str) -> None:
        scripts = load_scripts()
        self._names = {getattr(scripts, name).sha: name for name in scripts.__slots__}
        self._organization_id = organization_id
        self._client = redis.Redis.from_url(house.redis.url)
        self._mark = f"end-{time.monotonic_ns()}"
        self._ask = house.redis.cli
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._monitor = self._client.monitor()
        self._monitor.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._ask("ECHO", self._mark)
        with self._client:
            while self._mark not in (command := str(self._monitor.next_command()["command"])):
                words = command.split()
                if words[0].upper() == "EVALSHA" and self._organization_id in command:
                    self.counts[self._names[words[1]]] += 1
            self._monitor.__exit__(None, None, None)


async def ask_all(house: House, texts: Sequence[str], times: int) -> tuple[Counter[int], list[bytes]]:
    """Have every key ask several times at once, over connections that stay open; returns what was answered."""
    address = urlsplit(house.fleet.url)
    waiting = iter([text for start in range(0, len(texts), CLIENTS) for text in texts[start : start + CLIENTS]])
    statuses: Counter[int] = Counter()
    problems: list[bytes] = []

    async def client(work: Iterator[str]) -> None:
        for text in work:
            statuses.update(await asyncio.gather(*[request(text) for _ in range(times)]))

    pool: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def request(text: str) -> int:
        reader, writer = pool.pop() if pool else await asyncio.open_connection(address.hostname, address.port)
        head = f"GET /v1/limits HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {text}\r\n\r\n"
        writer.write(head.encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        if b" 200 " not in answer[:20]:
            problems.append(body)
        pool.append((reader, writer))
        return int(answer.split()[1])

    try:
        await asyncio.gather(*[client(waiting) for _ in range(CLIENTS)])
    finally:
        for _, writer in pool:
            writer.close()
    return statuses, problems


def restart_all(house: House) -> None:
    """Kill every worker at once, and wait for as many new ones."""
    old = set(house.fleet.pids())
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    house.fleet.wait_workers(but=old)


def connections(house: House) -> int:
    """Return how many connections to PostgreSQL all workers and their clerk have now."""
    return house.postgres_proxy.open_connections


async def stampede(house: House, keys: Keys, times: int = TIMES) -> dict[str, float]:
    """Restart every worker and have every key ask at once; returns what it took, having checked the bounds."""
    await asyncio.to_thread(restart_all, house)
    misses = house.fleet.metric("meterhouse_keyring_misses_total")
    with HighWater(lambda: connections(house)) as mark:
        began = time.monotonic()
        statuses, problems = await ask_all(house, keys.texts, times)
        seconds = time.monotonic() - began
    assert set(statuses) == {200}, (statuses, problems[:3])
    assert statuses[200] == times * len(keys.texts)
    # What one worker has counted is told by another a moment later.
    read = house.wait_for(
        lambda: (now := house.fleet.metric("meterhouse_keyring_misses_total") - misses) >= len(keys.texts) and now
    )
    # Each worker reads a key once, however many ask for it at a time.
    assert len(keys.texts) <= read <= house.fleet.workers * len(keys.texts)
    assert mark.most <= house.fleet.workers * (CONNECTIONS + PATIENT_CONNECTIONS) + CLERK_CONNECTIONS
    return {"cold_keys_per_second": len(keys.texts) / seconds, "most_connections": mark.most}


def says_what_the_ledger_says(house: House, keys: Keys) -> bool:
    """Whether nothing of an organization is held, and its limits say what its records say."""
    rows = [row for row in house.rows() if row["organization_id"] == keys.organization_id]
    truth = {"spend": sum(row["charge_nanos"] for row in rows), "requests": sum(row["requests"] for row in rows)}
    found = house.limits(keys.texts[0])
    return len(found) == len(LIMITS) and all(
        not limit["reserved"] and limit["spent"] == truth[limit["kind"]] for limit in found
    )


async def chat_at_once(house: House, texts: Sequence[str]) -> list[Conversation]:
    talks = [house.conversation(max_tokens=16) for _ in texts]
    await asyncio.gather(*[house.talk(talk, text) for talk, text in zip(talks, texts, strict=True)])
    return talks


@pytest.mark.cell(33, "A")
async def test_hundreds_of_cold_keys_are_read_once_by_each_worker(house: House, figures: Callable[..., None]) -> None:
    keys = await Keys(house, FEW).insert(house.database_url)
    figures(**await stampede(house, keys))


@pytest.mark.slow_fault
@pytest.mark.cell(33, "A")
async def test_ten_thousand_cold_keys_are_read_once_by_each_worker(house: House, figures: Callable[..., None]) -> None:
    keys = await Keys(house, MANY).insert(house.database_url)
    figures(**await stampede(house, keys, 2))
    talks = await chat_at_once(house, keys.texts[:100])
    verdict = await asyncio.to_thread(house.judge, talks, is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    await asyncio.to_thread(house.wait_for, lambda: says_what_the_ledger_says(house, keys))


@pytest.mark.cell(33, "R")
async def test_a_flushed_organization_is_learned_once_for_all_who_wait(
    house: House, figures: Callable[..., None]
) -> None:
    keys = await Keys(house, 60).insert(house.database_url)
    before = await chat_at_once(house, keys.texts)
    await asyncio.to_thread(house.judge, before, is_whole=True)
    spent = {limit["limit"]: limit["spent"] for limit in house.limits(keys.texts[0])}
    assert all(spent.values())
    house.redis.cli("FLUSHALL")
    with Commands(house, keys.organization_id) as seen:
        after = await chat_at_once(house, keys.texts * 2)
    verdict = await asyncio.to_thread(house.judge, after, is_whole=True)
    assert not verdict.faults, verdict.faults[:10]
    figures(learned_after_flush=seen.counts["learn_finish"])
    # Each worker that answers has asked; how many demands a call has depends on how many came in one turn of its loop.
    assert seen.counts["reserve"] >= house.fleet.workers
    # One operation for both limits; a worker that looks while another is at it finds them known, and reads no sums.
    assert 1 <= seen.counts["learn_finish"] <= house.fleet.workers
    # Whoever was told that the organization is unknown before it was known may look once more, and finds it known.
    assert 1 <= seen.counts["open"] <= 2 * house.fleet.workers
    now = {limit["limit"]: limit["spent"] for limit in house.limits(keys.texts[0])}
    assert all(now[name] > amount for name, amount in spent.items())
    await asyncio.to_thread(house.wait_for, lambda: says_what_the_ledger_says(house, keys))
