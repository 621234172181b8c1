"""``POST /v1/client_tokens``: a tenant's server trades its key for a token that a browser may have.

Not here: what a token is (``keys.client_tokens``), and which pages may use it (``http.client_origin``).
"""

from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from meterhouse.admin.pages import AdminRoute
from meterhouse.errors import Malformed, NotPermitted
from meterhouse.http.account import sign_in
from meterhouse.http.client_origin import MAX_ORIGIN_LENGTH
from meterhouse.identity import KeyScope, Principal
from meterhouse.keys.client_tokens import (
    AUDIENCE,
    ISSUER,
    LONGEST_SECONDS,
    MAX_LENGTH,
    MAX_MODELS,
    MAX_ORIGINS,
    ClientTokens,
    Grant,
    new_token_id,
)
from meterhouse.keys.throttle import KeyThrottle
from meterhouse.limits.limit import MAX_AMOUNT
from meterhouse.metering import Clock
from meterhouse.money import format_usd, parse_usd
from meterhouse.providers.routes import Routes

MaySpend = Annotated[Principal, Depends(sign_in(KeyScope.INFERENCE))]


class ClientTokenRequest(BaseModel):
    """What the token may do: never more than the key."""

    model_config = ConfigDict(extra="forbid")

    max_spend_usd: str = Field(description='All that may be spent with it; a decimal in quotes: `"0.25"`')
    expires_in_seconds: int = Field(600, ge=1, le=LONGEST_SECONDS)
    models: list[str] | None = Field(None, min_length=1, max_length=MAX_MODELS, description="Null: those of the key")
    origins: list[str] = Field(
        default_factory=list,
        max_length=MAX_ORIGINS,
        description="Pages that may use it (`https://app.example.com`); empty: any program, but no page of a browser",
    )


class ClientTokenObject(BaseModel):
    """A client token; it is shown this once, and ends by itself or with its key."""

    id: str
    object: str = "client_token"
    value: str
    expires_at: int
    max_spend_nanos: int
    max_spend_usd: str
    models: list[str] | None
    origins: list[str]


def build_client_token_router(tokens: ClientTokens, throttle: KeyThrottle, routes: Routes, clock: Clock) -> APIRouter:
    """Make the route."""
    router = APIRouter(prefix="/v1", tags=["account"], route_class=AdminRoute)

    @router.post("/client_tokens", status_code=201, summary="Trade the key for a token that a browser may have")
    async def create_client_token(body: ClientTokenRequest, principal: MaySpend) -> ClientTokenObject:
        if principal.origins is not None:
            raise NotPermitted("A client token cannot be traded for another. Send the key.")
        throttle.admit(principal.root_key_id)
        models = _models(body, principal, routes.snapshot.listed_name)
        now_seconds = clock.now_ms() // 1_000
        grant = Grant(
            iss=ISSUER,
            aud=AUDIENCE,
            sub=principal.key_id,
            org=principal.organization_id,
            jti=new_token_id(principal.key_id),
            iat=now_seconds,
            exp=now_seconds + body.expires_in_seconds,
            cap=_cap_nanos(body.max_spend_usd),
            models=models,
            origins=tuple(map(_origin, body.origins)),
        )
        value = tokens.make(grant)
        if len(value) > MAX_LENGTH:
            raise Malformed(f"The token would be longer than {MAX_LENGTH} characters. Name fewer models or origins.")
        return ClientTokenObject(
            id=grant.jti,
            value=value,
            expires_at=grant.exp,
            max_spend_nanos=grant.cap,
            max_spend_usd=format_usd(grant.cap),
            models=None if models is None else list(models),
            origins=list(grant.origins),
        )

    return router


def _models(
    body: ClientTokenRequest, principal: Principal, listed_name: Callable[[str], str]
) -> tuple[str, ...] | None:
    """Return the token's models, each by a name by which its key names it; raises NotPermitted."""
    if body.models is None:
        return None
    named: dict[str, None] = {}
    for model in body.models:
        listed = listed_name(model)
        if not principal.may_use(model, listed):
            raise NotPermitted(
                f"This key may not use the model '{model[:64]}', so its token cannot either.",
                param="models",
                code="model_not_allowed",
            )
        is_named = principal.models is None or model in principal.models
        named[model if is_named else listed] = None
    return tuple(named)


def _cap_nanos(text: str) -> int:
    try:
        nanos = parse_usd(text)
    except ValueError as error:
        raise Malformed(f'{error}. Write a decimal, for example "0.25".', param="max_spend_usd") from None
    if not 0 < nanos <= MAX_AMOUNT:
        raise Malformed("A client token may spend more than 0 and at most 4,000,000 USD.", param="max_spend_usd")
    return nanos


def _origin(text: str) -> str:
    """Read an origin as a browser sends it; raises Malformed."""
    try:
        parts = urlsplit(text)
        is_bare = text == f"{parts.scheme}://{parts.netloc}" and not parts.username and text.isascii()
        is_origin = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of an address without its end, or a port that there is not
        is_bare = is_origin = False
    if not is_bare or not is_origin or len(text) > MAX_ORIGIN_LENGTH:
        raise Malformed("An origin is written as browsers send it: https://app.example.com", param="origins")
    return text.lower()
