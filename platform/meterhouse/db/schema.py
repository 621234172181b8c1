"""The schema: brings a database to the newest migration, says whether it is, and grants the application its rights.

Invariant: an upgrade happens whole or not at all, and once, however many processes ask for it at a time. It waits for
no lock longer than the requests of the running application bear, but lets go and tries again. Not here: the
migrations themselves (``alembic/``).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from meterhouse.db.engine import DEADLOCK, LOCK_NOT_AVAILABLE, close, open_engine, reading, write_again
from meterhouse.db.policy import EnginePolicy
from meterhouse.db.postgres import count_rows_of_default, is_postgres, make_partitions
from meterhouse.db.rights import grant_rights
from meterhouse.errors import StoreDown

MONTHS_AHEAD = 3
MIGRATION_POLICY = EnginePolicy(
    connections=1, statement_timeout_seconds=600, lock_timeout_seconds=0.4, application_name="meterhouse migrate"
)

_TURN_SECONDS = 60
_TRIES = 30


async def upgrade(url: str, migrations: Path, application_url: str | None = None) -> bool:
    """Bring the schema to the newest migration, in one transaction; says whether there was anything to do.

    Safe to call any number of times and from several processes, and while the application runs. Alembic, whose
    import takes 0.3 s, is imported only when there is something to do.

    Args:
        url: the database, as the role that owns the schema.
        migrations: the folder that holds ``env.py`` and ``versions/``.
        application_url: the same database as the role of the application; when that is another one, it is granted
            exactly what the application needs, and loses what else it was granted. PostgreSQL only.

    Raises:
        StoreDown: the database cannot be opened, is in use all the time, or a newer version of Meterhouse has
            changed it; or the two URLs are of different databases.
    """
    engine = open_engine(url, MIGRATION_POLICY)
    try:
        role = None if application_url is None else await _role_of(engine, application_url)
        is_behind = await _is_behind(engine, newest_revision(migrations))
        if is_behind:
            await _in_turn(engine, partial(_upgrade_on, migrations))
        if role is not None:
            await _in_turn(engine, partial(grant_rights, role))
    finally:
        await close(engine)
    return is_behind


async def check_schema(engine: AsyncEngine, migrations: Path) -> str:
    """Return the revision of the schema, when this version of Meterhouse can work with it.

    A newer one is taken: every migration leaves the statements of the release before it working, so that old and new
    processes run side by side during a deploy.

    Raises:
        StoreDown: The schema is missing or behind, or there is no database.
    """
    async with reading(engine) as connection:
        current = await connection.run_sync(_current_revision)
    head = newest_revision(migrations)
    if current is None or current < head:
        state = "has no schema" if current is None else f"has schema {current}"
        raise StoreDown(f"The database {state}, this version of Meterhouse needs {head}: run `meterhouse migrate`.")
    return current


async def ensure_partitions(engine: AsyncEngine, months_ahead: int = MONTHS_AHEAD) -> int:
    """Make the partitions of the coming months that are not there; returns how many. To be called once an hour.

    Nothing to do on SQLite. Writers and readers wait at most 0.2 s; where they keep it waiting longer it gives up.

    Raises:
        StoreDown: There is no database, or it was too busy just now; the next hour is soon enough.
    """
    if not is_postgres(engine):
        return 0
    return await write_again(engine, partial(make_partitions, months_ahead=months_ahead))


async def count_default_rows(engine: AsyncEngine) -> int:
    """Return how many usage records are in no month's partition, at most 100,000; anything above 0 is an alarm.

    Such records are complete and are found, but their month can have no partition any more. It takes a request id
    from more than ``MONTHS_AHEAD`` months ahead, or from before the installation.
    """
    if not is_postgres(engine):
        return 0
    async with reading(engine) as connection:
        return await count_rows_of_default(connection)


def newest_revision(migrations: Path) -> str:
    """Return the newest revision by the names of the version files: ``0001_<words>.py`` holds revision 0001."""
    return max(path.name.partition("_")[0] for path in (migrations / "versions").glob("[0-9]*_*.py"))


async def take_turn(connection: AsyncConnection) -> None:
    """Wait on PostgreSQL until nobody else changes the schema; on SQLite the transaction says so already."""
    if not is_postgres(connection):
        return
    lock_timeout = await connection.scalar(sa.text("SELECT current_setting('lock_timeout')"))
    change = sa.text("SELECT set_config('lock_timeout', :value, true)")
    await connection.execute(change, {"value": f"{_TURN_SECONDS}s"})
    await connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('meterhouse migrate'))"))
    await connection.execute(change, {"value": lock_timeout})


async def _is_behind(engine: AsyncEngine, head: str) -> bool:
    async with reading(engine) as connection:
        current = await connection.run_sync(_current_revision)
    if current is not None and current > head:
        raise StoreDown(f"The database has schema {current}, this version of Meterhouse knows {head}: upgrade it.")
    return current != head


async def _in_turn(engine: AsyncEngine, work: Callable[[sa.Connection], None]) -> None:
    async def turn(connection: AsyncConnection) -> None:
        await take_turn(connection)
        await connection.run_sync(work)

    await write_again(engine, turn, frozenset({DEADLOCK, LOCK_NOT_AVAILABLE}), _TRIES)


async def _role_of(engine: AsyncEngine, application_url: str) -> str | None:
    """Return the role behind a URL, None when it is the one that owns the schema."""
    if not is_postgres(engine):
        return None
    asked = sa.text("SELECT current_user, current_database()")
    application = open_engine(application_url, replace(MIGRATION_POLICY, statement_timeout_seconds=2))
    try:
        async with reading(application) as connection:
            role, database = (await connection.execute(asked)).one()
    finally:
        await close(application)
    async with reading(engine) as connection:
        owner, owned = (await connection.execute(asked)).one()
    if owned != database:
        raise StoreDown(f"The database to migrate is {owned}, but the application's is {database}.")
    return None if role == owner else str(role)


def _current_revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


def _upgrade_on(migrations: Path, connection: sa.Connection) -> None:
    from alembic import command  # noqa: PLC0415 - costs 0.3 s, and is needed only to change a schema
    from alembic.config import Config  # noqa: PLC0415 - the same

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    command.upgrade(config, "head")
