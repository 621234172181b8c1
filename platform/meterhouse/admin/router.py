"""The routes of ``/admin``: what OpenAI's API has no place for. Who may use which is in ``admin.roles``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from meterhouse.admin.audit import add_audit_events
from meterhouse.admin.guard import SignedIn, sign_in
from meterhouse.admin.pages import BracketRoute
from meterhouse.admin.schemas import (
    IssuedKeyObject,
    KeyObject,
    KeyRequest,
    LimitsObject,
    LimitsRequest,
    Listing,
    OrganizationObject,
    OrganizationRequest,
    ProjectObject,
    ProjectRequest,
    RotateRequest,
)
from meterhouse.admin.supply import SupplyParts, add_supply
from meterhouse.db.catalog import Catalog
from meterhouse.db.ledger import LedgerStore
from meterhouse.keys.service import KeyOrder, KeyService
from meterhouse.limits.limit import parse_limits
from meterhouse.metering import Scope

Shown = TypeVar("Shown", bound=BaseModel)

PageSize = Annotated[int, Query(ge=1, le=100)]


@dataclass(frozen=True, slots=True)
class AdminParts:
    """What the administration changes."""

    service: KeyService
    catalog: Catalog
    supply: SupplyParts
    ledger: LedgerStore


def build_admin_router(parts: AdminParts) -> APIRouter:
    """Make the routes."""
    router = APIRouter(
        prefix="/admin", tags=["administration"], dependencies=[Depends(sign_in)], route_class=BracketRoute
    )
    _add_organizations(router, parts)
    _add_keys(router, parts)
    _add_limits(router, parts)
    add_supply(router, parts.supply, parts.catalog.prices)
    add_audit_events(router, parts.catalog.audit)
    return router


def _add_organizations(router: APIRouter, parts: AdminParts) -> None:
    service, stores = parts.service, parts.catalog.organizations

    @router.post("/organizations", status_code=201, summary="Create an organization")
    async def create_organization(body: OrganizationRequest, author: SignedIn) -> OrganizationObject:
        return OrganizationObject.of(await service.create_organization(body.name, author=author))

    @router.get("/organizations", summary="List organizations")
    async def list_organizations(after: str | None = None, limit: PageSize = 20) -> Listing[OrganizationObject]:
        found = await stores.list_organizations(after, limit + 1)
        return _listing([OrganizationObject.of(item) for item in found], limit)

    @router.post("/projects", status_code=201, summary="Create a project")
    async def create_project(body: ProjectRequest, author: SignedIn) -> ProjectObject:
        made = await service.create_project(body.organization_id, body.name, author=author)
        return ProjectObject.of(made)

    @router.get("/projects", summary="List projects")
    async def list_projects(
        organization_id: str | None = None, after: str | None = None, limit: PageSize = 20
    ) -> Listing[ProjectObject]:
        found = await stores.list_projects(organization_id, after, limit + 1)
        return _listing([ProjectObject.of(item) for item in found], limit)

    @router.post("/projects/{project_id}/archive", summary="Archive a project: its keys stop")
    async def archive_project(project_id: str, author: SignedIn) -> ProjectObject:
        return ProjectObject.of(await service.archive_project(project_id, author=author))


def _add_keys(router: APIRouter, parts: AdminParts) -> None:
    service = parts.service

    @router.post("/keys", status_code=201, summary="Issue a key; its value is shown this once")
    async def issue_key(body: KeyRequest, author: SignedIn) -> IssuedKeyObject:
        order = KeyOrder(
            name=body.name,
            project_id=body.project_id,
            expires_in_seconds=body.expires_in_seconds,
            models=None if body.models is None else frozenset(body.models),
            limits=parse_limits(body.limits, Scope.KEY, ""),
            ip_ranges=tuple(body.ip_ranges),
            scopes=frozenset(body.scopes),
            service_account=body.service_account,
        )
        issued = await service.issue(order, author=author)
        return IssuedKeyObject.with_value(issued.key, issued.value)

    @router.get("/keys", summary="List keys, without secrets")
    async def list_keys(
        project_id: str | None = None, after: str | None = None, limit: PageSize = 20
    ) -> Listing[KeyObject]:
        found = await service.list_keys(project_id, after, limit + 1)
        return _listing([KeyObject.of(item) for item in found], limit)

    @router.get("/keys/{key_id}", summary="One key, without its secret")
    async def get_key(key_id: str) -> KeyObject:
        return KeyObject.of(await service.get(key_id))

    @router.post("/keys/{key_id}/rotate", status_code=201, summary="Issue a successor; both work for the overlap")
    async def rotate_key(key_id: str, body: RotateRequest, author: SignedIn) -> IssuedKeyObject:
        issued = await service.rotate(key_id, body.overlap_seconds, author=author)
        return IssuedKeyObject.with_value(issued.key, issued.value)

    @router.delete("/keys/{key_id}", summary="Revoke a key; running streams of it are cut")
    async def revoke_key(key_id: str, author: SignedIn) -> KeyObject:
        return KeyObject.of(await service.revoke(key_id, author=author))


def _add_limits(router: APIRouter, parts: AdminParts) -> None:
    service = parts.service

    @router.put("/limits", summary="Set all limits of an organization, a project or a key")
    async def set_limits(body: LimitsRequest, author: SignedIn) -> LimitsObject:
        limits = parse_limits(body.limits, body.scope, body.scope_id)
        found = await service.set_limits(body.scope, body.scope_id, limits, author=author)
        return LimitsObject.of(body.scope, body.scope_id, found)

    @router.get("/limits", summary="The limits that an organization, a project or a key has itself")
    async def get_limits(scope: Scope, scope_id: str) -> LimitsObject:
        return LimitsObject.of(scope, scope_id, await service.list_limits(scope, scope_id))


def _listing(items: Sequence[Shown], limit: int) -> Listing[Shown]:
    shown = list(items[:limit])
    ids = [str(getattr(item, "id", "")) for item in shown]
    return Listing(
        data=shown,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=len(items) > limit,
    )
