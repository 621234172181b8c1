"""Every page in light and dark, on a phone, by keyboard, with a crowd of keys, and when the gateway is gone."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from playwright.sync_api import Browser, expect

from fakes.console_process import PHONE, ConsoleProcess, Visitor
from fakes.fleet import ServeProcess, free_port, run_apart

PAGES = {"admin": ("overview", "keys", "live", "supply", "ledger"), "tenant": ("mine", "playground", "live")}
MANY_KEYS = 100_000
MOST_SECONDS = 10
"""On a machine with a load of 30: 2.7."""


@pytest.fixture(scope="module")
def used(fleet: ServeProcess) -> ServeProcess:
    """A gateway with something to show."""
    fleet.set_price("fake", "paced?tokens=20&duration_ms=5", "1", "4")
    for _ in range(5):
        assert fleet.chat("fake/paced?tokens=20&duration_ms=5")[0] == 200
    assert fleet.chat("fake/error-envelope")[0] >= 500
    return fleet


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_shows_itself(
    browser: Browser, console: ConsoleProcess, used: ServeProcess, scheme: str, tmp_path: Path
):
    """The pictures are beside the test's other files: look at them with ``--basetemp``."""
    for kind, secret in (("admin", used.admin_key), ("tenant", used.key)):
        with Visitor(browser, console, color_scheme=scheme) as visitor:
            visitor.sign_in(secret)
            for name in PAGES[kind]:
                page = visitor.go(name)
                expect(page.locator(".busy")).to_have_count(0)
                page.screenshot(path=tmp_path / f"{kind}-{name}-{scheme}.png", full_page=True)
                assert not page.get_by_role("alert").count()
            assert not visitor.faults


def test_a_phone_is_wide_enough(browser: Browser, console: ConsoleProcess, used: ServeProcess, tmp_path: Path):
    with Visitor(browser, console, viewport=PHONE, has_touch=True) as visitor:
        visitor.sign_in(used.admin_key)
        for name in PAGES["admin"]:
            page = visitor.go(name)
            expect(page.locator(".busy")).to_have_count(0)
            page.screenshot(path=tmp_path / f"phone-{name}.png")
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name


def test_the_keyboard_is_enough(browser: Browser, console: ConsoleProcess, used: ServeProcess):
    with Visitor(browser, console) as visitor:
        page = visitor.page
        page.goto(console.url)
        expect(page.get_by_label("Admin key")).to_be_focused()
        page.keyboard.type(used.admin_key)
        page.keyboard.press("Enter")
        page.get_by_role("navigation").wait_for()
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == "Keys and limits":
                break
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Keys and limits")
        page.get_by_role("button", name="Issue a key").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_gateway_that_is_gone_is_said_in_words(browser: Browser, tmp_path: Path):
    with (
        ConsoleProcess(f"http://127.0.0.1:{free_port()}", tmp_path / "console.log") as console,
        Visitor(browser, console) as visitor,
    ):
        visitor.page.goto(console.url)
        visitor.page.get_by_label("Admin key").fill("sk-mh-admin-x")
        visitor.page.get_by_role("button", name="Sign in").click()
        expect(visitor.page.get_by_role("alert")).to_contain_text("cannot be reached")


@pytest.mark.slow_fault
def test_a_hundred_thousand_keys_stay_quick(visitor: Visitor, fleet: ServeProcess, figures: Callable[..., None]):
    organization = fleet.admin("POST", "/admin/organizations", {"name": "Crowded"})
    project = fleet.admin("POST", "/admin/projects", {"organization_id": organization["id"], "name": "Crowded"})
    fleet.admin("POST", "/admin/keys", {"name": "crowd", "project_id": project["id"]})
    run_apart(_multiply(str(fleet.database_url), project["id"]))
    page = visitor.sign_in(fleet.admin_key).go("keys")
    began = time.monotonic()
    page.get_by_label("Project", exact=True).select_option(label="Crowded")
    expect(page.get_by_role("link", name="crowd").nth(49)).to_be_visible()
    page.get_by_role("button", name="More keys").click()
    expect(page.get_by_role("link", name="crowd").nth(99)).to_be_visible()
    seconds = time.monotonic() - began
    figures(seconds_of_two_pages_of_a_hundred_thousand_keys=seconds)
    assert seconds < MOST_SECONDS


async def _multiply(database_url: str, project_id: str) -> None:
    """Copy the one key of a project, so that there are very many."""
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    try:
        rows = await connection.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'key' AND column_name <> 'id'"
        )
        names = ", ".join(f'"{row["column_name"]}"' for row in rows)
        await connection.execute(
            f"INSERT INTO key (id, {names}) SELECT 'key_crowd' || number, {names}"
            f" FROM key, generate_series(1, {MANY_KEYS}) AS number WHERE project_id = $1",
            project_id,
        )
        await connection.execute("ANALYZE key")
    finally:
        await connection.close()
    await asyncio.sleep(0)
