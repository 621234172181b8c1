"""One provider and one gateway for all tests of the API; a test whose settings or faults differ starts its own.

The machine may be busy: the shared gateway waits for the provider for long. Who tests what happens when it is given up
asks ``hasty``.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from api.asking import Capture, Tenant
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream

SETTINGS = {
    "METERHOUSE_SHIP_SECONDS": "0.01",
    "METERHOUSE_ADMIN_RATE": "100000/minute",
    "METERHOUSE_ADMIN_FAILURE_RATE": "100000/minute",
    "METERHOUSE_KEY_CHECK_SECONDS": "0.1",
    "METERHOUSE_FIRST_TOKEN_TIMEOUT_SECONDS": "30",
    "METERHOUSE_IDLE_TIMEOUT_SECONDS": "30",
    "METERHOUSE_TOTAL_TIMEOUT_SECONDS": "60",
    "METERHOUSE_MAX_BODY_BYTES": "200000",
}
HASTY = {
    "METERHOUSE_FIRST_TOKEN_TIMEOUT_SECONDS": "1",
    "METERHOUSE_IDLE_TIMEOUT_SECONDS": "1",
    "METERHOUSE_TOTAL_TIMEOUT_SECONDS": "2",
}


@pytest.fixture(scope="session")
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def capture(up: FakeUpstream) -> Capture:
    return Capture(up)


@pytest.fixture(scope="session")
def gateway(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    environment = provider_environment("fake", up.base_url, **SETTINGS)
    with Gateway(tmp_path_factory.mktemp("api") / "data", environment) as running:
        yield running


@pytest.fixture(scope="session")
def hasty(up: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Gives a provider up after a second or two."""
    environment = provider_environment("fake", up.base_url, **SETTINGS | HASTY)
    with Gateway(tmp_path_factory.mktemp("hasty") / "data", environment) as running:
        yield running


@pytest.fixture
def tenant(gateway: Gateway) -> Tenant:
    """A fresh organization with a project and a key."""
    return Tenant(gateway)


@pytest.fixture
def admin(gateway: Gateway) -> Any:
    """Send a request as the operator; gives status and decoded body."""

    def ask(method: str, path: str, body: object = None) -> tuple[int, Any]:
        status, _, answer = gateway.request(method, path, body, key=gateway.admin_key)
        return status, Tenant.decode(answer)

    return ask
