"""Who may administrate: an operator, by admin key, and not too many wrong guesses per address."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from api.asking import Tenant, error_of
from fakes.gateway import Gateway
from meterhouse.keys.secret import make

ROUTES = [
    ("POST", "/admin/organizations", {"name": "x"}),
    ("GET", "/admin/organizations", None),
    ("POST", "/admin/projects", {"organization_id": "org_x", "name": "x"}),
    ("GET", "/admin/projects", None),
    ("POST", "/admin/projects/proj_x/archive", None),
    ("POST", "/admin/keys", {"name": "x", "project_id": "proj_x"}),
    ("GET", "/admin/keys", None),
    ("GET", "/admin/keys/key_x", None),
    ("POST", "/admin/keys/key_x/rotate", {}),
    ("DELETE", "/admin/keys/key_x", None),
    ("PUT", "/admin/limits", {"scope": "key", "scope_id": "key_x", "limits": ""}),
    ("GET", "/admin/limits?scope=key&scope_id=key_x", None),
    ("POST", "/admin/prices", {"provider": "p", "model": "m", "input_usd": "1", "output_usd": "1"}),
    ("GET", "/admin/prices", None),
    ("GET", "/admin/providers", None),
    ("PUT", "/admin/providers/prov_x", {"base_url": "https://example.com/v1"}),
    ("DELETE", "/admin/providers/prov_x", None),
    ("GET", "/admin/routes", None),
    ("PUT", "/admin/routes/model_x", {"deployments": [{"provider": "simulator", "upstream_model": "simulator"}]}),
    ("DELETE", "/admin/routes/model_x", None),
]


def test_every_route_of_the_administration_is_in_the_list_above(gateway: Gateway) -> None:
    import json  # noqa: PLC0415 - only here

    schema = json.loads(gateway.request("GET", "/openapi.json", key="")[2])
    described = {
        (method.upper(), path) for path, item in schema["paths"].items() for method in item if path.startswith("/admin")
    }
    listed = {(method, path.partition("?")[0]) for method, path, _ in ROUTES}
    plain = {("proj_x", "{project_id}"), ("key_x", "{key_id}"), ("prov_x", "{name}"), ("model_x", "{model}")}
    for word, name in plain:
        listed = {(method, path.replace(word, name)) for method, path in listed}
    assert listed == described


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_every_route_takes_an_operators_admin_key(
    gateway: Gateway, reader_key: str, method: str, path: str, body: object
) -> None:
    for key, expected, code in (
        ("", 401, "invalid_api_key"),
        ("wrong", 401, "invalid_api_key"),
        (make("admin").value, 401, "invalid_api_key"),
        (gateway.key, 403, "permission_denied"),
        (reader_key, 403, "permission_denied"),
    ):
        status, headers, answer = gateway.request(method, path, body, key=key)
        assert (status, error_of(answer)["code"]) == (expected, code)
        assert ("www-authenticate" in headers) is (status == 401)


@pytest.fixture(scope="module")
def reader_key(gateway: Gateway) -> str:
    return gateway.run(lambda: gateway.parts.stores.service.issue_admin("a reader", role="reader")).value


@pytest.mark.parametrize("role", ["owner", "reader"])
def test_another_role_than_the_operators_is_refused(gateway: Gateway, role: str) -> None:
    issued = gateway.run(lambda: gateway.parts.stores.service.issue_admin("somebody", role=role))
    status, _, answer = gateway.request("GET", "/admin/keys", key=issued.value)
    error = error_of(answer)
    assert (status, error["code"]) == (403, "permission_denied")
    assert role in error["message"]


def test_a_revoked_admin_key_stops_at_once(gateway: Gateway) -> None:
    service = gateway.parts.stores.service
    issued = gateway.run(lambda: service.issue_admin("somebody"))
    assert gateway.request("GET", "/admin/keys", key=issued.value)[0] == 200
    gateway.run(lambda: service.revoke_admin(issued.key.id))
    assert gateway.request("GET", "/admin/keys", key=issued.value)[0] == 401


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Gateway]:
    settings = {"METERHOUSE_ADMIN_FAILURE_RATE": "3/hour", "METERHOUSE_ADMIN_RATE": "20/hour"}
    with Gateway(tmp_path / "data", settings) as gateway:
        yield gateway


def test_failed_sign_ins_are_limited_and_inference_is_not(strict: Gateway) -> None:
    statuses = [strict.request("GET", "/admin/keys", key=make("admin").value)[0] for _ in range(4)]
    assert statuses == [401, 401, 401, 429]
    status, headers, body = strict.request("GET", "/admin/keys", key=strict.admin_key)
    error = error_of(body)
    assert (status, error["code"]) == (429, "rate_limit_exceeded"), "a right guess does not show while it is limited"
    assert 0 < int(headers["retry-after"]) <= 3_600
    assert strict.chat("simulator-instant")[0] == 200
    assert strict.request("GET", "/v1/models")[0] == 200


def test_requests_are_limited_too(strict: Gateway) -> None:
    statuses = {strict.request("GET", "/admin/prices?provider=none", key=strict.admin_key)[0] for _ in range(20)}
    assert statuses == {200}
    assert Tenant.decode(strict.request("GET", "/admin/prices", key=strict.admin_key)[2])["error"]["code"] == (
        "rate_limit_exceeded"
    )
