"""The OpenAI Administration API, ``/v1/organization``: put together from one module for each of its areas.

The official SDK drives it unchanged (wire.md 1.12). What OpenAI has and we have not (users, invites, groups, roles,
certificates, ...) is not found, as any other address.
"""

from fastapi import APIRouter, Depends

from meterhouse.admin.admin_keys import add_admin_keys
from meterhouse.admin.audit import add_audit_logs
from meterhouse.admin.guard import sign_in
from meterhouse.admin.model_permissions import add_model_permissions
from meterhouse.admin.pages import AdminRoute
from meterhouse.admin.project_keys import add_project_keys
from meterhouse.admin.projects import add_projects
from meterhouse.admin.rate_limits import add_rate_limits
from meterhouse.admin.router import AdminParts
from meterhouse.admin.service_accounts import add_service_accounts
from meterhouse.admin.spend_alerts import add_spend_alerts
from meterhouse.admin.spend_limits import SpendLimits, add_spend_limits
from meterhouse.admin.usage import add_usage


def build_organization_router(parts: AdminParts) -> APIRouter:
    """Make the routes."""
    router = APIRouter(
        prefix="/v1/organization",
        tags=["organization"],
        dependencies=[Depends(sign_in)],
        route_class=AdminRoute,
    )
    add_usage(router, parts.usage)
    add_projects(router, parts.service, parts.catalog)
    add_service_accounts(router, parts.service)
    add_project_keys(router, parts.service)
    add_rate_limits(router, parts.service, parts.supply.routes)
    add_model_permissions(router, parts.service, parts.supply.routes)
    add_spend_limits(router, SpendLimits(parts.service, parts.balances, parts.supply.clock))
    add_spend_alerts(router, parts.billing.alerts)
    add_admin_keys(router, parts.service)
    add_audit_logs(router, parts.catalog.audit, parts.catalog.organizations)
    return router
