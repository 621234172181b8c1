"""The provider of the benchmark: as cheap as a protocol on uvloop can be, and it counts what it answered.

``GET`` anything answers the number of completions served so far. Trace exports (a path with ``traces``) are taken
and thrown away, so that the server under test really sends them.
Invariant: an answer is counted when its last byte was written to a connection that was still open.
"""

import argparse
import asyncio
import json
from collections import deque
from typing import cast

import uvloop

from benchmark.wire import json_answer, stream_answer


class Provider:
    """The answers, made once, and the count."""

    def __init__(self) -> None:
        self.json_answer = json_answer()
        self.stream_answer = stream_answer()
        self.served = 0


class Connection(asyncio.Protocol):
    """One connection; requests come one after another."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._left: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer when a request is whole."""
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        position = head.find(b"content-length:")
        length = int(head[position + 15 :].split(b"\r\n", 1)[0]) if position >= 0 else 0
        if len(self._buffer) < head_end + 4 + length:
            return
        body, self._buffer = self._buffer[head_end + 4 :], b""
        self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        provider = self._provider
        if head.startswith(b"get "):
            text = json.dumps({"object": "list", "data": [], "served": provider.served}).encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text) + text)
        elif b"traces" in head.split(b"\r\n", 1)[0]:
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        elif b'"stream":true' in body:
            self._left.extend(provider.stream_answer)
            self._write_next()
        else:
            self._transport.write(provider.json_answer)
            provider.served += 1

    def _write_next(self) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(self._left.popleft())
        if self._left:
            # One turn of the loop for each token: within a turn uvloop would join the writes.
            self._loop.call_soon(self._write_next)
        else:
            self._provider.served += 1


async def serve(port: int) -> None:
    """Listen and never return; the first line on standard output is the port."""
    provider = Provider()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(provider), "127.0.0.1", port, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    uvloop.run(serve(parser.parse_args().port))
