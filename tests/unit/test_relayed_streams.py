"""What is told of a stream without decoding it, and passed on while its task sleeps, is what decoding all of it gives.

A random stream, cut at random places, is relayed twice: as ever, and by a relay that remembers no chunk. Not here: what
a chunk means (``test_stream``, ``test_chunk``), and single chunks (``test_alike``).
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
from meterhouse.http.relay import StreamRelay
from meterhouse.ledger.checkpointer import TOKENS_PER_CHECKPOINT
from meterhouse.usage import Outcome

USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}


def chunk(delta: dict[str, Any], choice: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    row = {"index": 0, "delta": delta, "finish_reason": None} | choice
    return {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [row]} | fields


words = st.sampled_from(
    [" river", "a", "", '"', "\n\n", "\\", "é", "漢字", "\U0001f600", "x" * 1_100, "\u3000", "data: "]
)
deltas = st.one_of(
    *[words.map(lambda word: {"content": word})] * 6,
    words.map(lambda word: {"reasoning_content": word}),
    words.map(lambda word: {"role": "assistant", "content": word}),
    words.map(lambda word: {"reasoning": word}),
    words.map(lambda word: {"tool_calls": [{"index": 0, "id": "", "function": {"arguments": word}}]}),
    st.just({}),
)
choices = st.sampled_from([{}] * 12 + [{"index": 1}, {"finish_reason": "end_turn"}])
extras = st.sampled_from(
    [{}] * 8
    + [{"obfuscation": word} for word in ("", "a1", "x8Kd", 'a"')]
    + [{"usage": USAGE}, {"usage": None}, {"model": "asked/m"}, {"error": {"message": "no"}}]
)
spellings = st.sampled_from([(False, (",", ":")), (True, (",", ":")), (False, (", ", ": "))])
endings = st.sampled_from(
    [b"\n\n"] * 20 + [b"\r\n\r\n", b"\n\n: comment\n\n", b"\nid: 1\n\n", b"\ndata:\n\n", b"\n", b"\r\n"]
)
holds = st.none() | st.integers(1, 30) | st.integers(31, 3_000)
events = st.lists(st.tuples(st.builds(chunk, deltas, choices, extras), endings), max_size=25)
tails = st.sampled_from([b"", b"data: {}\n\n", b"data: [DONE]\n\n", b"data: {\n\n"])


def spell(row: tuple[dict[str, Any], bytes], spelling: tuple[bool, tuple[str, str]]) -> bytes:
    (fields, ending), (is_ascii, separators) = row, spelling
    return b"data: " + json.dumps(fields, ensure_ascii=is_ascii, separators=separators).encode() + ending


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    spelling = draw(spellings)
    rows = [(chunk({"role": "assistant", "content": "Hi"}, {}, {}), b"\n\n"), *draw(events)]
    if draw(st.booleans()):
        rows.append((chunk({}, {"finish_reason": "stop"}, {}), b"\n\n"))
    pieces = [spell(row, spelling) for row in rows] + [draw(tails)]
    if draw(st.booleans()):
        # As OpenAI does it: a padding in each.
        rows = [
            (fields | {"obfuscation": "x8Kd"[: number % 5]}, ending) for number, (fields, ending) in enumerate(rows)
        ]
        pieces = [spell(row, spelling) for row in rows] + pieces[-1:]
    body = b"".join(pieces)
    # As providers write, whole events in a read, or cut anywhere.
    places = list(itertools.accumulate(map(len, pieces))) if draw(st.booleans()) else list(range(len(body)))
    cuts = draw(st.lists(st.sampled_from(places), max_size=12, unique=True))
    bodies = [body[begin:end] for begin, end in itertools.pairwise(sorted({0, *cuts, len(body)}))]
    held = draw(holds)
    # What is more than the hold takes with it whatever came before it and was not looked at yet.
    turns = draw(st.lists(st.integers(0 if held is None else 3, 3), min_size=1, max_size=12))
    return Stream(bodies, turns, held, draw(st.booleans()), draw(st.integers(1, 2)))


def saying(text: str, **choice: Any) -> bytes:
    return spell((chunk({"content": text}, choice, {}), b"\n\n"), (True, (",", ":")))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams())
def test_a_stream_cut_anywhere_is_relayed_as_by_decoding_all_of_it(stream: Stream) -> None:
    """When checkpoints are written depends on what has come by the time the task is woken, where it is."""
    told, decoded = (asyncio.run(relay(stream, remembers=remembers)) for remembers in (True, False))
    assert told[:3] == decoded[:3]


@pytest.mark.parametrize(
    "bodies",
    [
        # Lines of one event, of which the last is an event by itself.
        [saying("Hi"), saying("a") + saying("b")[:-1], saying("c"), saying("d")],
        [saying("Hi"), saying("a")[:-2] + b"\r\n", saying("c"), saying("d")],
        # Between two that are alike one is another.
        [saying("Hi"), saying("a") + saying("b", index=1) + saying("c"), saying("d") + saying("") + saying("e")],
        # A choice that had finished goes on, before the other has begun.
        [saying("Hi"), saying("a", finish_reason="stop"), saying("b"), saying("c", index=1)],
        # More than is held, in a read of its own.
        [saying("Hi"), *[saying("seven b")] * 40],
    ],
)
async def test_what_only_seems_alike_is_decoded(bodies: list[bytes]) -> None:
    stream = Stream(bodies, [3], 15, choices=2)
    assert await relay(stream, remembers=True) == await relay(stream, remembers=False)


END = [saying("", finish_reason="stop") + b"data: [DONE]\n\n"]


@pytest.mark.parametrize("paddings", [None, ["x8Kd", "", "a"]])
@pytest.mark.parametrize("held", [None, 1_000, 40])
@pytest.mark.parametrize("word", ["river", "\n\n", 'a "b"', "\U0001f600", "\u3000"])
async def test_of_a_text_that_comes_alone_nothing_is_decoded(
    word: str, held: int | None, paddings: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is spelled with, and where its bytes are more than the tokens that are held for all of it.

    A task that is woken costs more than all else that is done with a token.
    """
    genuine, woken_for = StreamRelay._take, list[bytes]()

    def take(relay: StreamRelay, payloads: list[bytes]) -> list[bytes]:
        woken_for.extend(payloads)
        return genuine(relay, payloads)

    monkeypatch.setattr(StreamRelay, "_take", take)
    words = [
        saying(text) if paddings is None else saying(text).replace(b"}\n", b',"obfuscation":"%b"}\n' % padding.encode())
        for text, padding in zip(["Hi", *[word] * 20], itertools.cycle(paddings or [""]), strict=False)
    ]
    stream = Stream([*words, *END], [3], held)
    body, failure, attempt, *_ = await relay(stream, remembers=True)
    assert failure == ""
    assert len(woken_for) == len(["the first", "the last", "[DONE]"])
    assert (attempt.output_events, attempt.text) == (21, ["Hi" + word * 20])
    assert attempt.output_bytes == len("Hi") + 20 * len(word.encode())
    assert body.count(json.dumps(word).encode()) == 20


