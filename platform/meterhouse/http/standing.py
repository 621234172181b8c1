"""Where limits stand, for whoever administrates them: all that bind one key, and everybody's budgets."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from meterhouse.admin.guard import SignedIn
from meterhouse.admin.pages import Cursor, listing
from meterhouse.admin.schemas import Listing
from meterhouse.db.budgets import Budget, BudgetStore
from meterhouse.db.paging import Page
from meterhouse.errors import MeterDown, NotFound
from meterhouse.http.account import AccountParts, LimitList, LimitTerms, show_limit
from meterhouse.http.naming import LimitNames
from meterhouse.keys.service import KeyService
from meterhouse.metering import LimitState

MOST_BUDGETS = 100
MOST_AT_ONCE = 10
"""Organizations that one answer asks the meter about at the same time."""
METER_SECONDS = 5.0
"""Of those that the meter did not tell of by then the standing is unknown."""
PageSize = Annotated[int, Query(ge=1, le=MOST_BUDGETS)]


class BudgetObject(LimitTerms):
    """A limit of spend of an organization, a project or a key, and where it stands, as in ``LimitObject``."""

    id: str = Field(description="`credit`: not written by an operator, but what the organization has paid ahead")
    object: str = "budget"
    organization_id: str
    name: str = Field(description="Of the organization, the project or the key")
    standing: Literal["known", "unknown"] = Field(
        description="`unknown`: the meter does not know just now what is spent, and says so within a few seconds"
    )
    spent: int | None = Field(description="Null, like what follows from it, while the standing is unknown")
    reserved: int | None
    free: int | None
    usd: dict[str, str] | None
    resets_at: int | None


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


async def _states_of(
    parts: AccountParts, limit_names: LimitNames, budgets: Sequence[Budget]
) -> list[LimitState | None]:
    """Ask the meter where budgets stand, a few organizations at once; in their order, None where it did not say."""
    places: dict[str, list[int]] = {}
    for place, budget in enumerate(budgets):
        places.setdefault(budget.organization_id, []).append(place)
    turn = asyncio.Semaphore(MOST_AT_ONCE)
    deadline = asyncio.get_running_loop().time() + METER_SECONDS

    async def ask(organization_id: str) -> Sequence[LimitState | None]:
        own = places[organization_id]
        limits = limit_names.translate(tuple(budgets[place].limit for place in own))
        try:
            async with asyncio.timeout_at(deadline), turn:
                return await parts.meter.list_states(organization_id, limits)
        except (MeterDown, TimeoutError):
            return [None] * len(own)

    answers = await asyncio.gather(*map(ask, places))
    found = {
        place: state
        for own, states in zip(places.values(), answers, strict=True)
        for place, state in zip(own, states, strict=True)
    }
    return [found[place] for place in range(len(budgets))]


def _show_budget(stands: tuple[Budget, LimitState | None]) -> BudgetObject:
    budget, state = stands
    shown = show_limit(state or LimitState(budget.limit, 0, 0, None)).model_dump(exclude={"object"})
    if state is None:
        usd = shown["usd"] and {"amount": shown["usd"]["amount"]}
        shown |= {"spent": None, "reserved": None, "free": None, "resets_at": None, "usd": usd}
    return BudgetObject(
        id=budget.id,
        organization_id=budget.organization_id,
        name=budget.owner_name,
        standing="unknown" if state is None else "known",
        **shown,
    )
