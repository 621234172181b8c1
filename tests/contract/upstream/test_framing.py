"""Where an answer begins and ends: every form that HTTP allows is read, every other is refused, nothing is smuggled."""

import asyncio

import pytest

from contract.upstream.asking import ask, until
from fakes.small_server import OK, SECRET, SSE, Server, chunk, reply, reply_and_close, serving, sized
from meterhouse.errors import UpstreamDown
from meterhouse.providers.upstream import Upstream

STATUS = b"HTTP/1.1 200 OK\r\n"
CHUNKED = STATUS + b"transfer-encoding: chunked\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        sized(b"whole"),
        CHUNKED + chunk(b"who") + chunk(b"le") + b"0\r\n\r\n",
        CHUNKED + b"5;name=value\r\nwhole\r\n0\r\n\r\n",
        CHUNKED + chunk(b"whole") + b"0\r\nx-trailer: 1\r\n\r\n",
        CHUNKED + b"0000000005\r\nwhole\r\n0\r\n\r\n",
        STATUS.replace(b" OK", b"") + b"content-length: 5\r\n\r\nwhole",
        STATUS + b"x-empty:\r\nX-Bytes: \xff\xfe\r\nCONTENT-LENGTH: 5\r\n\r\nwhole",
        b"HTTP/1.1 100 Continue\r\n\r\n" + sized(b"whole"),
        INTERIM * 3 + sized(b"whole"),
    ],
)
async def test_a_body_ends_where_it_says_and_the_connection_is_used_again(upstream, data):
    async with serving(reply(data)) as server:
        for _ in range(2):
            assert await (await ask(upstream, server)).read_all(100) == b"whole"
        assert server.connections == 1
    assert upstream.open_connections == 0


@pytest.mark.parametrize("status", [b"204 No Content", b"205 Reset Content"])
async def test_an_answer_without_a_body(upstream, status):
    data = b"HTTP/1.1 " + status + b"\r\n" + (b"content-length: 0\r\n" if status[:3] == b"205" else b"") + b"\r\n"
    async with serving(reply(data)) as server:
        for _ in range(2):
            answer = await ask(upstream, server)
            assert answer.status == int(status[:3])
            assert await answer.read_all(100) == b""
        assert server.connections == 1


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_body_that_the_end_of_the_connection_ends(upstream, version):
    head = b"HTTP/" + version + b" 200 OK\r\ncontent-type: application/json\r\n\r\n"
    async with serving(reply_and_close(head + b"who" + b"le")) as server:
        for _ in range(2):
            assert await (await ask(upstream, server)).read_all(100) == b"whole"
        assert server.connections == 2
    assert upstream.open_connections == 0


@pytest.mark.parametrize(
    "data", [sized(b"{}", OK + b"connection: close\r\n"), b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}"]
)
async def test_a_server_that_will_close_is_not_asked_again_on_that_connection(upstream, data):
    async with serving(reply(data)) as server:
        for _ in range(2):
            assert await (await ask(upstream, server)).read_all(100) == b"{}"
        assert server.connections == 2


async def test_an_old_server_that_keeps_its_connection_is_asked_again(upstream):
    data = b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n{}"
    async with serving(reply(data)) as server:
        for _ in range(2):
            assert await (await ask(upstream, server)).read_all(100) == b"{}"
        assert server.connections == 1


async def trickle(_server: Server, writer: asyncio.StreamWriter) -> None:
    answer = INTERIM + CHUNKED + chunk(b"who") + b"2;a=b\r\nle\r\n0\r\nx-trailer: 1\r\n\r\n"
    for number in range(len(answer)):
        writer.write(answer[number : number + 1])
        await writer.drain()
        await asyncio.sleep(0)


async def test_an_answer_that_comes_byte_by_byte(upstream):
    async with serving(trickle) as server:
        for _ in range(2):
            assert await (await ask(upstream, server)).read_all(100) == b"whole"
        assert server.connections == 1


NO_HTTP = {
    "two lengths": STATUS + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "one length twice": STATUS + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
    "a list of lengths": STATUS + b"content-length: 2, 2\r\n\r\n{}",
    "a length with a sign": STATUS + b"content-length: +2\r\n\r\n{}",
    "a negative length": STATUS + b"content-length: -2\r\n\r\n{}",
    "a length in hex": STATUS + b"content-length: 0x2\r\n\r\n{}",
    "a length beyond all numbers": STATUS + b"content-length: 99999999999999999999999\r\n\r\n{}",
    "a length and chunks": STATUS + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks and a length": STATUS + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "no colon": STATUS + b"nonsense\r\ncontent-length: 2\r\n\r\n{}",
    "no name": STATUS + b": x\r\ncontent-length: 2\r\n\r\n{}",
    "NUL in a value": STATUS + b"x: a\0b\r\ncontent-length: 2\r\n\r\n{}",
    "NUL in a name": STATUS + b"x\0: a\r\ncontent-length: 2\r\n\r\n{}",
    "a bare CR": STATUS + b"x: 1\rcontent-length: 2\r\n\r\n{}",
    "a status of two digits": b"HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\n{}",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\n{}",
    "a version that is none": b"HTTP/1.2 200 OK\r\ncontent-length: 2\r\n\r\n{}",
}
STRICTLY_NO_HTTP = {
    "a folded header": STATUS + b"x-a: 1\r\n 2\r\ncontent-length: 2\r\n\r\n{}",
    "a folded encoding": STATUS + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": STATUS + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "a space before the name": STATUS + b" x: a\r\ncontent-length: 2\r\n\r\n{}",
    "a bare LF after the status": b"HTTP/1.1 200 OK\ncontent-length: 2\r\n\r\n{}",
    "a bare LF after a header": STATUS + b"x: 1\ncontent-length: 2\r\n\r\n{}",
    "a bare LF at the end": STATUS + b"content-length: 2\r\n\n{}",
    "an encoding that is not chunked": STATUS + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "an encoding before the chunks": STATUS + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "an encoding after the chunks": STATUS + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": STATUS + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/2.0 in text": b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "RTSP": b"RTSP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "empty lines first": b"\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "another protocol": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "a status below all": b"HTTP/1.1 099 Hm\r\ncontent-length: 2\r\n\r\n{}",
    "an interim answer with a body": b"HTTP/1.1 199 Hm\r\ncontent-length: 2\r\n\r\n{}" + sized(b"{}"),
    "interim answers without end": INTERIM * 3_000,
    "an endless header": STATUS + b"x: " + b"a" * 1_000_000,
    "an endless name": STATUS + b"a" * 1_000_000,
    "an endless status": b"HTTP/1.1 200 " + b"a" * 1_000_000,
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in NO_HTTP.items()])
async def test_what_two_readers_could_read_in_two_ways_is_refused(upstream, data):
    await check_refused(upstream, data)


@pytest.mark.parametrize("client", ["httptools"])
@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in STRICTLY_NO_HTTP.items()])
async def test_the_lean_client_refuses_more(upstream, data):
    await check_refused(upstream, data)


async def check_refused(upstream: Upstream, data: bytes) -> None:
    async with serving(reply(data)) as server:
        with pytest.raises(UpstreamDown) as caught:
            await ask(upstream, server, timeout_seconds=20)
        assert SECRET not in caught.value.message + caught.value.detail
        assert "{}" not in caught.value.message + caught.value.detail
        assert server.connections == 1
    assert upstream.open_connections == 0


BROKEN_CHUNKS = {
    "a negative size": b"-2\r\n{}\r\n0\r\n\r\n",
    "a size in 0x": b"0x2\r\n{}\r\n0\r\n\r\n",
    "no size": b"\r\n{}\r\n0\r\n\r\n",
    "a space before the size": b" 2\r\n{}\r\n0\r\n\r\n",
    "a size beyond all numbers": b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "a size without CR": b"2\n{}\r\n0\r\n\r\n",
    "more than the size": b"2\r\n{}x\r\n0\r\n\r\n",
    "no end of the chunk": b"2\r\n{}0\r\n\r\n",
}
STRICTLY_BROKEN_CHUNKS = {
    "an extension without CR": b"2;a=b\n{}\r\n0\r\n\r\n",
    "an endless extension": b"2;a=" + b"b" * 1_000_000,
    "an endless trailer": b"2\r\n{}\r\n0\r\nx: " + b"a" * 1_000_000,
    "trailers without end": b"2\r\n{}\r\n0\r\n" + b"x: a\r\n" * 500,
    "a trailer that changes the length": b"2\r\n{}\r\n0\r\ncontent-length: 9\r\n\r\n",
    "NUL in a trailer": b"2\r\n{}\r\n0\r\nx: \0\r\n\r\n",
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in BROKEN_CHUNKS.items()])
async def test_chunks_that_are_none_break_the_body(upstream, data):
    async with serving(reply(SSE + data)) as server:
        with pytest.raises(UpstreamDown):
            await (await ask(upstream, server)).read_all(100, timeout_seconds=20)
    assert upstream.open_connections == 0


@pytest.mark.parametrize("client", ["httptools"])
@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in STRICTLY_BROKEN_CHUNKS.items()])
async def test_the_lean_client_takes_no_chunks_that_old_servers_get_wrong(upstream, data):
    async with serving(reply(SSE + data)) as server:
        answer = await ask(upstream, server)
        with pytest.raises(UpstreamDown, match="ended its answer early"):
            await answer.read_all(100, timeout_seconds=20)
        assert upstream.open_connections == 0


@pytest.mark.parametrize("client", ["httptools"])
@pytest.mark.parametrize(
    "more", [sized(b"another"), b"nonsense", b"HTTP/1.1 200 OK\r\ncontent-le", b"\0", b"H" * 100_000]
)
@pytest.mark.parametrize("answer", [sized(b"{}"), CHUNKED + chunk(b"{}") + b"0\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\n"])
async def test_bytes_after_an_answer_are_nobodys(upstream, answer, more):
    async with serving(reply(answer + more)) as server:
        for _ in range(2):
            assert await (await ask(upstream, server)).read_all(100) in {b"{}", b""}
        assert server.connections == 2
    assert upstream.open_connections == 0


@pytest.mark.parametrize("client", ["httptools"])
async def test_a_connection_that_speaks_unasked_is_closed_at_once(upstream):
    async def script(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(sized(b"{}"))
        await server.go_on.wait()
        server.go_on.clear()
        writer.write(sized(b"poison"))

    async with serving(script) as server:
        assert await (await ask(upstream, server)).read_all(100) == b"{}"
        server.go_on.set()
        await until(lambda: server.ended == 1)
        assert await (await ask(upstream, server)).read_all(100) == b"{}"
        assert server.connections == 2


async def test_the_first_of_two_content_types_holds(upstream):
    data = sized(b"{}", STATUS + b"Content-Type: Text/HTML; charset=x\r\ncontent-type: application/json\r\n")
    async with serving(reply(data)) as server:
        answer = await ask(upstream, server)
        assert answer.content_type == "text/html"
        answer.abort()


@pytest.mark.parametrize("client", ["httptools"])
@pytest.mark.parametrize(
    "lines", [b"content-encoding: identity\r\ncontent-encoding: gzip\r\n", b"Content-Encoding: BR\r\n"]
)
async def test_an_encoded_body_is_refused_wherever_it_is_said(upstream, lines):
    async with serving(reply(sized(b"{}", OK + lines))) as server:
        with pytest.raises(UpstreamDown, match="encoded"):
            await ask(upstream, server)
    assert upstream.open_connections == 0
