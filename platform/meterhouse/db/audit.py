"""Who changed what, in SQL: rows that are only ever added, each in the transaction of the change that it tells of.

Not here: the words (``audit``), and who may read it (``admin``).
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from meterhouse.audit import Change
from meterhouse.db.engine import Source, reading, wall_ms, writing
from meterhouse.db.paging import Page, PageQuery, fetch_page
from meterhouse.db.tables import audit_event
from meterhouse.identity import Author
from meterhouse.ids import new_id


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """A change that was made."""

    id: str
    action: str
    target_id: str
    organization_id: str | None
    project_id: str | None
    actor_kind: str
    actor_id: str
    actor_role: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    address: str | None
    request_id: str | None
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which events; an empty collection is no condition."""

    organization_id: str | None = None
    """None: of every organization, and of none."""
    project_ids: Collection[str] = ()
    actions: Collection[str] = ()
    actor_ids: Collection[str] = ()
    target_ids: Collection[str] = ()
    from_ms: int | None = None
    """Inclusive."""
    until_ms: int | None = None
    """Exclusive."""


class AuditStore:
    """Reads and adds events. Every method raises StoreDown when there is no database."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def write(self, author: Author, change: Change) -> AuditEvent:
        """Add an event; to be called in the transaction of the change (``Catalog.changing``)."""
        event = AuditEvent(
            id=new_id("audit_log"),
            action=change.action.value,
            target_id=change.target_id,
            organization_id=change.organization_id,
            project_id=change.project_id,
            actor_kind=author.actor.kind.value,
            actor_id=author.actor.id,
            actor_role=author.actor.role.value,
            before=None if change.before is None else dict(change.before),
            after=None if change.after is None else dict(change.after),
            address=author.address,
            request_id=author.request_id,
            created_at_ms=wall_ms(),
        )
        async with writing(self._source) as connection:
            await connection.execute(sa.insert(audit_event).values(asdict(event)))
        return event

    async def list_events(self, query: AuditQuery, page: PageQuery) -> Page[AuditEvent]:
        """Return a page of events."""
        owned = [] if query.organization_id is None else [audit_event.c.organization_id == query.organization_id]
        statement = sa.select(audit_event).where(*owned, *_conditions(query))
        async with reading(self._source) as connection:
            rows = await fetch_page(connection, statement, audit_event, page, owned)
        return rows.map(lambda row: AuditEvent(**row))


def _conditions(query: AuditQuery) -> list[sa.ColumnElement[bool]]:
    wanted = (
        (audit_event.c.project_id, query.project_ids),
        (audit_event.c.action, query.actions),
        (audit_event.c.actor_id, query.actor_ids),
        (audit_event.c.target_id, query.target_ids),
    )
    found: list[sa.ColumnElement[bool]] = [column.in_(values) for column, values in wanted if values]
    if query.from_ms is not None:
        found.append(audit_event.c.created_at_ms >= query.from_ms)
    if query.until_ms is not None:
        found.append(audit_event.c.created_at_ms < query.until_ms)
    return found
