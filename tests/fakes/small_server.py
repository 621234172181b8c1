"""A server of a few lines that answers every request with one script: for what no HTTP library would send."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace

from meterhouse.providers.catalog import PROVIDERS
from meterhouse.providers.provider import ActiveProvider, Timeouts

SECRET = "sk-upstream-secret-1234567890"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def sized(body: bytes, head: bytes = OK) -> bytes:
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


Script = Callable[["Server", asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """Answers every request with the same script and remembers what it was asked."""

    script: Script
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    ended: int = 0
    """Connections that are over."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    endpoint: ActiveProvider = field(init=False)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = next(
                    (int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")), 0
                )
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(length))
                await self.script(self, writer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.ended += 1
            writer.close()


def reply(data: bytes) -> Script:
    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return script


def reply_and_close(data: bytes) -> Script:
    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return script


async def garbage_in_the_body(server: Server, writer: asyncio.StreamWriter) -> None:
    writer.write(SSE + chunk(b"data: 1\n\n"))
    await writer.drain()
    await server.go_on.wait()
    writer.write(b"not a chunk\r\n")


async def reset_in_the_body(server: Server, writer: asyncio.StreamWriter) -> None:
    writer.write(SSE + chunk(b"data: 1\n\n"))
    await writer.drain()
    await server.go_on.wait()
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()


async def never(server: Server, _writer: asyncio.StreamWriter) -> None:
    await server.go_on.wait()


async def one_event_then_wait(server: Server, writer: asyncio.StreamWriter) -> None:
    writer.write(SSE + chunk(b"data: 1\n\n"))
    await writer.drain()
    await server.go_on.wait()
    writer.write(chunk(b"data: 2\n\n") + b"0\r\n\r\n")


@contextlib.asynccontextmanager
async def serving(script: Script, *, tls: ssl.SSLContext | None = None, **timeouts: float) -> AsyncIterator[Server]:
    server = Server(script)
    async with contextlib.AsyncExitStack() as stack:
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(server.serve(reader, writer))
            tasks.add(task)

        listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
        stack.callback(listener.close)
        row = replace(PROVIDERS["openai"], timeouts=Timeouts(**timeouts))
        port = listener.sockets[0].getsockname()[1]
        address = f"http{'s' if tls else ''}://127.0.0.1:{port}/v1"
        server.endpoint = ActiveProvider(provider=row, base_url=address, credential=SECRET)
        yield server
        listener.close()
        await asyncio.sleep(0)  # who was let in just now has a task by then
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
