"""The routes of ``/admin`` for what there is to sell: providers, routes, prices.

A credential goes in and never comes out. What a route shows of its deployments is how they fare in the process that
answers: each worker has breakers of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeVar

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field, SecretStr, StringConstraints

from meterhouse.admin.guard import SignedIn
from meterhouse.admin.schemas import Listing, PriceObject, PriceRequest, Strict
from meterhouse.db.prices import PriceStore
from meterhouse.identity import Author
from meterhouse.metering import Clock
from meterhouse.money import Price
from meterhouse.providers.breaker import Breakers
from meterhouse.providers.provider import Deployment, RouteTarget
from meterhouse.providers.routes import Routes

Shown = TypeVar("Shown", bound=BaseModel)
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=500)]
MOST_DEPLOYMENTS = 32
MOST_MODELS = 1_000


class ProviderRequest(Strict):
    """A provider to switch on, or to change. All but the credential is replaced by what is given."""

    kind: ShortText | None = Field(None, description="The catalog's row that it behaves like; unset: that of its name")
    base_url: ShortText | None = None
    region: ShortText | None = Field(None, description="One of the row's, in place of a base URL")
    workspace: ShortText | None = None
    credential: Annotated[SecretStr, Field(min_length=1, max_length=4_096)] | None = Field(
        None, description="Is never shown again; left out, it stays what it was"
    )
    models: Annotated[list[ShortText], Field(max_length=MOST_MODELS)] = Field(
        default=[], description="What it serves, in place of its own list; `name=upstream-model` for another name"
    )
    shows_all_output: bool = Field(default=False, description="You know that it sends every token that it counts")
    forwards_trace: bool = Field(default=False, description="Its requests carry the trace (`traceparent`)")
    tool_call_format: str = Field("", max_length=2_000, description="How its models write tool calls into their text")
    tools: Literal["send", "withhold", "prompt"] = "send"


class TargetRequest(Strict):
    """One deployment of a route."""

    provider: ShortText
    upstream_model: ShortText
    order: int = Field(0, ge=0, le=100, description="Those of a lower order are asked first")
    weight: int = Field(1, ge=1, le=1_000, description="Its part of the requests among those of its order")
    is_on: bool = Field(default=True, description="Off, it stays written down and gets no request of this name")


class RouteRequest(Strict):
    """Who answers a model's name."""

    deployments: Annotated[list[TargetRequest], Field(min_length=1, max_length=MOST_DEPLOYMENTS)]


class ProviderView(BaseModel):
    """A provider as this process knows it."""

    id: str
    object: str = "provider"
    name: str
    kind: str | None
    source: str = Field(description="`environment`, `operator` (set through the API) or `built-in`")
    is_on: bool
    base_url: str | None
    region: str | None = None
    workspace: str | None = None
    has_credential: bool
    models: list[str]
    shows_all_output: bool = False
    forwards_trace: bool = False
    is_reachable: bool | None = Field(None, description="Null before the first look")
    detail: str = Field("", description="Why it is not reachable, or cannot be switched on")
    updated_at: int | None = None


class DeploymentObject(BaseModel):
    """One deployment of a route and how it fares in this process."""

    id: str
    provider: str
    upstream_model: str
    order: int
    weight: int
    is_on: bool = True
    price_id: str | None = None
    state: str = Field(
        description="`closed`: it is asked; `busy`: last; `open`: not, it failed; `account`: not, ours; `off`: not, you"
    )
    reason: str = ""
    retry_in_seconds: float = 0.0
    in_flight: int = 0
    attempts: int = Field(default=0, description="Of the last 30 seconds")
    failures: int = 0


class RouteObject(BaseModel):
    """Who answers a model's name, in the order of preference; what is switched off comes last."""

    id: str
    object: str = "route"
    model: str
    limited_as: str = Field(description="The name under which its requests are limited and recorded")
    deployments: list[DeploymentObject]


class SupplyAdministration(Protocol):
    """What changes the supply; composition has it."""

    async def set_price(self, order: PriceRequest, *, author: Author) -> Price:
        """Set a price, from now or from the moment on that it names."""
        ...

    def list_providers(self) -> list[ProviderView]:
        """List providers."""
        ...

    async def set_provider(self, name: str, order: ProviderRequest, *, author: Author) -> ProviderView:
        """Switch a provider on, or change it."""
        ...

    async def remove_provider(self, name: str, *, author: Author) -> None:
        """Remove what was set through the API."""
        ...

    async def set_route(self, model: str, order: RouteRequest, *, author: Author) -> None:
        """Write a route down."""
        ...

    async def remove_route(self, model: str, *, author: Author) -> None:
        """Remove a route that was written down."""
        ...


