"""What an operator should know of a PostgreSQL before it serves: its version, its room, its clock, the role's rights.

Not here: what of it is good or bad (``checkup``), and the schema's revision (``db.schema``).
"""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from meterhouse.db.engine import reading

_ASKED = sa.text(
    """
    SELECT current_setting('server_version') AS version,
           current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS room,
           CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint) AS now_ms,
           (SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout') AS statement_timeout_ms,
           current_user AS role,
           (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser,
           COALESCE(has_table_privilege(to_regclass('usage_record'), 'DELETE'), false) AS may_delete
    """
)


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What PostgreSQL says of itself and of the role that asks."""

    version: str
    room: int
    """How many connections the role may open, over all processes."""
    now_ms: int
    statement_timeout_ms: int
    """What bounds the statements of the session that asked; 0 where nothing does."""
    role: str
    is_superuser: bool
    may_delete: bool
    """Whether the role may delete usage records."""


async def read_facts(engine: AsyncEngine) -> DatabaseFacts:
    """Ask PostgreSQL; raises StoreDown."""
    async with reading(engine) as connection:
        row = (await connection.execute(_ASKED)).mappings().one()
    return DatabaseFacts(**row)
