"""A gateway that traces every request to a collector of the tests, and another that traces none that goes well."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from api.telemetry.collector import Collector
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream

SETTINGS = {
    "METERHOUSE_ADMIN_RATE": "100000/minute",
    "METERHOUSE_ADMIN_FAILURE_RATE": "100000/minute",
    "METERHOUSE_IDLE_TIMEOUT_SECONDS": "30",
    # One test waits for it to be over; the machine may be busy in all others.
    "METERHOUSE_FIRST_TOKEN_TIMEOUT_SECONDS": "2",
}


@pytest.fixture(scope="session")
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


def started(folder: Path, up: FakeUpstream, collector: Collector, ratio: str) -> Gateway:
    settings = {"METERHOUSE_OTLP_ENDPOINT": collector.endpoint, "METERHOUSE_TRACE_RATIO": ratio, **SETTINGS}
    return Gateway(folder / "data", provider_environment("fake", up.base_url, **settings))


@pytest.fixture(scope="session")
def gateway(up: FakeUpstream, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with started(tmp_path_factory.mktemp("traced"), up, collector, "1.0") as running:
        collector.flush_with(running)
        running.set_price("fake", "normal?tokens=5", "1", "4")
        yield running


@pytest.fixture(scope="session")
def untraced(up: FakeUpstream, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with started(tmp_path_factory.mktemp("untraced"), up, collector, "0") as running:
        collector.flush_with(running)
        yield running
