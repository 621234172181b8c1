"""One organization never sees or changes another's: each id of A in each route, sent by the owner of B."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from api.asking import error_of
from fakes.gateway import Gateway
from meterhouse.admin.roles import MATRIX
from meterhouse.identity import Role

MONTH = {"threshold_amount": 1, "currency": "USD", "interval": "month"}
ALERT = {**MONTH, "notification_channel": {"type": "email", "recipients": ["ops@example.com"]}}
BODIES: dict[str, Any] = {
    "POST /admin/organizations/{organization_id}": {"name": "x"},
    "POST /admin/projects": {"organization_id": "{organization_id}", "name": "x"},
    "POST /admin/keys": {"name": "x", "project_id": "{project_id}"},
    "POST /admin/keys/{key_id}/rotate": {},
    "POST /v1/organization/projects/{project_id}": {"name": "x"},
    "POST /v1/organization/projects/{project_id}/service_accounts": {"name": "x"},
    "POST /v1/organization/projects/{project_id}/service_accounts/{service_account_id}": {"name": "x"},
    "POST /v1/organization/projects/{project_id}/service_accounts/{service_account_id}/api_keys": {"name": "x"},
    "POST /v1/organization/projects/{project_id}/api_keys/{api_key_id}": {"scopes": ["usage"]},
    "POST /v1/organization/projects/{project_id}/rate_limits/{rate_limit_id:path}": {"max_requests_per_1_minute": 1},
    "POST /v1/organization/projects/{project_id}/model_permissions": {"mode": "allow_list", "model_ids": []},
    "POST /v1/organization/projects/{project_id}/spend_limit": MONTH,
    "POST /v1/organization/projects/{project_id}/spend_alerts": ALERT,
    "POST /v1/organization/projects/{project_id}/spend_alerts/{alert_id}": ALERT,
    "POST /admin/organizations/{organization_id}/webhooks": {"url": "https://hooks.example.com/x"},
}
"""What each route needs to get as far as looking at an id."""
MORE = [
    ("PUT", "/admin/limits", {"scope": "organization", "scope_id": "{organization_id}", "limits": ""}),
    ("PUT", "/admin/limits", {"scope": "project", "scope_id": "{project_id}", "limits": ""}),
    ("PUT", "/admin/limits", {"scope": "key", "scope_id": "{key_id}", "limits": ""}),
    ("GET", "/admin/limits?scope=organization&scope_id={organization_id}", None),
    ("GET", "/admin/limits?scope=project&scope_id={project_id}", None),
    ("GET", "/admin/limits?scope=key&scope_id={key_id}", None),
    ("GET", "/admin/projects?organization_id={organization_id}", None),
    ("GET", "/admin/keys?project_id={project_id}", None),
    ("GET", "/admin/audit?organization_id={organization_id}", None),
    ("GET", "/v1/organization/admin_api_keys/{admin_key_id}", None),
    ("DELETE", "/v1/organization/admin_api_keys/{admin_key_id}", None),
]
"""Ids in queries and bodies, and those of a second kind in one place."""
OWN_LISTS = [route for route in MATRIX if route.startswith("GET ") and "{" not in route and route != "GET /admin/live"]
"""All but the one without an end, which has tests of its own (api/live)."""


@dataclass(frozen=True)
class Party:
    """An organization with one of everything, and the keys of its owner and reader."""

    ids: dict[str, str]
    owner: str
    reader: str


def build(gateway: Gateway, name: str) -> Party:
    ids: dict[str, str] = {}

    def post(path: str, body: object, key: str) -> Any:
        status, _, answer = gateway.request("POST", path, body, key=key)
        assert status in {200, 201}, answer
        return json.loads(answer)

    ids["organization_id"] = post("/admin/organizations", {"name": name}, gateway.admin_key)["id"]
    service = gateway.parts.stores.service

    def admin(role: Role) -> Any:
        return gateway.run(lambda: service.issue_admin(name, role, organization_id=ids["organization_id"]))

    owner, reader = admin(Role.OWNER), admin(Role.READER)
    ids["admin_key_id"] = owner.key.id
    ids["project_id"] = post("/v1/organization/projects", {"name": name}, owner.value)["id"]
    place = f"/v1/organization/projects/{ids['project_id']}"
    account = post(f"{place}/service_accounts", {"name": name}, owner.value)
    ids["service_account_id"] = account["id"]
    ids["key_id"] = ids["api_key_id"] = account["api_key"]["id"]
    ids["rate_limit_id:path"] = "rl-simulator"
    post(f"{place}/rate_limits/rl-simulator", {"max_requests_per_1_minute": 9}, owner.value)
    post(f"{place}/spend_limit", MONTH, owner.value)
    post(f"{place}/model_permissions", {"mode": "deny_list", "model_ids": ["gpt-x"]}, owner.value)
    return Party(ids, owner.value, reader.value)


@pytest.fixture(scope="module")
def parties(gateway: Gateway) -> tuple[Party, Party]:
    return build(gateway, "A"), build(gateway, "B")


def filled(text: str, ids: dict[str, str]) -> str:
    for word, value in {**ids, "month": "2026-01", "alert_id": "alert_x", "webhook_id": "wh_x"}.items():
        text = text.replace("{" + word + "}", value)
    return text


def crossings(mine: Party, theirs: Party) -> Iterator[tuple[str, str, object]]:
    """Every route with an id of theirs in it, in every place, the other places being mine."""
    for route in MATRIX:
        method, _, template = route.partition(" ")
        if Role.OWNER not in MATRIX[route]:
            continue  # an owner is refused before anybody looks at an id: see admin_guard
        words = [word for word in theirs.ids if "{" + word + "}" in template + json.dumps(BODIES.get(route))]
        for chosen in itertools.product((False, True), repeat=len(words)):
            # A rate limit is named after its model, the same everywhere.
            strange = {w for w, is_theirs in zip(words, chosen, strict=True) if is_theirs} - {"rate_limit_id:path"}
            if strange:
                ids = {**mine.ids, **{word: theirs.ids[word] for word in strange}}
                body = BODIES.get(route)
                yield method, filled(template, ids), body and json.loads(filled(json.dumps(body), ids))
    for method, template, body in MORE:
        yield method, filled(template, theirs.ids), body and json.loads(filled(json.dumps(body), theirs.ids))


def test_no_route_shows_or_changes_what_is_anothers(gateway: Gateway, parties: tuple[Party, Party]) -> None:
    mine, theirs = parties[1], parties[0]
    before = state_of(gateway, theirs)
    tried = 0
    for method, path, body in crossings(mine, theirs):
        status, _, answer = gateway.request(method, path, body, key=mine.owner)
        assert (status, error_of(answer)["code"]) == (404, "not_found"), (method, path, body, answer)
        assert not set(theirs.ids.values()) - {"rl-simulator"} & set(json.loads(answer)["error"].values())
        tried += 1
    assert tried >= 50
    assert state_of(gateway, theirs) == before


def state_of(gateway: Gateway, party: Party) -> list[bytes]:
    """Everything that the owner sees of its organization; the audit log tells of any change.

    But for when keys were last used, which is written a while after: these tests use them.
    """
    headers = {"OpenAI-Organization": party.ids["organization_id"]}
    places = [filled(route.partition(" ")[2], party.ids) for route in MATRIX if route.startswith("GET /v1/")]
    answers = [gateway.request("GET", path, key=gateway.admin_key, headers=headers) for path in places]
    return [re.sub(rb'("last_used_at":)\d+', rb"\1null", body) for status, _, body in answers if status == 200]


@pytest.mark.parametrize("route", OWN_LISTS)
def test_a_list_holds_nothing_of_anothers(gateway: Gateway, parties: tuple[Party, Party], route: str) -> None:
    mine, theirs = parties
    _, _, path = route.partition(" ")
    foreign = set(theirs.ids.values()) - {"rl-simulator"}
    for key in (mine.owner, mine.reader):
        for query in ("?limit=100", f"?limit=100&after={theirs.ids['project_id']}"):
            status, _, body = gateway.request("GET", path + query, key=key)
            assert status in {200, 400, 403, 404}
            assert not [one for one in foreign if one.encode() in body], body


def test_a_header_does_not_open_another_organization(gateway: Gateway, parties: tuple[Party, Party]) -> None:
    mine, theirs = parties
    headers = {"OpenAI-Organization": theirs.ids["organization_id"]}
    for key in (mine.owner, mine.reader):
        assert gateway.request("GET", "/v1/organization/projects", key=key, headers=headers)[0] == 404


def test_an_owner_does_not_end_anothers_leaked_key(gateway: Gateway, parties: tuple[Party, Party]) -> None:
    mine, theirs = parties
    issue = gateway.parts.stores.service.issue_admin
    leaked = gateway.run(lambda: issue("x", Role.READER, organization_id=theirs.ids["organization_id"]))
    values = {"values": [leaked.value, mine.owner.replace("sk-", "sk_")]}
    status, _, body = gateway.request("POST", "/admin/keys/leaks", values, key=mine.owner)
    assert status == 200
    assert [row["result"] for row in json.loads(body)["data"]] == ["unknown", "unknown"]
    assert gateway.request("GET", "/admin/audit", key=leaked.value)[0] == 200
