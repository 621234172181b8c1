"""Compares the hourly projection with the records, and repairs it by what differs.

The difference of a group is taken in one snapshot, in which every record and its share of the projection are either
both or neither; adding it is right whatever shippers add meanwhile. So nothing is locked but the rows that are wrong.

Invariant: after a repair with nothing shipped the projection is what the records say. Not here: what a record adds
(``db.projection``).
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from meterhouse.db.engine import insert_rows, reading, write_again
from meterhouse.db.projection import record_key, record_measure
from meterhouse.db.tables import HOUR_KEY_COLUMNS, MEASURE_COLUMNS, usage_hour, usage_record
from meterhouse.errors import Conflict

LOCK = 0x6D68_6275_696C
"""The advisory lock of whoever repairs ("mhbuil"): a difference must not be added twice."""
_ADD = f"ON CONFLICT ({', '.join(HOUR_KEY_COLUMNS)}) DO UPDATE SET " + ", ".join(
    f"{name} = usage_hour.{name} + excluded.{name}" for name in MEASURE_COLUMNS
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A group of the projection that disagrees with the records: by how much they are above it."""

    group: Mapping[str, str | int]
    measures: Mapping[str, int]


class Projection:
    """The hourly projection as a whole. Every method raises StoreDown when there is no database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def compare(self) -> AsyncIterator[Difference]:
        """Give every group that differs from the records, one organization after another."""
        async for organization_id in self._organizations():
            async with reading(self._engine) as connection:
                found = await list_differences(connection, organization_id)
            for difference in found:
                yield difference

    async def rebuild(self) -> AsyncIterator[Difference]:
        """Make the projection what the records say, a transaction for each organization; gives what was changed.

        A group of which there is no record becomes a row of zeroes: nothing is ever deleted.

        Raises:
            Conflict: Somebody else is rebuilding.
        """
        async for organization_id in self._organizations():

            async def repair(connection: AsyncConnection, organization_id: str = organization_id) -> list[Difference]:
                if not await _try_lock(connection):
                    raise Conflict("The projection is being rebuilt by somebody else just now.")
                found = await list_differences(connection, organization_id)
                rows = [
                    (
                        *(difference.group[name] for name in HOUR_KEY_COLUMNS),
                        *(difference.measures.get(name, 0) for name in MEASURE_COLUMNS),
                    )
                    for difference in found
                ]
                await insert_rows(connection, usage_hour, (*HOUR_KEY_COLUMNS, *MEASURE_COLUMNS), rows, _ADD)
                return found

            for difference in await write_again(self._engine, repair):
                yield difference

    async def _organizations(self) -> AsyncIterator[str]:
        """Give every organization that has a record or a row of the projection, in their order."""
        last = ""
        while True:
            async with reading(self._engine) as connection:
                found = [
                    await connection.scalar(
                        sa.select(sa.func.min(table.c.organization_id)).where(table.c.organization_id > last)
                    )
                    for table in (usage_record, usage_hour)
                ]
            behind = [one for one in found if one is not None]
            if not behind:
                return
            last = min(behind)
            yield last


async def list_differences(connection: AsyncConnection, organization_id: str | None = None) -> list[Difference]:
    """Compare the projection of an organization, or of all, with the records; none when all is well."""
    from_records = sa.select(
        *(record_key(name).label(name) for name in HOUR_KEY_COLUMNS),
        *(record_measure(name).label(name) for name in MEASURE_COLUMNS),
    )
    from_hours = sa.select(
        *(usage_hour.c[name] for name in HOUR_KEY_COLUMNS),
        *((-usage_hour.c[name]).label(name) for name in MEASURE_COLUMNS),
    )
    if organization_id is not None:
        from_records = from_records.where(usage_record.c.organization_id == organization_id)
        from_hours = from_hours.where(usage_hour.c.organization_id == organization_id)
    both = sa.union_all(from_records, from_hours).subquery()
    sums = {name: sa.func.sum(both.c[name]) for name in MEASURE_COLUMNS}
    keys = [both.c[name] for name in HOUR_KEY_COLUMNS]
    statement = (
        sa.select(*keys, *(total.label(name) for name, total in sums.items()))
        .group_by(*keys)
        .having(sa.or_(*(total != 0 for total in sums.values())))
    )
    found = [
        Difference(
            group={name: row[name] for name in HOUR_KEY_COLUMNS},
            measures={name: int(row[name]) for name in MEASURE_COLUMNS if row[name]},
        )
        for row in (await connection.execute(statement)).mappings()
    ]
    # The order in which shippers write, by bytes and not by the database's collation, so that nobody deadlocks.
    return sorted(found, key=lambda difference: tuple(difference.group[name] for name in HOUR_KEY_COLUMNS))


async def _try_lock(connection: AsyncConnection) -> bool:
    if connection.dialect.name != "postgresql":
        return True
    return bool(await connection.scalar(sa.select(sa.func.pg_try_advisory_xact_lock(LOCK))))
