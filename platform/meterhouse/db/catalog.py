"""What is sold and to whom, in SQL: the stores of the catalog, side by side over one engine.

Not here: the ledger (``db.ledger``), whose rows refer to the catalog by id but never depend on it.
"""

from sqlalchemy.ext.asyncio import AsyncEngine

from meterhouse.db.keys import KeyStore
from meterhouse.db.limits import LimitStore
from meterhouse.db.organizations import OrganizationStore
from meterhouse.db.prices import MetaStore, PriceStore
from meterhouse.db.supply import SupplyStore


class Catalog:
    """Every store of the catalog. It does not own the engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.organizations = OrganizationStore(engine)
        self.keys = KeyStore(engine)
        self.limits = LimitStore(engine)
        self.prices = PriceStore(engine)
        self.supply = SupplyStore(engine)
        self.meta = MetaStore(engine)
