"""Bodies that are too long, whether they say so or not."""

import http.client
import json
from collections.abc import Iterator

from api.asking import error_of
from fakes.gateway import Gateway

LIMIT = 200_000


def ask(gateway: Gateway, body: bytes | Iterator[bytes] | None, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=10)
    sent = {"Authorization": f"Bearer {gateway.key}", "Content-Type": "application/json", **headers}
    connection.request("POST", "/v1/chat/completions", body, sent, encode_chunked="Transfer-Encoding" in headers)
    answer = connection.getresponse()
    status, text = answer.status, answer.read()
    connection.close()
    return status, text


def body_of(length: int) -> bytes:
    empty = json.dumps({"model": "fake/normal", "messages": [{"role": "user", "content": ""}]}).encode()
    return empty.replace(b'""', b'"' + b"x" * (length - len(empty)) + b'"')


def assert_too_large(status: int, body: bytes) -> None:
    error = error_of(body)
    assert (status, error["type"], error["code"]) == (413, "invalid_request_error", "request_too_large")
    assert str(LIMIT) in error["message"]


def test_a_declared_length_over_the_limit_is_refused_before_the_body_is_sent(gateway: Gateway) -> None:
    assert_too_large(*ask(gateway, None, {"Content-Length": str(LIMIT + 1)}))


def test_a_chunked_body_is_refused_when_it_gets_too_long(gateway: Gateway) -> None:
    body = body_of(LIMIT + 1)
    pieces = (body[start : start + 50_000] for start in range(0, len(body), 50_000))
    assert_too_large(*ask(gateway, pieces, {"Transfer-Encoding": "chunked"}))


def test_a_body_just_as_long_as_allowed_is_read(gateway: Gateway) -> None:
    assert ask(gateway, body_of(LIMIT), {})[0] == 200
    assert ask(gateway, iter([body_of(LIMIT)]), {"Transfer-Encoding": "chunked"})[0] == 200


def test_the_limit_holds_for_every_address(gateway: Gateway) -> None:
    status, _, body = gateway.request(
        "POST", "/admin/keys", b'{"name": "' + b"x" * LIMIT + b'"}', key=gateway.admin_key
    )
    assert_too_large(status, body)
