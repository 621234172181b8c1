"""A TCP proxy that breaks the connections which pass through it, as it is told while they run.

It lives on a thread and a loop of its own, so that it goes on while a test's loop is blocked, and can be told things
from tests with and without a loop. Invariant: when a method returns, what it says holds for every byte that has not
been forwarded yet. What a black hole holds back is delivered once it is healed, as TCP does after a partition.
Not here: what the bytes mean; TLS is passed as it is, so that ``cut_at`` cannot look into it.
"""

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Self

from fakes.daemon import free_port

CHUNK_BYTES = 65_536
TAIL_BYTES = 256
"""How long a pattern may be that begins in one chunk and ends in the next."""
LINGER_NOT = struct.pack("ii", 1, 0)

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Direction(Enum):
    """Which way bytes go."""

    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"


BOTH = frozenset(Direction)


@dataclass
class Cut:
    """A connection that will be cut at a message of the client; once only."""

    pattern: re.Pattern[bytes]
    is_forwarded: bool
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class _Toxics:
    latency_seconds: float = 0.0
    held: frozenset[Direction] = frozenset()
    limit_bytes: int | None = None
    resets_new: bool = False
    cuts: tuple[Cut, ...] = ()
    chooses: Callable[[int], bool] | None = None


class FaultProxy:
    """``with FaultProxy("127.0.0.1", server.port) as proxy:``; listens on ``proxy.port`` of 127.0.0.1.

    Args:
        target_host: where the server is.
        target_port: its port.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.target_host = target_host
        self.target_port = target_port
        self.port = free_port()
        self.accepted = 0
        self._toxics = _Toxics()
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._changed = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    def start(self) -> Self:
        """Start the thread and listen."""
        self._thread.start()
        self._run(self._listen())
        return self

    def stop(self) -> None:
        """Cut everything and end the thread."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def open_connections(self) -> int:
        """How many connections pass through it now."""
        return len(self._connections)

    def through(self, url: str) -> str:
        """Return the URL of the server as it is through the proxy."""
        there = f"{self.target_host}:{self.target_port}"
        assert there in url, f"{url} is not an address of {there}"
        return url.replace(there, f"127.0.0.1:{self.port}", 1)

    def heal(self) -> None:
        """Take every fault away and listen again; what was held back is delivered."""
        self._call(lambda: self._set(_Toxics()))
        self._call(lambda: self._each(_Connection.forget_choice))
        self._run(self._listen())

    def only(self, chooses: Callable[[int], bool]) -> None:
        """Let faults meet only the connections from some ports of clients, until ``heal``; not ``refuse``.

        Args:
            chooses: whether a port is one of them; asked once for each connection, on the proxy's thread.
        """
        self._call(lambda: self._set(replace(self._toxics, chooses=chooses)))
        self._call(lambda: self._each(_Connection.forget_choice))

    def delay(self, latency_seconds: float) -> None:
        """Hold every chunk this long, both ways."""
        self._call(lambda: self._set(replace(self._toxics, latency_seconds=latency_seconds)))

    def black_hole(self, *directions: Direction) -> None:
        """Take connections and bytes and pass nothing on, in these directions; in both when none is named."""
        self._call(lambda: self._set(replace(self._toxics, held=frozenset(directions) or BOTH)))

    def reset(self, *, new_too: bool = False) -> None:
        """Cut every connection with an RST; with ``new_too`` also each that is made until ``heal``."""
        self._call(lambda: self._set(replace(self._toxics, resets_new=new_too)))
        self._call(lambda: self._each(_Connection.reset_if_hit))

    def refuse(self, *, cuts: bool = True) -> None:
        """Stop listening, and cut what is connected unless ``cuts`` is False."""
        self._run(self._refuse())
        if cuts:
            self.reset()

    def limit_data(self, limit_bytes: int) -> None:
        """Close each connection when this many more bytes have come from the server."""
        self._call(lambda: self._set(replace(self._toxics, limit_bytes=limit_bytes)))
        self._call(lambda: self._each(_Connection.count_again))

    def cut_at(self, pattern: bytes | re.Pattern[bytes], *, is_forwarded: bool = True) -> threading.Event:
        """Cut the connection of the next client that sends this; returns what is set when that has happened.

        The message is forwarded and the server finishes it, but its answer never comes back: what the client has
        asked for is done, and it cannot know. When the event is set, the server has done it.

        Args:
            pattern: for example ``b"COMMIT;"``, as asyncpg sends it; text is found as it is.
            is_forwarded: False cuts before the server sees it.
        """
        compiled = re.compile(re.escape(pattern)) if isinstance(pattern, bytes) else pattern
        cut = Cut(compiled, is_forwarded)
        self._call(lambda: self._set(replace(self._toxics, cuts=(*self._toxics.cuts, cut))))
        return cut.done

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _call(self, work: Callable[[], object]) -> None:
        async def call() -> None:
            work()

        self._run(call())

    def _set(self, toxics: _Toxics) -> None:
        self._toxics = toxics
        self._changed.set()
        self._changed = asyncio.Event()

    def _each(self, work: Callable[["_Connection"], None]) -> None:
        for connection in tuple(self._connections):
            work(connection)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _refuse(self) -> None:
        if self._listener:
            listener, self._listener = self._listener, None
            for listening in listener.sockets:
                self._loop.remove_reader(listening)
            for _ in range(3):
                # asyncio loses a connection that was accepted, but not handed over yet, when its server closes.
                await asyncio.sleep(0)
            listener.close()

    async def _close(self) -> None:
        await self._refuse()
        self._each(_Connection.reset)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(2):
            # The loop closes the sockets of what was cut in its next round.
            await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._toxics.resets_new and self._is_hit(writer):
            _reset(writer)
            return
        try:
            server = await asyncio.open_connection(self.target_host, self.target_port)
        except OSError:
            _reset(writer)
            return
        connection = _Connection(self, (reader, writer), server)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            connection.close()

    @property
    def toxics(self) -> _Toxics:
        """What is broken now; only for the loop of the proxy."""
        return self._toxics

    async def passed(self, direction: Direction, connection: "_Connection") -> None:
        """Wait out the latency, and a black hole in this direction."""
        if self._toxics.latency_seconds and connection.is_hit:
            await asyncio.sleep(self._toxics.latency_seconds)
        while direction in self._toxics.held and connection.is_hit:
            await self._changed.wait()

    def is_chosen(self, port: int) -> bool:
        """Whether faults meet the connection from a port; only for the loop of the proxy."""
        chooses = self._toxics.chooses
        return chooses is None or chooses(port)

    def _is_hit(self, writer: asyncio.StreamWriter) -> bool:
        return self.is_chosen(_port_of(writer))

    def take_cut(self, seen: bytes) -> Cut | None:
        """Return the first cut whose pattern is in these bytes; it does not cut again."""
        for cut in self._toxics.cuts:
            if cut.pattern.search(seen):
                self._toxics = replace(self._toxics, cuts=tuple(other for other in self._toxics.cuts if other != cut))
                return cut
        return None


