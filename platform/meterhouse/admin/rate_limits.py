"""The rate limits of a project, model by model, as OpenAI's SDK lists and sets them.

They are the project's limits ``requests .../minute for MODEL``, ``tokens .../minute for MODEL`` and ``requests .../day
for MODEL``; ``/admin/limits`` shows and sets the same ones. OpenAI's answers have a number in every case, so that one
which does not bind is shown as the largest that could be set, and setting that one removes a limit.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from meterhouse.admin.guard import Mandated
from meterhouse.admin.pages import Cursor, listing
from meterhouse.admin.schemas import Listing, Strict, refuse_given
from meterhouse.audit import Action
from meterhouse.db.paging import Page, PageQuery
from meterhouse.errors import NotFound
from meterhouse.keys.limit_changes import LimitChange
from meterhouse.keys.service import KeyService
from meterhouse.limits.limit import MAX_AMOUNT, check_limit
from meterhouse.metering import Kind, Limit, Scope, Window
from meterhouse.providers.routes import Routes

PREFIX = "rl-"
NO_LIMIT = MAX_AMOUNT
Amount = Annotated[int | None, Field(gt=0, le=NO_LIMIT)]

_BOUNDS = {
    "max_requests_per_1_minute": (Kind.REQUESTS, Window.MINUTE),
    "max_tokens_per_1_minute": (Kind.TOKENS, Window.MINUTE),
    "max_requests_per_1_day": (Kind.REQUESTS, Window.DAY),
}
"""What a field of OpenAI's is as a limit of ours."""
_UNSUPPORTED = ("batch_1_day_max_input_tokens", "max_audio_megabytes_per_1_minute", "max_images_per_1_minute")


class RateLimitRequest(Strict):
    """What shall change; what is left out stays."""

    max_requests_per_1_minute: Amount = None
    max_tokens_per_1_minute: Amount = None
    max_requests_per_1_day: Amount = None
    batch_1_day_max_input_tokens: int | None = None
    max_audio_megabytes_per_1_minute: int | None = None
    max_images_per_1_minute: int | None = None


class RateLimitObject(BaseModel):
    """What binds all of a project's requests to one model together."""

    id: str
    object: Literal["project.rate_limit"] = "project.rate_limit"
    model: str
    max_requests_per_1_minute: int = Field(description=f"{NO_LIMIT}: no limit")
    max_tokens_per_1_minute: int = Field(description=f"{NO_LIMIT}: no limit")
    max_requests_per_1_day: int | None = None

    @classmethod
    def of(cls, model: str, limits: Iterable[Limit]) -> "RateLimitObject":
        """Show the limits of one model."""
        amounts = {(limit.kind, limit.window): limit.amount for limit in limits if _is_ours(limit, model)}
        fields: dict[str, Any] = {name: amounts.get(bound) for name, bound in _BOUNDS.items()}
        for name in ("max_requests_per_1_minute", "max_tokens_per_1_minute"):
            fields[name] = fields[name] or NO_LIMIT
        return cls(id=PREFIX + model, model=model, **fields)


def read_long_page(
    after: Cursor = None, before: Cursor = None, limit: Annotated[int, Query(ge=1, le=1_000)] = 100
) -> PageQuery:
    """Read which page is asked for."""
    return PageQuery(limit, after, before)


def add_rate_limits(router: APIRouter, service: KeyService, routes: Routes) -> None:
    """Add the routes."""

    @router.get("/projects/{project_id}/rate_limits", summary="List rate limits by model")
    async def list_rate_limits(
        project_id: str, mandate: Mandated, page: Annotated[PageQuery, Depends(read_long_page)]
    ) -> Listing[RateLimitObject]:
        limits = await service.list_limits(Scope.PROJECT, project_id, within=mandate.organization_id)
        rows = [RateLimitObject.of(model, limits) for model in sorted(_models(routes, limits))]
        return listing(_page_of(rows, page), lambda row: row)

    @router.post("/projects/{project_id}/rate_limits/{rate_limit_id:path}", summary="Set the rate limits of a model")
    async def set_rate_limit(
        project_id: str, rate_limit_id: str, body: RateLimitRequest, mandate: Mandated
    ) -> RateLimitObject:
        refuse_given(body, *_UNSUPPORTED)
        limits = await service.list_limits(Scope.PROJECT, project_id, within=mandate.organization_id)
        model = rate_limit_id.removeprefix(PREFIX)
        if not rate_limit_id.startswith(PREFIX) or model not in _models(routes, limits):
            raise NotFound(f"There is no rate limit '{rate_limit_id[:64]}' in this project.", param="rate_limit_id")
        change = LimitChange(
            Scope.PROJECT,
            project_id,
            lambda old: list(_changed(old, model, body)),
            action=Action.RATE_LIMIT_UPDATED,
            target_id=rate_limit_id,
            asked=body.model_dump(exclude_none=True),
        )
        return RateLimitObject.of(model, await service.change_limits(change, author=mandate.author))


def _models(routes: Routes, limits: Sequence[Limit]) -> set[str]:
    """Return the models that are listed, and those that a limit names though they are not."""
    named = {limit.model for limit in limits if limit.model is not None and _is_ours(limit, limit.model)}
    return {listed.name for listed in routes.list_models()} | named


def _is_ours(limit: Limit, model: str) -> bool:
    return limit.model == model and limit.multiple == 1 and (limit.kind, limit.window) in _BOUNDS.values()


def _changed(old: Sequence[Limit], model: str, body: RateLimitRequest) -> Iterator[Limit]:
    """Yield a project's limits with those of a model that the body names changed; raises Malformed."""
    asked = {bound: getattr(body, name) for name, bound in _BOUNDS.items() if getattr(body, name) is not None}
    for limit in old:
        if not (_is_ours(limit, model) and (limit.kind, limit.window) in asked):
            yield limit
    for (kind, window), amount in asked.items():
        if amount != NO_LIMIT:
            new = Limit(Scope.PROJECT, "", kind, window, amount, model=model)
            check_limit(new)
            yield new


def _page_of(rows: Sequence[RateLimitObject], page: PageQuery) -> Page[RateLimitObject]:
    """Cut a page out of rows in the order of their models; the row that it starts from need not be there any more."""
    after, before = page.after, page.before
    left = [row for row in rows if (after is None or row.id > after) and (before is None or row.id < before)]
    is_backwards = before is not None and after is None
    shown = left[-page.limit :] if is_backwards else left[: page.limit]
    return Page(shown, has_more=len(left) > len(shown))
