"""Where limits stand, for whoever administrates them: all that bind one key, and everybody's budgets."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from meterhouse.admin.guard import SignedIn
from meterhouse.admin.pages import Cursor, listing
from meterhouse.admin.schemas import Listing
from meterhouse.db.budgets import Budget, BudgetStore
from meterhouse.db.paging import Page
from meterhouse.errors import NotFound
from meterhouse.http.account import AccountParts, LimitList, LimitObject, show_limit
from meterhouse.http.naming import LimitNames
from meterhouse.keys.service import KeyService
from meterhouse.metering import LimitState

MOST_BUDGETS = 100
PageSize = Annotated[int, Query(ge=1, le=MOST_BUDGETS)]


class BudgetObject(LimitObject):
    """A limit of spend of an organization, a project or a key, and where it stands."""

    id: str = Field(description="`credit`: not written by an operator, but what the organization has paid ahead")
    object: str = "budget"
    organization_id: str
    name: str = Field(description="Of the organization, the project or the key")


def build_standing_router(parts: AccountParts, keys: KeyService, budgets: BudgetStore) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/admin", tags=["administration"])
    limit_names = LimitNames(parts.routes)

    @router.get("/keys/{key_id}/limits", summary="Every limit that binds a key, and where it stands")
    async def list_key_limits(key_id: str, author: SignedIn) -> LimitList:
        key = await keys.get(key_id, within=author.actor.organization_id)
        states = await parts.meter.list_states(key.organization_id, limit_names.translate(key.limits))
        return LimitList(data=[show_limit(state) for state in states])

    @router.get("/budgets", summary="Limits of spend and where they stand: organizations, projects, then keys")
    async def list_budgets(
        author: SignedIn, organization_id: str | None = None, after: Cursor = None, limit: PageSize = 20
    ) -> Listing[BudgetObject]:
        if organization_id is not None and not author.actor.may_see(organization_id):
            raise NotFound("There is no such organization, or this credential is not bound to it.")
        page = await budgets.page_budgets(
            author.actor.organization_id or organization_id, after, limit, parts.clock.now_ms()
        )
        states = await _states_of(parts, limit_names, page.rows)
        shown = Page(list(zip(page.rows, states, strict=True)), page.has_more)
        return listing(shown, _show_budget)

    return router


async def _states_of(parts: AccountParts, limit_names: LimitNames, budgets: Sequence[Budget]) -> list[LimitState]:
    """Ask the meter where budgets stand, one organization at a time; in their order."""
    names = dict.fromkeys(budget.organization_id for budget in budgets)
    found: dict[int, LimitState] = {}
    for organization_id in names:
        places = [i for i, budget in enumerate(budgets) if budget.organization_id == organization_id]
        limits = limit_names.translate(tuple(budgets[i].limit for i in places))
        states = await parts.meter.list_states(organization_id, limits)
        found.update(zip(places, states, strict=True))
    return [found[i] for i in range(len(budgets))]


def _show_budget(stands: tuple[Budget, LimitState]) -> BudgetObject:
    budget, state = stands
    fields = show_limit(state).model_dump(exclude={"object"})
    return BudgetObject(id=budget.id, organization_id=budget.organization_id, name=budget.owner_name, **fields)
