"""Says who a request is by its key, from a bounded cache in front of the stores.

Invariant: a cached key is served without any store for ``fresh_ms``, then it is read again before use; only while no
store can tell is it served for up to ``STALE_MS``. So a revocation counts at once in this process and in every other
that hears of it (``hear``), after ``fresh_ms`` in one that does not, and after ``STALE_MS`` at the latest. Not here:
changes of keys (``keys.service``), which store is asked (``keys.reader``), allowed models and limits (they are only
handed on).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import replace
from hmac import compare_digest

from meterhouse.db.keys import KeyStore, StoredAdminKey, StoredKey
from meterhouse.errors import InvalidKey, NotPermitted, StoreDown
from meterhouse.identity import Actor, KeyScope, Principal
from meterhouse.keys.client_tokens import ClientTokens, Grant, find_token, key_id_of
from meterhouse.keys.entry import Entry, actor_of, entry_of, why_dead
from meterhouse.keys.reader import MOST_PER_QUERY, KeyOutdated, KeyReader, Mirror, Read
from meterhouse.keys.readings import Readings
from meterhouse.keys.secret import ID_PLACE, ID_PREFIX, MAX_LENGTH, HeaderMarks, ParsedSecret, Peppers, parse
from meterhouse.keys.throttle import SignInThrottle
from meterhouse.metering import Clock, Scope

FRESH_MS = 10_000
STALE_MS = 300_000
MAX_KEYS = 50_000
"""Known keys that are remembered; the one longest unused is forgotten."""
UNKNOWN_MS = 30_000
MAX_UNKNOWN = 10_000
"""Ids without a key that are remembered; the oldest is forgotten."""
MIRROR_AGAIN_MS = 5_000
"""A key that is new here or has changed is mirrored twice, so that one entry is later than the mark of its change."""
MIRROR_RENEW_MS = 3_600_000
"""How often the entry of a key in use is renewed after that."""
PATIENCE_SECONDS = 0.6
"""How long the stores may take before a stale entry serves instead; longer than ``keys.reader`` needs for both."""
MAX_USED = 100_000
"""Times of last use kept until they are flushed; those of further keys are dropped."""

_MISSING = "No API key was sent. Send it in a header: 'Authorization: Bearer YOUR_KEY'."
_INVALID = (
    "This API key is not valid. Check that it was copied whole. If it was, it has been revoked, has expired or "
    "belongs to another server: ask whoever issued it for a new one."
)
_ADMIN_KEY = "This is an admin key, and inference needs a project's key. Issue one with POST /admin/keys and send that."
_TENANT_KEY = "Administration needs an admin key (sk-mh-admin-...), and this is a project's key. Send an admin key."
_ADDRESS = (
    "This API key may not be used from this address. Use it from one of its networks, or ask whoever issued it to "
    "add yours to its IP ranges."
)


class Keyring:
    """Verifies keys. One per process, used from its event loop only."""

    def __init__(
        self,
        store: KeyStore,
        peppers: Peppers,
        clock: Clock,
        mirror: Mirror | None = None,
        fresh_ms: int = FRESH_MS,
        max_keys: int = MAX_KEYS,
    ) -> None:
        self._store = store
        self._reader = KeyReader(store, clock, mirror)
        self._mirror = mirror
        self._peppers = peppers
        self._marks = HeaderMarks()
        self._clock = clock
        self._fresh_ms = fresh_ms
        self._max_keys = max_keys
        self.tokens = ClientTokens(peppers)
        self.throttle: SignInThrottle | None = None
        """Slows down who guesses; None: nobody is."""
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._unknown_until_ms: OrderedDict[str, int] = OrderedDict()
        self._readings = Readings(fresh_ms)
        self._reads: dict[str, asyncio.Task[Entry | None]] = {}  # of each key whose result will be remembered
        self._running: set[asyncio.Task[Entry | None]] = set()
        self._watchers: list[Callable[[], None]] = []
        self.on_other_pepper: Callable[[ParsedSecret, int], None] | None = None
        """Is told of a key that was good, and whose hash is of another pepper than the one in use."""
        self._used: dict[str, int] = {}
        self._admin_used: dict[str, int] = {}
        self.hits = 0
        """Verifications that the cache answered."""
        self.misses = 0
        """Verifications that had to wait for a read that they began."""

    @property
    def refused(self) -> int:
        """Requests that were refused without a look at their key, since the start."""
        return 0 if self.throttle is None else self.throttle.refused

    async def verify(
        self, authorization: str | None, address: str | None, scope: KeyScope = KeyScope.INFERENCE
    ) -> Principal:
        """Return who a request is. Without I/O while its key is fresh in the cache.

        Args:
            authorization: the value of the ``Authorization`` header.
            address: where the request comes from; None (a local socket) passes only keys without IP ranges.
            scope: what the key must be allowed to do.

        Raises:
            InvalidKey: there is no key, or one that opens nothing; the reason is only in ``detail``.
            NotPermitted: the key is good, but not from this address or not for this.
            RateLimited: too many keys from this address opened nothing, and this one is not known to be good.
            StoreDown: no store can tell, and the key was not read recently enough.
        """
        if (known := self.recall(authorization, address, self._clock.now_ms(), scope)) is not None:
            return known
        if (throttle := self.throttle) is None:
            return await self._verify(authorization, address, scope)
        if throttle.is_closed(address) and not self._is_known(authorization):
            raise throttle.refuse(address)
        try:
            return await self._verify(authorization, address, scope)
        except InvalidKey:
            token = find_token(authorization)
            if token is None or not self.tokens.is_ours(token):
                throttle.note(address)
            raise

    def recall(
        self, authorization: str | None, address: str | None, now_ms: int, scope: KeyScope = KeyScope.INFERENCE
    ) -> Principal | None:
        """Return who a request is, as ``verify``, while its key is fresh in the cache now; None: ``verify`` tells."""
        if authorization is None or len(authorization) > MAX_LENGTH:
            return None
        # A mark is made of whatever comes, so that time does not tell whose key is known.
        mark, entry = self._marks.of(authorization), self._entries.get(ID_PREFIX + authorization[ID_PLACE])
        if entry is None or entry.mark is None or not compare_digest(mark, entry.mark):
            return None
        key, age_ms = entry.key, now_ms - entry.read_at_ms
        if not 0 <= age_ms < self._fresh_ms or (key.expires_at_ms is not None and now_ms >= key.expires_at_ms):
            return None
        if age_ms >= self._readings.due_ms:
            self._begin_read(key.id, now_ms)
        self._entries.move_to_end(key.id)
        self.hits += 1
        return self._admit(entry, entry.principal, address, scope, now_ms)

    def _is_known(self, authorization: str | None) -> bool:
        """Whether a key was found good here before, or a client token was made here; asks no store."""
        token = find_token(authorization)
        if token is not None:
            return self.tokens.is_ours(token)
        try:
            secret = _secret_of(authorization)
        except InvalidKey:
            return False
        entry = self._entries.get(secret.key_id)
        if entry is None:
            return self._peppers.verify_nothing(secret.value)
        return self._peppers.verify(secret.value, entry.key.pepper_version, entry.key.hash)

    async def _verify(self, authorization: str | None, address: str | None, scope: KeyScope) -> Principal:
        token = find_token(authorization)
        if token is not None:
            return await self._verify_token(self.tokens.read(token, self._clock.now_ms()), address, scope)
        secret = _secret_of(authorization)
        if secret.is_admin:
            raise NotPermitted(_ADMIN_KEY, detail=f"{secret.key_id} is an admin key")
        entry = await self._find(secret.key_id)
        if entry is None:
            self._peppers.verify_nothing(secret.value)
            raise InvalidKey(_INVALID, detail=f"{secret.key_id} is unknown")
        self._check_secret(secret, entry.key, self._clock.now_ms())
        if authorization is not None and entry.key.pepper_version == self._peppers.version:
            entry.mark = self._marks.of(authorization)
        return self._admit(entry, entry.principal, address, scope, self._clock.now_ms())

    async def _verify_token(self, grant: Grant, address: str | None, scope: KeyScope) -> Principal:
        """Return who a request with a client token is: its key, as that is now, within what the token says."""
        entry = await self._find(grant.sub)
        if entry is None or entry.principal.organization_id != grant.org:
            raise InvalidKey(_INVALID, detail=f"{grant.jti}: its key is unknown")
        now_ms = self._clock.now_ms()
        reason = why_dead(entry.key, now_ms)
        if reason is not None:
            raise InvalidKey(_INVALID, detail=f"{grant.jti}: its key {reason}")
        return self._admit(entry, self.tokens.principal_of(grant, entry.principal), address, scope, now_ms)

    def _admit(self, entry: Entry, principal: Principal, address: str | None, scope: KeyScope, at_ms: int) -> Principal:
        if entry.networks and not entry.admits(address):
            raise NotPermitted(_ADDRESS, detail=f"{principal.key_id} from {address}")
        if scope not in principal.scopes:
            message = f"This API key lacks the scope '{scope}'. Ask whoever issued it for a key that has it."
            raise NotPermitted(message, detail=f"{principal.key_id} lacks {scope}")
        if entry.key.id in self._used or len(self._used) < MAX_USED:
            self._used[entry.key.id] = at_ms
        return principal

    async def verify_admin(self, authorization: str | None) -> Actor:
        """Return which administrator a request is. Always asks the database: administration is rare.

        Raises:
            InvalidKey: there is no key, or one that opens nothing.
            NotPermitted: it is a tenant's key, or an admin key that is bound to nothing.
            StoreDown: the database is away.
        """
        secret = _secret_of(authorization)
        if not secret.is_admin:
            raise NotPermitted(_TENANT_KEY, detail=f"{secret.key_id} is not an admin key")
        stored = await self._store.find_admin_key(secret.key_id)
        if stored is None:
            self._peppers.verify_nothing(secret.value)
            raise InvalidKey(_INVALID, detail=f"{secret.key_id} is unknown")
        now_ms = self._clock.now_ms()
        self._check_secret(secret, stored, now_ms)
        if secret.key_id in self._admin_used or len(self._admin_used) < MAX_USED:
            self._admin_used[secret.key_id] = now_ms
        return actor_of(stored)

    async def find_live(self, key_id: str) -> bool:
        """Say whether a key is still good, as fresh as ``verify`` would: a running stream of another is cut.

        Raises:
            StoreDown: no store can tell, and the key was not read recently enough.
        """
        entry = await self._find(key_id_of(key_id))
        return entry is not None and why_dead(entry.key, self._clock.now_ms()) is None

    async def find_dead(self, key_ids: Collection[str]) -> set[str]:
        """Return those of some keys that are good no more. One that no store can tell of is not among them."""
        answers = await asyncio.gather(*[self.find_live(key_id) for key_id in key_ids], return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, StoreDown):
                raise answer
        return {key_id for key_id, answer in zip(key_ids, answers, strict=True) if answer is False}

    def watch(self, callback: Callable[[], None]) -> None:
        """Have a function called, at once, whenever keys may have ended: then ask ``find_dead`` which have."""
        self._watchers.append(callback)

    def hear(self, notice: object) -> None:
        """Take in that a key (``key_id``) or an owner's keys (``scope``, ``scope_id``) changed, here or elsewhere.

        Nothing in a notice is believed but that there is something to read again; what is none of the two mappings is
        ignored.
        """
        match notice:
            case {"key_id": str(key_id)}:
                self.invalidate(key_id)
            case {"scope": str(scope), "scope_id": str(scope_id)} if scope in set(Scope):
                self.invalidate_scope(Scope(scope), scope_id)
            case _:
                return
        for callback in self._watchers:
            callback()

    def invalidate(self, key_id: str) -> None:
        """Forget what is known of a key, also that it was unknown, so that its next use reads it."""
        self._entries.pop(key_id, None)
        self._unknown_until_ms.pop(key_id, None)
        self._reads.pop(key_id, None)

    def invalidate_scope(self, scope: Scope, scope_id: str) -> None:
        """Forget every key of an organization, a project or a chain of rotations."""
        for key_id in [key_id for key_id, entry in self._entries.items() if (scope, scope_id) in entry.key.owners]:
            self.invalidate(key_id)
        # Whose key a running read will find is not known yet: let none of them be remembered.
        self._reads.clear()

    async def flush_last_used(self) -> None:
        """Write when keys were last used, and forget it; after StoreDown it is kept for the next time."""
        used, self._used = self._used, {}
        admin_used, self._admin_used = self._admin_used, {}
        try:
            await self._store.touch_last_used(used)
            await self._store.touch_admin_last_used(admin_used)
        except StoreDown:
            self._used = used | self._used
            self._admin_used = admin_used | self._admin_used
            raise

    async def close(self) -> None:
        """Wait for reads that are still running."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._reader.close()

    def _check_secret(self, secret: ParsedSecret, stored: StoredKey | StoredAdminKey, now_ms: int) -> None:
        # The hash comes first: who does not hold the secret learns nothing of the key, not even from the time.
        if not self._peppers.verify(secret.value, stored.pepper_version, stored.hash):
            raise InvalidKey(_INVALID, detail=f"{secret.key_id} has another secret")
        reason = why_dead(stored, now_ms)
        if reason is not None:
            raise InvalidKey(_INVALID, detail=f"{secret.key_id} {reason}")
        if stored.pepper_version != self._peppers.version and self.on_other_pepper is not None:
            self.on_other_pepper(secret, stored.pepper_version)

    async def _find(self, key_id: str) -> Entry | None:
        """Return a key's entry, fresh or as stale as is allowed; None when there is no such key."""
        now_ms = self._clock.now_ms()
        entry = self._entries.get(key_id)
        if entry is not None and 0 <= now_ms - entry.read_at_ms < self._fresh_ms:
            self._entries.move_to_end(key_id)
            self.hits += 1
            return entry
        if entry is None and 0 < self._unknown_until_ms.get(key_id, 0) - now_ms <= UNKNOWN_MS:
            return None
        return await self._read(key_id, now_ms)

    async def _read(self, key_id: str, now_ms: int) -> Entry | None:
        """Read a key; a stale entry serves while no store can tell, or none tells in time."""
        if key_id not in self._reads:
            self.misses += 1
        task = self._begin_read(key_id, now_ms)
        is_stale_known = self._find_stale(key_id, now_ms) is not None
        # A waiter that leaves does not stop the others' read.
        await asyncio.wait({task}, timeout=PATIENCE_SECONDS if is_stale_known else None)
        if task.done() and not isinstance(task.exception(), StoreDown):
            return task.result()
        # Looked up again: a revocation may have removed it in the meantime.
        return self._find_stale(key_id, now_ms) or await asyncio.shield(task)

    def _find_stale(self, key_id: str, now_ms: int) -> Entry | None:
        entry = self._entries.get(key_id)
        return entry if entry is not None and abs(now_ms - entry.read_at_ms) < STALE_MS else None

    def _begin_read(self, key_id: str, now_ms: int) -> "asyncio.Task[Entry | None]":
        """Read a key, once for all who wait for it, and in the same query those in use that will be due soon."""
        if key_id not in self._reads:
            # They fill a query; nobody is to wait for another one because of them.
            room = MOST_PER_QUERY - 1 - len(self._reads)
            for one in (key_id, *self._readings.take_early(now_ms, self._used, room)):
                if one not in self._reads:
                    task = self._reads[one] = asyncio.create_task(self._load(one))
                    self._running.add(task)
                    task.add_done_callback(self._forget_task)
        return self._reads[key_id]

    def _forget_task(self, task: "asyncio.Task[Entry | None]") -> None:
        self._running.discard(task)
        if not task.cancelled():
            # Marks an error as seen, in case that nobody waits for it any more.
            task.exception()

    async def _load(self, key_id: str) -> Entry | None:
        task = asyncio.current_task()
        is_outdated = False
        try:
            read = await self._reader.read(key_id)
        except KeyOutdated:
            is_outdated = True
            raise
        finally:
            # After an invalidation this read is no longer the one to be remembered: it may have seen the old row.
            is_current = self._reads.get(key_id) is task
            if is_current:
                del self._reads[key_id]
            if is_outdated:
                self._entries.pop(key_id, None)
        if is_current:
            entry = None if read.key is None else self._mirror_when_due(read.key, read)
            self._remember(key_id, entry, read.at_ms)
            return entry
        return None if read.key is None else entry_of(read.key, read.at_ms, 0)

    def _mirror_when_due(self, key: StoredKey, read: Read) -> Entry:
        key = replace(key, last_used_at_ms=None)
        before = self._entries.get(key.id)
        same = before if before is not None and before.key == key else None
        mirror_at_ms = 0 if same is None else same.mirror_at_ms
        # Further ahead than it was ever set, it is from before the clock was set back.
        is_due = not 0 < mirror_at_ms - read.at_ms <= MIRROR_RENEW_MS
        if read.is_from_sql and self._mirror is not None and is_due:
            self._mirror.put(key, read.at_ms)
            mirror_at_ms = read.at_ms + (MIRROR_AGAIN_MS if same is None else MIRROR_RENEW_MS)
        # One that is the same keeps its principal, so that what others made of its limits is found again.
        return replace(same or entry_of(key, 0, 0), read_at_ms=read.at_ms, mirror_at_ms=mirror_at_ms)

    def _remember(self, key_id: str, entry: Entry | None, read_at_ms: int) -> None:
        self._entries.pop(key_id, None)
        self._unknown_until_ms.pop(key_id, None)
        if entry is not None:
            self._entries[key_id] = entry
            self._readings.note(key_id, read_at_ms)
            if len(self._entries) > self._max_keys:
                self._entries.popitem(last=False)
        else:
            self._unknown_until_ms[key_id] = read_at_ms + UNKNOWN_MS
            if len(self._unknown_until_ms) > MAX_UNKNOWN:
                self._unknown_until_ms.popitem(last=False)


def _secret_of(authorization: str | None) -> ParsedSecret:
    scheme, _, value = (authorization or "").partition(" ")
    value = value.strip()
    if scheme.lower() != "bearer" or not value:
        raise InvalidKey(_MISSING, detail="no bearer key in the header")
    secret = parse(value)
    if secret is None:
        raise InvalidKey(_INVALID, detail="not in the format of a key, or a typo")
    return secret
