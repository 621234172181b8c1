"""The ground truth: every event of every attempt, in order, in memory and as JSON lines in a file.

Invariant: an event is noted just before its last byte goes to the socket, so ``tokens`` is never below what a client
can have seen.
Not here: who notes (exchange), what the ledger should make of it (the tests).

Events: ``request`` ``held`` ``released`` ``first_byte`` ``head`` ``token`` (kind, count so far) ``half`` ``finish``
``usage`` ``error`` ``garbage`` ``done`` ``end`` (the body ended cleanly) ``reset`` and ``closed`` (by us)
``client_gone`` (how: fin, reset, closed) ``script_error``.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

STAGES = {
    "request": "received",
    "head": "head",
    "token": "streaming",
    "finish": "finished",
    "done": "done",
}
ENDINGS = frozenset({"end", "reset", "closed", "client_gone", "script_error"})


@dataclass
class Attempt:
    """One request as the provider saw it; made by replaying the log."""

    number: int
    request: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    """Output tokens that went out, over all choices: text, reasoning, refusal and tool arguments."""
    status: int | None = None
    usage: dict[str, Any] | None = None
    """The usage object that was sent last, as it was sent."""
    usage_count: int = 0
    stage: str = "received"
    """received, head, streaming, finished, done: how far the answer is, or was when it ended."""
    is_held: bool = False
    """Waits at a gate, at whatever stage."""
    ended_by: str | None = None
    """end, reset, closed, client_gone, script_error; None: open."""
    has_finish: bool = False
    has_done: bool = False

    @property
    def marker(self) -> str:
        """The marker of the last message."""
        return str(self.request["marker"])

    @property
    def model(self) -> str:
        """The model name as it arrived, with its parameters."""
        return str(self.request["model"])

    @property
    def prompt_tokens(self) -> int:
        """The input by ``words.prompt_tokens``, whether or not it was reported."""
        return int(self.request["prompt_tokens"])

    @property
    def is_open(self) -> bool:
        """Whether the answer has not ended in any way."""
        return self.ended_by is None

    @property
    def names(self) -> list[str]:
        """The events in order, runs of equal ones once."""
        names: list[str] = []
        for event in self.events:
            if not names or names[-1] != event["event"]:
                names.append(event["event"])
        return names

    def apply(self, event: dict[str, Any]) -> None:
        """Take one event into the account."""
        name = event["event"]
        self.events.append(event)
        self.stage = STAGES.get(name, self.stage)
        if name in {"held", "released"}:
            self.is_held = name == "held"
        elif name == "token":
            self.tokens = event["count"]
        elif name == "head":
            self.status = event["status"]
        elif name == "usage":
            self.usage = event["usage"]
            self.usage_count += 1
        elif name == "finish":
            self.has_finish = True
        elif name == "done":
            self.has_done = True
        elif name in ENDINGS:
            self.ended_by = self.ended_by or name


class GroundTruth:
    """The log. Thread-safe; every event wakes those who wait."""

    def __init__(self, path: Path | None = None) -> None:
        self.changed = threading.Condition()
        self._events: list[dict[str, Any]] = []
        self._attempts: dict[int, Attempt] = {}
        self._file: IO[bytes] | None = path.open("ab", buffering=0) if path else None

    def note(self, attempt: int, event: str, **fields: Any) -> None:
        """Append one event; it is in the file when this returns."""
        entry = {"attempt": attempt, "event": event, "at_us": time.time_ns() // 1000, **fields}
        with self.changed:
            self.apply(entry)
            if self._file:
                self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
            self.changed.notify_all()

    def apply(self, entry: dict[str, Any]) -> None:
        """Take an event into memory, for example one read from another process's log."""
        number = entry["attempt"]
        self._events.append(entry)
        if number not in self._attempts:
            self._attempts[number] = Attempt(number, request=entry)
        self._attempts[number].apply(entry)

    def forget(self) -> None:
        """Drop every attempt that has ended, for a run that would not fit into memory."""
        with self.changed:
            self._attempts = {number: attempt for number, attempt in self._attempts.items() if attempt.is_open}
            self._events = [event for event in self._events if event["attempt"] in self._attempts]

    def close(self) -> None:
        """Close the file; what was noted stays readable."""
        if self._file:
            self._file.close()
            self._file = None

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event so far, in order."""
        with self.changed:
            return list(self._events)

    @property
    def attempts(self) -> list[Attempt]:
        """Every attempt so far, by number."""
        with self.changed:
            return list(self._attempts.values())

    def by_marker(self, marker: str) -> list[Attempt]:
        """The attempts of the request that carried this marker, in order."""
        return [attempt for attempt in self.attempts if attempt.marker == marker]

    def count_stages(self) -> dict[str, int]:
        """How many open attempts are at each stage; those at a gate count as ``held`` instead."""
        return dict(
            Counter("held" if attempt.is_held else attempt.stage for attempt in self.attempts if attempt.is_open)
        )

    def wait_for(self, predicate: Callable[["GroundTruth"], Any], timeout_seconds: float = 30) -> Any:
        """Block until the predicate holds and return its value; raises AssertionError with the stages on timeout."""
        deadline = time.monotonic() + timeout_seconds
        while not (value := predicate(self)):
            left = deadline - time.monotonic()
            if left <= 0:
                stages = [(attempt.number, attempt.names, attempt.ended_by) for attempt in self.attempts[:20]]
                raise AssertionError(f"not seen within {timeout_seconds} s; attempts: {stages}")
            with self.changed:
                self.changed.wait(min(left, 0.05))
        return value


def read_truth(path: Path) -> GroundTruth:
    """Read a log file, also while it is written: a last line without its end is left out."""
    truth = GroundTruth()
    for line in path.read_bytes().split(b"\n")[:-1]:
        truth.apply(json.loads(line))
    return truth
