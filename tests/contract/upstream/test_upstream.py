"""The upstream client against a real server over a socket: every failure is ours, and no connection is left behind."""

import asyncio
import contextlib
import random
import socket
from dataclasses import replace

import pytest

from contract.upstream.asking import ask, until
from fakes.small_server import (
    OK,
    SECRET,
    SSE,
    Server,
    chunk,
    garbage_in_the_body,
    never,
    one_event_then_wait,
    reply,
    reply_and_close,
    reset_in_the_body,
    serving,
    sized,
)
from meterhouse.errors import UpstreamDown, UpstreamTimeout
from meterhouse.providers.answer import Answer, parse_retry_after
from meterhouse.providers.catalog import PROVIDERS
from meterhouse.providers.http1.answer import Http1Answer
from meterhouse.providers.provider import ActiveProvider, Timeouts
from meterhouse.providers.upstream import Upstream


async def test_a_whole_answer_and_what_was_sent(upstream):
    async with serving(reply(sized(b'{"a":1}'))) as server:
        answer = await ask(
            upstream,
            server,
            is_streamed=False,
            body=b'{"q":1}',
            headers={"traceparent": "00-a-b-01", "cookie": "c=1", "authorization": "Bearer caller"},
        )
        assert (answer.status, answer.content_type, answer.retry_after_seconds) == (200, "application/json", None)
        assert await answer.read_all(100) == b'{"a":1}'
        line, *lines = server.heads[0].strip().split("\r\n")
        sent = {name.lower(): value for name, value in (text.split(": ", 1) for text in lines)}
        assert line == "POST /v1/chat/completions HTTP/1.1"
        assert sent.pop("host") == server.endpoint.base_url.removeprefix("http://").removesuffix("/v1")
        assert sent.pop("user-agent").startswith("meterhouse/")
        assert sent == {
            "authorization": f"Bearer {SECRET}",
            "accept": "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
            "content-length": "7",
            "traceparent": "00-a-b-01",
        }
        assert server.bodies == [b'{"q":1}']
        assert upstream.open_connections == 0


@pytest.mark.parametrize("value", ["a\r\nx-injected: 1", "\u00e9", "a\x00b"])
async def test_a_trace_context_that_no_header_can_carry_is_left_out(upstream, value):
    async with serving(reply(sized(b"{}"))) as server:
        await (await ask(upstream, server, headers={"traceparent": value})).read_all(100)
        assert "traceparent" not in server.heads[0].lower()


@pytest.mark.parametrize("takes", [True, False])
async def test_what_comes_is_read_unless_whoever_waits_has_it_taken(upstream, takes):
    async with serving(one_event_then_wait) as server:
        answer = await ask(upstream, server, is_streamed=True)
        assert await answer.read() == b"data: 1\n\n"
        given, read = [], []

        def take(data):
            given.append(data)
            return takes

        async def read_on():
            while data := await answer.read(take):
                read.append(data)

        reading = asyncio.create_task(read_on())
        await asyncio.sleep(0)  # it waits
        server.go_on.set()
        await reading
        assert (given if takes else []) + read == [b"data: 2\n\n"]
        answer.release()


async def test_what_has_come_is_taken_once_and_nothing_is_not_waited_for(upstream):
    async with serving(one_event_then_wait) as server:
        answer = await ask(upstream, server, is_streamed=True)
        arrived = b""
        while not arrived:
            arrived = answer.take_arrived()
            await asyncio.sleep(0.001)
        assert (arrived, answer.take_arrived()) == (b"data: 1\n\n", b"")
        server.go_on.set()
        assert await answer.read() == b"data: 2\n\n"
        assert await answer.read() == answer.take_arrived() == b""
        answer.release()
        assert answer.take_arrived() == b""
    assert upstream.open_connections == 0


@pytest.mark.parametrize("client", ["httptools"])
async def test_an_answer_in_pieces_wakes_whoever_reads_all_of_it_once(upstream):
    come: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: 4\r\n\r\n")
        for _ in range(4):
            writer.write(await come.get())

    async with serving(script) as server:
        answer = await ask(upstream, server)
        reading = asyncio.create_task(answer.read_all(4))
        await asyncio.sleep(0)  # it waits
        waiter, connection = answer.waiter, answer.source
        before = connection._heard_bytes
        for number, piece in enumerate((b"a", b"b", b"c"), start=1):
            come.put_nowait(piece)
            await until(lambda number=number: connection._heard_bytes == before + number)
            assert answer.waiter is waiter
            assert not waiter.done()
        come.put_nowait(b"d")
        assert await reading == b"abcd"
        assert upstream.open_connections == 0


