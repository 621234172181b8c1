"""Prices in SQL (insert-only), and the small table of named values that the platform keeps about itself.

Not here: which price applies (``money``, ``providers``).
"""

from collections.abc import Collection, Sequence

import msgspec
import sqlalchemy as sa

from meterhouse.db.engine import Source, insert_into, reading, wall_ms, writing
from meterhouse.db.tables import meta, price
from meterhouse.money import Component, Price


class PriceStore:
    """Reads and adds prices. Every method raises StoreDown when there is no database."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def list_prices(self) -> list[Price]:
        """Return every price that was ever set, by provider, model, when it begins and when it was set."""
        statement = sa.select(price).order_by(
            *(price.c.provider, price.c.model, price.c.effective_from_ms, price.c.created_at_ms, price.c.id)
        )
        async with reading(self._source) as connection:
            return [_price_of(row) for row in (await connection.execute(statement)).mappings()]

    async def find_prices(self, price_ids: Collection[str]) -> list[Price]:
        """Return those of some prices that there are."""
        statement = sa.select(price).where(price.c.id.in_(sorted(price_ids))).order_by(price.c.id)
        async with reading(self._source) as connection:
            return [_price_of(row) for row in (await connection.execute(statement)).mappings()]

    async def insert_prices(self, prices: Sequence[Price]) -> int:
        """Add the prices whose ids are new, and return how many these are; a price is never changed.

        They are noted as set after all that are there, whatever this host's clock says: the last one set holds.
        """
        if not prices:
            return 0
        async with writing(self._source) as connection:
            newest_ms = await connection.scalar(sa.select(sa.func.max(price.c.created_at_ms)))
            created_at_ms = max(wall_ms(), (newest_ms or 0) + 1)
            rows = [
                {
                    "id": new.id,
                    "provider": new.provider,
                    "model": new.model,
                    "components": msgspec.to_builtins(new.components),
                    "effective_from_ms": new.effective_from_ms,
                    "source": new.source,
                    "created_at_ms": created_at_ms,
                }
                for new in prices
            ]
            statement = insert_into(connection, price).on_conflict_do_nothing(index_elements=["id"])
            return len((await connection.execute(statement.returning(price.c.id), rows)).all())


class MetaStore:
    """Named values that the platform keeps about itself, such as what was seeded."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def find_value(self, name: str) -> str | None:
        """Return a value, None when it was never put."""
        async with reading(self._source) as connection:
            value: str | None = await connection.scalar(sa.select(meta.c.value).where(meta.c.name == name))
        return value

    async def put_value(self, name: str, value: str) -> None:
        """Write a value over whatever was there."""
        async with writing(self._source) as connection:
            statement = insert_into(connection, meta).values(name=name, value=value)
            await connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": value}))


def _price_of(row: sa.RowMapping) -> Price:
    return Price(
        id=row["id"],
        provider=row["provider"],
        model=row["model"],
        components=msgspec.convert(row["components"], tuple[Component, ...]),
        effective_from_ms=row["effective_from_ms"],
        source=row["source"],
    )
