"""The words of the audit log: what can be done, and a change as it is written down.

Actions are named as OpenAI's audit events are, where it has one. Nothing secret is ever in a change: whoever makes one
names the fields that are shown. Not here: who did it (``identity``), and where it is kept (``db.audit``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Fields = Mapping[str, Any]
"""What is shown of an object, as JSON has it."""


class Action(StrEnum):
    """What was done."""

    ORGANIZATION_CREATED = "organization.created"
    ORGANIZATION_UPDATED = "organization.updated"
    PROJECT_CREATED = "project.created"
    PROJECT_UPDATED = "project.updated"
    PROJECT_ARCHIVED = "project.archived"
    RATE_LIMIT_UPDATED = "rate_limit.updated"
    SERVICE_ACCOUNT_CREATED = "service_account.created"
    SERVICE_ACCOUNT_UPDATED = "service_account.updated"
    SERVICE_ACCOUNT_DELETED = "service_account.deleted"
    API_KEY_CREATED = "api_key.created"
    API_KEY_UPDATED = "api_key.updated"
    API_KEY_DELETED = "api_key.deleted"
    ADMIN_KEY_CREATED = "admin_api_key.created"
    ADMIN_KEY_DELETED = "admin_api_key.deleted"
    ADJUSTMENT_CREATED = "adjustment.created"
    TOKEN_REVOKED = "token.revoked"  # noqa: S105 - a name of an event
    PRICE_CREATED = "price.created"
    PROVIDER_UPDATED = "provider.updated"
    PROVIDER_DELETED = "provider.deleted"
    ROUTE_UPDATED = "route.updated"
    ROUTE_DELETED = "route.deleted"
    SPEND_ALERT_CREATED = "spend_alert.created"
    SPEND_ALERT_UPDATED = "spend_alert.updated"
    SPEND_ALERT_DELETED = "spend_alert.deleted"
    WEBHOOK_CREATED = "webhook.created"
    WEBHOOK_DELETED = "webhook.deleted"
    CREDIT_ADDED = "credit.added"
    INVOICE_ISSUED = "invoice.issued"


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one object."""

    action: Action
    target_id: str
    organization_id: str | None = None
    """Whose object it is; None: the platform's."""
    project_id: str | None = None
    before: Fields | None = None
    after: Fields | None = None
