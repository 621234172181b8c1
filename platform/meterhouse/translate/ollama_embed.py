"""OpenAI's embeddings as Ollama's ``/api/embed``, and its answers as OpenAI's (wire.md 3.1).

Invariant: pure. A text that is too long is an error there as at OpenAI, and not silently shortened, unless the caller
asks for ``truncate``.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from meterhouse.errors import Malformed, UpstreamDown

_PASSED = ("dimensions", "truncate")
"""Not ``keep_alive`` and ``options``: they size the server that all tenants share."""


class _Answer(msgspec.Struct):
    embeddings: list[Raw] | None = None
    prompt_eval_count: int | None = None
    error: Raw = Raw(b"")


_answer_decoder = msgspec.json.Decoder(_Answer)


def to_ollama_embed(fields: Mapping[str, Any], *, upstream_model: str, has_tokens: bool) -> bytes:
    """Return the body for ``/api/embed``; ``fields`` are those of OpenAI's request, raw.

    Raises:
        Malformed: The input is tokens, which only the model's own tokenizer could turn back into text.
    """
    if has_tokens:
        raise Malformed(
            "This model takes texts only: send 'input' as a string, or a list of strings, and not as tokens.",
            param="input",
            code="unsupported_value",
        )
    body = {"model": upstream_model, "input": fields["input"], "truncate": False}
    body |= {name: fields[name] for name in _PASSED if name in fields and bytes(fields[name]) != b"null"}
    return msgspec.json.encode(body)


def from_ollama_embed(body: bytes, *, model: str) -> bytes:
    """Return an answer as OpenAI's, an error as it came.

    Raises:
        UpstreamDown: It is no answer of Ollama's.
    """
    try:
        answer = _answer_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamDown("The provider ollama answered with garbage.", detail=type(error).__name__) from error
    if answer.embeddings is None:
        if bytes(answer.error) in (b"", b"null"):
            raise UpstreamDown("The provider ollama answered with garbage.", detail="no embeddings")
        return body
    data = [
        {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(answer.embeddings)
    ]
    made: dict[str, Any] = {"object": "list", "data": data, "model": model}
    if answer.prompt_eval_count is not None:
        made["usage"] = {"prompt_tokens": answer.prompt_eval_count, "total_tokens": answer.prompt_eval_count}
    return msgspec.json.encode(made)
