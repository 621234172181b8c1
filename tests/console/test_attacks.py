"""Attacks on the console: sign-in, its cookie, its forms, its way to the gateway, and stored text that is HTML."""

import json
import time
from pathlib import Path
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import expect

from fakes.console_process import ConsoleProcess, Visitor
from fakes.fleet import ServeProcess

SCRIPT = "<img src=x onerror=\"document.title='broken in'\">"


def sign_in(console: ConsoleProcess, secret: str) -> tuple[str, str]:
    """Return the cookie and the form token of a session."""
    status, headers, body = console.request("POST", "/session", {"secret": secret})
    assert status == 200, body
    return headers["set-cookie"].partition(";")[0], json.loads(body)["form_token"]


MODEL = "<img/src=x/onerror=document.title='broken&#32;in'>"
"""A name without blanks, which a model's has to be."""


def test_stored_text_that_is_html_stays_text(visitor: Visitor, fleet: ServeProcess):
    fleet.set_price("fake", MODEL, "1", "4")
    body = {"deployments": [{"provider": "fake", "upstream_model": MODEL}]}
    fleet.admin("PUT", f"/admin/routes/{quote(MODEL)}", body)
    fleet.chat(f"fake/{MODEL}")
    organization = fleet.admin("GET", "/admin/organizations")["data"][0]
    project = fleet.admin("POST", "/admin/projects", {"organization_id": organization["id"], "name": SCRIPT})
    key = fleet.admin("POST", "/admin/keys", {"name": SCRIPT, "project_id": project["id"], "models": [SCRIPT]})
    visitor.sign_in(fleet.admin_key)
    for name in ("keys", f"keys/{key['id']}", "ledger", "overview", "supply", "live"):
        page = visitor.go(name)
        page.wait_for_timeout(200)
        assert "broken in" not in page.title()
        assert not page.locator("main img").count()
    page = visitor.go("supply")
    page.get_by_label("Filter routes").fill("<img")
    expect(page.get_by_role("row").filter(has_text=MODEL)).to_have_count(2)
    page = visitor.go("keys")
    page.get_by_label("Project", exact=True).select_option(label=SCRIPT)
    expect(page.get_by_role("link", name=SCRIPT)).to_have_count(1)


def test_the_secret_stays_on_the_server(visitor: Visitor, fleet: ServeProcess, console: ConsoleProcess):
    page = visitor.sign_in(fleet.admin_key).go("overview")
    seen = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])") + page.content()
    assert fleet.admin_key not in seen
    assert "mh_console" not in seen
    assert fleet.admin_key not in console.log_path.read_text()


def test_the_cookie_is_kept_from_scripts_and_other_sites(console: ConsoleProcess, fleet: ServeProcess):
    _, headers, _ = console.request("POST", "/session", {"secret": fleet.key})
    words = {word.strip().lower() for word in headers["set-cookie"].split(";")}
    assert {"httponly", "samesite=strict", "path=/"} <= words


def test_what_changes_something_needs_the_form_token(console: ConsoleProcess, fleet: ServeProcess):
    cookie, token = sign_in(console, fleet.admin_key)
    body = {"name": "Forged"}
    for given in ({}, {"x-form-token": "x" * 43}, {"x-form-token": token + "x"}):
        answer = console.request("POST", "/api/admin/organizations", body, {"cookie": cookie, **given})
        assert answer[0] == 403
    assert console.request("DELETE", "/session", None, {"cookie": cookie})[0] == 403
    origin = {"cookie": cookie, "x-form-token": token, "origin": "https://evil.example"}
    assert console.request("POST", "/api/admin/organizations", body, origin)[0] == 403
    names = [found["name"] for found in fleet.admin("GET", "/admin/organizations?limit=100")["data"]]
    assert "Forged" not in names
    answer = console.request("DELETE", "/session", None, {"cookie": cookie, "x-form-token": token})
    assert answer[0] == 204
    assert console.request("GET", "/session", None, {"cookie": cookie})[0] == 401


def test_a_stream_ends_with_the_session_that_began_it(console: ConsoleProcess, fleet: ServeProcess):
    cookie, token = sign_in(console, fleet.admin_key)
    request = Request(f"{console.url}/api/admin/live", headers={"cookie": cookie})
    with urlopen(request, timeout=30) as live:
        assert live.readline().startswith(b": listening")
        assert console.request("DELETE", "/session", None, {"cookie": cookie, "x-form-token": token})[0] == 204
        while live.readline():
            pass  # it ends, where it would say for ever that it lives
    assert console.request("GET", "/api/admin/live", None, {"cookie": cookie})[0] == 401


