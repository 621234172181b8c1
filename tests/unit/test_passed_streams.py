"""What is told of an answer that is passed through, while its task sleeps, is what reading it in the task gives.

As ``test_relayed_streams``, for the wires whose events are named.
Not here: what an event means (``test_passed_listeners``).
"""

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.relaying import Stream, relay
from meterhouse.errors import StreamCut
from meterhouse.http.call import Call
from meterhouse.http.flow import Flow
from meterhouse.http.passage import Passage
from meterhouse.http.passing import PassingRelay
from meterhouse.http.respond import OPENAI_ENVELOPE
from meterhouse.http.wires.passed_messages import PassedMessages
from meterhouse.http.wires.passed_responses import PassedResponses
from meterhouse.usage import Outcome

MESSAGES, RESPONSES = PassedMessages(OPENAI_ENVELOPE), PassedResponses()
Event = dict[str, Any]

words = st.sampled_from([" river", "a", "", '"', "\n\n", "\\", "é", "漢字", "\U0001f600", "x" * 1_100, "event: "])
separators = st.sampled_from([(",", ":"), (", ", ": ")])
endings = st.sampled_from([b"\n\n"] * 20 + [b"\r\n\r\n", b"\n\n: comment\n\n", b"\nid: 1\n\n", b"\ndata:\n\n", b"\n"])
holds = st.none() | st.integers(1, 30) | st.integers(31, 3_000)


def message_delta(kind: str, name: str, word: str) -> Event:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, name: word}}


def piece(kind: str, word: str) -> Event:
    place = {"item_id": "i1", "output_index": 0, "content_index": 0}
    return {"type": f"response.{kind}.delta", "sequence_number": 0} | place | {"delta": word, "logprobs": []}


MESSAGE = {"id": "msg_1", "model": "m", "usage": {"input_tokens": 12, "output_tokens": 1}}
MESSAGE_BEGIN: list[Event] = [
    {"type": "message_start", "message": MESSAGE},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
]
MESSAGE_END: list[Event] = [
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
]
message_events = st.one_of(
    *[words.map(lambda word: message_delta("text_delta", "text", word))] * 6,
    words.map(lambda word: message_delta("thinking_delta", "thinking", word)),
    words.map(lambda word: message_delta("input_json_delta", "partial_json", word)),
    words.map(lambda word: message_delta("signature_delta", "signature", word)),
    st.sampled_from(
        [
            {"type": "ping"},
            {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": "f"}},
            {"type": "content_block_stop", "index": 1},
            {"type": "content_block_delta", "index": 0},
            {"type": "of_tomorrow", "delta": {"text": "a"}},
            {"type": "message_delta", "delta": {"text": "a"}, "usage": {"output_tokens": 3}},
            {"type": "content_block_delta", "delta": {"text": 1}},
            {"type": "error", "error": {"type": "overloaded_error", "message": "no"}},
        ]
    ),
)

ITEM = {"id": "i1", "type": "message", "status": "in_progress", "content": []}
RESPONSE_BEGIN: list[Event] = [
    {"type": "response.created", "response": {"id": "resp_1", "model": "m", "status": "in_progress"}},
    {"type": "response.output_item.added", "output_index": 0, "item": ITEM},
    {
        "type": "response.content_part.added",
        "output_index": 0,
        "content_index": 0,
        "part": {"type": "output_text", "text": ""},
    },
]
RESPONSE_END: list[Event] = [
    {"type": "response.output_item.done", "output_index": 0, "item": ITEM | {"status": "completed"}},
    {
        "type": "response.completed",
        "response": {"id": "resp_1", "model": "m", "usage": {"input_tokens": 12, "output_tokens": 7}},
    },
]
response_events = st.one_of(
    *[words.map(lambda word: piece("output_text", word))] * 6,
    words.map(lambda word: piece("output_text", word) | {"obfuscation": "x8Kd"}),
    words.map(lambda word: piece("refusal", word)),
    words.map(lambda word: piece("function_call_arguments", word)),
    words.map(lambda word: piece("unheard_of", word) | {"output_index": 3}),
    words.map(lambda word: {"type": "response.output_item.done", "output_index": 3, "item": {"name": word}}),
    st.sampled_from(
        [
            {"type": "response.output_text.delta", "delta": {"text": "a"}},
            {"type": "response.output_text.delta", "delta": None},
            {"type": "response.output_text.done", "output_index": 0, "text": "a"},
            {"type": "error", "message": "no"},
        ]
    ),
)


def spell(event: Event, spelling: tuple[str, str] = (",", ":"), *, is_ascii: bool = True) -> bytes:
    data = json.dumps(event, ensure_ascii=is_ascii, separators=spelling).encode()
    return b"event: %b\ndata: %b" % (event["type"].encode(), data)


def number(events: list[Event]) -> list[Event]:
    return [event | {"sequence_number": place} for place, event in enumerate(events)]


@st.composite
def streams(draw: st.DrawFn, begin: list[Event], middle: st.SearchStrategy[Event], end: list[Event]) -> Stream:
    rows = number([*begin, *draw(st.lists(middle, max_size=25)), *(end if draw(st.booleans()) else [])])
    spelling, is_ascii = draw(separators), draw(st.booleans())
    pieces = [
        spell(row, spelling, is_ascii=is_ascii) + (draw(endings) if place else b"\n\n")
        for place, row in enumerate(rows)
    ]
    if draw(st.booleans()):
        pieces = [row.split(b"\n", 1)[1] for row in pieces]  # some servers leave the names out
    body = b"".join(pieces)
    places = list(itertools.accumulate(map(len, pieces))) if draw(st.booleans()) else list(range(len(body)))
    cuts = draw(st.lists(st.sampled_from(places), max_size=20, unique=True))
    bodies = [body[start:stop] for start, stop in itertools.pairwise(sorted({0, *cuts, len(body)}))]
    held = draw(holds)
    turns = draw(st.lists(st.integers(0 if held is None else 3, 3), min_size=1, max_size=12))
    return Stream(bodies, turns, held)


def compare(stream: Stream, passage: Passage) -> None:
    told, heard = (asyncio.run(relay(stream, remembers=remembers, passage=passage)) for remembers in (True, False))
    assert told[:3] == heard[:3]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams(MESSAGE_BEGIN, message_events, MESSAGE_END))
