"""Billing of an organization, ``/admin/organizations/{id}``: invoices, credits, webhooks and their deliveries.

Whoever is bound to an organization sees its own and nothing else. Not here: the rules (``billing``).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from meterhouse.admin.guard import SignedIn
from meterhouse.admin.schemas import Listing, Strict
from meterhouse.billing.alert_changes import MAX_URL_LENGTH, AlertChanges
from meterhouse.billing.credits import MAX_REFERENCE_CHARACTERS, CreditOrder, Credits
from meterhouse.billing.invoice import Invoice, Month
from meterhouse.billing.invoice_page import PAGE_POLICY, to_csv, to_html
from meterhouse.billing.invoices import Invoices
from meterhouse.db.catalog import Catalog
from meterhouse.db.credits import CreditBalance
from meterhouse.db.outbox import Delivery, OutboxStore
from meterhouse.db.webhooks import Webhook
from meterhouse.errors import Malformed
from meterhouse.identity import Author
from meterhouse.keys.finder import no_organization
from meterhouse.money import format_usd, parse_usd

InvoiceForm = Annotated[Literal["json", "csv", "html"], Query(alias="format", description="`html` is a page to print")]
DeliveryCount = Annotated[int, Query(ge=1, le=100)]
OF_ORGANIZATION = "/organizations/{organization_id}"


@dataclass(frozen=True, slots=True)
class BillingParts:
    """What these pages are made of."""

    alerts: AlertChanges
    outbox: OutboxStore
    invoices: Invoices
    credits: Credits
    catalog: Catalog


class IssuedObject(BaseModel):
    """An invoice in a list."""

    id: str
    object: str = "invoice.summary"
    month: str
    total_nanos: int
    total_usd: str


class CreditRequest(Strict):
    """A credit; the same reference credits once, however often it is sent."""

    usd: str = Field(description='A decimal in quotes; negative takes credit back: `"25.00"`')
    reference: str = Field(min_length=1, max_length=MAX_REFERENCE_CHARACTERS, description="Of the payment")


class CreditObject(BaseModel):
    """What an organization paid ahead, and what is left of it."""

    object: str = "credit_balance"
    organization_id: str
    has_credit: bool = Field(description="False: nothing was ever credited, and credit bounds nothing")
    credited_nanos: int
    spent_nanos: int
    balance_nanos: int
    balance_usd: str
    is_new: bool | None = Field(None, description="Of a credit that was sent: whether its reference was new")


class WebhookRequest(Strict):
    """Where an organization's events are posted to."""

    url: str = Field(max_length=MAX_URL_LENGTH)


