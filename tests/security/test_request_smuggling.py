"""Request smuggling (CVE-2025-43859, CVE-2024-1135, CVE-2024-6827): bytes that two servers would cut differently.

Each is sent to the gateway itself, and through the shipped nginx.conf. What must never be: an answer to the request
that is hidden in the body, or a completion of one whose length is in doubt.
"""

import pytest

from edge.wire import connect as connect_tls
from edge.wire import receive
from fakes.gateway import Gateway
from fakes.nginx_server import NginxServer
from fakes.upstream import FakeUpstream
from security.raw import BODY, Heard, post, say

LENGTH = str(len(BODY)).encode()
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
HIDDEN = b"GET /hidden-request HTTP/1.1\r\nhost: localhost\r\n\r\n"
ENCODED = b"transfer-encoding: chunked"

AMBIGUOUS = {
    "both lengths": ([b"content-length: " + LENGTH, ENCODED], CHUNKED),
    "both lengths, the other way": ([ENCODED, b"content-length: 0"], CHUNKED),
    "a length that hides a request": ([b"content-length: 4", ENCODED], b"0\r\n\r\n" + HIDDEN),
    "another coding first": ([b"transfer-encoding: gzip, chunked"], CHUNKED),
    "another coding last": ([b"transfer-encoding: chunked, identity"], CHUNKED),
    "another word": ([b"transfer-encoding: xchunked"], CHUNKED),
    "a vertical tab": ([b"transfer-encoding:\x0bchunked"], CHUNKED),
    "a blank before the colon": ([b"transfer-encoding : chunked"], CHUNKED),
    "the coding twice": ([ENCODED, ENCODED], CHUNKED),
    "a list of lengths": ([b"content-length: %b, %b" % (LENGTH, LENGTH)], BODY),
    "two lengths": ([b"content-length: " + LENGTH, b"content-length: 1"], BODY),
    "a length with a sign": ([b"content-length: +" + LENGTH], BODY),
    "a negative length": ([b"content-length: -1"], BODY),
    "a hexadecimal length": ([b"content-length: 0x10"], BODY),
    "an endless length": ([b"content-length: " + b"9" * 30], BODY),
    "a bare carriage return": ([b"x: a\rcontent-length: 0", b"content-length: " + LENGTH], BODY),
    "a folded header": ([b"x: a\r\n b", b"content-length: " + LENGTH], BODY),
    "a NUL in a header": ([b"x: a\x00b", b"content-length: " + LENGTH], BODY),
    "a negative chunk": ([ENCODED], b"-1\r\n" + BODY),
    "a chunk of 0x": ([ENCODED], b"0x5\r\nabcde\r\n0\r\n\r\n"),
    "an endless chunk": ([ENCODED], b"f" * 18 + b"\r\n" + BODY),
    "a carriage return in a chunk's extension": ([ENCODED], b"%x;a\r=\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "chunks that end with line feeds": ([ENCODED], b"%x\n%b\n0\n\n" % (len(BODY), BODY)),
    "more than the chunk": ([ENCODED], b"%x\r\n%bXX\r\n0\r\n\r\n" % (len(BODY), BODY)),
}
each = pytest.mark.parametrize("name", AMBIGUOUS)
# nginx itself decodes the chunks, and forwards a body with its length; what it is strict about differs in these.
NGINX_MENDS = {"chunks that end with line feeds", "a carriage return in a chunk's extension"}


def head(name: str, key: str) -> bytes:
    headers, body = AMBIGUOUS[name]
    return post(key, *headers) + b"\r\n" + body


@each
def test_a_body_whose_length_is_in_doubt_is_refused_by_the_gateway(
    gateway: Gateway, up: FakeUpstream, name: str
) -> None:
    before = len(up.attempts)
    heard = say(gateway, head(name, gateway.key) + HIDDEN)
    assert heard.statuses == [400]
    assert heard.error["type"] == "invalid_request_error"
    assert heard.is_closed, "what follows on this connection cannot be told from the body"
    assert len(up.attempts) == before


@each
def test_a_body_whose_length_is_in_doubt_does_not_pass_nginx(guarded: NginxServer, gateway: Gateway, name: str) -> None:
    heard = say_to_nginx(guarded, head(name, gateway.key))
    allowed = {200} if name in NGINX_MENDS else set()
    assert set(heard.statuses) <= {400, 501, 502, *allowed}, heard.data[:200]
    assert b"hidden-request" not in heard.data


def test_a_version_that_knows_no_chunks_is_refused(gateway: Gateway) -> None:
    heard = say(gateway, post(gateway.key, ENCODED, version=b"1.0") + b"\r\n" + CHUNKED)
    assert (heard.statuses, heard.is_closed) == ([400], True)


def test_a_body_of_a_get_is_not_the_next_request(gateway: Gateway) -> None:
    first = b"GET /health/live HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(HIDDEN)
    heard = say(gateway, first + HIDDEN)
    assert heard.statuses == [200]
    assert b"hidden-request" not in heard.data


def test_nothing_follows_an_upgrade(gateway: Gateway) -> None:
    """What nobody reads as HTTP any more must not be read as a request by the next one who looks."""
    upgrade = b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    heard = say(gateway, upgrade + HIDDEN)
    assert (heard.statuses, heard.is_closed) == ([200], True)


def test_a_trailer_is_no_header(gateway: Gateway) -> None:
    """A key behind the body is not taken for the request's."""
    body = b"%x\r\n%b\r\n0\r\nauthorization: Bearer %b\r\n\r\n" % (len(BODY), BODY, gateway.key.encode())
    asked = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + ENCODED + b"\r\n\r\n" + body
    assert say(gateway, asked).statuses[:1] == [401]


def test_requests_one_after_another_have_their_own_answers(gateway: Gateway) -> None:
    """The control: honest requests on one connection."""
    one = post(gateway.key, b"content-length: " + LENGTH) + b"\r\n" + BODY
    heard = say(gateway, one + HIDDEN, answers=2)
    assert heard.statuses == [200, 404]


def say_to_nginx(edge: NginxServer, data: bytes) -> Heard:
    connection = connect_tls(edge)
    connection.sendall(data)
    connection.settimeout(0.5)
    heard = b""
    with connection:
        try:
            while piece := receive(connection):
                heard += piece
        except TimeoutError:
            return Heard(heard, is_closed=False)
    return Heard(heard, is_closed=True)
