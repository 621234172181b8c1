"""Changes organizations and projects; the same for the command line and for the administration API."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from meterhouse.audit import Action, Change
from meterhouse.db.organizations import ALLOW_LIST, DENY_LIST, Organization, Project
from meterhouse.errors import Conflict, Malformed
from meterhouse.identity import COMMAND_LINE, Author
from meterhouse.ids import new_id
from meterhouse.keys.changes import check_name
from meterhouse.keys.finder import Finder, no_organization
from meterhouse.keys.shown import fields_of_project
from meterhouse.metering import Scope

MOST_MODELS = 1_000


class OwnerChanges(Finder):
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

    async def rename_project(self, project_id: str, name: str, *, author: Author = COMMAND_LINE) -> Project:
        """Give a project another name; raises NotFound, Malformed, and Conflict for an archived one."""
        check_name(name)
        return await self._change_project(project_id, lambda old: replace(old, name=name), author)

    async def set_models(
        self, project_id: str, mode: str | None, model_ids: Iterable[str], *, author: Author = COMMAND_LINE
    ) -> Project:
        """Say which models a project may use: only these, all but these, or (None) every one.

        Raises:
            Malformed: the mode is none, or there are too many models.
            NotFound: there is no such project.
            Conflict: it is archived.
        """
        if mode not in {None, ALLOW_LIST, DENY_LIST}:
            raise Malformed(f"The mode must be '{ALLOW_LIST}' or '{DENY_LIST}'.", param="mode")
        models = tuple(sorted(set(model_ids))) if mode is not None else ()
        if len(models) > MOST_MODELS:
            raise Malformed(f"At most {MOST_MODELS} models can be listed.", param="model_ids")
        changed = await self._change_project(
            project_id, lambda old: replace(old, model_mode=mode, model_ids=models), author
        )
        await self._tell_owner(Scope.PROJECT, project_id)
        return changed

    async def _change_project(self, project_id: str, change: Callable[[Project], Project], author: Author) -> Project:
        organization_id = (await self.get_project(project_id)).organization_id
        async with self._catalog.changing(organization_id) as catalog:
            old = await catalog.organizations.find_project(project_id)
            assert old is not None
            if old.archived_at_ms is not None:
                raise Conflict(f"Project '{project_id}' is archived, and stays as it is.", param="project_id")
            new = change(old)
            await catalog.organizations.update_project(new)
            await catalog.audit.write(author, change_of_project(Action.PROJECT_UPDATED, old, new))
        return new


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
