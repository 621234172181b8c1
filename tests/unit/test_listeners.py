"""What a connection has from its listener: the bound of what the kernel keeps for its client, and both addresses."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fakes.link_bench import until
from meterhouse.dev import bind
from meterhouse.http.connection import KERNEL_BYTES, Connection
from meterhouse.worker import FleetServer

PATIENCE_SECONDS = 30
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def say_addresses(scope: Scope, _receive: Receive, send: Send) -> None:
    client = scope["client"] and (scope["client"][0], type(scope["client"][1]).__name__)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{scope['server']} {client}".encode()})


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
@pytest.mark.parametrize("place", ["127.0.0.1", "::1", "unix"])
def test_both_addresses_of_a_connection_are_those_that_uvicorn_says(
    place: str, loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    address: Any = str(tmp_path / "socket") if place == "unix" else (place, 0)
    family = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}.get(place, socket.AF_UNIX)
    with socket.socket(family) as listener, asyncio.Runner(loop_factory=loop) as runner:
        listener.bind(address)
        listener.listen()
        said = [runner.run(hear(protocol, listener)) for protocol in (HttpToolsProtocol, Connection)]
    assert said[0] == said[1]
    assert b"200 OK" in said[0]


async def hear(protocol: type[asyncio.Protocol], listener: socket.socket) -> bytes:
    """Return what a client of the listener is answered; the listener stays."""
    server = await serving(uvicorn.Server, protocol, listener.dup())
    with socket.socket(listener.family) as client:
        client.setblocking(False)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.get_running_loop().sock_connect(client, listener.getsockname())
            reader, writer = await asyncio.open_connection(sock=client)
            writer.write(REQUEST)
            said = await reader.read()
        writer.close()
        await writer.wait_closed()
    await close(server)
    return said


@pytest.mark.parametrize("runs_worker", [False, True])
async def test_what_a_client_does_not_read_is_bounded_in_the_kernel(*, runs_worker: bool) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        bound_bytes = other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if runs_worker:
        gateway: Any = SimpleNamespace(settings=SimpleNamespace(shutdown_seconds=1.0))
        make, listener = partial(FleetServer, gateway=gateway, on_started=int), socket.create_server(("127.0.0.1", 0))
    else:
        make, listener = uvicorn.Server, bind("127.0.0.1", 0)
    place = listener.getsockname()
    server = await serving(make, Connection, listener)
    _, writer = await asyncio.open_connection(*place)
    await until(lambda: bool(server.server_state.connections))
    (connection,) = server.server_state.connections
    used = connection.transport.get_extra_info("socket")
    assert used.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == bound_bytes
    writer.close()
    await writer.wait_closed()
    await close(server)


async def serving(
    make: Callable[[Config], uvicorn.Server], protocol: type[asyncio.Protocol], listener: socket.socket
) -> uvicorn.Server:
    config = Config(say_addresses, http=protocol, lifespan="off", log_config=None, ws="none", access_log=False)
    config.load()
    server = make(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    return server


async def close(server: uvicorn.Server) -> None:
    """Accept no more, and wait until the last connection is gone."""
    for one in server.servers:
        one.close()
    await until(lambda: not server.server_state.connections)
