"""A request that has to be cleared: nothing of it leaves before, and nothing ever where it is refused."""

import asyncio

import pytest

from contract.upstream.asking import ask, until
from fakes.small_server import OK, Server, reply, serving, sized
from meterhouse.errors import JournalDown, UpstreamDown
from meterhouse.providers.catalog import PROVIDERS
from meterhouse.providers.http1.connection import PIECE_BYTES
from meterhouse.providers.provider import ActiveProvider
from meterhouse.providers.upstream import Upstream


class Gate:
    """Gives a clearance when it is told to, and has it given where somebody insists."""

    def __init__(self) -> None:
        self.is_given = False
        self.error: JournalDown | None = None
        self.insisted = 0
        self._on_known = None

    def tell(self, on_known) -> None:
        self._on_known = on_known

    def insist(self) -> None:
        self.insisted += 1
        if self.error is not None:
            raise self.error
        self.is_given = True

    @property
    def is_awaited(self) -> bool:
        return self._on_known is not None

    def open(self, error: JournalDown | None = None) -> None:
        self.is_given = error is None
        self._on_known(error)


async def warm(upstream: Upstream, server: Server) -> None:
    """Have a connection that stands."""
    await (await ask(upstream, server)).read_all(100)
    await until(lambda: upstream.open_connections == 0)


@pytest.fixture(params=["httptools"])
def client(request):
    """Only this one holds a request back."""
    return request.param


async def hold(upstream, server: Server) -> tuple[Gate, asyncio.Future]:
    """Have a request held back on a warm connection; returns what lets it go, and who asks."""
    await warm(upstream, server)
    gate = Gate()
    asking = asyncio.ensure_future(ask(upstream, server, clearance=gate))
    await until(lambda: gate.is_awaited)
    return gate, asking


async def test_a_request_leaves_when_it_is_cleared_and_not_before(upstream):
    async with serving(reply(sized(b"{}"))) as server:
        await warm(upstream, server)
        gate = Gate()
        asking = asyncio.ensure_future(ask(upstream, server, body=b"[1]", clearance=gate))
        await until(lambda: gate.is_awaited)
        await asyncio.sleep(0.02)
        assert len(server.heads) == 1
        gate.open()
        assert await (await asking).read_all(100) == b"{}"
        assert server.bodies[1:] == [b"[1]"]
        assert (server.connections, gate.insisted) == (1, 0)


async def test_a_request_that_is_refused_fails_with_the_reason_and_is_never_sent(upstream):
    async with serving(reply(sized(b"{}"))) as server:
        await warm(upstream, server)
        gate, reason = Gate(), JournalDown("down")
        asking = asyncio.ensure_future(ask(upstream, server, clearance=gate))
        await until(lambda: gate.is_awaited)
        gate.open(reason)
        with pytest.raises(JournalDown) as raised:
            await asking
        assert raised.value is reason
        await until(lambda: server.ended == 1)
        assert (len(server.heads), upstream.open_connections) == (1, 0)
        await warm(upstream, server)


async def test_a_request_that_is_given_up_is_not_sent_when_it_is_cleared_later(upstream):
    async with serving(reply(sized(b"{}"))) as server:
        gate, asking = await hold(upstream, server)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        gate.open()
        await until(lambda: server.ended == 1)
        assert (len(server.heads), upstream.open_connections) == (1, 0)


async def test_a_server_that_answers_before_it_was_asked_is_not_believed(upstream):
    async def twice_soon(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(sized(b"{}"))
        await writer.drain()
        await server.go_on.wait()
        writer.write(sized(b'{"of": "nobody"}', OK))

    async with serving(twice_soon) as server:
        gate, asking = await hold(upstream, server)
        server.go_on.set()
        with pytest.raises(UpstreamDown):
            await asking
        gate.open()
        await until(lambda: server.ended == 1)
        assert len(server.heads) == 1


async def test_a_connection_that_ends_while_a_request_is_held_fails_it(upstream):
    async def answer_and_end(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(sized(b"{}"))
        await writer.drain()
        await server.go_on.wait()
        writer.close()

    async with serving(answer_and_end) as server:
        gate, asking = await hold(upstream, server)
        server.go_on.set()
        with pytest.raises(UpstreamDown):
            await asking
        gate.open()
        assert len(server.heads) == 1


async def test_before_a_connection_is_made_and_before_a_long_body_the_clearance_is_insisted_on(upstream):
    async with serving(reply(sized(b"{}"))) as server:
        refused = Gate()
        refused.error = JournalDown("down")
        with pytest.raises(JournalDown):
            await ask(upstream, server, clearance=refused)
        assert (server.connections, upstream.open_connections) == (0, 0)
        gate = Gate()
        await (await ask(upstream, server, clearance=gate)).read_all(100)
        await until(lambda: upstream.open_connections == 0)
        long = b"[" + b" " * PIECE_BYTES + b"]"
        with pytest.raises(JournalDown):
            await ask(upstream, server, body=long, clearance=refused)
        await (await ask(upstream, server, body=long, clearance=gate)).read_all(100)
        assert server.bodies == [b"{}", long]
        assert (gate.insisted, server.connections) == (2, 1)


@pytest.mark.parametrize("client", ["aiohttp"], indirect=True)
async def test_a_client_that_cannot_hold_a_request_insists(upstream):
    async with serving(reply(sized(b"{}"))) as server:
        await warm(upstream, server)
        gate = Gate()
        gate.error = JournalDown("down")
        with pytest.raises(JournalDown):
            await ask(upstream, server, clearance=gate)
        gate.error = None
        await (await ask(upstream, server, clearance=gate)).read_all(100)
        assert (len(server.heads), gate.insisted) == (2, 2)


async def test_the_simulator_insists(upstream):
    simulated, gate = ActiveProvider(provider=PROVIDERS["simulator"], base_url="simulator:"), Gate()
    gate.error = JournalDown("down")
    with pytest.raises(JournalDown):
        await upstream.open(simulated, "/chat/completions", b"{}", is_streamed=False, clearance=gate)
    assert gate.insisted == 1
