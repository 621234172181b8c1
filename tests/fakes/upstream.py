"""A scripted provider over a real socket, with a ground-truth log of every token that it emitted, per attempt.

In a test: ``with FakeUpstream() as up:`` or ``async with FakeUpstream() as up:``; ``up.base_url`` is what a provider
row takes, ``up.truth`` what happened. It runs on a thread and an event loop of its own, so a blocked test cannot stop
it and it cannot be stopped by the gateway under test. As a process of its own, so that it survives a ``kill -9`` of
everything else: ``python -m fakes.upstream --port 0 --log FILE``, or ``fakes.process.UpstreamProcess``.

Speaks ``/v1/chat/completions``, ``/v1/models``, ``/health``, Ollama's ``/api/chat`` and ``/api/tags``, and for tests
``GET /_fake/log``, ``GET /_fake/state``, ``POST /_fake/release`` (``{"count": n}``, or all that are held now).
Which answer a request gets is in its model's name: see plan. A request's marker is ``marker=abc`` in its last message.
Invariant: nothing is answered that is not in the log; a script that crashes fails the test at the end of the ``with``.
"""

import argparse
import asyncio
import json
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

from fakes import scripts
from fakes.exchange import Exchange, Over, Request, Socket
from fakes.plan import PRESETS, Plan, apply_query, read_plan
from fakes.truth import Attempt, GroundTruth
from fakes.wires import encode

HEAD_LIMIT_BYTES = 1 << 20
START_SECONDS = 10


class Gates:
    """Answers that wait for a test. A release lets go who waits now; later ones wait again."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, asyncio.Event]] = []
        self._is_open = False

    async def hold(self, name: str, count: int) -> None:
        """Wait for a release, or until ``count`` wait under this name."""
        if self._is_open:
            return
        entry = (name, asyncio.Event())
        self._waiting.append(entry)
        try:
            if count and sum(waiting == name for waiting, _ in self._waiting) >= count:
                self.release(None, name)
            await entry[1].wait()
        finally:
            with suppress(ValueError):
                self._waiting.remove(entry)

    def release(self, count: int | None, name: str = "") -> int:
        """Let the first ``count`` go, or all; of one script, or of any."""
        chosen = [entry for entry in self._waiting if not name or entry[0] == name][:count]
        for entry in chosen:
            self._waiting.remove(entry)
            entry[1].set()
        return len(chosen)

    def open(self) -> None:
        """Let everybody go, also those who come later."""
        self._is_open = True
        self.release(None)


class Connection(asyncio.Protocol):
    """One connection: reads requests one after another and runs the script of each."""

    def __init__(self, upstream: "FakeUpstream", number: int) -> None:
        self._upstream = upstream
        self._number = number
        self._reader = asyncio.StreamReader(limit=HEAD_LIMIT_BYTES)
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._gone = asyncio.Event()
        self._exchange: Exchange | None = None
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports behave as asyncio's without deriving from them.
        self.transport = cast(asyncio.Transport, transport)
        self._reader.set_transport(self.transport)
        self.task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self._reader.feed_data(data)

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    def eof_received(self) -> bool:
        self._leave("fin")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave("reset" if exc else "closed")
        self._upstream.connections.discard(self)

    def _leave(self, how: str) -> None:
        if self._gone.is_set():
            return
        self._gone.set()
        self._reader.feed_eof()
        if self._exchange and self._answering and not self._answering.done():
            self._upstream.truth.note(self._exchange.number, "client_gone", how=how)
            self._answering.cancel()

    async def _serve(self) -> None:
        # What is not HTTP is hung up on; a crash of the fake itself would show as an attempt that never ends.
        with suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
            while not self._gone.is_set() and await self._answer_one():
                pass
        self.transport.close()

    async def _answer_one(self) -> bool:
        request = await read_request(self._reader, self._number)
        if request.path.startswith("/_fake/") or request.method == "GET":
            self.transport.write(self._upstream.answer_control(request))
            return True
        socket = Socket(self.transport, self._can_write)
        exchange = self._upstream.open_exchange(request, socket)
        self._exchange = exchange
        self._answering = asyncio.get_running_loop().create_task(self._upstream.run_script(exchange))
        try:
            await asyncio.wait([self._answering])
        finally:
            self._answering.cancel()
            self._exchange = self._answering = None
        return exchange.keeps_alive


async def read_request(reader: asyncio.StreamReader, connection: int) -> Request:
    """Read one HTTP/1.1 request with its body; raises IncompleteReadError at the end of the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    headers = {}
    for line in head[1:]:
        name, separator, value = line.partition(":")
        if separator:
            headers[name.strip().lower()] = value.strip()
    body = b""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    elif length := int(headers.get("content-length", "0")):
        body = await reader.readexactly(length)
    return Request(method, path, headers, body, connection)


