"""The provider of the benchmark: as cheap as a protocol on uvloop can be, and it counts what it answered.

``GET`` anything answers the number of completions served so far. Trace exports (a path with ``traces``) are taken
and thrown away, so that the server under test really sends them. With a pace, a stream gives so many tokens a second
until ``POST /finish`` ends all.
Invariant: an answer is counted when its last byte was written to a connection that was still open.
"""

import argparse
import asyncio
import gc
import json
from collections import deque
from typing import cast

import uvloop

from benchmark.proc import raise_file_limit
from benchmark.wire import json_answer, stream_answer, stream_end


class Provider:
    """The answers, made once, and the count."""

    def __init__(self, pace: float) -> None:
        self.json_answer = json_answer()
        self.stream_answer = stream_answer()
        self.pause_seconds = 1 / pace if pace else 0.0
        self.is_finishing = False
        self.served = 0


class Connection(asyncio.Protocol):
    """One connection; requests come one after another."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._length = 0
        """Of the whole request; 0: its head is not there yet."""
        self._head = b""
        self._left: deque[bytes] = deque()
        self._tokens = 0
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer when a request is whole."""
        self._buffer += data
        if not self._length:
            head_end = self._buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            self._head = bytes(self._buffer[:head_end]).lower()
            position = self._head.find(b"content-length:")
            length = int(self._head[position + 15 :].split(b"\r\n", 1)[0]) if position >= 0 else 0
            self._length = head_end + 4 + length
        if len(self._buffer) >= self._length:
            body, self._buffer, self._length = self._buffer, bytearray(), 0
            self._answer(self._head, body)

    def _answer(self, head: bytes, body: bytearray) -> None:
        provider = self._provider
        if head.startswith(b"get "):
            text = json.dumps({"object": "list", "data": [], "served": provider.served}).encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text) + text)
        elif b"traces" in head.split(b"\r\n", 1)[0]:
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        elif head.startswith(b"post /finish"):
            provider.is_finishing = True
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        elif b'"stream":true' in body:
            if provider.pause_seconds:
                self._write_paced()
                return
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

    def _write_paced(self) -> None:
        provider = self._provider
        if self._transport.is_closing():
            return
        if provider.is_finishing:
            self._transport.write(stream_end(self._tokens))
            provider.served += 1
            return
        self._transport.write(provider.stream_answer[1 if self._tokens else 0])
        self._due = (self._due if self._tokens else self._loop.time()) + provider.pause_seconds
        self._tokens += 1
        self._loop.call_at(self._due, self._write_paced)


async def serve(port: int, pace: float) -> None:
    """Listen and never return; the first line on standard output is the port."""
    # It leaves nothing to be collected, and a look at ten thousand streams is a tenth of a second of silence.
    gc.disable()
    provider = Provider(pace)
    raise_file_limit()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(provider), "127.0.0.1", port, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--pace", type=float, default=0.0, help="tokens a second of a stream; 0: as fast as it can")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.pace))
