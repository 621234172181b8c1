"""The routes of ``/admin``: what OpenAI's API has no place for. Who may use which is in ``admin.roles``."""

from dataclasses import dataclass

from fastapi import APIRouter, Depends

from meterhouse.admin.audit import add_audit_events
from meterhouse.admin.billing import BillingParts, add_billing
from meterhouse.admin.breakdown import add_breakdown
from meterhouse.admin.guard import sign_in
from meterhouse.admin.keys import add_keys, add_limits
from meterhouse.admin.ledger import LedgerParts, add_ledger
from meterhouse.admin.pages import AdminRoute
from meterhouse.admin.series import add_series
from meterhouse.admin.supply import SupplyParts, add_supply
from meterhouse.admin.tenants import add_tenants
from meterhouse.admin.tokens import add_tokens
from meterhouse.admin.usage import UsageParts
from meterhouse.db.catalog import Catalog
from meterhouse.db.ledger import LedgerStore
from meterhouse.keys.service import KeyService


@dataclass(frozen=True, slots=True)
class AdminParts:
    """What the administration changes."""

    service: KeyService
    catalog: Catalog
    supply: SupplyParts
    balances: LedgerStore
    """Where it is read what has been spent."""
    books: LedgerParts
    usage: UsageParts
    token_issuer: str | None
    """Whose tokens administrators may sign in with."""
    billing: BillingParts


def build_admin_router(parts: AdminParts) -> APIRouter:
    """Make the routes."""
    router = APIRouter(
        prefix="/admin", tags=["administration"], dependencies=[Depends(sign_in)], route_class=AdminRoute
    )
    add_tenants(router, parts.service, parts.catalog)
    add_keys(router, parts.service)
    add_limits(router, parts.service)
    add_supply(router, parts.supply, parts.catalog.prices)
    add_billing(router, parts.billing)
    add_audit_events(router, parts.catalog.audit)
    add_ledger(router, parts.books)
    add_series(router, parts.usage)
    add_breakdown(router, parts.usage)
    add_tokens(router, parts.catalog, parts.token_issuer, parts.usage.clock)
    return router
