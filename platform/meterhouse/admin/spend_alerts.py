"""Spend alerts of an organization or a project, as OpenAI's SDK sets them.

OpenAI's have e-mail alone; an organization's webhooks (``admin.billing``) are told of each besides. Not here: when one
fires (``billing.alerts``).
"""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from meterhouse.admin.guard import Mandate, Mandated
from meterhouse.admin.pages import OldestFirst, listing
from meterhouse.admin.schemas import Listing, Strict
from meterhouse.admin.spend_limits import MAX_CENTS
from meterhouse.billing.alert_changes import MAX_RECIPIENTS, AlertChanges, AlertOrder, AlertOwner
from meterhouse.db.alerts import SpendAlert

MAX_PREFIX = 100


class NotificationChannel(Strict):
    """Who is written to. Nobody at all leaves the webhooks."""

    type: Literal["email"]
    recipients: Annotated[list[str], Field(max_length=MAX_RECIPIENTS)]
    subject_prefix: Annotated[str | None, Field(max_length=MAX_PREFIX)] = None


class SpendAlertRequest(Strict):
    """An amount of a UTC month, and who is told when it is spent."""

    threshold_amount: Annotated[int, Field(gt=0, le=MAX_CENTS, description="Cents")]
    currency: Literal["USD"]
    interval: Literal["month"]
    notification_channel: NotificationChannel

    @property
    def order(self) -> AlertOrder:
        """The alert as it is asked for."""
        channel = self.notification_channel
        return AlertOrder(self.threshold_amount, tuple(channel.recipients), channel.subject_prefix)


class SpendAlertObject(BaseModel):
    """A spend alert."""

    id: str
    object: Literal["organization.spend_alert", "project.spend_alert"]
    threshold_amount: int = Field(description="Cents")
    currency: Literal["USD"] = "USD"
    interval: Literal["month"] = "month"
    notification_channel: NotificationChannel

    @classmethod
    def of(cls, stored: SpendAlert) -> "SpendAlertObject":
        """Show a stored alert."""
        return cls(
            id=stored.id,
            object="project.spend_alert" if stored.project_id else "organization.spend_alert",
            threshold_amount=stored.threshold_cents,
            notification_channel=NotificationChannel(
                type="email", recipients=list(stored.recipients), subject_prefix=stored.subject_prefix
            ),
        )


class DeletedSpendAlertObject(BaseModel):
    """A spend alert that was removed."""

    id: str
    object: Literal["organization.spend_alert.deleted", "project.spend_alert.deleted"]
    deleted: Literal[True] = True


def add_spend_alerts(router: APIRouter, changes: AlertChanges) -> None:
    """Add the routes."""
    _add_of_organization(router, changes)
    _add_of_project(router, changes)


def _add_of_organization(router: APIRouter, changes: AlertChanges) -> None:
    @router.get("/spend_alerts", summary="Spend alerts of the organization")
    async def list_organization_alerts(page: OldestFirst, mandate: Mandated) -> Listing[SpendAlertObject]:
        return listing(await changes.page_alerts(_owner(mandate), page), SpendAlertObject.of)

    @router.post("/spend_alerts", summary="Set a spend alert of the organization")
    async def create_organization_alert(body: SpendAlertRequest, mandate: Mandated) -> SpendAlertObject:
        return SpendAlertObject.of(await changes.create_alert(_owner(mandate), body.order, mandate.author))

    @router.get("/spend_alerts/{alert_id}", summary="One spend alert of the organization")
    async def get_organization_alert(alert_id: str, mandate: Mandated) -> SpendAlertObject:
        return SpendAlertObject.of(await changes.get_alert(_owner(mandate), alert_id))

    @router.post("/spend_alerts/{alert_id}", summary="Set a spend alert of the organization anew")
    async def update_organization_alert(alert_id: str, body: SpendAlertRequest, mandate: Mandated) -> SpendAlertObject:
        return SpendAlertObject.of(await changes.update_alert(_owner(mandate), alert_id, body.order, mandate.author))

    @router.delete("/spend_alerts/{alert_id}", summary="Remove a spend alert of the organization")
    async def remove_organization_alert(alert_id: str, mandate: Mandated) -> DeletedSpendAlertObject:
        await changes.remove_alert(_owner(mandate), alert_id, mandate.author)
        return DeletedSpendAlertObject(id=alert_id, object="organization.spend_alert.deleted")


def _add_of_project(router: APIRouter, changes: AlertChanges) -> None:
    @router.get("/projects/{project_id}/spend_alerts", summary="Spend alerts of a project")
    async def list_project_alerts(project_id: str, page: OldestFirst, mandate: Mandated) -> Listing[SpendAlertObject]:
        return listing(await changes.page_alerts(_owner(mandate, project_id), page), SpendAlertObject.of)

    @router.post("/projects/{project_id}/spend_alerts", summary="Set a spend alert of a project")
    async def create_project_alert(project_id: str, body: SpendAlertRequest, mandate: Mandated) -> SpendAlertObject:
        owner = _owner(mandate, project_id)
        return SpendAlertObject.of(await changes.create_alert(owner, body.order, mandate.author))

    @router.get("/projects/{project_id}/spend_alerts/{alert_id}", summary="One spend alert of a project")
    async def get_project_alert(project_id: str, alert_id: str, mandate: Mandated) -> SpendAlertObject:
        return SpendAlertObject.of(await changes.get_alert(_owner(mandate, project_id), alert_id))

    @router.post("/projects/{project_id}/spend_alerts/{alert_id}", summary="Set a spend alert of a project anew")
    async def update_project_alert(
        project_id: str, alert_id: str, body: SpendAlertRequest, mandate: Mandated
    ) -> SpendAlertObject:
        owner = _owner(mandate, project_id)
        return SpendAlertObject.of(await changes.update_alert(owner, alert_id, body.order, mandate.author))

    @router.delete("/projects/{project_id}/spend_alerts/{alert_id}", summary="Remove a spend alert of a project")
    async def remove_project_alert(project_id: str, alert_id: str, mandate: Mandated) -> DeletedSpendAlertObject:
        await changes.remove_alert(_owner(mandate, project_id), alert_id, mandate.author)
        return DeletedSpendAlertObject(id=alert_id, object="project.spend_alert.deleted")


def _owner(mandate: Mandate, project_id: str = "") -> AlertOwner:
    return AlertOwner(mandate.organization_id, project_id)
