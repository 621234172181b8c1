"""What the ledger says of answers on the messages wire, also where they end otherwise than they should."""

import time
from typing import Any

import anthropic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.messages.asking import Wires, events_of, marked
from fakes import scripts
from fakes.exchange import Exchange
from fakes.gateway import Gateway
from meterhouse.usage import Exactness, Outcome, UsageRecord

LIMITS = "concurrent 50; tokens 10000000 total"


def record_of_key(gateway: Gateway, key_id: str) -> UsageRecord:
    """Wait until the one request of a key is settled and return its record."""
    deadline = time.monotonic() + 60
    while True:
        rows = [row for row in gateway.all_records() if row["key_id"] == key_id]
        if rows:
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ledger = gateway.parts.stores.ledger
    (record,) = gateway.run(lambda: ledger.find_records(rows[0]["request_id"]))
    return record


def test_a_client_that_leaves_pays_what_was_said(gateway: Gateway, wires: Wires, row: str) -> None:
    marker, messages = marked()
    key_id, key = gateway.new_key_of(LIMITS)
    with anthropic.Anthropic(base_url=gateway.url, api_key=key, max_retries=0) as client:
        asked: Any = {"model": f"{row}/normal?tokens=40&gate=20", "max_tokens": 100, "messages": messages}
        stream = client.messages.create(**asked, stream=True)
        wires._up.truth.wait_for(lambda truth: any(attempt.is_held for attempt in truth.by_marker(marker)))
        stream.close()
    record = record_of_key(gateway, key_id)
    assert (record.outcome, record.exactness) == (Outcome.CLIENT_GONE, Exactness.COUNTED)
    attempt = wires.attempt(marker)
    assert attempt.tokens == 20
    assert record.usage.output_tokens == 20 + (row == "anthropic")
    if row == "anthropic":
        assert record.usage.input_tokens == attempt.prompt_tokens
    assert [limit["reserved"] for limit in gateway.limits(key)] == [0, 0]


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_budget_ends_an_answer_as_its_bound_would(gateway: Gateway, row: str, is_streamed: bool) -> None:
    key_id, key = gateway.new_key_of("tokens 4000 total")
    body = {"model": f"{row}/long", "max_tokens": 100_000, "messages": marked()[1], "stream": is_streamed}
    status, headers, answer = gateway.request("POST", "/v1/messages", body, key=key)
    assert status == 200, answer
    assert int(headers["x-meterhouse-max-tokens"]) < 4_000
    record = record_of_key(gateway, key_id)
    assert record.usage.total_tokens <= 4_000
    if is_streamed:
        *_, delta, stop = events_of(answer)
        assert (delta["delta"]["stop_reason"], stop["type"]) == ("max_tokens", "message_stop")
        assert delta["usage"]["output_tokens"] == record.usage.output_tokens
        blocks = [event["type"] for event in events_of(answer) if event["type"].startswith("content_block_st")]
        assert blocks == ["content_block_start", "content_block_stop"]


async def disobey(exchange: Exchange) -> None:
    """Go on beyond the bound that was asked for."""
    wire = scripts.open_wire(exchange)
    wire.limit = None
    await scripts.stream(exchange, wire)


@pytest.mark.parametrize("batch", [5, 3_000])
def test_an_answer_is_cut_where_its_hold_ends_and_ends_as_it_should(
    gateway: Gateway, wires: Wires, row: str, batch: int
) -> None:
    wires._up.script("disobeys", disobey)
    key_id, key = gateway.new_key_of("tokens 3000 total")
    body = {
        "model": f"{row}/disobeys?tokens=3000&batch={batch}",
        "max_tokens": 2_500,
        "messages": marked()[1],
        "stream": True,
    }
    status, headers, answer = gateway.request("POST", "/v1/messages", body, key=key)
    assert (status, headers["x-meterhouse-max-tokens"]) == (200, "1024")
    events = events_of(answer)
    kinds = [event["type"] for event in events if event["type"] not in {"ping", "content_block_delta"}]
    # A read that is beyond the hold is not forwarded; the first one can be that, also of many small events.
    block = ["content_block_start", "content_block_stop"] if "content_block_start" in kinds else []
    assert kinds == ["message_start", *block, "message_delta", "message_stop"]
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"
    record = record_of_key(gateway, key_id)
    assert record.outcome is Outcome.CUT
    assert record.usage.output_tokens == events[-2]["usage"]["output_tokens"] <= 1_024
    assert [limit["reserved"] for limit in gateway.limits(key)] == [0]


ANSWERS = st.fixed_dictionaries(
    {
        "row": st.sampled_from(["fake", "anthropic"]),
        "is_streamed": st.booleans(),
        "script": st.sampled_from(["normal", "tools-two", "reasoning", "usage-cached", "half-chunks"]),
        "tokens": st.integers(1, 30),
        "max_tokens": st.integers(1, 60),
        "cut": st.sampled_from([0, 7, 61]),
    }
)


@given(ANSWERS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_ledger_is_the_ground_truth(gateway: Gateway, wires: Wires, answer: dict[str, Any]) -> None:
    marker, messages = marked()
    if answer["script"] == "tools-two":
        answer["max_tokens"] = 60  # arguments that were cut off are no JSON, and no whole body can carry them
    model = f"{answer['row']}/{answer['script']}?tokens={answer['tokens']}&cut={answer['cut']}"
    body = {"model": model, "max_tokens": answer["max_tokens"], "messages": messages, "stream": answer["is_streamed"]}
    status, headers, said = gateway.request("POST", "/v1/messages", body)
    assert status == 200, said
    record, attempt = wires.record(headers["request-id"]), wires.attempt(marker)
    assert (record.outcome, record.exactness) == (Outcome.COMPLETED, Exactness.REPORTED)
    assert (record.usage.input_tokens, record.usage.output_tokens) == (attempt.prompt_tokens, attempt.tokens)
