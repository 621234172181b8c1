"""A receiver of webhooks and exports on a real socket: it answers as it is told, hangs, or breaks off."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """What came, and what is answered next: a status, ``hang``, ``break`` or ``redirect``; at the end 204."""

    script: list[int | str] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    url: str = ""
    has_news: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.received) < count:
                self.has_news.clear()
                await self.has_news.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:]) if name}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.received.append(Received(head[0].split()[1], headers, body))
            self.has_news.set()
            answer = self.script.pop(0) if self.script else 204
            if answer == "hang":
                await asyncio.sleep(30)
            if answer == "redirect":
                writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
            elif isinstance(answer, int):
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % answer)
            await writer.drain()


@contextlib.asynccontextmanager
async def receiving(*script: int | str) -> AsyncIterator[Receiver]:
    receiver = Receiver(list(script))
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(receiver.serve(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/hook"
    try:
        yield receiver
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the loop closes their sockets in its next turn


@contextlib.contextmanager
def receiver_apart(*script: int | str) -> Iterator[Receiver]:
    """Run a receiver on a loop of its own."""
    loop = asyncio.new_event_loop()
    found: list[Receiver] = []
    is_ready, stopping = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with receiving(*script) as receiver:
            found.append(receiver)
            is_ready.set()
            await stopping.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert is_ready.wait(10)
    yield found[0]
    loop.call_soon_threadsafe(stopping.set)
    thread.join(10)
    loop.close()
