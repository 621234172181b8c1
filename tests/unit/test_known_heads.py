"""A head that is said again is read without the parser, and what comes of it is what the parser would have made of it.

Each conversation is held twice: with a connection that learns heads, and with one that never does.
"""

import asyncio
import logging
import random

import pytest
from starlette.types import Message, Receive, Scope, Send

from meterhouse.http.connection import Connection
from meterhouse.http.reading import LEARNING
from security.test_request_smuggling import AMBIGUOUS
from unit.test_connection import PATIENCE_SECONDS, serving, tell

CONVERSATIONS = 150
END = b"GET /end HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
HEAD = b"POST %b HTTP/1.1\r\nHost: x\r\nX-Request-Id: %b\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n%b\r\n"
EARLY, SLOW = b"e", b"f"
"""How the ids of requests begin that are answered before their body has come, and of those that take their time."""
ALWAYS = [
    *[b""] * 12,
    b"Connection: keep-alive\r\n",
    b"Cookie: a\r\nx-a: b\r\ncookie: c\r\n",
    b"X-A:  b \r\nX-B:\r\n",
    b"Expect: 100-continue\r\n",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
]
"""What all heads of a conversation have beside the usual."""


class Counting(Connection):
    """Counts what the parser is given."""

    __slots__ = ("pieces",)

    def _parse(self, data: bytes) -> None:
        self.pieces: list[bytes]
        if not hasattr(self, "pieces"):
            self.pieces = []
        self.pieces.append(data)
        super()._parse(data)


class Forgetful(Connection):
    """Learns no head."""

    __slots__ = ()

    def _learn(self, data: bytes) -> None:
        pass


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def request(chance: random.Random, *, extra: bytes = b"", body: bytes | None = None) -> bytes:
    """Return a usual request; one whose body is given is answered at once, when that has come."""
    kind = b"0" if body is not None else chance.choice([b"0", b"0", b"0", EARLY, SLOW])
    if body is None:
        other = HEAD % (b"/a", b"0", b"k" * 8, 0, extra)
        body = chance.choice([b"", b"{}", b"x" * chance.randrange(60), other, other, b"\r\n\r\n", b"y" * 70_000])
    return HEAD % (b"/a", kind + b"%x" % chance.getrandbits(64), b"k" * 8, len(body), extra) + body


LENGTH = b"Content-Length: "
ODD = {
    "line feeds": (b"\r\n", b"\n"),
    "an old version": (b"HTTP/1.1", b"HTTP/1.0"),
    "a put": (b"POST", b"PUT"),
    "only the head": (b"POST", b"HEAD"),
    "another address": (b"/a", b"/b?c=%20"),
    "no blanks": (b": ", b":"),
    "more blanks": (b": ", b":  "),
    "blanks before the colon": (b": ", b" : "),
    "an id of several words": (b"X-Request-Id: ", b"X-Request-Id: a b "),
    "an id with a NUL": (b"X-Request-Id: ", b"X-Request-Id: \x00"),
    "an id with a carriage return": (b"X-Request-Id: ", b"X-Request-Id: \r"),
    "an id with a line feed": (b"X-Request-Id: ", b"X-Request-Id: \n"),
    "an id that is long": (b"X-Request-Id: ", b"X-Request-Id: " + b"0" * 70),
    "an id that is missing": (b"X-Request-Id", b"X-Other-Id"),
    "a length with a zero": (LENGTH, LENGTH + b"0"),
    "a length with a plus": (LENGTH, LENGTH + b"+"),
    "a length with a minus": (LENGTH, LENGTH + b"-"),
    "a length with a blank": (LENGTH, LENGTH + b" "),
    "a length in hexadecimal": (LENGTH, LENGTH + b"0x"),
    "a length that is longer": (LENGTH, LENGTH + b"1"),
    "an endless length": (LENGTH, LENGTH + b"9" * 30),
    "two lengths": (LENGTH, LENGTH + b"0\r\n" + LENGTH),
    "a client that waits": (LENGTH, b"Expect: 100-continue\r\n" + LENGTH),
    "chunks": (LENGTH, b"Transfer-Encoding: chunked\r\n" + LENGTH),
    "a farewell": (LENGTH, b"Connection: close\r\n" + LENGTH),
    "an upgrade": (LENGTH, b"Connection: upgrade\r\nUpgrade: h2c\r\n" + LENGTH),
    "a long header": (LENGTH, b"X-Long: " + b"z" * 5_000 + b"\r\n" + LENGTH),
    "no host": (b"Host: x\r\n", b""),
    "two hosts": (b"Authorization", b"Host"),
    "a name in capitals": (b"Host", b"HOST"),
    "an empty line first": (b"POST", b"\r\nPOST"),
}
"""What is replaced in a usual request."""


def doubtful(chance: random.Random, name: str) -> bytes:
    headers, body = AMBIGUOUS[name]
    return request(chance, body=b"", extra=b"\r\n".join([*headers, b""])).replace(LENGTH + b"0\r\n", b"") + body


