"""A streamed answer: its events in order, the provider's own bytes, usage when it was asked for."""

import json
import socket
from urllib.parse import urlsplit

import pytest

from api.asking import Capture, chunks_of, error_of, events_of, marked, text_of
from fakes.exchange import Exchange
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from fakes.words import answer_text

ASKED = {"include_usage": True}
USAGE_PLACES = (
    "usage-choices",
    "usage-always",
    "usage-finish",
    "usage-kimi",
    "usage-groq",
    "usage-running",
    "usage-duplicated",
    "usage-zero-copy",
    "usage-deepseek",
    "usage-cached",
)


def stream(gateway: Gateway, model: str, **fields: object) -> tuple[dict[str, str], bytes]:
    status, headers, body = gateway.chat(model, stream=True, **fields)
    assert status == 200, body
    return headers, body


def test_the_events_come_in_order_and_nothing_else_does(gateway: Gateway) -> None:
    marker, messages = marked()
    _, body = stream(gateway, "fake/normal?tokens=3", messages=messages)
    *chunks, done = events_of(body)
    rows = [json.loads(chunk)["choices"][0] for chunk in chunks]
    words = [{"content": answer_text(marker, count + 1)[len(answer_text(marker, count)) :]} for count in range(3)]
    assert [row["delta"] for row in rows] == [{"role": "assistant", "content": ""}, *words, {}]
    assert [row["finish_reason"] for row in rows] == [None] * 4 + ["stop"]
    assert done == b"[DONE]"


def test_all_chunks_carry_one_id_one_date_and_the_asked_model(gateway: Gateway) -> None:
    chunks = chunks_of(stream(gateway, "fake/normal?tokens=3", stream_options=ASKED)[1])
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["model"] for chunk in chunks} == {"fake/normal?tokens=3"}
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1


def test_the_headers_are_those_of_an_event_stream(gateway: Gateway) -> None:
    headers, _ = stream(gateway, "fake/normal")
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert "content-length" not in headers
    assert headers["x-request-id"].startswith("req_")
    assert headers["openai-processing-ms"].isdecimal()


def test_the_payloads_are_the_bytes_of_the_provider(gateway: Gateway, up: FakeUpstream) -> None:
    payloads = [
        b'{ "x":1,"id":"c" , "choices":[ {"delta":{"content":"\\u00e9\\/ ","x_new":[1.50]},"index":0} ],"created":7}',
        '{"choices":[{"index":0,"delta":{"content":"é 😀"},"finish_reason":null}],"model":"raw-events"}'.encode(),
        b'{"obfuscation":"aXf","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"id":"c"}',
    ]

    async def run(x: Exchange) -> None:
        await x.head(200, {"content-type": "text/event-stream"})
        for payload in payloads:
            await x.emit(b"id: 3\nevent: message\nretry: 9\n: comment\ndata: " + payload + b"\n\n")
        await x.emit(b"data: [DONE]\n\n")
        await x.end()

    up.script("raw-events", run)
    expected = [payloads[0], payloads[1].replace(b'"raw-events"', b'"fake/raw-events"'), payloads[2], b"[DONE]"]
    assert events_of(stream(gateway, "fake/raw-events")[1]) == expected


@pytest.mark.parametrize("model", ["half-chunks", "crlf", "half-chunks-crlf", "batched", "one-write", "sse-bare"])
def test_how_the_provider_cuts_its_bytes_does_not_show(gateway: Gateway, model: str) -> None:
    marker, messages = marked()
    chunks = chunks_of(stream(gateway, f"fake/{model}?tokens=5", messages=messages)[1])
    assert text_of(chunks) == answer_text(marker, 5)


