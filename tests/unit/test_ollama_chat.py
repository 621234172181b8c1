"""OpenAI's chat completions over Ollama's wire, in both directions, however the bytes are cut."""

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.errors import Malformed, UpstreamDown
from meterhouse.translate.ollama_chat import (
    MAX_LINE_BYTES,
    OllamaChatStream,
    from_ollama_response,
    new_call_id,
    to_ollama_request,
)

CALL_OF_NO_TEXT = b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":{"x":"\xff"}}}]},"done":true}'


def request(is_streamed: bool = True, **fields: object) -> dict:
    body = {"model": "asked", "messages": [{"role": "user", "content": "hi"}], **fields}
    out = to_ollama_request(
        json.dumps(body).encode(), upstream_model="llama3.2", is_streamed=is_streamed, default_max_tokens=512
    )
    return json.loads(out)


def user(*parts: dict) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def test_a_plain_request_has_the_upstream_model_and_a_bound():
    assert request() == {
        "model": "llama3.2",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "options": {"num_predict": 512},
    }
    assert request(is_streamed=False)["stream"] is False


def test_parameters_become_options():
    out = request(
        max_completion_tokens=7,
        max_tokens=9,
        temperature=0,
        top_p=0.5,
        top_k=40,
        min_p=0.1,
        seed=3,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        stop="END",
    )
    assert out["options"] == {
        "num_predict": 7,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 40,
        "min_p": 0.1,
        "seed": 3,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repeat_penalty": 1.1,
        "stop": ["END"],
    }
    assert request(max_tokens=9, stop=["a", "b"])["options"] == {"num_predict": 9, "stop": ["a", "b"]}


def test_a_caller_does_not_size_the_server():
    out = request(options={"num_ctx": 10**6, "num_predict": 10**6}, num_ctx=10**6, keep_alive=-1)
    assert out["options"] == {"num_predict": 512}
    assert "keep_alive" not in out


@pytest.mark.parametrize(
    ("effort", "think"), [("none", False), ("minimal", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "max")]
)
def test_reasoning_effort_becomes_think(effort, think):
    assert request(reasoning_effort=effort)["think"] == think
    assert "think" not in request()
    assert request(think=True)["think"] is True


def test_response_formats():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert request(response_format={"type": "json_object"})["format"] == "json"
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    assert request(response_format=form)["format"] == schema
    assert "format" not in request(response_format={"type": "text"})
    with pytest.raises(Malformed, match="response_format"):
        request(response_format={"type": "grammar"})


def test_images_go_as_base64_and_text_parts_as_lines():
    parts = [
        {"type": "text", "text": "one"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "two"},
    ]
    [message] = request(messages=user(*parts))["messages"]
    assert message == {"role": "user", "content": "one\ntwo", "images": ["AAAA"]}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png,AAAA"}},
        {"type": "image_url", "image_url": {"url": "data:text/html;base64,AAAA"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ],
)
def test_what_ollama_cannot_read_is_refused_by_place(part):
    with pytest.raises(Malformed) as caught:
        request(messages=user(part))
    assert caught.value.param == "messages[0].content"


def test_a_conversation_with_tools_keeps_names_and_objects():
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    assert request(messages=messages)["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [
                {"id": "call_1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}}
            ],
        },
        {"role": "tool", "content": "rain", "tool_name": "weather", "tool_call_id": "call_1"},
    ]


def test_tools_are_passed_unless_forbidden():
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    assert request(tools=tools)["tools"] == tools
    assert request(tools=tools, tool_choice="auto")["tools"] == tools
    assert "tools" not in request(tools=tools, tool_choice="none")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{"}}]}
                ]
            },
            "messages[0].tool_calls[0]",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "[]"}}]}
                ]
            },
            "messages[0].tool_calls[0]",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "custom": {}}]}]}, "messages[0].tool_calls[0]"),
        ({"messages": "hi"}, None),
    ],
)
def test_what_ollama_cannot_do_is_refused_by_name(fields, param):
    with pytest.raises(Malformed) as caught:
        request(**fields)
    assert caught.value.param == param


# --- answers


def line(content: str = "", **fields: object) -> dict:
    message = {"role": "assistant", "content": content, **fields.pop("message", {})}
    return {"model": "llama3.2", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": False, **fields}


END = {"done": True, "done_reason": "stop", "prompt_eval_count": 11, "eval_count": 18, "total_duration": 1}
CALL = {"tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": "\u00e9"}}}]}


def ndjson(*lines: dict) -> bytes:
    return b"".join(json.dumps(item, ensure_ascii=False).encode() + b"\n" for item in lines)


def read(*chunks: bytes) -> list[bytes]:
    numbers = itertools.count()
    stream = OllamaChatStream(
        completion_id="chatcmpl-1", created_seconds=7, model="m", call_id=lambda: f"call_{next(numbers):024}"
    )
    return [payload for chunk in chunks for payload in stream.feed(chunk)] + stream.close()


def chunks_of(*lines: dict) -> list[dict]:
    *payloads, end = read(ndjson(*lines))
    assert end == b"[DONE]"
    return [json.loads(payload) for payload in payloads]


