"""Changes organizations and projects; the same for the command line and for the administration API."""

from dataclasses import replace

from meterhouse.audit import Action, Change
from meterhouse.db.organizations import Organization, Project
from meterhouse.errors import NotFound
from meterhouse.identity import COMMAND_LINE, Author
from meterhouse.ids import new_id
from meterhouse.keys.changes import Changes, check_name
from meterhouse.keys.shown import fields_of_project
from meterhouse.metering import Scope


class OwnerChanges(Changes):
    """Changes who owns keys. Every method raises StoreDown when there is no database."""

    async def create_organization(self, name: str, *, author: Author = COMMAND_LINE) -> Organization:
        """Make an organization; raises Malformed for an empty or too long name."""
        check_name(name)
        new = Organization(id=new_id("org"), name=name, created_at_ms=self._clock.now_ms())
        change = Change(Action.ORGANIZATION_CREATED, new.id, new.id, after={"name": name})
        async with self._catalog.changing() as catalog:
            await catalog.organizations.insert_organization(new)
            await catalog.audit.write(author, change)
        for welcome in self.on_organization:
            await welcome(new.id)
        return new

    async def rename_organization(
        self, organization_id: str, name: str, *, author: Author = COMMAND_LINE
    ) -> Organization:
        """Give an organization another name; raises NotFound, Malformed."""
        check_name(name)
        async with self._catalog.changing(organization_id) as catalog:
            old = await catalog.organizations.find_organization(organization_id)
            if old is None:
                raise no_organization(organization_id)
            await catalog.organizations.rename_organization(organization_id, name)
            change = Change(Action.ORGANIZATION_UPDATED, organization_id, organization_id)
            await catalog.audit.write(author, replace(change, before={"name": old.name}, after={"name": name}))
        return replace(old, name=name)

    async def get_organization(self, organization_id: str, *, within: str | None = None) -> Organization:
        """Return an organization; raises NotFound, also for another one than ``within``."""
        found = await self._catalog.organizations.find_organization(organization_id)
        if found is None or within not in {None, found.id}:
            raise no_organization(organization_id)
        return found

    async def create_project(self, organization_id: str, name: str, *, author: Author = COMMAND_LINE) -> Project:
        """Make a project; raises NotFound when there is no such organization, Malformed for a bad name."""
        check_name(name)
        await self.get_organization(organization_id)
        new = Project(new_id("proj"), organization_id, name, self._clock.now_ms())
        change = Change(Action.PROJECT_CREATED, new.id, organization_id, new.id, after=fields_of_project(new))
        async with self._catalog.changing(organization_id) as catalog:
            await catalog.organizations.insert_project(new)
            await catalog.audit.write(author, change)
        return new

    async def archive_project(self, project_id: str, *, author: Author = COMMAND_LINE) -> Project:
        """Archive a project: its keys are refused from now on. Raises NotFound; archiving twice changes nothing."""
        old = await self.get_project(project_id)
        now_ms = self._clock.now_ms()
        async with self._catalog.changing(old.organization_id) as catalog:
            if await catalog.organizations.archive_project(project_id, now_ms):
                await catalog.audit.write(
                    author, change_of_project(Action.PROJECT_ARCHIVED, old, replace(old, archived_at_ms=now_ms))
                )
        await self._tell_owner(Scope.PROJECT, project_id)
        return await self.get_project(project_id)

    async def get_project(self, project_id: str, *, within: str | None = None) -> Project:
        """Return a project, archived or not; raises NotFound, also for one outside of the organization ``within``."""
        project = await self._catalog.organizations.find_project(project_id)
        if project is None or within not in {None, project.organization_id}:
            message = f"There is no project '{project_id[:64]}'. List the projects to see their ids."
            raise NotFound(message, param="project_id")
        return project


def no_organization(organization_id: str) -> NotFound:
    """Return the error of whoever asks for an organization that is not there."""
    return NotFound(f"There is no organization '{organization_id[:64]}'.", param="organization_id")


def change_of_project(action: Action, before: Project, after: Project) -> Change:
    """Return a change of a project as it is written down."""
    return Change(
        action,
        before.id,
        before.organization_id,
        before.id,
        before=fields_of_project(before),
        after=fields_of_project(after),
    )
