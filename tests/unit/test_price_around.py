"""A request is charged by the price of the moment that the meter admitted it, whatever clock routed it."""

from meterhouse.admin.schemas import PriceRequest
from meterhouse.price_orders import operator_price
from meterhouse.providers.prices import PriceBook
from meterhouse.providers.pricing import ADMISSION_MS
from meterhouse.providers.provider import ProviderSetting
from meterhouse.providers.routes import Routes, build_snapshot

CHANGE_MS = 1_800_000_000_000
MODEL = "local/llama"


def price(usd: str, at_ms: int):
    order = PriceRequest(provider="local", model="llama", input_usd=usd, output_usd=usd)
    return operator_price(order, at_ms)


OLD, NEW = price("1", 0), price("3", CHANGE_MS)


def snapshot(*prices):
    settings = [ProviderSetting(name="local", base_url="http://127.0.0.1:9/v1", models=("llama",))]
    return build_snapshot(settings, is_simulator_on=False, prices=PriceBook(prices), discovered={}, built_at_ms=0)


def test_the_price_of_the_admission_holds_and_the_hold_covers_the_dearest_that_it_can_be():
    found = snapshot(OLD, NEW)
    route = found.resolve(MODEL, CHANGE_MS - 1)
    assert [d.price for d in route.deployments] == [OLD]
    assert [d.price for d in found.pricing.reprice(route, CHANGE_MS).deployments] == [NEW]
    assert set(found.pricing.around(route, CHANGE_MS - 1).prices) == {OLD, NEW}
    late = found.resolve(MODEL, CHANGE_MS + 1)
    assert set(found.pricing.around(late, CHANGE_MS + 1).prices) == {OLD, NEW}
    assert [d.price for d in found.pricing.reprice(late, CHANGE_MS - 1).deployments] == [OLD]


def test_far_from_a_change_nothing_is_made_anew():
    found = snapshot(OLD, NEW)
    route = found.resolve(MODEL, CHANGE_MS - ADMISSION_MS - 1)
    assert found.pricing.reprice(route, CHANGE_MS - 2) is route
    assert found.pricing.around(route, CHANGE_MS - ADMISSION_MS - 1).prices == (OLD,)


def test_a_model_whose_first_price_is_about_to_begin_is_not_priced_yet():
    found = snapshot(NEW)
    route = found.resolve(MODEL, CHANGE_MS - 1)
    assert found.pricing.around(route, CHANGE_MS - 1).prices == (None, NEW)
    assert Routes(found).resolve(MODEL, CHANGE_MS).deployments[0].price == NEW


def test_what_is_remembered_around_changes_is_what_would_be_worked_out_anew():
    prices = (OLD, NEW, price("2", CHANGE_MS + ADMISSION_MS // 2), price("5", CHANGE_MS + 3 * ADMISSION_MS))
    asked_often = snapshot(*prices)
    edges = [p.effective_from_ms + shift for p in prices for shift in (-ADMISSION_MS, 0, ADMISSION_MS)]
    moments = [edge + step for edge in edges for step in (-1, 0, 1) if edge + step > 0]
    for at_ms in [*moments, *moments[::-1], *sorted(moments)]:
        asked_once = snapshot(*prices)
        route = asked_once.resolve(MODEL, at_ms)
        assert asked_often.pricing.around(route, at_ms).prices == asked_once.pricing.around(route, at_ms).prices


def test_around_a_change_the_same_prices_are_the_same_object():
    found = snapshot(OLD, NEW)
    route = found.resolve(MODEL, CHANGE_MS + 1)
    assert found.pricing.around(route, CHANGE_MS + 1) is found.pricing.around(route, CHANGE_MS + ADMISSION_MS - 1)
