"""A good key that may not do this."""

import pytest

from api.asking import Tenant, error_of, marked
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream


def refusal(gateway: Gateway, model: str, key: str, **fields: object) -> dict[str, object]:
    status, headers, body = gateway.chat(model, key=key, **fields)
    assert status == 403, body
    assert "www-authenticate" not in headers
    error = error_of(body)
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_is_not_in_the_keys_list_is_refused(gateway: Gateway, up: FakeUpstream, stream: bool) -> None:
    key = Tenant(gateway, models=["fake/normal", "simulator-instant"]).key
    marker, messages = marked()
    error = refusal(gateway, "fake/tools", key, messages=messages, stream=stream)
    assert (error["param"], error["code"]) == ("model", "model_not_allowed")
    assert up.truth.by_marker(marker) == []
    assert gateway.chat("fake/normal", key=key)[0] == 200


def test_an_allowed_model_is_allowed_under_its_longer_name_and_another_is_not(gateway: Gateway) -> None:
    key = Tenant(gateway, models=["simulator-instant"]).key
    assert gateway.chat("simulator/simulator-instant", key=key)[0] == 200
    assert refusal(gateway, "simulator/simulator", key)["code"] == "model_not_allowed"


@pytest.mark.parametrize("ranges", [["192.0.2.0/24"], ["2001:db8::/32", "198.51.100.7"]])
def test_an_address_outside_the_keys_ranges_is_refused(gateway: Gateway, ranges: list[str]) -> None:
    error = refusal(gateway, "fake/normal", Tenant(gateway, ip_ranges=ranges).key)
    assert error["code"] == "permission_denied"
    assert "127.0.0.1" not in str(error["message"])


def test_an_address_within_the_keys_ranges_passes(gateway: Gateway) -> None:
    key = Tenant(gateway, ip_ranges=["192.0.2.0/24", "127.0.0.0/8"]).key
    assert gateway.chat("fake/normal", key=key)[0] == 200


def test_a_forwarded_address_that_a_client_claims_is_not_believed(gateway: Gateway) -> None:
    key = Tenant(gateway, ip_ranges=["192.0.2.0/24"]).key
    body = {"model": "fake/normal", "messages": [{"role": "user", "content": "Hi"}]}
    for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded"):
        value = "for=192.0.2.1" if name == "Forwarded" else "192.0.2.1"
        status, _, _ = gateway.request("POST", "/v1/chat/completions", body, key=key, headers={name: value})
        assert status == 403


def test_an_admin_key_is_no_tenants_key(gateway: Gateway) -> None:
    error = refusal(gateway, "fake/normal", gateway.admin_key)
    assert error["code"] == "permission_denied"
    assert "admin key" in str(error["message"])


def test_a_key_without_the_scope_may_not_call_models(gateway: Gateway) -> None:
    error = refusal(gateway, "fake/normal", Tenant(gateway, scopes=["usage"]).key)
    assert "inference" in str(error["message"])
