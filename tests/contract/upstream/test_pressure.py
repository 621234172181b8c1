"""Long bodies both ways, and what happens when the other side is slow to take them."""

import asyncio
import socket
from dataclasses import replace

import pytest

from contract.upstream.asking import ask, until
from fakes.small_server import OK, Server, never, reply_and_close, serving, sized
from meterhouse.errors import UpstreamDown
from meterhouse.providers.http1.client import Http1Client
from meterhouse.providers.http1.connection import PIECE_BYTES

FLOOD_BYTES = 64 * 1_048_576


async def test_a_slow_reader_holds_the_sender_up(upstream):
    """What waits is bounded by the buffers of the system and of the client, never by what the sender has."""
    sent = 0

    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + b"content-length: %d\r\n\r\n" % FLOOD_BYTES)
        piece = b"x" * 65_536
        while sent < FLOOD_BYTES:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    async with serving(script) as server:
        answer = await ask(upstream, server)
        total = len(await answer.read())
        before = -1
        while before != sent:  # until it has stood still for a while
            before = sent
            await asyncio.sleep(0.1)
        assert sent < FLOOD_BYTES // 2
        while data := await answer.read():
            total += len(data)
        answer.release()
        assert total == FLOOD_BYTES
    assert upstream.open_connections == 0


async def test_a_slow_reader_who_leaves_closes_the_connection(upstream):
    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: %d\r\n\r\n" % FLOOD_BYTES)
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    async with serving(script) as server:
        answer = await ask(upstream, server)
        await answer.read()
        await asyncio.sleep(0.05)
        answer.abort()
        await until(lambda: server.ended == 1)
    assert upstream.open_connections == 0


@pytest.mark.parametrize("size", [PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 7])
async def test_a_body_in_pieces_arrives_as_one(upstream, size):
    body = bytes(number % 251 for number in range(997)) * (size // 997 + 1)
    body = body[:size]

    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(sized(b"{}"))

    async with serving(script) as server:
        for _ in range(2):
            await (await ask(upstream, server, body=body)).read_all(10)
        assert server.bodies == [body, body]
        assert server.connections == 1


async def test_no_more_of_a_body_is_handed_on_than_the_server_takes():
    """The client keeps one copy of a long body: what it was given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Http1Client()
        await client.open()
        async with serving(never) as any_server:
            endpoint = replace(any_server.endpoint, base_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
            body = b"x" * FLOOD_BYTES
            asking = asyncio.create_task(
                client.post(endpoint, "/x", body, is_streamed=False, headers=None, seconds=30.0)
            )
            assert client._pool is not None
            await until(lambda: bool(client._pool._leased))
            (connection,) = client._pool._leased
            await until(lambda: connection._is_write_paused)
            assert connection._unsent is not None
            assert connection._transport.get_write_buffer_size() < 4 * PIECE_BYTES
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        assert client.open_connections == 0
        await client.close()


async def test_a_body_in_tiny_chunks_needs_no_multiple_of_its_length(upstream):
    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(100):
            writer.write(b"2\r\nab\r\n" * 1_000)
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with serving(script) as server:
        for _ in range(2):
            assert await (await ask(upstream, server)).read_all(200_000) == b"ab" * 100_000
        assert server.connections == 1


async def test_who_wants_all_of_an_answer_is_woken_when_all_of_it_is_there():
    async def script(server: Server, writer: asyncio.StreamWriter) -> None:
        for piece in (OK + b"content-length: 6\r\n\r\n", b"abc", b"def"):
            await server.go_on.wait()
            server.go_on.clear()
            writer.write(piece)
            await writer.drain()

    client = Http1Client()
    await client.open()
    async with serving(script) as server:
        asking = asyncio.create_task(
            client.post(server.endpoint, "/x", b"{}", is_streamed=False, headers=None, seconds=30.0)
        )
        for _ in range(3):
            assert not asking.done()
            await until(lambda: bool(server.heads) and not server.go_on.is_set())
            server.go_on.set()
            await asyncio.sleep(0.02)
        assert (await asking).take_whole(1_000) == b"abcdef"
    await client.close()


async def test_who_wants_all_of_an_answer_gets_the_beginning_of_one_that_is_long(upstream):
    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: %d\r\n\r\n" % FLOOD_BYTES)
        for _ in range(FLOOD_BYTES // 65_536):
            writer.write(b"x" * 65_536)
            await writer.drain()

    async with serving(script) as server:
        answer = await ask(upstream, server, is_streamed=False)
        with pytest.raises(UpstreamDown, match="more than 1000 bytes"):
            await answer.read_all(1_000)
        answer = await ask(upstream, server, is_streamed=False)
        assert len(await answer.read_all(FLOOD_BYTES)) == FLOOD_BYTES


async def test_an_answer_that_breaks_off_says_so_to_whoever_wants_all_of_it(upstream):
    async with serving(reply_and_close(OK + b"content-length: 9\r\n\r\nabc")) as server:
        answer = await ask(upstream, server, is_streamed=False)
        with pytest.raises(UpstreamDown, match="ended its answer early"):
            await answer.read_all(1_000)


async def test_an_error_is_told_by_its_head_also_to_whoever_wants_all_of_an_answer(upstream):
    async def script(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Broken\r\ncontent-length: 9\r\n\r\n")
        await server.go_on.wait()

    async with serving(script) as server:
        answer = await ask(upstream, server, is_streamed=False)
        assert answer.status == 500
        answer.abort()
        server.go_on.set()
