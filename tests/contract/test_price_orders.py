"""Prices that are set one after the other for the same moment, in both databases: the last one holds."""

import pytest

from meterhouse.admin.schemas import PriceRequest
from meterhouse.db import prices as price_store
from meterhouse.db.catalog import Catalog
from meterhouse.price_orders import plan_price
from meterhouse.providers.prices import PriceBook, make_price, price_at

NOW_MS = 1_800_000_000_000
START_MS = NOW_MS + 86_400_000


@pytest.fixture
def catalog(engine):
    return Catalog(engine)


async def set_price(catalog, input_usd):
    order = PriceRequest(provider="p", model="m", input_usd=input_usd, output_usd="0", effective_from=START_MS // 1_000)
    price = plan_price(order, NOW_MS, await catalog.prices.list_prices())
    await catalog.write_price(price)
    return price


async def in_force(catalog):
    return price_at(PriceBook(await catalog.prices.list_prices()).find("p", "m"), START_MS)


async def test_a_price_that_is_set_again_after_another_holds_again(catalog):
    for usd in ("2", "3", "2", "3", "2"):
        price = await set_price(catalog, usd)
        assert await in_force(catalog) == price
        assert price.components[0].nanos_per_million == int(usd) * 10**9


async def test_a_price_that_is_set_twice_is_one(catalog):
    for usd in ("2", "3", "2"):
        first = await set_price(catalog, usd)
    assert await set_price(catalog, "2") == first
    assert len(await catalog.prices.list_prices()) == 3


async def test_a_price_of_an_operator_that_says_what_a_default_one_says_is_the_operators(catalog):
    price = await set_price(catalog, "2")
    default = make_price("p", "n", price.components, effective_from_ms=START_MS, source="genai-prices")
    await catalog.prices.insert_prices([default])
    order = PriceRequest(provider="p", model="n", input_usd="2", output_usd="0", effective_from=START_MS // 1_000)
    own = plan_price(order, NOW_MS, await catalog.prices.list_prices())
    await catalog.write_price(own)
    assert [one.source for one in await catalog.prices.list_prices() if one.id == own.id] == ["operator"]


async def test_the_last_one_holds_though_the_clock_of_its_host_is_behind(catalog, monkeypatch):
    for ahead_ms, usd in ((10_000, "2"), (0, "3")):
        monkeypatch.setattr(price_store, "wall_ms", lambda now_ms=NOW_MS + ahead_ms: now_ms)
        price = await set_price(catalog, usd)
    assert await in_force(catalog) == price
