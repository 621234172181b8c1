"""Methods that an address does not have."""

import pytest

from api.asking import error_of
from fakes.gateway import Gateway


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_another_method_is_refused_and_the_right_one_named(gateway: Gateway, method: str) -> None:
    status, headers, body = gateway.request(method, "/v1/chat/completions")
    error = error_of(body)
    assert (status, error["type"], error["code"]) == (405, "invalid_request_error", "method_not_allowed")
    assert "POST" in headers["allow"]
    assert headers["x-request-id"].startswith("req_")
