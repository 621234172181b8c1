"""Ollama's answers from ``/api/chat`` as OpenAI's (wire.md 3.1): whole, and streamed as lines of JSON.

Invariant: pure; the same bytes give the same payloads however they are cut. What Ollama did not count is left out,
so that whoever meters counts it. Not here: the connection, the parsing of tool calls out of text.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from meterhouse.errors import UpstreamDown
from meterhouse.translate.call_id import NewCallId, new_call_id
from meterhouse.translate.ollama_request import to_ollama_request
from meterhouse.translate.said import format_arguments

__all__ = ["OllamaChatStream", "from_ollama_response", "to_ollama_request"]

MAX_LINE_BYTES = 1_048_576
"""A longer line is refused; Ollama sends a token, or one whole tool call, per line."""
DONE = b"[DONE]"


class _SaidFunction(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _SaidCall(msgspec.Struct):
    function: _SaidFunction


class _Said(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_SaidCall] | None = None


class _Line(msgspec.Struct):
    message: _Said = msgspec.field(default_factory=_Said)
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    logprobs: list[msgspec.Raw] | None = None
    error: str | None = None


_LINES = msgspec.json.Decoder(_Line)


def _read_line(line: bytes) -> _Line:
    try:
        return _LINES.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamDown("The provider ollama answered with garbage.", detail=str(error)) from error


def from_ollama_response(
    body: bytes, *, completion_id: str, created_seconds: int, model: str, call_id: NewCallId = new_call_id
) -> bytes:
    """Return the ``chat.completion`` for a whole answer.

    Raises:
        UpstreamDown: it is garbage, an error, or not the end.
    """
    line = _read_line(body)
    if line.error is not None or not line.done:
        why = "an error" if line.error is not None else "not the end"
        raise UpstreamDown("The provider ollama did not complete its answer.", detail=f"the answer is {why}")
    said = line.message
    message: dict[str, Any] = {"role": "assistant", "content": said.content or "", "refusal": None}
    if said.thinking:
        message["reasoning_content"] = said.thinking
    if said.tool_calls:
        message["content"] = said.content or None
        message["tool_calls"] = [_open_call(call, call_id()) for call in said.tool_calls]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": _logprobs(line),
        "finish_reason": _finish_reason(line, has_called=bool(said.tool_calls)),
    }
    out = {
        "id": completion_id,
        "object": "chat.completion",
        "created": created_seconds,
        "model": model,
        "choices": [choice],
    }
    usage = _usage(line)
    if usage:
        out["usage"] = usage
    return msgspec.json.encode(out)


class OllamaChatStream:
    """Turns a streamed answer's bytes into chunk payloads (JSON without ``data:``), as far as each feed allows.

    A complete stream ends in a chunk with ``finish_reason``, one with the usage (when Ollama counted anything), and
    ``[DONE]``. A line with an error becomes a payload with an error in OpenAI's envelope, and ends the stream too.
    """

    def __init__(
        self, *, completion_id: str, created_seconds: int, model: str, call_id: NewCallId = new_call_id
    ) -> None:
        self._head = {
            "id": completion_id,
            "object": "chat.completion.chunk",
            "created": created_seconds,
            "model": model,
        }
        self._call_id = call_id
        self._rest = b""
        self._calls = 0
        self._has_begun = False
        self._is_over = False
        self._failure: UpstreamDown | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes as they come; returns the payloads that they complete.

        Raises:
            UpstreamDown: a line is no JSON, or longer than 1 MB; the payloads before it were returned.
        """
        if self._failure is not None:
            raise self._failure
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_LINE_BYTES:
            raise UpstreamDown("The provider ollama answered with a line that is too long.")
        payloads: list[bytes] = []
        try:
            for line in lines:
                payloads += self._payloads(line)
        except UpstreamDown as failure:
            if not payloads:
                raise
            self._failure = failure
        return payloads

    def close(self) -> list[bytes]:
        """Say that the bytes have ended; a last line may lack its newline. An early end adds nothing.

        Raises:
            UpstreamDown: the last line is no JSON, or one before it was none.
        """
        if self._failure is not None:
            raise self._failure
        rest, self._rest = self._rest, b""
        return list(self._payloads(rest))

    def _payloads(self, line: bytes) -> Iterator[bytes]:
        if self._is_over or not line.strip():
            return
        if len(line) > MAX_LINE_BYTES:
            raise UpstreamDown("The provider ollama answered with a line that is too long.")
        said = _read_line(line)
        if said.error is not None:
            self._is_over = True
            error = {"message": said.error, "type": "server_error", "param": None, "code": None}
            yield msgspec.json.encode({"error": error})
            return
        delta = self._delta(said.message)
        if delta or said.logprobs:
            yield self._chunk(delta, _logprobs(said), None)
        if said.done:
            self._is_over = True
            yield self._chunk({}, None, _finish_reason(said, has_called=self._calls > 0))
            usage = _usage(said)
            if usage:
                yield msgspec.json.encode({**self._head, "choices": [], "usage": usage})
            yield DONE

    def _delta(self, said: _Said) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if not self._has_begun:
            self._has_begun = True
            delta = {"role": "assistant", "content": ""}
        if said.thinking:
            delta["reasoning_content"] = said.thinking
        if said.content:
            delta["content"] = said.content
        if said.tool_calls:
            delta["tool_calls"] = [
                {"index": self._calls + offset, **_open_call(call, self._call_id())}
                for offset, call in enumerate(said.tool_calls)
            ]
            self._calls += len(said.tool_calls)
        return delta

    def _chunk(self, delta: dict[str, Any], logprobs: Any, finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return msgspec.json.encode({**self._head, "choices": [choice]})


def _open_call(call: _SaidCall, call_id: str) -> dict[str, Any]:
    """Return a call in OpenAI's shape: the arguments as a string."""
    arguments = format_arguments(call.function.arguments)
    return {"id": call_id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _finish_reason(line: _Line, *, has_called: bool) -> str:
    if line.done_reason == "length":
        return "length"
    return "tool_calls" if has_called else "stop"


def _logprobs(line: _Line) -> dict[str, Any] | None:
    return {"content": line.logprobs, "refusal": None} if line.logprobs else None


def _usage(line: _Line) -> dict[str, int]:
    usage: dict[str, int] = {}
    if line.prompt_eval_count is not None:
        usage["prompt_tokens"] = line.prompt_eval_count
    if line.eval_count is not None:
        usage["completion_tokens"] = line.eval_count
    if line.prompt_eval_count is not None and line.eval_count is not None:
        usage["total_tokens"] = line.prompt_eval_count + line.eval_count
    return usage
