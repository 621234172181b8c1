"""A provider and a gateway for each module; what must hold whenever everything is over is checked at the end of each.

A module says its own settings in ``SETTINGS`` (a dictionary of variables), or in ``settings(up)`` which returns one.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from failure.bench import Bench
from fakes.files import FaultyFiles
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream


@pytest.fixture(scope="module")
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def files() -> FaultyFiles:
    """The gateway's file layer; whoever breaks it heals it."""
    return FaultyFiles()


@pytest.fixture(scope="module")
def gateway(
    request: Any, up: FakeUpstream, files: FaultyFiles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    make = getattr(request.module, "settings", lambda _: getattr(request.module, "SETTINGS", {}))
    settings = {"METERHOUSE_SHIP_SECONDS": "0.01", **make(up)}
    environment = provider_environment("fake", up.base_url, **settings)
    with Gateway(tmp_path_factory.mktemp("failure") / "data", environment, files=files) as running:
        yield running


@pytest.fixture(scope="module")
def bench(gateway: Gateway, up: FakeUpstream) -> Iterator[Bench]:
    """What the tests ask and look with; at the end, nothing may be left open, held, or logged as a failure."""
    bench = Bench(gateway, up)
    yield bench
    bench.check_rest()
