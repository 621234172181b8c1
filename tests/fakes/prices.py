"""Prices that are in the database before anything starts, so that every worker knows them from its first request."""

from collections.abc import Iterable, Mapping

from fakes.fleet import run_apart
from meterhouse.admin.schemas import PriceRequest
from meterhouse.price_orders import operator_price
from meterhouse.settings import Environment
from meterhouse.stores import open_stores


def set_prices(environment: Mapping[str, str], models: Iterable[tuple[str, str]]) -> None:
    """Let each (provider, model) cost 1 USD per million input tokens and 4 per million output tokens."""
    run_apart(_set_prices(Environment(environment), list(models)))


async def _set_prices(environment: Environment, models: list[tuple[str, str]]) -> None:
    async with open_stores(environment.settings()) as stores:
        orders = [PriceRequest(provider=one, model=model, input_usd="1", output_usd="4") for one, model in models]
        now_ms = stores.clock.now_ms()
        await stores.catalog.prices.insert_prices([operator_price(order, now_ms) for order in orders])
