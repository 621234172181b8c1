"""An HTTP/2 client of one socket that does with GOAWAY what the protocol says: what was begun is read to its end.

The official SDK's own client drops all streams of a connection that says GOAWAY, also those that the server goes on
with (httpcore2 2.16), and so does h2 by itself (4.4), so that a reload of nginx would look like cut streams.
"""

import json
import socket
import ssl
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Self

import h2.connection
import h2.events

from fakes.nginx_server import NAME, NginxServer

READ_BYTES = 65_536
FRAME_HEAD_BYTES = 9
GOAWAY = 7


class H2Client:
    """``with H2Client(edge) as client:``; ``post`` begins a stream, ``read_until`` reads for all of them."""

    def __init__(self, edge: NginxServer) -> None:
        self._edge = edge
        self.bodies: dict[int, bytes] = defaultdict(bytes)
        self.headers: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()
        """Streams that ended whole."""
        self.was_told_to_go = False
        self._unread = b""

    def __enter__(self) -> Self:
        trust = self._edge.trust()
        trust.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", self._edge.port), 20)
        self._socket: ssl.SSLSocket = trust.wrap_socket(plain, server_hostname=NAME)
        assert self._socket.selected_alpn_protocol() == "h2"
        self._connection = h2.connection.H2Connection()
        self._connection.initiate_connection()
        self._send()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def post(self, path: str, body: Any, key: str) -> int:
        """Send a request; returns its stream."""
        stream = int(self._connection.get_next_available_stream_id())
        head = {":method": "POST", ":path": path, ":scheme": "https", ":authority": NAME}
        head |= {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._connection.send_headers(stream, list(head.items()))
        self._connection.send_data(stream, json.dumps(body).encode(), end_stream=True)
        self._send()
        return stream

    def read_until(self, stream: int, mark: bytes = b"") -> bytes:
        """Read until a stream's body holds a mark (empty: until it has ended); returns the body so far."""
        while not (stream in self.ended or (mark and mark in self.bodies[stream])):
            data = self._socket.recv(READ_BYTES)
            assert data, f"the connection was closed after {self.bodies[stream][-200:]!r}"
            for frame in self._frames(data):
                for event in self._connection.receive_data(frame):
                    self._take(event)
            self._send()
        return self.bodies[stream]

    def _frames(self, data: bytes) -> Iterator[bytes]:
        """Return the whole frames that have come, without GOAWAY, which only forbids new streams."""
        self._unread += data
        while len(self._unread) >= FRAME_HEAD_BYTES:
            length = FRAME_HEAD_BYTES + int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < length:
                return
            frame, self._unread = self._unread[:length], self._unread[length:]
            if frame[3] == GOAWAY:
                self.was_told_to_go = True
            else:
                yield frame

    def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] += event.data
            self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.ResponseReceived):
            self.headers[event.stream_id] = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        else:
            assert not isinstance(event, h2.events.StreamReset), event

    def _send(self) -> None:
        if data := self._connection.data_to_send():
            self._socket.sendall(data)
