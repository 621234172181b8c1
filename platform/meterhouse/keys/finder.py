"""Finds organizations, projects and keys, or says that there are none, as it says of somebody else's."""

from dataclasses import dataclass

from meterhouse.db.keys import StoredKey
from meterhouse.db.organizations import Organization, Project
from meterhouse.errors import NotFound
from meterhouse.keys.changes import Changes
from meterhouse.metering import Scope


@dataclass(frozen=True, slots=True)
class LimitOwner:
    """Whose limits are set."""

    id: str
    """Under which they are stored: of a key, the first of its chain of rotations."""
    organization_id: str
    project_id: str | None


class Finder(Changes):
    """Looks things up. Every method raises NotFound, also for what is outside of the organization ``within``."""

    async def get_organization(self, organization_id: str, *, within: str | None = None) -> Organization:
        """Return an organization."""
        found = await self._catalog.organizations.find_organization(organization_id)
        if found is None or within not in {None, found.id}:
            raise no_organization(organization_id)
        return found

    async def get_project(self, project_id: str, *, within: str | None = None) -> Project:
        """Return a project, archived or not."""
        project = await self._catalog.organizations.find_project(project_id)
        if project is None or within not in {None, project.organization_id}:
            message = f"There is no project '{project_id[:64]}'. List the projects to see their ids."
            raise NotFound(message, param="project_id")
        return project

    async def get(self, key_id: str, *, within: str | None = None) -> StoredKey:
        """Return a key, good or not."""
        stored = await self._catalog.keys.find_key(key_id)
        if stored is None or within not in {None, stored.organization_id}:
            raise no_key(key_id)
        return stored

    async def get_limit_owner(self, scope: Scope, scope_id: str, *, within: str | None = None) -> LimitOwner:
        """Return whose limits these are."""
        if scope is Scope.KEY:
            key = await self.get(scope_id, within=within)
            return LimitOwner(key.root_key_id, key.organization_id, key.project_id)
        if scope is Scope.PROJECT:
            project = await self.get_project(scope_id, within=within)
            return LimitOwner(project.id, project.organization_id, project.id)
        organization = await self.get_organization(scope_id, within=within)
        return LimitOwner(organization.id, organization.id, None)


def no_organization(organization_id: str) -> NotFound:
    """Return the error of whoever asks for an organization that is not there."""
    return NotFound(f"There is no organization '{organization_id[:64]}'.", param="organization_id")


def no_key(key_id: str) -> NotFound:
    """Return the error of whoever asks for a key that is not there."""
    return NotFound(f"There is no key '{key_id[:64]}'. List the keys to see their ids.", param="key_id")


def no_account(account_id: str, param: str = "service_account_id") -> NotFound:
    """Return the error of whoever names a service account that is not there."""
    return NotFound(f"There is no service account '{account_id[:64]}' in this project.", param=param)
