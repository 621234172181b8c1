"""Keys and admin keys, in SQL: their hashes, what they may do, and when they were last used.

Invariant: a key is found by its public id alone; no part of a secret is ever in a row or in a statement. Not here:
whether a key is good (``keys.keyring``), and how secrets are made and hashed (``keys.secret``).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from meterhouse.db.credits import load_credit_limits
from meterhouse.db.engine import Source, read_again, reading, writing
from meterhouse.db.limits import Owner, insert_limits, load_limits
from meterhouse.db.paging import Page, PageQuery, fetch_page
from meterhouse.db.tables import admin_key, key, project
from meterhouse.metering import Limit, Scope


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key with its project and organization, and every limit that binds it."""

    id: str
    root_key_id: str
    """The first key of a chain of rotations, under which limits are stored and use is counted."""
    project_id: str
    organization_id: str
    name: str
    hash: str = field(repr=False)
    pepper_version: int
    redacted: str
    scopes: frozenset[str]
    models: frozenset[str] | None
    """None: every model."""
    ip_ranges: tuple[str, ...]
    """Networks that it may come from, as CIDR; empty: from anywhere."""
    service_account: str | None
    expires_at_ms: int | None
    created_at_ms: int
    revoked_at_ms: int | None = None
    last_used_at_ms: int | None = None
    project_archived_at_ms: int | None = None
    limits: tuple[Limit, ...] = ()
    """Of the key, its project and its organization, in this order, then the organization's credit."""
    project_model_mode: str | None = None
    """``allow_list`` or ``deny_list`` of ``project_model_ids``; None: its project may use every model."""
    project_model_ids: tuple[str, ...] = ()

    @property
    def owners(self) -> tuple[Owner, Owner, Owner]:
        """Whose limits bind the key."""
        return (
            (Scope.KEY, self.root_key_id),
            (Scope.PROJECT, self.project_id),
            (Scope.ORGANIZATION, self.organization_id),
        )


@dataclass(frozen=True, slots=True)
class StoredAdminKey:
    """A key of an administrator."""

    id: str
    name: str
    role: str
    hash: str = field(repr=False)
    pepper_version: int
    redacted: str
    expires_at_ms: int | None
    created_at_ms: int
    revoked_at_ms: int | None = None
    last_used_at_ms: int | None = None
    organization_id: str | None = None
    """The one that an owner or a reader is bound to; None: an operator's key."""


@dataclass(frozen=True, slots=True)
class KeyQuery:
    """Which keys; None is no condition."""

    organization_id: str | None = None
    project_id: str | None = None
    service_account: str | None = None
    has_revoked: bool = True


