"""Who changed what: the audit log as OpenAI's SDK reads it, and whole for operators.

OpenAI's has no word for some changes (a price, a provider): those are in ``/admin/audit`` alone. Nothing secret is in
an event, because none is in the change that it tells of (``audit``).
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from meterhouse.admin.guard import Mandated, SignedIn
from meterhouse.admin.pages import Cursor, Order, PageSize, Words, listing
from meterhouse.admin.schemas import Listing
from meterhouse.audit import Action
from meterhouse.db.audit import AuditEvent, AuditQuery, AuditStore
from meterhouse.db.organizations import OrganizationStore
from meterhouse.db.paging import PageQuery
from meterhouse.identity import ActorKind, Author, Role
from meterhouse.keys.finder import no_organization

_TYPES: Mapping[Action, str] = {
    **{
        action: action.value
        for action in Action
        if action.value.partition(".")[0] in {"api_key", "project", "rate_limit", "service_account"}
    },
    Action.ORGANIZATION_UPDATED: "organization.updated",
    Action.ADMIN_KEY_CREATED: "api_key.created",
    Action.ADMIN_KEY_DELETED: "api_key.deleted",
}
"""OpenAI's types of events; an action that is not here has none."""
_MILLISECONDS = 1_000

Bound = Annotated[int | None, Query(ge=0, le=10**11, description="Unix seconds")]


class AuditLogObject(BaseModel):
    """An event as OpenAI has it; its details are under its type: ``{"project.created": {"id": ..., "data": ...}}``."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: str = "organization.audit_log"
    type: str
    effective_at: int
    actor: dict[str, Any]
    project: dict[str, Any] | None = None


class AuditEventObject(BaseModel):
    """An event, whole."""

    id: str
    object: str = "audit_event"
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
    created_at: int

    @classmethod
    def of(cls, event: AuditEvent) -> "AuditEventObject":
        """Show an event."""
        fields = {name: getattr(event, name) for name in cls.model_fields if hasattr(event, name)}
        return cls(**fields, created_at=event.created_at_ms // _MILLISECONDS)


class AuditFilter(BaseModel):
    """Which events; what is empty is no condition."""

    after: Cursor = None
    before: Cursor = None
    limit: PageSize = 20
    order: Order = "desc"
    project_ids: Words = []
    actor_ids: Words = []
    resource_ids: Words = []
    gt: Bound = Field(None, alias="effective_at[gt]")
    gte: Bound = Field(None, alias="effective_at[gte]")
    lt: Bound = Field(None, alias="effective_at[lt]")
    lte: Bound = Field(None, alias="effective_at[lte]")

    @property
    def page(self) -> PageQuery:
        """The page that is asked for."""
        return PageQuery(self.limit, self.after, self.before, is_newest_first=self.order == "desc")

    def query(self, organization_id: str | None, actions: Collection[str]) -> AuditQuery:
        """Return what the store is asked."""
        starts = [second for second in (self.gte, None if self.gt is None else self.gt + 1) if second is not None]
        ends = [second for second in (self.lt, None if self.lte is None else self.lte + 1) if second is not None]
        return AuditQuery(
            organization_id,
            self.project_ids,
            actions,
            self.actor_ids,
            self.resource_ids,
            from_ms=max(starts) * _MILLISECONDS if starts else None,
            until_ms=min(ends) * _MILLISECONDS if ends else None,
        )


class AuditLogFilter(AuditFilter):
    """OpenAI's words for it; it has no e-mail addresses of actors, so that a filter by these finds nothing."""

    event_types: Words = []
    actor_emails: Words = []
    tenant_only: bool = False


class AuditEventFilter(AuditFilter):
    """The same for the whole log."""

    organization_id: str | None = None
    actions: Words = []


def add_audit_logs(router: APIRouter, audit: AuditStore, organizations: OrganizationStore) -> None:
    """Add OpenAI's list of events to ``/v1/organization``."""

    @router.get("/audit_logs", summary="Who changed what")
    async def list_audit_logs(mandate: Mandated, wanted: Annotated[AuditLogFilter, Query()]) -> Listing[AuditLogObject]:
        shown = [action for action in _TYPES if not wanted.event_types or _TYPES[action] in wanted.event_types]
        if not shown or wanted.actor_emails or wanted.tenant_only:
            return Listing(data=[])
        found = await audit.list_events(wanted.query(mandate.organization_id, shown), wanted.page)
        names = await organizations.find_project_names({event.project_id for event in found.rows if event.project_id})
        return listing(found.map(partial(_seen_by, mandate.author)), lambda event: _log_of(event, names))


def add_audit_events(router: APIRouter, audit: AuditStore) -> None:
    """Add the whole list of events to ``/admin``."""

    @router.get("/audit", summary="Who changed what, whole")
    async def list_audit_events(
        author: SignedIn, wanted: Annotated[AuditEventFilter, Query()]
    ) -> Listing[AuditEventObject]:
        asked = wanted.organization_id
        if asked is not None and not author.actor.may_see(asked):
            raise no_organization(asked)
        query = wanted.query(author.actor.organization_id or asked, wanted.actions)
        found = await audit.list_events(query, wanted.page)
        return listing(found.map(partial(_seen_by, author)), AuditEventObject.of)


def _seen_by(author: Author, event: AuditEvent) -> AuditEvent:
    """Leave out where operators sit, which is nobody else's business."""
    is_hidden = event.actor_role == Role.OPERATOR and author.actor.role is not Role.OPERATOR
    return replace(event, address=None) if is_hidden else event


def _log_of(event: AuditEvent, project_names: Mapping[str, str]) -> AuditLogObject:
    kind = _TYPES[Action(event.action)]
    project = None
    if event.project_id is not None:
        project = {"id": event.project_id, "name": project_names.get(event.project_id, "")}
    return AuditLogObject(
        id=event.id,
        type=kind,
        effective_at=event.created_at_ms // _MILLISECONDS,
        actor=_actor_of(event),
        project=project,
        **cast("dict[str, Any]", {kind: _details_of(event, kind)}),
    )


def _actor_of(event: AuditEvent) -> dict[str, Any]:
    if event.actor_kind == ActorKind.ADMIN_KEY:
        return {"type": "api_key", "api_key": {"id": event.actor_id, "type": "user", "user": {"id": event.actor_id}}}
    session: dict[str, Any] = {"user": {"id": event.actor_id}}
    if event.address is not None:
        session["ip_address"] = event.address
    return {"type": "session", "session": session}


def _details_of(event: AuditEvent, kind: str) -> dict[str, Any]:
    before, after = event.before or {}, event.after or {}
    details: dict[str, Any] = {"id": event.target_id}
    if kind.endswith(".created"):
        details["data"] = _titled(after)
    elif kind.endswith(".updated"):
        changed = {name: value for name, value in after.items() if before.get(name) != value}
        details["changes_requested"] = _titled(changed)
    return details


def _titled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Give a name also as the ``title`` that OpenAI's events of projects have."""
    return {**fields, "title": fields["name"]} if "name" in fields else dict(fields)
