"""The clock that goes by PostgreSQL's."""

import time

import pytest

from fakes.proxy import FaultProxy
from fakes.servers import PostgresServer
from meterhouse.db import clock as module
from meterhouse.db.clock import DatabaseClock
from meterhouse.db.engine import close, open_engine
from meterhouse.errors import StoreDown

HOUR_NS = 3_600 * 10**9
NEAR_MS = 500


async def test_it_goes_by_the_database_and_on_without_it(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy("127.0.0.1", postgres_server.port) as proxy:
        engine = open_engine(proxy.through(postgres_server.url_of("postgres")))
        try:
            monkeypatch.setattr(module, "time_ns", lambda: time.time_ns() + HOUR_NS)
            clock = DatabaseClock(engine)
            true_ms = time.time_ns() // 1_000_000
            assert clock.now_ms() - true_ms >= HOUR_NS // 1_000_000
            await clock.synchronize()
            assert abs(clock.now_ms() - time.time_ns() // 1_000_000) < NEAR_MS
            proxy.reset(new_too=True)
            with pytest.raises(StoreDown):
                await clock.synchronize()
            assert abs(clock.now_ms() - time.time_ns() // 1_000_000) < NEAR_MS
        finally:
            await close(engine)


async def test_an_answer_that_took_too_long_is_left_unused(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(postgres_server.url_of("postgres"))
    try:
        clock = DatabaseClock(engine)
        monkeypatch.setattr(module, "time_ns", lambda: HOUR_NS)
        monkeypatch.setattr(module, "LONGEST_ANSWER_MS", -1)
        await clock.synchronize()
        assert clock.now_ms() == HOUR_NS // 1_000_000
    finally:
        await close(engine)
