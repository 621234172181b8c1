"""Models that are not there, or not for this key."""

from api.asking import Tenant, error_of
from fakes.gateway import Gateway


def test_an_unknown_model_is_not_found(gateway: Gateway) -> None:
    for name in ("nothing", "nowhere/at/all", "gpt-4o"):
        status, _, body = gateway.request("GET", f"/v1/models/{name}")
        error = error_of(body)
        assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")


def test_a_retired_model_names_its_replacement(gateway: Gateway) -> None:
    status, _, body = gateway.request("GET", "/v1/models/gpt-4-turbo")
    assert status == 404
    assert "gpt-5.6-sol" in error_of(body)["message"]


def test_a_model_that_the_key_may_not_use_is_not_found(gateway: Gateway) -> None:
    key = Tenant(gateway, models=["simulator-instant"]).key
    assert gateway.request("GET", "/v1/models/simulator-instant", key=key)[0] == 200
    for name in ("simulator", "fake/normal"):
        status, _, body = gateway.request("GET", f"/v1/models/{name}", key=key)
        assert (status, error_of(body)["code"]) == (404, "model_not_found")
