"""A connection says what uvicorn's own protocol says, byte for byte, and waits for its client no longer than it may.

Not here: what is refused (``tests/security``), and how heads and bodies go out in one message (``test_cycle``).
"""

import asyncio
import gc
import json
import logging
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from meterhouse.http.connection import Connection, connection_type
from meterhouse.http.cycle import Cycle, cycle_of

PATIENCE_SECONDS = 30
TOLD = ("type", "http_version", "method", "path", "raw_path", "query_string", "root_path", "scheme")
CLOSE = b"connection: close\r\n"
HOST = b"host: x\r\n"
CHUNKS = b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n"
REQUESTS = {
    "a get": b"GET / HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n",
    "a query": b"GET /a%20b/%C3%A9?x=%20&y HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n",
    "a whole address": b"GET http://x/path?query HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n",
    "a body": b"POST / HTTP/1.1\r\n" + HOST + CLOSE + b"content-length: 5\r\n\r\nhello",
    "a long body": b"POST / HTTP/1.1\r\n" + HOST + CLOSE + b"content-length: 300000\r\n\r\n" + b"x" * 300_000,
    "chunks": b"POST / HTTP/1.1\r\n" + HOST + CLOSE + CHUNKS + b"\r\n",
    "names in capitals": b"GET / HTTP/1.1\r\nHOST: x\r\nConnection: Close\r\nX-Mixed: Value\r\nx-mixed: two\r\n\r\n",
    "an old version": b"GET / HTTP/1.0\r\n\r\n",
    "an old version that would stay": b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    "an old version that would stay at a proxy": b"POST / HTTP/1.0\r\nproxy-connection: keep-alive\r\n"
    b"content-length: 2\r\n\r\n{}GET /2 HTTP/1.1\r\nhost: x\r\n\r\n",
    "only the head": b"HEAD / HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n",
    "a client that waits for word": b"POST / HTTP/1.1\r\n"
    + HOST
    + CLOSE
    + b"Expect: 100-Continue\r\ncontent-length: 2\r\n\r\n{}",
    "one after another": b"GET /1 HTTP/1.1\r\n" + HOST + b"\r\n" + b"GET /2 HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n",
    "one behind a body": b"POST /1 HTTP/1.1\r\n"
    + HOST
    + b"content-length: 2\r\n\r\n{}GET / HTTP/1.1\r\n"
    + HOST
    + CLOSE
    + b"\r\n",
    "a name twice": b"GET / HTTP/1.1\r\n"
    + HOST
    + b"cookie: a=1\r\nX-A: b\r\nCookie: c=2\r\nx-d: e\r\n"
    + CLOSE
    + b"\r\n",
    "an empty line first": b"\r\nGET / HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n",
}


async def tell(scope: Scope, receive: Receive, send: Send) -> None:
    """Say what came, in chunks."""
    body, more_body = b"", True
    while more_body:
        message = await receive()
        body, more_body = body + message["body"], message["more_body"]
    told = {name: repr(scope[name]) for name in TOLD} | {"body": f"{len(body)} {body[:20]!r}"}
    told["headers"] = repr(list(scope["headers"]))  # ASGI asks for no more than what can be gone through
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(told).encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b"."})


def head(status: int = 200, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes, *, more_body: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more_body}


