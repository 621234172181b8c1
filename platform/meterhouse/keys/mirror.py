"""Known keys in Redis, for the time when SQL is away: entries, the tombstones of revoked keys, and marks of changes.

An entry is what SQL said of a key at a time, and is forgotten 24 h later. It serves only while nothing newer is known:
a tombstone ends it for good, and a mark on the key's chain, its project or its organization outdates all entries that
were read before. Marks and tombstones outlive every entry that they could meet. No secret is kept, only its hash; and
every value carries an HMAC under its name, so that whoever can write to Redis can neither make a key nor revive one
that is older than 24 h. Writing goes on in the background and is tried again until it succeeds.

Not here: when the mirror is asked (``keys.reader``), and when an entry is renewed (``keys.keyring``).
"""

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import RedisError, ResponseError

from meterhouse.db.keys import StoredKey
from meterhouse.keys.reader import MirrorDown, Mirrored
from meterhouse.metering import Clock, Scope

ENTRY_LIFE_MS = 24 * 3_600_000
MARK_LIFE_MS = 25 * 3_600_000
"""How long tombstones and marks of changes are kept: longer than any entry that they end."""
SKEW_MS = 2_000
"""How far the clocks of hosts may be apart: an entry read so soon after a change may have been read before it."""
RETRY_SECONDS = 0.5
"""After a failure nothing is asked for so long; then one call tries."""
TIMEOUT_SECONDS = 0.1
MOST_PER_WRITE = 200
MOST_ENTRIES_WAITING = 10_000
"""Entries that wait to be written; the oldest is dropped, and written when its key is next renewed."""
MOST_MARKS_WAITING = 100_000
"""Marks that wait to be written; the oldest is dropped."""

_VERSION = b"1"
_MAC_BYTES = 32


class _Entry(msgspec.Struct, array_like=True, frozen=True):
    read_at_ms: int
    key: StoredKey


class _Mark(msgspec.Struct, array_like=True, frozen=True):
    at_ms: int


_Waiting = OrderedDict[str, tuple[bytes, int]]
"""What is to be written, by name: the value, and when it shall end in Unix milliseconds."""


