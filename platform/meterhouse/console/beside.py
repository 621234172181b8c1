"""Runs the console beside ``meterhouse dev``, as a process of its own that ends with it."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

HOST = "127.0.0.1"
PORT_TRIES = 100
END_SECONDS = 3.0


@asynccontextmanager
async def console_beside(gateway_url: str, port: int) -> AsyncIterator[str]:
    """Start the console on the first free port from this one on; gives its address, before it answers there."""
    bind = f"{HOST}:{_first_free(port)}"
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "meterhouse"),
        "console",
        "--url",
        gateway_url,
        "--bind",
        bind,
        "--with-parent",
        stdin=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield f"http://{bind}"
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), END_SECONDS)
        with suppress(ProcessLookupError):
            process.kill()


def _first_free(port: int) -> int:
    for tried in range(port, port + PORT_TRIES):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, tried))
            return tried
    return port
