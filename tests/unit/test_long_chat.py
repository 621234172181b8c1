"""A long request is read as any other, however its long texts are left out while it is."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterhouse.asked import Asked
from meterhouse.http.attempts import is_soon_encoded
from meterhouse.http.long_chat import ask_long_chat
from meterhouse.http.skeleton import LONG_BODY_BYTES, leave_texts_out
from meterhouse.http.wires.chat import ChatWire
from meterhouse.providers.provider import Provider

LONG = 'é "quoted" \\ \x01 text; ' + "z" * 4_000
PADDING = "x" * LONG_BODY_BYTES
IMAGE = "data:image/png;base64," + "A" * 4_000

texts = st.sampled_from(["", "hi", LONG, PADDING, "\x00", "\x000000000"])
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.just({"type": "image_url", "image_url": {"url": IMAGE}}),
    st.builds(lambda text: {"type": "odd", "odd": text}, texts),
)
messages = st.one_of(
    st.builds(lambda text: {"role": "user", "content": text}, texts),
    st.builds(lambda found: {"role": "user", "content": found}, st.lists(parts, max_size=3)),
    st.builds(lambda text: {"role": "tool", "tool_call_id": "c", "content": text}, texts),
    st.builds(lambda text: {"role": "assistant", "content": None, "reasoning_content": text}, texts),
    st.builds(lambda text: {"role": "user", "content": "x", "odd": text}, texts),
)
fields = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0, 0.5])},
    optional={"user": texts, "odd": texts, "max_tokens": st.just(7), "stream": st.booleans()},
)


def encode(fields: dict[str, Any], found: list[dict[str, Any]], *, is_compact: bool, is_ascii: bool) -> bytes:
    body = {"model": "m", "messages": [*found, {"role": "user", "content": PADDING}], **fields}
    separators = (",", ":") if is_compact else (" , ", " : ")
    return json.dumps(body, separators=separators, ensure_ascii=is_ascii).encode()


def ask(body: bytes) -> Asked | None:
    skeleton = leave_texts_out(body)
    return ask_long_chat(skeleton) if skeleton is not None else None


@given(fields, st.lists(messages, max_size=3), st.booleans(), st.booleans())
@settings(deadline=None)
def test_what_is_read_of_a_skeleton_is_what_the_whole_body_says(
    fields: dict[str, Any], found: list[dict[str, Any]], is_compact: bool, is_ascii: bool
) -> None:
    body = encode(fields, found, is_compact=is_compact, is_ascii=is_ascii)
    asked = ask(body)
    if asked is None:
        return
    whole = ChatWire().read(body, "", str)
    assert asked.chat is not None
    assert whole.chat is not None
    assert asked.chat.request == whole.chat.request
    assert list(asked.chat.fields) == list(whole.chat.fields)
    assert [bytes(raw) for raw in asked.chat.fields.values()] == [bytes(raw) for raw in whole.chat.fields.values()]
    whole.chat.fields, whole.chat.length_bytes = asked.chat.fields, asked.chat.length_bytes
    assert asked == whole


@pytest.mark.parametrize(
    "content", [LONG, [{"type": "text", "text": LONG}], [{"type": "image_url", "image_url": {"url": IMAGE}}]]
)
def test_a_long_text_in_its_usual_place_is_read_by_the_skeleton(content: Any) -> None:
    asked = ask(encode({}, [{"role": "user", "content": content}], is_compact=True, is_ascii=False))
    assert asked is not None
    assert asked.messages[1].content == PADDING


@pytest.mark.parametrize(
    "fields", [{"user": PADDING}, {"odd": LONG}, {"temperature": 9}, {"previous_response_id": "r"}]
)
def test_what_is_unusual_or_wrong_is_left_to_who_reads_the_whole_body(fields: dict[str, Any]) -> None:
    assert ask(encode(fields, [], is_compact=True, is_ascii=True)) is None


def test_a_text_that_looks_like_a_mark_is_none() -> None:
    for text in ("\x000000000", "\x00", "a\x00"):
        assert ask(encode({}, [{"role": "user", "content": text}], is_compact=True, is_ascii=True)) is None


@pytest.mark.parametrize(
    ("row", "is_soon"),
    [
        ({}, True),
        ({"wire": "ollama"}, False),
        ({"wire": "anthropic"}, False),
        ({"renders_tools": True, "tool_call_format": "glm4"}, False),
        ({"flattens_text_parts": True}, False),
        ({"reasoning_replay": "fill"}, False),
        ({"dropped_message_fields": frozenset({"reasoning_content"})}, False),
    ],
)
def test_who_reads_long_texts_again_on_their_way_to_the_provider_does_it_beside(
    row: dict[str, Any], *, is_soon: bool
) -> None:
    provider = Provider(**{"name": "p", "wire": "openai", "base_url": None} | row)
    user = {"role": "user", "content": "word " * 100_000}
    long, short = (ask(encode({}, found, is_compact=True, is_ascii=True)) for found in ([user], []))
    assert long is not None
    assert is_soon_encoded(long, provider) is is_soon
    assert short is not None
    assert is_soon_encoded(short, provider)
