"""A request of the deploy test as its client knows it, and how it goes over the wire in either version of HTTP."""

import json
import random
from dataclasses import asdict, dataclass, field
from typing import Any, Self

NAME = "localhost"
PATH = "/v1/chat/completions"


@dataclass
class Asked:
    """One request, and what came of it."""

    marker: str
    model: str
    is_streamed: bool
    is_http2: bool
    trace_id: str = field(default_factory=lambda: f"{random.getrandbits(128) | 1:032x}")
    status: int = 0
    text: str = ""
    is_whole: bool = False
    error: str = ""
    sent_again: int = 0
    """How often the server had closed the connection before it took the request, so that another one was used."""
    was_warm: bool = False
    """It went over a connection that had been used before."""
    began_at: float = 0.0
    ended_at: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether its client has what it asked for."""
        return self.status == 200 and self.is_whole and not self.error

    def body(self) -> bytes:
        """Return the request's body."""
        return json.dumps(
            {
                "model": f"fake/{self.model}",
                "messages": [{"role": "user", "content": f"Tell me of rivers. marker={self.marker}"}],
                "stream": self.is_streamed,
            }
        ).encode()

    def headers(self, key: str) -> dict[str, str]:
        """Return its headers, without those of a version."""
        return {
            "authorization": f"Bearer {key}",
            "content-type": "application/json",
            "traceparent": f"00-{self.trace_id}-00000000000000a1-00",
        }

    def take(self, status: int, body: bytes) -> None:
        """Read an answer that came to its end as HTTP has it."""
        self.status = status
        if status != 200:
            self.error = f"status {status}: {body[:300]!r}"
        elif self.is_streamed:
            events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event.startswith(b"data: ")]
            self.is_whole = bool(events) and events[-1] == b"[DONE]"
            chunks = [json.loads(event) for event in events if event != b"[DONE]"]
            self.error = next((str(chunk["error"]) for chunk in chunks if "error" in chunk), "")
            choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
            self.text = "".join(choice["delta"].get("content") or "" for choice in choices)
        else:
            self.text = json.loads(body)["choices"][0]["message"]["content"]
            self.is_whole = True

    def to_json(self) -> dict[str, Any]:
        """Return it as the load's process hands it over."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read one again."""
        return cls(**data)


class NotTaken(Exception):
    """The server closed the connection before it took the request: it may go over another one."""
