"""The OpenAI Administration API, ``/v1/organization``: put together from one module for each of its areas.

The official SDK drives it unchanged (wire.md 1.12). What OpenAI has and we have not (users, invites, groups, roles,
certificates, ...) is not found, as any other address.
"""

from fastapi import APIRouter, Depends

from meterhouse.admin.audit import add_audit_logs
from meterhouse.admin.guard import sign_in
from meterhouse.admin.pages import BracketRoute
from meterhouse.admin.router import AdminParts


def build_organization_router(parts: AdminParts) -> APIRouter:
    """Make the routes."""
    router = APIRouter(
        prefix="/v1/organization",
        tags=["organization"],
        dependencies=[Depends(sign_in)],
        route_class=BracketRoute,
    )
    add_audit_logs(router, parts.catalog.audit, parts.catalog.organizations)
    return router
