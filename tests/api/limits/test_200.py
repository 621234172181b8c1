"""What binds a key and where it stands."""

import time

from api.asking import Tenant, error_of
from fakes.gateway import Gateway

FIELDS = {
    "object", "limit", "scope", "scope_id", "kind", "window", "model", "amount", "spent", "reserved", "free", "usd",
    "resets_at",
}  # fmt: skip


def test_every_limit_of_every_scope_is_shown(gateway: Gateway, tenant: Tenant, admin) -> None:
    gateway.set_price("fake", "normal?tokens=5&first_ms=3", "1", "4")
    for scope, scope_id, limits in (
        ("organization", tenant.organization_id, "spend 25 USD/month"),
        ("project", tenant.project_id, "tokens 1000000 total; concurrent 9"),
        ("key", tenant.key_id, "requests 600/minute; tokens 9000/day for fake/other"),
    ):
        assert admin("PUT", "/admin/limits", {"scope": scope, "scope_id": scope_id, "limits": limits})[0] == 200
    _, headers, _ = gateway.chat("fake/normal?tokens=5&first_ms=3", key=tenant.key)
    (record,) = gateway.records(headers["x-request-id"])
    limits_by_text = {limit["limit"]: limit for limit in gateway.limits(tenant.key)}
    assert all(set(limit) == FIELDS and limit["object"] == "limit" for limit in limits_by_text.values())
    assert all(limit["free"] == limit["amount"] - limit["spent"] for limit in limits_by_text.values())
    assert all(limit["reserved"] == 0 for limit in limits_by_text.values())

    spend = limits_by_text["spend 25 USD/month"]
    assert (spend["scope"], spend["scope_id"]) == ("organization", tenant.organization_id)
    assert (spend["amount"], spend["spent"]) == (25 * 10**9, record.charge_nanos)
    assert spend["usd"]["amount"] == "25"
    assert 0 < spend["resets_at"] - time.time() < 32 * 86_400

    tokens = limits_by_text["tokens 1000000 total"]
    assert (tokens["spent"], tokens["window"]) == (record.usage.total_tokens, "total")
    assert (tokens["resets_at"], tokens["usd"]) == (None, None)

    assert limits_by_text["concurrent 9"]["spent"] == 0
    assert limits_by_text["requests 600/minute"]["spent"] == 1
    other = limits_by_text["tokens 9000/day for fake/other"]
    assert (other["model"], other["spent"]) == ("fake/other", 0)


def test_a_key_without_limits_has_an_empty_list(gateway: Gateway, tenant: Tenant) -> None:
    assert gateway.limits(tenant.key) == []


def test_it_takes_a_key(gateway: Gateway) -> None:
    status, _, body = gateway.request("GET", "/v1/limits", key="")
    assert (status, error_of(body)["code"]) == (401, "invalid_api_key")
