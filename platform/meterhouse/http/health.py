"""The pages that need no key: what this is, whether it is well, what to scrape."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from meterhouse import __version__
from meterhouse.providers.provider import ProviderStatus
from meterhouse.providers.routes import Routes
from meterhouse.telemetry.metrics import Metrics

TESTED_OPENAI_SDK = "3.52.0"
"""The version of the official Python SDK that the test suite drives; a test compares it with the installed one."""


class Root(BaseModel):
    """What answers at ``/``."""

    name: str = "Meterhouse"
    version: str = __version__
    status: str = Field(description="As at `/health`")
    providers: dict[str, bool] = Field(description="As at `/health`")
    models_count: int
    docs: str = "/docs"
    health: str = "/health"
    models: str = "/v1/models"


class Versions(BaseModel):
    """Versions that matter to a client."""

    meterhouse: str = __version__
    openai_sdk: str = TESTED_OPENAI_SDK


class Health(BaseModel):
    """How the gateway and its providers are."""

    status: str = Field(description="`ok`, or `degraded` while something is out of reach")
    providers: dict[str, bool] = Field(description="Providers that are on, and whether each is reachable")
    backends: dict[str, str] = Field(description="`connected`, `disconnected`, or `unknown` before the first look")
    models_count: int
    versions: Versions
    degraded: list[str] = Field(description="What is wrong, in words")


class Ready(BaseModel):
    """Whether requests would be admitted."""

    status: str
    reasons: list[str] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class HealthParts:
    """Where health is read from."""

    routes: Routes
    statuses: Callable[[], Mapping[str, ProviderStatus]]
    unready: Callable[[], list[str]]
    """Why new requests would be refused; empty when they would not."""
    metrics: Metrics


def build_health_router(parts: HealthParts) -> APIRouter:
    """Make the routes."""
    router = APIRouter(tags=["health"])

    def look() -> Health:
        statuses = parts.statuses()
        names = [active.name for active in parts.routes.snapshot.providers]
        reachable = {name: status.is_reachable for name, status in statuses.items()}
        unready = parts.unready()
        away = [_complaint(statuses[name]) for name in names if reachable.get(name) is False]
        return Health(
            status="degraded" if unready or away else "ok",
            providers={name: reachable.get(name, True) for name in names},
            backends={name: _backend(reachable.get(name)) for name in names},
            models_count=len(parts.routes.list_models()),
            versions=Versions(),
            degraded=unready + away,
        )

    @router.get("/", summary="What this is")
    async def root() -> Root:
        found = look()
        return Root(status=found.status, providers=found.providers, models_count=found.models_count)

    @router.get("/health", summary="The gateway, its providers and its models")
    async def health() -> Health:
        return look()

    @router.get("/health/live", summary="The process answers")
    async def live() -> Ready:
        return Ready(status="ok")

    @router.get("/health/ready", summary="New requests are admitted", responses={503: {"model": Ready}})
    async def ready(response: Response) -> Ready:
        reasons = parts.unready()
        if reasons:
            response.status_code = 503
        return Ready(status="unready" if reasons else "ok", reasons=reasons)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        body, content_type = parts.metrics.render()
        return Response(body, headers={"content-type": content_type})

    return router


def _complaint(status: ProviderStatus) -> str:
    if status.refuses_credential:
        return f"provider {status.name} refuses our credential: check its key"
    return f"provider {status.name} is not reachable"


def _backend(is_reachable: bool | None) -> str:
    if is_reachable is None:
        return "unknown"
    return "connected" if is_reachable else "disconnected"