@pytest.mark.parametrize("pieces", [(b"abc", b"de"), (b"abcde",), (b"abcdef", b"g")])
async def test_an_answer_longer_than_the_bound_is_refused_however_it_comes(upstream, pieces):
    come: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"transfer-encoding: chunked\r\n\r\n")
        while piece := await come.get():
            writer.write(chunk(piece))

    async with serving(script) as server:
        reading = asyncio.create_task((await ask(upstream, server)).read_all(4))
        for piece in pieces:
            come.put_nowait(piece)
            await until(come.empty)
        with pytest.raises(UpstreamDown, match="more than 4 bytes"):
            await reading
        await until(lambda: upstream.open_connections == 0)
        come.put_nowait(b"")


async def test_a_stream_is_read_as_it_comes_and_its_connection_used_again(upstream):
    async with serving(one_event_then_wait) as server:
        answer = await ask(upstream, server, is_streamed=True)
        assert answer.content_type == "text/event-stream"
        assert await answer.read() == b"data: 1\n\n"
        server.go_on.set()
        assert await answer.read() == b"data: 2\n\n"
        assert await answer.read() == b""
        answer.release()
        answer.release()
        again = await ask(upstream, server, is_streamed=True)
        assert await again.read_all(1_000) == b"data: 1\n\ndata: 2\n\n"
        assert server.connections == 1
        assert upstream.open_connections == 0


async def test_a_release_before_the_end_closes_the_connection(upstream):
    async with serving(one_event_then_wait) as server:
        answer = await ask(upstream, server, is_streamed=True)
        await answer.read()
        answer.release()
        assert upstream.open_connections == 0
        server.go_on.set()
        await (await ask(upstream, server, is_streamed=True)).read_all(1_000)
        assert server.connections == 2


async def test_a_megabyte_is_sent_whole_and_without_a_warning(upstream):
    body = b"x" * 3_000_000
    async with serving(reply(sized(b"{}"))) as server:
        await (await ask(upstream, server, body=body)).read_all(100)
        assert server.bodies == [body]


async def test_a_refused_port_is_down(upstream):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = ActiveProvider(
            provider=PROVIDERS["openai"], base_url=f"http://127.0.0.1:{taken.getsockname()[1]}", credential=SECRET
        )
        with pytest.raises(UpstreamDown, match="could not be connected to") as caught:
            await upstream.open(endpoint, "/x", b"{}", is_streamed=False)
    assert "127.0.0.1" not in caught.value.message
    assert SECRET not in caught.value.message + caught.value.detail
    assert upstream.open_connections == 0


async def test_a_name_that_does_not_exist_is_down(upstream):
    endpoint = ActiveProvider(provider=PROVIDERS["openai"], base_url="http://nowhere.invalid")
    with pytest.raises(UpstreamDown, match="could not be found"):
        await upstream.open(endpoint, "/x", b"{}", is_streamed=False)


@pytest.mark.parametrize("host", ["localhost", "localhost.", "localhost.."])
async def test_a_name_that_leads_to_a_private_address_is_not_connected_to(upstream, host):
    async with serving(reply(sized(b"{}"))) as server:
        address = server.endpoint.base_url.replace("127.0.0.1", host)
        guarded = ActiveProvider(provider=PROVIDERS["openai"], base_url=address, is_public_only=True)
        with pytest.raises(UpstreamDown, match="could not be found"):
            await upstream.open(guarded, "/x", b"{}", is_streamed=False)
        assert server.bodies == []


async def test_a_name_in_other_letters_is_looked_up_as_carefully(upstream, monkeypatch):
    async with serving(reply(sized(b"{}"))) as server:
        port = int(server.endpoint.base_url.split(":")[2].partition("/")[0])
        found = [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]

        async def look_up(*_args, **_options):
            return found

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
        guarded = ActiveProvider(
            provider=PROVIDERS["openai"], base_url=f"http://b\u00fccher.example:{port}", is_public_only=True
        )
        with pytest.raises(UpstreamDown, match="could not be found"):
            await upstream.open(guarded, "/x", b"{}", is_streamed=False)
        assert server.bodies == []


