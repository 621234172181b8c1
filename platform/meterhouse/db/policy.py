"""How a database is used: how many connections, and how long anything may take.

Not here: the database itself (``db.engine``).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EnginePolicy:
    """The bounds of one engine. Each process has its own.

    PostgreSQL must take ``connections`` of every worker at once, three more for sums and invoices, and three of the
    clerk of a host; during a reload the old processes of a host leave while the new ones serve: ``max_connections`` >=
    hosts x (2 x (workers x (``connections`` + 3) + 3) + 1 for a command) + ``superuser_reserved_connections``. With 2
    hosts of 4 workers and 5 connections each that is 2 x (70 + 1) + 3 = 145; PostgreSQL's default is 100.
    """

    connections: int = 5
    """Most connections of this process; who wants one more waits for ``acquire_timeout_seconds``."""
    acquire_timeout_seconds: float = 2.0
    """Longest wait for a connection, opening it included."""
    connect_timeout_seconds: float = 2.0
    statement_timeout_seconds: float = 2.0
    """Longest statement. PostgreSQL ends it; where PostgreSQL itself hangs, the client does half a second later."""
    lock_timeout_seconds: float = 0.5
    busy_timeout_seconds: float = 10.0
    """How long whoever writes to a SQLite file waits for this process's other writers, and then for another's lock.

    Nobody who reads waits for either, and the inference path writes nothing there.
    """
    application_name: str = "meterhouse"
    """What PostgreSQL shows for a connection, unless the URL says otherwise."""
