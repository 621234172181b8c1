"""The counters behind the promises move as the ledger does."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing

from prometheus_client.parser import text_string_to_metric_families

from api.asking import Tenant, marked
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream

PRICED = "fake/normal?tokens=5"
CHARGE_NANOS = 8 * 1_000 + 5 * 4_000


def value(gateway: Gateway, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples with these labels."""
    body = gateway.request("GET", "/metrics", key="")[2].decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.name == f"meterhouse_{name}" and labels.items() <= sample.labels.items()
    )


class Meters:
    """How far metrics moved since the start; a request is counted a moment after its answer."""

    def __init__(self, gateway: Gateway, *asked: tuple[str, dict[str, str]]) -> None:
        self._gateway = gateway
        self._asked = asked
        self._before = self._read()

    def _read(self) -> list[float]:
        return [value(self._gateway, name, **labels) for name, labels in self._asked]

    def assert_moved(self, *expected: float) -> None:
        deadline = time.monotonic() + 60
        while True:
            moved = [now - then for now, then in zip(self._read(), self._before, strict=True)]
            if moved == list(expected):
                return
            assert time.monotonic() < deadline, moved
            time.sleep(0.02)


def wait(predicate: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not predicate():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_requests_tokens_and_charges_are_those_of_the_ledger(gateway: Gateway) -> None:
    meters = Meters(
        gateway,
        ("requests_total", {"route": "/v1/chat/completions", "status_class": "2xx", "owner": ""}),
        ("attempts_total", {"provider": "fake", "outcome": "completed"}),
        ("tokens_total", {"provider": "fake", "kind": "input"}),
        ("tokens_total", {"provider": "fake", "kind": "output"}),
        ("charge_nanos_total", {"provider": "fake"}),
        ("time_to_first_token_seconds_count", {"provider": "fake"}),
        ("request_duration_seconds_count", {"route": "/v1/chat/completions"}),
    )
    ids = [gateway.chat(PRICED, stream=stream)[1]["x-request-id"] for stream in (True, False, True)]
    records = [gateway.records(request_id)[0] for request_id in ids]
    assert sum(record.charge_nanos for record in records) == 3 * CHARGE_NANOS
    meters.assert_moved(3, 3, 24, 15, 3 * CHARGE_NANOS, 3, 3)


def test_the_times_of_a_request_are_measured(gateway: Gateway) -> None:
    model = "fake/normal?tokens=21&duration_ms=400"
    meters = Meters(
        gateway,
        ("reserve_seconds_count", {}),
        ("added_seconds_count", {}),
        ("inter_token_seconds_count", {"provider": "fake"}),
    )
    sums = Meters(gateway, ("inter_token_seconds_sum", {}), ("added_seconds_sum", {}), ("reserve_seconds_sum", {}))
    began = time.monotonic()
    for stream in (True, False):
        assert gateway.chat(model, stream=stream)[0] == 200
    took_seconds = time.monotonic() - began
    meters.assert_moved(2, 2, 1)
    between, added, reserve = (now - then for now, then in zip(sums._read(), sums._before, strict=True))
    assert 0.01 < between <= took_seconds / 20, "400 ms, 20 gaps"
    assert 0 < reserve < added < took_seconds - 0.4, "what the provider took is not counted"


def test_refusals_are_counted_by_kind(gateway: Gateway) -> None:
    meters = Meters(
        gateway,
        ("refusals_total", {"kind": "requests", "refusal": "rate"}),
        ("refusals_total", {"kind": "tokens", "refusal": "spent"}),
        ("refusals_total", {"kind": "spend", "refusal": "too_large"}),
        ("refusals_total", {}),
        ("requests_total", {"status_class": "4xx", "owner": "limit", "code": "rate_limit_exceeded"}),
        ("requests_total", {"status_class": "4xx", "owner": "limit", "code": "insufficient_quota"}),
        ("attempts_total", {}),
    )
    for limits, admitted in (("requests 1/hour", 1), ("tokens 31 total", 1), ("spend 0.00001 USD total", 0)):
        key = Tenant(gateway, limits=limits).key
        statuses = [gateway.chat(PRICED, key=key, max_tokens=10)[0] for _ in range(admitted + 1)]
        assert statuses == [200] * admitted + [429]
    meters.assert_moved(1, 1, 1, 3, 2, 1, 2)


def test_what_a_provider_failed_at_is_counted_as_our_loss(gateway: Gateway) -> None:
    meters = Meters(
        gateway,
        ("attempts_total", {"outcome": "upstream_failed"}),
        ("unbilled_attempts_total", {"provider": "fake"}),
        ("requests_total", {"status_class": "5xx", "owner": "provider"}),
        ("charge_nanos_total", {}),
    )
    assert gateway.chat("fake/error-500")[0] == 502
    meters.assert_moved(1, 1, 1, 0)


def test_what_has_no_price_is_counted(gateway: Gateway) -> None:
    meters = Meters(gateway, ("unpriced_attempts_total", {"provider": "fake"}), ("charge_nanos_total", {}))
    assert gateway.chat("fake/normal?tokens=6")[0] == 200
    assert gateway.chat(PRICED)[0] == 200
    meters.assert_moved(1, CHARGE_NANOS)


def test_open_requests_are_shown_while_they_are(gateway: Gateway, up: FakeUpstream) -> None:
    marker, messages = marked()
    gateway.settle()
    assert value(gateway, "open_requests") == 0
    with gateway.client().with_streaming_response.chat.completions.create(
        model="fake/normal?gate=2", messages=messages, stream=True
    ):
        up.wait_for(lambda truth: any(attempt.is_held for attempt in truth.by_marker(marker)))
        assert value(gateway, "open_requests") == 1
        up.release()
    gateway.settle()
    assert value(gateway, "open_requests") == 0


def test_what_the_database_does_not_have_yet_is_shown(gateway: Gateway) -> None:
    gateway.settle()
    wait(lambda: value(gateway, "unshipped_records") == 0)
    assert value(gateway, "unshipped_nanos") == 0
    with closing(sqlite3.connect(gateway.data / "ledger.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert gateway.chat(PRICED)[0] == 200
        wait(lambda: value(gateway, "unshipped_nanos") == CHARGE_NANOS)
        assert value(gateway, "unshipped_records") >= 1
        wait(lambda: value(gateway, "shipping_lag_seconds") > 0)
        connection.execute("ROLLBACK")
    wait(lambda: value(gateway, "unshipped_records") == 0)
    assert (value(gateway, "unshipped_nanos"), value(gateway, "shipping_lag_seconds")) == (0, 0)
