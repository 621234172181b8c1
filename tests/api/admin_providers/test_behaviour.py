"""Providers that an operator sets through the API: write-only credentials, checked addresses, no restart."""

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.asking import Tenant, marked
from failure.raw_client import Client as RawClient
from fakes import scripts
from fakes.exchange import Exchange
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from meterhouse.admin.supply import ProviderRequest
from meterhouse.db.supply import StoredProvider, StoredRoute, SupplyStore
from meterhouse.providers.probe import Probe
from meterhouse.providers.provider import ProviderStatus
from meterhouse.providers.upstream import Upstream

SECRET = "sk-set-through-the-api-0123456789"
SETTINGS = {"METERHOUSE_PRIVATE_PROVIDERS": "true", "METERHOUSE_SHIP_SECONDS": "0.01"}
Ask = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("supply") / "data", SETTINGS) as running:
        yield running


@pytest.fixture
def ask(gateway: Gateway) -> Ask:
    def send(method: str, path: str, body: object = None) -> tuple[int, Any]:
        status, _, answer = gateway.request(method, path, body, key=gateway.admin_key)
        return status, Tenant.decode(answer) if answer else None

    return send


@pytest.fixture
def named(ask: Ask) -> Iterator[str]:
    """A name that is free again afterwards."""
    yield "lab"
    ask("DELETE", "/admin/providers/lab")


def test_a_provider_is_on_at_once_and_its_credential_is_never_shown(
    gateway: Gateway, up: FakeUpstream, ask: Ask, named: str
) -> None:
    body = {"base_url": up.base_url, "credential": SECRET, "models": ["lab-model=normal"]}
    status, view = ask("PUT", f"/admin/providers/{named}", body)
    assert status == 200
    assert (view["name"], view["source"], view["is_on"], view["has_credential"]) == ("lab", "operator", True, True)
    marker, messages = marked()
    assert gateway.chat("lab-model", messages=messages)[0] == 200
    (attempt,) = up.truth.by_marker(marker)
    assert attempt.request["authorization"] == f"Bearer {SECRET}"
    listing = ask("GET", "/admin/providers")[1]
    assert {"lab", "simulator"} <= {row["name"] for row in listing["data"]}
    for shown in (json.dumps(view), json.dumps(listing), gateway.log_path.read_text()):
        assert SECRET not in shown
    for file in gateway.data.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    rows = (
        sqlite3.connect(gateway.data / "ledger.db").execute("SELECT sealed_credential FROM provider_setting").fetchall()
    )
    assert len(rows[0][0]) > len(SECRET)


def test_what_it_lists_is_served_after_it_was_looked_at(
    gateway: Gateway, up: FakeUpstream, ask: Ask, named: str
) -> None:
    ask("PUT", f"/admin/providers/{named}", {"base_url": up.base_url, "kind": "vllm"})
    gateway.parts.supply.hear(None)
    up.wait_for(lambda _: gateway.request("GET", "/v1/models/usage-finish")[0] == 200)
    view = next(row for row in ask("GET", "/admin/providers")[1]["data"] if row["name"] == named)
    assert (view["kind"], view["is_reachable"]) == ("vllm", True)


def test_a_credential_stays_until_it_is_given_anew_but_follows_no_other_address(
    gateway: Gateway, up: FakeUpstream, ask: Ask, named: str
) -> None:
    path, body = f"/admin/providers/{named}", {"base_url": up.base_url, "credential": SECRET, "models": ["x=normal"]}
    assert ask("PUT", path, body)[0] == 200
    del body["credential"]
    assert ask("PUT", path, body | {"models": ["y=normal"]})[0] == 200
    marker, messages = marked()
    assert gateway.chat("y", messages=messages)[0] == 200
    assert up.truth.by_marker(marker)[0].request["authorization"] == f"Bearer {SECRET}"
    status, answer = ask("PUT", path, body | {"base_url": "http://127.0.0.1:9/v1"})
    assert (status, answer["error"]["param"]) == (400, "credential")
    assert gateway.chat("y")[0] == 200, "what was refused changed nothing"


