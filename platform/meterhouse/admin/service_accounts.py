"""The service accounts of a project, as OpenAI's SDK makes them: a key is issued with one, and shown this once."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from meterhouse.admin.guard import Mandate, Mandated
from meterhouse.admin.pages import OldestFirst, listing
from meterhouse.admin.project_keys import Scopes, scopes_of
from meterhouse.admin.schemas import Listing, Name, Strict, seconds
from meterhouse.db.accounts import ServiceAccount
from meterhouse.errors import Malformed
from meterhouse.identity import KeyScope
from meterhouse.keys.accounts import AccountOrder
from meterhouse.keys.service import IssuedKey, KeyOrder, KeyService

KEY_NAME = "Secret Key"
"""What OpenAI calls a key that nobody named."""

Expiry = Annotated[int | None, Field(gt=0, description="Seconds from now; null: never")]
AccountRole = Literal["owner", "member", "none"]


class AccountRequest(Strict):
    """A new service account."""

    name: str = Name
    create_service_account_only: bool | None = None
    expires_in_seconds: Expiry = None


class AccountChangeRequest(Strict):
    """Another name or role for a service account; its keys may the same with each role."""

    name: str | None = Field(None, min_length=1, max_length=200)
    role: Literal["member", "owner"] | None = None


class AccountKeyRequest(Strict):
    """One more key of a service account."""

    name: str = Field(KEY_NAME, min_length=1, max_length=200)
    expires_in_seconds: Expiry = None
    scopes: Scopes = None


class AccountKeyObject(BaseModel):
    """A new key; ``value`` is shown this once."""

    id: str
    object: Literal["organization.project.service_account.api_key"] = "organization.project.service_account.api_key"
    name: str
    created_at: int
    expires_at: int | None
    value: str

    @classmethod
    def of(cls, issued: IssuedKey) -> "AccountKeyObject":
        """Show an issued key."""
        key = issued.key
        ends_at = seconds(key.expires_at_ms)
        return cls(
            id=key.id, name=key.name, created_at=key.created_at_ms // 1000, expires_at=ends_at, value=issued.value
        )


class AccountObject(BaseModel):
    """A program of a project."""

    id: str
    object: Literal["organization.project.service_account"] = "organization.project.service_account"
    name: str
    role: AccountRole
    created_at: int

    @classmethod
    def of(cls, stored: ServiceAccount) -> "AccountObject":
        """Show a stored account."""
        return cls(**_fields(stored))


class CreatedAccountObject(AccountObject):
    """A new service account and its key."""

    api_key: AccountKeyObject | None


class DeletedAccountObject(BaseModel):
    """A service account that was deleted."""

    id: str
    object: Literal["organization.project.service_account.deleted"] = "organization.project.service_account.deleted"
    deleted: Literal[True] = True


def add_service_accounts(router: APIRouter, service: KeyService) -> None:
    """Add the routes."""
    path = "/projects/{project_id}/service_accounts"
    _add_looks(router, service, path)

    @router.post(path, summary="Create a service account and its key, whose value is shown this once")
    async def create_service_account(project_id: str, body: AccountRequest, mandate: Mandated) -> CreatedAccountObject:
        await service.get_project(project_id, within=mandate.organization_id)
        is_alone = bool(body.create_service_account_only)
        if is_alone and body.expires_in_seconds is not None:
            raise Malformed("There is no key that could expire: leave this out.", param="expires_in_seconds")
        key = None if is_alone else KeyOrder(KEY_NAME, project_id, body.expires_in_seconds)
        order = AccountOrder(body.name, project_id, "none" if is_alone else "member")
        account, issued = await service.create_account(order, key, author=mandate.author)
        shown = None if issued is None else AccountKeyObject.of(issued)
        return CreatedAccountObject(**_fields(account), api_key=shown)

    @router.post(path + "/{service_account_id}", summary="Give a service account another name or role")
    async def update_service_account(
        project_id: str, service_account_id: str, body: AccountChangeRequest, mandate: Mandated
    ) -> AccountObject:
        await service.get_project(project_id, within=mandate.organization_id)
        changed = await service.update_account(
            project_id, service_account_id, name=body.name, role=body.role, author=mandate.author
        )
        return AccountObject.of(changed)

    @router.delete(path + "/{service_account_id}", summary="Delete a service account: its keys are revoked")
    async def delete_service_account(
        project_id: str, service_account_id: str, mandate: Mandated
    ) -> DeletedAccountObject:
        await service.get_project(project_id, within=mandate.organization_id)
        await service.delete_account(project_id, service_account_id, author=mandate.author)
        return DeletedAccountObject(id=service_account_id)

    @router.post(path + "/{service_account_id}/api_keys", summary="Issue one more key; its value is shown this once")
    async def create_service_account_key(
        project_id: str, service_account_id: str, body: AccountKeyRequest, mandate: Mandated
    ) -> AccountKeyObject:
        await _get_account(service, mandate, project_id, service_account_id)
        order = KeyOrder(
            name=body.name,
            project_id=project_id,
            expires_in_seconds=body.expires_in_seconds,
            scopes=scopes_of(body.scopes) or frozenset(KeyScope),
            service_account=service_account_id,
        )
        return AccountKeyObject.of(await service.issue(order, author=mandate.author))


def _add_looks(router: APIRouter, service: KeyService, path: str) -> None:
    @router.get(path, summary="List service accounts")
    async def list_service_accounts(project_id: str, mandate: Mandated, page: OldestFirst) -> Listing[AccountObject]:
        await service.get_project(project_id, within=mandate.organization_id)
        return listing(await service.page_accounts(project_id, page), AccountObject.of)

    @router.get(path + "/{service_account_id}", summary="One service account")
    async def get_service_account(project_id: str, service_account_id: str, mandate: Mandated) -> AccountObject:
        return AccountObject.of(await _get_account(service, mandate, project_id, service_account_id))


async def _get_account(
    service: KeyService, mandate: Mandate, project_id: str, service_account_id: str
) -> ServiceAccount:
    await service.get_project(project_id, within=mandate.organization_id)
    return await service.get_account(project_id, service_account_id)


def _fields(stored: ServiceAccount) -> dict[str, Any]:
    return {"id": stored.id, "name": stored.name, "role": stored.role, "created_at": stored.created_at_ms // 1000}
