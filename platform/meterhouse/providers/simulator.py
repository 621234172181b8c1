"""A provider without a network: for the first five minutes, demonstrations and load tests. It says what it is.

Invariant: deterministic; the same request has the same answer (but for its id and date); it reports exactly the
tokens that it emitted, one per piece. Not here: routing to it, and its price.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import cycle, islice
from typing import Any

import msgspec

from meterhouse.providers.catalog import SIMULATED_PART_TOKENS
from meterhouse.providers.provider import Endpoint
from meterhouse.providers.schema_example import smallest_value
from meterhouse.providers.simulated import SimulatedAnswer, refuse
from meterhouse.providers.simulated_vectors import embed

TOKENS_PER_SECOND = 50
INSTANT_MODEL = "simulator-instant"
BYTES_PER_INPUT_TOKEN = 4
MAX_TOKENS = 16_384

_PIECES = re.compile(r"\s*\S{1,8}|\s+")
_WANTED_LENGTH = re.compile(r"\b(\d{1,5}) (?:words|tokens)\b")
_FILLER = (
    " It",
    " counts",
    " what",
    " it",
    " sends,",
    " and",
    " every",
    " token",
    " of",
    " it",
    " is",
    " metered",
    " like",
    " a",
    " real",
    " one.",
)
_DONE = b"data: [DONE]\n\n"


class _Function(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    type: str = "function"
    function: _Function | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Request(msgspec.Struct):
    messages: list[_Message]
    model: str = "simulator"
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    stream_options: _StreamOptions | None = None


_REQUESTS = msgspec.json.Decoder(_Request)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a choice will say: text in pieces, or a tool call whose arguments are in pieces."""

    pieces: tuple[str, ...]
    finish_reason: str
    tool: str | None = None

    @property
    def tokens(self) -> int:
        return len(self.pieces) + (self.tool is not None)


class Simulator:
    """Answers embeddings, and chat completions at 50 tokens/s (``simulator``) or at once (``simulator-instant``)."""

    def __init__(
        self, *, tokens_per_second: float = TOKENS_PER_SECOND, now_seconds: Callable[[], float] = time.time
    ) -> None:
        self._pause_seconds = 1 / tokens_per_second
        self._now_seconds = now_seconds

    async def open(
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        *,
        is_streamed: bool,
        headers: Mapping[str, str] | None = None,  # noqa: ARG002 - the seam's own signature
        timeout_seconds: float | None = None,  # noqa: ARG002 - the seam's own signature
    ) -> "SimulatedAnswer":
        """Answer a request; a body that is no chat request has a 400, another path a 404, like a provider's."""
        if path == endpoint.provider.endpoints["embeddings"]:
            return embed(body)
        if path != endpoint.provider.chat_path:
            return refuse(404, f"The simulator has no {path}.")
        try:
            request = _REQUESTS.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return refuse(400, f"The simulator cannot read the request: {error}")
        plan = _plan(request)
        speaker = _Speaker(request, plan, body, int(self._now_seconds()))
        pause = 0.0 if request.model == INSTANT_MODEL else self._pause_seconds
        if is_streamed:
            return SimulatedAnswer(200, "text/event-stream", speaker.events(), pause)
        return SimulatedAnswer(200, "application/json", iter([speaker.whole()]), pause * plan.tokens)


