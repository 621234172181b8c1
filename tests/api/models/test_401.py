"""The list of models is a tenant's, so it takes a key."""

import pytest

from api.asking import error_of
from fakes.gateway import Gateway


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/simulator"])
@pytest.mark.parametrize("key", ["", "wrong"])
def test_it_takes_a_key(gateway: Gateway, path: str, key: str) -> None:
    status, headers, body = gateway.request("GET", path, key=key)
    assert (status, error_of(body)["code"]) == (401, "invalid_api_key")
    assert headers["www-authenticate"] == "Bearer"
