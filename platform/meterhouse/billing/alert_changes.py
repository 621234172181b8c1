"""Changes spend alerts and webhooks, each with its audit event in one transaction.

Not here: who may (``admin``), and when an alert fires (``alerts``).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from meterhouse.audit import Action, Change, Fields
from meterhouse.billing.mail import ENCODED_WORD
from meterhouse.billing.webhook import WebhookSigner
from meterhouse.db.alerts import SpendAlert
from meterhouse.db.catalog import Catalog
from meterhouse.db.paging import Page, PageQuery
from meterhouse.db.webhooks import Webhook
from meterhouse.errors import Malformed, NotFound
from meterhouse.identity import Author
from meterhouse.ids import new_id
from meterhouse.metering import Clock

MOST_ALERTS = 200
"""Of an organization, those of its projects included."""
MOST_WEBHOOKS = 10
MAX_RECIPIENTS = 50
MAX_URL_LENGTH = 2_048
_ADDRESS = re.compile(r"[^\s@<>,;:\"()\[\]\\]{1,64}@[A-Za-z0-9.-]{1,255}", re.ASCII)


@dataclass(frozen=True, slots=True)
class AlertOwner:
    """Whose alerts: an organization's, or those of one of its projects."""

    organization_id: str
    project_id: str = ""


@dataclass(frozen=True, slots=True)
class AlertOrder:
    """An alert as it is asked for."""

    threshold_cents: int
    recipients: tuple[str, ...]
    subject_prefix: str | None


class AlertChanges:
    """Changes alerts and webhooks. Every method raises StoreDown when there is no database."""

    def __init__(self, catalog: Catalog, signer: WebhookSigner, clock: Clock, check_url: Callable[[str], None]) -> None:
        """Take the stores, and what raises ValueError for an address that may not be posted to."""
        self._catalog = catalog
        self._signer = signer
        self._clock = clock
        self._check_url = check_url

    async def create_alert(self, owner: AlertOwner, order: AlertOrder, author: Author) -> SpendAlert:
        """Make an alert; raises Malformed, and NotFound when the project is not the organization's."""
        _check_order(order)
        await self._check_owner(owner)
        new = SpendAlert(
            id=new_id("alert"),
            organization_id=owner.organization_id,
            project_id=owner.project_id,
            threshold_cents=order.threshold_cents,
            recipients=order.recipients,
            subject_prefix=order.subject_prefix,
            created_at_ms=self._clock.now_ms(),
        )
        async with self._catalog.changing(owner.organization_id) as catalog:
            if await catalog.alerts.count(owner.organization_id) >= MOST_ALERTS:
                raise Malformed(f"An organization and its projects have at most {MOST_ALERTS} spend alerts.")
            await catalog.alerts.insert(new)
            await catalog.audit.write(author, _change(Action.SPEND_ALERT_CREATED, new, after=_shown(new)))
        return new

    async def update_alert(self, owner: AlertOwner, alert_id: str, order: AlertOrder, author: Author) -> SpendAlert:
        """Set an alert anew; with another threshold it can fire again in the same month. Raises NotFound, Malformed."""
        _check_order(order)
        async with self._catalog.changing(owner.organization_id) as catalog:
            old = await self._get(catalog, owner, alert_id)
            new = replace(
                old,
                threshold_cents=order.threshold_cents,
                recipients=order.recipients,
                subject_prefix=order.subject_prefix,
            )
            await catalog.alerts.update(new)
            change = _change(Action.SPEND_ALERT_UPDATED, new, before=_shown(old), after=_shown(new))
            await catalog.audit.write(author, change)
        return new

    async def remove_alert(self, owner: AlertOwner, alert_id: str, author: Author) -> None:
        """Remove an alert; raises NotFound."""
        async with self._catalog.changing(owner.organization_id) as catalog:
            old = await self._get(catalog, owner, alert_id)
            await catalog.alerts.remove(alert_id)
            await catalog.audit.write(author, _change(Action.SPEND_ALERT_DELETED, old, before=_shown(old)))

    async def get_alert(self, owner: AlertOwner, alert_id: str) -> SpendAlert:
        """Return an alert; raises NotFound."""
        return await self._get(self._catalog, owner, alert_id)

    async def page_alerts(self, owner: AlertOwner, query: PageQuery) -> Page[SpendAlert]:
        """Return a page of an owner's alerts; raises NotFound when the project is not the organization's."""
        await self._check_owner(owner)
        return await self._catalog.alerts.page(owner.organization_id, owner.project_id, query)

    async def create_webhook(self, organization_id: str, url: str, author: Author) -> tuple[Webhook, str]:
        """Make a webhook; returns it with its secret, which is shown this once. Raises Malformed, NotFound."""
        try:
            if len(url) > MAX_URL_LENGTH:
                raise ValueError(f"an address has at most {MAX_URL_LENGTH} characters")
            self._check_url(url)
        except ValueError as error:
            raise Malformed(f"This address cannot be used: {error}.", param="url") from None
        new = Webhook(new_id("wh"), organization_id, url, self._signer.newest_version, self._clock.now_ms())
        async with self._catalog.changing(organization_id) as catalog:
            if await catalog.organizations.find_organization(organization_id) is None:
                raise NotFound(f"There is no organization '{organization_id[:64]}'.", param="organization_id")
            if len(await catalog.webhooks.list_webhooks(organization_id)) >= MOST_WEBHOOKS:
                raise Malformed(f"An organization has at most {MOST_WEBHOOKS} webhooks.")
            await catalog.webhooks.insert(new)
            await catalog.audit.write(author, _webhook_change(Action.WEBHOOK_CREATED, new))
        secret = self._signer.secret_of(new)
        assert secret is not None
        return new, secret

    async def remove_webhook(self, organization_id: str, webhook_id: str, author: Author) -> None:
        """Remove a webhook; raises NotFound."""
        async with self._catalog.changing(organization_id) as catalog:
            found = await catalog.webhooks.find(webhook_id)
            if found is None or found.organization_id != organization_id:
                raise NotFound(f"There is no webhook '{webhook_id[:64]}' in this organization.", param="webhook_id")
            await catalog.webhooks.remove(webhook_id)
            await catalog.audit.write(author, _webhook_change(Action.WEBHOOK_DELETED, found))

    async def _get(self, catalog: Catalog, owner: AlertOwner, alert_id: str) -> SpendAlert:
        found = await catalog.alerts.find(owner.organization_id, owner.project_id, alert_id)
        if found is None:
            raise NotFound(f"There is no spend alert '{alert_id[:64]}' here.", param="alert_id")
        return found

    async def _check_owner(self, owner: AlertOwner) -> None:
        if not owner.project_id:
            return
        project = await self._catalog.organizations.find_project(owner.project_id)
        if project is None or project.organization_id != owner.organization_id:
            raise NotFound(f"There is no project '{owner.project_id[:64]}' in this organization.", param="project_id")


