"""Issues, changes, rotates and revokes keys.

Invariant: the text of a key is returned once, by the call that made it, and kept nowhere. Not here: who may do this.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from meterhouse.audit import Action, Change, Fields
from meterhouse.db.catalog import Catalog
from meterhouse.db.keys import KeyQuery, StoredKey
from meterhouse.db.organizations import Project
from meterhouse.db.paging import Page, PageQuery
from meterhouse.errors import Conflict, Malformed
from meterhouse.identity import COMMAND_LINE, Author, KeyScope
from meterhouse.keys.changes import DAY_SECONDS, check_expiry, check_name, expiry_ms
from meterhouse.keys.finder import Finder, no_account
from meterhouse.keys.limit_changes import check_limits
from meterhouse.keys.secret import NewSecret, make
from meterhouse.keys.shown import fields_of_key
from meterhouse.metering import Limit, Scope

MAX_OVERLAP_SECONDS = 7 * DAY_SECONDS
MOST_MODELS = 256
MOST_RANGES = 64
"""A key is read, mirrored and remembered as a whole, and its networks are gone through at each of its requests."""
MAX_MODEL_LENGTH = 256
MAX_RANGE_LENGTH = 64
MAX_SERVICE_ACCOUNT_LENGTH = 64
ACCOUNT_PREFIX = "svcacct"
"""Of a service account's id. A key may also name something else, which is a label and no account."""


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


