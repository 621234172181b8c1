"""Reads keys for the keyring: from SQL, many at once, and from the Redis mirror while SQL is away.

Invariant: SQL decides whenever it answers; the mirror speaks only when it does not. At most one query of a process
runs at a time, for every key that waits for it, so that a cold start with any number of keys costs the database one
connection per process. Not here: what is remembered, and for how long (``keys.keyring``).
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from meterhouse.db.keys import KeyStore, StoredKey
from meterhouse.errors import StoreChanging, StoreDown
from meterhouse.metering import Clock, Scope

MOST_PER_QUERY = 100
MOST_WAITING = 20_000
"""Keys that wait to be read; further ones are refused with StoreDown."""
RETRY_MS = 1_000
"""While the database is away, it is asked once in this time; nobody else waits for it."""
PATIENCE_SECONDS = 0.3
"""How long a query may take before the mirror is asked; its answer still counts for whom the mirror does not know."""
GIVE_UP_SECONDS = 3.0
"""How long anybody waits for a query; a little longer than PostgreSQL and its driver need to end one."""
ABANDON_SECONDS = 10.0
"""How long a query may hang, whatever the driver allows, before another one is tried."""

_AWAY = "The key store cannot be reached just now. Try again in a moment."


class MirrorDown(Exception):
    """The mirror cannot be asked. Never leaves ``keys``."""


class KeyOutdated(StoreDown):
    """SQL is away, and what else is known of the key is known to have changed since: nothing older may serve."""


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What the mirror says of a key."""

    key: StoredKey | None
    """None: it is revoked, or ``is_current`` is False."""
    is_current: bool
    """False: the key, or a limit that binds it, was changed after the mirror's entry was read."""


