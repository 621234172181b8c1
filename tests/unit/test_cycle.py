"""A head with a body leaves as the two messages would, over a real connection, and lets no header in by its value."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from meterhouse.http.connection import Connection
from meterhouse.http.cycle import JOINED_BYTES, cycle_of, splitting
from meterhouse.http.intake import take_short_body

LONG = b"x" * (JOINED_BYTES + 1)
TYPE = (b"content-type", b"text/plain")


def head(body: bytes, *headers: tuple[bytes, bytes], more_body: bool = False) -> Message:
    return {
        "type": "http.response.start",
        "status": 200,
        "headers": [TYPE, *headers],
        "body": body,
        "more_body": more_body,
    }


def saying(*messages: Message) -> ASGIApp:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


@asynccontextmanager
async def connected(app: ASGIApp) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = Config(app, access_log=False, lifespan="off", log_config=None, server_header=False, date_header=False)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()
            await writer.wait_closed()


async def ask(app: ASGIApp, method: bytes = b"POST", *headers: bytes) -> bytes:
    """Return all that comes for a request after which the connection is closed."""
    async with connected(app) as (reader, writer):
        lines = [method + b" / HTTP/1.1", b"host: x", b"connection: close", *headers, b"", b""]
        writer.write(b"\r\n".join(lines))
        return await reader.read()


@pytest.mark.parametrize("body", [b"", b"{}", LONG], ids=["empty", "short", "long"])
async def test_a_whole_answer_has_its_length(body: bytes) -> None:
    expected = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
    assert await ask(saying(head(body))) == expected % (len(body), body)


async def test_a_connection_stays_for_the_next_request() -> None:
    async with connected(saying(head(b"{}"))) as (reader, writer):
        for _ in range(3):
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            expected = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\n{}"
            assert await reader.readexactly(len(expected)) == expected


@pytest.mark.parametrize("first", [b"", b"one"], ids=["empty", "begun"])
async def test_a_stream_begins_with_its_head_and_goes_on(first: bytes) -> None:
    rest = {"type": "http.response.body", "body": b"two"}
    answer = await ask(saying(head(first, more_body=True), rest))
    lines, _, chunks = answer.partition(b"\r\n\r\n")
    assert lines.endswith(b"transfer-encoding: chunked")
    assert chunks == (b"3\r\none\r\n" if first else b"") + b"3\r\ntwo\r\n0\r\n\r\n"


async def test_an_answer_to_head_has_no_body() -> None:
    answer = await ask(saying(head(b"{}")), b"HEAD")
    assert b"content-length: 2\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("value", [b"a\r\nx-other: b", b"a\nb", b"a\rb", b"a\0b", b"a\x7f"])
async def test_no_value_ends_its_line(value: bytes) -> None:
    answer = await ask(saying(head(b"{}", (b"x-model", value))))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"x-other" not in answer
    assert b"x-model" not in answer


async def test_a_second_head_is_refused() -> None:
    answer = await ask(saying(head(b"a", more_body=True), head(b"b")))
    assert answer.endswith(b"1\r\na\r\n")  # and closed without an end


async def test_other_servers_get_two_messages() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    for message in (head(b"{}"), head(b"a", more_body=True), {"type": "http.response.body", "body": b"b"}):
        await splitting(send)(message)
    assert [message["type"].rpartition(".")[2] for message in sent] == ["start", "body", "start", "body", "body"]
    assert sent[0]["headers"] == [TYPE, (b"content-length", b"2")]
    assert sent[2]["headers"] == [TYPE]
    assert [message["body"] for message in sent if "body" in message] == [b"{}", b"a", b"b"]


async def test_a_short_body_that_is_here_whole_is_taken_at_once_and_once() -> None:
    taken: list[bytes | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        cycle = cycle_of(scope)
        assert cycle is not None
        taken.append(cycle.take_body(1))  # it is longer
        taken.append(cycle.take_body(2))
        taken.append(cycle.take_body(2))
        cycle.wake()
        taken.append((await receive())["body"])
        await send(head(b""))

    await ask(app, b"POST", b"content-length: 2", b"", b"{}")
    assert taken == [None, b"{}", None, b""]


@pytest.mark.parametrize("expectation", [b"x-none: 1", b"expect: 100-continue"])
async def test_nobody_who_counts_a_body_or_has_to_ask_for_it_is_passed_over(expectation: bytes) -> None:
    taken: list[bytes | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def count() -> Message:
            return await receive()

        cycle = cycle_of(scope)
        taken.extend(take_short_body(cycle, one) for one in (count, receive))
        await send(head((await receive())["body"] if taken[-1] is None else taken[-1]))

    answer = await ask(app, b"POST", expectation, b"content-length: 2", b"", b"{}")
    assert taken == [None, None if expectation.startswith(b"expect") else b"{}"]
    assert answer.endswith(b"\r\n\r\n{}")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n") == expectation.startswith(b"expect")


async def test_an_answer_begins_at_once_unless_its_client_has_to_be_waited_for() -> None:
    said: list[bool] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        cycle = cycle_of(scope)
        assert cycle is not None
        cycle.flow.pause_writing()
        said.append(cycle.is_ready)
        cycle.flow.resume_writing()
        said.append(cycle.is_ready)
        cycle.begin_with(200, [TYPE], b"{}", more_body=False)
        said.append(cycle.is_ready)

    assert (await ask(app)).endswith(b"content-length: 2\r\n\r\n{}")
    assert said == [False, True, False]
