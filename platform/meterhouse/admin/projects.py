"""The projects of an organization, as OpenAI's SDK makes and archives them."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from meterhouse.admin.guard import Mandated
from meterhouse.admin.pages import OldestFirst, listing
from meterhouse.admin.schemas import Listing, Name, Strict, refuse_given, seconds
from meterhouse.db.catalog import Catalog
from meterhouse.db.organizations import Project
from meterhouse.keys.service import KeyService


class ProjectOrder(Strict):
    """A new project, or another name for one. Regions and external keys are OpenAI's alone."""

    name: str | None = Field(None, min_length=1, max_length=200)
    external_key_id: str | None = None
    geography: str | None = None
    residency: dict[str, Any] | None = None


class NamedProjectOrder(ProjectOrder):
    """A new project."""

    name: str = Name


class ProjectView(BaseModel):
    """A part of an organization with its own keys and limits."""

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]
    external_key_id: None = None
    residency: None = None

    @classmethod
    def of(cls, stored: Project) -> "ProjectView":
        """Show a stored project."""
        return cls(
            id=stored.id,
            name=stored.name,
            created_at=stored.created_at_ms // 1000,
            archived_at=seconds(stored.archived_at_ms),
            status="active" if stored.archived_at_ms is None else "archived",
        )


def add_projects(router: APIRouter, service: KeyService, catalog: Catalog) -> None:
    """Add the routes."""

    @router.post("/projects", summary="Create a project")
    async def create_project(body: NamedProjectOrder, mandate: Mandated) -> ProjectView:
        refuse_given(body, "external_key_id", "geography", "residency")
        made = await service.create_project(mandate.organization_id, body.name, author=mandate.author)
        return ProjectView.of(made)

    @router.get("/projects", summary="List projects")
    async def list_projects(
        mandate: Mandated, page: OldestFirst, include_archived: Annotated[bool, Query()] = False
    ) -> Listing[ProjectView]:
        store = catalog.organizations
        found = await store.page_projects(mandate.organization_id, page, has_archived=include_archived)
        return listing(found, ProjectView.of)

    @router.get("/projects/{project_id}", summary="One project")
    async def get_project(project_id: str, mandate: Mandated) -> ProjectView:
        return ProjectView.of(await service.get_project(project_id, within=mandate.organization_id))

    @router.post("/projects/{project_id}", summary="Give a project another name")
    async def update_project(project_id: str, body: ProjectOrder, mandate: Mandated) -> ProjectView:
        refuse_given(body, "external_key_id", "geography", "residency")
        found = await service.get_project(project_id, within=mandate.organization_id)
        if body.name is not None:
            found = await service.rename_project(project_id, body.name, author=mandate.author)
        return ProjectView.of(found)

    @router.post("/projects/{project_id}/archive", summary="Archive a project: its keys stop")
    async def archive_project(project_id: str, mandate: Mandated) -> ProjectView:
        await service.get_project(project_id, within=mandate.organization_id)
        return ProjectView.of(await service.archive_project(project_id, author=mandate.author))
