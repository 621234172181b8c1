"""What holds on every wire: where a key may be, how a model may be called, that a wrong kind of model is told."""

import json
from typing import Any

import pytest

from api.asking import error_of
from fakes import scripts
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream

MESSAGES = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/embeddings": {"input": "Hello"},
    "/v1/moderations": {"input": "Hello"},
    "/v1/images/generations": {"prompt": "Hello"},
    "/v1/audio/speech": {"input": "Hello", "voice": "alloy"},
    "/api/chat": {"messages": MESSAGES},
}


@pytest.mark.parametrize("path", BODIES)
def test_a_key_may_be_in_either_header_and_in_both_only_if_it_is_the_same(gateway: Gateway, path: str) -> None:
    body = {"model": "fake/normal", **BODIES[path]}

    def ask(authorization: str | None, key: str | None) -> tuple[int, bytes]:
        headers = {"x-api-key": key} if key else {}
        if authorization:
            headers["Authorization"] = authorization
        status, _, answer = gateway.request("POST", path, body, key="", headers=headers)
        return status, answer

    good = gateway.key
    assert ask(None, good)[0] == 200
    assert ask(f"bearer {good}", good)[0] == 200
    assert ask(None, "sk-mh-test-nothing")[0] == 401
    other = good[:-1] + ("y" if good.endswith("x") else "x")
    for authorization in (f"Bearer {other}", "Basic abc", "Bearer"):
        status, answer = ask(authorization, good)
        assert (status, error_of(answer)["code"]) == (400, "ambiguous_credentials")
        assert good not in answer.decode()


def test_the_pages_of_a_key_take_it_in_either_header(gateway: Gateway) -> None:
    for headers in ({"x-api-key": gateway.key}, {"Authorization": f"Bearer {gateway.key}"}):
        assert gateway.request("GET", "/v1/models", key="", headers=headers)[0] == 200
    status, _, _ = gateway.request("GET", "/v1/models", headers={"x-api-key": "other"})
    assert status == 400


@pytest.mark.parametrize("path", BODIES)
def test_a_models_name_may_have_slashes_and_colons(gateway: Gateway, up: FakeUpstream, path: str) -> None:
    up.script("org/model:tag", scripts.answer)
    status, headers, answer = gateway.request("POST", path, {"model": "fake/org/model:tag", **BODIES[path]})
    assert status == 200, answer
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.model, record.upstream_model) == ("fake/org/model:tag", "org/model:tag")
    status, _, answer = gateway.request("GET", "/v1/models/fake/org/model:tag")
    assert (status, json.loads(answer)["id"]) == (200, "fake/org/model:tag")


@pytest.mark.parametrize("path", BODIES)
def test_only_posts_are_answered(gateway: Gateway, path: str) -> None:
    status, headers, answer = gateway.request("GET", path)
    assert (status, error_of(answer)["code"], headers["allow"]) == (405, "method_not_allowed", "POST")


@pytest.mark.parametrize("path", [path for path in BODIES if path.startswith("/v1/")])
def test_every_wire_is_described(gateway: Gateway, path: str) -> None:
    _, _, answer = gateway.request("GET", "/openapi.json", key="")
    assert json.loads(answer)["paths"][path]["post"]["responses"]["200"]