class KeyIssuer(Finder):
    """Changes keys. Every method raises StoreDown when there is no database."""

    async def issue(self, order: KeyOrder, *, author: Author = COMMAND_LINE) -> IssuedKey:
        """Issue a key; one of a service account ends with it, also when it is deleted meanwhile.

        Raises:
            Malformed: a part of the order makes no sense; ``param`` names it.
            NotFound: there is no such project, or the service account is not in it (any more).
            Conflict: the project is archived.
        """
        secret, new = self._make_key(order, await self.get_project(order.project_id))
        async with self._catalog.changing(new.organization_id) as catalog:
            await _check_account(catalog, new)
            await self._insert_key(catalog, new, author)
        await self._tell({"key_id": new.id})
        return IssuedKey(secret.value, await self.get(new.id))

    async def list_keys(
        self, project_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[StoredKey]:
        """Return a page of keys (of one project), good or not, oldest first."""
        return await self._catalog.keys.list_keys(project_id, after, limit)

    async def page_keys(self, query: KeyQuery, page: PageQuery) -> Page[StoredKey]:
        """Return a page of keys."""
        return await self._catalog.keys.page_keys(query, page)

    async def update_key(
        self,
        key_id: str,
        *,
        scopes: frozenset[str] | None = None,
        expires_in_seconds: int | None = None,
        author: Author = COMMAND_LINE,
    ) -> StoredKey:
        """Give a key other scopes, or another expiry from now on; None leaves what it is.

        Raises:
            Malformed: the scopes or the expiry are none.
            NotFound: there is no such key.
            Conflict: the key is revoked or has expired.
        """
        check_expiry(expires_in_seconds)
        if scopes is not None:
            _check_scopes(scopes)
        organization_id = (await self.get(key_id)).organization_id
        now_ms = self._clock.now_ms()
        async with self._catalog.changing(organization_id) as catalog:
            old = await catalog.keys.find_key(key_id)
            assert old is not None
            if old.revoked_at_ms is not None or (old.expires_at_ms is not None and old.expires_at_ms <= now_ms):
                raise Conflict(f"Key '{key_id}' is not good any more, and stays as it is.", param="key_id")
            expires_at_ms = expiry_ms(now_ms, expires_in_seconds)
            new = replace(
                old,
                scopes=old.scopes if scopes is None else scopes,
                expires_at_ms=old.expires_at_ms if expires_at_ms is None else expires_at_ms,
            )
            await catalog.keys.update_key(new)
            change = change_of_key(Action.API_KEY_UPDATED, new, fields_of_key(old), fields_of_key(new))
            await catalog.audit.write(author, change)
        await self._tell_owner(Scope.KEY, old.root_key_id)
        await self._tell({"key_id": key_id})
        return new

    async def revoke(self, key_id: str, *, reason: str | None = None, author: Author = COMMAND_LINE) -> StoredKey:
        """Revoke a key for good; raises NotFound. A second time changes nothing, but tells every process again."""
        old = await self.get(key_id)
        now_ms = self._clock.now_ms()
        async with self._catalog.changing(old.organization_id) as catalog:
            await self._revoke_key(catalog, replace(old, revoked_at_ms=now_ms), author, reason)
        await self._tell_revoked([key_id], now_ms)
        return await self.get(key_id)

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
        organization_id = (await self.get(key_id)).organization_id
        secret = make(self._environment)
        now_ms = self._clock.now_ms()
        async with self._catalog.changing(organization_id) as catalog:
            # Read here, so that the successor undoes nothing that was changed meanwhile.
            old = await self.within(catalog).get(key_id)
            is_over = old.project_archived_at_ms is not None or (
                old.expires_at_ms is not None and old.expires_at_ms <= now_ms
            )
            new = self._successor(old, secret, now_ms)
            if is_over or not await catalog.keys.rotate_key(key_id, new, now_ms + overlap_seconds * 1_000):
                message = f"Key '{key_id}' is not good any more and cannot be rotated. Issue a new key instead."
                raise Conflict(message, param="key_id")
            ending = await catalog.keys.find_key(key_id)
            assert ending is not None
            ended = change_of_key(Action.API_KEY_UPDATED, old, fields_of_key(old), fields_of_key(ending))
            await catalog.audit.write(author, ended)
            await catalog.audit.write(author, change_of_key(Action.API_KEY_CREATED, new, after=fields_of_key(new)))
        await self._tell_owner(Scope.KEY, old.root_key_id)
        await self._tell({"key_id": new.id})
        return IssuedKey(secret.value, await self.get(new.id))

    def _make_key(self, order: KeyOrder, project: Project) -> tuple[NewSecret, StoredKey]:
        """Make what an order asks for; raises Malformed, and Conflict when the project is archived."""
        _check_order(order)
        if project.archived_at_ms is not None:
            raise Conflict(f"Project '{project.id}' is archived. Issue the key in another one.", param="project_id")
        now_ms = self._clock.now_ms()
        secret = make(self._environment)
        version, hashed = self._peppers.hash(secret.value)
        return secret, StoredKey(
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

    async def _insert_key(self, catalog: Catalog, new: StoredKey, author: Author) -> None:
        await catalog.keys.insert_key(new)
        await catalog.audit.write(author, change_of_key(Action.API_KEY_CREATED, new, after=fields_of_key(new)))

    async def _revoke_key(self, catalog: Catalog, ended: StoredKey, author: Author, reason: str | None = None) -> None:
        """Revoke a key at the moment that it names, and write it down unless it was revoked before."""
        if await catalog.keys.revoke_key(ended.id, ended.revoked_at_ms or self._clock.now_ms()):
            before, after = fields_of_key(replace(ended, revoked_at_ms=None)), fields_of_key(ended)
            shown = after if reason is None else {**after, "reason": reason}
            await catalog.audit.write(author, change_of_key(Action.API_KEY_DELETED, ended, before, shown))

    async def _tell_revoked(self, key_ids: Iterable[str], now_ms: int) -> None:
        """Mark keys as revoked where every process sees it, also while SQL is away, and tell them all."""
        for key_id in key_ids:
            if self._others.mirror is not None:
                self._others.mirror.bury(key_id, now_ms)
            await self._tell({"key_id": key_id})

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


def change_of_key(action: Action, key: StoredKey, before: Fields | None = None, after: Fields | None = None) -> Change:
    """Return a change of a key as it is written down."""
    return Change(action, key.id, key.organization_id, key.project_id, before, after)


async def _check_account(catalog: Catalog, new: StoredKey) -> None:
    account_id = new.service_account or ""
    if not account_id.startswith(f"{ACCOUNT_PREFIX}_"):
        return
    found = (await catalog.accounts.find_accounts([account_id])).get(account_id)
    if found is None or found.project_id != new.project_id or found.deleted_at_ms is not None:
        raise no_account(account_id, "service_account")


def _check_order(order: KeyOrder) -> None:
    check_name(order.name)
    check_expiry(order.expires_in_seconds)
    _check_scopes(order.scopes)
    _check_models(order.models)
    _check_ranges(order.ip_ranges)
    if order.service_account is not None and not 0 < len(order.service_account) <= MAX_SERVICE_ACCOUNT_LENGTH:
        message = f"A service account has 1 to {MAX_SERVICE_ACCOUNT_LENGTH} characters."
        raise Malformed(message, param="service_account")
    check_limits(order.limits)


def _check_models(models: frozenset[str] | None) -> None:
    if models is None:
        return
    if not models:
        raise Malformed("An empty list of models allows nothing. Name models, or leave the list out.", param="models")
    if len(models) > MOST_MODELS:
        raise Malformed(f"A key names at most {MOST_MODELS} models. Restrict its project instead.", param="models")
    if any(len(model) > MAX_MODEL_LENGTH for model in models):
        raise Malformed(f"A model's name has at most {MAX_MODEL_LENGTH} characters.", param="models")


def _check_ranges(ranges: tuple[str, ...]) -> None:
    if len(ranges) > MOST_RANGES:
        message = f"A key names at most {MOST_RANGES} IP ranges. Put neighbours together: 192.0.2.0/24."
        raise Malformed(message, param="ip_ranges")
    for text in ranges:
        if not _is_range(text):
            message = f"'{text[:MAX_RANGE_LENGTH]}' is no IP range. Write one as an address or as 192.0.2.0/24."
            raise Malformed(message, param="ip_ranges")


def _is_range(text: str) -> bool:
    try:
        return len(text) <= MAX_RANGE_LENGTH and ip_network(text, strict=False) is not None
    except ValueError:
        return False


def _check_scopes(scopes: frozenset[str]) -> None:
    if scopes - set(KeyScope) or not scopes:
        raise Malformed(f"A key's scopes are one or more of {', '.join(KeyScope)}.", param="scopes")
