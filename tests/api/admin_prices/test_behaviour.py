"""Prices: set from now on, superseded, never edited."""

import pytest

from fakes.gateway import Gateway

NEW = {"provider": "fake", "model": "priced-here", "input_usd": "2.50", "output_usd": "10"}


def test_a_price_is_set_exactly_and_kept_when_it_is_superseded(admin) -> None:
    status, first = admin("POST", "/admin/prices", NEW | {"cached_input_usd": "0.000000001", "request_usd": "0.01"})
    assert (status, first["object"], first["provider"], first["model"]) == (201, "price", "fake", "priced-here")
    amounts = {component["kind"]: component["nanos_per_million"] for component in first["components"]}
    assert amounts["input"] == 2_500_000_000
    assert amounts["output"] == 10_000_000_000
    assert amounts["cached_input"] == 1
    assert amounts["request"] == 10_000_000 * 1_000_000
    _, second = admin("POST", "/admin/prices", NEW | {"input_usd": "3"})
    assert second["id"] != first["id"]
    status, listing = admin("GET", "/admin/prices?provider=fake&model=priced-here")
    ids = [price["id"] for price in listing["data"]]
    assert status == 200
    assert {first["id"], second["id"]} <= set(ids)
    assert {price["model"] for price in listing["data"]} == {"priced-here"}


def test_the_next_request_is_charged_by_the_new_price(gateway: Gateway) -> None:
    charges = []
    for output_usd in ("4", "8"):
        gateway.set_price("fake", "normal?tokens=10&first_ms=1", "0", output_usd)
        _, headers, _ = gateway.chat("fake/normal?tokens=10&first_ms=1")
        (record,) = gateway.records(headers["x-request-id"])
        charges.append(record.charge_nanos)
    assert charges == [10 * 4_000, 10 * 8_000]


def test_the_dearest_price_that_is_taken_can_be_asked_by(gateway: Gateway) -> None:
    dearest = {"input_usd": "1000000", "output_usd": "1000000", "request_usd": "9000"}
    body = {"provider": "fake", "model": "normal?tokens=3&first_ms=2"} | dearest
    assert gateway.request("POST", "/admin/prices", body, key=gateway.admin_key)[0] == 201
    status, headers, _ = gateway.chat("fake/normal?tokens=3&first_ms=2")
    assert status == 200
    (record,) = gateway.records(headers["x-request-id"])
    assert record.charge_nanos == (9_000 + 3 + record.usage.input_tokens) * 10**9


@pytest.mark.parametrize(
    ("param", "change"),
    [
        ("input_usd", {"input_usd": "-1"}),
        ("input_usd", {"input_usd": "a lot"}),
        ("input_usd", {"input_usd": "NaN"}),
        ("input_usd", {"input_usd": "Infinity"}),
        ("input_usd", {"input_usd": "1000001"}),
        ("input_usd", {"input_usd": "0.0000000001"}),
        ("request_usd", {"request_usd": "9001"}),
        ("input_usd", {"input_usd": "1e-999999999"}),
        ("input_usd", {"input_usd": "1.0000000000000000000000000000000001"}),
        ("input_usd", {"input_usd": 2.5}),
        ("output_usd", {"output_usd": None}),
        ("provider", {"provider": ""}),
        ("margin", {"margin": "1"}),
    ],
)
def test_an_amount_that_is_none_is_refused(admin, param: str, change: dict[str, object]) -> None:
    status, answer = admin("POST", "/admin/prices", NEW | change)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert answer["error"]["param"] == param
