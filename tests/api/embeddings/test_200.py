"""Embeddings: passed through, encoded as asked for, metered and recorded like every answer."""

import base64
import json
import struct
from typing import Any

import pytest

from api.asking import Tenant
from fakes.endpoints import vector
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from meterhouse.usage import Exactness, Outcome


def embed(gateway: Gateway, key: str | None = None, **fields: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    body = {"model": "fake/normal", "input": "Hello there", **fields}
    status, headers, answer = gateway.request("POST", "/v1/embeddings", body, key=key)
    return status, headers, json.loads(answer)


def unpack(text: str) -> list[float]:
    data = base64.b64decode(text)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def test_the_answer_is_the_providers_under_the_asked_name(gateway: Gateway) -> None:
    status, headers, answer = embed(gateway, input=["one", "two"])
    assert (status, headers["content-type"]) == (200, "application/json")
    assert answer == {
        "object": "list",
        "model": "fake/normal",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector(text)}
            for index, text in enumerate(["one", "two"])
        ],
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }


@pytest.mark.parametrize("gives", ["float", "base64", "reasoning_content"])
@pytest.mark.parametrize("asks", ["float", "base64", None])
def test_vectors_come_as_asked_for_however_the_provider_gives_them(gateway: Gateway, asks: str, gives: str) -> None:
    fields = {"encoding_format": asks} if asks else {}
    _, _, answer = embed(gateway, model=f"fake/normal?field={gives}", input=["one", "two"], **fields)
    vectors = [row["embedding"] for row in answer["data"]]
    if asks == "base64":
        vectors = [unpack(text) for text in vectors]
    assert vectors == [vector("one"), vector("two")]
    assert answer["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize(("given", "tokens"), [("a b c", 3), (["a b", "c"], 3), ([5, 6, 7], 3), ([[5, 6], [7, 8]], 4)])
def test_every_form_of_input_reaches_the_provider_and_the_ledger(gateway: Gateway, given: Any, tokens: int) -> None:
    status, headers, _ = embed(gateway, input=given)
    assert status == 200
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.operation, record.usage.input_tokens, record.usage.output_tokens) == ("embeddings", tokens, 0)
    assert (record.outcome, record.exactness, record.is_streamed) == (Outcome.COMPLETED, Exactness.REPORTED, False)


def test_dimensions_and_the_tenant_go_upstream(gateway: Gateway, up: FakeUpstream) -> None:
    _, _, answer = embed(gateway, dimensions=2, user="u1", input="x marker=emb-dim")
    assert len(answer["data"][0]["embedding"]) == 2
    (attempt,) = up.truth.by_marker("emb-dim")
    assert attempt.request["path"] == "/v1/embeddings"
    assert attempt.request["user"].startswith("mh-")
    assert attempt.request["user"].endswith("-u1")


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_what_no_provider_reports_is_counted_and_told(gateway: Gateway, encoding: str) -> None:
    _, headers, answer = embed(gateway, model="fake/normal?usage=none", input=["apple river", "stone"])
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.exactness, record.usage.input_tokens) == (Exactness.COUNTED, 3)


def test_a_budget_holds_a_token_for_each_byte_and_is_charged_what_was_used(gateway: Gateway) -> None:
    gateway.set_price("fake", "normal?tokens=3", "2", "8")
    tenant = Tenant(gateway, limits="spend 0.0001 USD total")
    status, headers, _ = embed(gateway, tenant.key, model="fake/normal?tokens=3", input="one two three")
    assert status == 200
    assert "x-meterhouse-max-tokens" not in headers
    (record,) = gateway.records(headers["x-request-id"])
    assert record.charge_nanos == 3 * 2_000
    (limit,) = gateway.limits(tenant.key)
    assert (limit["spent"], limit["reserved"]) == (6_000, 0)
    # 29 bytes and 16 for the entry, at 2,000 nanos each, do not fit into what is left.
    status, _, answer = embed(gateway, tenant.key, model="fake/normal?tokens=3", input="x" * 32)
    assert (status, answer["error"]["code"]) == (429, "insufficient_quota")


def test_the_simulator_embeds_equal_texts_alike(gateway: Gateway) -> None:
    _, headers, answer = embed(gateway, model="simulator", input=["a", "b", "a"])
    first, second, third = (row["embedding"] for row in answer["data"])
    assert first == third != second
    assert len(first) == 256
    assert sum(number * number for number in first) == pytest.approx(1)
    (record,) = gateway.records(headers["x-request-id"])
    assert record.usage.input_tokens == 3
