"""`POST /admin/tokens/revoke`: refuses a token of the identity provider though it has not expired.

A token lives for minutes and its provider cannot call it back: this is for one that was leaked. Not here: what makes
a token good (``keys.tokens``).
"""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from meterhouse.admin.guard import SignedIn
from meterhouse.admin.schemas import Strict
from meterhouse.audit import Action, Change
from meterhouse.db.catalog import Catalog
from meterhouse.errors import Conflict
from meterhouse.keys.tokens import MAX_ID_CHARACTERS, revoked_token_name
from meterhouse.metering import Clock


class TokenRevocation(Strict):
    """Which token."""

    token_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARACTERS, description="Its `jti`")]


class RevokedToken(BaseModel):
    """A token that opens nothing any more."""

    object: Literal["token.revoked"] = "token.revoked"
    token_id: str


def add_tokens(router: APIRouter, catalog: Catalog, issuer: str | None, clock: Clock) -> None:
    """Add the route."""

    @router.post("/tokens/revoke", summary="Refuse a token of the identity provider from now on")
    async def revoke_token(body: TokenRevocation, author: SignedIn) -> RevokedToken:
        if issuer is None:
            raise Conflict("No identity provider is set here, so that no token opens anything.")
        async with catalog.changing() as changing:
            await changing.meta.put_value(revoked_token_name(issuer, body.token_id), str(clock.now_ms()))
            await changing.audit.write(author, Change(Action.TOKEN_REVOKED, body.token_id, after={"issuer": issuer}))
        return RevokedToken(token_id=body.token_id)
