"""What a request holds: sizes, prices, and what cannot be bounded."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.asked import ask_chat
from meterhouse.errors import NotPriced
from meterhouse.http.body import parse_chat
from meterhouse.identity import Principal
from meterhouse.limits.demand import build_demand, estimate_input_tokens
from meterhouse.limits.limit import parse_limits
from meterhouse.metering import Demand, ModelBounds, Scope
from meterhouse.money import Component, Meterable, PossiblePrices, Price
from meterhouse.request import InputSize, measure

BOUNDS = ModelBounds(max_output_tokens=16_384, image_tokens=None, thinks_hidden=False)
HELLO = [{"role": "user", "content": "Hello"}]


def price_of(**rates: int) -> Price:
    rows = tuple(Component(Meterable(kind), rate) for kind, rate in rates.items())
    return Price("price_1", "fake", "model", rows, 0, "test")


PRICE = price_of(input=1_000_000, output=4_000_000)


def principal_of(limits: str = "") -> Principal:
    found = parse_limits(limits, Scope.KEY, "key_1")
    return Principal("org_1", "proj_1", "key_2", "key_1", frozenset(), None, found, None)


def size_of(**fields: Any) -> InputSize:
    parsed = parse_chat(json.dumps({"model": "m", "messages": HELLO, **fields}).encode())
    return measure(parsed.request, parsed.fields)


def demand_of(
    limits: str = "", prices: tuple[Price | None, ...] = (PRICE,), bounds: ModelBounds = BOUNDS, **fields: Any
) -> Demand:
    parsed = parse_chat(json.dumps({"model": "m", "messages": HELLO, **fields}).encode())
    size = measure(parsed.request, parsed.fields)
    return build_demand("1" * 32, principal_of(limits), ask_chat(parsed), size, PossiblePrices(prices), bounds)


# --- the input


def test_a_message_holds_a_token_per_byte_and_sixteen() -> None:
    demand = demand_of(messages=[{"role": "system", "content": "äö"}, {"role": "user", "content": "Hello"}])
    assert demand.held_input_tokens == 4 + 5 + 2 * 16
    assert demand.rate_input_tokens == 3


def test_what_joins_the_parts_of_a_message_is_held_too() -> None:
    parts = [{"type": "text", "text": ""}] * 1_000
    assert demand_of(messages=[{"role": "user", "content": parts}]).held_input_tokens == 999 + 16


@pytest.mark.parametrize(("text_bytes", "tokens"), [(0, 0), (1, 1), (3, 1), (4, 2), (3_000, 1_000)])
def test_a_rate_is_debited_a_third_of_the_bytes_rounded_up(text_bytes: int, tokens: int) -> None:
    assert estimate_input_tokens(InputSize(text_bytes, 1, 0, 0)) == tokens


@pytest.mark.parametrize(
    ("message", "text_bytes"),
    [
        ({"content": [{"type": "text", "text": "abc"}, {"type": "text", "text": "é"}]}, 5 + 1),
        ({"content": "abc", "name": "Bob"}, 6),
        ({"content": "a", "refusal": "no", "role": "assistant", "prefix": True}, 3),
        ({"content": [{"type": "refusal", "refusal": "no"}], "role": "assistant", "prefix": True}, 2),
        ({"content": "a", "reasoning_content": "think", "role": "assistant", "prefix": True}, 6),
        ({"content": "a", "reasoning": "hm", "role": "assistant", "prefix": True}, 3),
        ({"content": "a", "role": "tool", "tool_call_id": "call_1"}, 7),
        (
            {
                "role": "assistant",
                "prefix": True,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                    {"id": "d", "type": "custom", "custom": {"name": "g", "input": "xyz"}},
                    {"id": "e"},
                ],
            },
            3 + 8 + 4,
        ),
        ({"role": "assistant", "prefix": True, "function_call": {"name": "f", "arguments": "{}"}}, 3),
    ],
)
def test_all_text_of_a_message_counts(message: dict[str, Any], text_bytes: int) -> None:
    assert size_of(messages=[{"role": "user", **message}]).text_bytes == text_bytes


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
        {"functions": [{"name": "f"}]},
        {"prediction": {"type": "content", "content": "long text"}},
        {"documents": [{"text": "a field that only some servers know"}]},
        {"chat_template": "{{ messages }}"},
    ],
)
def test_tools_schemas_and_unknown_fields_count_as_text(fields: dict[str, Any]) -> None:
    (value,) = fields.values()
    assert size_of(**fields).text_bytes == 5 + len(json.dumps(value))


@pytest.mark.parametrize("fields", [{"temperature": 0.5}, {"user": "u" * 30}, {"metadata": {"a": "b"}}, {"seed": 1}])
def test_parameters_that_never_reach_the_prompt_do_not_count(fields: dict[str, Any]) -> None:
    assert size_of(**fields).text_bytes == 5


@pytest.mark.parametrize("name", ["thinking", "reasoning_details", "tool_plan"])
def test_a_field_of_a_message_that_only_some_servers_know_counts_as_text(name: str) -> None:
    value = [{"type": "reasoning.text", "text": "t" * 300}]
    size = size_of(messages=[{"role": "assistant", "content": "a", "prefix": True, name: value}])
    assert size.text_bytes == 1 + len(json.dumps(value))


texts = st.text(max_size=40)
parts = st.fixed_dictionaries({"type": st.just("text"), "text": texts})
calls = st.fixed_dictionaries(
    {"id": texts, "type": st.just("function"), "function": st.fixed_dictionaries({"name": texts, "arguments": texts})}
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]), "content": texts | st.lists(parts, max_size=3)},
    optional={
        "name": texts,
        "refusal": texts,
        "reasoning_content": texts,
        "reasoning": texts,
        "tool_calls": st.lists(calls, max_size=2),
        "x_unknown": st.dictionaries(texts, texts, max_size=2),
    },
)


def all_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(all_text, value))
    if isinstance(value, dict):
        return "".join(all_text(item) for name, item in value.items() if name not in {"role", "type"})
    return ""


@given(st.lists(messages, max_size=4), st.booleans())
def test_no_text_of_a_conversation_escapes_the_hold(rows: list[dict[str, Any]], is_ascii: bool) -> None:
    conversation = [*rows, {"role": "user", "content": "Hello"}]
    body = {"model": "m", "messages": conversation}
    parsed = parse_chat(json.dumps(body, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass"))
    size = measure(parsed.request, parsed.fields)
    assert size.messages == len(conversation)
    assert size.text_bytes >= len(all_text(conversation).encode("utf-8", "surrogatepass"))


# --- images and what cannot be bounded

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5_000}}
UNBOUNDED = [
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "file", "file": {"filename": "a.pdf", "file_data": "AAAA"}},
    {"type": "video_url", "video_url": {"url": "https://example.org/film.mp4"}},
    {"type": "something_new", "something_new": "t" * 300},
]


def asking(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "What?"}, *parts]}]


def test_an_image_holds_the_models_bound_and_not_its_bytes() -> None:
    bounds = ModelBounds(max_output_tokens=100, image_tokens=1_445, thinks_hidden=False)
    demand = demand_of("spend 1 USD/day", bounds=bounds, messages=asking(IMAGE, IMAGE))
    assert demand.held_input_tokens == 5 + 16 + 2 * 1_445
    assert demand.rate_input_tokens == 2


def test_an_image_without_a_bound_is_refused_for_a_budget() -> None:
    with pytest.raises(NotPriced) as caught:
        demand_of("spend 1 USD/day", messages=asking(IMAGE))
    assert (caught.value.status, caught.value.code, caught.value.param) == (402, "not_priced", "messages")
    assert caught.value.should_retry is False


@pytest.mark.parametrize("part", UNBOUNDED)
def test_a_part_without_a_bound_is_refused_for_a_budget(part: dict[str, Any]) -> None:
    bounds = ModelBounds(max_output_tokens=100, image_tokens=1_445, thinks_hidden=False)
    with pytest.raises(NotPriced, match="use a key without a budget"):
        demand_of("spend 1 USD/day", bounds=bounds, messages=asking(part))


@pytest.mark.parametrize("part", [IMAGE, *UNBOUNDED])
def test_without_a_budget_every_part_passes(part: dict[str, Any]) -> None:
    assert demand_of("requests 9/minute", messages=asking(part)).held_input_tokens >= 5 + 16


@pytest.mark.parametrize("prices", [(None,), (PRICE, None), (None, PRICE)])
def test_a_deployment_without_a_price_is_refused_for_a_budget(prices: tuple[Price | None, ...]) -> None:
    with pytest.raises(NotPriced, match="has no price") as caught:
        demand_of("spend 1 USD/day", prices)
    assert caught.value.param == "model"


def test_a_search_without_a_price_is_refused_for_a_budget() -> None:
    with pytest.raises(NotPriced) as caught:
        demand_of("spend 1 USD/day", web_search_options={})
    assert caught.value.param == "web_search_options"
    assert demand_of("tokens 9 total", web_search_options={}).held_input_tokens > 0


@pytest.mark.parametrize("kind", ["builtin_function", "browser_search", "web_search"])
def test_a_tool_that_runs_at_the_provider_is_refused_for_a_budget(kind: str) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}, {"type": kind, "function": {"name": "web_search"}}]
    with pytest.raises(NotPriced) as caught:
        demand_of("spend 1 USD/day", tools=tools)
    assert caught.value.param == "tools"
    assert demand_of("tokens 9 total", tools=tools).held_input_tokens > 0
    assert demand_of("spend 1 USD/day", tools=[tools[0], {"type": "custom", "custom": {"name": "c"}}]).output_tokens


def test_what_has_no_price_holds_no_money_without_a_budget() -> None:
    demand = demand_of("tokens 900 total", (None,))
    assert (demand.input_nanos_per_million, demand.output_nanos_per_million, demand.request_nanos) == (0, 0, 0)


def test_of_several_deployments_the_dearest_is_held() -> None:
    prices = (price_of(input=5, output=1), price_of(input=1, output=9, cached_input=7, request=2_000_001))
    demand = demand_of("spend 1 USD/day", prices)
    assert (demand.input_nanos_per_million, demand.output_nanos_per_million, demand.request_nanos) == (7, 9, 3)


# --- the output


def test_what_is_asked_bounds_the_output() -> None:
    demand = demand_of(max_tokens=100)
    assert (demand.output_tokens, demand.rate_output_tokens) == (100, 100)
    assert demand_of(max_tokens=100, max_completion_tokens=70).output_tokens == 70


def test_unasked_the_models_maximum_is_demanded_and_a_rate_debited_less() -> None:
    demand = demand_of()
    assert (demand.output_tokens, demand.rate_output_tokens) == (16_384, 4_096)
    small = demand_of(bounds=ModelBounds(512, None, thinks_hidden=False))
    assert (small.output_tokens, small.rate_output_tokens) == (512, 512)


def test_choices_streams_and_hidden_thinking_are_passed_on() -> None:
    demand = demand_of(n=3, stream=True, bounds=ModelBounds(512, None, thinks_hidden=True))
    assert (demand.choices, demand.is_streamed, demand.holds_whole_allowance) == (3, True, True)
    demand = demand_of()
    assert (demand.choices, demand.is_streamed, demand.holds_whole_allowance) == (1, False, False)


def test_the_demand_says_whose_it_is() -> None:
    demand = demand_of("requests 9/minute")
    assert (demand.organization_id, demand.project_id, demand.root_key_id) == ("org_1", "proj_1", "key_1")
    assert (demand.request_id, demand.model) == ("1" * 32, "m")
    assert demand.limits == parse_limits("requests 9/minute", Scope.KEY, "key_1")
