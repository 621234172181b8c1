"""Statements on the benchmark's own PostgreSQL, as the role that owns the schema."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg

from benchmark.servers import BenchError
from stack.place import Place

Result = TypeVar("Result")

STATEMENT_SECONDS = 3600


def run_as_owner(place: Place, work: Callable[[Any], Awaitable[Result]]) -> Result:
    """Do some work on a connection; raises BenchError when PostgreSQL does not do it."""

    async def run() -> Result:
        connection = await asyncpg.connect(place.owner_url, timeout=5, command_timeout=STATEMENT_SECONDS)
        try:
            return await work(connection)
        finally:
            await connection.close(timeout=5)

    try:
        return asyncio.run(run())
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise BenchError(f"PostgreSQL did not do it: {error!r}") from None
