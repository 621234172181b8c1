"""Runs the migrations on the connection that the caller opened, or on the database of ``alembic -x url=...``."""

import asyncio

import sqlalchemy as sa
from alembic import context

from meterhouse.db.engine import close, open_engine, writing
from meterhouse.db.schema import MIGRATION_POLICY, take_turn
from meterhouse.db.tables import is_ours
from meterhouse.db.tables_billing import metadata


def _run_on(connection: sa.Connection) -> None:
    # SQLite's DDL is transactional too once the driver does not interfere: all of an upgrade happens, or nothing.
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True, include_name=is_ours)
    with context.begin_transaction():
        context.run_migrations()


async def _run_alone() -> None:
    url = context.get_x_argument(as_dictionary=True).get("url")
    if not url:
        raise SystemExit("Say which database: alembic -x url=sqlite+aiosqlite:////path/to/file.db upgrade head")
    engine = open_engine(url, MIGRATION_POLICY)
    try:
        async with writing(engine) as connection:
            await take_turn(connection)
            await connection.run_sync(_run_on)
    finally:
        await close(engine)


_given = context.config.attributes.get("connection")
if _given is None:
    asyncio.run(_run_alone())
else:
    _run_on(_given)
