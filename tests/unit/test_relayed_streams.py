"""What is told of a stream without decoding it, and passed on while its task sleeps, is what decoding all of it gives.

A random stream, cut at random places, is relayed twice: as ever, and by a relay that remembers no chunk. Not here: what
a chunk means (``test_stream``, ``test_chunk``), and single chunks (``test_alike``).
"""

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httptools
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meterhouse.asked import ask_chat
from meterhouse.errors import GatewayError, StreamCut
from meterhouse.http.body import parse_chat
from meterhouse.http.call import Call
from meterhouse.http.cycle import Cycle
from meterhouse.http.exchange import Exchange
from meterhouse.http.flow import Flow
from meterhouse.http.guard import Guard
from meterhouse.http.outlet import Outlet
from meterhouse.http.over_chat import OVER_CHAT
from meterhouse.http.passage import OpenAnswer, RelayParts
from meterhouse.http.relay import StreamRelay
from meterhouse.http.respond import OPENAI_ENVELOPE
from meterhouse.http.wires.chat import ChatWire
from meterhouse.identity import Principal
from meterhouse.ledger.checkpointer import TOKENS_PER_CHECKPOINT, Checkpointer
from meterhouse.metering import Reservation
from meterhouse.providers.catalog import PROVIDERS, model_of
from meterhouse.providers.http1.answer import Http1Answer
from meterhouse.providers.http1.connection import Connection
from meterhouse.providers.http1.late_watch import LateWatch
from meterhouse.providers.provider import Deployment
from meterhouse.request import Attempt, Tally
from meterhouse.telemetry.traces import TraceContext
from meterhouse.usage import Outcome, Usage

ROW = replace(PROVIDERS["openai"], finish_reasons={"end_turn": "stop"})
DEPLOYMENT = Deployment(
    id="openai/m",
    provider=ROW,
    base_url="http://x",
    credential=None,
    upstream_model="m",
    model=model_of(ROW, "asked", "m"),
    price=None,
)
PRINCIPAL = Principal("org_1", "proj_1", "key_1", "key_1", frozenset(), None, (), None)
USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        pass

    close = pause_reading = resume_reading = abort


class Journal:
    """Counts the checkpoints."""

    def __init__(self) -> None:
        self.records = 0

    def append(self, record: bytes, /) -> int:
        self.records += 1
        return self.records


class Owner:
    """Of a connection to the provider."""

    def __init__(self) -> None:
        self.late_watch = LateWatch(asyncio.get_running_loop())

    def keep(self, connection: Connection) -> None:
        pass

    forget = keep


class Stream(msgspec.Struct):
    """What a provider sends, and to whom."""

    bodies: list[bytes]
    """Of the answer, what comes in each read."""
    turns: list[int]
    """Of the loop, after each read."""
    held: int | None = None
    """Output tokens of a choice; None: there is no budget."""
    wants_usage: bool = True
    choices: int = 1

    @property
    def reads(self) -> list[bytes]:
        """What comes over the connection."""
        head, end = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n", b"0\r\n\r\n"
        first, *rest = [b"%x\r\n%b\r\n" % (len(body), body) for body in self.bodies]
        *rest, last = [head + b"transfer-encoding: chunked\r\n\r\n" + first, *rest]
        return [*rest, last + end]


async def relay(stream: Stream, *, remembers: bool, before: Callable[[int, Call, Flow], None] = lambda *_: None) -> Any:
    """Relay a stream; return all that is said and left. ``before`` is called before each read, with its number."""
    wire, journal = Wire(), Journal()
    source = Connection(Owner(), {})
    source.connection_made(Wire())
    cycle = Cycle({"type": "http"}, wire, Flow(wire), SimpleNamespace(default_headers=[], tasks=set()), lambda: None)  # type: ignore[arg-type]
    exchange = Exchange("id", "req_id", TraceContext("", "", is_sampled=False), "POST", None, 0, 0)
    outlet = Outlet(exchange, cycle.send, [], OPENAI_ENVELOPE.event)
    exchange.cycle, exchange.reply = cycle, cycle.send
    options = {"stream_options": {"include_usage": True}} if stream.wants_usage else {}
    body = {
        "model": "asked/m",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "n": stream.choices,
        **options,
    }
    asked = ask_chat(parse_chat(json.dumps(body).encode()))
    held = None if stream.held is None else stream.held * stream.choices
    reservation = Reservation("id", 0, stream.held, held, 0, ())
    tally = Tally("id", PRINCIPAL, "m", "chat", True, reservation, 1, 1, True, "", 0, 0, 0)
    attempt = Attempt(1, "p", "d", "m", None, 0)
    tally.attempts.append(attempt)
    call = Call(ChatWire(), asked, None, tally, outlet, Guard(asyncio.current_task()), {"type": "http"})  # type: ignore[arg-type]
    call.deployment = DEPLOYMENT
    answer = Http1Answer(asyncio.get_running_loop(), source, "p")
    source.send(answer, b"", b"", float("inf"))

    async def feed() -> None:
        for number, (read, count) in enumerate(zip(stream.reads, itertools.cycle(stream.turns), strict=False)):
            before(number, call, cycle.flow)
            source.data_received(read)
            for _ in range(count):
                await asyncio.sleep(0)
        source.connection_lost(None)

    feeding = asyncio.create_task(feed())
    failure = ""
    try:
        reader = OVER_CHAT.open_reader(DEPLOYMENT)
        payloads: list[bytes] = []
        while not payloads:
            payloads = reader.feed(await answer.read())
        first = OVER_CHAT.check_first(payloads[0], DEPLOYMENT)
        opened = OpenAnswer(OVER_CHAT, answer, reader, payloads, DEPLOYMENT, first)
        parts = RelayParts(None, Checkpointer(journal), None, None)  # type: ignore[arg-type]  # for a whole hold nobody is asked
        relayed = StreamRelay(call, opened, parts)
        if not remembers:
            relayed._alike.tries = 0
        await relayed.run()
        await outlet.end(relayed.end(Usage(12, 0, 0, 7)))
    except GatewayError as error:
        failure = f"{type(error).__name__}: {error.message} {error.detail}"
    await feeding
    attempt.text, attempt.ended_ns = ["".join(attempt.text)], None
    return body_of(wire.written), failure, attempt, tally.checkpointed_tokens, journal.records


def body_of(written: bytes) -> bytes:
    """Return the body of an answer in chunks, however it was cut."""
    pieces: list[bytes] = []
    if written:
        httptools.HttpResponseParser(SimpleNamespace(on_body=pieces.append)).feed_data(written)
    return b"".join(pieces)


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
