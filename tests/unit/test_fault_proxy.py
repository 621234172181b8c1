"""Each fault of the proxy is what it says, and is over when it is healed."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from fakes.proxy import Direction, FaultProxy

SOON_SECONDS = 0.03


class Echo:
    """Answers each line with itself, and remembers what it got."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.got = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            async for line in reader:
                self.lines.append(line)
                self.got.set()
                writer.write(line)
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    listener = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = listener.sockets[0].getsockname()[1]
    yield echo
    listener.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", echo.port) as proxy:
        yield proxy


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, line: bytes) -> bytes:
        self.writer.write(line)
        return await asyncio.wait_for(self.reader.readline(), 5)

    async def has_no_answer(self, line: bytes) -> bool:
        self.writer.write(line)
        try:
            await asyncio.wait_for(self.reader.readexactly(1), SOON_SECONDS)
        except TimeoutError:
            return True
        return False


@contextlib.asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_without_a_fault_it_changes_nothing(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        big = b"x" * 60_000 + b"\n"
        assert [await client.ask(b"a\n"), await client.ask(big)] == [b"a\n", big]
        client.writer.write_eof()
        assert await client.reader.read() == b""
    assert proxy.accepted == 1


async def test_latency_holds_each_chunk_in_both_directions(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        proxy.delay(0.02)
        began = time.monotonic()
        assert await client.ask(b"a\n") == b"a\n"
        assert time.monotonic() - began >= 0.04


@pytest.mark.parametrize(
    ("directions", "arrived"), [((), []), ((Direction.TO_SERVER,), []), ((Direction.TO_CLIENT,), [b"a\n"])]
)
async def test_a_black_hole_delivers_what_it_held_once_healed(
    proxy: FaultProxy, echo: Echo, directions: tuple[Direction, ...], arrived: list[bytes]
) -> None:
    async with connected(proxy) as client:
        proxy.black_hole(*directions)
        assert await client.has_no_answer(b"a\n")
        if arrived:
            await asyncio.wait_for(echo.got.wait(), 5)
        assert echo.lines == arrived
        proxy.heal()
        assert await client.ask(b"b\n") == b"a\n"
        assert await client.reader.readline() == b"b\n"


async def test_a_black_hole_takes_new_connections(proxy: FaultProxy) -> None:
    proxy.black_hole()
    async with connected(proxy) as client:
        assert await client.has_no_answer(b"a\n")


async def test_a_reset_reaches_those_who_wait(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        await client.ask(b"a\n")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await client.reader.readline()
    async with connected(proxy) as client:
        assert await client.ask(b"b\n") == b"b\n"
    proxy.reset(new_too=True)
    with pytest.raises(ConnectionResetError):
        async with connected(proxy) as client:
            await client.reader.readline()


async def test_a_refused_connection_works_again_on_the_same_port(proxy: FaultProxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    proxy.heal()
    async with connected(proxy) as client:
        assert await client.ask(b"a\n") == b"a\n"


async def test_what_was_connected_may_stay_when_new_ones_are_refused(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        await client.ask(b"a\n")
        proxy.refuse(cuts=False)
        assert await client.ask(b"b\n") == b"b\n"


async def test_a_limit_passes_exactly_that_many_bytes(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        await client.ask(b"before\n")
        proxy.limit_data(5)
        client.writer.write(b"12\n45678\n")
        assert await client.reader.read(100) + await client.reader.read(100) == b"12\n45"


async def test_a_cut_comes_after_the_server_has_got_it_and_before_its_answer(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client, connected(proxy) as other:
        is_cut = proxy.cut_at(b"COMMIT;")
        assert await client.ask(b"INSERT;\n") == b"INSERT;\n"
        client.writer.write(b"COM")
        await client.writer.drain()
        client.writer.write(b"MIT;\n")
        with pytest.raises(ConnectionResetError):
            await client.reader.readline()
        assert await asyncio.to_thread(is_cut.wait, 5)
        assert echo.lines == [b"INSERT;\n", b"COMMIT;\n"]
        assert await other.ask(b"COMMIT;\n") == b"COMMIT;\n"


async def test_a_cut_may_come_before_the_server_sees_the_message(proxy: FaultProxy, echo: Echo) -> None:
    async with connected(proxy) as client:
        is_cut = proxy.cut_at(b"COMMIT;", is_forwarded=False)
        client.writer.write(b"COMMIT;\n")
        with pytest.raises(ConnectionResetError):
            await client.reader.readline()
        assert await asyncio.to_thread(is_cut.wait, 5)
    assert echo.lines == []


async def test_a_server_that_is_away_is_a_reset() -> None:
    with FaultProxy("127.0.0.1", 1) as proxy:
        with pytest.raises(ConnectionResetError):
            async with connected(proxy) as client:
                await client.reader.readline()
        assert proxy.through("redis://127.0.0.1:1/0") == f"redis://127.0.0.1:{proxy.port}/0"
