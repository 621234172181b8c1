"""Starts the console: a process of its own, without access to any store."""

import ipaddress
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


def run_console(url: str, bind: str, names: list[str], ca_file: str | None, *, is_secure: bool) -> None:
    """Serve until told to stop.

    Raises:
        ConsoleRefused: An address cannot be used, or other hosts could reach it without a name to check.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConsoleRefused(f"--url {url}: expected the gateway's address, for example http://127.0.0.1:8000.")
    host, port = read_bind(bind)
    if not _is_loopback(host) and not names:
        raise ConsoleRefused(
            f"--bind {bind} is reached by other hosts: say with --name under which host name, and put TLS before it."
        )
    options = ConsoleOptions(gateway_url=url, hosts=LOOPBACK | {host, *names}, ca_file=ca_file, is_secure=is_secure)
    config = uvicorn.Config(
        build_console(options),
        host=host.strip("[]"),
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
