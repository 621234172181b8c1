"""What a request may ask of Anthropic's prompt cache: five minutes, and no more.

A cache of an hour is refused: writing to it has a price of its own, which no component of ours can say.
"""

from collections.abc import Iterator
from typing import Any

from meterhouse.errors import Malformed

_TTL = "5m"


def refuse_long_caching(request: dict[str, Any]) -> None:
    """Look at every ``cache_control`` of a request of Anthropic's.

    Raises:
        Malformed: some ``ttl`` is not that of five minutes.
    """
    for bearer in _bearers(request):
        mark = bearer.get("cache_control")
        if isinstance(mark, dict) and mark.get("ttl", _TTL) != _TTL:
            raise Malformed(
                f"A prompt is cached for five minutes here: cache_control.ttl must be '{_TTL}'.",
                param="cache_control.ttl",
                code="unsupported_value",
            )


def _bearers(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield request
    yield from _rows(request.get("system"))
    yield from _rows(request.get("tools"))
    for turn in _rows(request.get("messages")):
        for block in _rows(turn.get("content")):
            yield block
            yield from _rows(block.get("content"))
            source = block.get("source")
            if isinstance(source, dict):
                yield from _rows(source.get("content"))


def _rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
