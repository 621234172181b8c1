"""Hashes keys with the pepper that is in use now, as they are used: only then is there anything to hash.

Invariant: a secret is hashed at once and never kept. What cannot be written is kept, up to a bound, for the next time;
a key beyond it is hashed when it is used again.
"""

from meterhouse.db.peppers import NewHash, PepperStore
from meterhouse.errors import StoreDown
from meterhouse.keys.secret import ParsedSecret, Peppers

MOST_WAITING = 10_000
MOST_AT_ONCE = 200


class Rehasher:
    """One per process, used from its event loop only."""

    def __init__(self, store: PepperStore, peppers: Peppers) -> None:
        self._store = store
        self._peppers = peppers
        self._waiting: dict[str, NewHash] = {}

    def note(self, secret: ParsedSecret, version: int) -> None:
        """Take in that a key was good whose hash is of another pepper; only an older one is replaced."""
        if version < self._peppers.version and secret.key_id not in self._waiting and len(self._waiting) < MOST_WAITING:
            newer, hashed = self._peppers.hash(secret.value)
            self._waiting[secret.key_id] = NewHash(secret.key_id, secret.is_admin, newer, hashed)

    async def flush(self) -> None:
        """Write what there is, a few at a time.

        Raises:
            StoreDown: The database cannot take it; it is kept for the next time.
        """
        waiting, self._waiting = list(self._waiting.values()), {}
        while waiting:
            batch, waiting = waiting[:MOST_AT_ONCE], waiting[MOST_AT_ONCE:]
            try:
                await self._store.rehash(batch)
            except StoreDown:
                self._waiting = {new.key_id: new for new in (*batch, *waiting)} | self._waiting
                raise
