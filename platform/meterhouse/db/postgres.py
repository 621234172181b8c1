"""What is PostgreSQL's alone: how a connection is opened, and the partitions of the usage records.

Invariant: no statement outlasts the policy's bound, whether PostgreSQL is slow, locked or stopped. Not here: the
pool, transactions and what an error means (``db.engine``).
"""

from typing import Any
from urllib.parse import parse_qsl, urlencode

import asyncpg  # type: ignore[import-untyped]
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from meterhouse.db.policy import EnginePolicy

CLIENT_GRACE_SECONDS = 0.5
"""How much later than PostgreSQL the client gives up on a statement."""
IDLE_IN_TRANSACTION_MS = 10_000
MOST_IDLE_MS = 60_000
"""For a command that may take long: between two statements it works on what may be a whole organization's rows."""
MOST_DEFAULT_ROWS = 100_000
"""Where counting the default partition ends: the figure is an alarm, not a statistic."""

_ONLY_LIBPQ_KNOWS = frozenset(
    {
        *("connect_timeout", "client_encoding", "fallback_application_name", "channel_binding", "gssencmode"),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        *("requiressl", "sslcompression", "sslcrldir", "sslsni", "replication", "prepared_statement_cache_size"),
    }
)


def dsn_of(url: str) -> str:
    """Return a URL as asyncpg takes it: with no driver in its scheme, nor parameters that only libpq knows.

    ``host``, ``sslmode``, ``sslrootcert`` and what else asyncpg knows stay; the rest are settings of the session.
    """
    _, _, rest = url.partition("://")
    address, _, query = rest.partition("?")
    kept = [(name, value) for name, value in parse_qsl(query) if name not in _ONLY_LIBPQ_KNOWS]
    return f"postgresql://{address}" + (f"?{urlencode(kept)}" if kept else "")


def _idle_ms(policy: EnginePolicy) -> int:
    return min(max(IDLE_IN_TRANSACTION_MS, _ms(policy.statement_timeout_seconds)), MOST_IDLE_MS)


async def open_connection(dsn: str, policy: EnginePolicy) -> Any:
    """Open a connection whose every statement is bounded; raises what asyncpg raises."""
    settings = {
        "statement_timeout": f"{_ms(policy.statement_timeout_seconds)}",
        "lock_timeout": f"{_ms(policy.lock_timeout_seconds)}",
        "idle_in_transaction_session_timeout": f"{_idle_ms(policy)}",
        # The server forgets a client whose host is gone after about a minute, and with it its locks.
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
        # Compiling a plan that sums over partitions costs more than it saves here.
        "jit": "off",
    }
    if "application_name=" not in dsn:
        settings["application_name"] = policy.application_name
    return await asyncpg.connect(
        dsn,
        timeout=policy.connect_timeout_seconds,
        command_timeout=policy.statement_timeout_seconds + CLIENT_GRACE_SECONDS,
        server_settings=settings,
    )


def hang_up(connection: Any, record: object) -> None:
    """End a connection that the pool closes at once, without a word to a server that may not listen.

    A listener of the pool's event ``close``. The driver itself would wait for an answer, connection by connection.
    """
    del record
    connection.driver_connection.terminate()


async def cut(connection: AsyncConnection) -> None:
    """Drop a connection, whatever it is doing; its place in the pool is free."""
    if connection.sync_connection is not None and not (connection.invalidated or connection.closed):
        await connection.invalidate()


async def make_partitions(connection: AsyncConnection, months_ahead: int) -> int:
    """Make the partitions from last month's up to some months ahead that are not there; returns how many."""
    made = await connection.scalar(sa.text("SELECT ensure_usage_partitions(:months)"), {"months": months_ahead})
    return int(made or 0)


async def count_rows_of_default(connection: AsyncConnection) -> int:
    """Count the usage records that are in no month's partition, up to ``MOST_DEFAULT_ROWS``."""
    counted = await connection.scalar(
        sa.text("SELECT count(*) FROM (SELECT 1 FROM usage_record_default LIMIT :most) AS found"),
        {"most": MOST_DEFAULT_ROWS},
    )
    return int(counted or 0)


def is_postgres(engine: AsyncEngine | AsyncConnection) -> bool:
    """Say whether the other side is PostgreSQL, not SQLite."""
    return engine.dialect.name == "postgresql"


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)
