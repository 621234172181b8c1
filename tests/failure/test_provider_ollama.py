"""Ollama's native wire: lines of JSON from ``/api/chat``, against the ground truth and as OpenAI's events."""

import json
import re
from typing import Any

import pytest

from failure.bench import Bench, charge_of, new_marker, wait_for
from failure.raw_client import Client, said_by
from fakes.plan import PRESETS
from fakes.truth import Attempt
from fakes.upstream import FakeUpstream
from fakes.words import answer_text
from meterhouse.usage import Exactness, Outcome, UsageRecord


def settings(up: FakeUpstream) -> dict[str, str]:
    return {
        "METERHOUSE_PROVIDER_OLLAMA_BASE_URL": up.ollama_url,
        "METERHOUSE_FIRST_TOKEN_TIMEOUT_SECONDS": "0.7",
        "METERHOUSE_IDLE_TIMEOUT_SECONDS": "0.7",
        "METERHOUSE_TOTAL_TIMEOUT_SECONDS": "2",
    }


def play(bench: Bench, script: str, **fields: Any) -> tuple[Client, UsageRecord, Attempt]:
    """Ask Ollama for a script that has a price; returns the answer, its one record and the provider's view of it."""
    marker = new_marker()
    bench.set_prices([script], provider="ollama")
    client = bench.send(f"ollama/{script}", marker, **fields).read_all()
    assert client.is_whole
    (record,) = bench.records_of(client)
    attempt = bench.attempt_of(marker)
    assert attempt.request["path"] == "/api/chat"
    assert record.charge_nanos == charge_of(record.usage.input_tokens, record.usage.output_tokens)
    return client, record, attempt


def words(text: str) -> int:
    return len(re.findall(r" [a-z]+", text))


@pytest.mark.parametrize(
    "script", ["normal", "reasoning", "half-chunks", "unframed", "paced?duration_ms=200", "batched"]
)
@pytest.mark.parametrize("is_streamed", [True, False])
def test_reported_counts_are_the_truth(script: str, is_streamed: bool, bench: Bench) -> None:
    asked = {"stream_options": {"include_usage": True}} if is_streamed else {"stream": False}
    client, record, attempt = play(bench, script, **asked)
    assert (record.outcome, record.exactness) == (Outcome.COMPLETED, Exactness.REPORTED)
    assert (record.usage.input_tokens, record.usage.output_tokens) == (attempt.prompt_tokens, attempt.tokens)
    if is_streamed:
        assert client.has_done
        assert client.finish_reasons == ["stop"]
        text, usage = client.text, client.chunks[-1]["usage"]
    else:
        body = json.loads(client.body)
        text, usage = said_by(body["choices"][0]["message"]), body["usage"]
    assert words(text) == attempt.tokens
    assert usage["prompt_tokens"] == attempt.prompt_tokens
    assert usage["completion_tokens"] == attempt.tokens


def test_the_answer_is_word_for_word_what_ollama_said(bench: Bench) -> None:
    client, _, attempt = play(bench, "normal?tokens=30")
    assert client.text == answer_text(attempt.marker, 30)
    assert {chunk["model"] for chunk in client.chunks} == {"ollama/normal?tokens=30"}


@pytest.mark.parametrize("script", ["usage-missing", "usage-zero"])
@pytest.mark.parametrize("is_streamed", [True, False])
def test_counts_that_are_left_out_are_counted_and_shown(script: str, is_streamed: bool, bench: Bench) -> None:
    asked = {"stream_options": {"include_usage": True}} if is_streamed else {"stream": False}
    client, record, attempt = play(bench, script, **asked)
    assert (record.outcome, record.exactness) == (Outcome.COMPLETED, Exactness.COUNTED)
    assert record.usage.output_tokens == attempt.tokens
    assert 0 < record.usage.input_tokens < 3 * attempt.prompt_tokens
    usage = client.chunks[-1]["usage"] if is_streamed else json.loads(client.body)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (
        record.usage.input_tokens,
        record.usage.output_tokens,
    )