LENGTH = (b"content-length", b"5")
ANSWERS: dict[str, list[Message]] = {
    "a length": [head(200, LENGTH), body(b"hel", more_body=True), body(b"lo")],
    "no content": [head(204), body(b"")],
    "not modified": [head(304), body(b"")],
    "chunks of its own": [head(200, (b"transfer-encoding", b"chunked")), body(b"a", more_body=True), body(b"")],
    "a farewell": [head(200, LENGTH, (b"connection", b"Close")), body(b"hello")],
    "a code nobody knows": [head(499), body(b"x")],
    "nothing": [],
    "no end": [head(200, LENGTH), body(b"he", more_body=True)],
    "too short": [head(200, LENGTH), body(b"he")],
    "too long": [head(200, LENGTH), body(b"hello there")],
    "a body first": [body(b"x")],
    "two heads": [head(), head()],
    "more than all": [head(), body(b"x"), body(b"y")],
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


@asynccontextmanager
async def serving(
    protocol: Callable[..., asyncio.Protocol], app: ASGIApp, **settings: Any
) -> AsyncIterator[tuple[ServerState, asyncio.StreamReader, asyncio.StreamWriter]]:
    config = Config(app, access_log=False, lifespan="off", log_config=None, date_header=False, ws="none", **settings)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield state, reader, writer
        finally:
            writer.close()
            await writer.wait_closed()


async def hear(protocol: Callable[..., asyncio.Protocol], app: ASGIApp, data: bytes) -> bytes:
    async with serving(protocol, app) as (_, reader, writer), asyncio.timeout(PATIENCE_SECONDS):
        writer.write(data)
        return await reader.read()


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_is_understood_as_uvicorn_does(name: str) -> None:
    heard = await hear(Connection, tell, REQUESTS[name])
    assert heard.startswith(b"HTTP/1.1 ")
    assert heard == await hear(HttpToolsProtocol, tell, REQUESTS[name])


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_leaves_as_uvicorn_writes_it(name: str) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in ANSWERS[name]:
            await send(message)

    assert await hear(Connection, app, REQUESTS["a get"]) == await hear(HttpToolsProtocol, app, REQUESTS["a get"])


CLAIMS = {
    "nothing": b"",
    "an address": b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n",
    "an address of six": b"x-forwarded-for: 2001:db8::7\r\nx-forwarded-proto: http\r\n",
    "a socket": b"x-forwarded-for: unix:\r\nx-forwarded-proto: carrier\r\n",
    "several": b"x-forwarded-for: 192.0.2.7, 127.0.0.1\r\nx-forwarded-for: 198.51.100.1\r\n",
    "empty": b"x-forwarded-for:\r\nx-forwarded-proto:\r\n",
}


@pytest.mark.parametrize("name", CLAIMS)
async def test_what_a_proxy_says_of_its_client_is_believed_as_uvicorn_does(name: str) -> None:
    async def say_client(scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{scope['client'][0]} {scope['scheme']}".encode()})

    request = b"GET / HTTP/1.1\r\n" + HOST + CLOSE + CLAIMS[name] + b"\r\n"
    heard = []
    for protocol, settings in (
        (connection_type(PATIENCE_SECONDS, believes_proxy=True), {"proxy_headers": False}),
        (HttpToolsProtocol, {"forwarded_allow_ips": "*"}),
    ):
        async with serving(protocol, say_client, **settings) as (_, reader, writer), asyncio.timeout(PATIENCE_SECONDS):
            writer.write(request)
            heard.append(await reader.read())
    assert heard[0] == heard[1]


async def test_a_client_gets_word_only_when_its_body_is_asked_for() -> None:
    request = b"POST / HTTP/1.1\r\n" + HOST + CLOSE + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    async with serving(Connection, tell) as (_, reader, writer), asyncio.timeout(PATIENCE_SECONDS):
        writer.write(request)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_connection_is_closed_when_nothing_comes_after_an_answer() -> None:
    async with serving(Connection, tell, timeout_keep_alive=0.2) as (state, reader, writer):
        async with asyncio.timeout(PATIENCE_SECONDS):
            for _ in range(3):
                writer.write(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
                assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            assert await reader.read() == b""
        assert state.total_requests == 3


@pytest.mark.parametrize("name", REQUESTS)
async def test_what_a_connection_lets_go_during_a_long_answer_changes_nothing(name: str) -> None:
    async def settle_down(scope: Scope, receive: Receive, send: Send) -> None:
        cycle = cycle_of(scope)
        assert cycle is not None

        async def send_later(message: Message) -> None:
            cycle.settle_down()
            await send(message)

        cycle.settle_down()
        await tell(scope, receive, send_later)

    assert await hear(Connection, settle_down, REQUESTS[name]) == await hear(Connection, tell, REQUESTS[name])


async def test_an_answer_that_takes_its_time_needs_neither_parser_nor_timer() -> None:
    found: list[object] = []

    async def settle_down(scope: Scope, receive: Receive, send: Send) -> None:
        cycle = cycle_of(scope)
        assert cycle is not None
        connection = cycle._transport.get_protocol()
        assert isinstance(connection, Connection)
        cycle.settle_down()
        found.extend((connection.parser, connection._timer, connection._known))
        await tell(scope, receive, send)

    async with serving(Connection, settle_down) as (_, reader, writer), asyncio.timeout(PATIENCE_SECONDS):
        for _ in range(3):
            writer.write(b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 0\r\n\r\n")
            assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    assert found == [None] * 9


async def test_an_answer_may_take_longer_than_an_idle_connection_has() -> None:
    async def slowly(_scope: Scope, _receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.3)
        await send(head(200, LENGTH))
        await send(body(b"hello"))

    async with serving(Connection, slowly, timeout_keep_alive=0.1) as (_, reader, writer):
        async with asyncio.timeout(PATIENCE_SECONDS):
            for _ in range(2):
                writer.write(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
                assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_more_of_a_stream_is_written_past_the_layers_unless_its_client_has_to_be_waited_for() -> None:
    said: list[bool] = []

    async def stream(scope: Scope, _receive: Receive, send: Send) -> None:
        cycle = cycle_of(scope)
        assert cycle is not None
        said.append(cycle.put(b"early"))
        await send({**head(), "body": b"one", "more_body": True})
        said.append(cycle.put(b"two"))
        cycle.flow.pause_writing()
        said.append(cycle.put(b"never"))
        cycle.flow.resume_writing()
        await send(body(b"three"))
        said.append(cycle.put(b"late"))

    heard = await hear(Connection, stream, REQUESTS["a get"])
    assert said == [False, True, False, False]
    assert heard.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n")


@pytest.mark.parametrize("pieces", [[b"one"], [b"one", b"two", b"three"]])
async def test_a_stream_that_is_written_past_the_layers_is_the_one_that_messages_make(pieces: list[bytes]) -> None:
    async def by_messages(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({**head(), "body": pieces[0], "more_body": True})
        for piece in pieces[1:]:
            await send(body(piece, more_body=True))
        await send(body(b""))

    async def past_them(scope: Scope, _receive: Receive, _send: Send) -> None:
        cycle = cycle_of(scope)
        assert cycle is not None
        first, *others = pieces
        cycle.begin_stream([], first, more_body=bool(others))
        for piece in others:
            assert cycle.put(piece, more_body=piece is not others[-1])
        assert not cycle.put(b"late")

    for name in ("a get", "one after another"):
        assert await hear(Connection, past_them, REQUESTS[name]) == await hear(Connection, by_messages, REQUESTS[name])


async def test_an_application_that_fails_is_a_500_and_its_task_is_forgotten() -> None:
    async def fail(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise ValueError("no")

    async with serving(Connection, fail) as (state, reader, writer), asyncio.timeout(PATIENCE_SECONDS):
        writer.write(REQUESTS["a get"])
        heard = await reader.read()
        assert heard.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert not state.tasks
    assert heard == await hear(HttpToolsProtocol, fail, REQUESTS["a get"])


@pytest.mark.parametrize("is_whole", [True, False])
async def test_a_client_that_does_not_read_its_last_answer_is_dropped(*, is_whole: bool) -> None:
    is_lost = asyncio.Event()

    class Dropping(connection_type(0.1, believes_proxy=False)):  # type: ignore[misc]  # a class that is made
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            is_lost.set()

    async def fill(scope: Scope, _receive: Receive, send: Send) -> None:
        """Say so much that some of it stays here, but not so much that anybody waits for the client."""
        transport = scope["meterhouse.client"]._transport
        transport.set_write_buffer_limits(high=1_000_000)
        await send(head())
        while not transport.get_write_buffer_size():
            await send(body(b"x" * 8_192, more_body=True))
        if not is_whole:
            raise ValueError("no end")
        await send(body(b""))

    async with serving(Dropping, fill) as (_, _, writer), asyncio.timeout(PATIENCE_SECONDS):
        writer.transport.pause_reading()
        writer.write(REQUESTS["a get"])
        await is_lost.wait()


async def test_an_old_version_has_no_chunks_whatever_a_proxy_is_told() -> None:
    lines = b"POST / HTTP/1.0\r\n" + HOST + b"proxy-connection: keep-alive\r\n"
    heard = await hear(Connection, tell, lines + CHUNKS + b"\r\n")
    assert heard.startswith(b"HTTP/1.1 400 ")


async def test_nothing_is_left_of_a_connection_that_was_lost_with_requests_waiting() -> None:
    made: list[weakref.ref[Connection]] = []

    class Seen(Connection):
        """It can be asked after."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn says it
            super().connection_made(transport)
            made.append(weakref.ref(self))

    begun = asyncio.Event()

    async def wait(_scope: Scope, receive: Receive, _send: Send) -> None:
        begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    gc.disable()
    try:
        async with serving(Seen, wait) as (state, _, writer), asyncio.timeout(PATIENCE_SECONDS):
            writer.write(3 * (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"))
            await begun.wait()
            (task,) = state.tasks
            writer.close()
            await task
            del task
        for _ in range(3):
            await asyncio.sleep(0)
        assert [one() for one in made] == [None]
    finally:
        gc.enable()


async def test_a_body_that_nobody_read_is_not_kept_behind_its_answer() -> None:
    answered: list[Cycle] = []

    async def refuse(scope: Scope, _receive: Receive, send: Send) -> None:
        cycle = cycle_of(scope)
        assert cycle is not None
        assert cycle.body == b"hello"
        answered.append(cycle)
        await send({**head(401), "body": b"no", "more_body": False})

    lines = b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 5\r\n\r\nhello"
    async with serving(Connection, refuse) as (_, reader, writer), asyncio.timeout(PATIENCE_SECONDS):
        writer.write(lines)
        await reader.readuntil(b"no")
        assert [cycle.body for cycle in answered] == [b""]
