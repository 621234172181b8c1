"""The spend limit of an organization or a project, as OpenAI's SDK sets it: a budget per UTC month on the meter.

It is the limit ``spend ... USD/month`` of its owner; ``/admin/limits`` shows and sets the same one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from meterhouse.admin.guard import Mandate, Mandated
from meterhouse.admin.schemas import Strict
from meterhouse.db.ledger import LedgerStore
from meterhouse.errors import NotFound
from meterhouse.keys.limit_changes import LimitChange
from meterhouse.keys.service import KeyService
from meterhouse.limits.limit import MAX_AMOUNT
from meterhouse.limits.window import period_of
from meterhouse.metering import Clock, Kind, Limit, Scope, Window

NANOS_PER_CENT = 10_000_000
MAX_CENTS = MAX_AMOUNT // NANOS_PER_CENT


class SpendLimitRequest(Strict):
    """The most that a UTC month may cost."""

    threshold_amount: Annotated[int, Field(gt=0, le=MAX_CENTS, description="Cents")]
    currency: Literal["USD"]
    interval: Literal["month"]


class Enforcement(BaseModel):
    """Whether the limit stands in the way of requests just now, because it is spent."""

    status: Literal["inactive", "enforcing"]


class SpendLimitObject(BaseModel):
    """The most that a UTC month may cost."""

    object: Literal["organization.spend_limit", "project.spend_limit"]
    threshold_amount: int = Field(description="Whole cents, rounded down")
    currency: Literal["USD"] = "USD"
    interval: Literal["month"] = "month"
    enforcement: Enforcement


class DeletedSpendLimitObject(BaseModel):
    """A spend limit that was removed."""

    object: Literal["organization.spend_limit.deleted", "project.spend_limit.deleted"]
    deleted: Literal[True] = True


@dataclass(frozen=True, slots=True)
class SpendLimits:
    """Reads and changes spend limits."""

    service: KeyService
    ledger: LedgerStore
    clock: Clock

    async def show(self, scope: Scope, scope_id: str, limits: Sequence[Limit]) -> SpendLimitObject:
        """Show the spend limit among an owner's limits; raises NotFound when there is none."""
        limit = next((limit for limit in limits if _is_ours(limit)), None)
        if limit is None:
            raise _no_limit(scope, scope_id)
        spent = await self.ledger.sum_period(period_of(limit, self.clock.now_ms()))
        status: Literal["inactive", "enforcing"] = "enforcing" if spent.charge_nanos >= limit.amount else "inactive"
        return SpendLimitObject(
            object="project.spend_limit" if scope is Scope.PROJECT else "organization.spend_limit",
            threshold_amount=limit.amount // NANOS_PER_CENT,
            enforcement=Enforcement(status=status),
        )

    async def get(self, scope: Scope, scope_id: str, mandate: Mandate) -> SpendLimitObject:
        """Return a spend limit; raises NotFound."""
        limits = await self.service.list_limits(scope, scope_id, within=mandate.organization_id)
        return await self.show(scope, scope_id, limits)

    async def put(self, scope: Scope, scope_id: str, body: SpendLimitRequest, mandate: Mandate) -> SpendLimitObject:
        """Set a spend limit over the one that there is; raises NotFound when there is no such owner."""
        await self.service.get_limit_owner(scope, scope_id, within=mandate.organization_id)
        new = Limit(scope, scope_id, Kind.SPEND, Window.MONTH, body.threshold_amount * NANOS_PER_CENT)
        change = LimitChange(scope, scope_id, lambda old: [*_others(old), new])
        return await self.show(scope, scope_id, await self.service.change_limits(change, author=mandate.author))

    async def remove(self, scope: Scope, scope_id: str, mandate: Mandate) -> DeletedSpendLimitObject:
        """Remove a spend limit; raises NotFound when there is none."""
        await self.service.get_limit_owner(scope, scope_id, within=mandate.organization_id)

        def change(old: Sequence[Limit]) -> list[Limit]:
            if not any(_is_ours(limit) for limit in old):
                raise _no_limit(scope, scope_id)
            return _others(old)

        await self.service.change_limits(LimitChange(scope, scope_id, change), author=mandate.author)
        is_project = scope is Scope.PROJECT
        return DeletedSpendLimitObject(
            object="project.spend_limit.deleted" if is_project else "organization.spend_limit.deleted"
        )


def add_spend_limits(router: APIRouter, limits: SpendLimits) -> None:
    """Add the routes."""

    @router.get("/spend_limit", summary="The spend limit of the organization")
    async def get_organization_spend_limit(mandate: Mandated) -> SpendLimitObject:
        return await limits.get(Scope.ORGANIZATION, mandate.organization_id, mandate)

    @router.post("/spend_limit", summary="Set the spend limit of the organization")
    async def set_organization_spend_limit(body: SpendLimitRequest, mandate: Mandated) -> SpendLimitObject:
        return await limits.put(Scope.ORGANIZATION, mandate.organization_id, body, mandate)

    @router.delete("/spend_limit", summary="Remove the spend limit of the organization")
    async def remove_organization_spend_limit(mandate: Mandated) -> DeletedSpendLimitObject:
        return await limits.remove(Scope.ORGANIZATION, mandate.organization_id, mandate)

    @router.get("/projects/{project_id}/spend_limit", summary="The spend limit of a project")
    async def get_project_spend_limit(project_id: str, mandate: Mandated) -> SpendLimitObject:
        return await limits.get(Scope.PROJECT, project_id, mandate)

    @router.post("/projects/{project_id}/spend_limit", summary="Set the spend limit of a project")
    async def set_project_spend_limit(project_id: str, body: SpendLimitRequest, mandate: Mandated) -> SpendLimitObject:
        return await limits.put(Scope.PROJECT, project_id, body, mandate)

    @router.delete("/projects/{project_id}/spend_limit", summary="Remove the spend limit of a project")
    async def remove_project_spend_limit(project_id: str, mandate: Mandated) -> DeletedSpendLimitObject:
        return await limits.remove(Scope.PROJECT, project_id, mandate)


def _is_ours(limit: Limit) -> bool:
    return limit.kind is Kind.SPEND and limit.window is Window.MONTH and limit.multiple == 1 and limit.model is None


def _others(limits: Sequence[Limit]) -> list[Limit]:
    return [limit for limit in limits if not _is_ours(limit)]


def _no_limit(scope: Scope, scope_id: str) -> NotFound:
    return NotFound(f"The {scope.value} '{scope_id[:64]}' has no spend limit.")
