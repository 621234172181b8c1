"""What the tests of failures share: asking, the records of an answer, the price of everything, the state at rest."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from failure.raw_client import Client, ask
from fakes.gateway import Gateway, read_ledger
from fakes.truth import Attempt
from fakes.upstream import FakeUpstream
from meterhouse.admin.schemas import PriceRequest
from meterhouse.ids import public_request_id
from meterhouse.price_orders import operator_price
from meterhouse.providers.breaker import Breakers
from meterhouse.providers.routes import Snapshot
from meterhouse.usage import UsageRecord

INPUT_NANOS_PER_MILLION = 1_370_000_000
OUTPUT_NANOS_PER_MILLION = 4_130_000_000
REST_SECONDS = 30
MARKERS = itertools.count(1)


def new_marker() -> str:
    """Return a marker that nobody else uses."""
    return f"m{next(MARKERS)}"


def charge_of(input_tokens: int, output_tokens: int) -> int:
    """What the price of these tests makes of tokens: a sum of integers, one division, half up."""
    product = input_tokens * INPUT_NANOS_PER_MILLION + output_tokens * OUTPUT_NANOS_PER_MILLION
    return (product + 500_000) // 1_000_000


def wait_for(what: Callable[[], Any], timeout_seconds: float = 30) -> Any:
    """Poll until something is true and return it."""
    deadline = time.monotonic() + timeout_seconds
    while not (value := what()):
        assert time.monotonic() < deadline, "not seen in time"
        time.sleep(0.01)
    return value


class Bench:
    """A gateway with its provider."""

    def __init__(self, gateway: Gateway, up: FakeUpstream) -> None:
        self.gateway = gateway
        self.up = up

    def set_prices(self, models: Iterable[str], provider: str = "fake") -> None:
        """Give models the price of these tests, all in one step."""
        parts = self.gateway.parts
        orders = [PriceRequest(provider=provider, model=model, input_usd="1.37", output_usd="4.13") for model in models]

        async def insert() -> None:
            now_ms = parts.stores.clock.now_ms()
            await parts.stores.catalog.prices.insert_prices([operator_price(order, now_ms) for order in orders])
            await parts.supply.refresh()

        self.gateway.run(insert)

    def send(
        self, model: str, marker: str = "m", *, key: str = "", receive_buffer_bytes: int = 0, **fields: Any
    ) -> Client:
        """Send a request for a stream, or for a body with ``stream=False``."""
        body = ask(model, marker, **fields)
        return Client(self.gateway.url, key or self.gateway.key, body, receive_buffer_bytes=receive_buffer_bytes)

    def records_of(self, client: Client) -> list[UsageRecord]:
        """Return a request's ledger rows by its header."""
        self.gateway.run(self.gateway.parts.records.ship_all)
        return self.gateway.records(client.request_id)

    def records_of_key(self, key_id: str, count: int = 1) -> list[UsageRecord]:
        """Return the ledger rows of a key once there are so many; more fail."""
        ledger = self.gateway.parts.stores.ledger

        def find() -> list[str]:
            self.gateway.run(self.gateway.parts.records.ship_all)
            ids = [row["request_id"] for row in read_ledger(self.gateway.data) if row["key_id"] == key_id]
            assert len(ids) <= count, ids
            return sorted(set(ids)) if len(ids) == count else []

        found = [self.gateway.run(lambda i=i: ledger.find_records(i)) for i in wait_for(find)]
        return [record for records in found for record in records]

    def forget_failures(self) -> None:
        """Forget how the deployments fared in other tests."""
        attempts = self.gateway.parts.inference.attempts
        self.gateway.call(lambda: setattr(attempts, "_breakers", Breakers()))

    def attempt_of(self, marker: str) -> Attempt:
        """Return the one attempt that reached the provider for a marker."""
        (attempt,) = self.up.truth.by_marker(marker)
        return attempt

    @property
    def open_connections(self) -> int:
        """Connections to the provider that are in use."""
        return self.gateway.call(lambda: self.gateway.parts.inference.attempts._upstream.open_connections)

    @property
    def live(self) -> int:
        """Requests that are not settled."""
        return self.gateway.call(lambda: len(self.gateway.parts.inference.checkpointer.live))

    def check_nothing_reserved(self, key: str) -> None:
        """Nothing of a key's limits may be held."""
        assert [row["reserved"] for row in self.gateway.limits(key)] == [0] * len(self.gateway.limits(key))

    def wait_for_log(self, request_id: str) -> dict[str, Any]:
        """Return the one line that a request leaves in the log when it is over."""

        def find() -> list[dict[str, Any]]:
            return [line for line in self.finished_lines() if line["request_id"] == request_id]

        wait_for(find)
        (line,) = find()
        return line

    def finished_lines(self) -> list[dict[str, Any]]:
        """Return the lines of requests that are over."""
        return [line for line in self.gateway.log_lines() if line["event"] == "request.finished"]

    def use_drain_row(self, provider: str) -> None:
        """Let a provider's row say that it bills on after a hang-up. After it, no price may be set."""
        supply = self.gateway.parts.supply
        wait_for(lambda: supply.statuses.keys() >= {active.name for active in supply.routes.snapshot.providers})
        snapshot = supply.routes.snapshot
        rows = [
            replace(active, provider=replace(active.provider, on_client_gone="drain"))
            if active.name == provider
            else active
            for active in snapshot.providers
        ]
        self.gateway.call(lambda: supply.routes.replace(Snapshot(rows, snapshot.pricing._prices, {}, 0)))

    def check_rest(self) -> None:
        """Check what must hold when all is over: nothing open, nothing broken, one line for each request."""
        wait_for(lambda: self.live == 0 and self.open_connections == 0, REST_SECONDS)
        rows = self.gateway.all_records()
        ids = {public_request_id(row["request_id"]) for row in rows}
        wait_for(lambda: ids <= {line["request_id"] for line in self.finished_lines()}, REST_SECONDS)
        counted = Counter(line["request_id"] for line in self.finished_lines())
        assert set(counted.values()) <= {1}
        broken = {"request.failed", "task.failed", "library.logged"}
        assert not [line for line in self.gateway.log_lines() if line["event"] in broken]
        states = self.gateway.call(lambda: len(self.gateway.parts.inference.meter._holds._live))
        assert states == 0
