"""What operators do in the pages besides issuing keys: sign in with a token, rotate, price, switch, bill, prove."""

import json
import re
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from playwright.sync_api import Browser, Page, expect

from fakes.console_process import ConsoleProcess, Visitor
from fakes.fleet import ServeProcess
from fakes.issuer import Issuer

MODEL = "paced?tokens=20&duration_ms=5"
MONTH = time.strftime("%Y-%m", time.gmtime())


@pytest.fixture(scope="module")
def organization(fleet: ServeProcess) -> dict[str, Any]:
    """One of this file's own, with a project, a key and a budget, and a request that was charged."""
    made = fleet.admin("POST", "/admin/organizations", {"name": "Works"})
    project = fleet.admin("POST", "/admin/projects", {"organization_id": made["id"], "name": f"P {made['id']}"})
    key = fleet.admin("POST", "/admin/keys", {"name": f"K {made['id']}", "project_id": project["id"]})
    limits = {"scope": "project", "scope_id": project["id"], "limits": "spend 2 USD/month"}
    fleet.admin("PUT", "/admin/limits", limits)
    fleet.set_price("fake", MODEL, "1", "4")
    assert fleet.wait_for(lambda: fleet.chat(f"fake/{MODEL}", key=key["value"])[0] == 200, 30)
    fleet.wait_ledger(lambda rows: any(row["organization_id"] == made["id"] for row in rows))
    return {**made, "project": project, "key": key}


def chosen(page: Page, organization: dict[str, Any]) -> Page:
    """The ledger with an organization chosen in its card of invoices."""
    page.get_by_label("Organization").select_option(label=organization["name"])
    return page


def test_an_operator_s_token_opens_the_pages(visitor: Visitor, issuer: Issuer):
    page = visitor.sign_in(issuer.token(int(time.time()))).go("keys")
    expect(page.get_by_role("button", name="Issue a key")).to_be_visible()
    expect(page.get_by_role("link", name="Providers")).to_be_visible()
    expect(page.get_by_role("navigation")).to_contain_text("Signed in as operator")


@pytest.mark.parametrize("role", [pytest.param("owner", marks=pytest.mark.slow_fault), "reader"])
def test_a_token_shows_what_its_role_may(visitor: Visitor, issuer: Issuer, organization: dict[str, Any], role: str):
    claims = {"meterhouse_role": role, "meterhouse_organization": organization["id"], "jti": f"token of {role}"}
    page = visitor.sign_in(issuer.token(int(time.time()), **claims)).go("keys")
    expect(page.get_by_role("link", name=organization["key"]["name"]).first).to_be_visible()
    expect(page.get_by_role("button", name="Issue a key")).to_have_count(1 if role == "owner" else 0)
    expect(page.get_by_role("button", name="Limits")).to_have_count(1 if role == "owner" else 0)
    expect(page.get_by_role("link", name="Providers")).to_have_count(0)
    page = visitor.go("overview")
    budget = page.locator(".limit").filter(has_text=organization["project"]["name"])
    expect(budget).to_contain_text(
        re.compile(r"this month.*\$0\.000\d+ spent, \$0\.00 reserved, \$1\.\d+ free of \$2\.00")
    )
    page = visitor.go("ledger")
    expect(page.get_by_role("heading", name="Records")).to_have_count(1 if role == "owner" else 0)
    expect(page.get_by_role("button", name="Verify")).to_have_count(1 if role == "owner" else 0)
    expect(page.get_by_role("button", name="Invoice")).to_be_visible()
    assert not page.get_by_role("alert").count()


def test_a_token_that_is_wrong_opens_nothing(console: ConsoleProcess, issuer: Issuer):
    now = int(time.time())
    for changes in ({"exp": now - 600}, {"aud": "somebody"}, {"meterhouse_role": "king"}):
        secret = issuer.token(now, **changes)
        assert console.request("POST", "/session", {"secret": secret})[0] == 401, changes


def test_both_keys_of_a_rotation_work_and_count_as_one(
    visitor: Visitor, fleet: ServeProcess, organization: dict[str, Any]
):
    page = visitor.sign_in(fleet.admin_key).go(f"keys/{organization['key']['id']}")
    page.get_by_role("button", name="Rotate").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Both keys work for so many hours").fill("2")
    dialog.get_by_role("button", name="Issue the successor").click()
    shown = page.get_by_role("dialog", name="The key, shown this once")
    value = shown.locator("pre.value").inner_text()
    shown.get_by_role("button", name="Close").click()
    expect(page.locator("main .tag").first).to_have_text("expires")
    for secret in (value, organization["key"]["value"]):
        assert fleet.chat(f"fake/{MODEL}", key=secret)[0] == 200


def test_a_price_supersedes_and_its_history_stays(visitor: Visitor, fleet: ServeProcess):
    model = f"priced-{time.monotonic_ns()}"
    fleet.set_price("fake", model, "1", "4")
    page = visitor.sign_in(fleet.admin_key).go("supply")
    page.get_by_role("button", name="Set a price").click()
    dialog = page.get_by_role("dialog")
    for label, text in (("Provider", "fake"), ("Model", model), ("Input", "2.5"), ("Output", "0.000001")):
        dialog.get_by_label(re.compile(f"^{label}")).fill(text)
    dialog.get_by_role("button", name="Set the price").click()
    row = page.get_by_role("row").filter(has_text=model)
    expect(row).to_contain_text("input $2.5, output $0.000001")
    row.get_by_role("button", name="History (2)").click()
    history = page.get_by_role("dialog").get_by_role("row")
    expect(history).to_have_count(3)
    expect(history.filter(has_text="in force")).to_contain_text("input $2.5")
    expect(history.filter(has_text="before")).to_contain_text("input $1, output $4")


