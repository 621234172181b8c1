"""Connections: how many there may be, who waits, which is used again, and that none is lost whatever is cancelled."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from contract.upstream.asking import ask, until
from fakes.small_server import OK, SSE, Server, chunk, never, one_event_then_wait, serving, sized
from meterhouse.errors import UpstreamDown, UpstreamTimeout
from meterhouse.providers.catalog import PROVIDERS
from meterhouse.providers.http1.answer import Http1Answer
from meterhouse.providers.http1.client import Http1Client
from meterhouse.providers.http1.site import KERNEL_BYTES
from meterhouse.providers.http_client import StaleConnection
from meterhouse.providers.provider import ActiveProvider


@contextlib.asynccontextmanager
async def small_client(most_connections: int) -> AsyncIterator[Http1Client]:
    client = Http1Client(most_connections)
    await client.open()
    try:
        yield client
    finally:
        await client.close()


async def post(client: Http1Client, server: Server, *, seconds: float = 30.0) -> Http1Answer:
    return await client.post(server.endpoint, "/x", b"{}", is_streamed=True, headers=None, seconds=seconds)


async def fetch(client: Http1Client, server: Server, *, seconds: float = 30.0) -> bytes:
    return await (await post(client, server, seconds=seconds)).read_all(1_000)


@pytest.fixture
def silent_endpoint() -> Iterator[ActiveProvider]:
    """Yield an address where nobody answers who connects: more wait there than may."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield ActiveProvider(provider=PROVIDERS["openai"], base_url=f"http://127.0.0.1:{full.getsockname()[1]}")


async def slowly(_server: Server, writer: asyncio.StreamWriter) -> None:
    writer.write(SSE + chunk(b"data: 1\n\n"))
    await writer.drain()
    await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")


async def test_there_are_never_more_connections_than_the_bound_and_all_are_served():
    async with small_client(3) as client, serving(slowly) as server:
        bodies = await asyncio.gather(*[fetch(client, server) for _ in range(50)])
        assert bodies == [b"data: 1\n\n"] * 50
        assert server.connections <= 3
        assert client.open_connections == 0


async def test_whoever_waits_for_a_connection_waits_for_the_connect_timeout_at_most():
    async with small_client(1) as client, serving(one_event_then_wait, connect_seconds=0.5) as server:
        first = await post(client, server)
        with pytest.raises(UpstreamTimeout, match="connected to in time"):
            await post(client, server)
        assert client.open_connections == 1
        server.go_on.set()
        await first.read_all(100)
        assert await fetch(client, server) == b"data: 1\n\ndata: 2\n\n"
        assert client.open_connections == 0


async def test_a_connection_that_the_server_was_about_to_close_is_told_from_a_server_that_fails():
    async def only_once(server: Server, writer: asyncio.StreamWriter) -> None:
        if len(server.heads) == 1:
            writer.write(sized(b"{}"))
        else:
            writer.close()

    async with small_client(1) as client, serving(only_once) as server:
        assert await fetch(client, server) == b"{}"
        with pytest.raises(StaleConnection):
            await fetch(client, server)
        with pytest.raises(UpstreamDown) as failure:
            await fetch(client, server)
        assert not isinstance(failure.value, StaleConnection)
        assert (server.connections, client.open_connections) == (2, 0)


async def test_idle_connections_make_room_for_another_server():
    async with small_client(2) as client, serving(slowly) as one, serving(slowly) as other:
        await asyncio.gather(fetch(client, one), fetch(client, one))
        await asyncio.gather(fetch(client, other), fetch(client, other))
        await until(lambda: one.ended == one.connections)
        assert client.open_connections == 0


