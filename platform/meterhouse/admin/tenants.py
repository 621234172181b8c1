"""The routes of ``/admin`` for organizations and their projects."""

from collections.abc import Sequence

from fastapi import APIRouter

from meterhouse.admin.guard import SignedIn
from meterhouse.admin.pages import OldestFirst, listing
from meterhouse.admin.schemas import Listing, OrganizationObject, OrganizationRequest, ProjectObject, ProjectRequest
from meterhouse.db.catalog import Catalog
from meterhouse.db.organizations import Organization
from meterhouse.db.paging import Page
from meterhouse.keys.service import KeyService


def add_tenants(router: APIRouter, service: KeyService, catalog: Catalog) -> None:
    """Add the routes."""
    _add_organizations(router, service, catalog)
    _add_projects(router, service, catalog)


def _add_organizations(router: APIRouter, service: KeyService, catalog: Catalog) -> None:
    @router.post("/organizations", status_code=201, summary="Create an organization")
    async def create_organization(body: OrganizationRequest, author: SignedIn) -> OrganizationObject:
        return OrganizationObject.of(await service.create_organization(body.name, author=author))

    @router.get("/organizations", summary="List organizations: all for an operator, else one's own")
    async def list_organizations(author: SignedIn, page: OldestFirst) -> Listing[OrganizationObject]:
        own = author.actor.organization_id
        if own is None:
            return listing(await catalog.organizations.page_organizations(page), OrganizationObject.of)
        found: Sequence[Organization] = [await service.get_organization(own)]
        return listing(Page([] if page.after or page.before else found, has_more=False), OrganizationObject.of)

    @router.get("/organizations/{organization_id}", summary="One organization")
    async def get_organization(organization_id: str, author: SignedIn) -> OrganizationObject:
        return OrganizationObject.of(
            await service.get_organization(organization_id, within=author.actor.organization_id)
        )

    @router.post("/organizations/{organization_id}", summary="Give an organization another name")
    async def update_organization(
        organization_id: str, body: OrganizationRequest, author: SignedIn
    ) -> OrganizationObject:
        await service.get_organization(organization_id, within=author.actor.organization_id)
        return OrganizationObject.of(await service.rename_organization(organization_id, body.name, author=author))


def _add_projects(router: APIRouter, service: KeyService, catalog: Catalog) -> None:
    @router.post("/projects", status_code=201, summary="Create a project")
    async def create_project(body: ProjectRequest, author: SignedIn) -> ProjectObject:
        await service.get_organization(body.organization_id, within=author.actor.organization_id)
        return ProjectObject.of(await service.create_project(body.organization_id, body.name, author=author))

    @router.get("/projects", summary="List projects, archived ones too")
    async def list_projects(
        author: SignedIn, page: OldestFirst, organization_id: str | None = None
    ) -> Listing[ProjectObject]:
        own = author.actor.organization_id
        if own is not None and organization_id is not None:
            await service.get_organization(organization_id, within=own)
        found = await catalog.organizations.page_projects(own or organization_id, page)
        return listing(found, ProjectObject.of)

    @router.post("/projects/{project_id}/archive", summary="Archive a project: its keys stop")
    async def archive_project(project_id: str, author: SignedIn) -> ProjectObject:
        await service.get_project(project_id, within=author.actor.organization_id)
        return ProjectObject.of(await service.archive_project(project_id, author=author))
