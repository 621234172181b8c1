"""Every change is written down with who made it, from where and what it was before; nothing secret is."""

import json
from typing import Any

from api.asking import CREDENTIAL_CANARY, Tenant
from fakes.gateway import Gateway
from meterhouse.identity import Role

CHANGES = [
    ("POST", "/admin/organizations", {"name": "Acme"}, "organization.created"),
    ("POST", "/admin/organizations/{org}", {"name": "Acme & Co"}, "organization.updated"),
    ("POST", "/admin/projects", {"organization_id": "{org}", "name": "Find"}, "project.created"),
    ("POST", "/admin/keys", {"name": "k", "project_id": "{project}"}, "api_key.created"),
    ("POST", "/admin/keys/{key}/rotate", {}, "api_key.created"),
    ("PUT", "/admin/limits", {"scope": "key", "scope_id": "{key}", "limits": "concurrent 5"}, "api_key.updated"),
    ("PUT", "/admin/limits", {"scope": "project", "scope_id": "{project}", "limits": ""}, "project.updated"),
    ("PUT", "/admin/limits", {"scope": "organization", "scope_id": "{org}", "limits": ""}, "organization.updated"),
    ("DELETE", "/admin/keys/{key}", None, "api_key.deleted"),
    ("POST", "/admin/projects/{project}/archive", None, "project.archived"),
    ("POST", "/admin/prices", {"provider": "p", "model": "m", "input_usd": "1", "output_usd": "2"}, "price.created"),
    (
        *("PUT", "/admin/providers/audited"),
        {"base_url": "https://example.com/v1", "credential": CREDENTIAL_CANARY},
        "provider.updated",
    ),
    ("DELETE", "/admin/providers/audited", None, "provider.deleted"),
    (
        *("PUT", "/admin/routes/audited"),
        {"deployments": [{"provider": "simulator", "upstream_model": "simulator"}]},
        "route.updated",
    ),
    ("DELETE", "/admin/routes/audited", None, "route.deleted"),
    ("POST", "/v1/organization/admin_api_keys", {"name": "CI"}, "admin_api_key.created"),
]
"""In an order in which each is possible; the routes that only OpenAI has are in the tests of its SDK."""


def newest(gateway: Gateway, count: int = 1) -> list[dict[str, Any]]:
    status, _, body = gateway.request("GET", f"/admin/audit?limit={count}", key=gateway.admin_key)
    assert status == 200
    rows: list[dict[str, Any]] = json.loads(body)["data"]
    return rows


def test_each_change_is_written_down_and_a_look_or_a_refusal_is_not(gateway: Gateway, tenant: Tenant) -> None:
    places = {"{org}": tenant.organization_id, "{project}": tenant.project_id, "{key}": tenant.key_id}

    def filled(text: str) -> str:
        for word, value in places.items():
            text = text.replace(word, value)
        return text

    (last,) = newest(gateway)
    for method, path, body, action in CHANGES:
        wanted = None if body is None else json.loads(filled(json.dumps(body)))
        assert gateway.request(method, filled(path), {"nothing": "of this"}, key=gateway.admin_key)[0] >= 400 or (
            body is None
        )
        status, headers, answer = gateway.request(method, filled(path), wanted, key=gateway.admin_key)
        if body is not None:
            assert status in {200, 201}, answer
        rows = newest(gateway, 3)
        known = [row["id"] for row in rows].index(last["id"])
        assert 1 <= known <= 2, (path, "one event, or two for a rotation")
        event = rows[0]
        assert event["action"] == action
        assert (event["actor_kind"], event["actor_role"], event["address"]) == ("admin_key", "operator", "127.0.0.1")
        if body is not None:
            assert event["request_id"] == headers["x-request-id"]
        last = event


def test_before_and_after_say_what_changed(gateway: Gateway, tenant: Tenant, admin) -> None:
    for limits in ("concurrent 5", "concurrent 6; spend 2 USD/month"):
        admin("PUT", "/admin/limits", {"scope": "project", "scope_id": tenant.project_id, "limits": limits})
    (event,) = newest(gateway)
    assert event["target_id"] == event["project_id"] == tenant.project_id
    assert [row["amount"] for row in event["before"]["limits"]] == [5]
    assert sorted(row["amount"] for row in event["after"]["limits"]) == [6, 2 * 10**9]


