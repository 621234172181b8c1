"""Prepaid credit: what it buys, and that nothing is bought beyond it."""

import json

from api.asking import Tenant, error_of
from fakes.gateway import Gateway
from meterhouse.billing.credits import CreditOrder, Credits

MODEL = "normal?tokens=10&first_ms=1"
CHARGE = 10 * 4_000_000


def add(gateway: Gateway, organization_id: str, nanos: int, reference: str) -> None:
    stores = gateway.parts.stores
    credits_of = Credits(stores.catalog, stores.service, stores.clock)
    order = CreditOrder(organization_id, nanos, reference, "me")
    gateway.run(lambda: credits_of.add(order))


def spend(gateway: Gateway, key: str) -> tuple[int, bytes]:
    status, _, body = gateway.chat(f"fake/{MODEL}", key=key, max_tokens=10)
    return status, body


def test_credit_is_spent_to_its_end_and_more_credit_goes_on(gateway: Gateway) -> None:
    gateway.set_price("fake", MODEL, "0", "4000")
    tenant = Tenant(gateway)
    assert spend(gateway, tenant.key)[0] == 200  # without credit nothing is bounded
    gateway.settle()
    add(gateway, tenant.organization_id, 3 * CHARGE, "first")
    (limit,) = gateway.limits(tenant.key)
    assert (limit["limit"], limit["scope"], limit["free"]) == ("spend 0.12 USD total", "organization", 2 * CHARGE)
    assert [spend(gateway, tenant.key)[0] for _ in range(2)] == [200, 200]
    gateway.settle()
    status, body = spend(gateway, tenant.key)
    assert (status, error_of(body)["code"]) == (429, "insufficient_quota")
    add(gateway, tenant.organization_id, CHARGE, "second")
    add(gateway, tenant.organization_id, CHARGE, "second")
    assert spend(gateway, tenant.key)[0] == 200
    gateway.settle()
    assert spend(gateway, tenant.key)[0] == 429
    charged = [row["charge_nanos"] for row in gateway.all_records() if row["organization_id"] == tenant.organization_id]
    assert sum(charged) == 4 * CHARGE


def test_setting_limits_does_not_lift_the_bound_of_credit(gateway: Gateway, admin) -> None:
    tenant = Tenant(gateway)
    add(gateway, tenant.organization_id, CHARGE, "only")
    wish = {"scope": "organization", "scope_id": tenant.organization_id, "limits": "requests 100/minute"}
    status, _ = admin("PUT", "/admin/limits", wish)
    assert status == 200
    assert [limit["kind"] for limit in gateway.limits(tenant.key)] == ["requests", "spend"]
    status, body = admin("GET", f"/admin/limits?scope=organization&scope_id={tenant.organization_id}")
    assert (status, json.loads(json.dumps(body))["limits"]) == (200, ["requests 100/minute"])
