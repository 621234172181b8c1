"""Providers and routes that operators set while the server runs, in SQL.

Invariant: a credential is here only sealed (``providers.vault``), under a key that is not in the database. Not here:
what a row means, and providers of the environment.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from meterhouse.db import postgres
from meterhouse.db.engine import Source, insert_into, reading, wall_ms, writing
from meterhouse.db.tables import provider_setting, route_setting

LOCK = 0x6D68_7375_7070
"""The advisory lock of whoever changes providers ("mhsupp"): a new credential must not be undone by another change."""


@dataclass(frozen=True, slots=True)
class StoredProvider:
    """A provider as it was set; ``fields`` are those of ``providers.provider.ProviderSetting``."""

    name: str
    fields: dict[str, Any]
    sealed_credential: bytes | None = field(default=None, repr=False)
    updated_at_ms: int = 0

    @property
    def place(self) -> tuple[str | None, ...]:
        """Where its credential may be sent: its name, and all that its address is made of."""
        return (self.name, *(self.fields.get(part) for part in ("kind", "base_url", "region", "workspace")))


@dataclass(frozen=True, slots=True)
class StoredRoute:
    """A route as it was set; ``targets`` are those of ``providers.provider.RouteTarget``, one dictionary for each."""

    model: str
    targets: list[dict[str, Any]]
    updated_at_ms: int = 0


class SupplyStore:
    """Reads and writes both. Every method raises StoreDown when there is no database."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def list_providers(self) -> list[StoredProvider]:
        """Return all, by name."""
        async with reading(self._source) as connection:
            return await _providers(connection)

    async def put_provider(self, change: Callable[[Mapping[str, StoredProvider]], StoredProvider]) -> StoredProvider:
        """Write a provider over the one of its name; returns it as it was written.

        Args:
            change: gets all that there are, by name, and says what to write; nobody changes one in between. What it
                raises leaves here, and nothing is written.
        """
        async with self._changing_providers() as connection:
            known = {row.name: row for row in await _providers(connection)}
            written = replace(change(known), updated_at_ms=wall_ms())
            values = {
                "name": written.name,
                "fields": written.fields,
                "sealed_credential": written.sealed_credential,
                "updated_at_ms": written.updated_at_ms,
            }
            await _put(connection, provider_setting, "name", values)
        return written

    async def remove_provider(self, name: str) -> bool:
        """Remove a provider; False: there was none."""
        async with self._changing_providers() as connection:
            return await _remove(connection, sa.delete(provider_setting).where(provider_setting.c.name == name))

    async def list_routes(self) -> list[StoredRoute]:
        """Return all, by model."""
        async with reading(self._source) as connection:
            rows = (await connection.execute(sa.select(route_setting).order_by(route_setting.c.model))).all()
        return [StoredRoute(*row) for row in rows]

    async def put_route(self, new: StoredRoute) -> StoredRoute:
        """Write a route over the one of its model; returns it as it was written."""
        written = StoredRoute(new.model, new.targets, wall_ms())
        values = {"model": written.model, "targets": written.targets, "updated_at_ms": written.updated_at_ms}
        async with writing(self._source) as connection:
            await _put(connection, route_setting, "model", values)
        return written

    async def remove_route(self, model: str) -> bool:
        """Remove a route; False: there was none."""
        async with writing(self._source) as connection:
            return await _remove(connection, sa.delete(route_setting).where(route_setting.c.model == model))

    @asynccontextmanager
    async def _changing_providers(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that no other change of a provider overlaps; SQLite has one writer at a time anyway."""
        async with writing(self._source) as connection:
            if postgres.is_postgres(connection):
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
            yield connection


async def _providers(connection: AsyncConnection) -> list[StoredProvider]:
    rows = (await connection.execute(sa.select(provider_setting).order_by(provider_setting.c.name))).all()
    return [StoredProvider(*row) for row in rows]


async def _put(connection: AsyncConnection, table: sa.Table, key: str, values: dict[str, Any]) -> None:
    statement = insert_into(connection, table).values(values)
    changed = {name: value for name, value in values.items() if name != key}
    await connection.execute(statement.on_conflict_do_update(index_elements=[key], set_=changed))


async def _remove(connection: AsyncConnection, statement: sa.Delete) -> bool:
    return (await connection.execute(statement)).rowcount > 0