def test_a_change_does_not_touch_a_running_stream(gateway: Gateway, up: FakeUpstream, ask: Ask, named: str) -> None:
    path = f"/admin/providers/{named}"
    ask("PUT", path, {"base_url": up.base_url, "models": ["held=gate?gate=5"]})
    _, messages = marked()
    client = RawClient(gateway.url, gateway.key, {"model": "held", "stream": True, "messages": messages})
    client.read_until(lambda c: len(c.chunks) >= 5)
    assert ask("DELETE", path)[0] == 204
    assert gateway.chat("held")[0] == 404
    up.release(name="gate")
    assert client.read_all().has_done
    assert client.error is None


@pytest.mark.parametrize(
    ("name", "body", "param"),
    [
        ("lab", {}, "credential"),
        ("lab", {"credential": SECRET}, None),
        ("lab", {"base_url": "ftp://x/v1"}, None),
        ("lab", {"base_url": "http://user:pass@x/v1"}, None),
        ("lab", {"kind": "opnai", "credential": SECRET}, None),
        ("lab", {"kind": "simulator", "credential": SECRET}, None),
        ("Lab", {"base_url": "http://x/v1"}, "name"),
        ("moonshot", {"region": "mars", "credential": SECRET}, None),
        ("openai", {"credential": "two\nlines"}, None),
        ("openai", {"credential": ""}, "credential"),
        ("openai", {"credential": SECRET, "secret": "x"}, "secret"),
    ],
)
def test_what_cannot_work_is_refused_and_not_written(
    name: str, body: dict[str, Any], param: str | None, ask: Ask
) -> None:
    status, answer = ask("PUT", f"/admin/providers/{name}", body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert SECRET not in json.dumps(answer)
    assert [row for row in ask("GET", "/admin/providers")[1]["data"] if row["source"] == "operator"] == []


def test_what_was_not_set_here_cannot_be_removed(ask: Ask) -> None:
    assert ask("DELETE", "/admin/providers/simulator")[0] == 404


def test_private_addresses_are_an_opt_in(up: FakeUpstream, tmp_path: Path) -> None:
    with Gateway(tmp_path / "data") as gateway:
        for base_url in (up.base_url, "https://127.0.0.1/v1", "https://localhost/v1", "https://169.254.169.254/v1"):
            body = {"base_url": base_url, "credential": SECRET}
            status, _, answer = gateway.request("PUT", "/admin/providers/lab", body, key=gateway.admin_key)
            assert status == 400, base_url
            assert b"https://" in answer or b"METERHOUSE_PRIVATE_PROVIDERS" in answer
        body = {"credential": SECRET, "models": ["gpt-4o"]}
        assert gateway.request("PUT", "/admin/providers/openai", body, key=gateway.admin_key)[0] == 200


def test_it_is_there_after_a_restart_and_unreadable_under_another_pepper(up: FakeUpstream, tmp_path: Path) -> None:
    data = tmp_path / "data"
    body = {"base_url": up.base_url, "credential": SECRET, "models": ["lab-model=normal"]}
    with Gateway(data, SETTINGS) as first:
        assert first.request("PUT", "/admin/providers/lab", body, key=first.admin_key)[0] == 200
    with Gateway(data, SETTINGS) as second:
        assert second.chat("lab-model")[0] == 200
    (data / "pepper").unlink()
    (data / "dev.env").unlink()
    with Gateway(data, SETTINGS) as third:
        assert third.chat("lab-model")[0] == 404
        listing = json.loads(third.request("GET", "/admin/providers", key=third.admin_key)[2])
        (lab,) = [row for row in listing["data"] if row["name"] == "lab"]
        assert lab["is_on"] is False
        assert "give it again" in lab["detail"]
        assert "provider.refused" in {line["event"] for line in third.log_lines()}


def test_an_address_that_nobody_could_connect_to_is_a_400_and_stops_no_later_change(
    up: FakeUpstream, ask: Ask, named: str
) -> None:
    for address in ("https://a..b.example", "https://host.example:99999/v1"):
        status, answer = ask("PUT", f"/admin/providers/{named}", {"base_url": address, "credential": SECRET})
        assert (status, address in answer["error"]["message"]) == (400, True)
    assert ask("PUT", f"/admin/providers/{named}", {"base_url": up.base_url})[0] == 200


def test_a_disk_that_takes_nothing_does_not_fail_a_change(
    gateway: Gateway, up: FakeUpstream, ask: Ask, named: str
) -> None:
    kept = gateway.data / f"supply.json.{os.getpid()}"
    kept.mkdir()
    try:
        assert ask("PUT", f"/admin/providers/{named}", {"base_url": up.base_url, "models": ["kept"]})[0] == 200
    finally:
        kept.rmdir()


def test_a_mended_credential_is_tried_at_once(gateway: Gateway, up: FakeUpstream, ask: Ask, named: str) -> None:
    async def answer(exchange: Exchange) -> None:
        if exchange.request.headers["authorization"] != f"Bearer {SECRET}":
            exchange.plan = replace(exchange.plan, status=401)
        await scripts.answer(exchange)

    up.script("mended", answer)
    body = {"base_url": up.base_url, "models": ["mended"], "credential": "sk-wrong-0123456789"}
    assert ask("PUT", f"/admin/providers/{named}", body)[0] == 200
    assert gateway.chat("mended", messages=marked()[1])[0] == 502
    gateway.run(gateway.parts.supply.refresh)
    marker, messages = marked()
    assert gateway.chat("mended", messages=messages)[0] == 502
    assert up.truth.by_marker(marker) == [], "what did not change stays out"
    assert ask("PUT", f"/admin/providers/{named}", body | {"credential": SECRET})[0] == 200
    assert gateway.chat("mended", messages=marked()[1])[0] == 200


def test_what_was_read_before_a_change_does_not_undo_it(
    gateway: Gateway, up: FakeUpstream, ask: Ask, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    supply, go_on = gateway.parts.supply, asyncio.Event()
    is_first = iter([True])
    genuine = SupplyStore.list_routes

    async def read_slowly(store: SupplyStore) -> list[StoredRoute]:
        found = await genuine(store)
        if next(is_first, False):
            await go_on.wait()
        return found

    async def change_in_between() -> None:
        monkeypatch.setattr(SupplyStore, "list_routes", read_slowly)
        early = asyncio.create_task(supply.refresh())
        order = ProviderRequest(base_url=up.base_url, models=["raced"])
        late = asyncio.create_task(gateway.parts.admin.supply.changes.set_provider(named, order))
        await asyncio.wait({late}, timeout=0.3)
        go_on.set()
        await asyncio.gather(early, late)

    gateway.run(change_in_between)
    assert gateway.request("GET", "/v1/models/raced")[0] == 200


def test_what_a_probe_found_at_an_address_that_changed_meanwhile_is_not_believed(
    gateway: Gateway, up: FakeUpstream, ask: Ask, named: str
) -> None:
    class SlowProbe(Probe):
        async def check_all(self, *asked: Any) -> list[ProviderStatus]:
            found = await super().check_all(*asked)
            order = ProviderRequest(base_url=f"{up.base_url}/elsewhere")
            await gateway.parts.admin.supply.changes.set_provider(named, order)
            return found

    async def probe_while_it_changes() -> None:
        async with Upstream() as upstream:
            await gateway.parts.supply.probe(SlowProbe(upstream, gateway.parts.stores.clock))

    ask("PUT", f"/admin/providers/{named}", {"base_url": up.base_url})
    gateway.run(probe_while_it_changes)
    (view,) = [row for row in ask("GET", "/admin/providers")[1]["data"] if row["name"] == named]
    assert view["is_reachable"] is None


def test_a_key_of_ours_is_no_providers_credential(gateway: Gateway, up: FakeUpstream, ask: Ask) -> None:
    for key in (gateway.key, gateway.admin_key):
        status, answer = ask("PUT", "/admin/providers/ours", {"base_url": up.base_url, "credential": key})
        assert (status, answer["error"]["param"]) == (400, "credential")
        assert key not in json.dumps(answer)


def test_a_key_of_ours_that_was_stored_as_a_credential_is_not_sent(
    gateway: Gateway, up: FakeUpstream, ask: Ask
) -> None:
    changes = gateway.parts.admin.supply.changes
    fields = {"base_url": up.base_url}
    sealed = changes._vault.seal(StoredProvider("ours", fields).place, gateway.key)
    gateway.run(lambda: changes._catalog.supply.put_provider(lambda _: StoredProvider("ours", fields, sealed)))
    gateway.run(gateway.parts.supply.refresh)
    (view,) = [row for row in ask("GET", "/admin/providers")[1]["data"] if row["name"] == "ours"]
    assert (view["is_on"], "Meterhouse's own" in view["detail"]) == (False, True)
    assert ask("DELETE", "/admin/providers/ours")[0] == 204
