"""Issues, lists, rotates and revokes keys; the same for the command line and for the administration API.

Invariant: the text of a key is returned once, by the call that made it, and kept nowhere. A change is made in SQL
first, or not at all; then the mirror is marked, so that nothing older serves while SQL is away; then every process is
told, this one at once. A mark that cannot be written is tried again by the mirror. Not here: who may do this, and what
a limit's grammar is.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from meterhouse.db.catalog import Catalog
from meterhouse.db.keys import StoredAdminKey, StoredKey
from meterhouse.db.organizations import Organization, Project
from meterhouse.errors import Conflict, Malformed, NotFound
from meterhouse.identity import KeyScope
from meterhouse.ids import new_id
from meterhouse.keys.keyring import Keyring
from meterhouse.keys.reader import Mirror
from meterhouse.keys.secret import ADMIN_ENVIRONMENT, Peppers, make
from meterhouse.metering import Clock, Limit, Scope

DAY_SECONDS = 86_400
MAX_OVERLAP_SECONDS = 7 * DAY_SECONDS
MAX_NAME_LENGTH = 200
MAX_EXPIRY_SECONDS = 100 * 365 * DAY_SECONDS
MOST_LIMITS = 100
"""Of one organization, project or key: all of them are decided in one step."""
ROLES = ("operator", "owner", "reader")
TOMBSTONE_MS = 25 * 3_600_000
"""How long after its revocation a key may still have an entry in the mirror, and an hour more."""
MOST_TOMBSTONES = 10_000
"""How many tombstones are renewed; those of the oldest revocations are not."""
NOTICE = "key"
"""The kind of the notices that are published; ``Keyring.hear`` takes in what they say."""

Publish = Callable[[str, Mapping[str, str]], Awaitable[object]]
"""Tells every process of something: its kind, and what it says. Does not raise: who misses it learns of it later."""


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
class IssuedAdminKey:
    """A new admin key as it is stored, and its text, which is never shown again."""

    value: str = field(repr=False)
    key: StoredAdminKey


@dataclass(frozen=True, slots=True)
class Others:
    """How other processes learn of a change; without these, only by reading SQL again."""

    mirror: Mirror | None = None
    publish: Publish | None = None


class KeyService:
    """Changes organizations, projects, keys and limits. Every method raises StoreDown when there is no database."""

    def __init__(
        self,
        catalog: Catalog,
        peppers: Peppers,
        clock: Clock,
        *,
        environment: str,
        keyring: Keyring | None = None,
        others: Others | None = None,
    ) -> None:
        """Take the stores, and the environment that tenants' keys carry in their text (``dev``, ``live``).

        Raises:
            ValueError: the environment is ``admin``.
        """
        if environment == ADMIN_ENVIRONMENT:
            raise ValueError("the environment of tenants' keys cannot be 'admin'")
        self._catalog = catalog
        self._peppers = peppers
        self._clock = clock
        self._environment = environment
        self._keyring = keyring
        self._others = others or Others()
        self.on_organization: list[Callable[[str], Awaitable[None]]] = []
        """Called with the id of each organization that was made here."""

    async def create_organization(self, name: str) -> Organization:
        """Make an organization; raises Malformed for an empty or too long name."""
        _check_name(name)
        new = Organization(id=new_id("org"), name=name, created_at_ms=self._clock.now_ms())
        await self._catalog.organizations.insert_organization(new)
        for welcome in self.on_organization:
            await welcome(new.id)
        return new

    async def create_project(self, organization_id: str, name: str) -> Project:
        """Make a project; raises NotFound when there is no such organization, Malformed for a bad name."""
        _check_name(name)
        if await self._catalog.organizations.find_organization(organization_id) is None:
            raise NotFound(f"There is no organization '{organization_id}'.", param="organization_id")
        new = Project(new_id("proj"), organization_id, name, self._clock.now_ms())
        await self._catalog.organizations.insert_project(new)
        return new

    async def archive_project(self, project_id: str) -> Project:
        """Archive a project: its keys are refused from now on. Raises NotFound; archiving twice changes nothing."""
        await self._catalog.organizations.archive_project(project_id, self._clock.now_ms())
        await self.note_limits_changed(Scope.PROJECT, project_id)
        return await self._get_project(project_id)

    async def issue(self, order: KeyOrder) -> IssuedKey:
        """Issue a key.

        Raises:
            Malformed: a part of the order makes no sense; ``param`` names it.
            NotFound: there is no such project.
            Conflict: the project is archived.
        """
        _check_order(order)
        project = await self._get_project(order.project_id)
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
            expires_at_ms=_expiry(now_ms, order.expires_in_seconds),
            created_at_ms=now_ms,
            limits=tuple(replace(limit, scope=Scope.KEY, scope_id=secret.key_id) for limit in order.limits),
        )
        await self._catalog.keys.insert_key(stored)
        await self._tell({"key_id": stored.id})
        return IssuedKey(secret.value, await self.get(stored.id))

    async def list_keys(
        self, project_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[StoredKey]:
        """Return a page of keys (of one project), good or not, oldest first."""
        return await self._catalog.keys.list_keys(project_id, after, limit)

    async def get(self, key_id: str) -> StoredKey:
        """Return a key, good or not; raises NotFound."""
        stored = await self._catalog.keys.find_key(key_id)
        if stored is None:
            raise NotFound(f"There is no key '{key_id}'. List the keys to see their ids.", param="key_id")
        return stored

    async def revoke(self, key_id: str) -> StoredKey:
        """Revoke a key for good; raises NotFound. A second time changes nothing, but tells every process again."""
        now_ms = self._clock.now_ms()
        if not await self._catalog.keys.revoke_key(key_id, now_ms):
            await self.get(key_id)
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

    async def rotate(self, key_id: str, overlap_seconds: int = DAY_SECONDS) -> IssuedKey:
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
        version, hashed = self._peppers.hash(secret.value)
        new = replace(
            old,
            id=secret.key_id,
            hash=hashed,
            pepper_version=version,
            redacted=secret.redacted,
            created_at_ms=now_ms,
            last_used_at_ms=None,
        )
        ends_at_ms = now_ms + overlap_seconds * 1_000
        if is_over or not await self._catalog.keys.rotate_key(key_id, new, ends_at_ms):
            message = f"Key '{key_id}' is not good any more and cannot be rotated. Issue a new key instead."
            raise Conflict(message, param="key_id")
        await self.note_limits_changed(Scope.KEY, old.root_key_id)
        await self._tell({"key_id": new.id})
        return IssuedKey(secret.value, await self.get(new.id))

    async def set_limits(self, scope: Scope, scope_id: str, limits: Iterable[Limit]) -> list[Limit]:
        """Replace the limits of an organization, a project or a key (with its rotations).

        Raises:
            Malformed: two limits differ only in their amount.
            NotFound: there is no such organization, project or key.
        """
        owner_id = await self._get_owner(scope, scope_id)
        own = [replace(limit, scope=scope, scope_id=owner_id) for limit in limits]
        _check_limits(own)
        await self._catalog.limits.set_limits(scope, owner_id, own)
        await self.note_limits_changed(scope, owner_id)
        return await self._catalog.limits.list_limits(scope, owner_id)

    async def list_limits(self, scope: Scope, scope_id: str) -> list[Limit]:
        """Return the limits of an organization, a project or a key itself; raises NotFound."""
        return await self._catalog.limits.list_limits(scope, await self._get_owner(scope, scope_id))

    async def issue_admin(
        self, name: str, role: str = "operator", expires_in_seconds: int | None = None
    ) -> IssuedAdminKey:
        """Issue an admin key; raises Malformed for a bad name, role or expiry."""
        _check_name(name)
        if role not in ROLES:
            raise Malformed(f"The role must be one of {', '.join(ROLES)}.", param="role")
        _check_expiry(expires_in_seconds)
        now_ms = self._clock.now_ms()
        secret = make(ADMIN_ENVIRONMENT)
        version, hashed = self._peppers.hash(secret.value)
        stored = StoredAdminKey(
            id=secret.key_id,
            name=name,
            role=role,
            hash=hashed,
            pepper_version=version,
            redacted=secret.redacted,
            expires_at_ms=_expiry(now_ms, expires_in_seconds),
            created_at_ms=now_ms,
        )
        await self._catalog.keys.insert_admin_key(stored)
        return IssuedAdminKey(secret.value, stored)

    async def list_admin_keys(self, after: str | None = None, limit: int = 100) -> list[StoredAdminKey]:
        """Return a page of admin keys, good or not, oldest first."""
        return await self._catalog.keys.list_admin_keys(after, limit)

    async def revoke_admin(self, key_id: str) -> StoredAdminKey:
        """Revoke an admin key for good; raises NotFound. A second time changes nothing."""
        await self._catalog.keys.revoke_admin_key(key_id, self._clock.now_ms())
        stored = await self._catalog.keys.find_admin_key(key_id)
        if stored is None:
            raise NotFound(f"There is no admin key '{key_id}'.", param="key_id")
        return stored

    async def _get_project(self, project_id: str) -> Project:
        project = await self._catalog.organizations.find_project(project_id)
        if project is None:
            raise NotFound(
                f"There is no project '{project_id}'. List the projects to see their ids.", param="project_id"
            )
        return project

    async def _get_owner(self, scope: Scope, scope_id: str) -> str:
        """Return the id under which the limits of a scope are stored."""
        if scope is Scope.KEY:
            return (await self.get(scope_id)).root_key_id
        if scope is Scope.PROJECT:
            return (await self._get_project(scope_id)).id
        if await self._catalog.organizations.find_organization(scope_id) is None:
            raise NotFound(f"There is no organization '{scope_id}'.", param="organization_id")
        return scope_id

    async def note_limits_changed(self, scope: Scope, scope_id: str) -> None:
        """Tell every process that something changed that decides about an organization's, project's or chain's keys."""
        if self._others.mirror is not None:
            self._others.mirror.note_change(scope, scope_id, self._clock.now_ms())
        await self._tell({"scope": scope.value, "scope_id": scope_id})

    async def _tell(self, notice: Mapping[str, str]) -> None:
        if self._keyring is not None:
            self._keyring.hear(notice)
        if self._others.mirror is not None:
            await self._others.mirror.flush()
        if self._others.publish is not None:
            await self._others.publish(NOTICE, notice)


def _check_order(order: KeyOrder) -> None:
    _check_name(order.name)
    _check_expiry(order.expires_in_seconds)
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


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > MAX_NAME_LENGTH:
        raise Malformed(f"A name has 1 to {MAX_NAME_LENGTH} characters.", param="name")


def _check_expiry(expires_in_seconds: int | None) -> None:
    if expires_in_seconds is not None and not 0 < expires_in_seconds <= MAX_EXPIRY_SECONDS:
        raise Malformed("An expiry lies from one second to 100 years ahead.", param="expires_in_seconds")


def _expiry(now_ms: int, expires_in_seconds: int | None) -> int | None:
    return None if expires_in_seconds is None else now_ms + expires_in_seconds * 1_000