async def test_a_request_that_waits_for_a_connection_may_leave():
    async with small_client(1) as client, serving(one_event_then_wait) as server:
        first = await post(client, server)
        waiting = [asyncio.create_task(fetch(client, server)) for _ in range(4)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        first.abort()
        waiting[1].cancel()  # the slot is this one's by now
        server.go_on.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2 + [bytes] * 2
        assert client.open_connections == 0


async def test_a_cancellation_at_any_moment_loses_no_slot_and_no_connection():
    moments = random.Random(11)
    async with small_client(4) as client, serving(slowly) as server:

        async def cancelled(steps: int) -> None:
            task = asyncio.create_task(fetch(client, server))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await task

        steps = [*range(40), *[moments.randrange(200) for _ in range(160)]]
        results = await asyncio.gather(*[cancelled(count) for count in steps], return_exceptions=True)
        assert {type(result) for result in results} <= {asyncio.CancelledError, type(None)}
        assert sum(isinstance(result, asyncio.CancelledError) for result in results) > 50
        assert client.open_connections == 0
        assert await asyncio.gather(*[fetch(client, server) for _ in range(8)]) == [b"data: 1\n\n"] * 8
        assert client.open_connections == 0
    assert server.connections == server.ended


async def test_a_closing_client_ends_whoever_waits_reads_or_connects():
    async with serving(one_event_then_wait) as server, serving(never) as silent:
        async with small_client(2) as client:
            answer = await post(client, server)
            await answer.read()
            reading = asyncio.create_task(answer.read())
            asking = asyncio.create_task(post(client, silent))
            waiting = asyncio.create_task(post(client, server))
            await until(lambda: silent.heads != [])
        results = await asyncio.gather(reading, asking, waiting, return_exceptions=True)
        assert {type(result) for result in results} == {UpstreamDown}
        assert "stopping" in str(results[2])
        with pytest.raises(UpstreamDown, match="stopping"):
            await post(client, server)
        assert client.open_connections == 0


async def test_whoever_still_connects_when_the_client_closes_is_late_in_time(silent_endpoint):
    client = Http1Client()
    await client.open()
    connecting = asyncio.create_task(
        client.post(silent_endpoint, "/x", b"{}", is_streamed=False, headers=None, seconds=0.3)
    )
    await until(lambda: client.open_connections == 1 and not client._pool.lookups)
    await client.close()
    with pytest.raises(UpstreamTimeout, match="connected to in time"):
        await connecting
    assert client.open_connections == 0
    assert not client._pool.late_watch.waiting


async def test_a_cancellation_is_no_lateness_although_the_time_is_up(silent_endpoint):
    async with small_client(1) as client:
        post = client.post(silent_endpoint, "/x", b"{}", is_streamed=False, headers=None, seconds=30)
        connecting = asyncio.create_task(post)
        await until(lambda: bool(client._pool.late_watch.waiting))
        (patience,) = client._pool.late_watch.waiting
        patience.fail_late()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert (connecting.cancelling(), client.open_connections) == (1, 0)


async def test_of_an_answer_that_nobody_reads_the_kernel_takes_no_more_than_a_bound():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        bound_bytes = other.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    async with small_client(1) as client, serving(one_event_then_wait) as server:
        answer = await post(client, server)
        (connection,) = client._pool._leased
        used = connection._transport.get_extra_info("socket")
        assert used.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == bound_bytes
        answer.abort()


async def close_after_one(server: Server, writer: asyncio.StreamWriter) -> None:
    """Answer the first request of a connection, and close as soon as a second one has been read."""
    if len(server.heads) == 2:
        writer.close()
    else:
        writer.write(sized(b"{}"))


async def test_a_request_that_may_have_been_read_is_never_sent_twice(upstream):
    async with serving(close_after_one) as server:
        await (await ask(upstream, server)).read_all(100)
        with pytest.raises(UpstreamDown, match="closed the connection"):
            await ask(upstream, server)
        assert len(server.bodies) == 2
        assert server.connections == 1
    assert upstream.open_connections == 0


async def test_a_document_is_asked_for_again_when_the_connection_turns_out_to_be_closed(upstream):
    async with serving(close_after_one) as server:
        await (await ask(upstream, server)).read_all(100)
        assert await upstream.fetch(server.endpoint, "/models", timeout_seconds=20, limit_bytes=99) == (200, b"{}")
        assert server.connections == 2
    assert upstream.open_connections == 0


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used(upstream):
    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(sized(b"{}"))
        await writer.drain()
        writer.close()

    async with serving(script) as server:
        for number in range(3):
            assert await (await ask(upstream, server)).read_all(100) == b"{}"
            await until(lambda: server.ended == number + 1)  # noqa: B023 - awaited within the turn
            await asyncio.sleep(0.01)
        assert server.connections == 3


async def test_an_idle_connection_is_closed_before_the_server_would(monkeypatch):
    monkeypatch.setattr("meterhouse.providers.http1.pool.IDLE_CONNECTION_SECONDS", 0.05)
    async with small_client(4) as client, serving(slowly) as server:
        await asyncio.gather(*[fetch(client, server) for _ in range(3)])
        await until(lambda: server.ended == server.connections)
        assert await fetch(client, server) == b"data: 1\n\n"


async def test_a_connection_that_idled_for_too_long_is_not_used_though_it_is_still_open(monkeypatch):
    monkeypatch.setattr("meterhouse.providers.http1.pool.IDLE_CONNECTION_SECONDS", 0.0)
    async with small_client(4) as client, serving(slowly) as server:
        for _ in range(2):
            assert await fetch(client, server) == b"data: 1\n\n"
        assert server.connections == 2


@pytest.mark.parametrize("client", ["httptools"])
async def test_a_server_that_answers_before_it_has_read_everything(upstream):
    """A refusal that comes early is an answer; the rest of the body is not sent into the next one's mouth."""
    head = b"HTTP/1.1 413 Too Large\r\ncontent-type: application/json\r\n"
    is_read, is_over = asyncio.Event(), asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sized(b"no", head))
        await is_read.wait()
        with contextlib.suppress(OSError):
            while await reader.read(1_048_576):
                pass
        writer.close()
        is_over.set()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as listener, serving(never) as any_server:
        port = listener.sockets[0].getsockname()[1]
        endpoint = replace(any_server.endpoint, base_url=f"http://127.0.0.1:{port}")
        answer = await upstream.open(endpoint, "/x", b"x" * 20_000_000, is_streamed=False)
        assert (answer.status, await answer.read_all(10)) == (413, b"no")
        assert upstream.open_connections == 0
        is_read.set()
        await is_over.wait()  # the connection was closed, or there would be no end


