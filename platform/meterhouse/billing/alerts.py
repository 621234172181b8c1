"""Looks whether spend alerts are due, and puts what is to be told into the outbox. Off the request path.

What was spent comes from the hourly projection, corrections included, in calendar months of UTC. Invariant: see
``db.alerts``: once for each alert, month and threshold, over all processes. Not here: delivering (``delivery``).
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from meterhouse.billing.invoice import Month
from meterhouse.db.alerts import AlertStore, Firing, Span, SpendAlert, Spent
from meterhouse.db.outbox import Delivery
from meterhouse.db.webhooks import Webhook, WebhookStore
from meterhouse.ids import new_id
from meterhouse.metering import Clock
from meterhouse.money import NANOS_PER_USD, format_usd
from meterhouse.telemetry.logs import Event, get_logger

PAGE_ALERTS = 200
NANOS_PER_CENT = NANOS_PER_USD // 100
WEBHOOK, EMAIL = "webhook", "email"
LATE_MS = 24 * 3_600_000


class MailBody(msgspec.Struct, frozen=True):
    """What an e-mail says, as it lies in the outbox."""

    subject: str
    text: str


class AlertWatch:
    """Evaluates alerts. One process at a time does, but two at a time do no harm."""

    def __init__(self, alerts: AlertStore, webhooks: WebhookStore, clock: Clock, *, has_mail: bool) -> None:
        """Take the stores, and whether e-mail can be sent at all."""
        self._alerts = alerts
        self._webhooks = webhooks
        self._clock = clock
        self._has_mail = has_mail

    async def step(self) -> int:
        """Fire what is due; returns how many alerts this process fired. Raises StoreDown."""
        now_ms = self._clock.now_ms()
        month = Month.of(now_ms)
        # What was used in a month's last hours is shipped in the next: for a day the month before is looked at too.
        before = Month.of(month.start_ms - 1)
        months = [before, month] if now_ms < month.start_ms + LATE_MS else [month]
        return sum([await self._look_at(Span(one.start_ms, one.end_ms), now_ms) for one in months])

    async def _look_at(self, span: Span, now_ms: int) -> int:
        fired, after = 0, ""
        full: set[str] = set()
        while page := await self._alerts.list_spent(span, after, PAGE_ALERTS):
            after = page[-1].alert.id
            for spent in page:
                is_older = spent.alert.created_at_ms < span.end_ms
                is_due = is_older and spent.nanos >= spent.alert.threshold_cents * NANOS_PER_CENT
                if not is_due or spent.alert.organization_id in full:
                    continue
                firing = await self._fire(spent, span, now_ms)
                fired += firing is Firing.FIRED
                if firing is Firing.FULL:
                    full.add(spent.alert.organization_id)
        return fired

    async def _fire(self, spent: Spent, span: Span, now_ms: int) -> Firing:
        alert = spent.alert
        webhooks = await self._webhooks.list_webhooks(alert.organization_id)
        deliveries = [_to_webhook(webhook, spent, span, now_ms) for webhook in webhooks]
        if self._has_mail and alert.recipients:
            deliveries.append(_to_mail(spent, span, now_ms))
        firing = await self._alerts.fire(spent, span, now_ms, deliveries)
        if firing is Firing.FIRED:
            get_logger().info(
                Event.ALERT_FIRED,
                alert_id=alert.id,
                organization_id=alert.organization_id,
                spent_nanos=spent.nanos,
                deliveries=len(deliveries),
            )
        if firing is Firing.FULL:
            get_logger().warning(Event.ALERT_HELD_BACK, alert_id=alert.id, organization_id=alert.organization_id)
        return firing


def _to_webhook(webhook: Webhook, spent: Spent, span: Span, now_ms: int) -> Delivery:
    data = {**_facts_of(spent.alert), "spent_nanos": spent.nanos, "spent_usd": format_usd(spent.nanos)}
    event = {
        "type": "spend_alert.fired",
        "timestamp": _iso(now_ms),
        "data": {**data, "period_start": _iso(span.start_ms), "period_end": _iso(span.end_ms)},
    }
    body = msgspec.json.encode(event).decode()
    return _delivery(spent.alert, WEBHOOK, webhook.id, body, now_ms)


def _to_mail(spent: Spent, span: Span, now_ms: int) -> Delivery:
    alert = spent.alert
    month, amount = Month.of(span.start_ms).name, format_usd(alert.threshold_cents * NANOS_PER_CENT)
    whose = f"project {alert.project_id}" if alert.project_id else f"organization {alert.organization_id}"
    prefix = f"{alert.subject_prefix} " if alert.subject_prefix else ""
    text = (
        f"Spending of {whose} in {month} (UTC) has reached {format_usd(spent.nanos)} USD.\n"
        f"This alert was set at {amount} USD. It is sent once a month.\n\nAlert: {alert.id}\n"
    )
    mail = MailBody(f"{prefix}Spend alert: {amount} USD reached in {month}", text)
    return _delivery(alert, EMAIL, _encode_recipients(alert.recipients), msgspec.json.encode(mail).decode(), now_ms)


def _facts_of(alert: SpendAlert) -> dict[str, object]:
    return {
        "alert_id": alert.id,
        "organization_id": alert.organization_id,
        "project_id": alert.project_id or None,
        "currency": "USD",
        "interval": "month",
        "threshold_amount": alert.threshold_cents,
    }


def _delivery(alert: SpendAlert, channel: str, target: str, body: str, now_ms: int) -> Delivery:
    return Delivery(new_id("msg"), alert.organization_id, channel, target, body, now_ms, now_ms)


def _encode_recipients(recipients: Sequence[str]) -> str:
    return msgspec.json.encode(list(recipients)).decode()


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
