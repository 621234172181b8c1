"""Legacy completions where a provider serves them itself: chat's chunks with ``text`` in place of a delta."""

import time
from itertools import zip_longest
from typing import Any

import msgspec
from msgspec import Raw

from meterhouse.asked import Asked
from meterhouse.errors import GatewayError
from meterhouse.http.alike import Told
from meterhouse.http.body import BodyEditor, Recipient
from meterhouse.http.call import Call
from meterhouse.http.chunk import MAX_NAME_LENGTH, Chunk, decode_chunk, is_failure, is_set, read_usage
from meterhouse.http.passage import WholeBody
from meterhouse.http.passing import Heard, Listener, PassThrough, decode_or_none
from meterhouse.http.respond import OPENAI_ENVELOPE
from meterhouse.http.sse import DONE_FRAME, frame
from meterhouse.http.tidy import leave_out_usage, rename_model
from meterhouse.http.usage_reading import Fields, ReadUsage, read_chat_usage, usage_on_wire
from meterhouse.ids import random_base62
from meterhouse.providers.provider import Deployment, EndpointName
from meterhouse.providers.refusal import error_in_stream, no_answer
from meterhouse.request import Attempt, utf8_length
from meterhouse.usage import Usage


class PassedCompletions(PassThrough):
    """Passes ``/completions`` through."""

    endpoint: EndpointName = "completions"
    bound_field = "max_tokens"

    def adapt(self, fields: dict[str, object], recipient: Recipient, editor: BodyEditor) -> None:  # noqa: ARG002 - the protocol's own signature
        """Ask for the usage of a stream, as of a chat's."""
        row = recipient.deployment.provider
        options = fields.pop("stream_options", None)
        if not _is_true(fields.get("stream")) or not row.sends_include_usage:
            return
        wanted = msgspec.json.decode(options) if isinstance(options, Raw) else None
        wanted = {**(wanted or {}), "include_usage": True}
        if row.sends_continuous_usage:
            wanted["continuous_usage_stats"] = True
        fields["stream_options"] = wanted

    def decode_whole(self, answer: WholeBody, deployment: Deployment) -> bytes:
        """Return the body, if it has choices."""
        body = super().decode_whole(answer, deployment)
        if not decode_chunk(body).choices:
            raise no_answer("an answer without choices")
        return body

    def open_listener(self, asked: Asked, deployment: Deployment) -> Listener:
        """Return a listener."""
        return CompletionsListener(asked, deployment)

    def read_usage(self, wire: Fields) -> ReadUsage:
        """Read ``prompt_tokens`` and ``completion_tokens``."""
        return read_chat_usage(wire)

    def note_whole(self, call: Call, fields: dict[str, Raw]) -> None:
        """Note the answer, without the prompt that each choice may begin with: it is input, and counted as that."""
        super().note_whole(call, fields)
        attempt = call.tally.attempt
        if attempt.reported is None and _is_true(call.asked.fields.get("echo")):
            prompts = _each(call.asked)
            attempt.text = [
                text.removeprefix(prompt) for text, prompt in zip_longest(attempt.text, prompts, fillvalue="")
            ]
            attempt.output_bytes = sum(map(utf8_length, attempt.text))

    def note_text(self, fields: dict[str, Raw], attempt: Attempt) -> None:
        """Count the text of every choice."""
        rows = decode_or_none(fields.get("choices"))
        for row in rows if isinstance(rows, list) else ():
            text = row.get("text") if isinstance(row, dict) else None
            if isinstance(text, str):
                attempt.text.append(text)
                attempt.output_bytes += utf8_length(text)
                attempt.output_events += bool(text)


