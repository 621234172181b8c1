"""Ends keys whose text was seen where it should not be.

Invariant: a key is revoked only for who shows its whole text, since its id alone is no secret; and no text is kept,
logged or shown again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from meterhouse.db.keys import StoredAdminKey, StoredKey
from meterhouse.identity import COMMAND_LINE, Author
from meterhouse.keys.admin_keys import AdminKeyChanges
from meterhouse.keys.issuing import KeyIssuer
from meterhouse.keys.secret import ParsedSecret, parse

REASON = "leaked"


class LeakResult(StrEnum):
    """What became of a text."""

    REVOKED = "revoked"
    ENDED = "ended"
    """It was a key of ours that was revoked before."""
    UNKNOWN = "unknown"
    """It is no key of ours, or not within reach of who reports it."""


@dataclass(frozen=True, slots=True)
class Leak:
    """What a text turned out to be."""

    result: LeakResult
    key_id: str | None = None


class LeakChanges(KeyIssuer, AdminKeyChanges):
    """Revokes leaked keys. Raises StoreDown when there is no database: what was revoked before stays revoked."""

    async def report_leaks(
        self, values: Sequence[str], *, within: str | None = None, author: Author = COMMAND_LINE
    ) -> list[Leak]:
        """Revoke those of some texts that are keys, in their order; ``within`` bounds it to one organization's."""
        return [await self._report(parse(value.strip()), within, author) for value in values]

    async def _report(self, secret: ParsedSecret | None, within: str | None, author: Author) -> Leak:
        if secret is None:
            return Leak(LeakResult.UNKNOWN)
        stored: StoredKey | StoredAdminKey | None
        if secret.is_admin:
            stored = await self._catalog.keys.find_admin_key(secret.key_id)
        else:
            stored = await self._catalog.keys.find_key(secret.key_id)
        if stored is None or within not in {None, stored.organization_id}:
            self._peppers.verify_nothing(secret.value)
            return Leak(LeakResult.UNKNOWN)
        if not self._peppers.verify(secret.value, stored.pepper_version, stored.hash):
            return Leak(LeakResult.UNKNOWN)
        if stored.revoked_at_ms is not None:
            return Leak(LeakResult.ENDED, stored.id)
        if secret.is_admin:
            await self.revoke_admin(stored.id, reason=REASON, author=author)
        else:
            await self.revoke(stored.id, reason=REASON, author=author)
        return Leak(LeakResult.REVOKED, stored.id)