def test_a_foreign_host_name_is_refused(console: ConsoleProcess):
    """DNS rebinding: a site whose name leads to this machine gets nothing, not even the page."""
    for host in ("evil.example", "evil.example:8600", "127.0.0.1.evil.example", ""):
        assert console.request("GET", "/", None, {"host": host})[0] in {400, 421}


@pytest.mark.parametrize(
    "path",
    [
        "/api/metrics",
        "/api/docs",
        "/api//admin/keys",
        "/api/admin/../metrics",
        "/api/admin/%2e%2e/metrics",
        "/api/admin/keys%2f..%2fx",
        "/api/admin/keys%252e%252e",
        "/api/admin/%5c..%5cmetrics",
        "/api/admin/keys/x%0d%0ahost:%20evil",
        "/api/admin/keys/%00",
        "/api/v1/chat/completions",
        "/api/http://evil.example/",
        "/api/@evil.example/admin/keys",
        "/api/v1/organizations",
    ],
)
def test_only_the_public_api_is_passed_on(console: ConsoleProcess, fleet: ServeProcess, path: str):
    cookie, _ = sign_in(console, fleet.admin_key)
    assert console.request("GET", path, None, {"cookie": cookie})[0] == 404


def test_a_tenant_reaches_no_administration(console: ConsoleProcess, fleet: ServeProcess):
    cookie, _ = sign_in(console, fleet.key)
    assert console.request("GET", "/api/admin/keys", None, {"cookie": cookie})[0] == 404
    assert console.request("GET", "/api/v1/organization/projects", None, {"cookie": cookie})[0] == 404
    assert console.request("GET", "/api/v1/limits", None, {"cookie": cookie})[0] == 200


def test_a_forged_or_ended_session_opens_nothing(console: ConsoleProcess):
    for cookie in ("", "mh_console=", "mh_console=" + "A" * 43, "mh_console=%00"):
        headers = {"cookie": cookie} if cookie else {}
        assert console.request("GET", "/api/v1/limits", None, headers)[0] == 401


def test_every_answer_has_the_strict_content_policy(console: ConsoleProcess, fleet: ServeProcess):
    cookie, _ = sign_in(console, fleet.admin_key)
    for path in ("/", "/static/js/main.js", "/session", "/api/admin/keys", "/nothing"):
        _, headers, _ = console.request("GET", path, None, {"cookie": cookie})
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b'{"secret": 5}', b'{"secret": "a b"}', b'{"secret": "a\\r\\nx: y"}', b'{"secret": ""}'),
        *(b'{"secret": ' + b"[" * 100_000, b'{"secret": "\\ud800"}'),
    ],
)
def test_what_can_be_no_secret_is_refused(console: ConsoleProcess, body: bytes):
    assert console.request("POST", "/session", body)[0] == 400


def test_guessing_is_slowed_down(fleet: ServeProcess, tmp_path):
    with ConsoleProcess(fleet.url, tmp_path / "console.log") as own:
        tries = [own.request("POST", "/session", {"secret": f"sk-mh-guess-{n}"})[0] for n in range(12)]
        assert tries == [401] * 10 + [429] * 2
        assert own.request("POST", "/session", {"secret": fleet.admin_key})[0] == 429


def test_the_console_has_no_access_to_the_stores(console: ConsoleProcess, fleet: ServeProcess):
    """It talks to the gateway alone."""
    cookie, _ = sign_in(console, fleet.admin_key)
    assert console.request("GET", "/api/admin/keys", None, {"cookie": cookie})[0] == 200
    time.sleep(0.1)
    ports = remote_ports(console.pid)
    assert ports <= {int(fleet.bind.rpartition(":")[2])}


def remote_ports(pid: int) -> set[int]:
    """Return the ports to which a process has connections of its own, those of its listener left out."""
    links = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    mine = [row for row in rows if f"socket:[{row[9]}]" in links and row[3] == "01"]
    listening = {row[1].rpartition(":")[2] for row in rows if f"socket:[{row[9]}]" in links and row[3] == "0A"}
    return {int(row[2].rpartition(":")[2], 16) for row in mine if row[1].rpartition(":")[2] not in listening}
