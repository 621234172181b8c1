"""The models that a key may use (wire.md 1.7)."""

import json

import pytest

from api.asking import Tenant
from fakes.gateway import Gateway

REQUIRED = {"id", "object", "created", "owned_by", "shutdown_date"}


def names_of(gateway: Gateway, key: str | None = None) -> list[str]:
    status, _, body = gateway.request("GET", "/v1/models", key=key)
    answer = json.loads(body)
    assert (status, answer["object"]) == (200, "list")
    for model in answer["data"]:
        assert set(model) >= REQUIRED
        assert model["object"] == "model"
        assert isinstance(model["created"], int)
    return [model["id"] for model in answer["data"]]


def test_the_simulator_is_listed_as_what_it_is(gateway: Gateway) -> None:
    _, _, body = gateway.request("GET", "/v1/models")
    owners = {model["id"]: model["owned_by"] for model in json.loads(body)["data"]}
    assert owners["simulator"] == owners["simulator-instant"] == "simulator"
    assert "gpt-4o" not in owners, "its provider is not switched on"


def test_no_model_is_listed_twice(gateway: Gateway) -> None:
    names = names_of(gateway)
    assert len(names) == len(set(names))


def test_a_key_with_a_list_of_models_sees_only_these(gateway: Gateway) -> None:
    key = Tenant(gateway, models=["simulator-instant"]).key
    assert names_of(gateway, key) == ["simulator-instant"]


@pytest.mark.parametrize("name", ["simulator", "fake/normal", "fake/a/b:c", "simulator/simulator-instant"])
def test_one_model_is_found_by_its_name_with_slashes_or_without(gateway: Gateway, name: str) -> None:
    for path in (name, name.replace("/", "%2F")):
        status, _, body = gateway.request("GET", f"/v1/models/{path}")
        model = json.loads(body)
        assert (status, model["id"], model["object"]) == (200, name, "model")
        assert model["owned_by"] == ("fake" if name.startswith("fake/") else "simulator")


def test_the_size_of_an_answer_is_shown(gateway: Gateway) -> None:
    model = json.loads(gateway.request("GET", "/v1/models/simulator")[2])
    assert (model["max_input_tokens"], model["max_output_tokens"]) == (1_000_000, 16_384)
