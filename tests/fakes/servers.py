"""Real Redis and PostgreSQL servers for tests: where to import them from.

Every one is a context manager that starts on entry and is gone, data too, on exit; the fixtures that share one per run
are in plugins/servers. Not here: the servers themselves (redis_server, postgres_server, daemon).
"""

from fakes.daemon import MissingServerError, free_port, wait_until
from fakes.postgres_server import PASSWORD, ROLE, PostgresServer
from fakes.redis_server import RedisCluster, RedisServer

__all__ = [
    "PASSWORD",
    "ROLE",
    "MissingServerError",
    "PostgresServer",
    "RedisCluster",
    "RedisServer",
    "free_port",
    "wait_until",
]