class CompletionsListener:
    """Listens to the chunks of one completion, whose choices end one by one."""

    def __init__(self, asked: Asked, deployment: Deployment) -> None:
        self._model = asked.model
        self._deployment = deployment
        self._choices = asked.choices
        self._wants_usage = _wants_usage(asked)
        is_echoed = _is_true(asked.fields.get("echo"))
        self._echoes = dict(enumerate(_each(asked))) if is_echoed else {}
        """What is left of the prompt that each choice begins with: it is input, and counted as that."""
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self._told: set[int] = set()
        """Those of the finished that the client knows of."""
        self._head: dict[str, Any] = {}
        self._has_usage = False

    @property
    def is_finished(self) -> bool:
        """Whether every choice that was seen has its finish reason."""
        return bool(self._finished) and len(self._finished) == len(self._seen)

    def tell(self, data: bytes) -> Told | None:  # noqa: ARG002 - the protocol's own signature
        """Tell nothing: whether a text is the prompt's is known by what was said before it."""
        return None

    def took(self) -> None:
        """Note nothing: nothing is told."""

    def hear(self, payload: bytes, attempt: Attempt) -> Heard:
        """Read a chunk."""
        chunk = decode_chunk(payload)
        if is_failure(chunk):
            raise error_in_stream(payload, self._deployment)
        if chunk.id and not self._head:
            self._head = {"id": chunk.id, "created": chunk.created or int(time.time())}
            attempt.served_model = (chunk.model or "")[:MAX_NAME_LENGTH]
        if chunk.service_tier:
            attempt.service_tier = chunk.service_tier[:MAX_NAME_LENGTH]
        heard = Heard(usage=read_usage(chunk))
        for choice in chunk.choices or ():
            self._seen.add(choice.index)
            heard.text += self._without_echo(choice.index, choice.text or "")
            if choice.finish_reason:
                self._finished.add(choice.index)
                attempt.finish_reasons.append(choice.finish_reason)
        heard.is_end = self.is_finished and len(self._finished) >= self._choices
        heard.frame = self._compose(payload, chunk)
        return heard

    def told(self) -> None:
        """Note which choices the client knows to be finished."""
        self._told = set(self._finished)

    def cut(self, usage: Usage) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return a chunk that ends every choice with ``length``."""
        indexes = sorted((self._seen | set(range(self._choices))) - self._told)
        choices = [{"index": index, "text": "", "logprobs": None, "finish_reason": "length"} for index in indexes]
        self._has_usage = False
        return self._own({"choices": choices})

    def close(self, usage: Usage) -> bytes:
        """Return the usage, if it was asked for and did not come, and ``[DONE]``."""
        if not self._wants_usage or self._has_usage:
            return DONE_FRAME
        return self._own({"choices": [], "usage": usage_on_wire(usage)}) + DONE_FRAME

    def fail(self, error: GatewayError, request_id: str) -> bytes:
        """Return the error as a chat's."""
        return OPENAI_ENVELOPE.event(error, request_id)

    def _compose(self, payload: bytes, chunk: Chunk) -> bytes:
        if is_set(chunk.usage):
            if chunk.choices:
                payload = leave_out_usage(payload, chunk.usage)
            elif self._wants_usage:
                self._has_usage = True
            else:
                return b""
        return frame(rename_model(payload, chunk.model, self._model))

    def _without_echo(self, index: int, text: str) -> str:
        echo = self._echoes.get(index, "")
        length = min(len(echo), len(text))
        if not echo or text[:length] != echo[:length]:
            self._echoes.pop(index, None)
            return text
        self._echoes[index] = echo[length:]
        return text[length:]

    def _own(self, fields: dict[str, Any]) -> bytes:
        head = self._head or {"id": f"cmpl-{random_base62(24)}", "created": int(time.time())}
        return frame(msgspec.json.encode({**head, "object": "text_completion", "model": self._model, **fields}))


def _each(asked: Asked) -> list[str]:
    """Return the prompt of each choice: those of the first prompt come first."""
    per_prompt = asked.choices // max(1, len(asked.texts))
    return [text for text in asked.texts for _ in range(per_prompt)]


def _wants_usage(asked: Asked) -> bool:
    options = asked.fields.get("stream_options")
    wanted = msgspec.json.decode(options) if options is not None else None
    return isinstance(wanted, dict) and wanted.get("include_usage") is True


def _is_true(raw: object) -> bool:
    return isinstance(raw, Raw) and bytes(raw) == b"true"
