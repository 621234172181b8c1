"""Starts the console: a process of its own, without access to any store."""

import ipaddress
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvicorn

from meterhouse.console.app import ConsoleOptions, build_console

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
KEEP_ALIVE_SECONDS = 15


class ConsoleRefused(Exception):
    """It cannot be started like this; the text says what to change."""


def read_bind(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``.

    Raises:
        ConsoleRefused: It is none.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:  # noqa: PLR2004 - the last port
        raise ConsoleRefused(f"--bind {text}: expected HOST:PORT, for example 127.0.0.1:8600.")
    return host, int(port)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleOrder:
    """How the console is to be served."""

    url: str
    bind: str
    names: tuple[str, ...] = ()
    ca_file: str | None = None
    trace_url: str | None = None
    is_secure: bool = False
    ends_with_parent: bool = False
    """It stops when its standard input is closed, which happens when whoever started it is gone."""


def run_console(order: ConsoleOrder, on_listening: Callable[[], None] = lambda: None) -> None:
    """Serve until told to stop; ``on_listening`` is called once nothing stands in the way.

    Raises:
        ConsoleRefused: An address or the file of certificates cannot be used, or other hosts could reach it without a
            name to check.
    """
    parts = urlsplit(order.url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConsoleRefused(f"--url {order.url}: expected the gateway's address, for example http://127.0.0.1:8000.")
    trace = urlsplit(order.trace_url or "https://unset/{trace_id}")
    if trace.scheme not in {"http", "https"} or not trace.hostname or "{trace_id}" not in trace.geturl():
        raise ConsoleRefused(f"--trace-url {order.trace_url}: expected an address with {{trace_id}} in it.")
    _check_certificates(order.ca_file)
    host, port = read_bind(order.bind)
    if not _is_loopback(host) and not order.names:
        raise ConsoleRefused(
            f"--bind {order.bind} is reached by other hosts: name it with --name HOST, and put TLS before it."
        )
    options = ConsoleOptions(
        gateway_url=order.url,
        hosts=LOOPBACK | {host, *order.names},
        ca_file=order.ca_file,
        trace_url=order.trace_url,
        is_secure=order.is_secure,
    )
    config = uvicorn.Config(
        build_console(options),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=2,
    )
    with _listen(host.strip("[]"), port) as listener:
        server = uvicorn.Server(config)
        if order.ends_with_parent:
            threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
        on_listening()
        server.run(sockets=[listener])


def _check_certificates(path: str | None) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:
        raise ConsoleRefused(f"--ca-file {path} cannot be read as certificates: {error}.") from None


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConsoleRefused(f"Cannot listen on {host} port {port}: {error.strerror}. Choose another --bind.") from None
    return listener


def _end_with_parent(server: uvicorn.Server) -> None:
    sys.stdin.buffer.read()
    server.should_exit = True


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
