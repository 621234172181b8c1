"""The load generator: N connections, each asking again when its answer is whole. One process for each measurement.

Prints one JSON object: answers and seconds of the measured window, all answers, failures, latencies in milliseconds,
and the CPU seconds within the window of this process and of those that it is told to watch.
Invariant: only whole answers count (status 200; a stream with ``[DONE]`` and its end), and nothing is left open at the
end: what was asked is read to its end, so that served answers and ledger rows can be compared. That is why it is not
wrk, which hangs up in the middle of answers (``infra/decisions/0018``).
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import cast

import uvloop

from benchmark.proc import read_cpu_seconds, read_watched
from benchmark.wire import STREAM_END, request_body

TAIL_BYTES = 64
DRAIN_SECONDS = 10


class Load:
    """What is asked and what came of it."""

    def __init__(self, requests: Iterator[bytes], *, is_streamed: bool) -> None:
        self.requests = requests
        """What is asked next, without an end."""
        self.is_streamed = is_streamed
        self.is_measuring = False
        self.is_stopping = False
        self.latencies: list[float] = []
        self.answers = 0
        self.failures = 0
        self.first_failure = ""
        self.open = 0
        self.is_drained = asyncio.Event()

    def leave(self) -> None:
        """Take note that a connection is gone."""
        self.open -= 1
        if not self.open:
            self.is_drained.set()

    def finish(self, started: float, failure: str) -> None:
        """Count one answer."""
        if failure:
            self.failures += 1
            self.first_failure = self.first_failure or failure
            return
        self.answers += 1
        if self.is_measuring:
            self.latencies.append(time.perf_counter() - started)


class Connection(asyncio.Protocol):
    """One connection that always has a request open until the load stops."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._head = b""
        self._body = b""
        self._length: int | None = None
        self._received = 0
        self._started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        self._transport = cast(asyncio.Transport, transport)
        self._load.open += 1
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count what was open as failed."""
        if self._started:
            self._load.finish(self._started, f"connection lost: {exc}")
        self._load.leave()

    def _ask(self) -> None:
        if self._load.is_stopping:
            self._started = 0.0
            self._transport.close()
            return
        self._head, self._body, self._received = b"", b"", 0
        self._started = time.perf_counter()
        self._transport.write(next(self._load.requests))

    def data_received(self, data: bytes) -> None:
        """Read an answer; keeps the head and the tail of the body only."""
        if not self._head.endswith(b"\r\n\r\n"):
            head, separator, data = (self._head + data).partition(b"\r\n\r\n")
            self._head = head + separator
            if not separator:
                return
            position = self._head.lower().find(b"content-length:")
            self._length = int(self._head[position + 15 :].split(b"\r\n", 1)[0]) if position >= 0 else None
        self._received += len(data)
        self._body = (self._body + data)[-TAIL_BYTES:]
        is_whole = self._received >= self._length if self._length is not None else self._body.endswith(STREAM_END)
        if is_whole:
            self._load.finish(self._started, self._find_failure())
            self._ask()

    def _find_failure(self) -> str:
        if b" 200 " not in self._head[:16]:
            return (self._head.split(b"\r\n", 1)[0] + b" " + self._body).decode(errors="replace")
        if self._load.is_streamed and b"[DONE]" not in self._body:
            return f"a stream without [DONE]: {self._body!r}"
        return ""


def make_requests(arguments: argparse.Namespace) -> Iterator[bytes]:
    """Give requests without an end: with the keys of a file one after another, or with the one key."""
    body = request_body(arguments.model, is_streamed=arguments.stream, kilobytes=arguments.body)
    start = (
        f"POST {arguments.path} HTTP/1.1\r\nhost: 127.0.0.1:{arguments.port}\r\ncontent-type: application/json\r\n"
        f"accept: application/json\r\ncontent-length: {len(body)}\r\nauthorization: Bearer "
    ).encode()
    end = b"\r\n\r\n" + body
    if arguments.keys_file:
        keys = Path(arguments.keys_file).read_bytes().split()
        return (start + key + end for key in cycle(keys))
    return cycle([start + arguments.key.encode() + end])


async def run(arguments: argparse.Namespace) -> None:
    """Warm up, measure, drain, report."""
    loop = asyncio.get_running_loop()
    load = Load(make_requests(arguments), is_streamed=arguments.stream)
    for _ in range(arguments.connections):
        await loop.create_connection(lambda: Connection(load), "127.0.0.1", arguments.port)
    await asyncio.sleep(arguments.warm_seconds)
    watched = {"load": os.getpid(), **read_watched(arguments.watch)}
    cpu = read_cpu_seconds(watched)
    load.is_measuring, started = True, time.perf_counter()
    await asyncio.sleep(arguments.seconds)
    load.is_measuring, seconds = False, time.perf_counter() - started
    used = {name: value - cpu[name] for name, value in read_cpu_seconds(watched).items()}
    load.is_stopping = True
    with suppress(TimeoutError):
        await asyncio.wait_for(load.is_drained.wait(), DRAIN_SECONDS)
    latencies = sorted(load.latencies) or [0.0]
    print(
        json.dumps(
            {
                "answers": len(load.latencies),
                "seconds": seconds,
                "all_answers": load.answers,
                "failures": load.failures + load.open,
                "first_failure": load.first_failure or ("an answer never ended" if load.open else ""),
                "p50_ms": latencies[len(latencies) // 2] * 1000,
                "p99_ms": latencies[len(latencies) * 99 // 100] * 1000,
                "cpu_seconds": used,
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--model", required=True)
    parser.add_argument("--key", default="none")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--warm-seconds", type=float, default=0.2)
    parser.add_argument("--body", type=int, default=0, help="kilobytes of the prompt")
    parser.add_argument("--keys-file", help="a key a line, instead of --key")
    parser.add_argument("--watch", nargs="*", default=[], metavar="NAME=PID", help="whose CPU time is reported")
    uvloop.run(run(parser.parse_args()))