async def test_a_provider_of_the_host_may_have_the_name_that_another_may_not(upstream):
    async with serving(reply(sized(b"{}"))) as server:
        address = server.endpoint.base_url.replace("127.0.0.1", "localhost")
        ours = ActiveProvider(provider=PROVIDERS["openai"], base_url=address)
        for _ in range(2):
            await (await upstream.open(ours, "/x", b"{}", is_streamed=False)).read_all(9)
            with pytest.raises(UpstreamDown, match="could not be found"):
                await upstream.open(replace(ours, is_public_only=True), "/x", b"{}", is_streamed=False)


async def test_a_server_without_tls_is_down_over_https(upstream):
    def plain(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as listener:
        address = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        endpoint = ActiveProvider(provider=PROVIDERS["openai"], base_url=address)
        with pytest.raises(UpstreamDown, match="securely"):
            await upstream.open(endpoint, "/x", b"{}", is_streamed=False)


@pytest.mark.parametrize(
    "script",
    [
        reset_in_the_body,
        reply_and_close(SSE + chunk(b"data: 1\n\n") + b"ff\r\nhalf"),
        reply_and_close(OK + b"content-length: 100\r\n\r\n{"),
        garbage_in_the_body,
    ],
)
async def test_a_body_that_breaks_is_down_for_the_reader(upstream, script):
    async with serving(script) as server:
        answer = await ask(upstream, server, is_streamed=True)
        server.go_on.set()
        with pytest.raises(UpstreamDown):
            await answer.read_all(1_000)
        with pytest.raises(UpstreamDown):
            await answer.read()
    assert upstream.open_connections == 0


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "closed the connection"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "did not speak HTTP"),
        (OK + b"x-big: " + b"a" * 100_000 + b"\r\n\r\n", "did not speak HTTP"),
        (OK + b"".join(b"x-%d: a\r\n" % number for number in range(500)) + b"\r\n", "did not speak HTTP"),
        (sized(b"\x1f\x8b", OK + b"content-encoding: gzip\r\n"), "encoded"),
        (sized(b"", b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\n"), "redirects"),
    ],
)
async def test_what_is_no_usable_answer_is_down(upstream, data, text):
    async with serving(reply_and_close(data)) as server:
        with pytest.raises(UpstreamDown, match=text):
            await ask(upstream, server)
        assert server.connections == 1
    assert upstream.open_connections == 0


async def test_no_head_in_time_is_a_timeout(upstream):
    async with serving(never, first_token_seconds=0.05) as server:
        with pytest.raises(UpstreamTimeout, match="did not answer in time"):
            await ask(upstream, server, is_streamed=True)
        with pytest.raises(UpstreamTimeout):
            await ask(upstream, server, timeout_seconds=0.05)
    assert upstream.open_connections == 0


async def test_no_connection_in_time_is_a_timeout(upstream):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
            row = replace(PROVIDERS["openai"], timeouts=Timeouts(connect_seconds=0.05))
            endpoint = ActiveProvider(provider=row, base_url=f"http://127.0.0.1:{address[1]}")
            with pytest.raises(UpstreamTimeout, match="connected to in time"):
                await upstream.open(endpoint, "/x", b"{}", is_streamed=False)
    assert upstream.open_connections == 0


async def test_a_body_that_does_not_end_in_time_is_a_timeout(upstream):
    async with serving(one_event_then_wait) as server:
        answer = await ask(upstream, server)
        with pytest.raises(UpstreamTimeout):
            await answer.read_all(1_000, timeout_seconds=0.05)
        assert upstream.open_connections == 0


async def test_a_body_longer_than_the_limit_is_refused(upstream):
    async with serving(reply(sized(b"x" * 1_000))) as server:
        assert len(await (await ask(upstream, server)).read_all(1_000)) == 1_000
        with pytest.raises(UpstreamDown, match="more than 999 bytes"):
            await (await ask(upstream, server)).read_all(999)


async def test_an_abort_wakes_the_reader_and_closes_the_connection_at_once(upstream):
    async with serving(one_event_then_wait) as server:
        answer = await ask(upstream, server, is_streamed=True)
        await answer.read()
        reader = asyncio.create_task(answer.read())
        await asyncio.sleep(0)
        answer.abort()
        assert upstream.open_connections == 0
        with pytest.raises(UpstreamDown, match="closed by us"):
            await reader
        answer.abort()
        answer.release()
        with pytest.raises(UpstreamDown):
            await answer.read()


