"""Text that a store cannot hold, or would read as more than text: NUL, quotes, wildcards, in names, ids, answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from api.asking import error_of
from fakes.exchange import Exchange
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream

TEXTS = ["a\x00b", "'; DROP TABLE organization; --", "%", "a\r\nb: c\\", "\u202e\U0001f600" * 20]
PAGES = [
    *("/admin/keys?project_id={}", "/admin/keys?after={}", "/admin/keys/{}", "/admin/organizations?after={}"),
    *("/admin/projects?organization_id={}", "/admin/limits?scope=key&scope_id={}", "/admin/prices?model={}"),
    *("/admin/routes?model={}", "/v1/models/{}", "/v1/receipts/{}", "/v1/receipts/req_{}"),
]


@pytest.fixture
def served(tmp_path: Path, migrated_database_url: str, up: FakeUpstream) -> Iterator[Gateway]:
    """On PostgreSQL, which is stricter about text than SQLite."""
    settings = {"METERHOUSE_DATABASE_URL": migrated_database_url, "METERHOUSE_ADMIN_RATE": "100000/minute"}
    pepper = {"METERHOUSE_KEY_PEPPER": "1:stored-text-pepper-0123456789-abcdefgh"}
    with Gateway(tmp_path / "data", provider_environment("fake", up.base_url, **settings, **pepper)) as running:
        yield running


def test_no_text_is_a_failure_of_ours_or_more_than_text(served: Gateway) -> None:
    for text in TEXTS:
        for page in PAGES:
            key = served.admin_key if page.startswith("/admin") else served.key
            status, _, body = served.request("GET", page.format(quote(text, safe="")), key=key)
            assert status in {200, 400, 404}, (text, page, body)
            assert status == 200 or error_of(body)
        for path, name in (("/admin/organizations", "name"), ("/admin/keys", "name")):
            order = {name: text, "project_id": text} if path == "/admin/keys" else {name: text}
            status, _, body = served.request("POST", path, order, key=served.admin_key)
            assert status in {201, 400, 404}, (text, path, body)
            if status == 201:
                assert json.loads(body)["name"] == text
        status, _, body = served.chat("simulator-instant", user=text[:64], messages=[{"role": "user", "content": text}])
        assert status == 200, (text, body)
    assert not [line for line in served.log_lines() if line["event"] == "request.failed"]


def test_what_a_key_is_called_is_in_no_metric_and_no_line_of_the_log(served: Gateway) -> None:
    """A service account and a name are free text: of whoever may issue keys, and in no bounded number."""
    organization = json.loads(served.request("POST", "/admin/organizations", {"name": "A"}, key=served.admin_key)[2])
    order = {"organization_id": organization["id"], "name": "B"}
    project = json.loads(served.request("POST", "/admin/projects", order, key=served.admin_key)[2])
    for number, text in enumerate(TEXTS):
        label = f"canary-label {number}{text}"
        wish = {"project_id": project["id"], "name": label, "service_account": label[:64]}
        status, _, body = served.request("POST", "/admin/keys", wish, key=served.admin_key)
        if status == 400:
            assert error_of(body)["param"] in {"name", "service_account", None}
            continue
        issued = json.loads(body)
        assert (status, issued["name"], issued["service_account"]) == (201, label, label[:64])
        assert served.chat("simulator-instant", key=issued["value"])[0] == 200
        assert served.chat("simulator-instant", key=issued["value"], messages=[])[0] == 400
    assert b"canary-label" not in served.request("GET", "/metrics", key=served.admin_key)[2]
    assert not [line for line in served.log_lines() if "canary-label" in json.dumps(line)]


def test_no_text_of_a_provider_keeps_the_ledger_from_being_written(served: Gateway, up: FakeUpstream) -> None:
    """A journal that cannot be shipped because of one name in it would stop every tenant's."""
    evil = "a\x00b\ud800c"

    async def answer(x: Exchange) -> None:
        choices = [{"index": 0, "message": {"role": "assistant", "content": evil}, "finish_reason": evil}]
        body = {"id": evil, "model": evil, "service_tier": evil, "choices": choices, "object": evil}
        await x.whole(200, "application/json", json.dumps(body).replace("\\ud800", "").encode())

    async def refuse(x: Exchange) -> None:
        await x.whole(
            400, "application/json", json.dumps({"error": {"message": evil, "code": evil, "type": evil}}).encode()
        )

    up.script("evil-names", answer)
    up.script("evil-refusal", refuse)
    asked = [served.chat("fake/evil-names"), served.chat("fake/evil-refusal"), served.chat("simulator-instant")]
    assert [status for status, _, _ in asked] == [200, 400, 200]
    for _, headers, _ in asked:
        assert served.records(headers["x-request-id"])
