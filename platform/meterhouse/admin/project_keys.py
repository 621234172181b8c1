"""The keys of a project, as OpenAI's SDK lists and deletes them; their values were shown when they were issued."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from meterhouse.admin.guard import Mandate, Mandated
from meterhouse.admin.pages import OldestFirst, listing
from meterhouse.admin.schemas import Listing, Strict, seconds
from meterhouse.db.accounts import ServiceAccount
from meterhouse.db.keys import KeyQuery, StoredKey
from meterhouse.errors import Malformed
from meterhouse.identity import KeyScope
from meterhouse.keys.finder import no_key
from meterhouse.keys.service import KeyService

Scopes = Annotated[
    list[str] | None,
    Field(
        max_length=20, description="Of `inference` and `usage`; an empty list is both. OpenAI's own mean nothing here"
    ),
]
Access = Annotated[Literal["active", "inactive", "any"] | None, Query()]


class KeyChangeRequest(Strict):
    """Other scopes for a key, or another expiry from now on."""

    expires_in_seconds: int | None = Field(None, gt=0)
    scopes: Scopes = None


class ProjectKeyObject(BaseModel):
    """A key, without its secret. A key that was issued without a service account has no owner."""

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None
    expires_at: int | None
    owner: dict[str, Any]
    owner_project_access: Literal["active", "inactive"]

    @classmethod
    def of(cls, key: StoredKey, account: ServiceAccount | None) -> "ProjectKeyObject":
        """Show a stored key and whose it is."""
        return cls(
            id=key.id,
            name=key.name,
            redacted_value=key.redacted,
            created_at=key.created_at_ms // 1000,
            last_used_at=seconds(key.last_used_at_ms),
            expires_at=seconds(key.expires_at_ms),
            owner=_owner_of(account),
            owner_project_access="active" if key.project_archived_at_ms is None else "inactive",
        )


class DeletedKeyObject(BaseModel):
    """A key that was revoked for good."""

    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: Literal[True] = True


def add_project_keys(router: APIRouter, service: KeyService) -> None:
    """Add the routes."""
    path = "/projects/{project_id}/api_keys"

    @router.get(path, summary="List keys, without secrets")
    async def list_project_keys(
        project_id: str, mandate: Mandated, page: OldestFirst, owner_project_access: Access = None
    ) -> Listing[ProjectKeyObject]:
        project = await service.get_project(project_id, within=mandate.organization_id)
        access = "active" if project.archived_at_ms is None else "inactive"
        if owner_project_access not in {None, "any", access}:
            return Listing(data=[])
        found = await service.page_keys(KeyQuery(project_id=project_id, has_revoked=False), page)
        accounts = await _accounts_of(service, *found.rows)
        return listing(found, lambda key: ProjectKeyObject.of(key, _account_of(key, accounts)))

    @router.get(path + "/{api_key_id}", summary="One key, without its secret")
    async def get_project_key(project_id: str, api_key_id: str, mandate: Mandated) -> ProjectKeyObject:
        return await _show(service, await _get_key(service, mandate, project_id, api_key_id))

    @router.post(path + "/{api_key_id}", summary="Give a key other scopes or another expiry")
    async def update_project_key(
        project_id: str, api_key_id: str, body: KeyChangeRequest, mandate: Mandated
    ) -> ProjectKeyObject:
        await _get_key(service, mandate, project_id, api_key_id)
        changed = await service.update_key(
            api_key_id,
            scopes=scopes_of(body.scopes),
            expires_in_seconds=body.expires_in_seconds,
            author=mandate.author,
        )
        return await _show(service, changed)

    @router.delete(path + "/{api_key_id}", summary="Revoke a key; running streams of it are cut")
    async def delete_project_key(project_id: str, api_key_id: str, mandate: Mandated) -> DeletedKeyObject:
        await _get_key(service, mandate, project_id, api_key_id)
        await service.revoke(api_key_id, author=mandate.author)
        return DeletedKeyObject(id=api_key_id)


def scopes_of(asked: list[str] | None) -> frozenset[str] | None:
    """Read scopes; None: they were not given.

    Raises:
        Malformed: One is none of ours.
    """
    if asked is None:
        return None
    unknown = sorted(set(asked) - set(KeyScope))
    if unknown:
        known = ", ".join(f"'{scope}'" for scope in KeyScope)
        raise Malformed(f"'{unknown[0][:64]}' is no scope here. A key's scopes are {known}.", param="scopes")
    return frozenset(asked) or frozenset(KeyScope)


async def _get_key(service: KeyService, mandate: Mandate, project_id: str, key_id: str) -> StoredKey:
    """Return a key of a project that is not revoked; raises NotFound."""
    await service.get_project(project_id, within=mandate.organization_id)
    key = await service.get(key_id, within=mandate.organization_id)
    if key.project_id != project_id or key.revoked_at_ms is not None:
        raise no_key(key_id)
    return key


async def _show(service: KeyService, key: StoredKey) -> ProjectKeyObject:
    return ProjectKeyObject.of(key, _account_of(key, await _accounts_of(service, key)))


def _account_of(key: StoredKey, accounts: Mapping[str, ServiceAccount]) -> ServiceAccount | None:
    """Return whose a key is: an account of its own project, whatever name the key gives."""
    account = accounts.get(key.service_account or "")
    return account if account is not None and account.project_id == key.project_id else None


async def _accounts_of(service: KeyService, *keys: StoredKey) -> Mapping[str, ServiceAccount]:
    return await service.find_accounts({key.service_account for key in keys if key.service_account is not None})


def _owner_of(account: ServiceAccount | None) -> dict[str, Any]:
    if account is None:
        return {"type": None, "user": None, "service_account": None}
    shown = {"id": account.id, "name": account.name, "role": account.role, "created_at": account.created_at_ms // 1000}
    return {"type": "service_account", "user": None, "service_account": shown}
