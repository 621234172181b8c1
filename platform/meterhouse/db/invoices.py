"""Invoices in SQL: the sums that one is made of, and those that were issued.

An invoice covers the records of its month up to a seal, and those of earlier months that were sealed after the last
seal of the invoice before: late ones. Invariant: every sealed record and adjustment is in exactly one of consecutive
invoices; what was issued is never changed. Not here: what an invoice looks like (``billing.invoice``).
"""

from dataclasses import asdict, dataclass

import sqlalchemy as sa

from meterhouse.db.balances import total
from meterhouse.db.engine import Source, insert_into, reading, writing
from meterhouse.db.projection import record_measure
from meterhouse.db.tables import (
    COMPONENT_COLUMNS,
    CREDIT_PERIOD_MS,
    DAY_MS,
    TOKEN_COLUMNS,
    adjustment,
    organization,
    project,
    seal,
    usage_record,
)
from meterhouse.db.tables_billing import invoice

_SUMS = ("requests", "attempts", *TOKEN_COLUMNS, "charge_nanos", *COMPONENT_COLUMNS.values())


@dataclass(frozen=True, slots=True)
class Coverage:
    """What an invoice covers: a month up to a seal, and what is late."""

    organization_id: str
    start_ms: int
    end_ms: int
    previous_sequence: int
    """The last seal of the invoice before; 0: there is none."""
    last_sequence: int


@dataclass(frozen=True, slots=True)
class UsageSum:
    """The records of one project, model, provider and price; of late ones, of one day."""

    project_id: str
    model: str
    provider: str
    price_id: str | None
    day_ms: int | None
    """None: of the month itself."""
    requests: int
    attempts: int
    tokens: dict[str, int]
    charge_nanos: int
    charges: dict[str, int]


@dataclass(frozen=True, slots=True)
class AdjustmentSum:
    """The adjustments of one project, reason and day."""

    project_id: str
    reason: str
    day_ms: int
    count: int
    first_id: str
    nanos: int
    tokens: int


@dataclass(frozen=True, slots=True)
class IssuedInvoice:
    """An invoice as it was issued."""

    organization_id: str
    month_ms: int
    issued_at_ms: int
    last_sequence: int
    last_hash: str
    total_nanos: int
    document: str


