"""What keeps the ledger in order, side by side over one engine: seals, the projection, reviews.

Not here: the ledger itself (``db.ledger``).
"""

from sqlalchemy.ext.asyncio import AsyncEngine

from meterhouse.db.chain import HashRows
from meterhouse.db.rebuild import Projection
from meterhouse.db.reviews import ReviewStore
from meterhouse.db.seals import SealStore


class Books:
    """Every store that looks after the ledger. It does not own the engine."""

    def __init__(self, engine: AsyncEngine, hash_rows: HashRows) -> None:
        self.seals = SealStore(engine, hash_rows)
        self.projection = Projection(engine)
        self.reviews = ReviewStore(engine)
