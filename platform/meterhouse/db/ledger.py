"""The ledger in SQL: writes usage records once, with their hourly projection, and answers sums over them.

Invariant: a record and its share of the projection are written in one transaction, and only for a record that was
not there yet; nothing is ever changed or deleted. Not here: the journal that the records come from.
"""

import itertools
import operator
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from meterhouse.db.balances import Source, sum_period, total
from meterhouse.db.chain import HashRows, seal_rows, take_turn
from meterhouse.db.engine import (
    insert_columns,
    insert_into,
    insert_rows,
    reading,
    wall_ms,
    write_again,
    writing,
)
from meterhouse.db.postgres import is_postgres
from meterhouse.db.projection import fold
from meterhouse.db.rebuild import Difference, list_differences
from meterhouse.db.reports import KeyOf, of_keys
from meterhouse.db.tables import (
    COMPONENT_COLUMNS,
    DAY_MS,
    HOUR_KEY_COLUMNS,
    HOUR_MS,
    MEASURE_COLUMNS,
    TOKEN_COLUMNS,
    adjustment,
    usage_hour,
    usage_record,
)
from meterhouse.errors import StoreDown
from meterhouse.metering import Period, Sums
from meterhouse.usage import Exactness, Outcome, Usage, UsageRecord

GroupBy = Literal["organization", "project", "key", "model", "provider", "day", "hour"]

_PLAIN_FIELDS = tuple(name for name in UsageRecord.__struct_fields__ if name not in {"usage", "charges"})
_plain_values = operator.attrgetter(*_PLAIN_FIELDS)
_FOREIGN_TEXTS = ("model", "served_model", "upstream_model", "service_tier", "error_code", "trace_id")
"""The texts that callers and providers have a say in."""
_COLUMNS = (*_PLAIN_FIELDS, *TOKEN_COLUMNS, *COMPONENT_COLUMNS.values())
_RECORDED_AT = "recorded_at_ms"
_IF_NEW = "ON CONFLICT (request_id, attempt) DO NOTHING RETURNING request_id, attempt"
_HOUR_COLUMNS = (*HOUR_KEY_COLUMNS, *MEASURE_COLUMNS)
_ADD_TO_HOUR = f"ON CONFLICT ({', '.join(HOUR_KEY_COLUMNS)}) DO UPDATE SET " + ", ".join(
    f"{name} = usage_hour.{name} + excluded.{name}" for name in MEASURE_COLUMNS
)
_GROUP_COLUMNS = {
    "organization": "organization_id",
    "project": "project_id",
    "key": "key_id",
    "model": "model",
    "provider": "provider",
}


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A credit or correction of a period: a signed change of what it charged. Never edited."""

    id: str
    organization_id: str
    project_id: str
    root_key_id: str | None
    period_start_ms: int
    nanos: int
    tokens: int
    reason: str
    created_at_ms: int
    created_by: str = ""
    """The id of the admin key, empty for a command."""


Also = Callable[[AsyncConnection, Sequence[Adjustment]], Awaitable[object]]
"""Does something in the transaction that wrote adjustments, over its connection; is told those that are new."""


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """What to sum, from a moment to before another, and whose; None means everybody's."""

    group_by: tuple[GroupBy, ...]
    from_ms: int
    to_ms: int
    organization_id: str | None = None
    project_id: str | None = None
    key_id: str | None = None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """The sums of one group; ``group`` has a value per word of the query's ``group_by``, in its order."""

    group: tuple[str | int, ...]
    requests: int
    attempts: int
    usage: Usage
    charge_nanos: int