def _check_order(order: AlertOrder) -> None:
    if len(order.recipients) > MAX_RECIPIENTS:
        raise Malformed(f"An alert has at most {MAX_RECIPIENTS} recipients.", param="notification_channel.recipients")
    for address in order.recipients:
        if _ADDRESS.fullmatch(address) is None or ENCODED_WORD in address:
            text = f"'{address[:64]}' is no e-mail address."
            raise Malformed(text, param="notification_channel.recipients")
    prefix = order.subject_prefix or ""
    if not prefix.isprintable() or ENCODED_WORD in prefix:
        text = f"A subject has no line breaks, and no '{ENCODED_WORD}' to spell them with."
        raise Malformed(text, param="notification_channel.subject_prefix")


def _shown(alert: SpendAlert) -> Fields:
    return {
        "threshold_amount": alert.threshold_cents,
        "recipients": list(alert.recipients),
        "subject_prefix": alert.subject_prefix,
    }


def _change(action: Action, alert: SpendAlert, *, before: Fields | None = None, after: Fields | None = None) -> Change:
    return Change(action, alert.id, alert.organization_id, alert.project_id or None, before, after)


def _webhook_change(action: Action, webhook: Webhook) -> Change:
    parts = urlsplit(webhook.url)
    fields = {"origin": f"{parts.scheme}://{parts.netloc}"}  # the rest of such an address is often a secret
    is_new = action is Action.WEBHOOK_CREATED
    return Change(
        action,
        webhook.id,
        webhook.organization_id,
        before=None if is_new else fields,
        after=fields if is_new else None,
    )
