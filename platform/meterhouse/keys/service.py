"""Issues, lists, rotates and revokes keys; the same for the command line and for the administration API.

Invariant: the text of a key is returned once, by the call that made it, and kept nowhere. A change is made in SQL
first, or not at all; then the mirror is marked, so that nothing older serves while SQL is away; then every process is
told, this one at once. A mark that cannot be written is tried again by the mirror. Not here: who may do this, and what
a limit's grammar is.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from meterhouse.audit import Action, Change, Fields
from meterhouse.db.keys import StoredKey
from meterhouse.errors import Conflict, Malformed, NotFound
from meterhouse.identity import COMMAND_LINE, Author, KeyScope
from meterhouse.keys.admin_keys import AdminKeyChanges
from meterhouse.keys.changes import DAY_SECONDS, check_expiry, check_name, expiry_ms
from meterhouse.keys.owners import OwnerChanges
from meterhouse.keys.secret import NewSecret, make
from meterhouse.keys.shown import fields_of_key, fields_of_limits
from meterhouse.metering import Limit, Scope

MAX_OVERLAP_SECONDS = 7 * DAY_SECONDS
MOST_LIMITS = 100
"""Of one organization, project or key: all of them are decided in one step."""
TOMBSTONE_MS = 25 * 3_600_000
"""How long after its revocation a key may still have an entry in the mirror, and an hour more."""
MOST_TOMBSTONES = 10_000
"""How many tombstones are renewed; those of the oldest revocations are not."""

_CHANGED = {
    Scope.ORGANIZATION: Action.ORGANIZATION_UPDATED,
    Scope.PROJECT: Action.PROJECT_UPDATED,
    Scope.KEY: Action.API_KEY_UPDATED,
}


@dataclass(frozen=True, slots=True)
class KeyOrder:
    """What a new key shall be. The ids inside ``limits`` do not matter: they become the key's own."""

    name: str
    project_id: str
    expires_in_seconds: int | None = None
    models: frozenset[str] | None = None
    """None: every model."""
    limits: tuple[Limit, ...] = ()
    ip_ranges: tuple[str, ...] = ()
    scopes: frozenset[str] = frozenset(KeyScope)
    service_account: str | None = None


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key as it is stored, and its text, which is never shown again."""

    value: str = field(repr=False)
    key: StoredKey


@dataclass(frozen=True, slots=True)
class LimitOwner:
    """Whose limits are set."""

    id: str
    """Under which they are stored: of a key, the first of its chain of rotations."""
    organization_id: str
    project_id: str | None


class KeyService(OwnerChanges, AdminKeyChanges):
    """Changes organizations, projects, keys and limits. Every method raises StoreDown when there is no database."""

    async def issue(self, order: KeyOrder, *, author: Author = COMMAND_LINE) -> IssuedKey:
        """Issue a key.

        Raises:
            Malformed: a part of the order makes no sense; ``param`` names it.
            NotFound: there is no such project.
            Conflict: the project is archived.
        """
        _check_order(order)
        project = await self.get_project(order.project_id)
        if project.archived_at_ms is not None:
            raise Conflict(f"Project '{project.id}' is archived. Issue the key in another one.", param="project_id")
        now_ms = self._clock.now_ms()
        secret = make(self._environment)
        version, hashed = self._peppers.hash(secret.value)
        stored = StoredKey(
            id=secret.key_id,
            root_key_id=secret.key_id,
            project_id=project.id,
            organization_id=project.organization_id,
            name=order.name,
            hash=hashed,
            pepper_version=version,
            redacted=secret.redacted,
            scopes=order.scopes,
            models=order.models,
            ip_ranges=tuple(str(ip_network(text, strict=False)) for text in order.ip_ranges),
            service_account=order.service_account,
            expires_at_ms=expiry_ms(now_ms, order.expires_in_seconds),
            created_at_ms=now_ms,
            limits=tuple(replace(limit, scope=Scope.KEY, scope_id=secret.key_id) for limit in order.limits),
        )
        async with self._catalog.changing(stored.organization_id) as catalog:
            await catalog.keys.insert_key(stored)
            await catalog.audit.write(author, _change(Action.API_KEY_CREATED, stored, after=fields_of_key(stored)))
        await self._tell({"key_id": stored.id})
        return IssuedKey(secret.value, await self.get(stored.id))

    async def list_keys(
        self, project_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[StoredKey]:
        """Return a page of keys (of one project), good or not, oldest first."""
        return await self._catalog.keys.list_keys(project_id, after, limit)

    async def get(self, key_id: str, *, within: str | None = None) -> StoredKey:
        """Return a key, good or not; raises NotFound, also for one outside of the organization ``within``."""
        stored = await self._catalog.keys.find_key(key_id)
        if stored is None or within not in {None, stored.organization_id}:
            raise NotFound(f"There is no key '{key_id[:64]}'. List the keys to see their ids.", param="key_id")
        return stored

    async def revoke(self, key_id: str, *, author: Author = COMMAND_LINE) -> StoredKey:
        """Revoke a key for good; raises NotFound. A second time changes nothing, but tells every process again."""
        old = await self.get(key_id)
        now_ms = self._clock.now_ms()
        async with self._catalog.changing(old.organization_id) as catalog:
            if await catalog.keys.revoke_key(key_id, now_ms):
                before, after = fields_of_key(old), fields_of_key(replace(old, revoked_at_ms=now_ms))
                await catalog.audit.write(author, _change(Action.API_KEY_DELETED, old, before, after))
        if self._others.mirror is not None:
            self._others.mirror.bury(key_id, now_ms)
        await self._tell({"key_id": key_id})
        return await self.get(key_id)

    async def renew_tombstones(self) -> None:
        """Mirror again which keys were revoked lately: whoever revoked them may have failed to, or Redis lost it."""
        if self._others.mirror is None:
            return
        since_ms = self._clock.now_ms() - TOMBSTONE_MS
        for key_id, at_ms in (await self._catalog.keys.list_revoked(since_ms, MOST_TOMBSTONES)).items():
            self._others.mirror.bury(key_id, at_ms)
        await self._others.mirror.flush()

    async def rotate(
        self, key_id: str, overlap_seconds: int = DAY_SECONDS, *, author: Author = COMMAND_LINE
    ) -> IssuedKey:
        """Issue a successor with the same policy; the old key works for the overlap, and both count as one.

        Raises:
            Malformed: the overlap is not from 0 to 7 days.
            NotFound: there is no such key.
            Conflict: the key is revoked or has expired, or its project is archived.
        """
        if not 0 <= overlap_seconds <= MAX_OVERLAP_SECONDS:
            message = f"The overlap must be 0 to {MAX_OVERLAP_SECONDS} seconds (7 days)."
            raise Malformed(message, param="overlap_seconds")
        old = await self.get(key_id)
        now_ms = self._clock.now_ms()
        is_over = old.project_archived_at_ms is not None or (
            old.expires_at_ms is not None and old.expires_at_ms <= now_ms
        )
        secret = make(self._environment)
        new = self._successor(old, secret, now_ms)
        async with self._catalog.changing(old.organization_id) as catalog:
            if is_over or not await catalog.keys.rotate_key(key_id, new, now_ms + overlap_seconds * 1_000):
                message = f"Key '{key_id}' is not good any more and cannot be rotated. Issue a new key instead."
                raise Conflict(message, param="key_id")
            ending = await catalog.keys.find_key(key_id)
            assert ending is not None
            ended = _change(Action.API_KEY_UPDATED, old, fields_of_key(old), fields_of_key(ending))
            await catalog.audit.write(author, ended)
            await catalog.audit.write(author, _change(Action.API_KEY_CREATED, new, after=fields_of_key(new)))
        await self._tell_owner(Scope.KEY, old.root_key_id)
        await self._tell({"key_id": new.id})
        return IssuedKey(secret.value, await self.get(new.id))

    async def set_limits(
        self, scope: Scope, scope_id: str, limits: Iterable[Limit], *, author: Author = COMMAND_LINE
    ) -> list[Limit]:
        """Replace the limits of an organization, a project or a key (with its rotations).

        Raises:
            Malformed: two limits differ only in their amount.
            NotFound: there is no such organization, project or key.
        """
        owner = await self.get_limit_owner(scope, scope_id)
        own = [replace(limit, scope=scope, scope_id=owner.id) for limit in limits]
        _check_limits(own)
        async with self._catalog.changing(owner.organization_id) as catalog:
            before = await catalog.limits.list_limits(scope, owner.id)
            await catalog.limits.set_limits(scope, owner.id, own)
            change = Change(
                _CHANGED[scope],
                owner.id,
                owner.organization_id,
                owner.project_id,
                before={"limits": fields_of_limits(before)},
                after={"limits": fields_of_limits(own)},
            )
            await catalog.audit.write(author, change)
        await self._tell_owner(scope, owner.id)
        return await self._catalog.limits.list_limits(scope, owner.id)

    async def list_limits(self, scope: Scope, scope_id: str, *, within: str | None = None) -> list[Limit]:
        """Return the limits of an organization, a project or a key itself; raises NotFound."""
        owner = await self.get_limit_owner(scope, scope_id, within=within)
        return await self._catalog.limits.list_limits(scope, owner.id)

    async def get_limit_owner(self, scope: Scope, scope_id: str, *, within: str | None = None) -> LimitOwner:
        """Return whose limits these are; raises NotFound, also for one outside of the organization ``within``."""
        if scope is Scope.KEY:
            key = await self.get(scope_id, within=within)
            return LimitOwner(key.root_key_id, key.organization_id, key.project_id)
        if scope is Scope.PROJECT:
            project = await self.get_project(scope_id, within=within)
            return LimitOwner(project.id, project.organization_id, project.id)
        organization = await self.get_organization(scope_id, within=within)
        return LimitOwner(organization.id, organization.id, None)

    def _successor(self, old: StoredKey, secret: NewSecret, now_ms: int) -> StoredKey:
        version, hashed = self._peppers.hash(secret.value)
        return replace(
            old,
            id=secret.key_id,
            hash=hashed,
            pepper_version=version,
            redacted=secret.redacted,
            created_at_ms=now_ms,
            last_used_at_ms=None,
        )


def _change(action: Action, key: StoredKey, before: Fields | None = None, after: Fields | None = None) -> Change:
    return Change(action, key.id, key.organization_id, key.project_id, before, after)


def _check_order(order: KeyOrder) -> None:
    check_name(order.name)
    check_expiry(order.expires_in_seconds)
    unknown = sorted(order.scopes - set(KeyScope))
    if unknown or not order.scopes:
        raise Malformed(f"A key's scopes are one or more of {', '.join(KeyScope)}.", param="scopes")
    if order.models is not None and not order.models:
        raise Malformed("An empty list of models allows nothing. Name models, or leave the list out.", param="models")
    for text in order.ip_ranges:
        try:
            ip_network(text, strict=False)
        except ValueError as error:
            message = f"'{text}' is no IP range. Write one as an address or as 192.0.2.0/24."
            raise Malformed(message, param="ip_ranges") from error
    _check_limits(order.limits)


def _check_limits(limits: Iterable[Limit]) -> None:
    seen: set[object] = set()
    for limit in limits:
        if len(seen) == MOST_LIMITS:
            raise Malformed(f"At most {MOST_LIMITS} limits bind one owner. Leave some out.", param="limits")
        same = (limit.kind, limit.window, limit.multiple, limit.model)
        if same in seen:
            message = f"Two limits of {limit.kind} per {limit.window} differ only in their amount. Keep one of them."
            raise Malformed(message, param="limits")
        seen.add(same)
