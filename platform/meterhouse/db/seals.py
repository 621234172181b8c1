"""Seals in SQL: gives every row of the ledger that has none its place in its organization's chain, and reads them.

Rows commit in another order than they are stamped, so there is no mark behind which nothing can appear. Sealing looks
at what was recorded since shortly before the last time, and besides walks over the last hours and over everything,
a page at a time, again and again: a row that came late or from a host with a wrong clock is found by the walks.

Invariant: seals are only ever inserted, by one process at a time; an organization's sequence has no gap. Not here:
what a row hashes to (passed in), and what a chain proves.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from meterhouse.db.chain import HashRows, seal_rows, take_turn, use_indexes
from meterhouse.db.engine import insert_into, reading, writing
from meterhouse.db.postgres import is_postgres
from meterhouse.db.tables import HOUR_MS, adjustment, meta, organization, seal, usage_record

BATCH_ROWS = 500
"""How many rows one transaction seals: what it costs besides them is then a small part of theirs."""
PAGE_ROWS = 2_000
"""How many rows a walk looks at in one step."""
OVERLAP_MS = 15_000
"""How far before the last time the next step looks again at most; a shipper's transaction takes no longer."""
CLOCK_STEP_MS = 2_000
"""How far it looks again in any case: so much may be put right in PostgreSQL's clock."""
RECENT_MS = 6 * HOUR_MS
"""What the walk over the last hours covers."""

Row = Mapping[str, Any]

_MARKS = "seal_marks"
_OPEN_MS = """
    SELECT CASE WHEN bool_and(COALESCE(state, 'disabled') <> 'disabled')
        THEN CAST(extract(epoch FROM clock_timestamp() - min(xact_start)) * 1000 AS bigint) END
    FROM pg_stat_activity WHERE datname = current_database() AND usesysid IS NOT NULL"""
"""For how long a transaction of this database has been open at most; NULL where sessions of others hide theirs."""


class Marks(msgspec.Struct, frozen=True):
    """How far sealing is; kept in ``meta`` and moved in the transaction that seals."""

    stepped_at_ms: int = 0
    from_ms: int = 0
    """Where the next step begins: at the last row of one that was full, else shortly before the last step."""
    recent_ms: int = 0
    """Where the walk over the last hours goes on."""
    all_ms: int = 0
    """Where the walk over everything goes on."""


@dataclass(frozen=True, slots=True)
class Sealing:
    """What one step did."""

    sealed: int
    has_more: bool
    """More rows wait; call again."""
    is_busy: bool = False
    """Somebody else is sealing."""


@dataclass(frozen=True, slots=True)
class StoredSeal:
    """A seal, and the row that it is of; None when the database does not have the row."""

    organization_id: str
    sequence: int
    kind: str
    request_id: str | None
    attempt: int | None
    adjustment_id: str | None
    previous_hash: str
    hash: str
    sealed_at_ms: int
    row: Row | None = None