class KeyStore:
    """Reads and writes keys. Every method is one transaction and raises StoreDown when there is no database."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def insert_key(self, new: StoredKey) -> None:
        """Write a new key together with its own limits; its project must exist."""
        async with writing(self._source) as connection:
            await connection.execute(sa.insert(key).values(_values_of(new)))
            own = [limit for limit in new.limits if limit.scope is Scope.KEY]
            await insert_limits(connection, (Scope.KEY, new.root_key_id), own)

    async def find_key(self, key_id: str) -> StoredKey | None:
        """Return a key, good or not, with everything that decides about it; None when there is none."""
        async with reading(self._source) as connection:
            found = await _load(connection, _select_keys().where(key.c.id == key_id))
        return found[0] if found else None

    async def find_keys(self, key_ids: Collection[str]) -> dict[str, StoredKey]:
        """Return those of some keys that there are, by id, with everything that decides about them."""
        found = await read_again(self._source, partial(_load, statement=_select_keys().where(key.c.id.in_(key_ids))))
        return {stored.id: stored for stored in found}

    async def list_keys(
        self, project_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[StoredKey]:
        """Return a page of keys (of one project), oldest first, after the id of the last one seen."""
        return list((await self.page_keys(KeyQuery(project_id=project_id), PageQuery(limit, after))).rows)

    async def page_keys(self, query: KeyQuery, page: PageQuery) -> Page[StoredKey]:
        """Return a page of keys, with everything that decides about them."""
        owned: list[sa.ColumnElement[bool]] = []
        if query.organization_id is not None:
            mine = sa.select(project.c.id).where(project.c.organization_id == query.organization_id)
            owned.append(key.c.project_id.in_(mine))
        if query.project_id is not None:
            owned.append(key.c.project_id == query.project_id)
        statement = _select_keys().where(*owned)
        if query.service_account is not None:
            statement = statement.where(key.c.service_account == query.service_account)
        if not query.has_revoked:
            statement = statement.where(key.c.revoked_at_ms.is_(None))
        async with reading(self._source) as connection:
            found = await fetch_page(connection, statement, key, page, owned)
            return Page(await _complete(connection, found.rows), found.has_more)

    async def revoke_key(self, key_id: str, at_ms: int) -> bool:
        """Revoke a key for good; False when there is none or it is revoked already."""
        return await self._revoke(key, key_id, at_ms)

    async def update_key(self, changed: StoredKey) -> bool:
        """Write a key's scopes and expiry; False when there is none or it is revoked."""
        values = {"scopes": sorted(changed.scopes), "expires_at_ms": changed.expires_at_ms}
        statement = sa.update(key).where(key.c.id == changed.id, key.c.revoked_at_ms.is_(None)).values(values)
        async with writing(self._source) as connection:
            return (await connection.execute(statement)).rowcount > 0

    async def list_revoked(self, since_ms: int, limit: int) -> dict[str, int]:
        """Return when keys were revoked, by id: the last ones, from a time on."""
        statement = sa.select(key.c.id, key.c.revoked_at_ms).where(key.c.revoked_at_ms >= since_ms)
        async with reading(self._source) as connection:
            rows = await connection.execute(statement.order_by(key.c.revoked_at_ms.desc()).limit(limit))
            return {row.id: row.revoked_at_ms for row in rows}

    async def rotate_key(self, old_key_id: str, new: StoredKey, old_expires_at_ms: int) -> bool:
        """Write a key's successor and let the old key end at a time, unless it ends sooner.

        False, and nothing is written, when the old key is revoked or not there. The successor has the old key's
        ``root_key_id`` and so its limits; those of ``new`` are not written.
        """
        sooner = sa.case((key.c.expires_at_ms < old_expires_at_ms, key.c.expires_at_ms), else_=old_expires_at_ms)
        ending = (
            sa.update(key).where(key.c.id == old_key_id, key.c.revoked_at_ms.is_(None)).values(expires_at_ms=sooner)
        )
        async with writing(self._source) as connection:
            if (await connection.execute(ending)).rowcount == 0:
                return False
            await connection.execute(sa.insert(key).values(_values_of(new)))
        return True

    async def touch_last_used(self, uses: Mapping[str, int]) -> None:
        """Note when keys were last used, by id in Unix milliseconds; an older time changes nothing."""
        await self._touch(key, uses)

    async def insert_admin_key(self, new: StoredAdminKey) -> None:
        """Write a new admin key."""
        values = {name: getattr(new, name) for name in StoredAdminKey.__slots__}
        async with writing(self._source) as connection:
            await connection.execute(sa.insert(admin_key).values(values))

    async def find_admin_key(self, key_id: str) -> StoredAdminKey | None:
        """Return an admin key, good or not; None when there is none."""
        statement = sa.select(admin_key).where(admin_key.c.id == key_id)
        async with reading(self._source) as connection:
            row = (await connection.execute(statement)).mappings().first()
        return None if row is None else StoredAdminKey(**row)

    async def list_admin_keys(self, after: str | None = None, limit: int = 100) -> list[StoredAdminKey]:
        """Return a page of admin keys, oldest first."""
        return list((await self.page_admin_keys(PageQuery(limit, after))).rows)

    async def page_admin_keys(
        self, query: PageQuery, organization_ids: Collection[str | None] | None = None, *, has_revoked: bool = True
    ) -> Page[StoredAdminKey]:
        """Return a page of admin keys; ``organization_ids`` are whose, and None among them stands for operators."""
        owned: list[sa.ColumnElement[bool]] = []
        if organization_ids is not None:
            mine = admin_key.c.organization_id.in_([one for one in organization_ids if one is not None])
            is_operators = admin_key.c.organization_id.is_(None)
            owned = [sa.or_(mine, is_operators) if None in organization_ids else mine]
        statement = sa.select(admin_key).where(*owned)
        if not has_revoked:
            statement = statement.where(admin_key.c.revoked_at_ms.is_(None))
        async with reading(self._source) as connection:
            found = await fetch_page(connection, statement, admin_key, query, owned)
        return found.map(lambda row: StoredAdminKey(**row))

    async def revoke_admin_key(self, key_id: str, at_ms: int) -> bool:
        """Revoke an admin key for good; False when there is none or it is revoked already."""
        return await self._revoke(admin_key, key_id, at_ms)

    async def touch_admin_last_used(self, uses: Mapping[str, int]) -> None:
        """Note when admin keys were last used; an older time changes nothing."""
        await self._touch(admin_key, uses)

    async def _revoke(self, table: sa.Table, key_id: str, at_ms: int) -> bool:
        statement = sa.update(table).where(table.c.id == key_id, table.c.revoked_at_ms.is_(None))
        async with writing(self._source) as connection:
            return (await connection.execute(statement.values(revoked_at_ms=at_ms))).rowcount > 0

    async def _touch(self, table: sa.Table, uses: Mapping[str, int]) -> None:
        if not uses:
            return
        used_at_ms = sa.bindparam("used_at_ms", type_=sa.BigInteger)
        is_older = sa.or_(table.c.last_used_at_ms.is_(None), table.c.last_used_at_ms < used_at_ms)
        statement = sa.update(table).where(table.c.id == sa.bindparam("key_id"), is_older)
        rows = [{"key_id": key_id, "used_at_ms": at_ms} for key_id, at_ms in sorted(uses.items())]
        async with writing(self._source) as connection:
            await connection.execute(statement.values(last_used_at_ms=used_at_ms), rows)


