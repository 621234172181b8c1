"""Invoices, credits and webhooks over HTTP, for the operator and for whoever is bound to one organization."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from api.asking import Tenant, error_of
from fakes.gateway import Gateway

MODEL = "normal?tokens=10&first_ms=4"
MONTH = datetime.now(UTC).strftime("%Y-%m")


def ask(gateway: Gateway, method: str, path: str, body: object = None, key: str | None = None) -> tuple[int, Any]:
    status, headers, answer = gateway.request(method, path, body, key=key or gateway.admin_key)
    return status, json.loads(answer) if headers.get("content-type", "").startswith("application/json") else answer


def admin_key_of(gateway: Gateway, organization_id: str, role: str) -> str:
    async def issue() -> str:
        issued = await gateway.parts.stores.service.issue_admin("bound", role, organization_id=organization_id)
        return issued.value

    return gateway.run(issue)


def test_a_draft_says_what_was_used_in_every_form(gateway: Gateway, tenant: Tenant) -> None:
    gateway.set_price("fake", MODEL, "0", "4")
    charge = sum(1 for _ in range(3) if gateway.chat(f"fake/{MODEL}", key=tenant.key)[0] == 200) * 10 * 4_000
    gateway.settle()
    base = f"/admin/organizations/{tenant.organization_id}/invoices/{MONTH}"

    async def seal() -> int:
        return await gateway.parts.admin.billing.invoices._seal_all()

    gateway.run(seal)
    status, invoice = ask(gateway, "GET", base)
    assert (status, invoice["status"], invoice["total_nanos"]) == (200, "draft", charge)
    (line,) = invoice["lines"]
    assert (line["project_id"], line["project_name"], line["requests"]) == (tenant.project_id, "Search", 3)
    assert line["price_id"] == invoice["prices"][0]["id"]
    assert invoice["seal"]["last_sequence"] == 3
    status, headers, page = gateway.request("GET", f"{base}?format=html", key=gateway.admin_key)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b"draft" in page
    status, headers, table = gateway.request("GET", f"{base}?format=csv", key=gateway.admin_key)
    assert (status, headers["content-type"]) == (200, "text/csv; charset=utf-8")
    assert f",{charge}," in table.decode()
    status, answer = ask(gateway, "POST", base)
    assert (status, answer["error"]["code"]) == (409, "conflict")
    assert ask(gateway, "GET", f"{base}?format=pdf")[0] == 400
    assert ask(gateway, "GET", f"/admin/organizations/{tenant.organization_id}/invoices/november")[0] == 400
    issued = ask(gateway, "POST", f"/admin/organizations/{tenant.organization_id}/invoices/2026-01")
    assert (issued[0], issued[1]["status"], issued[1]["total_nanos"]) == (200, "issued", 0)
    _, listed = ask(gateway, "GET", f"/admin/organizations/{tenant.organization_id}/invoices")
    assert [one["month"] for one in listed["data"]] == ["2026-01"]
    _, log = ask(gateway, "GET", "/admin/audit?limit=100&order=desc")
    assert "invoice.issued" in {event["action"] for event in log["data"]}


def test_whoever_is_bound_to_an_organization_sees_its_own_and_changes_what_its_role_may(
    gateway: Gateway, tenant: Tenant
) -> None:
    other = Tenant(gateway)
    owner, reader = (admin_key_of(gateway, tenant.organization_id, role) for role in ("owner", "reader"))
    mine, theirs = (f"/admin/organizations/{one.organization_id}" for one in (tenant, other))
    for path in (f"/invoices/{MONTH}", "/invoices", "/credits", "/webhooks", "/deliveries"):
        assert ask(gateway, "GET", mine + path, key=reader)[0] == 200
        assert ask(gateway, "GET", theirs + path, key=reader)[0] == 404
    wish = {"usd": "1", "reference": "mine"}
    for key in (owner, reader):
        assert ask(gateway, "POST", f"{mine}/credits", wish, key=key)[0] == 403
        assert ask(gateway, "POST", f"{mine}/invoices/2026-01", key=key)[0] == 403
    hook = {"url": "https://hooks.example.com/meterhouse"}
    assert ask(gateway, "POST", f"{mine}/webhooks", hook, key=reader)[0] == 403
    assert ask(gateway, "POST", f"{theirs}/webhooks", hook, key=owner)[0] == 404
    status, made = ask(gateway, "POST", f"{mine}/webhooks", hook, key=owner)
    assert (status, made["secret"].startswith("whsec_")) == (201, True)
    _, listed = ask(gateway, "GET", f"{mine}/webhooks", key=reader)
    assert [(one["id"], one["secret"]) for one in listed["data"]] == [(made["id"], None)]
    assert ask(gateway, "DELETE", f"{theirs}/webhooks/{made['id']}", key=owner)[0] == 404
    assert gateway.request("DELETE", f"{mine}/webhooks/{made['id']}", key=owner)[0] == 204


def test_credit_is_added_once_over_http(gateway: Gateway, tenant: Tenant) -> None:
    path = f"/admin/organizations/{tenant.organization_id}/credits"
    answers = [ask(gateway, "POST", path, {"usd": "2.50", "reference": "p-1"}) for _ in range(2)]
    assert [(status, body["is_new"], body["balance_usd"]) for status, body in answers] == [
        (200, True, "2.5"),
        (200, False, "2.5"),
    ]
    assert ask(gateway, "POST", path, {"usd": "3", "reference": "p-1"})[0] == 409
    for bad in ({"usd": "x", "reference": "r"}, {"usd": 1, "reference": "r"}, {"usd": "1", "reference": ""}):
        assert ask(gateway, "POST", path, bad)[0] == 400
    assert ask(gateway, "GET", "/admin/organizations/org_none/credits")[0] == 404


@pytest.mark.parametrize(
    "url", ["http://example.com/", "https://127.0.0.1/", "https://10.0.0.1/x", "https://localhost/", "no address", ""]
)
def test_a_webhook_is_public_and_secure(gateway: Gateway, tenant: Tenant, url: str) -> None:
    status, _, body = gateway.request(
        "POST", f"/admin/organizations/{tenant.organization_id}/webhooks", {"url": url}, key=gateway.admin_key
    )
    assert (status, error_of(body)["param"]) == (400, "url")