class SealStore:
    """Seals and reads seals. Every method is one transaction and raises StoreDown when there is none."""

    def __init__(self, engine: AsyncEngine, hash_rows: HashRows, now_ms: Callable[[], int] | None = None) -> None:
        self._engine = engine
        self._hash_rows = hash_rows
        self._now_ms = now_ms

    async def seal_new(self, *, limit: int = BATCH_ROWS, least_interval_ms: int = 0) -> Sealing:
        """Seal up to ``limit`` rows that have no seal, oldest recording first.

        Args:
            limit: most rows at a time.
            least_interval_ms: do nothing when the last step of any process, which left nothing, is not so long ago.
        """
        async with writing(self._engine) as connection:
            turn = await take_turn(connection)
            if not turn.is_first:
                return Sealing(0, has_more=False, is_busy=True)
            overlap_ms = await _find_overlap(connection)
            now_ms = turn.now_ms if self._now_ms is None else self._now_ms()
            marks = await _read_marks(connection)
            if 0 <= now_ms - marks.stepped_at_ms < least_interval_ms:
                return Sealing(0, has_more=False)
            # An adjustment is stamped by whoever makes it, and may wait for a connection before it is written.
            rows = await _list_unsealed(connection, marks.from_ms, None, limit, adjusted_ms=OVERLAP_MS)
            await self._insert(connection, rows, now_ms)
            sealed = len(rows)
            if sealed == limit:
                marks = msgspec.structs.replace(marks, from_ms=_stamp(rows[-1]))
            else:
                for walk, start_ms in (("recent_ms", now_ms - RECENT_MS), ("all_ms", 0)):
                    from_ms = max(getattr(marks, walk), start_ms)
                    rows, next_ms = await _look_at_page(connection, from_ms, limit)
                    await self._insert(connection, rows, now_ms)
                    sealed += len(rows)
                    marks = msgspec.structs.replace(marks, **{walk: start_ms if next_ms is None else next_ms})
                marks = msgspec.structs.replace(marks, from_ms=now_ms - overlap_ms)
                if sealed < limit:
                    marks = msgspec.structs.replace(marks, stepped_at_ms=now_ms)
            await _write_marks(connection, marks)
        return Sealing(sealed, has_more=sealed >= limit)

    async def list_organizations(self) -> list[str]:
        """Return every organization that has a seal."""
        found: list[str] = []
        async with reading(self._engine) as connection:
            await use_indexes(connection)
            last = ""
            while True:
                next_one = sa.select(sa.func.min(seal.c.organization_id)).where(seal.c.organization_id > last)
                last = await connection.scalar(next_one)
                if last is None:
                    return found
                found.append(last)

    async def list_heads(self) -> dict[str, int]:
        """Return the last sequence of every organization that has a seal, in one statement of a look-up for each."""
        last = sa.select(sa.func.max(seal.c.sequence)).where(seal.c.organization_id == organization.c.id)
        statement = sa.select(organization.c.id, last.scalar_subquery()).order_by(organization.c.id)
        async with reading(self._engine) as connection:
            await use_indexes(connection)
            return {name: head for name, head in await connection.execute(statement) if head is not None}

    async def find_span(self, organization_id: str, from_ms: int | None, to_ms: int | None) -> tuple[int, int]:
        """Return the first sequence sealed at or after a moment and the first one at or after another (or behind all).

        Sealing times never fall along a chain, so that a few look-ups find them among millions.
        """
        async with reading(self._engine) as connection:
            await use_indexes(connection)
            statement = sa.select(sa.func.max(seal.c.sequence)).where(seal.c.organization_id == organization_id)
            end = int(await connection.scalar(statement) or 0) + 1
            first = 1 if from_ms is None else await _bisect(connection, organization_id, from_ms, end)
            behind = end if to_ms is None else await _bisect(connection, organization_id, to_ms, end)
        return first, behind

    async def read(self, organization_id: str, first_sequence: int, limit: int) -> list[StoredSeal]:
        """Return up to ``limit`` seals of an organization in their order, with their rows."""
        statement = (
            sa.select(seal)
            .where(seal.c.organization_id == organization_id, seal.c.sequence >= first_sequence)
            .order_by(seal.c.sequence)
            .limit(limit)
        )
        async with reading(self._engine) as connection:
            await use_indexes(connection)
            seals = (await connection.execute(statement)).mappings().all()
            rows = await _read_rows(connection, seals)
        return [
            StoredSeal(**found, row=rows.get((found["request_id"], found["attempt"], found["adjustment_id"])))
            for found in seals
        ]

    async def find_place(self, kind: str, row: Row) -> StoredSeal | None:
        """Return the seal that the database has of a row; None when it has none."""
        if kind == "adjustment":
            condition = seal.c.adjustment_id == row.get("id")
        else:
            condition = sa.and_(seal.c.request_id == row.get("request_id"), seal.c.attempt == row.get("attempt"))
        async with reading(self._engine) as connection:
            found = (await connection.execute(sa.select(seal).where(condition))).mappings().first()
        return None if found is None else StoredSeal(**found)

    async def list_unsealed(self, organization_id: str | None, before_ms: int, limit: int) -> list[tuple[str, Row]]:
        """Return kind and content of rows of an organization (None: any), recorded before a moment, without a seal."""
        async with reading(self._engine) as connection:
            await use_indexes(connection)
            return await _list_unsealed(connection, 0, before_ms - 1, limit, organization_id)

    async def _insert(self, connection: AsyncConnection, rows: Sequence[tuple[str, Row]], now_ms: int) -> None:
        for kind in ("usage", "adjustment"):
            found = [row for of, row in rows if of == kind]
            if found:
                columns = {name: [row[name] for row in found] for name in found[0]}
                await seal_rows(connection, self._hash_rows, kind, columns, now_ms)


async def _find_overlap(connection: AsyncConnection) -> int:
    """Return how far before now what is not committed yet may have been stamped; asked before rows are read."""
    if not is_postgres(connection):
        return OVERLAP_MS
    open_ms = (await connection.exec_driver_sql(_OPEN_MS)).scalar_one()
    return OVERLAP_MS if open_ms is None else min(int(open_ms) + CLOCK_STEP_MS, OVERLAP_MS)


async def _read_marks(connection: AsyncConnection) -> Marks:
    value = await connection.scalar(sa.select(meta.c.value).where(meta.c.name == _MARKS))
    return Marks() if value is None else msgspec.json.decode(value, type=Marks)


async def _write_marks(connection: AsyncConnection, marks: Marks) -> None:
    value = msgspec.json.encode(marks).decode()
    statement = insert_into(connection, meta).values(name=_MARKS, value=value)
    await connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": value}))