async def test_a_read_that_was_cancelled_loses_no_byte(upstream):
    async with serving(one_event_then_wait) as server:
        answer = await ask(upstream, server, is_streamed=True)
        await answer.read()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await answer.read()
        server.go_on.set()
        assert await answer.read_all(100) == b"data: 2\n\n"


def has_broken(answer: Answer) -> bool:
    if isinstance(answer, Http1Answer):
        return answer.failure is not None
    return answer._response.content.exception() is not None


@pytest.mark.parametrize("script", [reset_in_the_body, garbage_in_the_body])
async def test_what_came_before_the_break_is_read_first(upstream, script):
    async with serving(script) as server:
        answer = await ask(upstream, server, is_streamed=True)
        server.go_on.set()
        await until(lambda: has_broken(answer))
        assert await answer.read() == b"data: 1\n\n"
        assert answer.take_arrived() == b""
        with pytest.raises(UpstreamDown):
            await answer.read()


async def test_any_status_is_an_answer_with_its_patience(upstream):
    head = b"HTTP/1.1 429 Too Many\r\nretry-after: 7\r\ncontent-type: text/html\r\n"
    async with serving(reply(sized(b"slow down", head))) as server:
        answer = await ask(upstream, server)
        assert (answer.status, answer.retry_after_seconds, answer.content_type) == (429, 7.0, "text/html")
        assert await answer.read_all(100) == b"slow down"


async def test_no_cookie_is_kept(upstream):
    async with serving(reply(sized(b"{}", OK + b"set-cookie: a=1; path=/\r\n"))) as server:
        for _ in range(2):
            await (await ask(upstream, server)).read_all(100)
        assert "cookie" not in server.heads[1].lower()


async def test_a_storm_of_cancellations_leaves_no_connection_behind(upstream):
    moments = random.Random(7)

    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE)
        for _ in range(3):
            writer.write(chunk(b"data: 1\n\n"))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    async def request(server: Server) -> None:
        answer = await ask(upstream, server, is_streamed=True)
        try:
            while await answer.read():
                pass
        finally:
            answer.release()

    async def cancelled_request(server: Server) -> None:
        task = asyncio.create_task(request(server))
        for _ in range(moments.randrange(60)):
            await asyncio.sleep(0)
        task.cancel()
        await task

    async with serving(script) as server:
        storm = [cancelled_request(server) for _ in range(500)]
        results = await asyncio.gather(*storm, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError, type(None)}
        assert sum(isinstance(result, asyncio.CancelledError) for result in results) > 100
        assert upstream.open_connections == 0
        await request(server)
    assert upstream.open_connections == 0


async def test_a_closed_client_refuses_and_its_readers_are_woken(client):
    async with serving(one_event_then_wait) as server:
        async with Upstream(client=client) as upstream:
            answer = await ask(upstream, server, is_streamed=True)
            await answer.read()
        with pytest.raises(UpstreamDown):
            await answer.read()
        with pytest.raises(UpstreamDown, match="stopping"):
            await ask(upstream, server)


async def test_the_simulator_answers_through_the_same_door(upstream, client):
    endpoint = ActiveProvider(provider=PROVIDERS["simulator"], base_url="simulator:")
    body = b'{"model":"simulator-instant","messages":[{"role":"user","content":"hi"}]}'
    answer = await upstream.open(endpoint, "/chat/completions", body, is_streamed=True)
    assert (await answer.read_all(100_000)).endswith(b"data: [DONE]\n\n")
    async with Upstream(client=client) as without:
        with pytest.raises(UpstreamDown, match="switched off"):
            await without.open(endpoint, "/chat/completions", body, is_streamed=True)


@pytest.mark.parametrize(
    ("milliseconds", "value", "seconds"),
    [
        (None, None, None),
        ("1500", "2", 1.5),
        (None, "2", 2.0),
        (None, "0.25", 0.25),
        (None, "-1", None),
        (None, "nan", None),
        (None, "soon", None),
        (None, "Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        (None, "Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read_in_every_form(milliseconds, value, seconds):
    assert parse_retry_after(milliseconds, value, now_seconds=10.0) == seconds
