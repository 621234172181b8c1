"""Organizations and their projects, in SQL.

Not here: who may change them, and what their ids look like (``keys.service``).
"""

from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from meterhouse.db.engine import reading, writing
from meterhouse.db.paging import page
from meterhouse.db.tables import organization, project


@dataclass(frozen=True, slots=True)
class Organization:
    """Who pays."""

    id: str
    name: str
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Project:
    """A part of an organization with its own keys and limits; its keys are refused once it is archived."""

    id: str
    organization_id: str
    name: str
    created_at_ms: int
    archived_at_ms: int | None = None


class OrganizationStore:
    """Reads and writes organizations and projects. Every method raises StoreDown when there is no database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def insert_organization(self, new: Organization) -> None:
        """Write a new organization."""
        async with writing(self._engine) as connection:
            await connection.execute(sa.insert(organization).values(asdict(new)))

    async def find_organization(self, organization_id: str) -> Organization | None:
        """Return an organization, None when there is none."""
        statement = sa.select(organization).where(organization.c.id == organization_id)
        async with reading(self._engine) as connection:
            row = (await connection.execute(statement)).mappings().first()
        return None if row is None else Organization(**row)

    async def list_organizations(self, after: str | None = None, limit: int = 100) -> list[Organization]:
        """Return a page of organizations, oldest first, after the id of the last one seen."""
        statement = page(sa.select(organization), organization, after, limit)
        async with reading(self._engine) as connection:
            return [Organization(**row) for row in (await connection.execute(statement)).mappings()]

    async def insert_project(self, new: Project) -> None:
        """Write a new project; its organization must exist."""
        async with writing(self._engine) as connection:
            await connection.execute(sa.insert(project).values(asdict(new)))

    async def find_project(self, project_id: str) -> Project | None:
        """Return a project, archived or not; None when there is none."""
        statement = sa.select(project).where(project.c.id == project_id)
        async with reading(self._engine) as connection:
            row = (await connection.execute(statement)).mappings().first()
        return None if row is None else Project(**row)

    async def list_projects(
        self, organization_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[Project]:
        """Return a page of projects (of one organization), archived ones too, oldest first."""
        statement = sa.select(project)
        if organization_id is not None:
            statement = statement.where(project.c.organization_id == organization_id)
        async with reading(self._engine) as connection:
            rows = await connection.execute(page(statement, project, after, limit))
            return [Project(**row) for row in rows.mappings()]

    async def archive_project(self, project_id: str, at_ms: int) -> bool:
        """Archive a project; False when there is none or it is archived already."""
        statement = (
            sa.update(project)
            .where(project.c.id == project_id, project.c.archived_at_ms.is_(None))
            .values(archived_at_ms=at_ms)
        )
        async with writing(self._engine) as connection:
            return (await connection.execute(statement)).rowcount > 0
