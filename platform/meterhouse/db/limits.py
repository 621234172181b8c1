"""The limits that operators set, in SQL: rows of ``limit_rule``, always replaced a scope at a time.

Invariant: the limits of a key are stored under the first key of its chain of rotations. Not here: which pairs of
kind and window make sense, and where a limit stands (``limits``).
"""

from collections.abc import Collection, Iterable

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from meterhouse.db.engine import Source, reading, writing
from meterhouse.db.tables import limit_rule
from meterhouse.ids import new_id
from meterhouse.metering import Kind, Limit, Scope, Window

Owner = tuple[Scope, str]
"""A scope and the id of whose limit it is."""

_EVERY_MODEL = ""


class LimitStore:
    """Reads and writes limits. Every method raises StoreDown when there is no database."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def set_limits(self, scope: Scope, scope_id: str, limits: Iterable[Limit]) -> None:
        """Replace all limits of one organization, project or chain of keys; none removes them.

        Two limits that differ only in their amount are an IntegrityError: the caller says which one it means.
        """
        async with writing(self._source) as connection:
            await connection.execute(
                sa.delete(limit_rule).where(limit_rule.c.scope == scope.value, limit_rule.c.scope_id == scope_id)
            )
            await insert_limits(connection, (scope, scope_id), limits)

    async def list_limits(self, scope: Scope, scope_id: str) -> list[Limit]:
        """Return the limits of one organization, project or chain of keys itself, not of what it belongs to."""
        async with reading(self._source) as connection:
            return (await load_limits(connection, {(scope, scope_id)})).get((scope, scope_id), [])


async def insert_limits(connection: AsyncConnection, owner: Owner, limits: Iterable[Limit]) -> None:
    """Write limits in the caller's transaction, whatever owner they name themselves."""
    scope, scope_id = owner
    rows = [
        {
            "id": new_id("limit"),
            "scope": scope.value,
            "scope_id": scope_id,
            "kind": limit.kind.value,
            "window": limit.window.value,
            "multiple": limit.multiple,
            "amount": limit.amount,
            "model": limit.model or _EVERY_MODEL,
        }
        for limit in limits
    ]
    if rows:
        await connection.execute(sa.insert(limit_rule), rows)


async def load_limits(connection: AsyncConnection, owners: Collection[Owner]) -> dict[Owner, list[Limit]]:
    """Read the limits of many owners in one query; an owner without limits is left out."""
    ids: dict[Scope, list[str]] = {}
    for scope, scope_id in sorted(owners):
        ids.setdefault(scope, []).append(scope_id)
    mine = [sa.and_(limit_rule.c.scope == s.value, limit_rule.c.scope_id.in_(values)) for s, values in ids.items()]
    found: dict[Owner, list[Limit]] = {}
    if not mine:
        return found
    order = (limit_rule.c.kind, limit_rule.c.window, limit_rule.c.multiple, limit_rule.c.model)
    for row in (await connection.execute(sa.select(limit_rule).where(sa.or_(*mine)).order_by(*order))).mappings():
        limit = limit_of(row)
        found.setdefault((limit.scope, limit.scope_id), []).append(limit)
    return found


def limit_of(row: sa.RowMapping) -> Limit:
    """Return the limit of a row of ``limit_rule``."""
    return Limit(
        scope=Scope(row["scope"]),
        scope_id=row["scope_id"],
        kind=Kind(row["kind"]),
        window=Window(row["window"]),
        amount=row["amount"],
        multiple=row["multiple"],
        model=row["model"] or None,
    )
