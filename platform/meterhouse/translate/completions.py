"""Legacy completions over chat completions: a prompt as one message, and the answer's text back (wire.md 1.9).

Invariant: pure. What a chat cannot say (a suffix, several prompts at once, tokens, the best of several) is refused by
name. Thoughts and tool calls have no place in a completion and are left out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from meterhouse.errors import GatewayError, Malformed
from meterhouse.translate.said import choices_of, index_in, object_in, objects_in, read_answer, text_in, word_in

DONE = b"[DONE]"
DEFAULT_MAX_TOKENS = 16
"""What the wire allows where nothing was asked for."""

_OWN = frozenset({"best_of", "echo", "logprobs", "max_tokens", "prompt", "suffix"})
"""What has another name, or no place, in a chat; all else is called the same."""
_DATA = b"data: "
_NOTHING = frozenset({b"null", b'""', b"false"})


def to_chat(fields: Mapping[str, Raw], texts: Sequence[str], *, choices: int, best_of: int) -> bytes:
    """Return a checked request as a chat completion's; ``texts`` are its prompts.

    Raises:
        Malformed: It asks for what a chat has not.
    """
    if len(texts) != 1:
        raise _refused("prompt", "a list of several prompts, or of tokens")
    if bytes(fields.get("suffix", Raw(b"null"))) not in _NOTHING:
        raise _refused("suffix", "a suffix")
    if best_of > choices:
        raise _refused("best_of", "best_of above n")
    body: dict[str, Any] = {name: raw for name, raw in fields.items() if name not in _OWN}
    body["messages"] = [{"role": "user", "content": texts[0]}]
    bound = fields.get("max_tokens", Raw(b"null"))
    body["max_tokens"] = DEFAULT_MAX_TOKENS if bytes(bound) == b"null" else bound
    if bytes(fields.get("logprobs", Raw(b"null"))) != b"null":
        body["logprobs"] = True
        body["top_logprobs"] = fields["logprobs"]
    return msgspec.json.encode(body)


def _refused(param: str, what: str) -> Malformed:
    return Malformed(
        f"This model answers completions as a chat, which has no place for {what}. Remove it, or use a model that has "
        "completions of its own.",
        param=param,
        code="unsupported_parameter",
    )


class CompletionDialect:
    """Writes the answers of one request. ``echo`` is put before each choice; ``fail`` gives the event of an error."""

    def __init__(self, echo: str, fail: Callable[[GatewayError, str], bytes]) -> None:
        self.fail = fail
        self._echo = echo
        self._offsets: dict[int, int] = {}
        """How long each choice is so far, in characters."""

    def frames(self, data: bytes) -> bytes:
        """Turn whole events of chat completions into events of completions; comments stay."""
        return b"".join(
            self._write(event.removeprefix(_DATA)) if event.startswith(_DATA) else event + b"\n\n"
            for event in data.split(b"\n\n")
            if event
        )

    def write_body(self, body: bytes) -> bytes:
        """Turn a whole chat completion into a completion."""
        answer = read_answer(body)
        answer["choices"] = [self._choice(choice, choice.get("message")) for choice in choices_of(answer)]
        return msgspec.json.encode(self._head(answer))

    def _write(self, data: bytes) -> bytes:
        if data == DONE:
            return _DATA + DONE + b"\n\n"
        chunk = read_answer(data)
        rows = choices_of(chunk)
        choices = [self._choice(row, row.get("delta")) for row in rows]
        chunk["choices"] = [made for made in choices if made["text"] or made["finish_reason"] or made["logprobs"]]
        if rows and not chunk["choices"]:
            return b""
        return _DATA + msgspec.json.encode(self._head(chunk)) + b"\n\n"

    def _head(self, answer: dict[str, Any]) -> dict[str, Any]:
        identity = str(answer.get("id") or "")
        return {**answer, "id": f"cmpl-{identity.removeprefix('chatcmpl-')}", "object": "text_completion"}

    def _choice(self, row: Mapping[str, Any], said: object) -> dict[str, Any]:
        index = index_in(row.get("index"))
        text = text_in(object_in(said).get("content"))
        start = self._offsets.get(index)
        if start is None:
            start = len(self._echo)
        said_text = text if index in self._offsets else self._echo + text
        self._offsets[index] = start + len(text)
        reason = word_in(row.get("finish_reason"))
        return {
            "index": index,
            "text": said_text,
            "logprobs": _logprobs(row.get("logprobs"), start),
            "finish_reason": "stop" if reason in {"tool_calls", "function_call"} else reason,
        }


def _logprobs(found: object, offset: int) -> dict[str, Any] | None:
    """Write the probabilities of a choice's tokens in the four lists of this wire; ``offset`` is where they begin."""
    rows = _tokens(object_in(found).get("content"))
    if not rows:
        return None
    offsets: list[int] = []
    for row in rows:
        offsets.append(offset)
        offset += len(row["token"])
    return {
        "tokens": [row["token"] for row in rows],
        "token_logprobs": [row.get("logprob") for row in rows],
        "top_logprobs": [
            {other["token"]: other.get("logprob") for other in _tokens(row.get("top_logprobs"))} for row in rows
        ],
        "text_offset": offsets,
    }


def _tokens(rows: object) -> list[dict[str, Any]]:
    return [row for row in objects_in(rows) if isinstance(row.get("token"), str)]
