"""The official SDK's administration client, synchronous or not, with every answer held against the SDK's own types.

The SDK builds its objects without validation, so that a missing or misspelt field goes unnoticed; here nothing does.
"""

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any, Self

import openai
from openai import BaseModel


class StrictSdk:
    """``ask(lambda org: org.projects.with_raw_response.list())`` calls ``client.admin.organization`` and checks."""

    def __init__(self, client: openai.OpenAI | openai.AsyncOpenAI) -> None:
        self.client = client
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.client.close())
        self._runner.close()

    def ask(self, call: Callable[[Any], Any]) -> Any:
        """Call with a raw response; returns what the SDK makes of it, once that is known to be valid."""
        raw = self.run(call(self.client.admin.organization))
        parsed, answer = raw.parse(), json.loads(raw.text if isinstance(raw.text, str) else raw.text())
        if hasattr(parsed, "data"):
            assert set(answer) == {"object", "data", "first_id", "last_id", "has_more"}, answer
            assert answer["object"] == "list"
            for item, row in zip(parsed.data, answer["data"], strict=True):
                check(item, row)
        else:
            check(parsed, answer)
        return parsed

    def collect(self, call: Callable[[Any], Any]) -> list[Any]:
        """Go through every page of a list as the SDK itself does."""
        pages = call(self.client.admin.organization)
        if isinstance(self.client, openai.OpenAI):
            return list(pages)

        async def go_through() -> list[Any]:
            return [item async for item in pages]

        return self._runner.run(go_through())

    def run(self, answer: Any) -> Any:
        """Wait for an answer if it must be waited for."""
        if not inspect.isawaitable(answer):
            return answer

        async def wait() -> Any:
            return await answer

        return self._runner.run(wait())


def check(parsed: Any, answer: Any) -> None:
    """Fail unless an answer has every field that the SDK's type requires, in its type, and none that it does not know.

    What no type tells: ``object`` of an audit log, and details of events, which may have more fields than OpenAI's.
    """
    kind = type(parsed)
    assert issubclass(kind, BaseModel), kind
    found = kind.model_validate(answer, strict=True)
    unknown = set(found.model_extra or {}) - ({"object"} if kind.__name__ == "AuditLogListResponse" else set())
    assert not unknown, f"{kind.__name__} has no {unknown}"
    if kind.__name__ != "AuditLogListResponse":
        for name in kind.model_fields:
            value = getattr(found, name)
            assert not isinstance(value, BaseModel) or not value.model_extra, (kind.__name__, name, value.model_extra)
