"""What is read of a provider's chunk: usage in each place and quirk, text, finish reasons, errors."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.errors import UpstreamDown
from meterhouse.http.chunk import Chunk, ReadUsage, decode_chunk, is_failure, read_usage, text_of
from meterhouse.usage import SUSPECT_TOKENS, Usage

COUNTS = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}
PLAIN = Usage(input_tokens=12, output_tokens=5)


def chunk_of(**fields: Any) -> Chunk:
    return decode_chunk(json.dumps(fields).encode())


def usage_of(**fields: Any) -> Usage:
    read = read_usage(chunk_of(usage=fields))
    assert read is not None
    assert read.usage is not None
    return read.usage


# --- where it is


@pytest.mark.parametrize(
    "fields",
    [
        {"choices": [], "usage": COUNTS},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": COUNTS},
        {"choices": [{"index": 0, "delta": {}, "usage": COUNTS}]},
        {"choices": [{"index": 0, "delta": {}}, {"index": 1, "delta": {}, "usage": COUNTS}], "usage": None},
        {"choices": [{"index": 0, "delta": {}}], "x_groq": {"id": "req_1", "usage": COUNTS}},
        {"choices": None, "usage": COUNTS},
        {"usage": COUNTS},
        {"choices": [], "usage": COUNTS, "created": 1795132800.5, "id": 7},
        {"choices": [{"index": 0, "delta": {"content": ["x"]}, "usage": COUNTS}]},
    ],
)
def test_usage_is_found_in_every_place_that_a_provider_puts_it(fields: dict[str, Any]) -> None:
    read = read_usage(chunk_of(**fields))
    assert read == ReadUsage(usage=PLAIN, input_tokens=12, output_tokens=5)


@pytest.mark.parametrize(
    "fields",
    [
        {"choices": [{"index": 0, "delta": {"content": "a"}}]},
        {"choices": [], "usage": None},
        {"choices": [], "usage": {}},
        {"choices": [], "usage": []},
        {"choices": [], "usage": "12"},
        {"choices": [], "usage": 12},
        {"choices": [], "x_groq": None},
        {"choices": [], "x_groq": {"id": "req_1"}},
        {"choices": [{"index": 0, "usage": None}]},
    ],
)
def test_a_chunk_without_usage_says_nothing(fields: dict[str, Any]) -> None:
    assert read_usage(chunk_of(**fields)) is None


# --- what it says


@pytest.mark.parametrize(
    "details",
    [
        {"prompt_tokens_details": {"cached_tokens": 4}},
        {"prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 8},
        {"cached_tokens": 4},
        {"prompt_tokens_details": {"cached_tokens": 4}, "prompt_cache_hit_tokens": 9, "cached_tokens": 9},
        {"prompt_tokens_details": None, "cached_tokens": 4},
        {"prompt_tokens_details": {"cached_tokens": None}, "prompt_cache_hit_tokens": 4},
        {"prompt_tokens_details": "none", "cached_tokens": 4},
    ],
)
def test_the_cached_part_is_found_under_each_name(details: dict[str, Any]) -> None:
    assert usage_of(**COUNTS, **details) == Usage(input_tokens=12, cached_input_tokens=4, output_tokens=5)


def test_a_cached_part_of_zero_is_a_count_and_not_a_gap() -> None:
    usage = usage_of(**COUNTS, prompt_tokens_details={"cached_tokens": 0}, prompt_cache_hit_tokens=4)
    assert usage.cached_input_tokens == 0


@pytest.mark.parametrize("details", [{"completion_tokens_details": {"reasoning_tokens": 3}}, {"reasoning_tokens": 3}])
def test_reasoning_is_a_part_of_the_output(details: dict[str, Any]) -> None:
    assert usage_of(**COUNTS, **details) == Usage(input_tokens=12, output_tokens=5, reasoning_tokens=3)


def test_audio_and_cache_writes_are_read() -> None:
    usage = usage_of(
        **COUNTS,
        prompt_tokens_details={"cached_tokens": 2, "cache_write_tokens": 3, "audio_tokens": 4},
        completion_tokens_details={"audio_tokens": 1, "reasoning_tokens": 2},
    )
    assert usage == Usage(12, 2, 3, 5, 2, 4, 1)


def test_unknown_fields_of_a_usage_are_ignored() -> None:
    assert usage_of(**COUNTS, cost=0.01, prompt_eval_duration="3s", is_byok=False) == PLAIN


number = st.integers(0, 40) | st.sampled_from([-1, None, True, 2.5, "7", SUSPECT_TOKENS, SUSPECT_TOKENS + 1])
usage_objects = st.fixed_dictionaries(
    {"prompt_tokens": st.integers(0, 40), "completion_tokens": st.integers(0, 40)},
    optional={
        "prompt_tokens_details": st.dictionaries(
            st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens"]), number
        ),
        "completion_tokens_details": st.dictionaries(st.sampled_from(["reasoning_tokens", "audio_tokens"]), number),
        "prompt_cache_hit_tokens": number,
        "cached_tokens": number,
        "reasoning_tokens": number,
    },
)


@given(usage_objects)
def test_parts_are_never_more_than_their_whole(wire: dict[str, Any]) -> None:
    usage = usage_of(**wire)
    assert (usage.input_tokens, usage.output_tokens) == (wire["prompt_tokens"], wire["completion_tokens"])
    parts = (usage.cached_input_tokens, usage.cache_write_tokens, usage.input_audio_tokens)
    assert min(*parts, usage.reasoning_tokens, usage.output_audio_tokens) >= 0
    assert sum(parts) <= usage.input_tokens
    assert max(usage.reasoning_tokens, usage.output_audio_tokens) <= usage.output_tokens


@pytest.mark.parametrize("bad", [-1, "many", 2.5, True, [], SUSPECT_TOKENS + 1, 10**30])
@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens"])
def test_counts_that_cannot_be_true_are_not_believed(field: str, bad: object) -> None:
    assert read_usage(chunk_of(usage={**COUNTS, field: bad})) == ReadUsage(is_suspect=True)


def test_the_largest_believable_count_is_believed() -> None:
    assert usage_of(prompt_tokens=SUSPECT_TOKENS, completion_tokens=0).input_tokens == SUSPECT_TOKENS


def test_a_usage_of_zeros_is_read_as_one() -> None:
    assert usage_of(prompt_tokens=0, completion_tokens=0) == Usage()


def test_a_usage_with_one_half_gives_that_half() -> None:
    assert read_usage(chunk_of(usage={"prompt_tokens": 12})) == ReadUsage(input_tokens=12)
    assert read_usage(chunk_of(usage={"completion_tokens": 5})) == ReadUsage(output_tokens=5)
    assert read_usage(chunk_of(usage={"total_tokens": 17})) == ReadUsage()


# --- text, ends, errors


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        ({"content": "a"}, "a"),
        ({"content": None}, ""),
        ({}, ""),
        ({"role": "assistant", "content": ""}, ""),
        ({"reasoning_content": "think", "content": "say"}, "think"),
        ({"reasoning": "think"}, "think"),
        ({"reasoning": "same", "reasoning_content": "same"}, "same"),
        ({"reasoning": "one", "reasoning_content": "two"}, "onetwo"),
        ({"refusal": "no"}, "no"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": '{"a"'}}, {"function": None}, {}]}, 'f{"a"'),
        ({"function_call": {"name": "f", "arguments": None}}, "f"),
        ({"content": "a", "tool_calls": []}, "a"),
    ],
)
def test_all_text_that_a_model_wrote_is_counted(delta: dict[str, Any], text: str) -> None:
    (choice,) = chunk_of(choices=[{"index": 0, "delta": delta}]).choices or ()
    assert choice.delta is not None
    assert sorted(text_of(choice.delta)) == sorted(text + ("say" if delta.get("content") == "say" else ""))


def test_a_chunk_with_unusual_types_is_read_as_far_as_it_goes() -> None:
    chunk = chunk_of(
        id="c",
        created="yesterday",
        model="m",
        service_tier="flex",
        usage=COUNTS,
        choices=[
            {"index": 2, "delta": {"content": [{"type": "text", "text": "hello"}]}, "finish_reason": "stop"},
            {"index": "x", "message": {"content": {"a": 1}}, "finish_reason": 3, "usage": COUNTS},
            "not a choice",
            {"index": 1, "delta": None},
        ],
    )
    assert (chunk.id, chunk.model, chunk.service_tier) == ("c", "m", "flex")
    first, second, third = chunk.choices or ()
    assert (first.index, first.finish_reason) == (2, "stop")
    assert first.delta is not None
    assert "hello" in text_of(first.delta)
    assert (second.index, second.finish_reason, second.delta) == (0, None, None)
    assert second.message is not None
    assert (third.index, third.delta, third.message) == (1, None, None)
    assert read_usage(chunk) is not None


def test_names_of_other_types_are_left_out() -> None:
    chunk = chunk_of(id=5, model=["m"], choices={"0": {}}, created=1)
    assert (chunk.id, chunk.model, chunk.choices) == (None, None, None)


def test_text_of_an_unusual_delta_is_never_counted_as_less_than_it_is() -> None:
    (choice,) = chunk_of(choices=[{"delta": {"content": ["ä" * 50]}}]).choices or ()
    assert choice.delta is not None
    assert len(text_of(choice.delta).encode()) >= 100


@pytest.mark.parametrize("payload", [b"", b"{", b"not json", b"[]", b'"x"', b"1", b'{"model": "\xff"}', b"[" * 100_000])
def test_what_is_no_json_object_is_the_providers_failure(payload: bytes) -> None:
    with pytest.raises(UpstreamDown) as caught:
        decode_chunk(payload)
    assert (caught.value.status, caught.value.code) == (502, "upstream_protocol_error")


@pytest.mark.parametrize("error", [{"message": "no"}, "no", 5, ["no"], True])
def test_an_error_in_a_chunk_is_seen_whatever_its_shape(error: object) -> None:
    assert is_failure(chunk_of(error=error))
    assert is_failure(chunk_of(error=error, choices="odd"))


@pytest.mark.parametrize(
    "fields",
    [
        {"object": "error", "message": "no", "type": "server_error", "code": 500},
        {"object": "error", "created": "odd"},
        {"message": "no", "type": "too_many_requests"},
        {"message": {"detail": "no"}, "created": "odd"},
    ],
)
def test_an_error_without_an_envelope_is_seen(fields: dict[str, Any]) -> None:
    assert is_failure(chunk_of(**fields))


@pytest.mark.parametrize("error", [None, {}, "", False])
def test_an_empty_error_is_none(error: object) -> None:
    assert not is_failure(chunk_of(error=error))
    assert not is_failure(chunk_of(choices=[], message="a note beside an answer"))


@pytest.mark.parametrize("value", [b'"\xff"', b"1e999"])
def test_a_usage_that_cannot_be_read_after_all_is_the_providers_failure(value: bytes) -> None:
    chunk = decode_chunk(b'{"choices":[],"usage":{"prompt_tokens":%b}}' % value)
    with pytest.raises(UpstreamDown):
        read_usage(chunk)


def test_so_are_choices_of_a_chunk_that_is_read_leniently() -> None:
    with pytest.raises(UpstreamDown):
        decode_chunk(b'{"created":1.5,"choices":[{"delta":{"content":"Hi","x":1e999}}]}')


@pytest.mark.parametrize("usage", ["null", "{}", '""', "false"])
def test_a_usage_that_says_nothing_is_empty(usage: str) -> None:
    assert not decode_chunk(f'{{"choices":[],"usage":{usage}}}'.encode()).usage
    assert not decode_chunk(f'{{"choices":[],"created":1.5,"usage":{usage}}}'.encode()).usage
