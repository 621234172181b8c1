"""Every row of the catalog against answers written down from its provider's documentation (``fakes.cassettes``)."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fakes.cassettes import ANSWERS, REFUSALS, Answer, Refusal
from fakes.exchange import Exchange
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from fakes.wires import encode
from meterhouse.providers.catalog import MODELS, PROVIDERS, find_retired
from meterhouse.usage import Exactness, Outcome

CREDENTIAL = "sk-upstream-credential-canary"
ROWS = [name for name in PROVIDERS if name != "simulator"]
PLAIN = [{"role": "user", "content": "Hello"}]
THOUGHTFUL = [
    {"role": "user", "content": "Hello", "name": "ann"},
    {"role": "assistant", "content": "Hi", "reasoning_content": "I think"},
    {"role": "user", "content": [{"type": "text", "text": "How"}, {"type": "text", "text": "are you?"}]},
]
CALLED = [
    {"role": "user", "content": "Hello"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "1"},
    {"role": "assistant", "content": "One"},
    {"role": "user", "content": "And now?"},
]
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


class Heard:
    """What the provider was sent last."""

    body: dict[str, Any]
    headers: dict[str, str]

    async def play(self, x: Exchange) -> None:
        self.body, self.headers = x.request.body, dict(x.request.headers)
        message = {"role": "assistant", "content": "ok"}
        if x.request.is_ollama:
            answer: Any = {"model": "m", "message": message, "done": True, "done_reason": "stop", "eval_count": 1}
        elif x.request.is_anthropic:
            answer = {"type": "message", "content": [{"type": "text", "text": "ok"}], "stop_reason": "end_turn"}
            answer["usage"] = {"input_tokens": 1, "output_tokens": 1}
        else:
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            answer["usage"] = USAGE
        await x.whole(200, "application/json", encode(answer))


@pytest.fixture(scope="module")
def heard() -> Heard:
    return Heard()


@pytest.fixture(scope="module")
def gateway(heard: Heard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with FakeUpstream() as up:
        for cassette in (*ANSWERS, *REFUSALS):
            up.script(cassette.model, cassette.play)
        for name in ("listen", "kimi-k2.6", "deepseek-flash", "claude-opus-5-5", "claude-haiku-4-5"):
            up.script(name, heard.play)
        environment = {"METERHOUSE_SHIP_SECONDS": "0.01", "METERHOUSE_RETIRED_MODELS": "replace"}
        for row in ROWS:
            stem = f"METERHOUSE_PROVIDER_{row.upper()}_"
            environment[f"{stem}BASE_URL"] = up.ollama_url if row == "ollama" else up.base_url
            environment[f"{stem}API_KEY"] = CREDENTIAL
        with Gateway(tmp_path_factory.mktemp("rows") / "data", environment) as running:
            yield running


def test_every_row_has_a_good_answer_and_an_error() -> None:
    assert {answer.row for answer in ANSWERS} == set(ROWS)
    assert {refusal.row for refusal in REFUSALS} == set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_every_quirk_has_a_day_and_a_source(row: str) -> None:
    assert PROVIDERS[row].quirks
    for quirk in PROVIDERS[row].quirks:
        assert quirk.known_since.year >= 2025
        assert quirk.text.endswith(".")
        assert quirk.source


def check_record(gateway: Gateway, headers: dict[str, str], answer: Answer) -> None:
    (record,) = gateway.records(headers["x-request-id"])
    usage = record.usage
    found = (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens, usage.reasoning_tokens)
    assert (record.provider, record.outcome, record.exactness) == (answer.row, Outcome.COMPLETED, Exactness.REPORTED)
    assert found == answer.tokens


def check_said(said: dict[str, Any], answer: Answer) -> None:
    assert said["content"] == answer.text
    assert said["reasoning_content"] == answer.reasoning
    assert said["arguments"] == answer.arguments


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.model)
def test_a_streamed_answer(answer: Answer, gateway: Gateway) -> None:
    model = f"{answer.row}/{answer.model}"
    status, headers, body = gateway.chat(model, stream=True, stream_options={"include_usage": True})
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    *events, last, empty = body.decode().split("\n\n")
    assert (last, empty) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    said = {"content": "", "reasoning_content": "", "arguments": ""}
    reasons = []
    for chunk in chunks:
        assert chunk["model"] == model
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for name in ("content", "reasoning_content"):
                said[name] += delta.get(name) or ""
            for call in delta.get("tool_calls", ()):
                assert call.get("id") != ""
                said["arguments"] += call["function"]["arguments"]
            reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    check_said(said, answer)
    assert reasons == [answer.finish]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == answer.tokens[2]
    check_record(gateway, headers, answer)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.model)
def test_an_answer_that_is_not_streamed(answer: Answer, gateway: Gateway) -> None:
    status, headers, body = gateway.chat(f"{answer.row}/{answer.model}")
    assert status == 200, body
    whole = json.loads(body)
    (choice,) = whole["choices"]
    message = choice["message"]
    calls = message.get("tool_calls") or ()
    said = {name: message.get(name) or "" for name in ("content", "reasoning_content")}
    said["arguments"] = "".join(call["function"]["arguments"] for call in calls)
    check_said(said, answer)
    assert choice["finish_reason"] == answer.finish
    assert whole["model"] == f"{answer.row}/{answer.model}"
    assert whole["usage"]["prompt_tokens"] == answer.tokens[0]
    check_record(gateway, headers, answer)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.model)
@pytest.mark.parametrize("is_streamed", [True, False])
def test_an_error(refusal: Refusal, is_streamed: bool, gateway: Gateway) -> None:
    status, _, body = gateway.chat(f"{refusal.row}/{refusal.model}", stream=is_streamed)
    error = json.loads(body)["error"]
    assert (status, error["code"]) == refusal.expected, error
    assert CREDENTIAL not in body.decode()
    if status < 500:
        assert error["message"], "what the provider said of the caller's request is passed on"


@pytest.mark.parametrize("row", ROWS)
def test_the_credential_goes_where_the_row_says(row: str, gateway: Gateway, heard: Heard) -> None:
    assert gateway.chat(f"{row}/listen")[0] == 200
    name = {"azure": "api-key", "anthropic": "x-api-key"}.get(row, "authorization")
    sent = {key: heard.headers[key] for key in ("api-key", "x-api-key", "authorization") if key in heard.headers}
    assert sent == {name: CREDENTIAL if name != "authorization" else f"Bearer {CREDENTIAL}"}


def test_what_a_server_says_of_its_own_code_is_not_passed_on(gateway: Gateway) -> None:
    _, _, body = gateway.chat("llamacpp/llamacpp-invalid")
    assert "'top_p'" in json.loads(body)["error"]["message"]
    assert "app.py" not in body.decode()


BOUNDS = {"openai": "max_completion_tokens", "cerebras": "max_completion_tokens", "groq": "max_completion_tokens"} | {
    "azure": "max_completion_tokens"
}


@pytest.mark.parametrize("row", [row for row in ROWS if row != "ollama"])
@pytest.mark.parametrize("asked", ["max_tokens", "max_completion_tokens"])
def test_the_bound_has_the_name_that_the_provider_reads(row: str, asked: str, gateway: Gateway, heard: Heard) -> None:
    assert gateway.chat(f"{row}/listen", **{asked: 7})[0] == 200
    found = {name: heard.body[name] for name in ("max_tokens", "max_completion_tokens") if name in heard.body}
    assert found == {BOUNDS.get(row, "max_tokens"): 7}


SENT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("cerebras", {}, {"max_completion_tokens": 8_192}),
    ("cerebras", {"frequency_penalty": 1, "presence_penalty": 1}, {"frequency_penalty": ..., "presence_penalty": ...}),
    ("cerebras", {"parallel_tool_calls": True, "user": "ann"}, {"parallel_tool_calls": ..., "user": ...}),
    ("dashscope", {}, {"enable_thinking": False}),
    ("dashscope", {"enable_thinking": True}, {"enable_thinking": True}),
    ("groq", {"logprobs": False}, {"logprobs": ...}),
    ("mistral", {"seed": 5, "tool_choice": "required"}, {"random_seed": 5, "seed": ..., "tool_choice": "any"}),
    ("mistral", {"user": "ann", "store": True}, {"user": ..., "store": ..., "stream_options": ...}),
    ("llamacpp", {"repetition_penalty": 1.1}, {"repeat_penalty": 1.1, "repetition_penalty": ...}),
    ("transformers", {}, {"max_tokens": 1_024}),
    (
        "transformers",
        {"repetition_penalty": 1.1, "frequency_penalty": -1.5},
        {"repetition_penalty": ..., "frequency_penalty": ...},
    ),
    ("openai", {"repetition_penalty": 1.1, "seed": 5}, {"repetition_penalty": 1.1, "seed": 5}),
    ("moonshot", {"temperature": 0.3}, {"temperature": 0.3}),
    ("anthropic", {}, {"max_tokens": 32_000}),
    ("anthropic", {"stop": "x", "seed": 5, "user": None}, {"stop_sequences": ["x"], "seed": ..., "metadata": ...}),
]


@pytest.mark.parametrize(("row", "asked", "expected"), SENT)
def test_what_a_request_becomes(
    row: str, asked: dict[str, Any], expected: dict[str, Any], gateway: Gateway, heard: Heard
) -> None:
    assert gateway.chat(f"{row}/listen", **asked)[0] == 200
    assert {name: heard.body.get(name, ...) for name in expected} == expected


def test_a_model_that_takes_no_temperature_gets_none_and_the_log_says_so(gateway: Gateway, heard: Heard) -> None:
    assert gateway.chat("moonshot/kimi-k2.6", temperature=0.3)[0] == 200
    assert "temperature" not in heard.body
    assert len(logged(gateway)) == 1
    assert gateway.chat("moonshot/kimi-k2.6", temperature=0.3)[0] == 200
    assert len(logged(gateway)) == 1, "once for each provider and parameter"


def logged(gateway: Gateway) -> list[dict[str, Any]]:
    lines = [line for line in gateway.log_lines() if line["event"] == "parameter.dropped"]
    return [line for line in lines if (line["provider"], line["parameter"]) == ("moonshot", "temperature")]


@pytest.mark.parametrize(
    ("row", "asked", "code"),
    [
        ("openrouter", {"models": ["a/dear-one"]}, "unsupported_parameter"),
        ("openrouter", {"route": "fallback"}, "unsupported_parameter"),
        ("openrouter", {"plugins": [{"id": "web"}]}, "unsupported_parameter"),
        ("openrouter", {"preset": "dear"}, "unsupported_parameter"),
        ("dashscope", {"enable_search": True}, "unsupported_parameter"),
        ("dashscope", {"search_options": {"forced_search": True}}, "unsupported_parameter"),
        ("groq", {"logprobs": True}, "unsupported_parameter"),
        ("groq", {"logit_bias": {"50256": -100}}, "unsupported_parameter"),
        ("mistral", {"functions": [{"name": "f"}]}, "unsupported_parameter"),
        ("moonshot", {"tool_choice": "required"}, "unsupported_value"),
        ("anthropic", {"response_format": {"type": "json_object"}}, "unsupported_value"),
        ("anthropic", {"temperature": 1.5}, "unsupported_value"),
        ("anthropic", {"logit_bias": {"50256": -100}}, "unsupported_parameter"),
        ("transformers", {"response_format": {"type": "json_object"}}, "unsupported_parameter"),
        ("transformers", {"tool_choice": "required"}, "unsupported_value"),
    ],
)
def test_what_a_provider_cannot_honour_is_refused_by_name(
    row: str, asked: dict[str, Any], code: str, gateway: Gateway
) -> None:
    status, _, body = gateway.chat(f"{row}/listen", **asked)
    error = json.loads(body)["error"]
    assert (status, error["code"], error["param"]) == (400, code, next(iter(asked)))


def test_the_models_of_anthropic_are_told_to_think_each_in_its_way(gateway: Gateway, heard: Heard) -> None:
    asked = {"reasoning_effort": "low", "temperature": 0.5}
    assert gateway.chat("claude-haiku-4-5", **asked)[0] == 200
    assert heard.body["thinking"] == {"type": "enabled", "budget_tokens": 2_048}
    assert heard.body["temperature"] == 0.5
    assert gateway.chat("claude-opus-5-5", **asked)[0] == 200
    assert heard.body["thinking"]["type"] == "adaptive"
    assert heard.body["output_config"] == {"effort": "low"}
    assert "temperature" not in heard.body
    assert heard.headers["anthropic-version"] == "2023-06-01"


STRIPPED = ("openai", "azure", "cerebras", "mistral", "gemini")


@pytest.mark.parametrize("row", [row for row in ROWS if row not in {"ollama", "anthropic"}])
def test_thoughts_that_come_back_with_the_history(row: str, gateway: Gateway, heard: Heard) -> None:
    assert gateway.chat(f"{row}/listen", messages=THOUGHTFUL)[0] == 200
    first, second, third = heard.body["messages"]
    assert second.get("reasoning_content") == (None if row in STRIPPED else "I think")
    assert first.get("name") == (None if row == "groq" else "ann")
    assert third["content"] == ("How\nare you?" if row == "moonshot" else THOUGHTFUL[2]["content"])


def test_a_message_without_thoughts_gets_a_blank_where_some_are_required(gateway: Gateway, heard: Heard) -> None:
    def thoughts(row: str, **fields: Any) -> list[Any]:
        assert gateway.chat(f"{row}/listen", messages=CALLED, **fields)[0] == 200
        return [m.get("reasoning_content") for m in heard.body["messages"] if m["role"] == "assistant"]

    assert thoughts("deepseek") == [" ", " "]
    assert thoughts("deepseek", thinking={"type": "disabled"}) == [None, None]
    assert thoughts("moonshot") == [" ", None]
    assert thoughts("openai") == [None, None]


@pytest.mark.parametrize("row", ["vllm", "sglang"])
def test_running_usage_is_asked_for_where_there_is_some(row: str, gateway: Gateway, heard: Heard) -> None:
    gateway.chat(f"{row}/listen", stream=True)
    assert heard.body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


BRIEF = [
    "llama-3.3-70b",
    "llama-3.1-70b",
    "llama-3.1-8b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "qwen-2.5-coder-14b",
    "qwen-2.5-coder-32b",
    "qwen-2.5-coder-7b",
    "qwen-2.5-14b",
    "qwen-2.5-7b",
    "deepseek-chat",
    "deepseek-coder",
    "deepseek-reasoner",
    "gpt-4o",
    "gpt-4o-mini",
    "gpt-4-turbo",
    "gpt-3.5-turbo",
    "qwen-max",
    "qwen-plus",
    "qwen-turbo",
    "qwen-3-235b-a22b-thinking-2507",
    "qwen-3-350b",
    "qwen-3-32b",
    "qwen-3-14b",
    "qwen-3-7b",
    "qwen-2.5-coder-32b-instruct",
    "moonshot-v1-8k",
    "moonshot-v1-32k",
    "moonshot-v1-128k",
    "kimi-k2-0905-preview",
    "kimi-k2-turbo-preview",
    "kimi-k2-thinking",
    "kimi-k2-thinking-turbo",
]


@pytest.mark.parametrize("name", BRIEF)
def test_every_name_that_was_asked_for_is_known_and_can_be_answered(name: str, gateway: Gateway) -> None:
    served = {model for _, model in MODELS}
    assert name in served or all(row.replacement in served for row in find_retired(name)), name
    assert name in served or find_retired(name)
    route = gateway.parts.supply.routes.resolve(name, 0)
    assert route.deployments[0].upstream_model in served


def test_a_retired_name_that_is_replaced_behaves_as_it_did(gateway: Gateway) -> None:
    routes = gateway.parts.supply.routes
    modes = {name: routes.resolve(name, 0) for name in ("deepseek-chat", "deepseek-reasoner")}
    assert {route.model for route in modes.values()} == {"deepseek-flash"}, "one model has one set of limits"
    thinking = {name: route.deployments[0].model.body_defaults["thinking"]["type"] for name, route in modes.items()}
    assert thinking == {"deepseek-chat": "disabled", "deepseek-reasoner": "enabled"}
    assert {"deepseek-chat", "kimi-k2-thinking"} <= {model.name for model in routes.list_models()}


def test_a_replacement_is_told_how_to_behave(gateway: Gateway, heard: Heard) -> None:
    for name, mode in (("deepseek-chat", "disabled"), ("deepseek-reasoner", "enabled")):
        assert gateway.chat(name, messages=CALLED)[0] == 200
        assert (heard.body["model"], heard.body["thinking"]) == ("deepseek-flash", {"type": mode})
        blanks = [m.get("reasoning_content") for m in heard.body["messages"] if m["role"] == "assistant"]
        assert blanks == ([None, None] if mode == "disabled" else [" ", " "])
    assert gateway.chat("deepseek-chat", thinking={"type": "enabled"})[0] == 200
    assert heard.body["thinking"] == {"type": "enabled"}, "what the caller says holds"