def test_a_message_cut_anywhere_is_passed_on_as_by_the_task(stream: Stream) -> None:
    compare(stream, MESSAGES)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams(RESPONSE_BEGIN, response_events, RESPONSE_END))
def test_a_response_cut_anywhere_is_passed_on_as_by_the_task(stream: Stream) -> None:
    """What is told at its end, cut, failed or not, is all that was told before."""
    compare(stream, RESPONSES)


WIRES = [
    (MESSAGES, MESSAGE_BEGIN, message_delta("text_delta", "text", "river"), MESSAGE_END),
    (RESPONSES, RESPONSE_BEGIN, piece("output_text", "river"), RESPONSE_END),
]


def stream_of(begin: list[Event], event: Event, end: list[Event], *, held: int | None = None) -> Stream:
    rows = [spell(row) + b"\n\n" for row in number([*begin, *[event] * 20, *end])]
    first, last = b"".join(rows[: len(begin)]), b"".join(rows[len(begin) + 20 :])
    return Stream([first, *rows[len(begin) : len(begin) + 20], last], [3], held)


@pytest.mark.parametrize(("passage", "begin", "event", "end"), WIRES)
@pytest.mark.parametrize("held", [None, 1_000, 40])
async def test_for_a_text_that_comes_alone_no_task_is_woken(
    passage: Passage,
    begin: list[Event],
    event: Event,
    end: list[Event],
    held: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genuine, woken_for = PassingRelay._take, list[bytes]()

    def take(relay: PassingRelay, payloads: list[bytes]) -> list[bytes]:
        woken_for.extend(payloads)
        return genuine(relay, payloads)

    monkeypatch.setattr(PassingRelay, "_take", take)
    stream = stream_of(begin, event, end, held=held)
    body, failure, attempt, *_ = await relay(stream, remembers=True, passage=passage)
    assert failure == ""
    assert len(woken_for) == len(begin) + len(end)
    assert body.count(b"river") == 20
    assert attempt.outcome is Outcome.COMPLETED
    assert attempt.reported.output_tokens == 7


@pytest.mark.parametrize(("passage", "begin", "event", "end"), WIRES)
async def test_no_more_is_passed_on_than_is_held(
    passage: Passage, begin: list[Event], event: Event, end: list[Event]
) -> None:
    stream = stream_of(begin, event, end, held=12)
    told, heard = [await relay(stream, remembers=remembers, passage=passage) for remembers in (True, False)]
    assert told[:3] == heard[:3]
    assert told[2].outcome is Outcome.CUT


def test_what_was_looked_at_and_then_read_by_the_task_is_told_once() -> None:
    text, other = piece("output_text", "river"), {"type": "response.of_tomorrow"}
    rows = [spell(row) + b"\n\n" for row in number([*RESPONSE_BEGIN, text, other, text])]
    stream = Stream([b"".join(rows[:3]), b"".join(rows[3:5]), rows[5]], [3])
    told, heard = (asyncio.run(relay(stream, remembers=remembers, passage=RESPONSES)) for remembers in (True, False))
    assert told[:3] == heard[:3]
    assert b'"text":"riverriver"' in told[0]


def test_an_event_of_another_type_is_no_text_however_it_looks() -> None:
    other = {"type": "of_tomorrow", "delta": {"text": "river"}}
    rows = [spell(row) + b"\n\n" for row in [*MESSAGE_BEGIN, other, *MESSAGE_END[:1]]]
    _, _, attempt, *_ = asyncio.run(relay(Stream(rows, [3]), remembers=True, passage=MESSAGES))
    assert attempt.output_events == 0


@pytest.mark.parametrize(("passage", "begin", "event", "end"), WIRES)
async def test_nothing_is_passed_on_once_the_answer_is_interrupted(
    passage: Passage, begin: list[Event], event: Event, end: list[Event]
) -> None:
    def cut(number: int, call: Call, _flow: Flow) -> None:
        if number == 3:
            call.guard.interrupt(StreamCut("over"))

    stream = stream_of(begin, replaced(event), end)
    _, failure, attempt, *_ = await relay(stream, remembers=True, before=cut, passage=passage)
    assert failure.startswith("StreamCut: over")
    assert "".join(attempt.text) == "word" * 2


def replaced(event: Event) -> Event:
    return json.loads(json.dumps(event).replace("river", "word"))
