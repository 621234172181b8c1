"""Benches of every kind of meter, for the suites that all meters must pass."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakes.meter_bench import Bench, cluster_bench, open_bench, timed_bench


@pytest.fixture(params=["memory", "redis"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """A meter whose clock the test may move."""
    if request.param == "memory":
        async with open_bench(Bench()) as bench:
            yield bench
    else:
        async with timed_bench(request.getfixturevalue("timed_redis_server"), tmp_path) as bench:
            yield bench


@pytest.fixture(params=["memory", "redis", "cluster"])
async def still_bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """A meter for what takes no time: nobody moves its clock."""
    if request.param == "memory":
        async with open_bench(Bench()) as bench:
            yield bench
    elif request.param == "redis":
        async with timed_bench(request.getfixturevalue("timed_redis_server"), tmp_path) as bench:
            yield bench
    else:
        async with cluster_bench(request.getfixturevalue("redis_cluster"), tmp_path) as bench:
            yield bench