async def test_the_time_for_the_head_is_that_of_each_request(upstream):
    """Long and short deadlines follow each other on one connection."""

    async def script(server: Server, writer: asyncio.StreamWriter) -> None:
        if len(server.heads) == 4:
            await server.go_on.wait()
        writer.write(sized(b"{}", OK))

    async with serving(script) as server:
        for seconds in (30.0, 0.5, 30.0):
            await (await ask(upstream, server, timeout_seconds=seconds)).read_all(10)
        began = time.monotonic()
        with pytest.raises(UpstreamTimeout, match="did not answer in time"):
            await ask(upstream, server, timeout_seconds=0.1)
        assert time.monotonic() - began < 15
    assert upstream.open_connections == 0


async def test_one_timer_fails_the_heads_that_are_late_and_nothing_else():
    """With it wait a head that is not due, and a body whose head was in time."""

    async def script(server: Server, writer: asyncio.StreamWriter) -> None:
        is_stream = server.bodies[-1] == b"[]"
        if is_stream:
            writer.write(SSE)
            await writer.drain()
        await server.go_on.wait()
        writer.write(chunk(b"data: 1\n\n") + b"0\r\n\r\n" if is_stream else sized(b"{}"))

    async with small_client(10) as client, serving(script) as server:
        begun = await client.post(server.endpoint, "/x", b"[]", is_streamed=True, headers=None, seconds=30.0)
        patient = asyncio.create_task(fetch(client, server))
        hurried = await asyncio.gather(*[post(client, server, seconds=0.1) for _ in range(4)], return_exceptions=True)
        assert [type(error) for error in hurried] == [UpstreamTimeout] * 4
        watch = client._pool.late_watch
        await until(lambda: watch.looks_at_seconds > asyncio.get_running_loop().time() + 1)
        assert (len(watch.waiting), client.open_connections) == (1, 2)
        server.go_on.set()
        assert (await patient, await begun.read_all(100)) == (b"{}", b"data: 1\n\n")
        assert not watch.waiting
        assert await fetch(client, server) == b"{}", "the one that waits again is watched by the timer that stands"


async def test_an_answer_shows_nothing_of_what_it_says():
    async with small_client(1) as client, serving(slowly) as server:
        answer = await post(client, server)
        assert "data" not in repr(answer)
        assert await answer.read_all(100) == b"data: 1\n\n"


async def test_whoever_leaves_is_watched_no_more():
    async with small_client(2) as client, serving(never) as server:
        leaving = asyncio.create_task(post(client, server))
        watch = client._pool.late_watch
        await until(lambda: bool(watch.waiting))
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert not watch.waiting