class LedgerStore:
    """Reads and writes the ledger. Every method is one transaction and raises StoreDown when there is none."""

    def __init__(
        self, engine: AsyncEngine, now_ms: Callable[[], int] = wall_ms, hash_rows: HashRows | None = None
    ) -> None:
        """Work on an engine, which is whoever's opened it.

        Args:
            engine: where to.
            now_ms: what SQLite's records are stamped with; PostgreSQL stamps them with its own clock.
            hash_rows: what seals records as they are written, unless somebody else seals just then. None: nobody does.
        """
        self._engine = engine
        self._now_ms = now_ms
        self._hash_rows = hash_rows
        self._expects_new = True
        """Whether the last batch was written, and new: in a replay none is, and what failed may have been committed."""

    async def insert(self, records: Sequence[UsageRecord]) -> int:
        """Write records that are not there yet, with their projection and seals; returns how many were new.

        After a StoreDown the same records may be offered again, whether or not they were committed; they are written
        without seals then, so that what keeps seals from being written does not keep records from it.
        """
        unique: dict[tuple[str, int], UsageRecord] = {}
        for record in records:
            unique.setdefault((record.request_id, record.attempt), record)
        if not unique:
            return 0
        columns = _columns_of([unique[identity] for identity in sorted(unique)])
        hours = fold(columns)

        async def write_all(connection: AsyncConnection) -> int:
            """Write them as nearly always: not one is there yet. A plain INSERT costs PostgreSQL a sixth less."""
            now_ms = self._now_ms()
            await self._insert(connection, columns, now_ms, "")
            if self._hash_rows is not None:
                await _seal(connection, self._hash_rows, columns, now_ms)
            await insert_rows(connection, usage_hour, _HOUR_COLUMNS, hours, _ADD_TO_HOUR)
            return len(unique)

        async def write_new(connection: AsyncConnection) -> int:
            """Write what is new of them; the sealer finds it."""
            inserted = await self._insert(connection, columns, self._now_ms(), _IF_NEW)
            new = [unique[_bare(str(request_id)), attempt] for request_id, attempt in inserted]
            if new:
                await insert_rows(connection, usage_hour, _HOUR_COLUMNS, fold(_columns_of(new)), _ADD_TO_HOUR)
            return len(new)

        if self._expects_new:
            try:
                # It fails where one is there, or a seal of one that somebody has removed.
                with suppress(sa.exc.IntegrityError):
                    return await write_again(self._engine, write_all)
            except StoreDown:
                self._expects_new = False
                raise
        count = await write_again(self._engine, write_new)
        self._expects_new = count == len(unique)
        return count

    async def _insert(
        self, connection: AsyncConnection, columns: Mapping[str, Sequence[object]], now_ms: int, then: str
    ) -> list[sa.Row[*tuple[Any, ...]]]:
        if is_postgres(connection):
            return await insert_columns(connection, usage_record, columns, then, stamp=_RECORDED_AT)
        return await insert_columns(connection, usage_record, _stamp(columns, now_ms), then)

    async def insert_adjustment(self, entry: Adjustment, also: Also | None = None) -> bool:
        """Write a credit or correction; False when its id is there already. ``also`` joins its transaction."""
        return bool(await self.insert_adjustments([entry], also))

    async def insert_adjustments(self, entries: Sequence[Adjustment], also: Also | None = None) -> list[Adjustment]:
        """Write credits or corrections, all or none; returns those whose ids were not there yet.

        ``also`` joins the transaction when there is any.
        """
        if not entries:
            return []
        rows = [{name: getattr(entry, name) for name in Adjustment.__slots__} for entry in entries]
        async with writing(self._engine) as connection:
            statement = insert_into(connection, adjustment).on_conflict_do_nothing(index_elements=["id"])
            result = await connection.execute(statement.returning(adjustment.c.id), rows)
            new = {row.id for row in result}
            written = [entry for entry in entries if entry.id in new]
            if written and also is not None:
                await also(connection, written)
        return written

    async def sum_period(self, period: Period) -> Sums:
        """Sum what a quota or budget counts; see ``sum_periods``."""
        return (await self.sum_periods([period]))[0]

    async def sum_periods(self, periods: Sequence[Period]) -> list[Sums]:
        """Sum what several quotas or budgets count, all at one moment.

        Adjustments count in the period that they name. They name no model, so a limit of one model does not
        count them.
        """
        async with reading(self._engine) as connection:
            return [await sum_period(connection, period) for period in periods]

    async def find_records(self, request_id: str) -> list[UsageRecord]:
        """Return the records of a request (32 hexadecimal characters), by attempt; empty when there are none."""
        statement = (
            sa.select(usage_record).where(usage_record.c.request_id == request_id).order_by(usage_record.c.attempt)
        )
        async with reading(self._engine) as connection:
            result = await connection.execute(statement)
            return [record_of(row) for row in result.mappings()]

    async def usage_by(self, query: UsageQuery) -> list[UsageRow]:
        """Sum usage by the groups of a query, ordered by group.

        A group of "day" or "hour" is its first millisecond, in UTC; a key counts with its client tokens. Adjustments
        are not usage and do not count.
        """
        source = Source.of(query.from_ms, query.to_ms)
        names = ("requests", "attempts", "charge_nanos", *TOKEN_COLUMNS)
        groups = [_group_expression(source, word).label(f"group_{i}") for i, word in enumerate(query.group_by)]
        conditions = [
            source.table.c[name] == value
            for name in ("organization_id", "project_id")
            if (value := getattr(query, name)) is not None
        ]
        if query.key_id is not None:
            conditions.append(of_keys(source.table.c.key_id, [query.key_id]))
        statement = (
            sa.select(*groups, *(total(source.measure(name)).label(name) for name in names))
            .where(source.at >= query.from_ms, source.at < query.to_ms, *conditions)
            .group_by(*groups)
            .order_by(*groups)
        )
        async with reading(self._engine) as connection:
            result = await connection.execute(statement)
            return [
                UsageRow(
                    group=tuple(row[group.name] for group in groups),
                    requests=int(row["requests"]),
                    attempts=int(row["attempts"]),
                    usage=Usage(*(int(row[name]) for name in TOKEN_COLUMNS)),
                    charge_nanos=int(row["charge_nanos"]),
                )
                for row in result.mappings()
            ]

    async def rebuild_check(self) -> list[Difference]:
        """Compare the whole projection with the records; returns the groups that differ, none when all is well."""
        async with reading(self._engine) as connection:
            return await list_differences(connection)


