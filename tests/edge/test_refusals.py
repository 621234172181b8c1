"""What nginx itself answers has its wire's envelope and a request id, whatever was wrong; so the SDKs understand it."""

import json
import random
from pathlib import Path

import anthropic
import httpx2
import openai
import pytest

from edge.wire import ask, connect, error_of
from fakes.daemon import wait_until
from fakes.fleet import ServeProcess
from fakes.nginx_server import NginxServer

VERSIONS = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


@pytest.mark.parametrize("limit", [0, 1])
def test_a_body_as_long_as_is_allowed_and_one_byte_more(edge: NginxServer, fleet: ServeProcess, limit: int) -> None:
    most = int(edge.values.get("BODY_BYTES", "20971520"))
    status, headers, body = edge.request("POST", "/v1/chat/completions", b" " * (most + limit), key=fleet.key)
    assert status == (413 if limit else 400)
    assert error_of(body)["code"] == ("request_too_large" if limit else "invalid_json")
    assert headers["content-type"].startswith("application/json")
    assert headers["x-request-id"].startswith("req_")


def test_the_sdk_understands_a_refusal_of_nginx(edge: NginxServer, fleet: ServeProcess) -> None:
    with edge.client(fleet.key) as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="fake/normal", messages=[{"role": "user", "content": "x" * 21_000_000}])
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    assert caught.value.request_id is not None


@VERSIONS
def test_headers_that_are_too_large(edge: NginxServer, http2: bool) -> None:
    with httpx2.Client(verify=edge.trust(), http2=http2) as client:
        noise = "".join(random.Random(7).choices("!#$%&'*+-^_`|~", k=9_000))  # HTTP/2 would make letters shorter
        many = {f"x-{number}": noise[number:8_000] for number in range(6)}
        for headers in (many, {"x-one": noise}):
            try:
                answer = client.get(f"{edge.base_url}/models", headers=headers)
            except httpx2.RemoteProtocolError:
                assert http2  # a single one that is too large ends a connection of HTTP/2
                continue
            assert answer.status_code == 431
            assert error_of(answer.content)["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("request_text", "status", "code"),
    [
        ("TRACE /v1/models HTTP/1.1\nhost: localhost\n", 405, "method_not_allowed"),
        ("GET /v1/models HTTP/1.1\nhost: localhost\nhost: localhost\n", 400, "invalid_request"),
        ("GET /v1/models HTTP/1.1\n", 400, "invalid_request"),
        ("POST /v1/chat/completions HTTP/1.1\nhost: localhost\ncontent-length: x\n", 400, "invalid_request"),
        (
            "POST /v1/chat/completions HTTP/1.1\nhost: localhost\ncontent-length: 5\ntransfer-encoding: chunked\n",
            400,
            "invalid_request",
        ),
        ("POST /v1/chat/completions HTTP/1.1\nhost: localhost\ntransfer-encoding: odd\n", 501, "invalid_request"),
        ("GET /.refused HTTP/1.1\nhost: localhost\n", 404, "unknown_url"),
    ],
)
def test_a_request_that_cannot_be_served(edge: NginxServer, request_text: str, status: int, code: str) -> None:
    found, headers, body = ask(connect(edge), request_text)
    assert (found, error_of(body)["code"]) == (status, code)
    assert headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("request_text", "status", "kind", "code"),
    [
        ("TRACE /v1/messages HTTP/1.1\nhost: localhost\n", 405, "invalid_request_error", "method_not_allowed"),
        ("POST /v1/messages HTTP/1.1\nhost: localhost\ncontent-length: x\n", 400, "invalid_request_error", None),
        ("POST /v1/messages?beta=true HTTP/1.1\nhost: localhost\ntransfer-encoding: odd\n", 501, None, None),
        (
            "POST /v1/messages/count_tokens HTTP/1.1\nhost: localhost\ncontent-length: 99999999\n",
            413,
            "request_too_large",
            "request_too_large",
        ),
    ],
)
def test_below_messages_it_has_anthropics_envelope(
    edge: NginxServer, request_text: str, status: int, kind: str | None, code: str | None
) -> None:
    found, headers, body = ask(connect(edge), request_text)
    answer = json.loads(body)
    assert (found, set(answer), answer["type"]) == (status, {"type", "error", "request_id"}, "error")
    error = answer["error"]
    assert set(error) == {"type", "message", "details"}
    assert error["type"] == (kind or "invalid_request_error")
    assert error["details"] == {"error_code": code or "invalid_request"}
    assert answer["request_id"] == headers["request-id"] == headers["x-request-id"]


def test_what_only_begins_like_messages_has_openais(edge: NginxServer) -> None:
    status, headers, body = ask(connect(edge), "TRACE /v1/messages-of-mine HTTP/1.1\nhost: localhost\n")
    assert (status, error_of(body)["code"]) == (405, "method_not_allowed")
    assert "request-id" not in headers


@pytest.mark.parametrize(
    ("line", "status"),
    [("GET  HTTP/9.9", 400), ("nonsense", 400), (f"GET /{'x' * 9_000} HTTP/1.1", 414), ("GET / HTTP/9.9", 505)],
)
def test_a_line_that_is_no_request(edge: NginxServer, line: str, status: int) -> None:
    found, headers, body = ask(connect(edge), f"{line}\n")
    assert found == status
    assert error_of(body)["type"] == "invalid_request_error"
    assert headers["x-request-id"].startswith("req_")


def test_a_gateway_that_is_gone(tmp_path: Path) -> None:
    with NginxServer(tmp_path / "nginx", socket=tmp_path / "nobody.sock") as edge:
        status, headers, body = edge.request("POST", "/v1/chat/completions", {}, key="sk-mh-a")
        assert (status, error_of(body)["type"]) == (502, "server_error")
        assert headers["retry-after"] == "1"
        wait_until(lambda: "/v1/" in edge.access_log.read_text(), "a line of the log")
        (line,) = (json.loads(line) for line in edge.access_log.read_text().splitlines() if "/v1/" in line)
        assert (line["status"], line["path"]) == ("502", "/v1/chat/completions")
        assert line["request_id"] == headers["x-request-id"]


def test_anthropics_sdk_understands_a_gateway_that_is_gone(tmp_path: Path) -> None:
    with NginxServer(tmp_path / "nginx", socket=tmp_path / "nobody.sock") as edge, edge.anthropic("sk-mh-a") as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            client.messages.create(model="fake/normal", max_tokens=5, messages=[{"role": "user", "content": "Hi"}])
        assert (caught.value.status_code, caught.value.type) == (502, "api_error")
        assert (caught.value.request_id or "").startswith("req_")


def test_neither_arguments_nor_keys_are_logged(edge: NginxServer, fleet: ServeProcess) -> None:
    ask(connect(edge), f"TRACE /v1/models?key=canary-7 HTTP/1.1\nhost: localhost\nauthorization: Bearer {fleet.key}\n")
    wait_until(lambda: '"method":"TRACE","path":"/v1/models",' in edge.access_log.read_text(), "a line of the log")
    text = edge.access_log.read_text()
    assert "canary" not in text
    assert fleet.key not in text
