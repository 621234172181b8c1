"""How the tests of the upstream client ask, and wait for what must come to be."""

import asyncio
from collections.abc import Callable

from fakes.small_server import Server
from meterhouse.providers.answer import Answer
from meterhouse.providers.upstream import Upstream


async def ask(
    upstream: Upstream, server: Server, *, is_streamed: bool = True, body: bytes = b"{}", **options: object
) -> Answer:
    return await upstream.open(server.endpoint, "/chat/completions", body, is_streamed=is_streamed, **options)


async def until(is_true: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if is_true():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to be")
