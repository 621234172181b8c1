"""Addresses that do not exist."""

import pytest

from api.asking import error_of
from fakes.gateway import Gateway


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nothing"), ("POST", "/v1/nothing"), ("GET", "/v1"), ("POST", "/chat/completions"), ("GET", "/admin/x")],
)
def test_an_unknown_address_is_not_found_in_the_envelope(gateway: Gateway, method: str, path: str) -> None:
    status, headers, body = gateway.request(method, path)
    error = error_of(body)
    assert (status, error["type"], error["param"], error["code"]) == (404, "invalid_request_error", None, "unknown_url")
    assert f"{method} {path}" in error["message"]
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"].startswith("req_")


def test_an_address_of_any_length_is_not_repeated_in_full(gateway: Gateway) -> None:
    _, _, body = gateway.request("GET", "/" + "a" * 4_000)
    assert len(body) < 1_000


def test_the_server_does_not_say_what_it_is_made_of(gateway: Gateway) -> None:
    assert "server" not in gateway.request("GET", "/nothing")[1]