class DispatchState(Protocol):
    """Where the conditions of deployments are read from."""

    @property
    def breakers(self) -> Breakers:
        """How the deployments fare."""
        ...


@dataclass(frozen=True, slots=True)
class SupplyParts:
    """What these pages are made of."""

    changes: SupplyAdministration
    routes: Routes
    dispatch: DispatchState
    clock: Clock


def add_supply(router: APIRouter, parts: SupplyParts, prices: PriceStore) -> None:
    """Add the routes."""
    _add_prices(router, parts.changes, prices)
    _add_providers(router, parts.changes)
    _add_routes(router, parts)


def _add_prices(router: APIRouter, changes: SupplyAdministration, prices: PriceStore) -> None:
    @router.post("/prices", status_code=201, summary="Set a price, from now or from a moment to come")
    async def set_price(body: PriceRequest, author: SignedIn) -> PriceObject:
        return PriceObject.of(await changes.set_price(body, author=author))

    @router.get("/prices", summary="Every price that was ever set")
    async def list_prices(provider: str | None = None, model: str | None = None) -> Listing[PriceObject]:
        found = await prices.list_prices()
        wanted = [p for p in found if provider in (None, p.provider) and model in (None, p.model)]
        return _whole([PriceObject.of(price) for price in wanted])


def _add_providers(router: APIRouter, changes: SupplyAdministration) -> None:
    @router.get("/providers", summary="Providers, without credentials")
    async def list_providers() -> Listing[ProviderView]:
        return _whole(changes.list_providers())

    @router.put("/providers/{name}", summary="Switch a provider on, or change it, in every process")
    async def set_provider(name: str, body: ProviderRequest, author: SignedIn) -> ProviderView:
        return await changes.set_provider(name, body, author=author)

    @router.delete("/providers/{name}", status_code=204, summary="Remove a provider that was set through the API")
    async def remove_provider(name: str, author: SignedIn) -> Response:
        await changes.remove_provider(name, author=author)
        return Response(status_code=204)


def _add_routes(router: APIRouter, parts: SupplyParts) -> None:
    def show(names: set[str] | None) -> Iterator[RouteObject]:
        snapshot = parts.routes.snapshot
        off = {name: [_switched_off(target) for target in targets] for name, targets in snapshot.switched_off.items()}
        for name, route in snapshot.list_routes(parts.clock.now_ms()):
            left_out = off.pop(name, [])
            if names is None or name in names:
                found = [_deployment(deployment, parts.dispatch.breakers) for deployment in route.deployments]
                yield RouteObject(id=name, model=name, limited_as=route.model, deployments=[*found, *left_out])
        for name, left_out in off.items():
            if names is None or name in names:
                yield RouteObject(id=name, model=name, limited_as=name, deployments=left_out)

    @router.get("/routes", summary="Who answers each model, and how they fare in this process")
    async def list_routes(model: str | None = None) -> Listing[RouteObject]:
        return _whole(list(show(None if model is None else {model})))

    @router.put("/routes/{model:path}", summary="Write down who answers a model, in every process")
    async def set_route(model: str, body: RouteRequest, author: SignedIn) -> RouteObject:
        await parts.changes.set_route(model, body, author=author)
        return next(show({model}))

    @router.delete("/routes/{model:path}", status_code=204, summary="Remove a route that was written down")
    async def remove_route(model: str, author: SignedIn) -> Response:
        await parts.changes.remove_route(model, author=author)
        return Response(status_code=204)


def _deployment(deployment: Deployment, breakers: Breakers) -> DeploymentObject:
    condition = breakers.condition_of(deployment.id)
    return DeploymentObject(
        id=deployment.id,
        provider=deployment.provider.name,
        upstream_model=deployment.upstream_model,
        order=deployment.order,
        weight=deployment.weight,
        price_id=deployment.price.id if deployment.price is not None else None,
        state=condition.state,
        reason=condition.reason,
        retry_in_seconds=round(condition.retry_in_seconds, 1),
        in_flight=condition.in_flight,
        attempts=condition.attempts,
        failures=condition.failures,
    )


def _switched_off(target: RouteTarget) -> DeploymentObject:
    return DeploymentObject(
        id=f"{target.provider}/{target.upstream_model}",
        provider=target.provider,
        upstream_model=target.upstream_model,
        order=target.order,
        weight=target.weight,
        is_on=False,
        state="off",
        reason="It was switched off.",
    )


def _whole(items: list[Shown]) -> Listing[Shown]:
    ids = [str(getattr(item, "id", "")) for item in items]
    return Listing(data=items, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None)
