"""What the contract of the upstream client runs over: both clients, on production's event loop and on asyncio's."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from meterhouse.providers.simulator import Simulator
from meterhouse.providers.upstream import ClientName, Upstream


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(params=["httptools", "aiohttp"])
def client(request: pytest.FixtureRequest) -> ClientName:
    return request.param


@pytest.fixture
async def upstream(client: ClientName) -> AsyncIterator[Upstream]:
    async with Upstream(simulator=Simulator(), client=client) as opened:
        yield opened
