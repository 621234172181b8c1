"""Asks for responses, and reads what comes as strictly as it can be read."""

from dataclasses import dataclass
from typing import Any

from api.asking import NUMBERS, error_of
from fakes.gateway import Gateway
from fakes.responses_wire import read_response, read_stream

PATH = "/v1/responses"
Headers = dict[str, str]


def marked(text: str = "Hello") -> tuple[str, str]:
    """Return a marker nobody else uses, and an input that carries it."""
    marker = f"r{next(NUMBERS)}"
    return marker, f"{text} marker={marker}"


@dataclass(frozen=True)
class Post:
    """Posts to one gateway."""

    gateway: Gateway

    def whole(self, model: str, *, key: str | None = None, **fields: Any) -> tuple[Headers, Any]:
        """Return the headers and the response of a request that succeeds."""
        status, headers, body = self._send(model, key, fields)
        assert status == 200, body
        return headers, read_response(body)

    def stream(self, model: str, *, key: str | None = None, **fields: Any) -> tuple[Headers, list[Any]]:
        """Return the headers and the events of a stream."""
        status, headers, body = self._send(model, key, {**fields, "stream": True})
        assert status == 200, body
        return headers, read_stream(body)

    def refused(self, model: str, *, key: str | None = None, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Return the status and the error of a request that is refused."""
        status, _, body = self._send(model, key, fields)
        return status, error_of(body)

    def _send(self, model: str, key: str | None, fields: dict[str, Any]) -> tuple[int, Headers, bytes]:
        return self.gateway.request("POST", PATH, {"model": model, "input": "Hello", **fields}, key=key)
