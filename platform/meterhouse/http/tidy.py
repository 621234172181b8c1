"""Puts right in a provider's chunk or body what a client must not have to know, without rebuilding the rest.

- ``model`` is the name that was asked for.
- Reasoning is in ``reasoning_content``, also where the provider calls it ``reasoning``; that name stays beside it.
- The id "" in the later pieces of a tool call is left out: SDKs take it for another call (wire.md 7, row 13).
- A finish reason that OpenAI spells otherwise is spelled OpenAI's way.
- A usage beside the text of a stream is left out: whoever asked for one gets it once, in a chunk of its own, and there
  are clients that add up all that they see.

Invariant: what needs none of this passes byte for byte; so does what is no text, or no choice, where it would have to
be read for this.
"""

from collections.abc import Mapping

import msgspec
from msgspec import Raw

from meterhouse.http.chunk import Chunk

_object_decoder = msgspec.json.Decoder(dict[str, Raw])
_objects_decoder = msgspec.json.Decoder(list[dict[str, Raw]])
_EMPTY_ID = b'""'


def tidy(payload: bytes, chunk: Chunk, asked: str, finish_reasons: Mapping[str, str]) -> bytes:
    """Return a payload as the client gets it.

    Args:
        payload: what the provider sent: a chunk, or a whole body.
        chunk: the same, decoded.
        asked: the model's name that the client asked for.
        finish_reasons: of the provider's row.
    """
    if _is_untidy(chunk, finish_reasons):
        payload = _tidy_choices(payload, finish_reasons)
    return payload if chunk.model is None or chunk.model == asked else rename_model(payload, chunk.model, asked)


class Tidying(msgspec.Struct):
    """Puts right the chunks of one stream, which mostly name one model in one way: what replaces it is made once."""

    asked: str
    finish_reasons: Mapping[str, str]
    served: str | None = None
    named: bytes = b""
    renamed: bytes = b""

    def tidy(self, payload: bytes, chunk: Chunk) -> bytes:
        """Return a payload as ``tidy`` does."""
        if chunk.choices and _is_untidy(chunk, self.finish_reasons):
            payload = _tidy_choices(payload, self.finish_reasons)
        served = chunk.model
        if served is None or served == self.asked:
            return payload
        if served != self.served:
            self.served = served
            self.named = b'"model":' + msgspec.json.encode(served)
            self.renamed = b'"model":' + msgspec.json.encode(self.asked)
        if payload.count(self.named) == 1:
            return payload.replace(self.named, self.renamed)
        return rename_model(payload, served, self.asked)


def rename_model(payload: bytes, served: str | None, asked: str) -> bytes:
    """Replace the value of the top-level ``model`` where it differs from the asked name."""
    if served is None or served == asked:
        return payload
    old, new = msgspec.json.encode(served), msgspec.json.encode(asked)
    for separator in (b'"model":', b'"model": '):
        pattern = separator + old
        if payload.count(pattern) == 1:
            return payload.replace(pattern, separator + new)
    # An unusual spelling, or the same pair in a nested object: only a decode can tell them apart.
    try:
        fields = _object_decoder.decode(payload)
    except UnicodeDecodeError:
        return payload
    fields["model"] = Raw(new)
    return msgspec.json.encode(fields)


def leave_out_usage(payload: bytes, usage: Raw) -> bytes:
    """Return a chunk of a stream without its top-level ``usage``, whose value this is."""
    for separator in (b',"usage":', b', "usage": '):
        pattern = separator + bytes(usage)
        if payload.count(pattern) == 1 and payload.endswith(pattern + b"}"):
            return payload.replace(pattern, b"")
    # It stands elsewhere, or the same text is in the answer too.
    try:
        fields = _object_decoder.decode(payload)
    except UnicodeDecodeError:
        return payload
    del fields["usage"]
    return msgspec.json.encode(fields)


def _is_untidy(chunk: Chunk, finish_reasons: Mapping[str, str]) -> bool:
    """Whether a choice needs any of this; every chunk is asked, and hardly any does."""
    for choice in chunk.choices or ():
        text = choice.delta or choice.message
        if text is not None:
            if text.reasoning and text.reasoning_content is None:
                return True
            if text.tool_calls is not None and any(call.id == "" for call in text.tool_calls):
                return True
        if choice.finish_reason is not None and choice.finish_reason in finish_reasons:
            return True
    return False


def _tidy_choices(payload: bytes, finish_reasons: Mapping[str, str]) -> bytes:
    """Put the choices right; where one of them is none, or no text, they pass as they came."""
    try:
        fields = _object_decoder.decode(payload)
        choices = _objects_decoder.decode(fields["choices"])
        for choice in choices:
            _tidy_choice(choice, finish_reasons)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return payload
    fields["choices"] = Raw(msgspec.json.encode(choices))
    return msgspec.json.encode(fields)


def _tidy_choice(choice: dict[str, Raw], finish_reasons: Mapping[str, str]) -> None:
    for name in ("delta", "message"):
        if name in choice and bytes(choice[name]).startswith(b"{"):
            choice[name] = _tidy_text(choice[name])
    if "finish_reason" in choice:
        reason = msgspec.json.decode(choice["finish_reason"])
        if isinstance(reason, str) and reason in finish_reasons:
            choice["finish_reason"] = Raw(msgspec.json.encode(finish_reasons[reason]))


def _tidy_text(raw: Raw) -> Raw:
    text = _object_decoder.decode(raw)
    reasoning = bytes(text.get("reasoning", Raw(b"")))
    if reasoning.startswith(b'"') and reasoning != b'""' and "reasoning_content" not in text:
        text["reasoning_content"] = text["reasoning"]
    if bytes(text.get("tool_calls", Raw(b""))).startswith(b"["):
        calls = _objects_decoder.decode(text["tool_calls"])
        for call in calls:
            if bytes(call.get("id", Raw(b""))) == _EMPTY_ID:
                del call["id"]
        text["tool_calls"] = Raw(msgspec.json.encode(calls))
    return Raw(msgspec.json.encode(text))