@pytest.mark.parametrize("text", ["seven b", "x" * 32])
async def test_no_more_is_passed_on_than_is_held_also_while_the_task_sleeps(text: str) -> None:
    body, _, attempt, *_ = await relay(Stream([saying("Hi"), *[saying(text)] * 40, *END], [3], 15), remembers=True)
    assert attempt.outcome is Outcome.CUT
    assert body.count(text.encode()) == 14


async def test_nothing_is_passed_on_once_the_answer_is_interrupted() -> None:
    def cut(number: int, call: Call, _flow: Flow) -> None:
        if number == 3:
            call.guard.interrupt(StreamCut("over"))

    body, failure, *_ = await relay(
        Stream([saying("Hi"), *[saying("word")] * 9, *END], [3]), remembers=True, before=cut
    )
    assert body.count(b"word") == 2
    assert failure.startswith("StreamCut: over")


async def test_a_client_that_does_not_read_is_waited_for() -> None:
    def pause(number: int, _call: Call, flow: Flow) -> None:
        if number == 3:
            flow.pause_writing()
        elif number == 6:
            flow.resume_writing()

    stream = Stream([saying("Hi"), *[saying("word")] * 9, *END], [3])
    assert await relay(stream, remembers=True, before=pause) == await relay(stream, remembers=True)


async def test_a_checkpoint_is_never_further_behind_than_it_may_be() -> None:
    long = "x" * 4 * TOKENS_PER_CHECKPOINT
    *_, records = await relay(Stream([saying("Hi"), *[saying(long)] * 5, *END], [3]), remembers=True)
    assert records == 5
