"""Tool calls in a text: every family's own words, however they are cut; no text is lost, none is held too long."""

import itertools
import json
import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.tool_texts import CLOCK, EXAMPLES, NOW, PARIS, SCHEMAS, WEATHER, Example
from meterhouse.translate.tool_text import GRAMMARS
from meterhouse.translate.tool_text.parser import MAX_BLANKS, Piece, ToolTextParser
from meterhouse.translate.tool_text.source import MAX_HELD_CHARACTERS
from meterhouse.translate.tool_text.tools import Call, Tools

FORMATS = sorted(GRAMMARS)
NAMES = [f"{row.format}-{number}" for number, row in enumerate(EXAMPLES)]


def parser_of(name: str) -> ToolTextParser:
    return ToolTextParser(GRAMMARS[name], Tools(SCHEMAS))


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    out: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        else:
            out.append(piece)
    return out


def read(name: str, parts: Iterable[str]) -> tuple[list[Piece], dict[str, int]]:
    parser = parser_of(name)
    pieces = [piece for part in parts for piece in parser.feed(part)]
    return joined([*pieces, *parser.finish()]), dict(parser.results)


def cut_at(text: str, places: Iterable[int]) -> list[str]:
    marks = [0, *sorted(places), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(marks)]


def said(name: str, text: str) -> str:
    """What is out after each character of a text, without an end."""
    parser = parser_of(name)
    return "".join(piece for character in text for piece in parser.feed(character) if isinstance(piece, str))


@pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)
def test_an_example_is_what_it_means(example: Example) -> None:
    pieces, results = read(example.format, [example.text])
    assert pieces == example.pieces
    assert results.get("parsed", 0) == sum(isinstance(piece, Call) for piece in pieces)


@pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)
def test_an_example_is_the_same_cut_in_two_anywhere_and_into_characters(example: Example) -> None:
    whole = read(example.format, [example.text])
    for place in range(1, len(example.text)):
        assert read(example.format, cut_at(example.text, [place])) == whole, place
    assert read(example.format, example.text) == whole


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_examples_in_a_row_are_the_same_however_they_are_cut(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FORMATS))
    parts = data.draw(st.lists(fragments(name), min_size=1, max_size=6))
    text = "".join(parts)
    places = data.draw(st.sets(st.integers(0, len(text)), max_size=12))
    whole, results = read(name, [text])
    assert read(name, cut_at(text, places)) == (whole, results)
    if "parsed" not in results:
        assert "".join(str(piece) for piece in whole) == (text.strip() if name == "glm4" else text)


def fragments(name: str) -> st.SearchStrategy[str]:
    """Pieces of a family's own texts, whole and torn, and of others."""
    texts = [row.text for row in EXAMPLES if row.format == name]
    torn = st.tuples(st.sampled_from(texts), st.integers(0, 200), st.integers(0, 200)).map(
        lambda row: row[0][min(row[1:]) : max(row[1:])]
    )
    markers = st.sampled_from([*GRAMMARS[name].markers, "```", "\n```\n", "<think>", "</think>", "\n", " ", "{", "["])
    return st.one_of(st.sampled_from(texts), torn, markers, st.text(max_size=20))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=6,
)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=30)


@given(name=st.sampled_from(FORMATS), city=PLAIN, days=st.integers(), celsius=st.booleans(), more=VALUES, rest=PLAIN)
@settings(max_examples=200, deadline=None)
def test_what_a_family_writes_it_reads(name: str, city: str, days: int, celsius: bool, more: object, rest: str) -> None:
    given_values = {"city": city, "days": days, "celsius": celsius, "options": {"more": more, "rest": rest}}
    if name in {"glm45", "qwen3_coder"} and "<" in json.dumps(more):
        return
    text = GRAMMARS[name].write(WEATHER, json.dumps(given_values))
    (call,), _ = read(name, [text[:7], text[7:]])
    assert isinstance(call, Call)
    assert call.name == WEATHER
    assert json.loads(call.arguments) == given_values


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "Hello <tool_b"),
        ("hermes", '<tool_call>\n{"name": "now", x'),
        ("hermes", '<tool_call>\n{"name": "now", "arguments": {"a": 1}, "b" ?'),
        ("hermes", '<tool_call>{"name": "now", "arguments": {"n": 01'),
        ("glm4", "get_weatherx"),
        ("glm4", "now\nH"),
        ("glm4", 'now\n{"a": tru!'),
        ("glm45", "<tool_call>get_x"),
        ("glm45", "<tool_call>now<arg_value>"[:-8] + "x"),
        ("qwen3_coder", "<tool_call>\n<parameter"[:-8]),
        ("qwen3_coder", "<tool_call>\n<function=nowx"),
        ("qwen3_coder", "<function=now>\ntext"[:-3]),
        ("llama3_json", '{"w'),
        ("llama3_json", '{"name": "now", "x'),
        ("pythonic", "[n1"),
        ("pythonic", "[now(a b"),
        ("pythonic", "[now(a=b"),
        ("mistral", "[TOOL_CALLS] x"),
        ("mistral", '[TOOL_CALLS] [{"name": x'),
        ("deepseek_v3", "<｜tool▁calls▁begin｜>\nx"),  # noqa: RUF001 - its own bars
        ("kimi_k2", "<|tool_call_begin|>functions.now:0 x"),
    ],
)
def test_text_is_let_go_at_the_first_character_that_does_not_fit(name: str, text: str) -> None:
    assert said(name, text[:-1]) != text[:-1]
    assert said(name, text) == text