class _Connection:
    """One client, its connection to the server, and a pump in each direction."""

    def __init__(self, proxy: FaultProxy, client: Stream, server: Stream) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._from_server_bytes = 0
        self._cut: Cut | None = None
        self._port = _port_of(self._to_client)
        self._is_hit: bool | None = None

    @property
    def is_hit(self) -> bool:
        """Whether faults meet this connection."""
        if self._is_hit is None:
            self._is_hit = self._proxy.is_chosen(self._port)
        return self._is_hit

    def forget_choice(self) -> None:
        self._is_hit = None

    async def run(self) -> None:
        pumps = [asyncio.ensure_future(self._pump_to_server()), asyncio.ensure_future(self._pump_to_client())]
        try:
            await asyncio.gather(*pumps)
        except OSError:
            # One end was cut; the other one learns of it in the same way.
            self.reset()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            if self._cut:
                self.reset()
                self._cut.done.set()

    def reset(self) -> None:
        _reset(self._to_client)
        _reset(self._to_server)

    def reset_if_hit(self) -> None:
        if self.is_hit:
            self.reset()

    def close(self) -> None:
        self._to_client.close()
        self._to_server.close()

    def count_again(self) -> None:
        self._from_server_bytes = 0

    async def _chunks(self, reader: asyncio.StreamReader, direction: Direction) -> AsyncIterator[bytes]:
        while data := await reader.read(CHUNK_BYTES):
            await self._proxy.passed(direction, self)
            yield data
        await self._proxy.passed(direction, self)

    async def _pump_to_server(self) -> None:
        tail = b""
        async for data in self._chunks(self._from_client, Direction.TO_SERVER):
            # From here on no answer goes back. After an end of input both PostgreSQL and Redis finish what they were
            # sent and close, which is how the other pump knows that it is done.
            self._cut = self._proxy.take_cut(tail + data) if self.is_hit else None
            tail = (tail + data)[-TAIL_BYTES:]
            if self._cut and not self._cut.is_forwarded:
                self.reset()
                return
            self._to_server.write(data)
            await self._to_server.drain()
            if self._cut:
                break
        self._to_server.write_eof()

    async def _pump_to_client(self) -> None:
        async for data in self._chunks(self._from_server, Direction.TO_CLIENT):
            if self._cut:
                continue
            limit_bytes = self._proxy.toxics.limit_bytes if self.is_hit else None
            room_bytes = len(data) if limit_bytes is None else limit_bytes - self._from_server_bytes
            self._from_server_bytes += len(data)
            self._to_client.write(data[:room_bytes])
            await self._to_client.drain()
            if len(data) >= room_bytes and limit_bytes is not None:
                self.close()
                await self._to_client.wait_closed()
                return
        if not self._cut:
            self._to_client.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    # A socket that is closed already has no options.
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    writer.transport.abort()


def _port_of(writer: asyncio.StreamWriter) -> int:
    """Return the port of whoever connected; 0 when it is gone already."""
    name = writer.get_extra_info("peername")
    return int(name[1]) if name else 0
