"""All changes of who may send requests and how many, for the command line and for the administration API alike.

What each change has in common is in ``keys.changes``. Not here: who may make one (``admin.roles``).
"""

from meterhouse.keys.accounts import AccountChanges
from meterhouse.keys.issuing import IssuedKey, KeyOrder
from meterhouse.keys.leaks import LeakChanges
from meterhouse.keys.limit_changes import LimitChanges
from meterhouse.keys.owners import OwnerChanges

__all__ = ["IssuedKey", "KeyOrder", "KeyService"]

TOMBSTONE_MS = 25 * 3_600_000
"""How long after its revocation a key may still have an entry in the mirror, and an hour more."""
MOST_TOMBSTONES = 10_000
"""How many tombstones are renewed; those of the oldest revocations are not."""


class KeyService(OwnerChanges, AccountChanges, LimitChanges, LeakChanges):
    """Changes organizations, projects, keys and limits. Every method raises StoreDown when there is no database."""

    async def renew_tombstones(self) -> None:
        """Mirror again which keys were revoked lately: whoever revoked them may have failed to, or Redis lost it."""
        if self._others.mirror is None:
            return
        since_ms = self._clock.now_ms() - TOMBSTONE_MS
        for key_id, at_ms in (await self._catalog.keys.list_revoked(since_ms, MOST_TOMBSTONES)).items():
            self._others.mirror.bury(key_id, at_ms)
        await self._others.mirror.flush()
