"""Who may administrate: the roles of the matrix, by admin key, and not too many wrong guesses per address."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from api.asking import Tenant, error_of
from fakes.gateway import Gateway
from meterhouse.admin.roles import MATRIX
from meterhouse.identity import Role
from meterhouse.keys.secret import make

PLACES = {
    "{organization_id}": "org_x",
    "{project_id}": "proj_x",
    "{key_id}": "key_x",
    "{api_key_id}": "key_x",
    "{service_account_id}": "svcacct_x",
    "{rate_limit_id:path}": "rl-x",
    "{alert_id}": "alert_x",
    "{webhook_id}": "wh_x",
    "{month}": "2026-01",
    "{name}": "prov_x",
    "{model:path}": "model_x",
    "{request_id}": "req_x",
    "/admin/live": f"/admin/live?organization_id={'x' * 65}",
}
"""Objects that are not there, for each word of a path; and what makes a stream without an end a 400."""


def path_of(template: str) -> str:
    for word, value in PLACES.items():
        template = template.replace(word, value)
    assert "{" not in template, f"say what stands for the word in {template}"
    return template


def split(route: str) -> tuple[str, str]:
    method, _, template = route.partition(" ")
    return method, path_of(template)


@pytest.fixture(scope="module")
def keys(gateway: Gateway) -> dict[str, str]:
    """An admin key of each role, those of owner and reader in one organization."""

    async def issue() -> dict[str, str]:
        service = gateway.parts.stores.service
        organization = await service.create_organization("Acme")
        owner = await service.issue_admin("owner", Role.OWNER, organization_id=organization.id)
        reader = await service.issue_admin("reader", Role.READER, organization_id=organization.id)
        return {Role.OPERATOR: gateway.admin_key, Role.OWNER: owner.value, Role.READER: reader.value}

    return gateway.run(issue)


def test_every_route_of_the_administration_has_a_line_in_the_matrix(gateway: Gateway) -> None:
    import json  # noqa: PLC0415 - only here

    schema = json.loads(gateway.request("GET", "/openapi.json", key="")[2])
    described = {
        f"{method.upper()} {path}"
        for path, item in schema["paths"].items()
        for method in item
        if path.startswith(("/admin", "/v1/organization"))
    }
    assert {line.replace(":path}", "}") for line in MATRIX} == described


@pytest.mark.parametrize("route", MATRIX)
def test_who_may_use_a_route(gateway: Gateway, keys: dict[str, str], route: str) -> None:
    method, path = split(route)
    for key, expected, code in (
        ("", 401, "invalid_api_key"),
        ("wrong", 401, "invalid_api_key"),
        (make("admin").value, 401, "invalid_api_key"),
        (gateway.key, 403, "permission_denied"),
    ):
        status, headers, answer = gateway.request(method, path, key=key)
        assert (status, error_of(answer)["code"]) == (expected, code)
        assert ("www-authenticate" in headers) is (status == 401)
    for role, key in keys.items():
        status, _, answer = gateway.request(method, path, key=key)
        if role in MATRIX[route]:
            assert status in {200, 204, 400, 404}, (role, answer)
        else:
            assert (status, error_of(answer)["code"]) == (403, "permission_denied")
            assert role in error_of(answer)["message"]


@pytest.mark.parametrize("header", ["x-api-key", "api-key", "x-authorization", "cookie"])
def test_a_key_in_another_header_opens_nothing(gateway: Gateway, keys: dict[str, str], header: str) -> None:
    for key in (*keys.values(), gateway.key):
        assert gateway.request("GET", "/admin/audit", key="", headers={header: key})[0] == 401
        assert gateway.request("GET", "/admin/audit", key="wrong", headers={header: key})[0] == 401
    assert gateway.request("GET", "/admin/audit", key=keys[Role.READER], headers={header: gateway.key})[0] == 200


def test_an_operator_names_the_organization_and_the_others_are_bound_to_theirs(
    gateway: Gateway, keys: dict[str, str], tenant: Tenant
) -> None:
    logs = "/v1/organization/audit_logs"
    named = {"OpenAI-Organization": tenant.organization_id}
    status, _, body = gateway.request("GET", logs, key=gateway.admin_key, headers=named)
    assert status == 200
    assert {row["project"]["id"] for row in Tenant.decode(body)["data"]} == {tenant.project_id}
    assert gateway.request("GET", logs, key=gateway.admin_key)[0] == 200, "the oldest, where none is named"
    unknown = {"OpenAI-Organization": "org_x"}
    assert gateway.request("GET", logs, key=gateway.admin_key, headers=unknown)[0] == 404
    for role in (Role.OWNER, Role.READER):
        assert gateway.request("GET", logs, key=keys[role], headers=named)[0] == 404, "it is another one's"
        status, _, body = gateway.request("GET", logs, key=keys[role])
        assert status == 200
        assert {row["type"] for row in Tenant.decode(body)["data"]} == {"api_key.created"}


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
    for path in ("/v1/organization/projects", "/v1/organization/audit_logs", "/admin/audit"):
        assert strict.request("GET", path, key=strict.admin_key)[0] == 429, "they count together"
    assert strict.chat("simulator-instant")[0] == 200
    assert strict.request("GET", "/v1/models")[0] == 200


def test_whoever_was_signed_in_before_is_not_locked_out_by_guesses_at_the_same_address(strict: Gateway) -> None:
    service = strict.parts.stores.service
    used, unused = (strict.run(lambda: service.issue_admin("somebody")) for _ in range(2))
    assert strict.request("GET", "/admin/keys", key=used.value)[0] == 200
    guesses = [strict.request("GET", "/admin/keys", key=make("admin").value)[0] for _ in range(4)]
    assert guesses == [401, 401, 401, 429]
    assert strict.request("GET", "/admin/keys", key=used.value)[0] == 200
    assert strict.request("GET", "/admin/keys", key=unused.value)[0] == 429, "a right guess does not show"
    strict.run(lambda: service.revoke_admin(used.key.id))
    assert [strict.request("GET", "/admin/keys", key=used.value)[0] for _ in range(2)] == [401, 429]


def test_requests_are_limited_too(strict: Gateway) -> None:
    statuses = {strict.request("GET", "/admin/prices?provider=none", key=strict.admin_key)[0] for _ in range(20)}
    assert statuses == {200}
    assert Tenant.decode(strict.request("GET", "/admin/prices", key=strict.admin_key)[2])["error"]["code"] == (
        "rate_limit_exceeded"
    )
