"""What is still to be delivered, in SQL: webhooks and e-mails, each tried again until it arrives or is given up.

Invariant: what is claimed comes back by itself when its process dies before it could say how it went; so everything is
delivered at least once, under the same id. That it arrived is a fact, whoever says it and when; that it did not says
only who has the latest claim. Not here: how anything is delivered, and how often (``billing.delivery``).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from meterhouse.db.engine import Source, reading, writing
from meterhouse.db.tables_billing import outbox

WAITING, DELIVERED, FAILED = "waiting", "delivered", "failed"
MAX_ERROR_CHARACTERS = 300
MOST_OF_ONE = 2
"""Deliveries of one organization that are claimed at a time, so that its slow receivers hold up no other's."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Something to be delivered."""

    id: str
    """The receiver sees it, and knows by it what it has had before."""
    organization_id: str
    channel: str
    """``webhook`` or ``email``."""
    target: str
    body: str
    created_at_ms: int
    next_at_ms: int
    state: str = WAITING
    tries: int = 0
    last_error: str = ""


class OutboxStore:
    """Claims and resolves deliveries. Every method raises StoreDown when there is no database."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def claim(self, now_ms: int, lease_ms: int, limit: int) -> list[Delivery]:
        """Take what is due, little of each organization; it is due again after the lease unless it is resolved."""
        is_due = (outbox.c.state == WAITING, outbox.c.next_at_ms <= now_ms)
        async with reading(self._source) as connection:  # mostly there is nothing, which needs no lock
            if (await connection.execute(sa.select(outbox.c.id).where(*is_due).limit(1))).first() is None:
                return []
        turn = sa.func.row_number().over(partition_by=outbox.c.organization_id, order_by=outbox.c.next_at_ms)
        in_turn = sa.select(outbox.c.id, turn.label("turn")).where(*is_due).subquery()
        due = (
            sa.select(outbox.c.id)
            .where(*is_due, outbox.c.id.in_(sa.select(in_turn.c.id).where(in_turn.c.turn <= MOST_OF_ONE)))
            .order_by(outbox.c.next_at_ms)
            .limit(limit)
        )
        async with writing(self._source) as connection:
            ids = list((await connection.execute(due.with_for_update(skip_locked=True))).scalars())
            if not ids:
                return []
            claim = (
                sa.update(outbox)
                .where(outbox.c.id.in_(ids))
                .values(next_at_ms=now_ms + lease_ms, tries=outbox.c.tries + 1)
                .returning(outbox)
            )
            return [Delivery(**row) for row in (await connection.execute(claim)).mappings()]

    async def resolve(self, delivery: Delivery) -> None:
        """Note that it arrived; doing it again is harmless."""
        await self._put(outbox.c.id == delivery.id, state=DELIVERED, last_error="")

    async def postpone(self, delivery: Delivery, error: str, next_at_ms: int | None) -> None:
        """Note that it did not arrive, and when it is tried again; None: it is given up.

        Nothing changes where it was claimed again since: it is with somebody else, or has arrived meanwhile.
        """
        is_latest = sa.and_(outbox.c.id == delivery.id, outbox.c.state == WAITING, outbox.c.tries == delivery.tries)
        changes = {"state": FAILED} if next_at_ms is None else {"next_at_ms": next_at_ms}
        await self._put(is_latest, last_error=error[:MAX_ERROR_CHARACTERS], **changes)

    async def list_latest(self, organization_id: str, limit: int) -> list[Delivery]:
        """Return the newest deliveries of an organization."""
        statement = (
            sa.select(outbox)
            .where(outbox.c.organization_id == organization_id)
            .order_by(outbox.c.created_at_ms.desc(), outbox.c.id)
            .limit(limit)
        )
        async with reading(self._source) as connection:
            return [Delivery(**row) for row in (await connection.execute(statement)).mappings()]

    async def forget(self, before_ms: int) -> None:
        """Remove what was delivered or given up and is older than a moment."""
        statement = sa.delete(outbox).where(outbox.c.state != WAITING, outbox.c.created_at_ms < before_ms)
        async with writing(self._source) as connection:
            await connection.execute(statement)

    async def _put(self, which: sa.ColumnElement[bool], **values: object) -> None:
        async with writing(self._source) as connection:
            await connection.execute(sa.update(outbox).where(which).values(values))


async def count_deliveries(connection: AsyncConnection, organization_id: str, since_ms: int) -> int:
    """Return how many deliveries of an organization were put here since a moment, whatever became of them."""
    statement = sa.select(sa.func.count()).where(
        outbox.c.organization_id == organization_id, outbox.c.created_at_ms > since_ms
    )
    return int(await connection.scalar(statement) or 0)


async def insert_deliveries(connection: AsyncConnection, deliveries: Sequence[Delivery]) -> None:
    """Put deliveries into the outbox in the caller's transaction."""
    if deliveries:
        await connection.execute(sa.insert(outbox), [asdict(one) for one in deliveries])