def test_what_is_removed_is_written_down_as_it_was(gateway: Gateway, admin) -> None:
    targets = [{"provider": "simulator", "upstream_model": "simulator", "order": 1, "weight": 3, "is_on": True}]
    place = {"base_url": "https://example.com/v1", "credential": CREDENTIAL_CANARY, "models": ["m"]}
    for path, body in (("/admin/providers/gone", place), ("/admin/routes/gone", {"deployments": targets})):
        assert admin("PUT", path, body)[0] == 200
        assert gateway.request("DELETE", path, key=gateway.admin_key)[0] == 204
    route, _, provider, _ = newest(gateway, 4)
    assert (route["action"], route["before"], route["after"]) == ("route.deleted", {"deployments": targets}, None)
    assert provider["action"] == "provider.deleted"
    before = provider["before"]
    assert (before["base_url"], before["models"], before["has_credential"]) == (place["base_url"], ["m"], True)
    assert CREDENTIAL_CANARY not in json.dumps(before)


def test_no_secret_is_in_the_audit_log(gateway: Gateway, tenant: Tenant, admin) -> None:
    admin("PUT", "/admin/providers/sealed", {"base_url": "https://example.com/v1", "credential": CREDENTIAL_CANARY})
    status, made = admin("POST", f"/admin/keys/{tenant.key_id}/rotate", {})
    assert status == 201
    _, issued = admin("POST", "/v1/organization/admin_api_keys", {"name": "CI"})
    after, texts = "", []
    while True:
        status, _, body = gateway.request("GET", f"/admin/audit?limit=100{after}", key=gateway.admin_key)
        assert status == 200
        texts.append(body)
        page = json.loads(body)
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    whole = b"".join(texts)
    assert gateway.request("DELETE", "/admin/providers/sealed", key=gateway.admin_key)[0] == 204
    for secret in (tenant.key, made["value"], issued["value"], CREDENTIAL_CANARY, gateway.admin_key):
        assert secret.encode() not in whole
        assert secret.rpartition("-")[2].encode() not in whole
    stored = gateway.run(lambda: gateway.parts.stores.service.get(tenant.key_id))
    assert stored.hash.encode() not in whole


def test_an_owner_sees_its_own_events_and_not_the_platforms(gateway: Gateway, tenant: Tenant, admin) -> None:
    admin("POST", "/admin/prices", {"provider": "p", "model": "n", "input_usd": "1", "output_usd": "2"})
    issue = gateway.parts.stores.service.issue_admin
    owner = gateway.run(lambda: issue("owner", Role.OWNER, organization_id=tenant.organization_id))
    status, _, body = gateway.request("GET", "/admin/audit?limit=100", key=owner.value)
    assert status == 200
    rows = json.loads(body)["data"]
    assert {row["organization_id"] for row in rows} == {tenant.organization_id}
    assert [row["action"] for row in rows] == [
        *("admin_api_key.created", "api_key.created", "project.created", "organization.created")
    ]
    assert rows[0]["actor_kind"] == "process", "it was made without the API"
    assert {row["address"] for row in rows} == {None}, "where operators sit is nobody else's business"


def test_organizations_are_looked_at_and_renamed(gateway: Gateway, tenant: Tenant, admin) -> None:
    place = f"/admin/organizations/{tenant.organization_id}"
    assert admin("GET", place)[1]["name"] == "Acme"
    assert admin("POST", place, {"name": "Acme & Co"})[1]["name"] == "Acme & Co"
    issue = gateway.parts.stores.service.issue_admin
    reader = gateway.run(lambda: issue("reader", Role.READER, organization_id=tenant.organization_id))
    status, _, body = gateway.request("GET", "/admin/organizations", key=reader.value)
    assert status == 200
    assert [row["name"] for row in json.loads(body)["data"]] == ["Acme & Co"]


def test_an_owner_bounds_projects_and_keys_and_not_the_organization(gateway: Gateway, tenant: Tenant) -> None:
    issue = gateway.parts.stores.service.issue_admin
    owner = gateway.run(lambda: issue("owner", Role.OWNER, organization_id=tenant.organization_id)).value
    for scope, scope_id, expected in (
        ("project", tenant.project_id, 200),
        ("key", tenant.key_id, 200),
        ("organization", tenant.organization_id, 403),
    ):
        body = {"scope": scope, "scope_id": scope_id, "limits": "concurrent 7"}
        assert gateway.request("PUT", "/admin/limits", body, key=owner)[0] == expected
        status, _, answer = gateway.request("GET", f"/admin/limits?scope={scope}&scope_id={scope_id}", key=owner)
        assert (status, json.loads(answer)["limits"]) == (200, ["concurrent 7"] if expected == 200 else [])
