"""Relays a stream with the gateway's own parts, from a provider's connection to a client's, without sockets."""

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httptools
import msgspec

from meterhouse.asked import ask_chat
from meterhouse.errors import GatewayError
from meterhouse.http.alike import AlikeChunks
from meterhouse.http.body import parse_chat
from meterhouse.http.call import Call
from meterhouse.http.cycle import Cycle
from meterhouse.http.exchange import Exchange
from meterhouse.http.flow import Flow
from meterhouse.http.guard import Guard
from meterhouse.http.outlet import Outlet
from meterhouse.http.over_chat import OVER_CHAT
from meterhouse.http.passage import OpenAnswer, Passage, RelayParts
from meterhouse.http.respond import OPENAI_ENVELOPE
from meterhouse.http.wires.chat import ChatWire
from meterhouse.identity import Principal
from meterhouse.ledger.checkpointer import Checkpointer
from meterhouse.metering import Reservation
from meterhouse.providers.catalog import PROVIDERS, model_of
from meterhouse.providers.http1.answer import Http1Answer
from meterhouse.providers.http1.connection import Connection
from meterhouse.providers.http1.late_watch import LateWatch
from meterhouse.providers.provider import Deployment
from meterhouse.request import Attempt, Tally
from meterhouse.telemetry.traces import TraceContext
from meterhouse.usage import Usage

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


async def relay(
    stream: Stream,
    *,
    remembers: bool,
    before: Callable[[int, Call, Flow], None] = lambda *_: None,
    passage: Passage = OVER_CHAT,
) -> Any:
    """Relay a stream; return all that is said and left.

    Args:
        stream: what comes.
        remembers: False: nothing is told, so that the task reads all of it.
        before: called before each read, with its number.
        passage: by which the answer is read.
    """
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
        reader = passage.open_reader(DEPLOYMENT)
        payloads: list[bytes] = []
        while not payloads:
            payloads = reader.feed(await answer.read())
        first = passage.check_first(payloads[0], DEPLOYMENT)
        opened = OpenAnswer(passage, answer, reader, payloads, DEPLOYMENT, first)
        parts = RelayParts(None, Checkpointer(journal), None, None)  # type: ignore[arg-type]  # for a whole hold nobody is asked
        relayed = passage.open_relay(call, opened, parts)
        if not remembers:
            relayed._alike.tries = 0
            relayed._teller = AlikeChunks()
        await relayed.run()
        await outlet.end(relayed.end(Usage(12, 0, 0, 7)))
    except GatewayError as error:
        failure = f"{type(error).__name__}: {error.message} {error.detail}"
        await outlet.fail(error)
    await feeding
    attempt.text, attempt.ended_ns = ["".join(attempt.text)], None
    return body_of(wire.written), failure, attempt, tally.checkpointed_tokens, journal.records


def body_of(written: bytes) -> bytes:
    """Return the body of an answer in chunks, however it was cut."""
    pieces: list[bytes] = []
    if written:
        httptools.HttpResponseParser(SimpleNamespace(on_body=pieces.append)).feed_data(written)
    return b"".join(pieces)
