"""Changes the limits of organizations, projects and keys.

Not here: a limit's grammar (``limits.limit``), and what a limit does.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from meterhouse.audit import Action, Change, Fields
from meterhouse.errors import Malformed
from meterhouse.identity import COMMAND_LINE, Author
from meterhouse.keys.finder import Finder
from meterhouse.keys.shown import fields_of_limits
from meterhouse.metering import Limit, Scope

MOST_LIMITS = 100
"""Of one organization, project or key: all of them are decided in one step."""

_ACTIONS = {
    Scope.ORGANIZATION: Action.ORGANIZATION_UPDATED,
    Scope.PROJECT: Action.PROJECT_UPDATED,
    Scope.KEY: Action.API_KEY_UPDATED,
}


@dataclass(frozen=True, slots=True)
class LimitChange:
    """Some limits of one owner, changed."""

    scope: Scope
    scope_id: str
    change: Callable[[Sequence[Limit]], Iterable[Limit]]
    """Gets what there is and returns what shall be; nobody else changes it in between. What it raises leaves here."""
    action: Action | None = None
    """What the audit log calls it; None: after the owner."""
    target_id: str | None = None
    """What the audit log says was changed; None: the owner."""
    asked: Fields = field(default_factory=dict)
    """What was asked for in other words, for the audit log."""


class LimitChanges(Finder):
    """Changes limits. Every method raises StoreDown when there is no database, and NotFound when there is no owner."""

    async def set_limits(
        self, scope: Scope, scope_id: str, limits: Iterable[Limit], *, author: Author = COMMAND_LINE
    ) -> list[Limit]:
        """Replace the limits of an organization, a project or a key (with its rotations).

        Raises:
            Malformed: two limits differ only in their amount, or there are too many.
        """
        return await self.change_limits(LimitChange(scope, scope_id, lambda _: limits), author=author)

    async def change_limits(self, wanted: LimitChange, *, author: Author = COMMAND_LINE) -> list[Limit]:
        """Change limits over what there is now; returns all of the owner's as they are then.

        Raises:
            Malformed: two limits differ only in their amount, or there are too many.
        """
        owner = await self.get_limit_owner(wanted.scope, wanted.scope_id)
        async with self._catalog.changing(owner.organization_id) as catalog:
            before = await catalog.limits.list_limits(wanted.scope, owner.id)
            after = [replace(limit, scope=wanted.scope, scope_id=owner.id) for limit in wanted.change(before)]
            check_limits(after)
            await catalog.limits.set_limits(wanted.scope, owner.id, after)
            change = Change(
                wanted.action or _ACTIONS[wanted.scope],
                wanted.target_id or owner.id,
                owner.organization_id,
                owner.project_id,
                before={"limits": fields_of_limits(before)},
                after={"limits": fields_of_limits(after), **wanted.asked},
            )
            await catalog.audit.write(author, change)
        await self._tell_owner(wanted.scope, owner.id)
        return await self._catalog.limits.list_limits(wanted.scope, owner.id)

    async def list_limits(self, scope: Scope, scope_id: str, *, within: str | None = None) -> list[Limit]:
        """Return the limits of an organization, a project or a key itself."""
        owner = await self.get_limit_owner(scope, scope_id, within=within)
        return await self._catalog.limits.list_limits(scope, owner.id)


def check_limits(limits: Iterable[Limit]) -> None:
    """Raise Malformed for limits that cannot stand side by side."""
    seen: set[object] = set()
    for limit in limits:
        if len(seen) == MOST_LIMITS:
            raise Malformed(f"At most {MOST_LIMITS} limits bind one owner. Leave some out.", param="limits")
        same = (limit.kind, limit.window, limit.multiple, limit.model)
        if same in seen:
            message = f"Two limits of {limit.kind} per {limit.window} differ only in their amount. Keep one of them."
            raise Malformed(message, param="limits")
        seen.add(same)
