"""What an operator reviews of the ledger: its adjustments, and what each provider was used for day by day.

Not here: writing adjustments (``db.ledger``), and a provider's own figures (``ledger.compare``).
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from meterhouse.db.engine import reading
from meterhouse.db.ledger import Adjustment
from meterhouse.db.tables import DAY_MS, HOUR_MS, adjustment, usage_record

_ID_TIME_MARGIN_MS = HOUR_MS
"""A request is admitted at most so long after its id was made."""
_COUNTS = ("input_tokens", "cached_input_tokens", "output_tokens", "charge_nanos")


@dataclass(frozen=True, slots=True)
class ProviderDay:
    """What was used of one model of a provider on one day of UTC, as the ledger has it."""

    day_ms: int
    served_model: str
    """What the provider said that it was; may be empty."""
    upstream_model: str
    """What it was asked for."""
    requests: int
    """Attempts that used any tokens: what a provider counts."""
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    charge_nanos: int


class ReviewStore:
    """Reads for reviews. Every method raises StoreDown when there is no database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def list_adjustments(
        self, organization_id: str | None, after: Adjustment | None = None, limit: int = 100
    ) -> list[Adjustment]:
        """Return a page of adjustments, the oldest first, behind the last one seen."""
        columns = adjustment.c
        statement = sa.select(adjustment).order_by(columns.created_at_ms, columns.id).limit(limit)
        if organization_id is not None:
            statement = statement.where(columns.organization_id == organization_id)
        if after is not None:
            statement = statement.where(
                sa.tuple_(columns.created_at_ms, columns.id) > sa.tuple_(after.created_at_ms, after.id)
            )
        async with reading(self._engine) as connection:
            return [Adjustment(**row) for row in (await connection.execute(statement)).mappings()]

    async def list_provider_days(self, provider: str | None, from_ms: int, to_ms: int) -> AsyncIterator[ProviderDay]:
        """Sum the records of a provider (None: of all) that were admitted in whole days, a day at a time."""
        columns = usage_record.c
        uses = sa.case((columns.input_tokens + columns.output_tokens > 0, 1), else_=0)
        names = (columns.served_model, columns.upstream_model)
        totals = [sa.func.sum(columns[name]).label(name) for name in _COUNTS]
        for day_ms in range(from_ms, to_ms, DAY_MS):
            statement = (
                sa.select(*names, sa.func.sum(uses).label("requests"), *totals)
                .where(
                    # The time is the first 48 bits of a request id: the primary key finds the day, in its partition.
                    columns.request_id >= _id_at(day_ms - _ID_TIME_MARGIN_MS),
                    columns.request_id < _id_at(day_ms + DAY_MS + _ID_TIME_MARGIN_MS),
                    columns.admitted_at_ms >= day_ms,
                    columns.admitted_at_ms < day_ms + DAY_MS,
                    columns.attempt > 0,
                )
                .group_by(*names)
                .order_by(*names)
            )
            if provider is not None:
                statement = statement.where(columns.provider == provider)
            async with reading(self._engine) as connection:
                rows = (await connection.execute(statement)).mappings().all()
            for row in rows:
                counts = {name: int(row[name]) for name in ("requests", *_COUNTS)}
                yield ProviderDay(day_ms, row["served_model"], row["upstream_model"], **counts)


def _id_at(milliseconds: int) -> str:
    """Return the lowest request id of a millisecond."""
    return f"{max(0, milliseconds):012x}{0:020x}"