class KeyMirror:
    """The mirror (``keys.reader.Mirror``). One per process, used from its event loop only."""

    def __init__(
        self, redis_client: Redis | RedisCluster, clock: Clock, secret: bytes, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        """Take a client, which stays its owner's to close, and a secret that is not in Redis: the newest pepper.

        The client must not decode responses; it should not retry, since here one try is all there is time for.
        """
        self._redis = redis_client
        self._clock = clock
        self._secret = hmac.digest(secret, b"meterhouse key mirror", "sha256")
        self._timeout_seconds = timeout_seconds
        self._encoder = msgspec.msgpack.Encoder()
        self._entry_decoder = msgspec.msgpack.Decoder(_Entry)
        self._mark_decoder = msgspec.msgpack.Decoder(_Mark)
        self._marks: _Waiting = OrderedDict()
        self._entries: _Waiting = OrderedDict()
        self._flushing: list[asyncio.Future[bool]] = []
        self._writer: asyncio.Task[None] | None = None
        self._is_down = False
        self._closed_until = 0.0
        self.failures = 0
        """Calls that Redis did not answer, or not in time."""

    @property
    def waiting_marks(self) -> int:
        """How many tombstones and marks of changes are not written yet."""
        return len(self._marks)

    async def find(self, key_ids: Collection[str]) -> dict[str, Mirrored]:
        """Return what is known of keys, by id; raises MirrorDown."""
        names = [name for key_id in key_ids for name in (_entry_name(key_id), _tombstone_name(key_id))]
        async with self._asking():
            values = await self._get(names)
            entries = {
                key_id: self._read_entry(key_id, value)
                for key_id, value in zip(key_ids, values[::2], strict=True)
                if value is not None
            }
            owners = sorted({owner for entry in entries.values() if entry is not None for owner in entry.key.owners})
            marks = dict(zip(owners, await self._get([_change_name(*owner) for owner in owners]), strict=True))
        found = {}
        for key_id, tombstone in zip(key_ids, values[1::2], strict=True):
            entry = entries.get(key_id)
            mirrored = (
                self._judge(entry, [(_change_name(*owner), marks[owner]) for owner in entry.key.owners])
                if entry is not None and tombstone is None
                else self._judge_buried(key_id, entry, tombstone)
            )
            if mirrored is not None:
                found[key_id] = mirrored
        return found

    def put(self, key: StoredKey, read_at_ms: int) -> None:
        """Keep a key as SQL had it at a time; for a revoked one a tombstone, in case that its own was lost."""
        if key.revoked_at_ms is not None:
            self.bury(key.id, key.revoked_at_ms)
            return
        value = self._encoder.encode(_Entry(read_at_ms, replace(key, last_used_at_ms=None)))
        name = _entry_name(key.id)
        self._write_soon(self._entries, name, (self._seal(name, value), read_at_ms + ENTRY_LIFE_MS))
        if len(self._entries) > MOST_ENTRIES_WAITING:
            self._entries.popitem(last=False)

    def bury(self, key_id: str, at_ms: int) -> None:
        """Keep that a key is revoked."""
        self._mark(_tombstone_name(key_id), at_ms)

    def note_change(self, scope: Scope, scope_id: str, at_ms: int) -> None:
        """Keep that entries of an owner's keys are outdated; of a key's chain by ``root_key_id``."""
        self._mark(_change_name(scope, scope_id), at_ms)

    async def flush(self) -> bool:
        """Wait for one try to write all marks that wait; False: it failed, and is tried again every half second."""
        if not self._marks:
            return True
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._flushing.append(written)
        self._start_writer()
        return await written

    async def close(self) -> None:
        """Try once more to write what ends or outdates an entry, and stop."""
        await self.flush()
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)

    # --- what values mean

    def _judge(self, entry: _Entry, marks: list[tuple[str, bytes | None]]) -> Mirrored:
        for name, value in marks:
            mark = None if value is None else self._read_mark(name, value)
            # A mark that cannot be read says that something changed, but not when.
            if value is not None and (mark is None or entry.read_at_ms < mark.at_ms + SKEW_MS):
                return Mirrored(None, is_current=False)
        return Mirrored(entry.key, is_current=True)

    def _judge_buried(self, key_id: str, entry: _Entry | None, tombstone: bytes | None) -> Mirrored | None:
        if tombstone is None:
            return None
        mark = self._read_mark(_tombstone_name(key_id), tombstone)
        if mark is None:
            return Mirrored(None, is_current=False)
        return Mirrored(None if entry is None else replace(entry.key, revoked_at_ms=mark.at_ms), is_current=True)

    def _read_entry(self, key_id: str, value: bytes) -> _Entry | None:
        content = self._open(_entry_name(key_id), value)
        try:
            entry = None if content is None else self._entry_decoder.decode(content)
        except msgspec.DecodeError:
            return None
        if entry is None:
            return None
        # Somebody may have put an old value back; and a clock that was set back makes marks that look too old.
        age_ms = self._clock.now_ms() - entry.read_at_ms
        return entry if -SKEW_MS <= age_ms < ENTRY_LIFE_MS else None

    def _read_mark(self, name: str, value: bytes) -> _Mark | None:
        content = self._open(name, value)
        try:
            return None if content is None else self._mark_decoder.decode(content)
        except msgspec.DecodeError:
            return None

    def _seal(self, name: str, content: bytes) -> bytes:
        return _VERSION + self._mac(name, content) + content

    def _open(self, name: str, value: bytes) -> bytes | None:
        start = len(_VERSION) + _MAC_BYTES
        mac, content = value[len(_VERSION) : start], value[start:]
        is_ours = value.startswith(_VERSION) and hmac.compare_digest(mac, self._mac(name, content))
        return content if is_ours else None

    def _mac(self, name: str, content: bytes) -> bytes:
        return hmac.digest(self._secret, _VERSION + name.encode() + b"\0" + content, "sha256")

    # --- to and from Redis

    def _mark(self, name: str, at_ms: int) -> None:
        value = self._seal(name, self._encoder.encode(_Mark(at_ms)))
        self._write_soon(self._marks, name, (value, self._clock.now_ms() + MARK_LIFE_MS))
        if len(self._marks) > MOST_MARKS_WAITING:
            self._marks.popitem(last=False)

    def _write_soon(self, waiting: _Waiting, name: str, value: tuple[bytes, int]) -> None:
        waiting[name] = value
        self._start_writer()

    def _start_writer(self) -> None:
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
            self._writer.add_done_callback(self._end_writer)

    def _end_writer(self, _: asyncio.Task[None]) -> None:
        self._writer = None
        self._tell_flushing(is_written=not self._marks)

    def _tell_flushing(self, *, is_written: bool) -> None:
        flushing, self._flushing = self._flushing, []
        for future in flushing:
            if not future.done():
                future.set_result(is_written)

    async def _write_all(self) -> None:
        while self._marks or self._entries:
            try:
                await self._write_some()
            except MirrorDown:
                self._tell_flushing(is_written=False)
                await asyncio.sleep(RETRY_SECONDS)
            if not self._marks:
                self._tell_flushing(is_written=True)

    async def _write_some(self) -> None:
        batch = list(islice(chain(self._marks.items(), self._entries.items()), MOST_PER_WRITE))
        now_ms = self._clock.now_ms()
        async with self._asking(), self._redis.pipeline(transaction=False) as pipeline:
            for name, (value, ends_at_ms) in batch:
                pipeline.set(name, value, px=max(1, ends_at_ms - now_ms))
            await pipeline.execute()
        for name, written in batch:
            for waiting in (self._marks, self._entries):
                if waiting.get(name) is written:
                    del waiting[name]

    async def _get(self, names: list[str]) -> list[bytes | None]:
        if not names:
            return []
        if isinstance(self._redis, RedisCluster):
            values: list[Any] = await self._redis.mget_nonatomic(names)
        else:
            values = await self._redis.mget(names)
        return values

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """Bound what is asked of Redis inside by the timeout, and turn every failure of it into MirrorDown."""
        loop = asyncio.get_running_loop()
        if self._is_down:
            if loop.time() < self._closed_until:
                raise MirrorDown("it failed a moment ago")
            # Nobody else waits while this call tries.
            self._closed_until = loop.time() + RETRY_SECONDS
        try:
            async with asyncio.timeout(self._timeout_seconds):
                yield
        except ResponseError as error:
            # It answers: a server that takes no writes (out of memory, read-only) can still be read.
            self.failures += 1
            raise MirrorDown(f"{type(error).__name__}: {error}") from error
        except (RedisError, OSError, TimeoutError, RuntimeError) as error:
            # uvloop's word, a RuntimeError, for writing to a connection that Redis has closed passes redis-py as it is.
            self.failures += 1
            self._is_down = True
            self._closed_until = loop.time() + RETRY_SECONDS
            raise MirrorDown(f"{type(error).__name__}: {error}") from error
        self._is_down = False


def _entry_name(key_id: str) -> str:
    return f"mh:key:{key_id}"


def _tombstone_name(key_id: str) -> str:
    return f"mh:gone:{key_id}"


def _change_name(scope: Scope, scope_id: str) -> str:
    return f"mh:changed:{scope.value}:{scope_id}"
