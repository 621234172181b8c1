"""Puts the model name that the client asked for into what the provider sent, without rebuilding it."""

import msgspec
from msgspec import Raw


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
    fields = msgspec.json.decode(payload, type=dict[str, Raw])
    fields["model"] = Raw(new)
    return msgspec.json.encode(fields)