def odd(chance: random.Random, name: str) -> bytes:
    return request(chance, body=b"x" * chance.randrange(9)).replace(*ODD[name])


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Say what came; see ``EARLY`` and ``SLOW``."""
    request_id = dict(scope["headers"]).get(b"x-request-id", b"")
    if request_id.startswith(EARLY):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        return
    if request_id.startswith(SLOW):
        for _ in range(40):
            await asyncio.sleep(0)

    async def receive_all() -> Message:
        message = await receive()
        return message if message["type"] == "http.request" else {"body": b"gone", "more_body": False}

    await tell(scope, receive_all, send)


async def converse(protocol: type[Connection], pieces: list[bytes]) -> bytes:
    """Have a connection read pieces just so cut, each once all that comes of the one before it is done."""
    there: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    class There(protocol):  # type: ignore[valid-type, misc]  # a class that is given
        __slots__ = ()

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            there.set_result(self)

    async with serving(There, answer) as (_, reader, _), asyncio.timeout(PATIENCE_SECONDS):
        heard, connection = asyncio.ensure_future(reader.read()), await there
        for piece in pieces:
            if connection.transport.is_closing():
                break
            connection.data_received(piece)
            for _ in range(12):
                await asyncio.sleep(0)
        return await heard


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    """Cut data as a network may, mostly not at all or behind the head."""
    kind = chance.random()
    if kind < 0.6:
        return [data]
    at = data.find(b"\r\n\r\n") + 4 if kind < 0.85 else chance.randrange(len(data) + 1)
    return [piece for piece in (data[:at], data[at:]) if piece]


@pytest.mark.parametrize("seed", range(CONVERSATIONS))
async def test_a_conversation_ends_as_if_every_head_had_been_parsed(seed: int) -> None:
    chance = random.Random(seed)
    pieces: list[bytes] = []
    always, method = chance.choice(ALWAYS), chance.choice([b"POST"] * 9 + [b"PUT"])
    for _ in range(chance.randrange(3, 14)):
        several = b"".join(request(chance, extra=always) for _ in range(chance.choice([1, 1, 1, 1, 2])))
        several = several.replace(b"POST", method)
        kind = chance.randrange(12)
        unusual = odd(chance, chance.choice(sorted(ODD))) if kind == 0 else b""
        unusual = doubtful(chance, chance.choice(sorted(AMBIGUOUS))) if kind == 1 else unusual
        pieces += cut(chance, unusual or several)
    pieces.append(END * 5)
    heard = await converse(Connection, pieces)
    assert heard.startswith(b"HTTP/1.1 ")
    assert heard == await converse(Forgetful, pieces)


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_what_is_in_doubt_is_refused_behind_a_known_head_too(name: str) -> None:
    chance = random.Random(name)
    pieces = [*(request(chance, body=b"{}") for _ in range(4)), doubtful(chance, name), END * 5]
    heard = await converse(Connection, pieces)
    assert heard.count(b"HTTP/1.1 200 ") == 4
    assert heard.count(b"HTTP/1.1 400 ") == 1
    assert heard == await converse(Forgetful, pieces)


@pytest.mark.parametrize("name", ODD)
async def test_what_is_odd_is_read_as_ever_behind_a_known_head(name: str) -> None:
    chance = random.Random(name)
    usual = [request(chance, body=b"{}") for _ in range(6)]
    pieces = [*usual[:4], odd(chance, name), *usual[4:], END * 5]
    heard = await converse(Connection, pieces)
    assert heard.count(b"HTTP/1.1 200 ") >= 4
    assert heard == await converse(Forgetful, pieces)


@pytest.mark.parametrize("always", sorted({*ALWAYS}))
@pytest.mark.parametrize("method", [b"POST", b"PUT"])
async def test_whatever_is_said_again_is_read_as_ever(method: bytes, always: bytes) -> None:
    chance = random.Random(4)
    usual = [request(chance, body=b"{}", extra=always).replace(b"POST", method) for _ in range(5)]
    heard = await converse(Connection, [*usual, END])
    assert heard.count(b"HTTP/1.1 200 ") == len(usual) + 1
    assert heard == await converse(Forgetful, [*usual, END])


async def test_a_known_head_leads_to_its_own_address() -> None:
    chance = random.Random(3)
    places = [b"/a"] * 4 + [b"/b%d" % number for number in range(6)] + [b"/b0", b"/a", b"/b0"]
    pieces = [*(request(chance, body=b"{}").replace(b"/a", place) for place in places), END]
    heard = await converse(Connection, pieces)
    assert heard.count(b"HTTP/1.1 200 ") == len(pieces)
    assert heard == await converse(Forgetful, pieces)


@pytest.mark.parametrize("is_cut", [False, True])
async def test_the_parser_reads_a_head_that_is_said_again_twice(*, is_cut: bool) -> None:
    chance, made = random.Random(1), []

    class Made(Counting):
        __slots__ = ()

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as ours says it
            made.append(self)
            super().connection_made(transport)

    requests = [request(chance, body=b"%d" % number * 3) for number in range(6)]
    pieces = [(one[:-3], one[-3:]) if is_cut else (one,) for one in requests]
    heard = await converse(Made, [piece for pair in pieces for piece in pair] + [END])
    assert heard.count(b"HTTP/1.1 200 ") == len(requests) + 1
    assert made[0].pieces == [piece for pair in pieces[:2] for piece in pair] + [END]


async def test_a_client_that_never_says_a_head_again_is_learnt_of_no_more() -> None:
    learnt: list[bytes] = []

    class Learning(Connection):
        __slots__ = ()

        def _learn(self, data: bytes) -> None:
            learnt.append(data)
            super()._learn(data)

    chance = random.Random(2)
    others = [request(chance, extra=b"x-other: %d\r\n" % number, body=b"{}") for number in range(20)]
    again = [request(chance, extra=b"x-other: 2\r\n", body=b"{}") for _ in range(LEARNING)]
    heard = await converse(Learning, [*others[:10], *again, *others[10:], END])
    assert heard.count(b"HTTP/1.1 200 ") == len(others) + len(again) + 1
    # The second head, the third, and one more when that has come back often enough.
    assert learnt == [others[1], others[2], others[10]]
