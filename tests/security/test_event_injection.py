"""Injection through an answer (GHSA-4hxc-9384-m385, GHSA-p6xx-57qc-3wxr, CVE-2026-44217): a provider that is hostile.

No field of its answer may become an event, a header or a line of the log of ours; of its headers none is passed on.
"""

import json
from typing import Any

import pytest

from fakes.exchange import Exchange
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from security.raw import Heard, post, say

BREAKS = '\r\n\r\nevent: injected\r\nid: injected\r\ndata: {"injected": true}\r\n\r\n'
LINES = '\n{"event":"request.finished","status":200,"injected":true}\n\x1b[2J\u2028\u2029\x85'
EVIL = f"evil{BREAKS}{LINES}"
HEADERS = {
    "set-cookie": "session=injected",
    "x-accel-redirect": "/admin/keys",
    "x-accel-buffering": "yes",
    "server": "injected",
    "via": "injected",
    "location": "https://injected.example/",
    "refresh": "0; url=https://injected.example/",
    "link": "<https://injected.example/>; rel=preload",
    "access-control-allow-origin": "*",
    "content-security-policy": "injected",
    "content-disposition": "attachment; filename=injected.html",
    "openai-organization": "injected",
    "openai-processing-ms": "injected",
    "x-ratelimit-remaining-requests": "injected",
    "x-should-retry": "injected",
    "x-meterhouse-max-tokens": "injected",
    "alt-svc": "h3=injected.example:443",
    "clear-site-data": "*",
    "trailer": "injected",
}
OURS = {"content-type", "content-length", "transfer-encoding", "date", "x-request-id", "openai-processing-ms"} | {
    *("openai-version", "openai-organization", "cache-control", "x-accel-buffering", "connection", "retry-after"),
    *("retry-after-ms", "x-should-retry", "www-authenticate"),
}


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "id": EVIL,
        "object": EVIL,
        "created": 1,
        "model": EVIL,
        "system_fingerprint": EVIL,
        "service_tier": EVIL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **more,
    }


def spelled(value: dict[str, Any]) -> bytes:
    """One event as a provider may spell it: fields that are not ours, and JSON on several lines."""
    lines = json.dumps(value, indent=1).splitlines()
    data = "\n".join(f"data: {line}" for line in lines)
    return f"event: injected\nid: injected\nretry: 1\n: injected\ninjected: x\n{data}\n\n".encode()


async def stream(x: Exchange) -> None:
    await x.head(200, {"content-type": "text/event-stream", **HEADERS})
    await x.token(spelled(chunk({"role": EVIL, "content": EVIL, "reasoning_content": EVIL, EVIL: EVIL})), "text")
    await x.emit(spelled(chunk({}, EVIL)))
    await x.emit(b"event: injected\ndata: [DONE]\n\n")
    await x.emit(b'data: {"injected": true}\n\n')
    await x.end()


async def whole(x: Exchange) -> None:
    message = {"role": "assistant", "content": EVIL, "refusal": EVIL}
    choices = [{"index": 0, "message": message, "finish_reason": EVIL}]
    await x.whole(200, "text/html; injected=1", json.dumps(chunk({}) | {"choices": choices}).encode(), HEADERS)


async def refuse(x: Exchange) -> None:
    error = {"message": EVIL, "type": EVIL, "param": EVIL, "code": EVIL}
    headers = {"retry-after": "1\x0binjected", **HEADERS}
    await x.whole(int(x.plan.code or 400), "text/html", json.dumps({"error": error}).encode(), headers)


async def fail(x: Exchange) -> None:
    await x.head(200, {"content-type": "text/event-stream", **HEADERS})
    await x.token(spelled(chunk({"content": "Hi"})), "text")
    await x.emit(spelled({"error": {"message": EVIL, "type": EVIL, "code": EVIL}}))
    await x.end()


@pytest.fixture(scope="module", autouse=True)
def _scripts(up: FakeUpstream) -> None:
    for name, script in {"stream": stream, "whole": whole, "refuse": refuse, "fail": fail}.items():
        up.script(f"evil-{name}", script)


def ask(gateway: Gateway, model: str, path: str = "/v1/chat/completions", **fields: Any) -> Heard:
    body = json.dumps({"model": f"fake/evil-{model}", "messages": [{"role": "user", "content": "Hi"}], **fields})
    head = post(gateway.key, b"content-length: %d" % len(body), b"connection: close")
    return say(gateway, head.replace(b"/v1/chat/completions", path.encode()) + b"\r\n" + body.encode(), 5)


def unchunked(heard: Heard) -> tuple[dict[str, str], bytes]:
    """Return the headers, and the body without its framing."""
    head, _, rest = heard.data.partition(b"\r\n\r\n")
    lines = [line.decode().partition(": ") for line in head.split(b"\r\n")[1:]]
    headers = {name.lower(): value for name, _, value in lines}
    assert len(headers) == len(lines), "a header is there twice"
    if headers.get("transfer-encoding") != "chunked":
        return headers, rest
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return headers, body


def check_headers(headers: dict[str, str]) -> None:
    assert set(headers) <= OURS, set(headers) - OURS
    assert "injected" not in str(headers)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/stream"])
@pytest.mark.parametrize("model", ["stream", "fail"])
def test_a_stream_has_no_event_but_ours(gateway: Gateway, path: str, model: str) -> None:
    heard = ask(gateway, model, path, stream=True)
    assert heard.statuses == [200]
    headers, body = unchunked(heard)
    check_headers(headers)
    for text in body.decode().split("\n"):
        assert text == "" or text.startswith("data: ") or text in {"event: message", "event: error"}, text
        assert "\r" not in text
    payloads = [line.removeprefix("data: ") for line in body.decode().split("\n") if line.startswith("data: ")]
    found = [json.loads(payload) for payload in payloads if payload != "[DONE]"]
    assert all(set(value) & {"choices", "content", "error", "reasoning_content", "done"} for value in found)
    assert not any("injected" in value for value in found)
    if model == "stream" and path == "/v1/chat/completions":
        assert found[0]["choices"][0]["delta"]["content"] == EVIL, "the text itself is the caller's, word for word"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat"])
def test_a_body_has_no_header_but_ours(gateway: Gateway, path: str) -> None:
    headers, body = unchunked(ask(gateway, "whole", path))
    check_headers(headers)
    assert headers["content-type"] == "application/json"
    assert EVIL in _texts(json.loads(body))


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 302])
def test_an_error_is_one_line_in_our_envelope(gateway: Gateway, status: int) -> None:
    heard = ask(gateway, f"refuse?code={status}")
    headers, body = unchunked(heard)
    check_headers(headers)
    error = json.loads(body)["error"]
    for value in error.values():
        assert not set(str(value)) & set("\r\n\x1b\x85\u2028\u2029")


def test_no_line_of_the_log_is_theirs(gateway: Gateway) -> None:
    for model in ("stream", "whole", "refuse", "fail"):
        ask(gateway, model, stream=model in {"stream", "fail"})
    text = gateway.log_path.read_bytes().decode()
    for line in text.split("\n")[:-1]:
        assert "injected" not in json.loads(line)
        assert not set(line) & set("\r\x1b\x85\u2028\u2029"), "nothing moves the cursor of whoever reads the log"
    page = gateway.request("GET", "/metrics")[2].decode()
    assert all(line.startswith(("#", "meterhouse_", "gen_ai_", "python_", "process_")) for line in page.splitlines())


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []
