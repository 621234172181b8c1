"""What the simple endpoints say when something is wrong: before the answer, and inside it."""

import json
from typing import Any

import pytest

from api.asking import error_of, marked
from fakes.gateway import Gateway

BODIES: list[tuple[str, object, str | None, str]] = [
    ("/chat", {}, "message", "missing_required_parameter"),
    ("/chat", {"message": ""}, "message", "missing_required_parameter"),
    ("/chat", {"message": 5}, "message", "invalid_type"),
    ("/stream", {"temperature": 1}, "message", "missing_required_parameter"),
    ("/chat", {"message": "Hi", "temperature": 2.5}, "temperature", "invalid_value"),
    ("/chat", {"message": "Hi", "max_tokens": 0}, "max_tokens", "invalid_value"),
    ("/chat", {"message": "Hi", "top_p": 1.5}, "top_p", "invalid_value"),
    ("/chat", {"message": "Hi", "n": 2}, "n", "unsupported_value"),
    ("/api/chat", {}, "messages", "missing_required_parameter"),
    ("/api/chat", {"messages": []}, "messages", "invalid_value"),
    ("/api/chat", {"messages": "Hi"}, "messages", "invalid_type"),
    ("/api/chat", b"[1]", None, "invalid_type"),
    ("/api/chat", b"{", None, "invalid_json"),
    ("/stream", b"\xff", None, "invalid_json"),
]


@pytest.mark.parametrize(("path", "body", "param", "code"), BODIES)
def test_a_body_that_cannot_be_used(path: str, body: object, param: str | None, code: str, gateway: Gateway) -> None:
    status, headers, answer = gateway.request("POST", path, body)
    assert (status, headers["content-type"]) == (400, "application/json")
    error = error_of(answer)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize("path", ["/api/chat", "/chat", "/stream"])
def test_without_a_key_nobody_answers(path: str, gateway: Gateway) -> None:
    status, _, answer = gateway.request("POST", path, {"message": "Hi", "messages": []}, key="")
    assert (status, error_of(answer)["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("path", ["/api/chat", "/chat", "/stream"])
def test_a_get_is_not_allowed(path: str, gateway: Gateway) -> None:
    status, headers, answer = gateway.request("GET", path)
    assert (status, headers["allow"]) == (405, "POST")
    assert error_of(answer)["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/chat", "/stream"])
@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("fake/error-500", 502, "upstream_unavailable"),
        ("fake/insufficient-quota", 502, "upstream_account"),
        ("fake/error-401", 502, "upstream_account"),
        ("no-such-model", 404, "model_not_found"),
    ],
)
def test_a_failure_before_the_answer_has_its_status(
    path: str, model: str, status: int, code: str, gateway: Gateway
) -> None:
    found, _, answer = gateway.request("POST", path, {"message": "Hi", "model": model})
    assert (found, error_of(answer)["code"]) == (status, code)


def failed_events(gateway: Gateway, path: str) -> list[str]:
    _, messages = marked()
    body: dict[str, Any] = {"model": "fake/reset", "message": "Hi", "messages": messages}
    status, _, answer = gateway.request("POST", path, body)
    assert status == 200
    return answer.decode().split("\n\n")[:-1]


def test_a_failure_inside_the_answer_is_one_simple_event(gateway: Gateway) -> None:
    *pieces, last = failed_events(gateway, "/api/chat")
    assert all("content" in json.loads(piece.removeprefix("data: ")) for piece in pieces)
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_unavailable"


def test_a_failure_inside_named_events_is_one_named_error(gateway: Gateway) -> None:
    *pieces, last = failed_events(gateway, "/stream")
    assert all(piece.startswith("event: message\n") for piece in pieces)
    name, data = last.split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "upstream_unavailable"
    assert '"done":true' not in "".join(pieces)
