"""Methods that an address does not have, where it is an ordinary page."""

import pytest

from api.asking import error_of
from fakes.gateway import Gateway


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("POST", "/health", "GET"), ("PUT", "/v1/models", "GET"), ("DELETE", "/", "GET"), ("PATCH", "/metrics", "GET")],
)
def test_another_method_is_refused_in_the_envelope(gateway: Gateway, method: str, path: str, allowed: str) -> None:
    status, headers, body = gateway.request(method, path)
    assert (status, error_of(body)["code"]) == (405, "method_not_allowed")
    assert allowed in headers["allow"]