def test_a_stream_becomes_chunks_a_finish_and_a_usage():
    chunks = chunks_of(line("Hel"), line("lo"), line(**END))
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}
    deltas = [({"role": "assistant", "content": "Hel"}, None), ({"content": "lo"}, None), ({}, "stop")]
    assert chunks[:-1] == [
        {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}
        for delta, reason in deltas
    ]
    usage = {"prompt_tokens": 11, "completion_tokens": 18, "total_tokens": 29}
    assert chunks[-1] == {**head, "choices": [], "usage": usage}


def test_thinking_is_shown_apart_from_the_content():
    chunks = chunks_of(line(message={"thinking": "hm"}), line("so"), line(**END))
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:2]] == [
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
        {"content": "so"},
    ]


def test_tool_calls_have_ids_contiguous_indexes_and_their_own_finish():
    chunks = chunks_of(line(message=CALL), line(message=CALL), line(**END))
    calls = [call for chunk in chunks[:2] for call in chunk["choices"][0]["delta"]["tool_calls"]]
    assert [call["index"] for call in calls] == [0, 1]
    assert calls[0]["function"] == {"name": "f", "arguments": '{"b":1,"a":"\u00e9"}'}
    assert len({call["id"] for call in calls}) == 2
    assert chunks[2]["choices"][0]["finish_reason"] == "tool_calls"


def test_ids_of_tool_calls_have_openais_form():
    assert re.fullmatch(r"call_[0-9A-Za-z]{24}", new_call_id())


def test_running_out_of_tokens_is_length():
    chunks = chunks_of(line("x"), line(**{**END, "done_reason": "length"}))
    assert chunks[1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("missing", "usage"),
    [
        (("prompt_eval_count",), {"completion_tokens": 18}),
        (("eval_count",), {"prompt_tokens": 11}),
        (("prompt_eval_count", "eval_count"), None),
    ],
)
def test_what_was_not_counted_is_absent_and_never_zero(missing, usage):
    end = {key: value for key, value in END.items() if key not in missing}
    chunks = chunks_of(line("x"), line(**end))
    assert chunks[-1].get("usage") == usage


def test_logprobs_are_passed_on():
    entry = {"token": "x", "logprob": -0.1, "bytes": [120], "top_logprobs": []}
    chunks = chunks_of(line("x", logprobs=[entry]), line(**END))
    assert chunks[0]["choices"][0]["logprobs"] == {"content": [entry], "refusal": None}


def test_an_error_line_is_an_error_in_openais_envelope_and_the_end():
    payloads = read(ndjson(line("x"), {"error": "it broke"}, line("y"), line(**END)))
    assert len(payloads) == 2
    assert json.loads(payloads[1]) == {
        "error": {"message": "it broke", "type": "server_error", "param": None, "code": None}
    }


def test_an_early_end_adds_no_finish():
    payloads = read(ndjson(line("x")))
    assert len(payloads) == 1
    assert json.loads(payloads[0])["choices"][0]["finish_reason"] is None


def test_the_last_line_may_lack_its_newline():
    assert read(ndjson(line("x"), line(**END))[:-1])[-1] == b"[DONE]"


@pytest.mark.parametrize(
    "garbage",
    [b"<html>\n", b"{\n", b'{"message": 1}\n', b"\xff\xfe\n", b'{"done": "yes"}', b"[]\n", CALL_OF_NO_TEXT + b"\n"],
)
def test_garbage_is_a_failure_of_the_provider(garbage):
    with pytest.raises(UpstreamDown):
        read(ndjson(line("x")), garbage)


def test_a_line_without_end_is_refused_before_it_fills_memory():
    with pytest.raises(UpstreamDown, match="too long"):
        read(b"x" * (MAX_LINE_BYTES + 1))
    with pytest.raises(UpstreamDown, match="too long"):
        read(b"x" * (MAX_LINE_BYTES + 1) + b"\n")


_LINES = st.lists(
    st.one_of(
        st.text(max_size=8).map(line),
        st.text(max_size=8).map(lambda text: line(message={"thinking": text})),
        st.just(line(message=CALL)),
        st.just({"error": "no"}),
    ),
    max_size=6,
)


@given(lines=_LINES, is_ended=st.booleans(), data=st.data())
def test_any_cut_of_the_bytes_gives_the_same_payloads(lines, is_ended, data):
    body = ndjson(*lines, *([line(**END)] if is_ended else []))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    pieces = [body[start:end] for start, end in itertools.pairwise([0, *cuts, len(body)])]
    assert read(*pieces) == read(body)


def test_a_whole_answer_becomes_a_completion():
    body = json.dumps(line("Hello", **END)).encode()
    out = json.loads(from_ollama_response(body, completion_id="chatcmpl-1", created_seconds=7, model="m"))
    assert out == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 11, "completion_tokens": 18, "total_tokens": 29},
    }


def test_a_whole_answer_with_calls_and_thinking():
    body = json.dumps(line(message={**CALL, "thinking": "hm"}, **END)).encode()
    out = json.loads(from_ollama_response(body, completion_id="c", created_seconds=7, model="m"))
    message = out["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == (None, "hm")
    assert message["tool_calls"][0]["type"] == "function"
    assert out["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("body", [b"", b"<html>", ndjson(line("x")), b'{"error": "no"}', b"{}", CALL_OF_NO_TEXT])
def test_a_whole_answer_that_is_none_is_a_failure(body):
    with pytest.raises(UpstreamDown):
        from_ollama_response(body, completion_id="c", created_seconds=7, model="m")
