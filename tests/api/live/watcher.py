"""One who watches requests run: a stream of live events, read in the background."""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, Self

Event = dict[str, Any]


class Watcher:
    """``with Watcher(url, "/v1/live", key) as watcher:``; listening when it begins."""

    def __init__(self, url: str, path: str, key: str) -> None:
        self._connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
        self._asked = (path, {"authorization": f"Bearer {key}"})
        self._answer: HTTPResponse
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.events: list[Event] = []
        self.lines: list[bytes] = []
        self.has_ended = threading.Event()

    @property
    def status(self) -> int:
        """The status of the answer."""
        return self._answer.status

    def __enter__(self) -> Self:
        path, headers = self._asked
        self._connection.request("GET", path, headers=headers)
        self._socket = self._connection.sock
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200, self._answer.read()
        assert self._answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert self._answer.readline() == b": listening\n"
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the other side may have ended it
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._answer.close()
        self._connection.close()
        self._socket.close()

    def wait_for(self, predicate: Callable[[list[Event]], Any], seconds: float = 60) -> Any:
        """Wait until something holds of the events; returns what it gave."""
        deadline = time.monotonic() + seconds
        while not (found := predicate(list(self.events))):
            assert time.monotonic() < deadline, self.events
            time.sleep(0.01)
        return found

    def wait_finished(self, request_id: str, seconds: float = 60) -> list[Event]:
        """Wait until a request has ended; returns its events, in their order."""

        def of(events: list[Event]) -> list[Event]:
            mine = [event for event in events if event.get("request_id") == request_id]
            return mine if mine and mine[-1]["type"] == "request.finished" else []

        found: list[Event] = self.wait_for(of, seconds)
        return found

    def _read(self) -> None:
        try:
            while line := self._answer.readline():
                self.lines.append(line)
                if line.startswith(b"data: "):
                    self.events.append(json.loads(line.removeprefix(b"data: ")))
        except (OSError, HTTPException, ValueError, AttributeError):
            pass
        self.has_ended.set()