class Mirror(Protocol):
    """Known keys, revocations and changes, kept where every process sees them. Nothing here raises but ``find``."""

    async def find(self, key_ids: Collection[str]) -> Mapping[str, Mirrored]:
        """Return what is known, by key id; raises MirrorDown."""
        ...

    def put(self, key: StoredKey, read_at_ms: int) -> None:
        """Keep a key as SQL had it at a time."""
        ...

    def bury(self, key_id: str, at_ms: int) -> None:
        """Keep that a key is revoked."""
        ...

    def note_change(self, scope: Scope, scope_id: str, at_ms: int) -> None:
        """Keep that what was known before now of an owner's keys is outdated."""
        ...

    async def flush(self) -> bool:
        """Wait for one try to write all that is kept; False: it failed and is tried again later."""
        ...


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of a key."""

    key: StoredKey | None
    """None: there is no such key, or it is revoked and nothing more is known."""
    at_ms: int
    """When it was asked for: what changed later is not in it."""
    is_from_sql: bool


_Waiting = dict[str, "asyncio.Future[Read]"]


class KeyReader:
    """Reads keys. One per process, used from its event loop only."""

    def __init__(self, store: KeyStore, clock: Clock, mirror: Mirror | None = None) -> None:
        self._store = store
        self._clock = clock
        self._mirror = mirror
        self._wanted: _Waiting = {}
        """Who waits for a query that has not begun: one that runs may have seen the row before a change."""
        self._runner: asyncio.Task[None] | None = None
        self._query: asyncio.Task[dict[str, StoredKey]] | None = None
        self._give_up_at = 0.0
        self._away_until_ms = 0
        self._late: set[asyncio.Task[None]] = set()
        self.queries = 0
        """Queries sent to the database."""

    async def read(self, key_id: str) -> Read:
        """Read a key.

        Raises:
            StoreDown: the database is away, and the mirror too or it does not know the key.
            KeyOutdated: the database is away, and the key has changed since it was mirrored.
        """
        future = self._wanted.get(key_id)
        if future is None:
            if len(self._wanted) >= MOST_WAITING:
                raise StoreDown(_AWAY, detail=f"{MOST_WAITING} keys wait to be read")
            future = self._wanted[key_id] = asyncio.get_running_loop().create_future()
            if self._runner is None:
                self._runner = asyncio.create_task(self._run())
                self._runner.add_done_callback(self._forget_runner)
        return await asyncio.shield(future)

    async def close(self) -> None:
        """Wait for what is being read."""
        tasks = [task for task in (self._runner, self._query, *self._late) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget_runner(self, _: asyncio.Task[None]) -> None:
        self._runner = None

    async def _run(self) -> None:
        while self._wanted:
            batch = {key_id: self._wanted.pop(key_id) for key_id in list(islice(self._wanted, MOST_PER_QUERY))}
            serving = asyncio.create_task(self._serve(batch))
            await asyncio.wait({serving})
            error = serving.exception()
            if error is not None:
                _fail(batch, error)

    async def _serve(self, batch: _Waiting) -> None:
        asked_at_ms = self._clock.now_ms()
        query = self._begin_query(batch)
        if query is not None:
            await asyncio.wait({query}, timeout=PATIENCE_SECONDS)
            if query.done() and query.exception() is None:
                _answer(batch, query.result(), asked_at_ms)
                return
        # An earlier query that hangs: who waits is asked for by the next one, once there is an answer.
        running = query or self._query
        outdated = await self._ask_mirror(batch)
        left = {key_id: future for key_id, future in batch.items() if not future.done()}
        if not left:
            return
        if running is None:
            _fail_as_away(left, outdated, None)
            return
        # It may have ended while the mirror was asked: its answer counts all the same.
        late = asyncio.create_task(self._wait_on(running, left, outdated, asked_at_ms if query else None))
        self._late.add(late)
        late.add_done_callback(self._late.discard)

    def _begin_query(self, key_ids: Iterable[str]) -> "asyncio.Task[dict[str, StoredKey]] | None":
        """Ask the database, unless it was away a moment ago or an earlier query hangs."""
        is_away = 0 < self._away_until_ms - self._clock.now_ms() <= RETRY_MS
        if self._query is not None or is_away:
            return None
        self.queries += 1
        self._give_up_at = asyncio.get_running_loop().time() + GIVE_UP_SECONDS
        self._query = asyncio.create_task(self._ask_store(list(key_ids)))
        self._query.add_done_callback(self._end_query)
        return self._query

    async def _ask_store(self, key_ids: list[str]) -> dict[str, StoredKey]:
        try:
            async with asyncio.timeout(ABANDON_SECONDS):
                return await self._store.find_keys(key_ids)
        except TimeoutError as error:
            raise StoreDown(_AWAY, detail=f"a query for keys hung for {ABANDON_SECONDS} seconds") from error

    def _end_query(self, query: "asyncio.Task[dict[str, StoredKey]]") -> None:
        self._query = None
        error = None if query.cancelled() else query.exception()
        # A database beside which a migration runs is not away: the next query may find it done.
        if isinstance(error, StoreDown) and not isinstance(error, StoreChanging):
            self._away_until_ms = self._clock.now_ms() + RETRY_MS

    async def _ask_mirror(self, batch: _Waiting) -> set[str]:
        """Answer those whom the mirror knows; returns the keys that it knows to be outdated."""
        if self._mirror is None:
            return set()
        asked_at_ms = self._clock.now_ms()
        try:
            found = await self._mirror.find(batch)
        except MirrorDown:
            return set()
        for key_id, mirrored in found.items():
            future = batch[key_id]
            if mirrored.is_current and not future.done():
                future.set_result(Read(mirrored.key, asked_at_ms, is_from_sql=False))
        return {key_id for key_id, mirrored in found.items() if not mirrored.is_current}

    async def _wait_on(
        self,
        query: "asyncio.Task[dict[str, StoredKey]]",
        left: _Waiting,
        outdated: set[str],
        asked_at_ms: int | None,
    ) -> None:
        """Wait for a query that is late or has failed; ``asked_at_ms`` is None when it did not ask for these keys."""
        await asyncio.wait({query}, timeout=max(0.0, self._give_up_at - asyncio.get_running_loop().time()))
        if not query.done():
            _fail_as_away(left, outdated, None)
        elif query.exception() is not None:
            _fail_as_away(left, outdated, query.exception())
        elif asked_at_ms is not None:
            _answer(left, query.result(), asked_at_ms)
        else:
            await self._read_again(left)

    async def _read_again(self, left: _Waiting) -> None:
        reads = await asyncio.gather(*[self.read(key_id) for key_id in left], return_exceptions=True)
        for future, read in zip(left.values(), reads, strict=True):
            if isinstance(read, BaseException):
                future.set_exception(read)
            else:
                future.set_result(read)


def _answer(batch: _Waiting, found: Mapping[str, StoredKey], asked_at_ms: int) -> None:
    for key_id, future in batch.items():
        if not future.done():
            future.set_result(Read(found.get(key_id), asked_at_ms, is_from_sql=True))


def _fail(batch: _Waiting, error: BaseException) -> None:
    for future in batch.values():
        if not future.done():
            future.set_exception(error)


def _fail_as_away(left: _Waiting, outdated: set[str], error: BaseException | None) -> None:
    if error is not None and not isinstance(error, StoreDown):
        _fail(left, error)
        return
    away = error or StoreDown(_AWAY, detail="it was away a moment ago")
    changed = KeyOutdated(_AWAY, detail="the key has changed since it was mirrored")
    _fail({key_id: future for key_id, future in left.items() if key_id in outdated}, changed)
    _fail(left, away)
