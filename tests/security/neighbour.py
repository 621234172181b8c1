"""A neighbour: asks for a quick answer, one after another, from a process of its own, and says what it waited.

Of its own, because a test that makes a storm would otherwise measure how long its own loop keeps itself waiting; its
provider is one of its own for the same reason. ``Neighbour`` starts it; as a program it asks until its input ends.
Calm and storm are spans of one run, in turn where that can be, and the medians of their 99th percentiles are compared:
what disturbs the machine for a while then disturbs both. What was slow is said beside it.
"""

import argparse
import json
import select
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Self

from fakes.gateway import MESSAGES, http_request
from security.slowness import Slowness

TESTS = Path(__file__).resolve().parents[1]
MODEL = "quiet/normal?tokens=5"
EXTRA_SECONDS = 0.05
PAUSE_SECONDS = 0.01
START_SECONDS = 30

CALM, STORM = "calm", "storm"

Span = tuple[float, float]
"""When something began by the monotonic clock, and when it ended or how long it took, in seconds."""


class Neighbour:
    """``with Neighbour(url, key) as neighbour:`` asks until the end; then ``check`` compares storms with calm.

    Args:
        url: whom to ask.
        key: with which key.
        ca: whom to trust.
        log: what the gateway writes, which says how long the same requests were inside it.
        processes: what else runs, by name; see ``Slowness``.
    """

    def __init__(
        self, url: str, key: str, ca: Path | None = None, *, log: Path, processes: Mapping[str, int] | None = None
    ) -> None:
        self._command = [sys.executable, "-m", "security.neighbour", "--url", url, "--key", key]
        self._command += ["--ca", str(ca)] if ca else []
        self._log = log
        self._processes = processes or {}
        self._spans: dict[str, list[Span]] = {CALM: [], STORM: []}
        self._waits: list[Span] = []
        self._inside: list[Span] = []

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, cwd=TESTS, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout
        assert self._process.stdout.readline() == "asking\n", "the neighbour was not answered"
        self._slowness = Slowness({"the neighbour": self._process.pid, **self._processes})
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        said, _ = self._process.communicate(timeout=START_SECONDS)
        if kind is None:
            assert self._process.returncode == 0, "the neighbour was refused, or failed"
            self._waits = json.loads(said)
            self._inside = _seen_inside(self._log)

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """A span in which nobody does anything to it (CALM), or somebody does (STORM)."""
        before, began = self._slowness.begin(), time.monotonic()  # the same clock in all processes
        yield
        self._spans[kind].append((began, time.monotonic()))
        self._slowness.end(kind, before)

    @property
    def p99s_ms(self) -> tuple[float, float]:
        """What it waited at the 99th percentile: in a calm span and in a stormy one, the median of them."""
        return self._median_ms(self._waits, CALM), self._median_ms(self._waits, STORM)

    def check(self) -> None:
        """Nobody may make a neighbour wait longer than twice as long as in calm, and 50 ms."""
        calm_ms, stormy_ms = self.p99s_ms
        text = (
            f"p99 {calm_ms:.1f} ms in {len(self._spans[CALM])} calm spans, {stormy_ms:.1f} ms in "
            f"{len(self._spans[STORM])} stormy ones; of that inside the gateway "
            f"{self._median_ms(self._inside, CALM):.1f} and {self._median_ms(self._inside, STORM):.1f} ms; "
            f"{self._slowness}"
        )
        print(text)
        assert stormy_ms <= 2 * calm_ms + 1000 * EXTRA_SECONDS, text

    def _median_ms(self, waits: Sequence[Span], kind: str) -> float:
        return 1000 * statistics.median(_p99_seconds(waits, *span) for span in self._spans[kind])


def _p99_seconds(waits: Sequence[Span], began: float, ended: float) -> float:
    """What was waited for by whoever was waiting in a span, and not only by whoever asked in it."""
    found = sorted(seconds for asked, seconds in waits if asked < ended and asked + seconds > began)
    assert found, "the neighbour was not answered at all"
    return found[int(len(found) * 0.99)]


def _seen_inside(log: Path) -> list[Span]:
    """Return when the neighbour's requests reached the gateway, and how many seconds they were inside it."""
    offset = time.time() - time.monotonic()
    found = []
    for line in log.read_bytes().splitlines():
        if MODEL.encode() in line and line.startswith(b"{"):
            row = json.loads(line)
            if row["event"] == "request.finished":
                seconds = row["duration_ms"] / 1000
                found.append((datetime.fromisoformat(row["timestamp"]).timestamp() - offset - seconds, seconds))
    return found


def main() -> None:
    """Ask until the input ends, and print when each request was sent and what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--ca")
    arguments = parser.parse_args()
    trust = ssl.create_default_context(cafile=arguments.ca) if arguments.ca else None
    body = {"model": MODEL, "messages": MESSAGES}
    waits: list[Span] = []
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        began = time.monotonic()
        status, _, answer = http_request(
            arguments.url, "POST", "/v1/chat/completions", body, key=arguments.key, trust=trust
        )
        assert status == 200, answer
        if not waits:
            print("asking", flush=True)
        waits.append((began, time.monotonic() - began))
    print(json.dumps(waits[1:]))


if __name__ == "__main__":
    main()
