"""Orders that make no sense are refused with the name of what is wrong."""

import json

import pytest

from api.asking import Tenant, error_of, issue_admin
from fakes.gateway import Gateway
from meterhouse.identity import Role


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("name", {"name": ""}),
        ("name", {"name": "   "}),
        ("name", {"name": "n" * 201}),
        ("name", {"name": 5}),
        ("expires_in_seconds", {"expires_in_seconds": 0}),
        ("expires_in_seconds", {"expires_in_seconds": -1}),
        ("expires_in_seconds", {"expires_in_seconds": 10**12}),
        ("models", {"models": []}),
        ("models", {"models": "gpt-4o"}),
        ("limits", {"limits": "requests many/minute"}),
        ("limits", {"limits": "spend 5 USD/minute"}),
        ("limits", {"limits": "requests 5/minute; requests 6/minute"}),
        ("limits", {"limits": ["requests 5/minute"]}),
        ("ip_ranges", {"ip_ranges": ["300.1.1.1"]}),
        ("models", {"models": [f"model-{number}" for number in range(257)]}),
        ("models", {"models": ["m" * 257]}),
        ("ip_ranges", {"ip_ranges": [f"192.0.2.{number}" for number in range(65)]}),
        ("ip_ranges", {"ip_ranges": ["fe80::1%" + "e" * 1_000]}),
        ("service_account", {"service_account": "s" * 65}),
        ("scopes", {"scopes": ["everything"]}),
        ("scopes", {"scopes": []}),
        ("colour", {"colour": "red"}),
        ("hash", {"hash": "0" * 64}),
    ],
)
def test_a_wrong_field_of_a_new_key_is_named(
    gateway: Gateway, tenant: Tenant, param: str, fields: dict[str, object]
) -> None:
    body = {"name": "a key", "project_id": tenant.project_id, **fields}
    status, _, answer = gateway.request("POST", "/admin/keys", body, key=gateway.admin_key)
    error = error_of(answer)
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == param
    assert error["code"]


@pytest.mark.parametrize("missing", ["name", "project_id"])
def test_a_missing_field_is_named(gateway: Gateway, tenant: Tenant, missing: str) -> None:
    body = {"name": "a key", "project_id": tenant.project_id}
    del body[missing]
    status, _, answer = gateway.request("POST", "/admin/keys", body, key=gateway.admin_key)
    error = error_of(answer)
    assert (status, error["param"], error["code"]) == (400, missing, "missing_required_parameter")


@pytest.mark.parametrize("body", [b"{", b"", b"\xff", b"[1]", b'"text"'])
def test_a_body_that_is_no_json_object_is_refused(gateway: Gateway, body: bytes) -> None:
    status, _, answer = gateway.request("POST", "/admin/keys", body, key=gateway.admin_key)
    assert (status, error_of(answer)["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("seconds", [-1, 604_801, "long"])
def test_an_overlap_out_of_range_is_refused(gateway: Gateway, tenant: Tenant, seconds: object) -> None:
    path = f"/admin/keys/{tenant.key_id}/rotate"
    status, _, answer = gateway.request("POST", path, {"overlap_seconds": seconds}, key=gateway.admin_key)
    assert (status, error_of(answer)["param"]) == (400, "overlap_seconds")
    assert gateway.chat("fake/normal", key=tenant.key)[0] == 200


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=many"])
def test_a_page_size_out_of_range_is_refused(gateway: Gateway, query: str) -> None:
    status, _, answer = gateway.request("GET", f"/admin/keys?{query}", key=gateway.admin_key)
    assert (status, error_of(answer)["param"]) == (400, "limit")


@pytest.mark.parametrize("half", [b"\\ud800", b"\\uDFFF", b"\\udc00\\ud800", b"\xed\xa0\x80"])
def test_half_a_character_is_stored_nowhere(gateway: Gateway, tenant: Tenant, half: bytes) -> None:
    """A key was made with it, whose value nobody got, and every list with that key in it was a 500 from then on."""
    owner = issue_admin(gateway, Role.OWNER, tenant.organization_id)
    order = b'{"name": "a key", "project_id": "%b", "models": ["%%b"]}' % tenant.project_id.encode()
    status, _, answer = gateway.request("POST", "/admin/keys", order % half, key=owner)
    assert (status, error_of(answer)["type"]) == (400, "invalid_request_error")
    status, _, answer = gateway.request("GET", "/admin/keys", key=owner)
    assert [row["id"] for row in json.loads(answer)["data"]] == [tenant.key_id]
    for path, body in (
        ("/admin/keys", b'{"name": "a", "project_id": "%b"}'),
        ("/admin/keys/leaks", b'{"values": ["%b"]}'),
        ("/v1/client_tokens", b'{"max_spend_usd": "%b"}'),
        ("/v1/client_tokens", b'{"max_spend_usd": "1", "models": ["%b"]}'),
    ):
        key = tenant.key if path.startswith("/v1/") else owner
        assert gateway.request("POST", path, body % half, key=key)[0] == 400, path
    pair = gateway.request("POST", "/admin/keys", order % b"\\ud83d\\ude00", key=owner)
    assert (pair[0], json.loads(pair[2])["models"]) == (201, ["\U0001f600"])