@pytest.mark.parametrize("script", ["usage-negative", "usage-huge"])
def test_counts_that_cannot_be_true_are_counted_and_marked(script: str, bench: Bench) -> None:
    client, record, attempt = play(bench, script)
    assert client.has_done
    assert record.is_suspect
    assert (record.exactness, record.usage.output_tokens) == (Exactness.COUNTED, attempt.tokens)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_tool_call_arrives_whole_with_its_reason(is_streamed: bool, bench: Bench) -> None:
    client, record, attempt = play(bench, "tools-two", stream=is_streamed)
    if is_streamed:
        (calls,) = [
            row["delta"]["tool_calls"] for c in client.chunks for row in c["choices"] if "tool_calls" in row["delta"]
        ]
        assert client.finish_reasons == ["tool_calls"]
        assert client.has_done
    else:
        choice = json.loads(client.body)["choices"][0]
        calls = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls"
    assert [call["function"]["name"] for call in calls] == ["tool_0", "tool_1"]
    expected = {"text": answer_text(attempt.marker, 20)}
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [expected] * 2
    assert len({call["id"] for call in calls}) == 2
    assert (record.exactness, record.usage.output_tokens) == (Exactness.REPORTED, attempt.tokens)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("error-mid", "upstream_unavailable"),
        ("eof-early", "upstream_stream_ended"),
        ("finish-missing", "upstream_stream_ended"),
        ("reset", "upstream_unavailable"),
        ("eof-mid-event", "upstream_unavailable"),
        ("garbage-not-json", "upstream_unavailable"),
        ("garbage-long-line", "upstream_unavailable"),
        ("stall", "upstream_timeout"),
    ],
)
def test_a_stream_that_breaks_is_an_error_event_and_counted(script: str, code: str, bench: Bench) -> None:
    client, record, attempt = play(bench, script)
    assert client.status == 200
    assert client.error is not None
    assert client.error["code"] == code
    assert [chunk for chunk in client.chunks if "error" in chunk] == [client.chunks[-1]]
    assert not client.has_done
    assert client.finish_reasons == []
    assert (record.outcome, record.exactness) == (Outcome.UPSTREAM_FAILED, Exactness.COUNTED)
    assert record.error_owner == "provider"
    assert words(client.text) <= record.usage.output_tokens <= attempt.tokens


@pytest.mark.parametrize(
    ("script", "status"),
    [("error-500", 502), ("error-400", 400), ("error-404", 404), ("error-first", 502), ("eof-after-head", 502)],
)
@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_failure_before_the_answer_has_a_status_and_no_charge(
    script: str, status: int, is_streamed: bool, bench: Bench
) -> None:
    client, record, _ = play(bench, script, stream=is_streamed)
    assert client.status == status
    assert client.error is not None
    assert record.outcome is (Outcome.REFUSED if status < 500 else Outcome.UPSTREAM_FAILED)
    assert (record.usage.total_tokens, record.charge_nanos) == (0, 0)


@pytest.mark.parametrize("script", ["error-mid", "eof-early", "reset", "garbage-not-json", "html-200"])
def test_a_body_that_is_broken_is_never_passed_on(script: str, bench: Bench) -> None:
    client, record, _ = play(bench, script, stream=False)
    assert client.status == 502
    assert (record.outcome, record.charge_nanos) == (Outcome.UPSTREAM_FAILED, 0)


def test_the_bound_goes_out_as_num_predict_and_ends_the_answer(bench: Bench) -> None:
    client, record, attempt = play(bench, "normal?tokens=50", max_completion_tokens=7)
    assert attempt.request["options"]["num_predict"] == 7
    assert client.finish_reasons == ["length"]
    assert record.usage.output_tokens == attempt.tokens == 7


def test_an_answer_without_a_bound_gets_the_rows_own(bench: Bench) -> None:
    _, record, attempt = play(bench, "infinite?pace_ms=0")
    assert attempt.request["options"]["num_predict"] == 512
    assert record.usage.output_tokens == attempt.tokens == 512


def test_the_models_that_ollama_has_are_listed_and_can_be_asked_for_by_their_names(bench: Bench) -> None:
    def list_owned() -> set[str]:
        status, _, body = bench.gateway.request("GET", "/v1/models")
        assert status == 200
        return {model["id"] for model in json.loads(body)["data"] if model["owned_by"] == "ollama"}

    wait_for(list_owned)
    assert list_owned() == set(PRESETS)
    marker = new_marker()
    client = bench.send("slow-first-token", marker).read_all()
    assert client.text == answer_text(marker, 20)
    assert [row.provider for row in bench.records_of(client)] == ["ollama"]
