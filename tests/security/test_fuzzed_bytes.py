"""Bytes that nobody would think of: the parsers that strangers reach, held against readers that are plainly right.

``METERHOUSE_TEST_EXAMPLES`` says how many of each (``infra/test --fuzz`` asks for many); targets for a fuzzer that
watches the code are in ``infra/fuzz``.
"""

import contextlib
import json
import math
import os
from typing import Any

import msgspec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from meterhouse.errors import Malformed
from meterhouse.http.body import BodyEditor, Recipient, parse_chat
from meterhouse.http.chunk import decode_chunk
from meterhouse.http.intake import MAX_DEPTH, MAX_VALUES, check_structure
from meterhouse.http.sse import SseReader, frame
from meterhouse.http.tidy import tidy
from meterhouse.keys.secret import make, parse
from meterhouse.limits.limit import format_limit, parse_limits
from meterhouse.metering import Scope
from meterhouse.providers.catalog import OPENAI_COMPATIBLE, named_provider
from meterhouse.providers.catalog import PROVIDERS as ROWS
from meterhouse.providers.provider import Deployment, Model

EXAMPLES = int(os.environ.get("METERHOUSE_TEST_EXAMPLES", "25"))
many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"\\",
    b"a",
    b"1",
    b"e9",
    b"-",
    b"0",
    b" ",
    b"null",
    b"true",
    b"NaN",
]
TOKENS += [
    b'"a":',
    b'"a":1,',
    b"\\u0061",
    b"\\ud800",
    b"\xff",
    b"\xc3\xa9",
    b"\x00",
    b"\n",
    b"1e999",
    b'"model"',
    b"[[[[[[[[",
]
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | texts
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
bodies = st.lists(st.sampled_from(TOKENS), max_size=30).map(b"".join) | values.map(
    lambda value: json.dumps(value).encode()
)


def plainly(body: bytes) -> bool:
    """Whether a body is what we take: by the standard library, step by step, and slowly."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError
        return dict(pairs)

    def refuse(_: str) -> None:
        raise ValueError

    def look(value: Any) -> tuple[int, int]:
        """Depth and number of values."""
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError
        found = [look(item) for item in inner]
        depth = int(isinstance(value, dict | list)) + max((depth for depth, _ in found), default=0)
        return depth, 1 + sum(count for _, count in found)

    try:
        depth, count = look(json.loads(body.decode(), object_pairs_hook=unique, parse_constant=refuse))
    except (ValueError, RecursionError):
        return False
    return depth <= MAX_DEPTH and count <= MAX_VALUES


@given(bodies)
@example(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
@example(b'{"a":1,"a":1}')
@example(b'[{"a":{"b":1,"b":1}}]')
@example(b'{"a":1,"\\u0061":2}')
@example(b'["\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["]')
@many
def test_the_check_of_a_body_takes_what_is_plainly_good_and_nothing_else(body: bytes) -> None:
    try:
        check_structure(body)
    except Malformed:
        assert not plainly(body)
    else:
        assert plainly(body)


@given(bodies)
@many
def test_no_body_is_more_than_malformed(body: bytes) -> None:
    with contextlib.suppress(Malformed):
        check_structure(body)
        parse_chat(body)


@given(
    st.dictionaries(texts, values, max_size=5),
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": texts}), min_size=1, max_size=4
    ),
    st.booleans(),
    st.integers(1, 4096) | st.none(),
)
@many
def test_an_edited_body_is_the_same_but_for_what_was_to_be_edited(
    unknown: dict[str, Any], messages: list[dict[str, str]], is_streamed: bool, allowance: int | None
) -> None:
    fields = {f"x_{name}": value for name, value in unknown.items()}
    asked = {**fields, "model": "asked", "messages": messages, "stream": is_streamed, "user": "somebody"}
    editor = BodyEditor(b"s" * 32, lambda *_: None)
    row = named_provider(ROWS[OPENAI_COMPATIBLE], "fuzz")
    model = Model(name="served", provider="fuzz", upstream_model="served", context_tokens=None, max_output_tokens=4_096)
    deployment = Deployment(
        id="fuzz/served",
        provider=row,
        base_url="http://x",
        credential=None,
        upstream_model="served",
        model=model,
        price=None,
    )
    sent = json.loads(editor.edit(parse_chat(json.dumps(asked).encode()), Recipient(deployment, "org_1", allowance)))
    assert sent.pop("model") == "served"
    assert sent.pop("messages") == messages
    assert sent.pop("user") != "somebody"
    assert sent.pop("stream") is is_streamed
    sent.pop("stream_options", None)
    bound = sent.pop("max_tokens", sent.pop("max_completion_tokens", None))
    assert bound is None or allowance is None or bound <= allowance
    assert sent == fields


@given(
    st.dictionaries(texts, values, max_size=4),
    texts,
    st.lists(st.dictionaries(texts.filter(lambda name: name != "index"), values, max_size=3), max_size=3),
    st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]),
)
@many
def test_a_renamed_chunk_is_the_same_but_for_its_model(
    unknown: dict[str, Any], served: str, extras: list[dict[str, Any]], separators: tuple[str, str]
) -> None:
    choices = [
        {"index": index, "delta": {"content": '"model":"x"', "x": {"model": served, **extra}}, "finish_reason": None}
        for index, extra in enumerate(extras)
    ]
    chunk = {**{f"x_{name}": value for name, value in unknown.items()}, "model": served, "choices": choices}
    payload = json.dumps(chunk, separators=separators, ensure_ascii=False).encode()
    found = tidy(payload, decode_chunk(payload), "asked", {})
    assert msgspec.json.decode(found) == {**msgspec.json.decode(payload), "model": "asked"}
    (framed,) = SseReader().feed(frame(found))
    assert msgspec.json.decode(framed) == msgspec.json.decode(found)


@given(st.text(max_size=90) | st.text("sk-mhdevadmin0Aa_", max_size=90))
@example(make("dev").value + "\n")
@example(make("dev").value.replace("-", "\u2010"))
@many
def test_no_text_is_a_key_that_was_not_made(text: str) -> None:
    assert parse(text) is None
    made = make("dev").value
    assert parse(made) is not None
    assert parse(made + text[:1]) is None or not text
    assert parse(text[:1] + made) is None or not text


CLAUSES = [
    "requests",
    "tokens",
    "spend",
    "concurrent",
    "10",
    "0",
    "1.5",
    "USD",
    "/minute",
    "/month",
    "total",
    "for",
    "gpt-4o",
]
CLAUSES += [
    ";",
    "\n",
    " ",
    "per 2 hours",
    "-1",
    "9" * 20,
    "\u0661",
    "/",
    "$",
    "1e3",
    "\x00",
    "usd",
    "minute",
    "FOR",
    ",",
]


@given(st.lists(st.sampled_from(CLAUSES), max_size=12).map(" ".join) | st.text(max_size=60))
@many
def test_a_limit_is_malformed_or_written_back_as_it_is_read(text: str) -> None:
    try:
        found = parse_limits(text, Scope.KEY, "key_1")
    except Malformed:
        return
    written = "; ".join(format_limit(limit) for limit in found)
    assert parse_limits(written, Scope.KEY, "key_1") == found
