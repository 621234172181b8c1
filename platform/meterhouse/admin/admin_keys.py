"""The keys of administrators, as OpenAI's SDK issues and deletes them.

OpenAI's have one role; here a key that is made is an owner's of the organization, or what ``role`` asks for. Operators
see operators' keys beside those of the organization; nobody else does.
"""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from meterhouse.admin.guard import Mandate, Mandated
from meterhouse.admin.pages import OldestFirst, listing
from meterhouse.admin.schemas import Listing, Name, Strict, seconds
from meterhouse.db.keys import StoredAdminKey
from meterhouse.errors import NotFound, NotPermitted
from meterhouse.identity import Role
from meterhouse.keys.admin_keys import IssuedAdminKey
from meterhouse.keys.service import KeyService


class AdminKeyRequest(Strict):
    """A new admin key."""

    name: str = Name
    expires_in_seconds: int | None = Field(None, gt=0)
    role: Role = Field(Role.OWNER, description="Ours, not OpenAI's; `operator` only by an operator")


class AdminKeyObject(BaseModel):
    """An admin key, without its secret."""

    id: str
    object: Literal["organization.admin_api_key"] = "organization.admin_api_key"
    name: str
    redacted_value: str
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    owner: dict[str, Any]

    @classmethod
    def of(cls, stored: StoredAdminKey) -> "AdminKeyObject":
        """Show a stored key."""
        return cls(**_fields(stored))


class IssuedAdminKeyObject(AdminKeyObject):
    """A new admin key; ``value`` is shown this once."""

    value: str

    @classmethod
    def issued(cls, made: IssuedAdminKey) -> "IssuedAdminKeyObject":
        """Show a new key with its text."""
        return cls(**_fields(made.key), value=made.value)


class DeletedAdminKeyObject(BaseModel):
    """An admin key that was revoked for good."""

    id: str
    object: Literal["organization.admin_api_key.deleted"] = "organization.admin_api_key.deleted"
    deleted: Literal[True] = True


def add_admin_keys(router: APIRouter, service: KeyService) -> None:
    """Add the routes."""

    @router.post("/admin_api_keys", summary="Issue an admin key; its value is shown this once")
    async def create_admin_key(body: AdminKeyRequest, mandate: Mandated) -> IssuedAdminKeyObject:
        actor = mandate.author.actor
        is_operators = body.role is Role.OPERATOR
        if is_operators and actor.role is not Role.OPERATOR:
            raise NotPermitted("Only an operator issues an operator's key.", param="role", detail=actor.id)
        made = await service.issue_admin(
            body.name,
            body.role,
            body.expires_in_seconds,
            organization_id=None if is_operators else mandate.organization_id,
            author=mandate.author,
        )
        return IssuedAdminKeyObject.issued(made)

    @router.get("/admin_api_keys", summary="List admin keys, without secrets")
    async def list_admin_keys(mandate: Mandated, page: OldestFirst) -> Listing[AdminKeyObject]:
        return listing(await service.page_admin_keys(_reach(mandate), page), AdminKeyObject.of)

    @router.get("/admin_api_keys/{key_id}", summary="One admin key, without its secret")
    async def get_admin_key(key_id: str, mandate: Mandated) -> AdminKeyObject:
        return AdminKeyObject.of(await _get(service, mandate, key_id))

    @router.delete("/admin_api_keys/{key_id}", summary="Revoke an admin key")
    async def delete_admin_key(key_id: str, mandate: Mandated) -> DeletedAdminKeyObject:
        await _get(service, mandate, key_id)
        await service.revoke_admin(key_id, author=mandate.author)
        return DeletedAdminKeyObject(id=key_id)


async def _get(service: KeyService, mandate: Mandate, key_id: str) -> StoredAdminKey:
    stored = await service.get_admin(key_id, _reach(mandate))
    if stored.revoked_at_ms is not None:
        raise NotFound(f"There is no admin key '{key_id[:64]}'.", param="key_id")
    return stored


def _reach(mandate: Mandate) -> set[str | None]:
    """Return whose admin keys an author may see; None stands for the operators."""
    own: set[str | None] = {mandate.organization_id}
    return own | {None} if mandate.author.actor.role is Role.OPERATOR else own


def _fields(stored: StoredAdminKey) -> dict[str, Any]:
    owner = {
        "type": "user",
        "object": "organization.user",
        "id": stored.organization_id or "operator",
        "name": stored.name,
        "created_at": stored.created_at_ms // 1000,
        "role": stored.role,
    }
    return {
        "id": stored.id,
        "name": stored.name,
        "redacted_value": stored.redacted,
        "created_at": stored.created_at_ms // 1000,
        "expires_at": seconds(stored.expires_at_ms),
        "last_used_at": seconds(stored.last_used_at_ms),
        "owner": owner,
    }
