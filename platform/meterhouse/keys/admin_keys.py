"""Issues, lists and revokes the keys of administrators; the same for the command line and the administration API.

Invariant: an operator's key is bound to no organization, every other one to exactly one.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from meterhouse.audit import Action, Change
from meterhouse.db.keys import StoredAdminKey
from meterhouse.db.paging import Page, PageQuery
from meterhouse.errors import Malformed, NotFound
from meterhouse.identity import COMMAND_LINE, Author, Role
from meterhouse.keys.changes import Changes, check_expiry, check_name, expiry_ms
from meterhouse.keys.finder import no_organization
from meterhouse.keys.secret import ADMIN_ENVIRONMENT, make
from meterhouse.keys.shown import fields_of_admin_key


@dataclass(frozen=True, slots=True)
class IssuedAdminKey:
    """A new admin key as it is stored, and its text, which is never shown again."""

    value: str = field(repr=False)
    key: StoredAdminKey


class AdminKeyChanges(Changes):
    """Changes admin keys. Every method raises StoreDown when there is no database."""

    async def issue_admin(
        self,
        name: str,
        role: str = Role.OPERATOR,
        expires_in_seconds: int | None = None,
        *,
        organization_id: str | None = None,
        author: Author = COMMAND_LINE,
    ) -> IssuedAdminKey:
        """Issue an admin key.

        Raises:
            Malformed: the name, the role or the expiry is none, or the role and the organization do not go together.
            NotFound: there is no such organization.
        """
        check_name(name)
        if role not in set(Role):
            raise Malformed(f"The role must be one of {', '.join(Role)}.", param="role")
        if (role == Role.OPERATOR) != (organization_id is None):
            message = "An owner's or a reader's key belongs to an organization, and an operator's to none."
            raise Malformed(message, param="organization_id")
        check_expiry(expires_in_seconds)
        if organization_id is not None and await self._catalog.organizations.find_organization(organization_id) is None:
            raise no_organization(organization_id)
        now_ms = self._clock.now_ms()
        secret = make(ADMIN_ENVIRONMENT)
        version, hashed = self._peppers.hash(secret.value)
        stored = StoredAdminKey(
            id=secret.key_id,
            name=name,
            role=str(role),
            hash=hashed,
            pepper_version=version,
            redacted=secret.redacted,
            expires_at_ms=expiry_ms(now_ms, expires_in_seconds),
            created_at_ms=now_ms,
            organization_id=organization_id,
        )
        change = Change(Action.ADMIN_KEY_CREATED, stored.id, organization_id, after=fields_of_admin_key(stored))
        async with self._catalog.changing(organization_id) as catalog:
            await catalog.keys.insert_admin_key(stored)
            await catalog.audit.write(author, change)
        return IssuedAdminKey(secret.value, stored)

    async def list_admin_keys(self, after: str | None = None, limit: int = 100) -> list[StoredAdminKey]:
        """Return a page of admin keys, good or not, oldest first."""
        return await self._catalog.keys.list_admin_keys(after, limit)

    async def page_admin_keys(self, organization_ids: Collection[str | None], page: PageQuery) -> Page[StoredAdminKey]:
        """Return a page of the admin keys that are not revoked; None among the organizations stands for operators."""
        return await self._catalog.keys.page_admin_keys(page, organization_ids, has_revoked=False)

    async def get_admin(self, key_id: str, within: Collection[str | None] | None = None) -> StoredAdminKey:
        """Return an admin key, good or not; raises NotFound, also for one of another organization than ``within``."""
        stored = await self._catalog.keys.find_admin_key(key_id)
        if stored is None or (within is not None and stored.organization_id not in within):
            raise NotFound(f"There is no admin key '{key_id[:64]}'.", param="key_id")
        return stored

    async def revoke_admin(
        self, key_id: str, *, reason: str | None = None, author: Author = COMMAND_LINE
    ) -> StoredAdminKey:
        """Revoke an admin key for good; raises NotFound. A second time changes nothing."""
        old = await self.get_admin(key_id)
        now_ms = self._clock.now_ms()
        async with self._catalog.changing(old.organization_id) as catalog:
            if await catalog.keys.revoke_admin_key(key_id, now_ms):
                before, after = fields_of_admin_key(old), fields_of_admin_key(replace(old, revoked_at_ms=now_ms))
                change = Change(Action.ADMIN_KEY_DELETED, key_id, old.organization_id, before=before, after=after)
                reasoned = change if reason is None else replace(change, after={**after, "reason": reason})
                await catalog.audit.write(author, reasoned)
        return await self.get_admin(key_id)
