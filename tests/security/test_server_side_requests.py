"""Server-side request forgery (CVE-2024-6587, CVE-2026-45400, CVE-2026-45401): addresses that others name.

A tenant's are never fetched. An operator's base URL, set through the API, is checked as it is written and again as it
is connected to, so that no name can lead elsewhere a moment later; no redirect is followed, and a credential goes to
no host but its own.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from api.asking import error_of
from fakes.exchange import Exchange
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from meterhouse.errors import UpstreamError
from meterhouse.providers.activation import activate
from meterhouse.providers.aiohttp_client import AiohttpClient
from meterhouse.providers.provider import ProviderSetting
from meterhouse.providers.upstream import ClientName, Upstream

HOSTS = [
    *("127.0.0.1", "127.1", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "127.0.0.1.", "0", "0.0.0.0"),
    *("localhost", "localhost.", "LOCALHOST", "a.localhost", "ip6-localhost", "metadata", "redis", "db.internal"),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1]"),
    *("169.254.169.254", "[fd00:ec2::254]", "10.0.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "224.0.0.1"),
    *("①②⑦.⓪.⓪.①", "127。0。0。1", "1\uff127.0.0.1", "%31%32%37.0.0.1", "127.0.0.1%00.example.com", "127.0.0.1\t"),
]
URLS = [
    "http://api.example.com/v1",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "https://user:secret@api.example.com/v1",
    "https://api.example.com@127.0.0.1/v1",
    "https://api.example.com/v1?next=https://127.0.0.1",
    "https://api.example.com/v1#@127.0.0.1",
    "https://127.0.0.1\\@api.example.com/v1",
    "https://",
    "//127.0.0.1/v1",
]


class Trap:
    """Listens, and remembers whether anybody came."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.visitors = 0
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/trap"

    def _watch(self) -> None:
        while True:
            try:
                visitor, _ = self._listener.accept()
            except OSError:
                return
            self.visitors += 1
            visitor.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def trap() -> Iterator[Trap]:
    made = Trap()
    yield made
    made.close()


def said(url: str) -> list[dict[str, Any]]:
    """Messages that name an address wherever one can stand."""
    parts = [
        {"type": "text", "text": url},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
        {"type": "file", "file": {"file_data": url, "filename": url}},
        {"type": "video_url", "video_url": {"url": url}},
    ]
    return [{"role": "user", "content": [part]} for part in parts]


@pytest.mark.parametrize("model", ["fake/normal?tokens=1", "simulator-instant"])
def test_an_address_that_a_tenant_names_is_not_fetched(gateway: Gateway, trap: Trap, model: str) -> None:
    for message in said(trap.url):
        gateway.chat(model, messages=[message])
    for name in ("base_url", "api_base", "api_key_url", "webhook", "webhook_url", "callback_url", "proxy", "endpoint"):
        gateway.chat(model, **{name: trap.url})
        gateway.chat(model, metadata={name: trap.url}, user=trap.url)
        gateway.request("POST", "/chat", {"message": "Hi", "model": model, name: trap.url})
    gateway.chat(trap.url)
    gateway.chat(f"fake/{trap.url}")
    headers = {
        "x-base-url": trap.url,
        "openai-base-url": trap.url,
        "forwarded": f"host={trap.url}",
        "referer": trap.url,
    }
    gateway.request("GET", "/v1/models", headers=headers)
    assert trap.visitors == 0


def test_an_address_that_a_tenant_names_changes_no_destination(gateway: Gateway, up: FakeUpstream) -> None:
    before = len(up.attempts)
    status, _, _ = gateway.chat("fake/normal?tokens=1", base_url="http://203.0.113.1/v1", api_key="sk-other")
    assert (status, len(up.attempts)) == (200, before + 1)


@pytest.mark.parametrize("host", HOSTS)
def test_a_private_address_is_refused_or_never_reached_however_it_is_written(gateway: Gateway, host: str) -> None:
    body = {"base_url": f"https://{host}/v1", "credential": "sk-to-nowhere", "models": ["m"]}
    status, _, answer = gateway.request("PUT", "/admin/providers/evil", body, key=gateway.admin_key)
    if status == 200:
        # A name that only the look-up can tell of: then the connection is refused.
        asked, _, refused = gateway.chat("evil/m")
        assert (asked, error_of(refused)["type"]) == (502, "upstream_error"), refused
        assert gateway.request("DELETE", "/admin/providers/evil", key=gateway.admin_key)[0] == 204
        return
    assert (status, error_of(answer)["type"]) == (400, "invalid_request_error")
    assert "sk-to-nowhere" not in answer.decode()


@pytest.mark.parametrize("url", URLS)
def test_an_address_of_another_form_is_refused(gateway: Gateway, url: str) -> None:
    body = {"base_url": url, "credential": "sk-to-nowhere"}
    status, _, answer = gateway.request("PUT", "/admin/providers/evil", body, key=gateway.admin_key)
    assert (status, error_of(answer)["type"]) == (400, "invalid_request_error"), url


@pytest.mark.parametrize("client", ["httptools", "aiohttp"])
async def test_a_name_that_leads_elsewhere_a_moment_later_is_not_followed(
    trap: Trap, monkeypatch: pytest.MonkeyPatch, client: ClientName
) -> None:
    """DNS rebinding: public when it was set and looked up first, this machine at the next look."""
    found = ["127.0.0.1", "203.0.113.7"]
    setting = ProviderSetting(
        name="evil", credential="sk-secret", base_url=f"https://rebind.example:{trap.port}/v1", is_public_only=True
    )
    active = activate(setting)
    assert active is not None

    async def look_up(_host: str, port: int, **_options: object) -> list[tuple[Any, ...]]:
        address = found.pop() if len(found) > 1 else found[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    monkeypatch.setattr("meterhouse.providers.http1.site.ADDRESS_SECONDS", 0.0)
    async with Upstream(client=client) as upstream:
        told = ""
        for _ in range(20):  # a busy machine may take longer for the first look than a request has
            with pytest.raises(UpstreamError) as caught:
                await upstream.open(active, "/chat/completions", b"{}", is_streamed=False, timeout_seconds=0.2)
            told = caught.value.message
            if "could not be found" in told:
                break
            if isinstance(upstream._client, AiohttpClient):
                for session in upstream._client._sessions.values():
                    session.connector.clear_dns_cache()
    assert "could not be found" in told
    assert trap.visitors == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_takes_no_credential_along(
    gateway: Gateway, up: FakeUpstream, trap: Trap, status: int
) -> None:
    async def redirect(x: Exchange) -> None:
        await x.whole(int(x.plan.code), "text/html", b"", {"location": trap.url})

    up.script("leads-away", redirect)
    for is_streamed in (False, True):
        answered, _, body = gateway.chat(f"fake/leads-away?code={status}", stream=is_streamed)
        assert (answered, error_of(body)["type"]) == (502, "upstream_error")
        assert trap.url not in json.dumps(error_of(body))
    assert trap.visitors == 0
