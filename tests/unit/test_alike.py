"""What is told of a chunk without decoding it is what decoding tells."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterhouse.errors import UpstreamDown
from meterhouse.http.alike import MOST_AT_ONCE, MOST_BYTES, MOST_TRIES, AlikeChunks
from meterhouse.http.chunk import Chunk, decode_chunk, is_failure, read_usage, text_of
from meterhouse.http.sse import frame
from meterhouse.http.tidy import tidy

ASKED = "asked/model"
REASONS = {"end_turn": "stop"}
SPELLINGS: tuple[dict[str, Any], ...] = (
    {"separators": (",", ":"), "ensure_ascii": False},
    {"separators": (",", ":"), "ensure_ascii": True},
    {"ensure_ascii": False},
    {"separators": (" , ", " : "), "ensure_ascii": False},
)


def chunk(delta: dict[str, Any], choice: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    row = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} | (choice or {})
    return {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [row]} | fields


def spell(fields: object, spelling: int = 0) -> bytes:
    return json.dumps(fields, **SPELLINGS[spelling]).encode("utf-8", "surrogatepass")


def sent_for(payload: bytes, read: Chunk) -> bytes:
    return frame(tidy(payload, read, ASKED, REASONS))


def tell(alike: AlikeChunks, payload: bytes) -> tuple[str, bytes] | None:
    """Return what is told of one chunk, alone and among others, as events and as payloads."""
    event = event_of(payload)
    told = alike.tell(event)
    assert alike.tell_payloads([b"before", payload], 1) == told
    assert alike.tell_payloads([b"before", payload, b"{}", payload], 1) == told
    if told is None:
        assert alike.tell(event + event) is None
        assert alike.tell_payloads([payload, payload], 0) is None
        return None
    chunks, text, text_bytes, sent = told
    assert (chunks, text_bytes) == (1, len(text.encode()))
    assert alike.tell(event + event) == (2, 2 * text, 2 * text_bytes, 2 * sent)
    assert alike.tell_payloads([payload, payload], 0) == alike.tell(event + event)
    assert alike.tell_payloads([payload, payload, b"{}"], 0) == alike.tell(event + event)
    for behind in (b"data: {}\n\n", b"data: [DONE]\n\n", event[:-1], event[:-2], event[:9]):
        assert alike.tell(event + behind) is alike.tell(event + event + behind) is None
    assert alike.tell(event[:-1]) is alike.tell(event[:-2]) is alike.tell(event[:-3]) is None
    assert alike.tell(event[:-2] + b"xx") is alike.tell(event + event[:-2] + b"\n ") is None
    return text, sent


def event_of(payload: bytes) -> bytes:
    return b"data: %b\n\n" % payload


def hear(alike: AlikeChunks, payload: bytes) -> str | None:
    """Take a chunk as the relay does, and check what was told of it; returns that."""
    told = tell(alike, payload)
    if told is None:
        read = decode_chunk(payload)
        if not is_failure(read):
            alike.learn(payload, read, sent_for(payload, read))
        return None
    text, sent = told
    read = decode_chunk(payload)
    (choice,) = read.choices or ()
    assert choice.delta is not None
    assert text
    assert text == text_of(choice.delta)
    assert choice.finish_reason is None
    assert read_usage(read) is None
    assert not is_failure(read)
    assert sent == sent_for(payload, read)
    return text


@pytest.mark.parametrize("name", ["content", "reasoning_content"])
@pytest.mark.parametrize("spelling", [0, 1, 2])
def test_the_second_chunk_of_a_text_is_told(name: str, spelling: int) -> None:
    alike = AlikeChunks()
    assert hear(alike, spell(chunk({"role": "assistant", "content": None}), spelling)) is None
    assert hear(alike, spell(chunk({name: "Hello"}), spelling)) is None
    assert [hear(alike, spell(chunk({name: text}), spelling)) for text in (" there", "!", "x")] == [" there", "!", "x"]


def test_a_text_that_is_not_ascii_is_told() -> None:
    alike = AlikeChunks()
    texts = ["caf\u00e9", "\u6f22\u5b57", "\U0001f600", "\u00df"]
    assert [hear(alike, spell(chunk({"content": text}))) for text in texts] == [None, *texts[1:]]


def calling(text: str, index: int = 0, **fields: Any) -> dict[str, Any]:
    return chunk({"tool_calls": [{"index": index, "function": {"arguments": text}} | fields]})


@pytest.mark.parametrize("spelling", [0, 1, 2])
@pytest.mark.parametrize("fields", [{}, {"id": ""}, {"id": None}, {"type": "function"}])
def test_pieces_of_the_arguments_of_a_call_are_told(fields: dict[str, Any], spelling: int) -> None:
    alike = AlikeChunks()
    texts = ['{"', "place", '":"', "\u6f22", '"}', "\n"]
    assert [hear(alike, spell(calling(text, **fields), spelling)) for text in texts] == [None, None, *texts[2:]]


@pytest.mark.parametrize(
    "other",
    [
        calling("x", 1),
        calling("x", id="c2"),
        calling("x", function={"name": "f", "arguments": "x"}),
        calling("x", custom={"input": "y"}),
        calling(""),
        chunk({"content": "y", "tool_calls": [{"index": 0, "function": {"arguments": "x"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "x"}}] * 2}),
        chunk({"content": "x"}),
    ],
)
def test_what_says_more_than_arguments_is_read(other: dict[str, Any]) -> None:
    alike = AlikeChunks()
    for word in ("Hello", "there", "you"):
        said = hear(alike, spell(calling(word)))
    assert said == "you"
    assert tell(alike, spell(other)) is None
    fresh = AlikeChunks()
    assert hear(fresh, spell(other)) is None
    if "tool_calls" in other["choices"][0]["delta"] and other not in (calling("x", 1), calling("x", id="c2")):
        assert tell(fresh, spell(other)) is None


@pytest.mark.parametrize(
    "other",
    [
        chunk({"content": ""}),
        chunk({"content": None}),
        chunk({}),
        chunk({"content": "x"}, {"finish_reason": "stop"}),
        chunk({"content": "x"}, {"index": 1}),
        chunk({"content": "x"}, {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}),
        chunk({"content": "x", "reasoning_content": "y"}),
        chunk({"content": "x", "tool_calls": []}),
        chunk({"content": "x"}, usage={"prompt_tokens": 1, "completion_tokens": 2}),
        chunk({"content": "x"}, error={"message": "no"}),
        chunk({"content": "x"}, model="other"),
        chunk({"content": "x"}, service_tier="flex"),
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
        {"error": {"message": "no"}},
    ],
)
def test_what_differs_in_more_than_a_text_is_read(other: dict[str, Any]) -> None:
    alike = AlikeChunks()
    hear(alike, spell(chunk({"content": "Hello"})))
    assert hear(alike, spell(chunk({"content": "there"}))) == "there"
    assert tell(alike, spell(other)) is None


def test_a_text_beside_a_delta_of_another_type_is_not_taken_for_it() -> None:
    alike = AlikeChunks()
    for text in ("Hello", "5", "7"):
        assert hear(alike, spell({"content": text, "choices": [{"delta": 5}]})) is None


@pytest.mark.parametrize("other", [chunk({"content": ""}), chunk({"content": "c"}, {"index": 1}), chunk({}), {}])
def test_a_read_is_told_up_to_the_chunk_that_differs(other: dict[str, Any]) -> None:
    alike = AlikeChunks()
    hear(alike, spell(chunk({"content": "Hello"})))
    words = [spell(chunk({"content": word})) for word in ("a", "b", "d")]
    payloads = [*words[:2], spell(other), words[2]]
    sent = [sent_for(word, decode_chunk(word)) for word in words]
    assert alike.tell_payloads(payloads, 0) == (2, "ab", 2, sent[0] + sent[1])
    assert alike.tell_payloads(payloads, 1) == (1, "b", 1, sent[1])
    assert alike.tell_payloads(payloads, 2) is None
    assert alike.tell_payloads(payloads, 3) == (1, "d", 1, sent[2])
    assert alike.tell(b"".join(map(event_of, payloads))) is None


@pytest.mark.parametrize(
    "behind", [b": comment\n\n", b"event: x\n\n", b"\n", b"d", b"data:x\n\n", b"data: x\ndata: y\n\n"]
)
def test_lines_of_another_kind_are_never_told(behind: bytes) -> None:
    alike = AlikeChunks()
    hear(alike, spell(chunk({"content": "Hello"})))
    event = event_of(spell(chunk({"content": "a"})))
    for data in (behind, behind + event, event + behind, event + event + behind, event + behind + event):
        assert alike.tell(data) is None
    assert alike.tell(event[:-2] + b"\ndata: y\n\n") is None


def test_of_a_long_list_a_part_is_told_at_a_time() -> None:
    alike = AlikeChunks()
    hear(alike, spell(chunk({"content": "Hello"})))
    words = [spell(chunk({"content": f"{number} "})) for number in range(MOST_AT_ONCE + 2)]
    told = alike.tell_payloads(words, 0), alike.tell_payloads(words, MOST_AT_ONCE)
    assert [row[0] for row in told if row is not None] == [MOST_AT_ONCE, 2]


@pytest.mark.parametrize("fields", [{}, {"obfuscation": "x8Kd"}])
def test_a_read_that_is_long_is_left_to_the_reader(fields: dict[str, Any]) -> None:
    alike = AlikeChunks()
    hear(alike, spell(chunk({"content": "Hello"}, **fields)))
    event = event_of(spell(chunk({"content": "a"}, **fields)))
    most = MOST_BYTES // len(event)
    told = alike.tell(event * most)
    assert told is not None
    assert told[0] == most
    assert alike.tell(event * (most + 1)) is None
    assert alike.tell(event_of(spell(chunk({"content": "x" * MOST_BYTES}, **fields)))) is None


@pytest.mark.parametrize("spelling", [0, 1, 2])
@pytest.mark.parametrize("paddings", [["", "a", "x8Kd9Zq"], ["x8Kd9Zq", "a", ""], ["0" * 64, "1" * 64, "z"]])
def test_a_text_beside_a_padding_that_varies_is_told(paddings: list[str], spelling: int) -> None:
    alike = AlikeChunks()
    said = [
        hear(alike, spell(chunk({"content": text}, obfuscation=padding), spelling))
        for text, padding in zip(["Hello", " there", 'a "b"\n'], paddings, strict=True)
    ]
    assert said == [None, " there", 'a "b"\n']


def test_several_chunks_with_paddings_are_told_up_to_the_one_that_differs() -> None:
    alike = AlikeChunks()
    hear(alike, spell(chunk({"role": "assistant", "content": "Hello"}, obfuscation="abc")))
    words = [spell(chunk({"content": word}, obfuscation=word * 3)) for word in ("a", "b", "c")]
    sent = [sent_for(word, decode_chunk(word)) for word in words]
    assert alike.tell(b"".join(map(event_of, words))) == (3, "abc", 3, b"".join(sent))
    other = spell(chunk({"content": "x"}, {"finish_reason": "stop"}, obfuscation="abc"))
    assert alike.tell_payloads([*words, other, words[0]], 1) == (2, "bc", 2, sent[1] + sent[2])
    assert alike.tell(b"".join(map(event_of, [*words, other]))) is None
    assert alike.tell(b"".join(map(event_of, words)) + b"data: [DONE]\n\n") is None


@pytest.mark.parametrize(
    "padding", ['a","x":"', 'a"', "a\\u0022", "a b", "\u00e9", "-", "a" * 65, 'x"},"usage":{"a":"']
)
def test_what_is_more_than_a_padding_is_read(padding: str) -> None:
    alike = AlikeChunks()
    before, after = spell(chunk({"content": "Hello"}, obfuscation="x8Kd")).split(b"x8Kd")
    hear(alike, before + b"x8Kd" + after)
    assert tell(alike, before + b"y" + after) is not None
    assert tell(alike, before + padding.encode() + after) is None


def test_beside_a_padding_all_else_is_as_it_was() -> None:
    alike = AlikeChunks()
    hear(alike, spell(chunk({"content": "Hello"}, obfuscation="x8Kd")))
    for other in (chunk({"content": "a"}, id="c2"), chunk({"content": "a"}, {"index": 1}), chunk({"content": ""})):
        payload = spell(other | {"obfuscation": "x8Kd"})
        assert tell(alike, payload) is None
        good = spell(chunk({"content": "a"}, obfuscation="y"))
        assert tell(alike, good) is not None
        assert alike.tell(event_of(good) + event_of(payload)) is None
    # A chunk without one is another, and those like it are told once it was read.
    assert hear(alike, spell(chunk({"content": "a"}))) is None
    assert hear(alike, spell(chunk({"content": "b"}))) == "b"


def test_a_padding_that_is_not_passed_on_is_a_part_of_the_chunk() -> None:
    alike = AlikeChunks()
    payload, bare = (spell(chunk({"content": "Hello"}, **fields)) for fields in ({"obfuscation": "x8Kd"}, {}))
    alike.learn(payload, decode_chunk(payload), frame(bare))
    assert alike.tell(event_of(payload)) == (1, "Hello", 5, frame(bare))
    assert alike.tell(event_of(payload.replace(b"x8Kd", b"y"))) is None


@pytest.mark.parametrize("after", [b'"},"x":1}', b'"x8Kd"}', b'"}}', b"}", b'"'])
def test_what_follows_a_padding_is_what_followed_the_first(after: bytes) -> None:
    alike = AlikeChunks()
    payload = spell(chunk({"content": "Hello"}, obfuscation="x8Kd"))
    hear(alike, payload)
    assert tell(alike, payload.removesuffix(b'"}') + after) is None


@pytest.mark.parametrize(
    "text", ['"', "\n", "\\", "\t a", 'a "quote"', "x\u2028y", "\x7f", "\u3000", "\U0001f600", "\\n", '\\"']
)
@pytest.mark.parametrize("spelling", range(3))
def test_a_text_with_escapes_is_told(text: str, spelling: int) -> None:
    alike = AlikeChunks()
    assert hear(alike, spell(chunk({"content": "Hello"}), spelling)) is None
    assert hear(alike, spell(chunk({"content": text}), spelling)) == text


def test_a_text_whose_chunk_may_be_searched_for_others_is_read() -> None:
    alike = AlikeChunks()
    hear(alike, spell(chunk({"content": "Hello"}), 1))
    # Spelled by escapes it is twelve times as long as Python counts it.
    assert hear(alike, spell(chunk({"content": "\U0001f600" * 200}), 1)) is None
    assert hear(alike, spell(chunk({"content": "\U0001f600" * 200}))) is not None


def test_halves_of_a_character_in_two_chunks_are_none() -> None:
    alike = AlikeChunks()
    before, after = spell(chunk({"content": "Hello"})).split(b"Hello")
    hear(alike, before + b"Hello" + after)
    for halves in ((b"b\xc3", b"\x9f"), (rb"\ud83d", rb"\ude00"), (b"b\\", b"n")):
        payloads = [before + half + after for half in (b"a", *halves)]
        told = (1, "a", 1, sent_for(payloads[0], decode_chunk(payloads[0])))
        assert alike.tell_payloads(payloads, 0) == told
        assert alike.tell(b"".join(map(event_of, payloads))) is None
        assert alike.tell_payloads(payloads, 1) is None


def test_payloads_that_are_joined_in_one_are_none() -> None:
    alike = AlikeChunks()
    payload = spell(chunk({"content": "Hello"}))
    hear(alike, payload)
    for between in (b"\n", b"\n\n", b"\n\ndata: "):
        joined = payload + between + payload
        assert alike.tell_payloads([joined], 0) is None
        assert alike.tell_payloads([joined, payload], 0) is None
    assert alike.tell(event_of(payload + b"\n" + payload)) is None


def test_a_payload_of_several_lines_is_never_learned() -> None:
    alike = AlikeChunks()
    payload = spell(chunk({"content": "Hello"})).replace(b'{"id"', b'{\n"id"')
    hear(alike, payload)
    assert tell(alike, payload) is None
    assert tell(alike, payload.replace(b"\n", b" ")) is None


@pytest.mark.parametrize("first", ["Hello", ""])
@pytest.mark.parametrize("spelling", range(3))
@pytest.mark.parametrize("name", ["content", "reasoning_content"])
def test_the_chunk_behind_the_first_which_has_the_role_is_told(name: str, spelling: int, first: str) -> None:
    alike = AlikeChunks()
    assert hear(alike, spell(chunk({"role": "assistant", name: first}), spelling)) is None
    assert hear(alike, spell(chunk({name: " there"}), spelling)) == " there"


def test_where_each_chunk_has_the_role_those_behind_the_second_are_told() -> None:
    alike = AlikeChunks()
    payload = spell(chunk({"role": "assistant", "content": "Hello"}))
    assert [hear(alike, payload) for _ in range(3)] == [None, None, "Hello"]


@pytest.mark.parametrize(
    "raw", [b"\xff", b"\xed\xa0\x80", b"\x00", b"\x1f", b"\t", rb"\x", rb"\ud83d", rb"\u12", b"\\"]
)
def test_bytes_that_are_no_text_are_read(raw: bytes) -> None:
    alike = AlikeChunks()
    before, after = spell(chunk({"content": "Hello"})).split(b"Hello")
    hear(alike, before + b"Hello" + after)
    assert tell(alike, before + raw + after) is None


@pytest.mark.parametrize(
    "payload",
    [
        # The text that is decoded is spelled with an escape, and the same characters stand elsewhere.
        rb'{"choices":[{"delta":{"content":"\u0068i"},"x":{"content":"hi"}}]}',
        rb'{"choices":[{"delta":{"c\u006fntent":"hi"},"x":{"content":"hi"}}]}',
        # Two fields of the name, of which one is the text.
        b'{"choices":[{"delta":{"content":"hi"},"x":{"content":"hi"}}]}',
        b'{"content":"hi","choices":[{"delta":{"content" : "hi"}}]}',
        b'{"x":"content","choices":[{"delta":{"content":"hi"}}]}',
        # More than may stand beside a text that is not searched for others.
        b'{"x":"' + b"y" * 2_000 + b'","choices":[{"delta":{"content":"hi"}}]}',
    ],
)
def test_a_text_that_may_be_another_fields_is_never_learned(payload: bytes) -> None:
    alike = AlikeChunks()
    hear(alike, payload)
    assert tell(alike, payload) is None


def test_a_name_that_was_asked_for_cannot_pass_for_the_text() -> None:
    payload = spell(chunk({"content": "hi"}))
    read = decode_chunk(payload)
    alike = AlikeChunks()
    alike.learn(payload, read, frame(tidy(payload, read, 'x"content":"hi"', REASONS)))
    assert tell(alike, payload) is None


def test_a_stream_whose_chunks_all_differ_is_soon_left_alone_and_one_that_changes_rarely_is_not() -> None:
    differing, changing = AlikeChunks(), AlikeChunks()
    for number in range(MOST_TRIES):
        hear(differing, spell(chunk({"content": "x"}, created=number)))
        for _ in range(3):
            told = hear(changing, spell(chunk({"content": "x"}, created=number)))
        assert told == "x"
    hear(differing, spell(chunk({"content": "x"}, created=100)))
    assert tell(differing, spell(chunk({"content": "x"}, created=100))) is None


texts = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["content", '"', '","content":"', "hi", "m"]
)
deltas = st.dictionaries(
    st.sampled_from(["content", "reasoning_content", "reasoning", "refusal", "role", "x"]),
    texts | st.none(),
    max_size=3,
)
rows = st.fixed_dictionaries(
    {"delta": deltas},
    optional={
        "index": st.integers(0, 1),
        "finish_reason": st.sampled_from([None, "stop", "end_turn"]),
        "usage": st.sampled_from([None, {}, {"prompt_tokens": 1, "completion_tokens": 2}]),
        "x": deltas,
    },
)
chunks = st.fixed_dictionaries(
    {"choices": st.lists(rows, min_size=1, max_size=2) | st.just([])},
    optional={
        "model": st.sampled_from(["m", ASKED, None, "hi"]),
        "usage": st.sampled_from([None, {}, {"prompt_tokens": 1, "completion_tokens": 2}]),
        "content": texts,
        "error": st.sampled_from([None, {}]),
        "obfuscation": st.sampled_from(["", "x8Kd", "9"]) | texts,
    },
)


@settings(max_examples=50)
@given(st.lists(chunks, min_size=1, max_size=3), st.lists(texts, max_size=6), st.integers(0, len(SPELLINGS) - 1))
def test_what_is_told_is_what_decoding_tells(kinds: list[dict[str, Any]], said: list[str], spelling: int) -> None:
    alike = AlikeChunks()
    for kind in kinds:
        for text in [None, *said]:
            for row in kind["choices"]:
                row["delta"] |= {} if text is None else {"content": text}
            if text is not None and "obfuscation" in kind:
                kind["obfuscation"] = text if kind["obfuscation"] == "9" else kind["obfuscation"][::-1]
            hear(alike, spell(kind, spelling))


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=6) | texts.map(str.encode), max_size=8))
def test_whatever_bytes_a_text_has_what_is_told_of_it_is_what_decoding_tells(raws: list[bytes]) -> None:
    alike = AlikeChunks()
    before, after = spell(chunk({"content": "Hello"})).split(b"Hello")
    hear(alike, before + b"Hello" + after)
    for raw in raws:
        with suppress(UpstreamDown):
            hear(alike, before + raw + after)