class WebhookObject(BaseModel):
    """A webhook; ``secret`` is shown once, to verify signatures with (Standard Webhooks)."""

    id: str
    object: str = "webhook"
    url: str
    created_at: int
    secret: str | None = None

    @classmethod
    def of(cls, stored: Webhook, secret: str | None = None) -> "WebhookObject":
        """Show a stored webhook."""
        return cls(id=stored.id, url=stored.url, created_at=stored.created_at_ms // 1_000, secret=secret)


class DeliveryObject(BaseModel):
    """What became of a webhook's or an e-mail's message."""

    id: str
    object: str = "delivery"
    channel: str
    target: str
    state: str = Field(description="`waiting`, `delivered` or `failed` (given up)")
    tries: int
    last_error: str
    created_at: int
    next_at: int | None

    @classmethod
    def of(cls, stored: Delivery) -> "DeliveryObject":
        """Show a stored delivery."""
        return cls(
            id=stored.id,
            channel=stored.channel,
            target=stored.target,
            state=stored.state,
            tries=stored.tries,
            last_error=stored.last_error,
            created_at=stored.created_at_ms // 1_000,
            next_at=stored.next_at_ms // 1_000 if stored.state == "waiting" else None,
        )


def add_billing(router: APIRouter, parts: BillingParts) -> None:
    """Add the routes."""
    _add_invoices(router, parts.invoices)
    _add_credits(router, parts.credits)
    _add_webhooks(router, parts)


def _add_invoices(router: APIRouter, invoices: Invoices) -> None:
    @router.get(f"{OF_ORGANIZATION}/invoices", summary="The invoices of an organization")
    async def list_invoices(organization_id: str, author: SignedIn) -> Listing[IssuedObject]:
        _check_reach(author, organization_id)
        found = await invoices.list_issued(organization_id)
        return Listing(
            data=[
                IssuedObject(id=month.name, month=month.name, total_nanos=nanos, total_usd=format_usd(nanos))
                for month, nanos in found
            ]
        )

    @router.get(
        f"{OF_ORGANIZATION}/invoices/{{month}}",
        summary="An invoice as it was issued, or a draft of it",
        response_class=Response,
    )
    async def get_invoice(organization_id: str, month: str, author: SignedIn, form: InvoiceForm = "json") -> Response:
        _check_reach(author, organization_id)
        return _render(await invoices.show(organization_id, Month.parse(month)), form)

    @router.post(
        f"{OF_ORGANIZATION}/invoices/{{month}}",
        summary="Issue the invoice of a month that is over",
        response_class=Response,
    )
    async def issue_invoice(organization_id: str, month: str, author: SignedIn) -> Response:
        _check_reach(author, organization_id)
        return _render(await invoices.issue(organization_id, Month.parse(month), author), "json")


def _add_credits(router: APIRouter, credits_of: Credits) -> None:
    @router.get(f"{OF_ORGANIZATION}/credits", summary="What was paid ahead, and what is left of it")
    async def get_credit(organization_id: str, author: SignedIn) -> CreditObject:
        _check_reach(author, organization_id)
        return _credit(organization_id, await credits_of.show(organization_id))

    @router.post(f"{OF_ORGANIZATION}/credits", summary="Add prepaid credit, once for each reference")
    async def add_credit(organization_id: str, body: CreditRequest, author: SignedIn) -> CreditObject:
        _check_reach(author, organization_id)
        try:
            nanos = parse_usd(body.usd)
        except ValueError as error:
            raise Malformed(f'{error}. Write a decimal, for example "25.00".', param="usd") from None
        order = CreditOrder(organization_id, nanos, body.reference, author.actor.id)
        _, is_new = await credits_of.add(order, author)
        return _credit(organization_id, await credits_of.show(organization_id), is_new=is_new)


def _add_webhooks(router: APIRouter, parts: BillingParts) -> None:
    @router.post(f"{OF_ORGANIZATION}/webhooks", status_code=201, summary="Post the organization's events somewhere")
    async def create_webhook(organization_id: str, body: WebhookRequest, author: SignedIn) -> WebhookObject:
        _check_reach(author, organization_id)
        return WebhookObject.of(*await parts.alerts.create_webhook(organization_id, body.url, author))

    @router.get(f"{OF_ORGANIZATION}/webhooks", summary="Webhooks, without secrets")
    async def list_webhooks(organization_id: str, author: SignedIn) -> Listing[WebhookObject]:
        _check_reach(author, organization_id)
        found = await parts.catalog.webhooks.list_webhooks(organization_id)
        return Listing(data=[WebhookObject.of(one) for one in found])

    @router.delete(f"{OF_ORGANIZATION}/webhooks/{{webhook_id}}", status_code=204, summary="Remove one")
    async def remove_webhook(organization_id: str, webhook_id: str, author: SignedIn) -> Response:
        _check_reach(author, organization_id)
        await parts.alerts.remove_webhook(organization_id, webhook_id, author)
        return Response(status_code=204)

    @router.get(f"{OF_ORGANIZATION}/deliveries", summary="What became of the latest messages")
    async def list_deliveries(
        organization_id: str, author: SignedIn, limit: DeliveryCount = 20
    ) -> Listing[DeliveryObject]:
        _check_reach(author, organization_id)
        found = await parts.outbox.list_latest(organization_id, limit)
        return Listing(data=[DeliveryObject.of(one) for one in found])


def _check_reach(author: Author, organization_id: str) -> None:
    """Refuse what is another organization's as if it were not there."""
    if not author.actor.may_see(organization_id):
        raise no_organization(organization_id)


def _render(invoice: Invoice, form: str) -> Response:
    if form == "html":
        headers = {"content-security-policy": PAGE_POLICY, "x-content-type-options": "nosniff"}
        return Response(to_html(invoice), media_type="text/html; charset=utf-8", headers=headers)
    if form == "csv":
        headers = {"content-disposition": f'attachment; filename="{invoice.id}.csv"'}
        return Response(to_csv(invoice), media_type="text/csv; charset=utf-8", headers=headers)
    return Response(msgspec.json.encode(invoice), media_type="application/json")


def _credit(organization_id: str, balance: CreditBalance, *, is_new: bool | None = None) -> CreditObject:
    return CreditObject(
        organization_id=organization_id,
        has_credit=balance.has_credit,
        credited_nanos=balance.credited_nanos,
        spent_nanos=balance.spent_nanos,
        balance_nanos=balance.balance_nanos,
        balance_usd=format_usd(balance.balance_nanos),
        is_new=is_new,
    )
