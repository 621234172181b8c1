"""Whoever writes to a SQLite file waits in turn, and keeps nobody who reads waiting."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from fakes.store import url_of
from meterhouse.db.engine import close, open_engine, reading, writing
from meterhouse.db.policy import EnginePolicy
from meterhouse.errors import StoreDown

WAIT_SECONDS = 0.3
COUNT = sa.text("SELECT count(*) FROM names")


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    policy = EnginePolicy(connections=2, acquire_timeout_seconds=WAIT_SECONDS, busy_timeout_seconds=WAIT_SECONDS)
    opened = open_engine(url_of(tmp_path / "names.db"), policy)
    async with writing(opened) as connection:
        await connection.execute(sa.text("CREATE TABLE names (name TEXT)"))
    yield opened
    await close(opened)


async def write(engine: AsyncEngine, name: str) -> None:
    async with writing(engine) as connection:
        await connection.execute(sa.text("INSERT INTO names VALUES (:name)"), {"name": name})


async def count(engine: AsyncEngine) -> int:
    async with reading(engine) as connection:
        return int((await connection.execute(COUNT)).scalar_one())


async def names(engine: AsyncEngine) -> list[str]:
    async with reading(engine) as connection:
        return list((await connection.execute(sa.text("SELECT name FROM names ORDER BY rowid"))).scalars())


async def test_writers_write_in_the_order_in_which_they_came_and_readers_do_not_wait(engine: AsyncEngine) -> None:
    async with writing(engine) as connection:
        writers = [asyncio.create_task(write(engine, str(i))) for i in range(20)]
        await asyncio.sleep(0.05)
        assert await count(engine) == 0
        await connection.execute(sa.text("INSERT INTO names VALUES ('first')"))
    await asyncio.gather(*writers)
    assert await names(engine) == ["first", *map(str, range(20))]


async def test_one_that_is_cancelled_or_fails_keeps_nobody_from_the_turn(engine: AsyncEngine) -> None:
    async with writing(engine):
        waiting, next_one = (asyncio.create_task(write(engine, name)) for name in ("cancelled", "next"))
        await asyncio.sleep(0.02)
        waiting.cancel()
    await next_one
    with pytest.raises(ZeroDivisionError):
        await _fail(engine)
    holder = asyncio.create_task(_hold(engine))
    await asyncio.sleep(0.02)
    holder.cancel()
    await write(engine, "last")
    assert await names(engine) == ["next", "last"]


async def test_a_turn_that_does_not_end_is_not_waited_for_without_end(engine: AsyncEngine) -> None:
    async with writing(engine):
        began = time.monotonic()
        with pytest.raises(StoreDown):
            await write(engine, "late")
        assert WAIT_SECONDS * 0.9 < time.monotonic() - began < WAIT_SECONDS + 5
    await write(engine, "in time")
    assert await names(engine) == ["in time"]


async def test_the_lock_of_another_process_is_waited_for_with_one_connection(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "names.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writers = [asyncio.create_task(write(engine, str(i))) for i in range(5)]
        await asyncio.sleep(0.05)
        assert await count(engine) == 0
        other.execute("ROLLBACK")
        await asyncio.gather(*writers)
        assert await count(engine) == 5
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreDown) as caught:
            await write(engine, "late")
        assert "database is locked" in caught.value.detail


async def _fail(engine: AsyncEngine) -> None:
    async with writing(engine) as connection:
        await connection.execute(sa.text("INSERT INTO names VALUES ('undone')"))
        raise ZeroDivisionError


async def _hold(engine: AsyncEngine) -> None:
    async with writing(engine) as connection:
        await connection.execute(sa.text("INSERT INTO names VALUES ('held')"))
        await asyncio.sleep(60)
