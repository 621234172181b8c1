"""The client of ``--hold``: opens streams at a steady rate, holds them, and reads each to its end.

Prints one JSON object: the times to the first token while they opened, what the server used while all were open, and
how many streams ended whole. Invariant: nothing is hung up on; the upstream is told to end the streams.
"""

import argparse
import asyncio
import gc
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import uvloop

from benchmark.proc import raise_file_limit, read_cpu_seconds, read_memory_bytes, read_watched
from benchmark.servers import ask
from benchmark.wire import STREAM_END, request_body

TAIL_BYTES = 64
MOST_TOKENS = 100_000
TICK_SECONDS = 0.01
SETTLE_SECONDS = 2.0
OPEN_SECONDS = 60
"""How long the last streams may take to their first token."""
END_SECONDS = 60
MEASURES = 5
"""Memory is the median of so many readings."""


class Streams:
    """All streams: how many are in which state, and what went wrong first."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.first_tokens: list[float] = []
        self.pieces = 0
        self.whole = self.failed = 0
        self.first_failure = ""
        self.has_changed = asyncio.Event()

    def begin(self, seconds: float) -> None:
        """Count a stream whose first token has come after so long."""
        self.first_tokens.append(seconds)
        self.has_changed.set()

    def end(self) -> None:
        """Count a stream that ended whole."""
        self.whole += 1
        self.has_changed.set()

    def fail(self, text: str) -> None:
        """Count a stream that did not end as it should."""
        self.failed += 1
        self.first_failure = self.first_failure or text
        self.has_changed.set()

    async def wait(self, is_done: Callable[[], bool], seconds: float) -> None:
        """Wait until something is so, but no longer than so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not is_done():
                    self.has_changed.clear()
                    await self.has_changed.wait()


class Stream(asyncio.Protocol):
    """One of them, on a connection of its own."""

    def __init__(self, streams: Streams, started: float) -> None:
        self._streams = streams
        self._started = started
        self._head = b""
        self._tail = b""
        self._is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._streams.request)

    def data_received(self, data: bytes) -> None:
        """Take the time of the first token, and look for the end."""
        streams = self._streams
        streams.pieces += 1
        if not self._head.endswith(b"data: "):
            head, mark, _ = (self._head + data).partition(b"data: ")
            self._head = head + mark
            if not mark:
                return
            if b" 200 " in self._head[:16]:
                streams.begin(time.perf_counter() - self._started)
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        if self._tail.endswith(STREAM_END):
            if b"[DONE]" in self._tail:
                streams.end()
            else:
                streams.fail(f"a stream without [DONE]: {self._tail!r}")
            self._is_over = True
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it as failed unless it was over."""
        if not self._is_over:
            self._streams.fail(f"hung up ({exc}) after {(self._head + self._tail)[-300:]!r}")


async def open_all(streams: Streams, arguments: argparse.Namespace) -> None:
    """Open them at the rate; returns when each has a first token or has failed, or none has come for too long."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()

    async def open_one() -> None:
        started = time.perf_counter()
        try:
            await loop.create_connection(lambda: Stream(streams, started), "127.0.0.1", arguments.port)
        except OSError as error:
            streams.fail(f"no connection: {error}")

    opened = 0
    while opened < arguments.count:
        due = min(arguments.count, int((time.perf_counter() - began) * arguments.rate) + 1)
        for _ in range(due - opened):
            task = loop.create_task(open_one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        opened = due
        await asyncio.sleep(TICK_SECONDS)
    await streams.wait(lambda: len(streams.first_tokens) + streams.failed >= arguments.count, OPEN_SECONDS)


async def read_memory(pid: int) -> int:
    """Return the median of a few readings, which takes a second."""
    found = []
    for _ in range(MEASURES):
        found.append(read_memory_bytes(pid))
        await asyncio.sleep(1 / MEASURES)
    return sorted(found)[MEASURES // 2]


async def run(arguments: argparse.Namespace) -> None:
    """Open, hold, end, report."""
    gc.disable()  # what it would hold up is what is measured
    raise_file_limit()
    body = request_body(arguments.model, is_streamed=True, max_tokens=MOST_TOKENS)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{arguments.port}\r\naccept: text/event-stream\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"authorization: Bearer {arguments.key}\r\n\r\n"
    )
    streams = Streams(head.encode() + body)
    watched = {"load": os.getpid(), **read_watched(arguments.watch)}
    server = watched["server"]
    memory_before = await read_memory(server)
    began, cpu_began = time.perf_counter(), read_cpu_seconds(watched)
    await open_all(streams, arguments)
    opened_seconds, cpu_opened = time.perf_counter() - began, read_cpu_seconds(watched)
    first_tokens = sorted(streams.first_tokens) or [0.0]
    await asyncio.sleep(SETTLE_SECONDS)
    cpu, pieces, held_from = read_cpu_seconds(watched), streams.pieces, time.perf_counter()
    await asyncio.sleep(arguments.seconds)
    held_seconds, held_pieces = time.perf_counter() - held_from, streams.pieces - pieces
    held = read_cpu_seconds(watched)
    open_streams = arguments.count - streams.failed - streams.whole
    memory = await read_memory(server)
    ended = time.perf_counter()
    await asyncio.to_thread(ask, arguments.upstream_port, "POST", "/finish")
    await streams.wait(lambda: streams.whole + streams.failed >= arguments.count, END_SECONDS)
    unended = arguments.count - streams.whole - streams.failed
    report = {
        "opened": len(streams.first_tokens),
        "opened_seconds": opened_seconds,
        "opening_cpu_share": (cpu_opened["server"] - cpu_began["server"]) / opened_seconds,
        "opening_others_cpu_share": sum(cpu_opened[name] - cpu_began[name] for name in held if name != "server")
        / opened_seconds,
        "first_token_p50_ms": first_tokens[len(first_tokens) // 2] * 1000,
        "first_token_p99_ms": first_tokens[len(first_tokens) * 99 // 100] * 1000,
        "open_while_held": open_streams,
        "held_seconds": held_seconds,
        "pieces_per_second": held_pieces / held_seconds,
        "cpu_share": (held["server"] - cpu["server"]) / held_seconds,
        "others_cpu_share": sum(held[name] - cpu[name] for name in held if name != "server") / held_seconds,
        "memory_before_bytes": memory_before,
        "memory_bytes": memory,
        "ending_seconds": time.perf_counter() - ended,
        "all_answers": streams.whole,
        "failures": streams.failed + unended,
        "first_failure": streams.first_failure or ("a stream never ended" if unended else ""),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream-port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--rate", type=float, default=1000.0, help="streams opened per second")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long all are held")
    parser.add_argument("--watch", nargs="+", required=True, metavar="NAME=PID", help="whose CPU time; one is server")
    uvloop.run(run(parser.parse_args()))
