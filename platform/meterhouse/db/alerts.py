"""Spend alerts in SQL: what is to be told of, what was spent, and that each alert is told of once.

Invariant: of any number of processes one fires an alert for a period and a threshold, in the transaction that puts
what is to be delivered into the outbox; so nothing is told twice and nothing is lost between the two. Not here:
delivering (``db.outbox``, ``billing.delivery``).
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from enum import Enum, auto

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from meterhouse.db.balances import total
from meterhouse.db.engine import Source, insert_into, reading, writing
from meterhouse.db.outbox import Delivery, count_deliveries, insert_deliveries
from meterhouse.db.paging import Page, PageQuery, fetch_page
from meterhouse.db.tables import adjustment, usage_hour
from meterhouse.db.tables_billing import spend_alert, spend_alert_firing

DAY_MS = 86_400_000
MOST_DELIVERIES_A_DAY = 200
"""Of one organization, in 24 hours. An alert that would exceed them fires when there is room again: whoever may set
alerts cannot have the operator's mail server flood others."""


class Firing(Enum):
    """What became of an alert that was due."""

    FIRED = auto()
    FIRED_BEFORE = auto()
    """Another process was first."""
    FULL = auto()
    """Its organization has had as many deliveries as it may; it fires later."""


@dataclass(frozen=True, slots=True)
class SpendAlert:
    """An amount of a month, and who is told when it is spent."""

    id: str
    organization_id: str
    project_id: str
    """Empty: of the whole organization."""
    threshold_cents: int
    recipients: tuple[str, ...]
    subject_prefix: str | None
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Span:
    """A period, from its first millisecond to before its last."""

    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Spent:
    """An alert that has not fired in a period yet, and what was spent in it."""

    alert: SpendAlert
    nanos: int


class AlertStore:
    """Reads and writes spend alerts. Every method raises StoreDown when there is no database."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def insert(self, new: SpendAlert) -> None:
        """Write a new alert; its organization must exist."""
        async with writing(self._source) as connection:
            await connection.execute(sa.insert(spend_alert).values(_values_of(new)))

    async def update(self, changed: SpendAlert) -> None:
        """Write an alert over what it was; what it fired for stays."""
        statement = sa.update(spend_alert).where(spend_alert.c.id == changed.id).values(_values_of(changed))
        async with writing(self._source) as connection:
            await connection.execute(statement)

    async def remove(self, alert_id: str) -> None:
        """Remove an alert."""
        async with writing(self._source) as connection:
            await connection.execute(sa.delete(spend_alert).where(spend_alert.c.id == alert_id))

    async def find(self, organization_id: str, project_id: str, alert_id: str) -> SpendAlert | None:
        """Return an alert of an owner; None when it has none of this id."""
        statement = sa.select(spend_alert).where(spend_alert.c.id == alert_id, *_owned(organization_id, project_id))
        async with reading(self._source) as connection:
            row = (await connection.execute(statement)).mappings().first()
        return None if row is None else _alert_of(row)

    async def count(self, organization_id: str) -> int:
        """Return how many alerts an organization and its projects have."""
        statement = sa.select(sa.func.count()).where(spend_alert.c.organization_id == organization_id)
        async with reading(self._source) as connection:
            return int(await connection.scalar(statement) or 0)

    async def page(self, organization_id: str, project_id: str, query: PageQuery) -> Page[SpendAlert]:
        """Return a page of an owner's alerts."""
        owned = _owned(organization_id, project_id)
        async with reading(self._source) as connection:
            found = await fetch_page(connection, sa.select(spend_alert).where(*owned), spend_alert, query, owned)
        return found.map(_alert_of)

    async def list_spent(self, span: Span, after: str, limit: int) -> list[Spent]:
        """Return a page of the alerts that have not fired in a period, by id, and what was spent, in one snapshot."""
        fired = sa.exists().where(
            spend_alert_firing.c.alert_id == spend_alert.c.id,
            spend_alert_firing.c.period_start_ms == span.start_ms,
            spend_alert_firing.c.threshold_cents == spend_alert.c.threshold_cents,
        )
        waiting = sa.select(spend_alert).where(spend_alert.c.id > after, ~fired).order_by(spend_alert.c.id).limit(limit)
        async with reading(self._source) as connection:
            alerts = [_alert_of(row) for row in (await connection.execute(waiting)).mappings()]
            organizations = {alert.organization_id for alert in alerts if not alert.project_id}
            projects = {alert.project_id for alert in alerts if alert.project_id}
            spent = {
                **await _sum_by(connection, "organization_id", organizations, span),
                **await _sum_by(connection, "project_id", projects, span),
            }
        return [Spent(alert, spent.get(alert.project_id or alert.organization_id, 0)) for alert in alerts]

    async def fire(self, spent: Spent, span: Span, now_ms: int, deliveries: Sequence[Delivery]) -> Firing:
        """Note that an alert fired, and what is to be delivered, unless another was first or there is no room."""
        alert = spent.alert
        firing = {
            "alert_id": alert.id,
            "period_start_ms": span.start_ms,
            "threshold_cents": alert.threshold_cents,
            "spent_nanos": spent.nanos,
            "fired_at_ms": now_ms,
        }
        async with writing(self._source) as connection:
            had = await count_deliveries(connection, alert.organization_id, now_ms - DAY_MS) if deliveries else 0
            if had + len(deliveries) > MOST_DELIVERIES_A_DAY:
                return Firing.FULL
            insert = insert_into(connection, spend_alert_firing).values(firing)
            insert = insert.on_conflict_do_nothing(index_elements=["alert_id", "period_start_ms", "threshold_cents"])
            is_first = (await connection.execute(insert.returning(spend_alert_firing.c.alert_id))).first() is not None
            if is_first:
                await insert_deliveries(connection, deliveries)
        return Firing.FIRED if is_first else Firing.FIRED_BEFORE


async def _sum_by(connection: AsyncConnection, column: str, owner_ids: Collection[str], span: Span) -> dict[str, int]:
    """Return what each owner spent in a period, corrections included; from the hourly projection."""
    sums: dict[str, int] = {}
    if not owner_ids:
        return sums
    parts = ((usage_hour, usage_hour.c.hour_ms, "charge_nanos"), (adjustment, adjustment.c.period_start_ms, "nanos"))
    for table, at, amount in parts:
        statement = (
            sa.select(table.c[column], total(table.c[amount]))
            .where(table.c[column].in_(sorted(owner_ids)), at >= span.start_ms, at < span.end_ms)
            .group_by(table.c[column])
        )
        for owner_id, nanos in await connection.execute(statement):
            sums[owner_id] = sums.get(owner_id, 0) + int(nanos)
    return sums


def _owned(organization_id: str, project_id: str) -> list[sa.ColumnElement[bool]]:
    return [spend_alert.c.organization_id == organization_id, spend_alert.c.project_id == project_id]


def _values_of(alert: SpendAlert) -> dict[str, object]:
    return {**asdict(alert), "recipients": list(alert.recipients)}


def _alert_of(row: sa.RowMapping) -> SpendAlert:
    return SpendAlert(**{**row, "recipients": tuple(row["recipients"])})
