"""Providers and routes that operators set while the server runs, in SQL.

Invariant: a credential is here only sealed (``providers.vault``), under a key that is not in the database. Not here:
what a row means, and providers of the environment.
"""

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from meterhouse.db.engine import insert_into, reading, wall_ms, writing
from meterhouse.db.tables import provider_setting, route_setting


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

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def list_providers(self) -> list[StoredProvider]:
        """Return all, by name."""
        async with reading(self._engine) as connection:
            rows = (await connection.execute(sa.select(provider_setting).order_by(provider_setting.c.name))).all()
        return [StoredProvider(*row) for row in rows]

    async def put_provider(self, new: StoredProvider) -> StoredProvider:
        """Write a provider over the one of its name; returns it as it was written."""
        written = StoredProvider(new.name, new.fields, new.sealed_credential, wall_ms())
        values = {
            "name": written.name,
            "fields": written.fields,
            "sealed_credential": written.sealed_credential,
            "updated_at_ms": written.updated_at_ms,
        }
        await self._put(provider_setting, "name", values)
        return written

    async def remove_provider(self, name: str) -> bool:
        """Remove a provider; False: there was none."""
        return await self._remove(sa.delete(provider_setting).where(provider_setting.c.name == name))

    async def list_routes(self) -> list[StoredRoute]:
        """Return all, by model."""
        async with reading(self._engine) as connection:
            rows = (await connection.execute(sa.select(route_setting).order_by(route_setting.c.model))).all()
        return [StoredRoute(*row) for row in rows]

    async def put_route(self, new: StoredRoute) -> StoredRoute:
        """Write a route over the one of its model; returns it as it was written."""
        written = StoredRoute(new.model, new.targets, wall_ms())
        values = {"model": written.model, "targets": written.targets, "updated_at_ms": written.updated_at_ms}
        await self._put(route_setting, "model", values)
        return written

    async def remove_route(self, model: str) -> bool:
        """Remove a route; False: there was none."""
        return await self._remove(sa.delete(route_setting).where(route_setting.c.model == model))

    async def _put(self, table: sa.Table, key: str, values: dict[str, Any]) -> None:
        async with writing(self._engine) as connection:
            statement = insert_into(connection, table).values(values)
            changed = {name: value for name, value in values.items() if name != key}
            await connection.execute(statement.on_conflict_do_update(index_elements=[key], set_=changed))

    async def _remove(self, statement: sa.Delete) -> bool:
        async with writing(self._engine) as connection:
            return (await connection.execute(statement)).rowcount > 0