def test_what_comes_with_the_end_leaves_with_it_in_one_chunk(gateway: Gateway) -> None:
    """Only the record is waited for between the two, and a write to a socket is dear. A slow disk sets them apart."""
    marker, messages = marked()
    body = json.dumps({"model": "fake/one-write?tokens=5", "messages": messages, "stream": True})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {gateway.key}\r\n"
    parts = urlsplit(gateway.url)
    for _ in range(20):
        with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
            connection.sendall(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
            raw = b"".join(iter(lambda: connection.recv(65_536), b""))
        size, _, rest = raw.partition(b"\r\n\r\n")[2].partition(b"\r\n")
        if rest[int(size, 16) :] == b"\r\n0\r\n\r\n":
            break
    assert rest[int(size, 16) :] == b"\r\n0\r\n\r\n"
    assert text_of(chunks_of(rest[: int(size, 16)])) == answer_text(marker, 5)


@pytest.mark.parametrize("model", ["comments", "sse-fields", "sse-split", "openrouter"])
def test_comments_and_other_fields_of_the_provider_are_dropped(gateway: Gateway, model: str) -> None:
    marker, messages = marked()
    _, body = stream(gateway, f"fake/{model}?tokens=5&reasoning=0", messages=messages)
    assert text_of(chunks_of(body)) == answer_text(marker, 5)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_passed_on_under_the_providers_name(gateway: Gateway, field: str) -> None:
    chunks = chunks_of(stream(gateway, f"fake/reasoning?tokens=2&field={field}")[1])
    thoughts = [row["delta"][field] for chunk in chunks for row in chunk["choices"] if field in row["delta"]]
    assert len(thoughts) == 8


@pytest.mark.parametrize("model", USAGE_PLACES)
def test_no_usage_chunk_comes_unasked(gateway: Gateway, model: str) -> None:
    for options in ({}, {"stream_options": {"include_usage": False}}, {"stream_options": {}}):
        chunks = chunks_of(stream(gateway, f"fake/{model}?tokens=3", **options)[1])
        assert all(chunk["choices"] for chunk in chunks)


@pytest.mark.parametrize("model", [*USAGE_PLACES, "usage-missing"])
def test_one_usage_chunk_comes_last_when_asked_wherever_the_provider_put_it(gateway: Gateway, model: str) -> None:
    headers, body = stream(gateway, f"fake/{model}?tokens=6", stream_options=ASKED)
    *chunks, last = chunks_of(body)
    (record,) = gateway.records(headers["x-request-id"])
    assert all(chunk["choices"] for chunk in chunks)
    assert (last["choices"], last["model"]) == ([], f"fake/{model}?tokens=6")
    usage = last["usage"]
    assert usage["prompt_tokens"] == record.usage.input_tokens
    assert usage["completion_tokens"] == record.usage.output_tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("model", ["usage-negative", "usage-huge", "usage-text", "usage-zero-copy"])
def test_a_usage_that_cannot_be_true_is_replaced_by_the_one_that_is_charged(gateway: Gateway, model: str) -> None:
    _, body = stream(gateway, f"fake/{model}?tokens=6", stream_options=ASKED)
    *chunks, last = chunks_of(body)
    assert all(chunk["choices"] for chunk in chunks)
    assert last["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_obfuscation": False}])
def test_usage_is_always_asked_of_the_provider(gateway: Gateway, capture: Capture, options: object) -> None:
    marker, messages = marked()
    fields = {} if options == {} else {"stream_options": options}
    stream(gateway, "fake/capture?tokens=2", messages=messages, **fields)
    sent = capture.body(marker)["stream_options"]
    assert sent["include_usage"] is True
    assert sent.get("include_obfuscation") == (options or {}).get("include_obfuscation")  # type: ignore[attr-defined]


def test_an_answer_that_is_not_streamed_sends_no_stream_options(gateway: Gateway, capture: Capture) -> None:
    marker, messages = marked()
    gateway.chat("fake/capture", messages=messages, stream=False)
    assert "stream_options" not in capture.body(marker)