def make_response(status: int, body: bytes, content_type: str = "application/json") -> bytes:
    """Encode a plain answer."""
    head = f"HTTP/1.1 {status} Fake\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class FakeUpstream:
    """The provider. Everything public may be called from any thread."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, log_path: Path | None = None) -> None:
        self.host = host
        self.port = port
        self.truth = GroundTruth(log_path)
        self.connections: set[Connection] = set()
        self._gates = Gates()
        self._scripts: dict[str, scripts.Script] = {}
        self._asked: Counter[tuple[str, str]] = Counter()
        self._numbers = iter(range(1, 1 << 62))
        self._connection_numbers = iter(range(1, 1 << 62))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fake-upstream", daemon=True)

    @property
    def base_url(self) -> str:
        """What an OpenAI-compatible provider row takes."""
        return f"http://{self.host}:{self.port}/v1"

    @property
    def ollama_url(self) -> str:
        """What an Ollama row takes."""
        return f"http://{self.host}:{self.port}"

    @property
    def attempts(self) -> list[Attempt]:
        """Every request so far, by number."""
        return self.truth.attempts

    def script(self, name: str, run: scripts.Script) -> None:
        """Answer the model ``name`` with this coroutine function; its query fills ``exchange.plan`` all the same."""
        self._scripts[name] = run

    def release(self, count: int | None = None, name: str = "") -> int:
        """Let go ``count`` answers that are held now, or all; of one script or of any. Returns how many."""
        return int(self._call(lambda: self._gates.release(count, name)))

    def open_gates(self) -> None:
        """Let go all answers that are held, and hold none from now on."""
        self._call(self._gates.open)

    def drop_connections(self) -> None:
        """Reset every connection, idle ones too."""
        self._call(self._abort_all)

    def wait_for(self, predicate: Callable[[GroundTruth], Any], timeout_seconds: float = 30) -> Any:
        """Block until the predicate of the ground truth holds."""
        return self.truth.wait_for(predicate, timeout_seconds)

    async def until(self, predicate: Callable[[GroundTruth], Any], timeout_seconds: float = 30) -> Any:
        """Wait, without blocking the event loop, until the predicate of the ground truth holds."""
        return await asyncio.to_thread(self.truth.wait_for, predicate, timeout_seconds)

    def start(self) -> Self:
        """Listen; returns when connections are accepted."""
        self._thread.start()
        assert self._started.wait(START_SECONDS), "the fake upstream did not start"
        if self._failure:
            raise self._failure
        return self

    def stop(self) -> None:
        """Stop listening, reset what is open, close the log."""
        if self._loop and self._stopping and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(START_SECONDS)
        self.truth.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        errors = [event for event in self.truth.events if event["event"] == "script_error"]
        assert kind or not errors, f"a script of the fake upstream failed: {errors}"

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.__exit__(kind, *rest)

    def open_exchange(self, request: Request, socket: Socket) -> Exchange:
        """Begin an attempt: it is in the log from here on."""
        number = next(self._numbers)
        self.truth.note(number, "request", **request.describe())
        return Exchange(request, number, socket, self.truth, self._gates)

    async def run_script(self, exchange: Exchange) -> None:
        """Answer a request by its model's script."""
        body = exchange.request.body
        model = str(body.get("model", ""))
        try:
            run, exchange.plan = self._choose(model, exchange.request)
            await run(exchange)
        except Over:
            pass
        except LookupError:
            await refuse_model(exchange, 404, f"The model `{model}` does not exist", "model_not_found")
        except ValueError as error:
            await refuse_model(exchange, 400, str(error), "unknown_parameter")
        except Exception as error:  # noqa: BLE001 - whatever it is, the test hears of it when the fake stops
            exchange.note("script_error", message=repr(error))
            exchange.keeps_alive = False

    def _choose(self, model: str, request: Request) -> tuple[scripts.Script, Plan]:
        name, _, query = model.partition("?")
        if name in self._scripts:
            return self._scripts[name], apply_query(Plan(name=name), query)
        plan = read_plan(model)
        marker = request.describe()["marker"]
        self._asked[model, marker] += 1
        if plan.times and self._asked[model, marker] > plan.times:
            plan = replace(plan, status=0, fault="", special="")
        return scripts.answer, plan

    def answer_control(self, request: Request) -> bytes:
        """Answer what is asked about the provider itself."""
        path = request.path.partition("?")[0]
        names = sorted({*PRESETS, *self._scripts})
        if path == "/health":
            return make_response(200, b'{"status":"ok"}')
        if path in {"/v1/models", "/api/tags"}:
            return make_response(200, scripts.list_models(names, is_ollama=path == "/api/tags"))
        if path == "/_fake/log":
            lines = b"".join(encode(event) + b"\n" for event in self.truth.events)
            return make_response(200, lines, "application/x-ndjson")
        if path == "/_fake/state":
            state = {"total": len(self.truth.attempts), "open": self.truth.count_stages()}
            return make_response(200, encode(state))
        if path == "/_fake/release" and request.method == "POST":
            released = self._gates.release(request.body.get("count"), request.body.get("name", ""))
            return make_response(200, encode({"released": released}))
        return make_response(404, b'{"error":{"message":"Invalid URL","type":"invalid_request_error"}}')

    def _call(self, function: Callable[[], Any]) -> Any:
        assert self._loop, "the fake upstream is not running"

        async def call() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(START_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._listen())
        except OSError as error:
            self._failure = error
        finally:
            self._started.set()

    async def _listen(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = await self._loop.create_server(self._make_connection, self.host, self.port, backlog=4096)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()
        tasks = [connection.task for connection in self.connections]
        self._abort_all()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()

    def _abort_all(self) -> None:
        for connection in list(self.connections):
            connection.transport.abort()

    def _make_connection(self) -> Connection:
        connection = Connection(self, next(self._connection_numbers))
        self.connections.add(connection)
        return connection


async def refuse_model(exchange: Exchange, status: int, message: str, code: str) -> None:
    """Answer that there is no such script or parameter, as a provider says it of a model."""
    error = {"message": message, "type": "invalid_request_error", "param": "model", "code": code}
    body: Any = {"error": message} if exchange.request.is_ollama else {"error": error}
    await exchange.whole(status, "application/json", encode(body))


def main() -> None:
    """Run until SIGTERM or SIGINT; the first line on standard output says where."""
    parser = argparse.ArgumentParser(description="A scripted provider with a ground-truth log.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, help="appended to, one JSON line per event")
    arguments = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with FakeUpstream(host=arguments.host, port=arguments.port, log_path=arguments.log) as upstream:
        print(json.dumps({"base_url": upstream.base_url, "port": upstream.port}), flush=True)
        stopped.wait()


if __name__ == "__main__":
    main()
