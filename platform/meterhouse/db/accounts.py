"""Service accounts, in SQL: who a project's keys speak for.

Not here: their keys (``db.keys``), which name the account that they belong to.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from meterhouse.db.engine import Source, reading, writing
from meterhouse.db.paging import Page, PageQuery, fetch_page
from meterhouse.db.tables import service_account


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A program of a project."""

    id: str
    project_id: str
    name: str
    role: str
    """``owner``, ``member`` or ``none``, as OpenAI has it; a key may the same with each."""
    created_at_ms: int
    deleted_at_ms: int | None = None


class ServiceAccountStore:
    """Reads and writes service accounts. Every method raises StoreDown when there is no database."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def insert_account(self, new: ServiceAccount) -> None:
        """Write a new account; its project must exist."""
        async with writing(self._source) as connection:
            await connection.execute(sa.insert(service_account).values(asdict(new)))

    async def update_account(self, changed: ServiceAccount) -> bool:
        """Write an account's name, role and end; False when there is none, or it is deleted already."""
        statement = (
            sa.update(service_account)
            .where(service_account.c.id == changed.id, service_account.c.deleted_at_ms.is_(None))
            .values(name=changed.name, role=changed.role, deleted_at_ms=changed.deleted_at_ms)
        )
        async with writing(self._source) as connection:
            return (await connection.execute(statement)).rowcount > 0

    async def find_accounts(self, account_ids: Collection[str]) -> dict[str, ServiceAccount]:
        """Return those of some accounts that there are, deleted or not, by id."""
        statement = sa.select(service_account).where(service_account.c.id.in_(account_ids))
        async with reading(self._source) as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return {row["id"]: ServiceAccount(**row) for row in rows}

    async def page_accounts(self, project_id: str, page: PageQuery) -> Page[ServiceAccount]:
        """Return a page of a project's accounts that are not deleted."""
        owned = [service_account.c.project_id == project_id]
        statement = sa.select(service_account).where(*owned, service_account.c.deleted_at_ms.is_(None))
        async with reading(self._source) as connection:
            found = await fetch_page(connection, statement, service_account, page, owned)
        return found.map(lambda row: ServiceAccount(**row))
