"""What the contract of the upstream client runs over: both clients, on production's event loop and on asyncio's.

Where an answer ends is found out without a loop, so that production's is enough for that.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from meterhouse.providers.simulator import Simulator
from meterhouse.providers.upstream import ClientName, Upstream


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"uvloop": uvloop.new_event_loop}
    if item.path.name != "test_framing.py":
        loops["asyncio"] = asyncio.new_event_loop
    return loops


@pytest.fixture(params=["httptools", "aiohttp"])
def client(request: pytest.FixtureRequest) -> ClientName:
    return request.param


@pytest.fixture
async def upstream(client: ClientName) -> AsyncIterator[Upstream]:
    async with Upstream(simulator=Simulator(), client=client) as opened:
        yield opened