def test_a_deployment_is_switched_off_and_on_from_the_page(visitor: Visitor, fleet: ServeProcess):
    model = f"team/switched?{time.monotonic_ns()}"
    body = {"deployments": [{"provider": "fake", "upstream_model": MODEL}]}
    fleet.admin("PUT", f"/admin/routes/{model.replace('?', '%3F')}", body)

    def answers(status: int) -> bool:
        return {fleet.chat(model)[0] for _ in range(4)} == {status}

    fleet.wait_for(lambda: answers(200), 30)
    page = visitor.sign_in(fleet.admin_key).go("supply")
    page.get_by_label("Filter routes").fill(model)
    row = page.get_by_role("row").filter(has_text=model)
    row.get_by_role("button", name="Switch").click()
    asked = page.get_by_role("dialog")
    expect(asked).to_contain_text("nobody else answers this model")
    asked.get_by_role("button", name="Switch it off").click()
    expect(row.locator(".tag")).to_have_text("off")
    fleet.wait_for(lambda: answers(404), 30)
    row.get_by_role("button", name="Switch").click()
    expect(row.locator(".tag")).to_have_text("closed")
    fleet.wait_for(lambda: answers(200), 30)


def test_the_books_are_exported_and_proved_in_the_page(
    visitor: Visitor, fleet: ServeProcess, organization: dict[str, Any], tmp_path: Path
):
    page = chosen(visitor.sign_in(fleet.admin_key).go("ledger"), organization)

    def proved() -> bool:
        """Sealing is a moment behind."""
        page.get_by_role("button", name="Verify").click()
        expect(page.get_by_role("button", name="Verify")).to_be_enabled()
        card = page.locator(".card").filter(has=page.get_by_role("heading", name="Invoices and proof"))
        return (
            re.search(r"intact\s+[1-9]\d* records and 0 adjustments, \$0\.000\d+, compared", card.inner_text())
            is not None
        )

    fleet.wait_for(proved, 30)
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Export").click()
    path = tmp_path / "export.jsonl"
    downloading.value.save_as(path)
    status, _, body = fleet.request("POST", "/admin/ledger/verify", path.read_bytes(), key=fleet.admin_key)
    assert (status, json.loads(body)["is_good"]) == (200, True)


def test_an_invoice_is_a_page_to_print(visitor: Visitor, fleet: ServeProcess, organization: dict[str, Any]):
    # An invoice has what is sealed, which comes after the record.
    asked = f"/admin/organizations/{organization['id']}/invoices/{MONTH}"
    fleet.wait_for(lambda: fleet.admin("GET", asked)["lines"])
    page = chosen(visitor.sign_in(fleet.admin_key).go("ledger"), organization)
    page.get_by_role("button", name="Invoice").click()
    link = page.get_by_role("link", name="Printable page")
    expect(link).to_be_visible()
    with page.expect_popup() as opening:
        link.click()
    paper = opening.value
    paper.emulate_media(media="print")
    expect(paper.get_by_role("heading", level=1)).to_contain_text(MONTH)
    expect(paper.locator("body")).to_contain_text(organization["project"]["name"])
    headers = paper.reload().all_headers()  # type: ignore[union-attr]  # a page that was loaded has an answer
    assert headers["content-security-policy"].startswith("sandbox;")
    paper.close()


def test_errors_are_told_by_owner_for_each_key(visitor: Visitor, fleet: ServeProcess, organization: dict[str, Any]):
    body = {"name": "Limited", "project_id": organization["project"]["id"], "limits": "requests 1/hour"}
    key = fleet.admin("POST", "/admin/keys", body)
    client = fleet.client(key["value"])

    def is_limited() -> bool:
        try:
            client.chat.completions.create(model=f"fake/{MODEL}", messages=[{"role": "user", "content": "x"}])
        except openai.RateLimitError:
            return True
        return False

    fleet.wait_for(is_limited, 30)
    path = f"/admin/breakdown?start_time={int(time.time()) - 60}&by=key&key_ids={key['id']}"
    fleet.wait_for(lambda: fleet.admin("GET", path)["total"]["errors"]["limit"], 30)
    page = visitor.sign_in(fleet.admin_key).go("overview")
    page.get_by_label("Lines").select_option("key")
    expect(page.get_by_role("heading", name="By key")).to_be_visible()
    row = page.get_by_role("row").filter(has_text=key["name"])
    columns = page.get_by_role("columnheader").all_inner_texts()
    expect(row.get_by_role("cell").nth(columns.index("Errors: caller") + 1)).not_to_have_text("0")
    expect(row.get_by_role("cell").nth(columns.index("First token p50"))).to_contain_text("ms")


@pytest.mark.slow_fault
def test_the_keyboard_keeps_its_place_while_requests_come(
    browser: Browser, console: ConsoleProcess, fleet: ServeProcess
):
    with Visitor(browser, console) as visitor:
        page = visitor.sign_in(fleet.admin_key).go("live")
        expect(page.get_by_role("status").first).to_contain_text("Requests appear as they begin")
        row = page.locator("tr[data-id]").first

        def has_come() -> bool:
            fleet.chat(f"fake/{MODEL}")
            return row.is_visible()

        fleet.wait_for(has_come, 30)
        row = page.locator(f"tr[data-id='{row.get_attribute('data-id')}']")
        row.focus()
        for _ in range(3):
            fleet.chat(f"fake/{MODEL}")
        expect(page.locator("tr[data-id]").nth(3)).to_be_visible()
        expect(row).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog", name="Receipt")).to_be_visible()
        page.keyboard.press("Escape")
        page.get_by_text("Skip to the content").focus()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        assert page.url.endswith("#/live")
        assert not visitor.faults
