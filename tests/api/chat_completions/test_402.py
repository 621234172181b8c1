"""A key with a budget may only use what has a price and a bound."""

import json

import pytest

from api.asking import Tenant, error_of, marked
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream

AUDIO = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
FILE = {"type": "file", "file": {"filename": "a.pdf", "file_data": "AA=="}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    gateway.set_price("fake", "normal?tokens=1", "1", "4")
    return Tenant(gateway, limits="spend 5 USD/month").key


def assert_not_priced(gateway: Gateway, key: str, model: str, param: str, **fields: object) -> None:
    status, headers, body = gateway.chat(model, key=key, max_tokens=10, **fields)
    error = error_of(body)
    assert (status, error["type"], error["param"], error["code"]) == (
        402,
        "invalid_request_error",
        param,
        "not_priced",
    )
    assert headers["x-should-retry"] == "false"


def test_a_model_without_a_price_is_refused_to_a_key_with_a_budget(
    gateway: Gateway, up: FakeUpstream, key: str
) -> None:
    marker, messages = marked()
    assert_not_priced(gateway, key, "fake/normal?tokens=2", "model", messages=messages)
    assert up.truth.by_marker(marker) == []


def test_with_a_price_it_is_served_and_charged(gateway: Gateway, key: str) -> None:
    status, headers, _ = gateway.chat("fake/normal?tokens=1", key=key, max_tokens=10)
    assert status == 200
    (record,) = gateway.records(headers["x-request-id"])
    assert record.charge_nanos == record.usage.input_tokens * 1_000 + record.usage.output_tokens * 4_000


def test_a_key_without_a_budget_may_use_it_and_the_record_says_unpriced(gateway: Gateway) -> None:
    status, headers, _ = gateway.chat("fake/normal?tokens=2")
    assert status == 200
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.price_id, record.charge_nanos) == (None, 0)


@pytest.mark.parametrize("part", [AUDIO, FILE, IMAGE])
def test_a_part_without_a_bound_is_refused_to_a_key_with_a_budget(
    gateway: Gateway, key: str, part: dict[str, object]
) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}]
    assert_not_priced(gateway, key, "fake/normal?tokens=1", "messages", messages=messages)


def test_a_web_search_is_refused_to_a_key_with_a_budget(gateway: Gateway, key: str) -> None:
    assert_not_priced(gateway, key, "fake/normal?tokens=1", "web_search_options", web_search_options={})


def test_a_budget_of_the_organization_counts_as_well(gateway: Gateway) -> None:
    tenant = Tenant(gateway)
    body = {"scope": "organization", "scope_id": tenant.organization_id, "limits": "spend 1 USD total"}
    status, _, answer = gateway.request("PUT", "/admin/limits", body, key=gateway.admin_key)
    assert status == 200, json.loads(answer)
    assert_not_priced(gateway, tenant.key, "fake/normal?tokens=2", "model")
