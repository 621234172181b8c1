"""Prepaid credit, in SQL: adjustments that name no period, as one more limit of everything an organization spends.

A credit corrects no charge, so that no sum of a period contains it; it raises what may be spent in total. Invariant:
the limit is read from the credits themselves, never kept beside them, so that neither can be without the other. Not
here: who may add one, and when (``billing.credits``).
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from meterhouse.db.balances import sum_period, total
from meterhouse.db.engine import Source, reading, writing
from meterhouse.db.ledger import Adjustment
from meterhouse.db.tables import CREDIT_PERIOD_MS, adjustment
from meterhouse.metering import Kind, Limit, Period, Scope, Window

LEAST_NANOS = 1
"""What is left to spend in total of credits that were all taken back: as good as nothing."""


@dataclass(frozen=True, slots=True)
class CreditBalance:
    """What an organization has paid ahead, and what of it is used."""

    credited_nanos: int
    spent_nanos: int
    """All that was ever charged, corrections included."""
    has_credit: bool
    """False: nothing was ever credited, and spending is not bounded by credit."""

    @property
    def balance_nanos(self) -> int:
        """What is left; negative where more was charged than paid."""
        return self.credited_nanos - self.spent_nanos


class CreditStore:
    """Reads and adds credit. Every method raises StoreDown when there is no database."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def insert(self, entry: Adjustment) -> None:
        """Write a credit whose id is new."""
        async with writing(self._source) as connection:
            await connection.execute(sa.insert(adjustment).values(asdict(entry)))

    async def find(self, adjustment_id: str) -> Adjustment | None:
        """Return a credit, None when there is none."""
        statement = sa.select(adjustment).where(adjustment.c.id == adjustment_id)
        async with reading(self._source) as connection:
            row = (await connection.execute(statement)).mappings().first()
        return None if row is None else Adjustment(**row)

    async def read_balance(self, organization_id: str) -> CreditBalance:
        """Return what is left of an organization's credit, by what the ledger has."""
        async with reading(self._source) as connection:
            credited = (await _sum_credits(connection, {organization_id})).get(organization_id)
            spent = await sum_period(connection, Period(_limit(organization_id, 0), None, None))
        return CreditBalance(credited or 0, spent.charge_nanos, credited is not None)


async def load_credit_limits(
    connection: AsyncConnection, organization_ids: Collection[str]
) -> dict[str, tuple[Limit, ...]]:
    """Return the limit that credit makes, by organization; one that was never credited is left out."""
    if not organization_ids:
        return {}
    sums = await _sum_credits(connection, organization_ids)
    return {name: (_limit(name, max(LEAST_NANOS, nanos)),) for name, nanos in sums.items()}


async def _sum_credits(connection: AsyncConnection, organization_ids: Collection[str]) -> dict[str, int]:
    statement = (
        sa.select(adjustment.c.organization_id, total(adjustment.c.nanos))
        .where(
            adjustment.c.organization_id.in_(sorted(organization_ids)),
            adjustment.c.period_start_ms == CREDIT_PERIOD_MS,
        )
        .group_by(adjustment.c.organization_id)
    )
    # A credit is stored as what it takes off: negative.
    return {name: -int(nanos) for name, nanos in await connection.execute(statement)}


def _limit(organization_id: str, nanos: int) -> Limit:
    return Limit(Scope.ORGANIZATION, organization_id, Kind.SPEND, Window.TOTAL, nanos)