class _Speaker:
    """Puts a plan into OpenAI's shapes."""

    def __init__(self, request: _Request, plan: _Plan, body: bytes, created_seconds: int) -> None:
        self._plan = plan
        self._choices = max(1, request.n or 1)
        self._has_usage = request.stream_options is not None and bool(request.stream_options.include_usage)
        # No randomness: a load test that asks twice can compare.
        digest = sha256(body).hexdigest()
        self._call_id = f"call_{digest[:24]}"
        self._head = {"id": f"chatcmpl-{digest[:24]}", "created": created_seconds, "model": request.model}
        output = plan.tokens * self._choices
        input_tokens = _count_input(request)
        self._usage = {
            "prompt_tokens": input_tokens,
            "completion_tokens": output,
            "total_tokens": input_tokens + output,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def whole(self) -> bytes:
        """Return the ``chat.completion``."""
        text = "".join(self._plan.pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._plan.tool is not None:
            message["content"] = None
            message["tool_calls"] = [{"id": self._call_id, "type": "function", "function": self._function(text)}]
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": self._plan.finish_reason}
            for index in range(self._choices)
        ]
        return msgspec.json.encode(
            {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage}
        )

    def events(self) -> Iterator[bytes]:
        """Yield the events of the stream: role, a token each, finish, usage if asked for, ``[DONE]``."""
        indexes = range(self._choices)
        opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
        if self._plan.tool is not None:
            call = {"index": 0, "id": self._call_id, "type": "function", "function": self._function("")}
            opening = {"role": "assistant", "content": None, "tool_calls": [call]}
        yield b"".join(self._event(index, opening) for index in indexes)
        for piece in self._plan.pieces:
            delta: dict[str, Any] = {"content": piece}
            if self._plan.tool is not None:
                delta = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
            yield b"".join(self._event(index, delta) for index in indexes)
        yield b"".join(self._event(index, {}, self._plan.finish_reason) for index in indexes)
        if self._has_usage:
            yield self._encode({"choices": [], "usage": self._usage})
        yield _DONE

    def _function(self, arguments: str) -> dict[str, Any]:
        return {"name": self._plan.tool, "arguments": arguments}

    def _event(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._encode({"choices": [choice], "usage": None} if self._has_usage else {"choices": [choice]})

    def _encode(self, rest: dict[str, Any]) -> bytes:
        return b"data: %b\n\n" % msgspec.json.encode({**self._head, "object": "chat.completion.chunk", **rest})


def _plan(request: _Request) -> _Plan:
    asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    bound = MAX_TOKENS if asked is None else max(0, min(asked, MAX_TOKENS))
    said = _last_user_text(request)
    tool = _choose_tool(request, said)
    if tool is not None:
        arguments = msgspec.json.encode(smallest_value(tool.parameters or {"type": "object"})).decode()
        pieces = tuple(_PIECES.findall(arguments))
        return _bounded(_Plan(pieces, "tool_calls", tool.name), bound - 1)
    structured = _structured(request.response_format)
    if structured is not None:
        return _bounded(_Plan(tuple(_PIECES.findall(structured)), "stop"), bound)
    pieces = _text_pieces(said)
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if stops:
        pieces = _until(pieces, stops)
    return _bounded(_Plan(pieces, "stop"), bound)


def _bounded(plan: _Plan, tokens: int) -> _Plan:
    if len(plan.pieces) <= tokens:
        return plan
    return _Plan(plan.pieces[: max(0, tokens)], "length", plan.tool)


def _text_pieces(said: str) -> tuple[str, ...]:
    """Return the answer in tokens; ``500 words`` or ``500 tokens`` in the message makes it exactly that long."""
    echo = " ".join(said.split()[:12])[:200]
    opening = "This is the Meterhouse simulator, not a language model."
    text = f'{opening} You said: "{echo}".' if echo else opening
    pieces = _PIECES.findall(text)
    wanted = _WANTED_LENGTH.search(said)
    length = int(wanted[1]) if wanted else len(pieces) + len(_FILLER)
    return tuple(islice((*pieces, *islice(cycle(_FILLER), max(0, length - len(pieces)))), length))


def _until(pieces: tuple[str, ...], stops: list[str]) -> tuple[str, ...]:
    text = "".join(pieces)
    ends = [end for stop in stops if stop and (end := text.find(stop)) >= 0]
    return tuple(_PIECES.findall(text[: min(ends)])) if ends else pieces


def _structured(response_format: dict[str, Any] | None) -> str | None:
    kind = response_format.get("type") if response_format is not None else None
    if response_format is None or kind not in ("json_object", "json_schema"):
        return None
    wrapper = response_format.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    value = {"message": "simulated"} if kind == "json_object" else smallest_value(schema)
    return msgspec.json.encode(value).decode()


def _choose_tool(request: _Request, said: str) -> _Function | None:
    """Return the tool to call: the named one, the first when one is required, one that the user's words mention."""
    tools = [tool.function for tool in request.tools or [] if tool.function is not None]
    choice = request.tool_choice
    if not tools or choice == "none":
        return None
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        name = choice["function"].get("name")
        return next((tool for tool in tools if tool.name == name), None)
    mentioned = next((tool for tool in tools if tool.name.lower() in said.lower()), None)
    if choice == "required":
        return mentioned or tools[0]
    return mentioned if request.messages[-1].role == "user" else None


def _last_user_text(request: _Request) -> str:
    return next((_text(message) for message in reversed(request.messages) if message.role == "user"), "")


def _text(message: _Message) -> str:
    if isinstance(message.content, str):
        return message.content
    texts = (part.get("text") for part in message.content or ())
    return " ".join(text for text in texts if isinstance(text, str))


def _count_input(request: _Request) -> int:
    text_bytes = sum(len(_text(message).encode()) for message in request.messages)
    text_bytes += len(msgspec.json.encode(request.tools)) if request.tools else 0
    parts = (part for message in request.messages if isinstance(message.content, list) for part in message.content)
    others = sum(1 for part in parts if part.get("type") != "text")
    return max(1, -(-text_bytes // BYTES_PER_INPUT_TOKEN)) + others * SIMULATED_PART_TOKENS
