"""The routes of ``/admin`` for keys and limits, with what OpenAI's API has no place for.

Limits, models, networks and scopes of a key's own, rotation with an overlap, and the end of keys that have leaked.
"""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, SecretStr

from meterhouse.admin.guard import SignedIn
from meterhouse.admin.pages import OldestFirst, listing
from meterhouse.admin.schemas import (
    IssuedKeyObject,
    KeyObject,
    KeyRequest,
    LimitsObject,
    LimitsRequest,
    Listing,
    RotateRequest,
    Strict,
)
from meterhouse.db.keys import KeyQuery
from meterhouse.errors import NotPermitted
from meterhouse.identity import Role
from meterhouse.keys.leaks import Leak, LeakResult
from meterhouse.keys.service import KeyOrder, KeyService
from meterhouse.limits.limit import parse_limits
from meterhouse.metering import Scope

MOST_LEAKS = 100
MOST_CHARACTERS = 1_000


class LeaksRequest(Strict):
    """Texts that were seen where no key should be. They are neither kept nor shown again."""

    values: Annotated[
        list[Annotated[SecretStr, Field(min_length=1, max_length=MOST_CHARACTERS)]],
        Field(min_length=1, max_length=MOST_LEAKS),
    ]


class LeakObject(BaseModel):
    """What became of a text."""

    index: int = Field(description="Its place in the request")
    object: Literal["leak"] = "leak"
    result: LeakResult = Field(description="`revoked`: just now; `ended`: before; `unknown`: no key of ours")
    key_id: str | None

    @classmethod
    def of(cls, index: int, leak: Leak) -> "LeakObject":
        """Show what became of a text."""
        return cls(index=index, result=leak.result, key_id=leak.key_id)


def add_keys(router: APIRouter, service: KeyService) -> None:
    """Add the routes of keys."""

    @router.post("/keys", status_code=201, summary="Issue a key; its value is shown this once")
    async def issue_key(body: KeyRequest, author: SignedIn) -> IssuedKeyObject:
        await service.get_project(body.project_id, within=author.actor.organization_id)
        order = KeyOrder(
            name=body.name,
            project_id=body.project_id,
            expires_in_seconds=body.expires_in_seconds,
            models=None if body.models is None else frozenset(body.models),
            limits=parse_limits(body.limits, Scope.KEY, ""),
            ip_ranges=tuple(body.ip_ranges),
            scopes=frozenset(body.scopes),
            service_account=body.service_account,
        )
        issued = await service.issue(order, author=author)
        return IssuedKeyObject.with_value(issued.key, issued.value)

    @router.post("/keys/leaks", summary="Report texts that leaked: those that are keys of ours are revoked")
    async def report_leaks(body: LeaksRequest, author: SignedIn) -> Listing[LeakObject]:
        texts = [value.get_secret_value() for value in body.values]
        found = await service.report_leaks(texts, within=author.actor.organization_id, author=author)
        return Listing(data=[LeakObject.of(index, leak) for index, leak in enumerate(found)])

    @router.get("/keys", summary="List keys, without secrets")
    async def list_keys(author: SignedIn, page: OldestFirst, project_id: str | None = None) -> Listing[KeyObject]:
        own = author.actor.organization_id
        if own is not None and project_id is not None:
            await service.get_project(project_id, within=own)
        return listing(await service.page_keys(KeyQuery(own, project_id), page), KeyObject.of)

    @router.get("/keys/{key_id}", summary="One key, without its secret")
    async def get_key(key_id: str, author: SignedIn) -> KeyObject:
        return KeyObject.of(await service.get(key_id, within=author.actor.organization_id))

    @router.post("/keys/{key_id}/rotate", status_code=201, summary="Issue a successor; both work for the overlap")
    async def rotate_key(key_id: str, body: RotateRequest, author: SignedIn) -> IssuedKeyObject:
        await service.get(key_id, within=author.actor.organization_id)
        issued = await service.rotate(key_id, body.overlap_seconds, author=author)
        return IssuedKeyObject.with_value(issued.key, issued.value)

    @router.delete("/keys/{key_id}", summary="Revoke a key; running streams of it are cut")
    async def revoke_key(key_id: str, author: SignedIn) -> KeyObject:
        await service.get(key_id, within=author.actor.organization_id)
        return KeyObject.of(await service.revoke(key_id, author=author))


def add_limits(router: APIRouter, service: KeyService) -> None:
    """Add the routes of limits."""

    @router.put("/limits", summary="Set all limits of an organization, a project or a key")
    async def set_limits(body: LimitsRequest, author: SignedIn) -> LimitsObject:
        await service.get_limit_owner(body.scope, body.scope_id, within=author.actor.organization_id)
        if body.scope is Scope.ORGANIZATION and author.actor.role is not Role.OPERATOR:
            text = "The limits of an organization as a whole are set by an operator."
            raise NotPermitted(text, param="scope", detail=author.actor.id)
        limits = parse_limits(body.limits, body.scope, body.scope_id)
        found = await service.set_limits(body.scope, body.scope_id, limits, author=author)
        return LimitsObject.of(body.scope, body.scope_id, found)

    @router.get("/limits", summary="The limits that an organization, a project or a key has itself")
    async def get_limits(scope: Scope, scope_id: str, author: SignedIn) -> LimitsObject:
        found = await service.list_limits(scope, scope_id, within=author.actor.organization_id)
        return LimitsObject.of(scope, scope_id, found)