@given(text=st.text(st.characters(exclude_characters="<[{`ngw", exclude_categories=["Zs", "Cc", "Zl", "Zp"])))
def test_text_without_the_first_character_of_a_call_is_never_held(text: str) -> None:
    for name in FORMATS:
        assert said(name, text) == text


def test_only_the_end_that_may_begin_a_marker_is_held() -> None:
    parser = parser_of("hermes")
    assert parser.feed("a < b <tool") == ["a < b "]
    assert parser.feed("_call") == []
    assert parser.feed("er") == ["<tool_caller"]


def test_white_space_before_an_answer_is_held_no_longer_than_it_is_alone() -> None:
    parser = parser_of("hermes")
    assert parser.feed("\n\n") == []
    assert parser.feed("H") == ["\n\nH"]


def test_a_call_is_told_as_soon_as_it_is_whole() -> None:
    assert parser_of("hermes").feed('<tool_call>{"name":"now"}') == [CLOCK]
    assert parser_of("glm4").feed("now\n{}") == [CLOCK]
    assert parser_of("pythonic").feed("[now(),") == [CLOCK]


def test_a_call_without_an_end_is_text_at_the_bound_and_what_follows_is_read_on() -> None:
    for name, head in (
        ("hermes", '<tool_call>{"name":"now","arguments":{"a":"'),
        ("glm45", "<tool_call>now<arg_key>a</arg_key><arg_value>"),
        ("qwen3_coder", "<function=now><parameter=a>"),
        ("pythonic", '[now(a="'),
        ("llama3_json", '{"name":"'),
    ):
        text = head + "x" * MAX_HELD_CHARACTERS
        parser = parser_of(name)
        out = "".join(str(piece) for part in cut_at(text, range(0, len(text), 5_000)) for piece in parser.feed(part))
        assert len(out) >= MAX_HELD_CHARACTERS, name
        assert read(name, [text])[0] == [text]
        assert read(name, cut_at(text, range(0, len(text), 7_001))) == ([text], {"too_long": 1})


def test_many_blanks_are_text_where_blanks_around_an_answer_mean_nothing() -> None:
    text = "a" + " " * (3 * MAX_BLANKS + 5)
    for size in (1_000, len(text)):
        assert read("glm4", cut_at(text, range(0, len(text), size)))[0] == ["a" + " " * 3 * MAX_BLANKS]
    assert read("glm4", [" " * 10 * MAX_BLANKS + "a"])[0] == ["a"]


def test_an_answer_that_was_cut_gives_no_call_whose_value_may_be_a_half() -> None:
    text = "<function=write_note>\n<parameter=text>\nHalf of "
    parser = parser_of("qwen3_coder")
    assert joined([*parser.feed(text), *parser.finish(is_cut=True)]) == [text]
    assert parser.results == {"unfinished": 1}
    assert read("qwen3_coder", [text])[0] == [Call("write_note", '{"text":"Half of "}')]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("hermes", "<tool_call>{no}", "malformed"),
        ("hermes", '<tool_call>{"name": "later"}', "unknown_function"),
        ("hermes", '<tool_call>{"name": "now"', "unfinished"),
        ("glm4", "now\n{no", "malformed"),
        ("glm4", 'now\n{"a": 1', "unfinished"),
        ("llama3_json", '{"name": "later"}', "unknown_function"),
        ("llama3_json", '{"name": "now"', "unfinished"),
        ("pythonic", "[now(a=?)]", "malformed"),
        ("pythonic", '[now(a="\\ud800")]', "malformed"),
        ("pythonic", "[now(a='\\N{no}')]", "malformed"),
        ("mistral", "[TOOL_CALLS]later[ARGS]{}", "unknown_function"),
        ("kimi_k2", "<|tool_call_begin|>functions.later:0<|tool_call_argument_begin|>{}", "unknown_function"),
        ("deepseek_v3", "<｜tool▁call▁begin｜>later<｜tool▁sep｜>{}", "unknown_function"),  # noqa: RUF001
    ],
)
def test_a_failure_has_a_reason(name: str, text: str, reason: str) -> None:
    assert read(name, [text]) == ([text], {reason: 1})


@pytest.mark.parametrize(
    "text", ["Hello", "now", "[1]", '{"a": 1}', "<", "get_weather is a function", "```\n<tool_call>\n```", ""]
)
def test_text_that_is_no_attempt_is_no_failure(text: str) -> None:
    assert all(read(name, [text]) == ([text] if text else [], {}) for name in FORMATS)


