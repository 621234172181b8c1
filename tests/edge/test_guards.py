"""Guards per address, the fence around what is the operator's, and whose word counts about an address."""

import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from edge.wire import ask, connect, error_of, receive
from fakes.fleet import ServeProcess
from fakes.gateway import MESSAGES
from fakes.nginx_server import NginxServer
from fakes.upstream import FakeUpstream

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def guarded(tmp_path: Path, socket_path: Path) -> Iterator[NginxServer]:
    values = {
        "RATE": "2r/s",
        "BURST": "4",
        "CONNECTIONS": "3",
        "ADMIN_RATE": "1r/s",
        "KEYLESS_RATE": "1r/s",
        "WORKERS": "1",
    }
    with NginxServer(tmp_path / "nginx", socket=socket_path, values=values) as server:
        yield server


def count_admitted(send: Callable[[], Answer], times: int) -> int:
    """Send again and again; returns how many were not refused by the guard, whose refusals have its form."""
    admitted = 0
    for _ in range(times):
        status, headers, body = send()
        if status != 429:
            admitted += 1
            continue
        assert error_of(body)["code"] == "rate_limit_exceeded"
        assert headers["retry-after"] == "1"
    return admitted


def test_an_address_that_asks_too_often(guarded: NginxServer, fleet: ServeProcess) -> None:
    def send() -> Answer:
        return guarded.request("GET", "/v1/models", key=fleet.key)

    assert 3 <= count_admitted(send, 15) <= 9
    other = connect(guarded, source="127.0.0.3")
    head = f"GET /v1/models HTTP/1.1\nhost: localhost\nauthorization: Bearer {fleet.key}\n"
    assert ask(other, head)[0] == 200


def test_an_address_with_too_many_streams(guarded: NginxServer, fleet: ServeProcess, up: FakeUpstream) -> None:
    body = json.dumps({"model": "fake/gate?gate=2", "messages": MESSAGES, "stream": True})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {fleet.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    )
    streams: list[ssl.SSLSocket] = []
    for _ in range(3):
        streams.append(connect(guarded))
        streams[-1].sendall(head.encode())
        assert receive(streams[-1]).startswith(b"HTTP/1.1 200")
    status, _, answer = guarded.request("GET", "/v1/models", key=fleet.key)
    assert (status, error_of(answer)["code"]) == (429, "rate_limit_exceeded")
    up.release()
    for stream in streams:
        stream.close()


@pytest.mark.parametrize("key", ["", "sk-proj-somebody-elses"])
def test_requests_without_anything_like_a_key_are_few(guarded: NginxServer, key: str) -> None:
    def send() -> Answer:
        with httpx2.Client(verify=guarded.trust()) as client:
            head = {"authorization": f"Bearer {key}"} if key else {}
            answer = client.get(f"{guarded.base_url}/models", headers=head)
            return answer.status_code, dict(answer.headers), answer.content

    assert send()[0] == 401
    guarded.configure(RATE="5000r/s", BURST="5000")
    guarded.reload()
    assert 15 <= count_admitted(send, 40) <= 30


def test_the_administration_is_slower(guarded: NginxServer, fleet: ServeProcess) -> None:
    def send() -> Answer:
        return guarded.request("GET", "/admin/organizations", key=fleet.admin_key)

    assert 50 <= count_admitted(send, 70) <= 58


@pytest.mark.parametrize(
    "path",
    [
        "/admin/organizations",
        "/metrics",
        "//admin/keys",
        "/v1/../admin/keys",
        "/%61dmin/keys",
        "/admin%2Fkeys",
        "/admin",
    ],
)
def test_what_is_the_operators_is_fenced(edge: NginxServer, fleet: ServeProcess, path: str) -> None:
    head = (
        f"GET {path} HTTP/1.1\nhost: localhost\nauthorization: Bearer {fleet.admin_key}\nx-forwarded-for: 127.0.0.1\n"
    )
    status, _, body = ask(connect(edge, source="127.0.0.2"), head)
    assert (status, error_of(body)["code"]) == (403, "permission_denied")
    assert ask(connect(edge), head)[0] in {200, 404, 405}


def test_an_address_that_is_only_claimed_is_not_believed(edge: NginxServer, fleet: ServeProcess) -> None:
    made = {}
    for name in ("organizations", "projects"):
        order = {"name": "One", **({"organization_id": made["organizations"]} if made else {})}
        _, _, body = edge.request("POST", f"/admin/{name}", order, key=fleet.admin_key)
        made[name] = json.loads(body)["id"]
    keys = {}
    for network in ("192.0.2.0/24", "127.0.0.1/32"):
        order = {"name": "bound", "project_id": made["projects"], "ip_ranges": [network]}
        _, _, body = edge.request("POST", "/admin/keys", order, key=fleet.admin_key)
        keys[network] = json.loads(body)["value"]
    for claim in ("x-forwarded-for", "x-real-ip", "forwarded"):
        head = {claim: "for=192.0.2.7" if claim == "forwarded" else "192.0.2.7"}
        assert edge.request("GET", "/v1/models", key=keys["192.0.2.0/24"], headers=head)[0] in {401, 403}
        assert edge.request("GET", "/v1/models", key=keys["127.0.0.1/32"], headers=head)[0] == 200
