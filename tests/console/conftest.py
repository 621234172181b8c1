"""The real stack below the console: two workers on PostgreSQL and Redis, the console, and Chromium."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from fakes.console_process import ConsoleProcess, Visitor, launch_browser
from fakes.fleet import ServeProcess
from fakes.gateway import provider_environment
from fakes.servers import PostgresServer, RedisServer
from fakes.upstream import FakeUpstream


@pytest.fixture(scope="package")
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="package")
def fleet(
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: RedisServer,
    postgres_server: PostgresServer,
    up: FakeUpstream,
) -> Iterator[ServeProcess]:
    """Two workers that all tests of the console share."""
    fleet = ServeProcess(
        tmp_path_factory.mktemp("console") / "data",
        redis_url=redis_server.url,
        database_url=postgres_server.create_database(),
        environment=provider_environment("fake", up.base_url),
    )
    with fleet as running:
        yield running


@pytest.fixture(scope="package")
def console(fleet: ServeProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleProcess]:
    with ConsoleProcess(fleet.url, tmp_path_factory.mktemp("console") / "console.log") as running:
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
