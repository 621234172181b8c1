"""Where all workers count together what an address asks of the administration: slowapi's limiter over Redis.

Not here: what is counted, and what happens while Redis is away (``admin.limiter``).
"""

from typing import Any

from limits.strategies import RateLimiter
from redis.asyncio.connection import SSLConnection, parse_url
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry
from slowapi import Limiter

from meterhouse.admin.limiter import AdminLimiter, Shared
from meterhouse.settings import Settings
from meterhouse.telemetry.metrics import Metrics, Watched

PREFIX = "mh:admin"
FAILURES = (RedisError, RedisClusterException)
"""What says that Redis, or a cluster of it, cannot be asked."""


def build_admin_limiter(settings: Settings, metrics: Metrics) -> AdminLimiter:
    """Return what bounds administration as the settings say; nothing is connected before it is first asked."""
    if settings.redis_url is None:
        return AdminLimiter(settings.admin_rate, settings.admin_failure_rate)
    url = settings.redis_url.get_secret_value()
    shared = Shared(lambda: open_shared_limiter(url, settings.redis_timeout_seconds), FAILURES)
    limiter = AdminLimiter(settings.admin_rate, settings.admin_failure_rate, shared)
    metrics.watch(Watched.DEGRADED, lambda: int(limiter.is_alone), label="admin")
    return limiter


def open_shared_limiter(url: str, timeout_seconds: float) -> RateLimiter:
    """Return slowapi's limiter over Redis, which tries once and gives up quickly; it raises ``FAILURES``.

    Nothing is connected before it is asked, but to a cluster, whose nodes have to be learned.
    """
    scheme, _, rest = url.partition("://")
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        "key_prefix": PREFIX,
    }
    if scheme.endswith("+cluster"):
        # The addresses of slowapi's storages know no cluster over TLS; their options do.
        known: dict[str, Any] = dict(parse_url(f"{scheme.removesuffix('+cluster')}://{rest}"))
        if known.pop("connection_class", None) is SSLConnection:
            options["ssl"] = True
        known.pop("db", None)
        url = f"redis+cluster://{known.pop('host', 'localhost')}:{known.pop('port', 6379)}"
        options |= known
    return Limiter(key_func=str, storage_uri=url, storage_options=options).limiter