ODD = {"properties": {"a": {"type": [{}, 5], "anyOf": 5, "oneOf": [5, {"type": []}], "enum": 5}}, "required": 5}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("city", "5", "5"),
        ("city", "null", "null"),
        ("city", " x ", " x "),
        ("zip", "null", None),
        ("zip", "75001", "75001"),
        ("days", "3", 3),
        ("days", "3.0", 3),
        ("days", "12345678901234567890123", 12345678901234567890123),
        ("days", "many", "many"),
        ("ratio", "1.50", 1.5),
        ("celsius", "true", True),
        ("celsius", "False", False),
        ("near", '["a"]', ["a"]),
        ("near", "a, b", "a, b"),
        ("options", '{"a": {"b": null}}', {"a": {"b": None}}),
        ("unknown", "5", 5),
        ("unknown", "[1", "[1"),
        ("unknown", '"quoted"', '"quoted"'),
        ("unknown", "NaN", "NaN"),
    ],
)
def test_bare_text_becomes_what_the_schema_wants(key: str, text: str, value: object) -> None:
    answer = f"<tool_call>get_weather<arg_key>{key}</arg_key><arg_value>{text}</arg_value></tool_call>"
    (call,), _ = read("glm45", [answer])
    assert isinstance(call, Call)
    assert json.loads(call.arguments) == {key: value}


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("hermes", '<tool_call>{"name":"now","arguments":"{\\"a\\": 1.50}"}', '{"a":1.50}'),
        ("hermes", '<tool_call>{"name":"now","arguments":null}', "{}"),
        ("hermes", '<tool_call>{"name":"now","arguments":{"a":12345678901234567890123, "b":1e300}}', None),
        ("pythonic", r"[now(a='\d+\\d \x41', b=1.50, c=1e300)]", r'{"a":"\\d+\\d A","b":1.50,"c":1e300}'),
    ],
)
def test_numbers_and_escapes_keep_their_meaning(name: str, text: str, arguments: str | None) -> None:
    (call,), _ = read(name, [text])
    assert isinstance(call, Call)
    assert call.arguments == (arguments or '{"a":12345678901234567890123,"b":1e300}')


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name":"now","arguments":{"a":"\\u12zz"}}',
        '<tool_call>{"name":"now","arguments":"no"}',
        '<tool_call>{"name":"now","arguments":[1]}',
        '<tool_call>{"name":5}',
        "<tool_call>" + '{"a":' * 200,
    ],
)
def test_what_a_client_could_not_read_is_no_call(text: str) -> None:
    assert read("hermes", [text]) == ([text], {"malformed": 1})


def test_a_schema_that_is_none_casts_nothing_and_breaks_nothing() -> None:
    for schema in (None, {}, {"properties": 5}, {"properties": {"a": 5}}, {"properties": {"a": {"type": 5}}}, ODD):
        parser = ToolTextParser(GRAMMARS["glm45"], Tools({NOW: schema}))  # type: ignore[dict-item]
        text = "<tool_call>now<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>"
        assert parser.feed(text) == [Call(NOW, '{"a":1}')]


NASTY = {
    "markers": lambda name: GRAMMARS[name].markers[0],
    "half markers": lambda name: GRAMMARS[name].markers[0][:-1],
    "markers and braces": lambda name: GRAMMARS[name].markers[0] + "{",
    "open objects": lambda _: '{"name":',
    "open lists": lambda _: "[now(",
    "blanks": lambda _: "\n ",
    "fences": lambda _: "\n```",
    "names": lambda _: "get_weather\n",
    "calls": lambda name: GRAMMARS[name].write(WEATHER, PARIS.arguments) + "\n",
    "half calls": lambda name: GRAMMARS[name].write(WEATHER, PARIS.arguments)[:-12] + "\n",
}


SLOW_KINDS = {"calls", "half calls", "markers", "markers and braces", "fences"}
"""Each of their parts is read to its end, which takes its time: a family with JSON and one with bare text show it."""


def seconds_for(name: str, text: str, size: int, times: int = 1) -> float:
    """The shortest time in which a text is read in pieces."""
    parts = cut_at(text, range(0, len(text), size))
    found = []
    for _ in range(times):
        begin = time.process_time()
        read(name, parts)
        found.append(time.process_time() - begin)
    return max(min(found), 0.002)


@pytest.mark.parametrize("kind", sorted(NASTY))
def test_a_megabyte_that_is_meant_to_hurt_costs_linear_time(kind: str) -> None:
    for name in ("hermes", "qwen3_coder") if kind in SLOW_KINDS else FORMATS:
        unit = NASTY[kind](name)
        text = unit * (1_048_576 // len(unit))
        ratio = seconds_for(name, text, 65_536) / seconds_for(name, text[: len(text) // 8], 65_536, 3)
        assert ratio < 24, (name, ratio)


def test_a_long_call_in_small_pieces_costs_linear_time() -> None:
    for name, head in (("hermes", '<tool_call>{"name":"now","arguments":{"a":"'), ("glm45", "<tool_call>now<arg_key>")):
        text = head + "x" * 240_000
        ratio = seconds_for(name, text, 8) / seconds_for(name, text[: len(text) // 8], 8, 3)
        assert ratio < 24, (name, ratio)