async def _look_at_page(
    connection: AsyncConnection, from_ms: int, limit: int
) -> tuple[list[tuple[str, Row]], int | None]:
    """Return what has no seal on the page of rows from a moment on, and where the next page begins; None at the end."""
    page = (
        sa.select(usage_record.c.recorded_at_ms)
        .where(usage_record.c.recorded_at_ms >= from_ms)
        .order_by(usage_record.c.recorded_at_ms)
        .limit(PAGE_ROWS)
        .subquery()
    )
    count, last_ms = (await connection.execute(sa.select(sa.func.count(), sa.func.max(page.c[0])))).one()
    is_end = count < PAGE_ROWS
    rows = await _list_unsealed(connection, from_ms, None if is_end else last_ms, limit)
    if len(rows) == limit:
        return rows, _stamp(rows[-1])
    return rows, None if is_end else last_ms + 1


async def _list_unsealed(
    connection: AsyncConnection,
    from_ms: int,
    until_ms: int | None,
    limit: int,
    organization_id: str | None = None,
    adjusted_ms: int = 0,
) -> list[tuple[str, Row]]:
    """Return kind and content of rows without a seal, recorded from a moment until another, in a stable order.

    Adjustments of so long before that moment are among them.
    """
    bare_id = sa.func.replace(sa.cast(usage_record.c.request_id, sa.Text), "-", "")
    records = (
        usage_record,
        usage_record.c.recorded_at_ms,
        from_ms,
        (usage_record.c.recorded_at_ms, usage_record.c.request_id, usage_record.c.attempt),
        sa.and_(seal.c.request_id == bare_id, seal.c.attempt == usage_record.c.attempt),
    )
    corrections = (
        adjustment,
        adjustment.c.created_at_ms,
        from_ms - adjusted_ms,
        (adjustment.c.created_at_ms, adjustment.c.id),
        seal.c.adjustment_id == adjustment.c.id,
    )
    rows: list[tuple[str, Row]] = []
    for kind, (table, at, since_ms, order, is_its_seal) in (("usage", records), ("adjustment", corrections)):
        statement = (
            sa.select(table).where(at >= since_ms, ~sa.exists().where(is_its_seal)).order_by(*order).limit(limit)
        )
        if until_ms is not None:
            statement = statement.where(at <= until_ms)
        if organization_id is not None:
            statement = statement.where(table.c.organization_id == organization_id)
        rows += [(kind, row) for row in await _fetch(connection, statement)]
    if rows and rows[0][0] != rows[-1][0]:
        rows.sort(key=lambda row: (_stamp(row), row[0], _identity(row)))
    return rows[:limit]


async def _read_rows(
    connection: AsyncConnection, seals: Iterable[sa.RowMapping]
) -> dict[tuple[str | None, int | None, str | None], Row]:
    """Return the rows that seals are of, by request id, attempt and adjustment id."""
    request_ids = {one["request_id"] for one in seals if one["request_id"] is not None}
    adjustment_ids = {one["adjustment_id"] for one in seals if one["adjustment_id"] is not None}
    found: dict[tuple[str | None, int | None, str | None], Row] = {}
    if request_ids:
        statement = sa.select(usage_record).where(usage_record.c.request_id.in_(sorted(request_ids)))
        for row in await _fetch(connection, statement):
            found[row["request_id"], row["attempt"], None] = row
    if adjustment_ids:
        corrections = sa.select(adjustment).where(adjustment.c.id.in_(sorted(adjustment_ids)))
        for row in await _fetch(connection, corrections):
            found[None, None, row["id"]] = row
    return found


async def _bisect(connection: AsyncConnection, organization_id: str, at_ms: int, end: int) -> int:
    """Return the first sequence below ``end`` that was sealed at or after a moment; ``end`` when there is none."""
    low, high = 1, end
    while low < high:
        middle = (low + high) // 2
        statement = sa.select(seal.c.sealed_at_ms).where(
            seal.c.organization_id == organization_id, seal.c.sequence == middle
        )
        sealed_at_ms = await connection.scalar(statement)
        # A seal that somebody removed says nothing: what is behind it is looked at in any case.
        if sealed_at_ms is not None and sealed_at_ms < at_ms:
            low = middle + 1
        else:
            high = middle
    return low


async def _fetch(connection: AsyncConnection, statement: sa.Select[*tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Return rows as dictionaries, which is most of what reading them costs, in the cheapest way."""
    result = await connection.execute(statement)
    names = tuple(result.keys())
    rows = [dict(zip(names, row, strict=True)) for row in result]
    if "request_id" in names:
        # SQLAlchemy spells a UUID with hyphens; with us it has none.
        for row in rows:
            row["request_id"] = row["request_id"].replace("-", "")
    return rows


def _identity(row: tuple[str, Row]) -> tuple[str, str | None, int | None, str | None]:
    kind, values = row
    return kind, values.get("request_id"), values.get("attempt"), values.get("id")


def _stamp(row: tuple[str, Row]) -> int:
    kind, values = row
    return int(values["recorded_at_ms" if kind == "usage" else "created_at_ms"])
