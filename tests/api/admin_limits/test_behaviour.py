"""Limits of organizations, projects and keys: set whole, read back, in force at once."""

import pytest

from api.asking import Tenant
from fakes.gateway import Gateway


def put(admin, scope: str, scope_id: str, limits: str) -> tuple[int, dict]:
    return admin("PUT", "/admin/limits", {"scope": scope, "scope_id": scope_id, "limits": limits})


@pytest.mark.parametrize("scope", ["organization", "project", "key"])
def test_limits_are_set_read_back_and_in_force(gateway: Gateway, tenant: Tenant, admin, scope: str) -> None:
    scope_id = {"organization": tenant.organization_id, "project": tenant.project_id, "key": tenant.key_id}[scope]
    assert gateway.chat("fake/normal", key=tenant.key)[0] == 200
    status, answer = put(admin, scope, scope_id, "requests 1/hour; tokens 100000/day for fake/tools")
    assert (status, answer["object"], answer["scope"], answer["scope_id"]) == (200, "limits", scope, scope_id)
    assert sorted(answer["limits"]) == ["requests 1/hour", "tokens 100000/day for fake/tools"]
    assert admin("GET", f"/admin/limits?scope={scope}&scope_id={scope_id}") == (200, answer)
    assert [gateway.chat("fake/normal", key=tenant.key)[0] for _ in range(2)] == [200, 429]
    assert put(admin, scope, scope_id, "")[1]["limits"] == []
    assert gateway.chat("fake/normal", key=tenant.key)[0] == 200


def test_a_limit_of_a_project_binds_all_its_keys_together(gateway: Gateway, tenant: Tenant, admin) -> None:
    put(admin, "project", tenant.project_id, "requests 2/hour")
    keys = [tenant.key, tenant.issue()["value"], tenant.issue()["value"]]
    assert [gateway.chat("fake/normal", key=key)[0] for key in keys] == [200, 200, 429]


def test_a_limit_for_one_model_leaves_the_others_alone(gateway: Gateway, tenant: Tenant, admin) -> None:
    put(admin, "key", tenant.key_id, "requests 1/hour for fake/normal")
    assert [gateway.chat(name, key=tenant.key)[0] for name in ("fake/normal", "fake/normal", "normal")] == [
        200,
        429,
        429,
    ]
    assert gateway.chat("fake/tools", key=tenant.key)[0] == 200


@pytest.mark.parametrize(
    "limits",
    ["requests", "10/fortnight", "spend 1 EUR/month", "spend 1 USD/hour", "concurrent 5/minute", "requests 0/minute"],
)
def test_what_is_no_limit_is_refused_and_the_old_ones_stay(tenant: Tenant, admin, limits: str) -> None:
    put(admin, "key", tenant.key_id, "requests 7/hour")
    status, answer = put(admin, "key", tenant.key_id, limits)
    error = answer["error"]
    assert (status, error["param"], error["code"]) == (400, "limits", "invalid_limit")
    assert admin("GET", f"/admin/limits?scope=key&scope_id={tenant.key_id}")[1]["limits"] == ["requests 7/hour"]


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("scope", {"scope": "world", "scope_id": "x", "limits": ""}),
        ("limits", {"scope": "key", "scope_id": "x"}),
        ("extra", {"scope": "key", "scope_id": "x", "limits": "", "extra": 1}),
    ],
)
def test_a_wrong_field_is_named(admin, param: str, body: dict[str, object]) -> None:
    status, answer = admin("PUT", "/admin/limits", body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_a_rate_that_is_used_up_says_when_to_come_back(gateway: Gateway) -> None:
    key = Tenant(gateway, limits="requests 1/minute").key
    gateway.chat("fake/normal", key=key)
    status, headers, body = gateway.chat("fake/normal", key=key)
    error = Tenant.decode(body)["error"]
    assert (status, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
    # Two windows at most: a sliding window remembers the one before.
    assert 0 < int(headers["retry-after"]) <= 120
    assert headers.get("x-should-retry") == ("false" if int(headers["retry-after-ms"]) > 60_000 else None)
    assert int(headers["retry-after"]) == -(-int(headers["retry-after-ms"]) // 1000)
    assert headers["x-ratelimit-remaining-requests"] == "0"


def test_a_quota_that_is_used_up_is_insufficient_quota(gateway: Gateway) -> None:
    key = Tenant(gateway, limits="requests 1/month").key
    gateway.chat("fake/normal", key=key)
    status, headers, body = gateway.chat("fake/normal", key=key)
    error = Tenant.decode(body)["error"]
    assert (status, error["type"], error["code"]) == (429, "insufficient_quota", "insufficient_quota")
    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers
