"""TLS to providers: who is trusted, by which name, and that nothing is said to anybody else."""

import asyncio
import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import aiohttp.connector
import pytest
import uvloop

from contract.upstream.asking import ask
from fakes.certificates import write_certificates
from fakes.small_server import SSE, chunk, one_event_then_wait, reply, reply_and_close, serving, sized
from meterhouse.errors import UpstreamDown
from meterhouse.providers.catalog import PROVIDERS
from meterhouse.providers.http1.client import Http1Client
from meterhouse.providers.provider import ActiveProvider, Timeouts


class Authority:
    """A server's context, and what clients said in their greetings."""

    def __init__(self, folder) -> None:
        self.names: list[str | None] = []
        self.protocols: list[str | None] = []
        certificate, key = write_certificates(folder)
        self.path = folder / "ca.pem"
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(certificate, key)
        self.server.set_alpn_protocols(["h2", "http/1.1"])
        self.server.sni_callback = self._note

    def _note(self, _socket, name, _context) -> None:
        self.names.append(name)


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def trusted(authority, monkeypatch) -> Authority:
    """Have the clients that are made from now on trust the authority, as an operator would: by the environment."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", aiohttp.connector._make_ssl_context(True))
    authority.names.clear()
    return authority


def at(server, host):
    return replace(server.endpoint, base_url=server.endpoint.base_url.replace("127.0.0.1", host))


def lead(monkeypatch, *addresses):
    """Have every name lead to these addresses; returns the names that were looked up."""
    asked = []

    async def look_up(host, port, **_options):
        found = addresses
        if host[0].isdigit():  # uvloop asks for the address of an address
            found = (host,)
        else:
            asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)) for address in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    return asked


async def test_a_trusted_server_is_told_its_name_and_speaks_http_1(trusted, upstream):
    protocols = []

    async def script(_server, writer):
        protocols.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        writer.write(sized(b"{}"))

    async with serving(script, tls=trusted.server) as server:
        for _ in range(2):
            answer = await upstream.open(at(server, "localhost"), "/x", b"{}", is_streamed=False)
            assert await answer.read_all(10) == b"{}"
        assert await (await ask(upstream, server)).read_all(10) == b"{}"
        assert server.connections == 2
    assert protocols == ["http/1.1"] * 3
    assert trusted.names == ["localhost", None]


async def test_a_stream_and_a_long_body_over_tls(trusted, upstream):
    body = b"x" * 1_500_000
    async with serving(one_event_then_wait, tls=trusted.server) as server:
        answer = await ask(upstream, server, is_streamed=True, body=body)
        assert await answer.read() == b"data: 1\n\n"
        server.go_on.set()
        assert await answer.read_all(100) == b"data: 2\n\n"
        assert server.bodies == [body]
    async with serving(reply(SSE + chunk(body) + b"0\r\n\r\n"), tls=trusted.server) as server:
        for _ in range(2):
            assert await (await ask(upstream, server)).read_all(2_000_000) == body
        assert server.connections == 1
    assert upstream.open_connections == 0


async def test_a_body_that_the_end_of_a_secure_connection_ends(trusted, upstream):
    async with serving(reply_and_close(b"HTTP/1.1 200 OK\r\n\r\nwhole"), tls=trusted.server) as server:
        assert await (await ask(upstream, server)).read_all(10) == b"whole"


LONG = b"x" * 300_000


@pytest.mark.parametrize(
    "answer",
    [
        sized(LONG, b"HTTP/1.1 200 OK\r\nconnection: close\r\n"),
        SSE + chunk(LONG) + b"0\r\n\r\n",
    ],
    ids=["sized", "chunked"],
)
async def test_what_came_before_the_end_of_the_connection_is_read_however_slowly(trusted, upstream, answer):
    """The provider ends the connection without TLS's own farewell, while nothing is read here."""
    with slow_answer(trusted, answer, says_farewell=False) as endpoint:
        assert await read_slowly(upstream, endpoint) == (len(LONG), False)


@pytest.mark.parametrize("says_farewell", [True, False])
async def test_an_end_that_somebody_between_may_have_made_is_no_end(trusted, upstream, client, says_farewell):
    """Only the end of the connection ends the answer: without TLS's farewell the rest may have been cut off."""
    is_told = client == "httptools" and isinstance(asyncio.get_running_loop(), uvloop.Loop)
    with slow_answer(trusted, b"HTTP/1.1 200 OK\r\n\r\n" + LONG, says_farewell=says_farewell) as endpoint:
        assert await read_slowly(upstream, endpoint) == (len(LONG), is_told and not says_farewell)
    assert upstream.open_connections == 0


@contextmanager
def slow_answer(trusted, answer, *, says_farewell):
    """Serve an answer piece by piece on a thread, then end the connection; gives where."""
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with trusted.server.wrap_socket(connection, server_side=True) as secure:
                secure.recv(4_096)
                for start in range(0, len(answer), 10_000):
                    secure.sendall(answer[start : start + 10_000])
                    time.sleep(0.0005)
                if says_farewell:
                    with suppress(OSError):
                        secure.unwrap()
                else:
                    secure.shutdown(socket.SHUT_WR)
                    gone.wait(20)

        serving_it = threading.Thread(target=serve)
        serving_it.start()
        try:
            row = replace(PROVIDERS["openai"], timeouts=Timeouts())
            address = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
            yield ActiveProvider(provider=row, base_url=address, credential="secret")
        finally:
            gone.set()
            serving_it.join(20)


async def read_slowly(upstream, endpoint):
    """Return how long an answer is, and whether it was broken off."""
    opened = await upstream.open(endpoint, "/x", b"{}", is_streamed=False)
    await asyncio.sleep(0.15)
    size = 0
    try:
        while data := await opened.read():
            size += len(data)
            await asyncio.sleep(0.01)
    except UpstreamDown:
        return size, True
    finally:
        opened.abort()
    return size, False


async def test_a_server_that_nobody_vouches_for_hears_nothing(authority, upstream):
    async with serving(reply(sized(b"{}")), tls=authority.server) as server:
        with pytest.raises(UpstreamDown, match="securely"):
            await ask(upstream, server)
        assert server.heads == []
    assert upstream.open_connections == 0


async def test_a_server_with_another_name_hears_nothing(trusted, upstream, monkeypatch):
    lead(monkeypatch, "127.0.0.1")
    async with serving(reply(sized(b"{}")), tls=trusted.server) as server:
        with pytest.raises(UpstreamDown, match="securely"):
            await upstream.open(at(server, "other.example"), "/x", b"{}", is_streamed=False)
        assert server.heads == []
    assert upstream.open_connections == 0


async def test_each_address_of_a_name_is_tried(upstream, monkeypatch):
    lead(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")
    async with serving(reply(sized(b"{}"))) as server:
        answer = await upstream.open(at(server, "several.example"), "/x", b"{}", is_streamed=False)
        assert await answer.read_all(10) == b"{}"
    assert upstream.open_connections == 0


async def test_an_address_that_cannot_be_trusted_is_left_out(trusted, upstream, monkeypatch):
    lead(monkeypatch, "127.0.0.2", "127.0.0.1")
    async with serving(reply(sized(b"{}")), tls=trusted.server) as server:
        port = int(server.endpoint.base_url.split(":")[2].partition("/")[0])
        async with await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.2", port):
            answer = await upstream.open(at(server, "localhost"), "/x", b"{}", is_streamed=False)
            assert await answer.read_all(10) == b"{}"
    assert upstream.open_connections == 0


async def test_a_name_is_looked_up_once_for_all_who_ask_and_for_a_while(upstream, monkeypatch):
    asked = lead(monkeypatch, "127.0.0.1")
    async with serving(reply(sized(b"{}"))) as server:
        for _ in range(2):
            answers = [upstream.open(at(server, "one.example"), "/x", b"{}", is_streamed=False) for _ in range(5)]
            for answer in await asyncio.gather(*answers):
                await answer.read_all(10)
                answer.abort()
    assert asked == ["one.example"]


async def test_a_written_address_that_is_not_public_is_not_connected_to():
    """It meets no look-up, so that it has to be seen as it is connected to."""
    client = Http1Client()
    await client.open()
    async with serving(reply(sized(b"{}"))) as server:
        guarded = replace(server.endpoint, is_public_only=True)
        with pytest.raises(UpstreamDown, match="could not be found"):
            await client.post(guarded, "/x", b"{}", is_streamed=False, headers=None, seconds=20)
        assert server.connections == 0
    await client.close()