class InvoiceStore:
    """Sums, writes and reads invoices. Every method is one transaction and raises StoreDown when there is none."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def sum_usage(self, coverage: Coverage) -> list[UsageSum]:
        """Sum the covered records, late ones last."""
        columns = usage_record.c
        day = columns.admitted_at_ms - columns.admitted_at_ms % DAY_MS
        parts = (
            (sa.null().label("day_ms"), (), _of_month(columns.admitted_at_ms, coverage)),
            (day.label("day_ms"), (day,), _late(columns.admitted_at_ms, coverage)),
        )
        names = (columns.project_id, columns.model, columns.provider, columns.price_id)
        sums = [total(record_measure(name)).label(name) for name in _SUMS]
        found: list[UsageSum] = []
        async with reading(self._source) as connection:
            for shown_day, by_day, condition in parts:
                groups = (*by_day, *names)
                statement = (
                    sa.select(*names, shown_day, *sums)
                    .select_from(usage_record.join(seal, _is_seal_of_record()))
                    .where(columns.organization_id == coverage.organization_id, condition)
                    .group_by(*groups)
                    .order_by(*groups)
                )
                found += [_usage_of(row) for row in (await connection.execute(statement)).mappings()]
        return found

    async def sum_adjustments(self, coverage: Coverage) -> list[AdjustmentSum]:
        """Sum the covered corrections; credits, which correct nothing, are not among them."""
        columns = adjustment.c
        day = columns.period_start_ms - columns.period_start_ms % DAY_MS
        is_covered = sa.or_(_of_month(columns.period_start_ms, coverage), _late(columns.period_start_ms, coverage))
        groups = (columns.project_id, columns.reason, day)
        statement = (
            sa.select(
                columns.project_id,
                columns.reason,
                day.label("day_ms"),
                sa.func.count().label("count"),
                sa.func.min(columns.id).label("first_id"),
                total(columns.nanos).label("nanos"),
                total(columns.tokens).label("tokens"),
            )
            .select_from(adjustment.join(seal, seal.c.adjustment_id == columns.id))
            .where(
                columns.organization_id == coverage.organization_id,
                columns.period_start_ms != CREDIT_PERIOD_MS,
                is_covered,
            )
            .group_by(*groups)
            .order_by(*groups)
        )
        async with reading(self._source) as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return [AdjustmentSum(**{**row, "nanos": int(row["nanos"]), "tokens": int(row["tokens"])}) for row in rows]

    async def find_first_ms(self, organization_id: str) -> int | None:
        """Return the earliest moment that anything of an organization's ledger is of; None: there is nothing."""
        admitted = sa.select(sa.func.min(usage_record.c.admitted_at_ms)).where(
            usage_record.c.organization_id == organization_id
        )
        corrected = sa.select(sa.func.min(adjustment.c.period_start_ms)).where(
            adjustment.c.organization_id == organization_id, adjustment.c.period_start_ms != CREDIT_PERIOD_MS
        )
        async with reading(self._source) as connection:
            found = [await connection.scalar(statement) for statement in (admitted, corrected)]
        return min((int(moment) for moment in found if moment is not None), default=None)

    async def find(self, organization_id: str, month_ms: int) -> IssuedInvoice | None:
        """Return an issued invoice; None when there is none of this month."""
        return await self._find_one(invoice.c.organization_id == organization_id, invoice.c.month_ms == month_ms)

    async def find_last(self, organization_id: str) -> IssuedInvoice | None:
        """Return the newest invoice of an organization; None when none was issued."""
        return await self._find_one(invoice.c.organization_id == organization_id)

    async def list_issued(self, organization_id: str) -> list[tuple[int, int]]:
        """Return month and total of every invoice of an organization, the oldest first."""
        statement = (
            sa.select(invoice.c.month_ms, invoice.c.total_nanos)
            .where(invoice.c.organization_id == organization_id)
            .order_by(invoice.c.month_ms)
        )
        async with reading(self._source) as connection:
            return [(row.month_ms, row.total_nanos) for row in await connection.execute(statement)]

    async def insert(self, new: IssuedInvoice) -> bool:
        """Write an invoice; False when somebody else issued one of the month before."""
        async with writing(self._source) as connection:
            statement = insert_into(connection, invoice).values(**asdict(new))
            statement = statement.on_conflict_do_nothing(index_elements=["organization_id", "month_ms"])
            return (await connection.execute(statement.returning(invoice.c.month_ms))).first() is not None

    async def list_due(self, span: tuple[int, int], after: str, limit: int) -> list[str]:
        """Return organizations that were there in a month and have no invoice of it, behind an id, by their ids."""
        month_ms, end_ms = span
        is_issued = sa.exists().where(invoice.c.organization_id == organization.c.id, invoice.c.month_ms == month_ms)
        statement = sa.select(organization.c.id).where(
            organization.c.id > after, organization.c.created_at_ms < end_ms, ~is_issued
        )
        async with reading(self._source) as connection:
            return list((await connection.execute(statement.order_by(organization.c.id).limit(limit))).scalars())

    async def list_project_names(self, organization_id: str) -> dict[str, str]:
        """Return the names of an organization's projects, archived ones too."""
        statement = sa.select(project.c.id, project.c.name).where(project.c.organization_id == organization_id)
        async with reading(self._source) as connection:
            return {row.id: row.name for row in await connection.execute(statement)}

    async def _find_one(self, *conditions: sa.ColumnElement[bool]) -> IssuedInvoice | None:
        statement = sa.select(invoice).where(*conditions).order_by(invoice.c.month_ms.desc()).limit(1)
        async with reading(self._source) as connection:
            row = (await connection.execute(statement)).mappings().first()
        return None if row is None else IssuedInvoice(**row)


def _is_seal_of_record() -> sa.ColumnElement[bool]:
    bare_id = sa.func.replace(sa.cast(usage_record.c.request_id, sa.Text), "-", "")
    return sa.and_(seal.c.request_id == bare_id, seal.c.attempt == usage_record.c.attempt)


def _of_month(moment: sa.ColumnElement[int], coverage: Coverage) -> sa.ColumnElement[bool]:
    return sa.and_(moment >= coverage.start_ms, moment < coverage.end_ms, seal.c.sequence <= coverage.last_sequence)


def _late(moment: sa.ColumnElement[int], coverage: Coverage) -> sa.ColumnElement[bool]:
    return sa.and_(
        moment < coverage.start_ms,
        seal.c.organization_id == coverage.organization_id,
        seal.c.sequence > coverage.previous_sequence,
        seal.c.sequence <= coverage.last_sequence,
    )


def _usage_of(row: sa.RowMapping) -> UsageSum:
    return UsageSum(
        project_id=row["project_id"],
        model=row["model"],
        provider=row["provider"],
        price_id=row["price_id"],
        day_ms=row["day_ms"],
        requests=int(row["requests"]),
        attempts=int(row["attempts"]),
        tokens={name: int(row[name]) for name in TOKEN_COLUMNS},
        charge_nanos=int(row["charge_nanos"]),
        charges={kind: int(row[column]) for kind, column in COMPONENT_COLUMNS.items() if row[column]},
    )