def test_several_choices_are_told_apart_by_their_index(gateway: Gateway) -> None:
    marker, messages = marked()
    chunks = chunks_of(stream(gateway, "fake/normal?tokens=4", messages=messages, n=2, stream_options=ASKED)[1])
    assert [text_of(chunks, index) for index in range(2)] == [answer_text(marker, 4, index) for index in range(2)]
    finished = [row["index"] for chunk in chunks for row in chunk["choices"] if row["finish_reason"]]
    assert finished == [0, 1]
    assert chunks[-1]["usage"]["completion_tokens"] == 8


def test_a_tool_call_is_passed_on_piece_by_piece(gateway: Gateway) -> None:
    marker, messages = marked()
    chunks = chunks_of(stream(gateway, "fake/tools-two?tokens=3", messages=messages)[1])
    arguments = ["", ""]
    for chunk in chunks:
        for call in chunk["choices"][0]["delta"].get("tool_calls", ()):
            arguments[call["index"]] += call["function"]["arguments"]
    assert [json.loads(text) for text in arguments] == [{"text": answer_text(marker, 3)}] * 2
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_answer_ends_although_the_provider_sends_no_done(gateway: Gateway) -> None:
    for model in ("done-missing", "eof-after-finish", "finish-then-reset"):
        chunks = chunks_of(stream(gateway, f"fake/{model}?tokens=2")[1])
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("error-mid", "upstream_unavailable"),
        ("error-mid-done", "upstream_unavailable"),
        ("error-mid-event", "upstream_unavailable"),
        ("error-mid-openrouter", "upstream_unavailable"),
        ("reset", "upstream_unavailable"),
        ("reset-mid-chunk", "upstream_unavailable"),
        ("closed-early", "upstream_unavailable"),
        ("eof-early", "upstream_stream_ended"),
        ("eof-early-done", "upstream_stream_ended"),
        ("finish-missing", "upstream_stream_ended"),
        ("ollama-v1-failure", "upstream_stream_ended"),
        ("garbage-not-json", "upstream_protocol_error"),
    ],
)
def test_a_failure_in_mid_stream_is_one_error_event_and_no_done(gateway: Gateway, model: str, code: str) -> None:
    # A pause, so that the first tokens are forwarded before the failure comes.
    headers, body = stream(gateway, f"fake/{model}?pace_ms=5")
    *chunks, last = events_of(body)
    error = error_of(last)
    assert (error["type"], error["code"]) == ("upstream_error", code)
    assert chunks
    assert all("error" not in json.loads(chunk) for chunk in chunks)
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.outcome, record.error_code) == ("upstream_failed", code)


def test_a_flat_error_in_mid_stream_becomes_an_envelope(gateway: Gateway) -> None:
    _, body = stream(gateway, "fake/error-mid-flat?pace_ms=5")
    *_, last = events_of(body)
    assert error_of(last)["type"] == "upstream_error"


def test_what_the_provider_sends_after_the_finish_is_still_passed_on(gateway: Gateway, up: FakeUpstream) -> None:
    finish = b'{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}],"id":"c"}'
    late = b'{"choices":[{"index":0,"delta":{"annotations":[{"type":"url_citation"}]},"finish_reason":null}],"id":"c"}'

    async def run(x: Exchange) -> None:
        await x.head(200, {"content-type": "text/event-stream"})
        for payload in (finish, late, b"[DONE]"):
            await x.emit(b"data: " + payload + b"\n\n")
        await x.end()

    up.script("late-delta", run)
    assert events_of(stream(gateway, "fake/late-delta")[1]) == [finish, late, b"[DONE]"]


def test_a_stream_without_a_role_or_with_azures_first_event_is_passed_on(gateway: Gateway, up: FakeUpstream) -> None:
    for model in ("no-role", "azure"):
        marker, messages = marked()
        chunks = chunks_of(stream(gateway, f"fake/{model}?tokens=3", messages=messages)[1])
        assert text_of(chunks) == answer_text(marker, 3)
