"""Connections to nginx that are made of one socket, so that a test decides about every byte."""

import json
import socket
import ssl
from typing import Any

from fakes.nginx_server import NAME, NginxServer


def connect(edge: NginxServer, *, name: str | None = NAME, source: str = "", **context: Any) -> ssl.SSLSocket:
    """Open a connection of TLS.

    Args:
        edge: where to.
        name: of the handshake (SNI); None: none.
        source: an address of this machine to come from.
        context: attributes of the SSL context.
    """
    trust = edge.trust()
    trust.check_hostname = name is not None
    for attribute, value in context.items():
        setattr(trust, attribute, value)
    plain = socket.create_connection(("127.0.0.1", edge.port), 10, (source, 0) if source else None)
    try:
        return trust.wrap_socket(plain, server_hostname=name)
    except BaseException:
        plain.close()
        raise


def ask(connection: socket.socket, text: str) -> tuple[int, dict[str, str], bytes]:
    """Send a request without a body, read the answer, and close the connection."""
    connection.sendall(text.replace("\n", "\r\n").encode() + b"connection: close\r\n\r\n")
    return read_answer(connection)


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read an answer that says its length, or to the end, and close the connection; status 0: there was none."""
    data = b""
    with connection:
        while not is_whole(data) and (piece := receive(connection)):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]) if first else 0, headers, body


def is_whole(data: bytes) -> bool:
    head, _, body = data.partition(b"\r\n\r\n")
    _, mark, rest = head.lower().partition(b"content-length: ")
    return bool(mark) and len(body) >= int(rest.split()[0])


def receive(connection: socket.socket) -> bytes:
    """Read once; empty at the end, however it came."""
    try:
        return connection.recv(65_536)
    except (ConnectionError, ssl.SSLEOFError):
        return b""


def error_of(body: bytes) -> dict[str, Any]:
    """Return the error of an answer that has OpenAI's envelope, and nothing else."""
    found = json.loads(body)
    assert set(found) == {"error"}, found
    assert set(found["error"]) == {"message", "type", "param", "code"}, found
    error: dict[str, Any] = found["error"]
    return error
