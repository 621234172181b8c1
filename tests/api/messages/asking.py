"""What the tests of the messages wire share: what a provider was sent, and what the ledger says of an answer."""

import itertools
import json
from typing import Any

from fakes import scripts
from fakes.exchange import Exchange
from fakes.gateway import Gateway
from fakes.truth import Attempt
from fakes.upstream import FakeUpstream
from meterhouse.usage import UsageRecord

NUMBERS = itertools.count(1)
TOKENS = 20
"""Of the answer of ``normal``."""


def marked(text: str = "Hello") -> tuple[str, list[dict[str, Any]]]:
    """Return a marker that nobody else uses, and messages that carry it."""
    marker = f"a{next(NUMBERS)}"
    return marker, [{"role": "user", "content": f"{text} marker={marker}"}]


def events_of(body: bytes) -> list[dict[str, Any]]:
    """Return the events of a stream; their names are those of their types, and there is nothing else but comments."""
    found = []
    for part in body.split(b"\n\n"):
        if part and not part.startswith(b":"):
            name, data = part.split(b"\n")
            event = json.loads(data.removeprefix(b"data: "))
            assert name == b"event: " + event["type"].encode()
            found.append(event)
    return found


class Wires:
    """The provider's side, and the ledger's."""

    def __init__(self, up: FakeUpstream, gateway: Gateway) -> None:
        self._up = up
        self._gateway = gateway
        self._heard: dict[str, Exchange] = {}
        up.script("capture", self._run)

    def sent(self, marker: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Return body and headers that the provider got for a marker, under the model ``capture``."""
        request = self._heard[marker].request
        return request.body, dict(request.headers)

    def attempt(self, marker: str) -> Attempt:
        """Return the one attempt of a marker."""
        (attempt,) = self._up.truth.by_marker(marker)
        return attempt

    def set_price(self, model: str, **usd: str) -> None:
        """Set a price of one of Anthropic's models, from now on."""
        body = {"provider": "anthropic", "model": model, **usd}
        assert self._gateway.request("POST", "/admin/prices", body, key=self._gateway.admin_key)[0] == 201

    def record(self, request_id: str | None) -> UsageRecord:
        """Return the one record of a request."""
        assert request_id is not None
        (record,) = self._gateway.records(request_id)
        return record

    async def _run(self, exchange: Exchange) -> None:
        self._heard[exchange.request.describe()["marker"]] = exchange
        await scripts.answer(exchange)
