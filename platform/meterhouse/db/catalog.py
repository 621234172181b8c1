"""What is sold and to whom, in SQL: the stores of the catalog, side by side over one engine or in one transaction.

Not here: the ledger (``db.ledger``), whose rows refer to the catalog by id but never depend on it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from meterhouse.audit import Action, Change
from meterhouse.db import postgres
from meterhouse.db.accounts import ServiceAccountStore
from meterhouse.db.alerts import AlertStore
from meterhouse.db.audit import AuditStore
from meterhouse.db.budgets import BudgetStore
from meterhouse.db.credits import CreditStore
from meterhouse.db.engine import Source, writing
from meterhouse.db.invoices import InvoiceStore
from meterhouse.db.keys import KeyStore
from meterhouse.db.limits import LimitStore
from meterhouse.db.organizations import OrganizationStore
from meterhouse.db.prices import MetaStore, PriceStore
from meterhouse.db.supply import SupplyStore
from meterhouse.db.webhooks import WebhookStore
from meterhouse.identity import COMMAND_LINE, Author
from meterhouse.money import Price


class Catalog:
    """Every store of the catalog. It does not own the engine."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.organizations = OrganizationStore(source)
        self.accounts = ServiceAccountStore(source)
        self.keys = KeyStore(source)
        self.limits = LimitStore(source)
        self.budgets = BudgetStore(source)
        self.prices = PriceStore(source)
        self.supply = SupplyStore(source)
        self.meta = MetaStore(source)
        self.audit = AuditStore(source)
        self.alerts = AlertStore(source)
        self.webhooks = WebhookStore(source)
        self.credits = CreditStore(source)
        self.invoices = InvoiceStore(source)

    async def write_price(self, price: Price, *, author: Author = COMMAND_LINE) -> None:
        """Write an operator's price, and who set it; raises StoreDown."""
        shown = {"provider": price.provider, "model": price.model, "effective_from_ms": price.effective_from_ms}
        components = msgspec.to_builtins(price.components)
        change = Change(Action.PRICE_CREATED, price.id, after={**shown, "components": components})
        async with self.changing() as inside:
            await inside.prices.insert_prices([price])
            await inside.audit.write(author, change)

    @asynccontextmanager
    async def changing(self, organization_id: str | None = None) -> AsyncIterator["Catalog"]:
        """Give the catalog inside one transaction: what is changed and its audit event are committed together.

        Raises:
            StoreDown: There is no database.

        Args:
            organization_id: whose objects change: its other changes wait, so that what is read before a change is
                still so at its end, and the audit log has their order. On SQLite there is one writer anyway.
        """
        async with writing(self._source) as connection:
            if organization_id is not None and postgres.is_postgres(connection):
                await _take_turn(connection, organization_id)
            yield Catalog(connection)


async def _take_turn(connection: AsyncConnection, organization_id: str) -> None:
    turn = sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(organization_id, 0))
    await connection.execute(sa.select(turn))
