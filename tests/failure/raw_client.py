"""An HTTP client made of one socket, so that a test decides when it reads, when it leaves and how.

``Client`` sends one request and decodes what has come so far, whether or not the answer is whole. Not here: what an
answer should be.
"""

import json
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, Self
from urllib.parse import urlsplit

import httptools

MESSAGES = [{"role": "user", "content": "Say something. marker=m"}]
READ_BYTES = 65_536


class Client:
    """One POST. ``body`` is what was read of the answer's body; ``is_whole`` says whether its end came."""

    def __init__(
        self,
        url: str,
        key: str,
        body: Any,
        *,
        receive_buffer_bytes: int = 0,
        path: str = "/v1/chat/completions",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        parts = urlsplit(url)
        self.status = 0
        self.headers: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._decoded: tuple[int, list[dict[str, Any]]] = (0, [])
        self.is_whole = False
        self.is_closed = False
        """Whether the server has closed or reset the connection."""
        self.socket = socket.socket()
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.connect((parts.hostname, parts.port))
        self._parser = httptools.HttpResponseParser(self)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {key}\r\ncontent-length: {len(data)}\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
            + "\r\n"
        )
        self.socket.sendall(head.encode() + data)

    def __del__(self) -> None:
        self.socket.close()

    # --- what the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        self.is_whole = True

    # --- what a test calls

    def read_until(self, is_enough: Callable[[Self], Any], timeout_seconds: float = 30) -> Self:
        """Read until the predicate holds; fails when it cannot hold any more, or not in time."""
        deadline = time.monotonic() + timeout_seconds
        while not is_enough(self):
            assert not self.is_closed, f"closed after {self.status} {self.body[-300:]!r}"
            is_alive = self._read_once(deadline - time.monotonic())
            assert is_alive, f"not within {timeout_seconds} s: {self.body[-300:]!r}"
        return self

    def read_all(self, timeout_seconds: float = 30) -> Self:
        """Read to the end of the answer, or of the connection."""
        return self.read_until(lambda client: client.is_whole or client.is_closed, timeout_seconds)

    def read_for(self, seconds: float) -> Self:
        """Read whatever comes in so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.is_closed and self._read_once(deadline - time.monotonic()):
            pass
        return self

    def leave(self) -> None:
        """Close in order (FIN)."""
        self.socket.close()

    def reset(self) -> None:
        """Reset the connection (RST)."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _read_once(self, seconds: float) -> bool:
        """Read once; False: nothing came in time."""
        if seconds <= 0:
            return False
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(READ_BYTES)
        except TimeoutError:
            return False
        except ConnectionError:
            data = b""
        if data:
            self._parser.feed_data(data)
        else:
            self.is_closed = True
            self.socket.close()
        return True

    # --- what was read

    @property
    def body(self) -> bytes:
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]

    @property
    def events(self) -> list[bytes]:
        """The data of every whole event; anything but plain data events and our own comment fails."""
        found = []
        for event in self.body.split(b"\n\n")[:-1]:
            if event != b": keep-alive":
                assert event.startswith(b"data: "), event[:200]
                assert b"\n" not in event, event[:200]
                assert b"\r" not in event, event[:200]
                assert b"\0" not in event, event[:200]
                found.append(event.removeprefix(b"data: "))
        return found

    @property
    def keep_alives(self) -> int:
        return self.body.count(b": keep-alive\n\n")

    @property
    def has_done(self) -> bool:
        return b"data: [DONE]\n\n" in self.body

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The decoded events without [DONE]."""
        if self._decoded[0] != len(self.body):
            self._decoded = (len(self.body), [json.loads(event) for event in self.events if event != b"[DONE]"])
        return self._decoded[1]

    @property
    def finish_reasons(self) -> list[str]:
        rows = [row for chunk in self.chunks for row in chunk.get("choices", ())]
        return [row["finish_reason"] for row in rows if row.get("finish_reason")]

    @property
    def text(self) -> str:
        """Everything that the model wrote: text, reasoning, refusal, arguments of tools."""
        rows = [row for chunk in self.chunks for row in chunk.get("choices", ())]
        return "".join(said_by(row.get("delta") or {}) for row in rows)

    @property
    def error(self) -> dict[str, Any] | None:
        """The error of a refusal, or of the last event of a stream."""
        if not self.headers.get("content-type", "").startswith("text/event-stream"):
            found = json.loads(self.body) if self.body else {}
        else:
            found = self.chunks[-1] if self.chunks else {}
        error: dict[str, Any] | None = found.get("error")
        if error is not None:
            assert set(found) == {"error"}, found
            assert set(error) == {"message", "type", "param", "code"}, error
        return error


def said_by(message: dict[str, Any]) -> str:
    """Return all that a delta or a message says."""
    thought = message.get("reasoning_content") or message.get("reasoning")  # the same, under two names
    pieces = [message.get("content"), thought, message.get("refusal")]
    for call in message.get("tool_calls") or ():
        pieces += [call["function"].get("name"), call["function"].get("arguments")]
    return "".join(piece for piece in pieces if piece)


def ask(model: str, marker: str = "m", **fields: Any) -> dict[str, Any]:
    """Return the body of a streamed request that carries a marker."""
    messages = [{"role": "user", "content": f"Say something. marker={marker}"}]
    return {"model": model, "messages": messages, "stream": True, **fields}
