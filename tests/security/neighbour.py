"""A neighbour: asks for a quick answer, one after another, from a process of its own, and says what it waited.

Of its own, because a test that makes a storm would otherwise measure how long its own loop keeps itself waiting; its
provider is one of its own for the same reason. ``Neighbour`` starts it; as a program it asks until its input ends.
"""

import argparse
import json
import select
import ssl
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from fakes.gateway import MESSAGES, http_request

TESTS = Path(__file__).resolve().parents[1]
MODEL = "quiet/normal?tokens=5"
EXTRA_SECONDS = 0.05
PAUSE_SECONDS = 0.01
START_SECONDS = 30


class Neighbour:
    """``with Neighbour(url, key) as neighbour:`` asks until the end; then ``waits`` are what its requests took."""

    def __init__(self, url: str, key: str, ca: Path | None = None) -> None:
        self._command = [sys.executable, "-m", "security.neighbour", "--url", url, "--key", key]
        self._command += ["--ca", str(ca)] if ca else []
        self.waits: list[float] = []

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, cwd=TESTS, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout
        assert self._process.stdout.readline() == "asking\n", "the neighbour was not answered"
        return self

    def __exit__(self, *_: object) -> None:
        said, _ = self._process.communicate(timeout=START_SECONDS)
        assert self._process.returncode == 0, "the neighbour was refused, or failed"
        self.waits = json.loads(said)

    @property
    def p99_seconds(self) -> float:
        """What it waited at the 99th percentile."""
        return statistics.quantiles(self.waits, n=100)[98]


def check_p99(calm: Neighbour, stormy: Neighbour) -> None:
    """Nobody may make a neighbour wait longer than twice as long as before, and 50 ms."""
    before_ms, now_ms = 1000 * calm.p99_seconds, 1000 * stormy.p99_seconds
    text = f"p99 {before_ms:.1f} ms in {len(calm.waits)} calm requests, {now_ms:.1f} ms in {len(stormy.waits)}"
    print(text)
    assert now_ms <= 2 * before_ms + 1000 * EXTRA_SECONDS, text


def main() -> None:
    """Ask until the input ends, and print what each request took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--ca")
    arguments = parser.parse_args()
    trust = ssl.create_default_context(cafile=arguments.ca) if arguments.ca else None
    body = {"model": MODEL, "messages": MESSAGES}
    waits: list[float] = []
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        began = time.monotonic()
        status, _, answer = http_request(
            arguments.url, "POST", "/v1/chat/completions", body, key=arguments.key, trust=trust
        )
        assert status == 200, answer
        if not waits:
            print("asking", flush=True)
        waits.append(time.monotonic() - began)
    print(json.dumps(waits[1:]))


if __name__ == "__main__":
    main()
