"""Organizations and their projects, in SQL.

Not here: who may change them, and what their ids look like (``keys.service``).
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from meterhouse.db.engine import Source, reading, writing
from meterhouse.db.paging import Page, PageQuery, fetch_page
from meterhouse.db.tables import organization, project

ALLOW_LIST, DENY_LIST = "allow_list", "deny_list"


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
    model_mode: str | None = None
    """``allow_list`` or ``deny_list`` of the models in ``model_ids``; None: every model."""
    model_ids: tuple[str, ...] = ()


class OrganizationStore:
    """Reads and writes organizations and projects. Every method raises StoreDown when there is no database."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def insert_organization(self, new: Organization) -> None:
        """Write a new organization."""
        async with writing(self._source) as connection:
            await connection.execute(sa.insert(organization).values(asdict(new)))

    async def rename_organization(self, organization_id: str, name: str) -> bool:
        """Give an organization another name; False when there is none."""
        statement = sa.update(organization).where(organization.c.id == organization_id).values(name=name)
        async with writing(self._source) as connection:
            return (await connection.execute(statement)).rowcount > 0

    async def find_organization(self, organization_id: str) -> Organization | None:
        """Return an organization, None when there is none."""
        statement = sa.select(organization).where(organization.c.id == organization_id)
        async with reading(self._source) as connection:
            row = (await connection.execute(statement)).mappings().first()
        return None if row is None else Organization(**row)

    async def list_organizations(self, after: str | None = None, limit: int = 100) -> list[Organization]:
        """Return a page of organizations, oldest first, after the id of the last one seen."""
        return list((await self.page_organizations(PageQuery(limit, after))).rows)

    async def page_organizations(self, query: PageQuery) -> Page[Organization]:
        """Return a page of organizations."""
        async with reading(self._source) as connection:
            found = await fetch_page(connection, sa.select(organization), organization, query)
        return found.map(lambda row: Organization(**row))

    async def insert_project(self, new: Project) -> None:
        """Write a new project; its organization must exist."""
        async with writing(self._source) as connection:
            await connection.execute(sa.insert(project).values(_values_of(new)))

    async def find_project(self, project_id: str) -> Project | None:
        """Return a project, archived or not; None when there is none."""
        statement = sa.select(project).where(project.c.id == project_id)
        async with reading(self._source) as connection:
            row = (await connection.execute(statement)).mappings().first()
        return None if row is None else _project_of(row)

    async def list_projects(
        self, organization_id: str | None = None, after: str | None = None, limit: int = 100
    ) -> list[Project]:
        """Return a page of projects (of one organization), archived ones too, oldest first."""
        return list((await self.page_projects(organization_id, PageQuery(limit, after))).rows)

    async def find_project_names(self, project_ids: Collection[str]) -> dict[str, str]:
        """Return the names of those of some projects that there are, by id."""
        statement = sa.select(project.c.id, project.c.name).where(project.c.id.in_(project_ids))
        async with reading(self._source) as connection:
            return {row.id: row.name for row in await connection.execute(statement)}

    async def page_projects(
        self, organization_id: str | None, query: PageQuery, *, has_archived: bool = True
    ) -> Page[Project]:
        """Return a page of projects (of one organization), with or without archived ones."""
        owned = [] if organization_id is None else [project.c.organization_id == organization_id]
        statement = sa.select(project).where(*owned)
        if not has_archived:
            statement = statement.where(project.c.archived_at_ms.is_(None))
        async with reading(self._source) as connection:
            found = await fetch_page(connection, statement, project, query, owned)
        return found.map(_project_of)

    async def update_project(self, changed: Project) -> bool:
        """Write a project's name and models; False when there is none."""
        values = {name: _values_of(changed)[name] for name in ("name", "model_mode", "model_ids")}
        async with writing(self._source) as connection:
            statement = sa.update(project).where(project.c.id == changed.id).values(values)
            return (await connection.execute(statement)).rowcount > 0

    async def archive_project(self, project_id: str, at_ms: int) -> bool:
        """Archive a project; False when there is none or it is archived already."""
        statement = (
            sa.update(project)
            .where(project.c.id == project_id, project.c.archived_at_ms.is_(None))
            .values(archived_at_ms=at_ms)
        )
        async with writing(self._source) as connection:
            return (await connection.execute(statement)).rowcount > 0


def _project_of(row: sa.RowMapping) -> Project:
    return Project(**{**row, "model_ids": tuple(row["model_ids"] or ())})


def _values_of(stored: Project) -> dict[str, object]:
    return {**asdict(stored), "model_ids": None if stored.model_mode is None else list(stored.model_ids)}
