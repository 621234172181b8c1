"""The list of a key's requests: its own, the newest first, by pages, and not without end."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from api.asking import Tenant, error_of
from fakes.gateway import Gateway

MODEL = "fake/normal?tokens=5&first_ms=2"


def listed(gateway: Gateway, key: str, query: str = "") -> dict[str, Any]:
    status, _, body = gateway.request("GET", f"/v1/receipts{query}", key=key)
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    assert found["object"] == "list"
    return found


def ids_of(found: dict[str, Any]) -> list[str]:
    return [receipt["id"] for receipt in found["data"]]


def ask(gateway: Gateway, key: str, model: str = MODEL) -> str:
    return gateway.chat(model, key=key)[1]["x-request-id"]


def test_a_key_lists_its_requests_the_newest_first_by_pages(gateway: Gateway, tenant: Tenant) -> None:
    asked = [ask(gateway, tenant.key) for _ in range(3)]
    gateway.settle()
    whole = listed(gateway, tenant.key)
    assert ids_of(whole) == asked[::-1]
    assert (whole["first_id"], whole["last_id"], whole["has_more"]) == (asked[2], asked[0], False)
    for receipt in whole["data"]:
        status, _, body = gateway.request("GET", f"/v1/receipts/{receipt['id']}", key=tenant.key)
        assert (status, json.loads(body)) == (200, receipt)
    first = listed(gateway, tenant.key, "?limit=2")
    assert (ids_of(first), first["has_more"]) == ([asked[2], asked[1]], True)
    rest = listed(gateway, tenant.key, f"?limit=2&after={first['last_id']}")
    assert (ids_of(rest), rest["has_more"]) == ([asked[0]], False)


def test_it_is_filtered_by_day_model_and_outcome(gateway: Gateway, tenant: Tenant) -> None:
    good, bad = ask(gateway, tenant.key), ask(gateway, tenant.key, "fake/error-400")
    gateway.settle()
    days = {
        datetime.fromtimestamp(one["admitted_at"] / 1000, UTC).date() for one in listed(gateway, tenant.key)["data"]
    }
    assert ids_of(listed(gateway, tenant.key, "?model=error-400")) == [bad]
    assert ids_of(listed(gateway, tenant.key, "?outcome=completed")) == [good]
    assert ids_of(listed(gateway, tenant.key, "?outcome=refused")) == [bad]
    assert not ids_of(listed(gateway, tenant.key, "?outcome=cut"))
    assert not ids_of(listed(gateway, tenant.key, "?day=2020-02-29"))
    # More than one of them at midnight only.
    assert {one for day in days for one in ids_of(listed(gateway, tenant.key, f"?day={day}"))} == {good, bad}


def test_no_other_key_appears(gateway: Gateway, tenant: Tenant) -> None:
    sibling, stranger = tenant.issue()["value"], Tenant(gateway)
    mine, theirs = ask(gateway, tenant.key), {ask(gateway, sibling), ask(gateway, stranger.key)}
    gateway.settle()
    assert ids_of(listed(gateway, tenant.key)) == [mine]
    for other in theirs:
        behind = listed(gateway, tenant.key, f"?after={other}")
        assert (behind["data"], behind["has_more"], behind["last_id"]) == ([], False, None)
    [its_own] = ids_of(listed(gateway, stranger.key))
    assert its_own in theirs


def test_what_a_client_token_asked_is_its_keys_and_the_token_lists_nothing(gateway: Gateway, tenant: Tenant) -> None:
    gateway.set_price("fake", MODEL.removeprefix("fake/"), "1", "4")  # without one no budget lets it pass
    body = {"max_spend_usd": "0.10", "expires_in_seconds": 60}
    _, _, made = gateway.request("POST", "/v1/client_tokens", body, key=tenant.key)
    token = json.loads(made)["value"]
    asked = ask(gateway, token)
    gateway.settle()
    assert ids_of(listed(gateway, tenant.key)) == [asked]
    status, _, refused = gateway.request("GET", "/v1/receipts", key=token)
    assert (status, error_of(refused)["code"]) == (403, "permission_denied")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?day=yesterday", "day"),
        ("?outcome=fine", "outcome"),
        ("?limit=101", "limit"),
        ("?limit=0", "limit"),
        ("?after=req_x", "after"),
        ("?model=a%00b", "model"),
        ("?key_id=key_x", "key_id"),
    ],
)
def test_what_cannot_be_asked_is_a_400_that_names_it(gateway: Gateway, tenant: Tenant, query: str, param: str) -> None:
    status, _, body = gateway.request("GET", f"/v1/receipts{query}", key=tenant.key)
    assert (status, error_of(body)["param"]) == (400, param)


@pytest.mark.parametrize("day", ["0001-01-01", "9999-12-31"])
def test_the_first_and_the_last_day_there_is_are_empty(gateway: Gateway, tenant: Tenant, day: str) -> None:
    assert not listed(gateway, tenant.key, f"?day={day}")["data"]


def test_it_takes_a_key(gateway: Gateway) -> None:
    assert gateway.request("GET", "/v1/receipts", key="")[0] == 401


def test_a_key_that_asks_without_end_is_put_off_and_no_other(gateway: Gateway, tenant: Tenant) -> None:
    # A list behind what is no request counts too, and costs nothing.
    asked = [gateway.request("GET", "/v1/receipts?after=x", key=tenant.key) for _ in range(61)]
    assert [status for status, _, _ in asked[:60]] == [400] * 60
    status, headers, body = asked[60]
    assert (status, error_of(body)["code"]) == (429, "rate_limit_exceeded")
    assert 0 < int(headers["retry-after"]) <= 60
    listed(gateway, Tenant(gateway).key)
