"""Prices may be swapped while a request waits for the meter: it is charged by those that it was held by."""

import asyncio
import time
from typing import Any

import pytest

from fakes.gateway import Gateway
from meterhouse.metering import Demand

MODEL = "normal?tokens=9&usage=always"


def test_a_price_that_comes_while_the_meter_is_asked_is_the_next_requests(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = gateway.parts.inference.meter
    reserve = meter.reserve

    def set_price() -> None:
        price = {"provider": "fake", "model": MODEL, "input_usd": "1", "output_usd": "4"}
        # A first price may begin in the past.
        body = {**price, "effective_from": int(time.time()) - 3_600}
        status, _, answer = gateway.request("POST", "/admin/prices", body, key=gateway.admin_key)
        assert status == 201, answer

    async def reserve_meanwhile(demand: Demand) -> Any:
        reservation = await reserve(demand)
        await asyncio.to_thread(set_price)
        return reservation

    with monkeypatch.context() as patch:
        patch.setattr(meter, "reserve", reserve_meanwhile)
        _, headers, _ = gateway.chat(f"fake/{MODEL}")
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.usage.output_tokens, record.price_id, record.charge_nanos) == (9, None, 0)
    _, headers, _ = gateway.chat(f"fake/{MODEL}")
    (record,) = gateway.records(headers["x-request-id"])
    assert record.charge_nanos == record.usage.input_tokens * 1_000 + 9 * 4_000
