"""A key from its issue to its end, in the page and with the official SDK beside it."""

import json
import re

import openai
import pytest
from playwright.sync_api import Page, expect

from fakes.console_process import Visitor
from fakes.fleet import ServeProcess

MESSAGES = [{"role": "user", "content": "Hello"}]
SLOW = "paced?tokens=20&duration_ms=2500"
QUICK = "paced?tokens=20&duration_ms=40"


def ask(client: openai.OpenAI, times: int = 1) -> None:
    for _ in range(times):
        client.chat.completions.create(model=f"fake/{QUICK}", messages=MESSAGES, max_completion_tokens=30)


def is_refused(client: openai.OpenAI) -> bool:
    try:
        ask(client)
    except openai.AuthenticationError:
        return True
    except openai.RateLimitError:
        return False
    return False


def count_refused(fleet: ServeProcess) -> int:
    _, _, body = fleet.request("GET", "/admin/breakdown?start_time=0&by=model", key=fleet.admin_key)
    return int(json.loads(body)["total"]["refused"])


def issue_key(page: Page) -> tuple[str, str]:
    """Issue a key with a small budget through the form; returns its value, and the id of its project."""
    page.get_by_role("button", name="Issue a key").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name", exact=True).fill("A key of the journey")
    project = dialog.get_by_label(re.compile("^Project")).input_value()
    dialog.get_by_label("What is limited").select_option("spend")
    dialog.get_by_label("Amount").fill("0.0002")
    dialog.get_by_label("Window").select_option("month")
    expect(dialog).to_contain_text("$0.0002 per calendar month, UTC")
    dialog.get_by_role("button", name="Issue", exact=True).click()
    shown = page.get_by_role("dialog", name="The key, shown this once")
    value = shown.locator("pre.value").inner_text()
    expect(shown).to_contain_text("from openai import OpenAI")
    shown.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == value
    shown.get_by_role("button", name="Close").click()
    return value, project


def watch_a_request(page: Page, client: openai.OpenAI) -> None:
    """See a request begin, run and end, and open its receipt."""
    expect(page.get_by_role("status").first).to_contain_text("Requests appear as they begin")
    stream = client.chat.completions.create(
        model=f"fake/{SLOW}", messages=MESSAGES, stream=True, max_completion_tokens=30
    )
    next(iter(stream))
    running = page.get_by_role("row").filter(has_text=SLOW).first
    expect(running).to_contain_text("running")
    assert list(stream)
    expect(running).to_contain_text("completed")
    running.click()
    receipt = page.get_by_role("dialog", name="Receipt")
    expect(receipt).to_contain_text("reported")
    expect(receipt).to_contain_text("$0.00008")
    expect(receipt.get_by_role("link")).to_have_attribute("href", re.compile(r"^https://traces\.example/[0-9a-f]{32}$"))
    receipt.get_by_role("button", name="Close").click()


def test_a_key_is_issued_used_watched_spent_and_revoked(visitor: Visitor, fleet: ServeProcess):
    for model in (SLOW, QUICK):
        fleet.set_price("fake", model, "1", "4")
    value, project = issue_key(visitor.sign_in(fleet.admin_key).go("keys"))
    client = fleet.client(value)
    watch_a_request(visitor.go("live"), client)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client, 10)
    assert refused.value.code == "insufficient_quota"

    page = visitor.go("keys")
    page.get_by_label("Project", exact=True).select_option(value=project)
    page.get_by_role("link", name="A key of the journey").click()
    expect(page.locator("svg.meter")).to_have_attribute("aria-label", re.compile(r"^(4[4-9]|[5-9]\d|100) % spent"))
    expect(page.locator("main")).to_contain_text("resets in")
    page.get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke the key").click()
    expect(page.locator("main .tag.bad")).to_contain_text("revoked")
    fleet.wait_for(lambda: is_refused(client), 2)

    # Written down once a second; the page looks again after fifteen.
    fleet.wait_for(lambda: count_refused(fleet))
    page = visitor.go("overview")
    budget = page.locator(".limit").filter(has_text="A key of the journey")
    expect(budget).to_have_count(0)  # it was of the key that is revoked by now
    expect(page.locator("tr", has=page.locator("strong", has_text="All"))).to_have_count(1)
    plot = page.get_by_role("img", name="Requests by model")
    plot.focus()
    for _ in range(30):
        plot.press("ArrowRight")
    expect(plot.locator(".tip")).to_contain_text("paced")


def test_a_tenant_sees_its_limits_and_tries_a_model(visitor: Visitor, fleet: ServeProcess):
    fleet.set_price("fake", SLOW, "1", "4")
    _, value = fleet.new_key("spend 5 USD/month; requests 600/minute", models=[f"fake/{SLOW}"])
    page = visitor.sign_in(value).go("mine")
    expect(page.locator("main")).to_contain_text("spend 5 USD/month")
    expect(page.locator("svg.meter")).to_have_count(2)
    expect(page.locator("main")).to_contain_text("Nothing was asked with this key yet.")
    assert not page.get_by_role("link", name="Keys and limits").count()
    page = visitor.go("playground")
    page.get_by_label("Model").fill(f"fake/{SLOW}")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#cost")).to_contain_text(re.compile(r"^about \$0\.0000\d+, until it is settled$"))
    expect(page.locator("#cost")).to_contain_text(re.compile(r"^\$0\.0000\d+$"))
    expect(page.locator(".answer")).not_to_be_empty()
    charged = page.locator("#cost").inner_text()
    page = visitor.go("mine")
    expect(page.locator("main")).to_contain_text(f"{charged} spent")
    usage, requests = (page.locator(".card").filter(has_text=title) for title in ("Usage of the last", "A click opens"))
    expect(usage.get_by_role("row").filter(has_text=SLOW)).to_contain_text(charged)
    row = requests.get_by_role("row").filter(has_text=SLOW)
    expect(row).to_contain_text(charged)
    requests.get_by_label("Outcome").select_option("cut")
    requests.get_by_role("button", name="Search").click()
    expect(requests).to_contain_text("No request matches.")
    requests.get_by_label("Outcome").select_option("completed")
    requests.get_by_role("button", name="Search").click()
    row.click()
    expect(page.get_by_role("dialog", name="Receipt")).to_contain_text(charged)


def test_what_is_not_there_is_said_in_words(visitor: Visitor, fleet: ServeProcess):
    page = visitor.sign_in(fleet.admin_key).go("keys/key_nobody")
    expect(page.get_by_role("alert")).to_contain_text("There is no key 'key_nobody'")
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Admin key").fill("sk-mh-live-nobody")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("does not know this key")