def _select_keys() -> sa.Select[*tuple[object, ...]]:
    return sa.select(
        key,
        project.c.organization_id,
        project.c.archived_at_ms.label("project_archived_at_ms"),
        project.c.model_mode.label("project_model_mode"),
        project.c.model_ids.label("project_model_ids"),
    ).select_from(key.join(project, key.c.project_id == project.c.id))


async def _load(connection: AsyncConnection, statement: sa.Select[*tuple[object, ...]]) -> list[StoredKey]:
    return await _complete(connection, (await connection.execute(statement)).mappings().all())


async def _complete(connection: AsyncConnection, rows: Sequence[sa.RowMapping]) -> list[StoredKey]:
    keys = [_key_of(row) for row in rows]
    limits = await load_limits(connection, {owner for stored in keys for owner in stored.owners})
    credit = await load_credit_limits(connection, {stored.organization_id for stored in keys})
    return [
        replace(stored, limits=(*_limits_of(stored, limits), *credit.get(stored.organization_id, ())))
        for stored in keys
    ]


def _limits_of(stored: StoredKey, limits: Mapping[Owner, Sequence[Limit]]) -> tuple[Limit, ...]:
    return tuple(limit for owner in stored.owners for limit in limits.get(owner, ()))


def _key_of(row: sa.RowMapping) -> StoredKey:
    values = dict(row)
    values["scopes"] = frozenset(values["scopes"])
    values["models"] = None if values["models"] is None else frozenset(values["models"])
    values["ip_ranges"] = tuple(values["ip_ranges"])
    values["project_model_ids"] = tuple(values["project_model_ids"] or ())
    return StoredKey(**values)


def _values_of(stored: StoredKey) -> dict[str, object]:
    values = {name: getattr(stored, name) for name in key.c.keys()}  # noqa: SIM118 - columns are iterated by keys()
    values["scopes"] = sorted(stored.scopes)
    values["models"] = None if stored.models is None else sorted(stored.models)
    values["ip_ranges"] = list(stored.ip_ranges)
    return values
