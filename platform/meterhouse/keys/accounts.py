"""Makes, changes and deletes service accounts; a key is issued with one, and ends with it.

Invariant: no key of a deleted account is good. Not here: what a key may do, which is the key's own.
"""

from dataclasses import dataclass, replace

from meterhouse.audit import Action, Change, Fields
from meterhouse.db.accounts import ServiceAccount
from meterhouse.db.keys import KeyQuery, StoredKey
from meterhouse.db.paging import MAX_PAGE, Page, PageQuery
from meterhouse.errors import Conflict, Malformed
from meterhouse.identity import COMMAND_LINE, Author
from meterhouse.ids import new_id
from meterhouse.keys.changes import check_name
from meterhouse.keys.finder import no_account
from meterhouse.keys.issuing import ACCOUNT_PREFIX, IssuedKey, KeyIssuer, KeyOrder

ACCOUNT_ROLES = ("owner", "member", "none")


@dataclass(frozen=True, slots=True)
class AccountOrder:
    """What a new service account shall be."""

    name: str
    project_id: str
    role: str = "member"


class AccountChanges(KeyIssuer):
    """Changes service accounts. Every method raises StoreDown when there is no database."""

    async def create_account(
        self, order: AccountOrder, key: KeyOrder | None, *, author: Author = COMMAND_LINE
    ) -> tuple[ServiceAccount, IssuedKey | None]:
        """Make a service account, and with it a key unless None is given; its project and account are set here.

        Raises:
            Malformed: a name, the role or a part of the key's order makes no sense.
            NotFound: there is no such project.
            Conflict: the project is archived.
        """
        check_name(order.name)
        _check_role(order.role)
        project = await self.get_project(order.project_id)
        if project.archived_at_ms is not None:
            raise Conflict(f"Project '{project.id}' is archived. Take another one.", param="project_id")
        account = ServiceAccount(new_id(ACCOUNT_PREFIX), project.id, order.name, order.role, self._clock.now_ms())
        made = None
        if key is not None:
            made = self._make_key(replace(key, project_id=project.id, service_account=account.id), project)
        change = Change(Action.SERVICE_ACCOUNT_CREATED, account.id, project.organization_id, project.id)
        async with self._catalog.changing(project.organization_id) as catalog:
            await catalog.accounts.insert_account(account)
            await catalog.audit.write(author, replace(change, after=_fields_of(account)))
            if made is not None:
                await self._insert_key(catalog, made[1], author)
        if made is None:
            return account, None
        await self._tell({"key_id": made[1].id})
        return account, IssuedKey(made[0].value, made[1])

    async def get_account(self, project_id: str, account_id: str) -> ServiceAccount:
        """Return a service account of a project; raises NotFound, also for a deleted one."""
        found = (await self._catalog.accounts.find_accounts([account_id])).get(account_id)
        if found is None or found.project_id != project_id or found.deleted_at_ms is not None:
            raise no_account(account_id)
        return found

    async def page_accounts(self, project_id: str, page: PageQuery) -> Page[ServiceAccount]:
        """Return a page of a project's service accounts."""
        return await self._catalog.accounts.page_accounts(project_id, page)

    async def find_accounts(self, account_ids: set[str]) -> dict[str, ServiceAccount]:
        """Return those of some service accounts that there are, deleted or not, by id."""
        return await self._catalog.accounts.find_accounts(account_ids)

    async def update_account(
        self, project_id: str, account_id: str, *, name: str | None, role: str | None, author: Author = COMMAND_LINE
    ) -> ServiceAccount:
        """Give a service account another name or role; None leaves what it is. Raises NotFound, Malformed."""
        if name is not None:
            check_name(name)
        if role is not None:
            _check_role(role)
        organization_id = (await self.get_project(project_id)).organization_id
        change = Change(Action.SERVICE_ACCOUNT_UPDATED, account_id, organization_id, project_id)
        async with self._catalog.changing(organization_id) as catalog:
            old = await self.within(catalog).get_account(project_id, account_id)
            new = replace(old, name=old.name if name is None else name, role=old.role if role is None else role)
            await catalog.accounts.update_account(new)
            await catalog.audit.write(author, replace(change, before=_fields_of(old), after=_fields_of(new)))
        return new

    async def delete_account(self, project_id: str, account_id: str, *, author: Author = COMMAND_LINE) -> None:
        """Delete a service account: all of its keys are revoked. Raises NotFound."""
        organization_id = (await self.get_project(project_id)).organization_id
        now_ms = self._clock.now_ms()
        revoked: list[StoredKey] = []
        change = Change(Action.SERVICE_ACCOUNT_DELETED, account_id, organization_id, project_id)
        async with self._catalog.changing(organization_id) as catalog:
            old = await self.within(catalog).get_account(project_id, account_id)
            await catalog.accounts.update_account(replace(old, deleted_at_ms=now_ms))
            await catalog.audit.write(author, replace(change, before=_fields_of(old)))
            query = KeyQuery(project_id=project_id, service_account=account_id, has_revoked=False)
            while page := (await catalog.keys.page_keys(query, PageQuery(MAX_PAGE))).rows:
                for key in page:
                    await self._revoke_key(catalog, replace(key, revoked_at_ms=now_ms), author, "service_account")
                revoked += page
        await self._tell_revoked([key.id for key in revoked], now_ms)


def _check_role(role: str) -> None:
    if role not in ACCOUNT_ROLES:
        raise Malformed(f"The role must be one of {', '.join(ACCOUNT_ROLES)}.", param="role")


def _fields_of(account: ServiceAccount) -> Fields:
    return {"name": account.name, "role": account.role}
