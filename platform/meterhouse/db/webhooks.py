"""Where organizations want to be told, in SQL.

Not here: their secrets, which are derived and never stored (``billing.webhook``).
"""

from dataclasses import asdict, dataclass

import sqlalchemy as sa

from meterhouse.db.engine import Source, reading, writing
from meterhouse.db.tables_billing import webhook


@dataclass(frozen=True, slots=True)
class Webhook:
    """An address that an organization's events are posted to."""

    id: str
    organization_id: str
    url: str
    pepper_version: int
    """The pepper that its secret is derived from."""
    created_at_ms: int


class WebhookStore:
    """Reads and writes webhooks. Every method raises StoreDown when there is no database."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def insert(self, new: Webhook) -> None:
        """Write a new webhook; its organization must exist."""
        async with writing(self._source) as connection:
            await connection.execute(sa.insert(webhook).values(asdict(new)))

    async def find(self, webhook_id: str) -> Webhook | None:
        """Return a webhook, None when there is none."""
        async with reading(self._source) as connection:
            statement = sa.select(webhook).where(webhook.c.id == webhook_id)
            row = (await connection.execute(statement)).mappings().first()
        return None if row is None else Webhook(**row)

    async def list_webhooks(self, organization_id: str) -> list[Webhook]:
        """Return the webhooks of an organization, the oldest first; there are few."""
        statement = (
            sa.select(webhook)
            .where(webhook.c.organization_id == organization_id)
            .order_by(webhook.c.created_at_ms, webhook.c.id)
        )
        async with reading(self._source) as connection:
            return [Webhook(**row) for row in (await connection.execute(statement)).mappings()]

    async def remove(self, webhook_id: str) -> None:
        """Remove a webhook; what is still to be delivered to it is given up at its next try."""
        async with writing(self._source) as connection:
            await connection.execute(sa.delete(webhook).where(webhook.c.id == webhook_id))
