"""The real stack below the console: two workers on PostgreSQL and Redis, the console, and Chromium."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from fakes.console_process import ConsoleProcess, Visitor, launch_browser
from fakes.fleet import ServeProcess
from fakes.gateway import provider_environment
from fakes.issuer import AUDIENCE, ISSUER, Issuer
from fakes.servers import PostgresServer, RedisServer
from fakes.upstream import FakeUpstream

TRACES = "https://traces.example/{trace_id}"


@pytest.fixture(scope="session")
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def issuer() -> Iterator[Issuer]:
    """Whose tokens the fleet takes."""
    with Issuer() as running:
        yield running


@pytest.fixture(scope="session")
def fleet(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: PostgresServer,
    up: FakeUpstream,
    issuer: Issuer,
) -> Iterator[ServeProcess]:
    """Two workers that all tests of the console share."""
    identity = {
        "METERHOUSE_OIDC_ISSUER": ISSUER,
        "METERHOUSE_OIDC_AUDIENCE": AUDIENCE,
        "METERHOUSE_OIDC_JWKS": issuer.address,
    }
    # One of its own: workers compare and sweep whatever they find in theirs, and other tests empty the shared one.
    with RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        fleet = ServeProcess(
            tmp_path_factory.mktemp("console") / "data",
            redis_url=redis.url,
            database_url=postgres_server.create_database(),
            environment=provider_environment("fake", up.base_url, **identity),
        )
        with fleet as running:
            yield running


@pytest.fixture(scope="session")
def console(fleet: ServeProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleProcess]:
    log_path = tmp_path_factory.mktemp("console") / "console.log"
    with ConsoleProcess(fleet.url, log_path, "--trace-url", TRACES) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; ended with its file, since nothing asynchronous can run in this thread meanwhile."""
    with sync_playwright() as playwright:
        browser = launch_browser(playwright)
        yield browser
        browser.close()


@pytest.fixture
def visitor(browser: Browser, console: ConsoleProcess) -> Iterator[Visitor]:
    """Somebody at a wide screen; nothing may go wrong in the browser, and no other host may be asked."""
    with Visitor(browser, console) as someone:
        yield someone
        assert not someone.faults
        assert all(url.startswith((console.url, "data:", "blob:")) for url in someone.asked)