def _group_expression(source: Source, word: GroupBy) -> sa.ColumnElement[Any]:
    if word == "day":
        return source.at - source.at % DAY_MS
    if word == "hour":
        return source.at - source.at % HOUR_MS
    column = source.table.c[_GROUP_COLUMNS[word]]
    return KeyOf(column) if word == "key" else column


async def _seal(
    connection: AsyncConnection, hash_rows: HashRows, columns: Mapping[str, Sequence[object]], now_ms: int
) -> None:
    """Seal what this transaction has inserted, unless another one seals."""
    turn = await take_turn(connection)
    if turn.is_first:
        recorded_ms = turn.began_ms if is_postgres(connection) else now_ms
        await seal_rows(connection, hash_rows, "usage", _stamp(columns, recorded_ms), turn.now_ms)


def _stamp(columns: Mapping[str, Sequence[object]], recorded_ms: int) -> dict[str, Sequence[object]]:
    return {**columns, _RECORDED_AT: [recorded_ms] * len(columns["request_id"])}


def _bare(request_id: str) -> str:
    """Undo SQLAlchemy's spelling of a UUID: with us it has no hyphens."""
    return request_id.replace("-", "")


def _columns_of(records: Sequence[UsageRecord]) -> dict[str, Sequence[Any]]:
    """Return records as the columns of ``usage_record``."""
    plain = zip(*map(_plain_values, records), strict=True)
    usages = zip(*[msgspec.structs.astuple(record.usage) for record in records], strict=True)
    charges = zip(*[_components_of(record.charges) for record in records], strict=True)
    columns: dict[str, Sequence[Any]] = dict(zip(_COLUMNS, itertools.chain(plain, usages, charges), strict=True))
    for name in _FOREIGN_TEXTS:
        # No text of PostgreSQL can hold a NUL: a provider's must not stop the ledger.
        if "\0" in "".join(columns[name]):
            columns[name] = [text.replace("\0", "\ufffd") for text in columns[name]]
    return columns


def _components_of(charges: Iterable[tuple[str, int]]) -> Iterable[int]:
    components = dict.fromkeys(COMPONENT_COLUMNS, 0)
    for component, nanos in charges:
        components[component] += nanos
    return components.values()


def record_of(row: sa.RowMapping) -> UsageRecord:
    """Return a row of ``usage_record`` as it was recorded."""
    plain = {name: row[name] for name in _PLAIN_FIELDS}
    plain["request_id"] = _bare(row["request_id"])
    plain["outcome"], plain["exactness"] = Outcome(row["outcome"]), Exactness(row["exactness"])
    return UsageRecord(
        **plain,
        usage=Usage(*(row[name] for name in TOKEN_COLUMNS)),
        charges=tuple((name, row[column]) for name, column in COMPONENT_COLUMNS.items() if row[column]),
    )
