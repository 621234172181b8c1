"""Whether PostgreSQL and Redis are there, and are what the meter and the ledger need. Changes nothing.

What the user of Redis may do is found out by asking for it on a key that lives for a second. Not here: what needs
which command (``REDIS_PROBES`` is compared with the code by a test).
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from time import time_ns
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from meterhouse.checkup.finding import Finding, failed, ok, warning
from meterhouse.db.engine import close, open_engine
from meterhouse.db.facts import DatabaseFacts, read_facts
from meterhouse.db.peppers import PepperStore
from meterhouse.db.policy import EnginePolicy
from meterhouse.db.schema import check_schema
from meterhouse.errors import StoreDown
from meterhouse.settings import Settings, SettingsError
from meterhouse.stores import (
    CLERK_CONNECTIONS,
    MIGRATIONS,
    OFFICE_CONNECTIONS,
    PATIENT_CONNECTIONS,
    open_redis,
    parse_peppers,
)

PATIENCE_SECONDS = 3.0
"""An operator who checks waits longer than a request."""
CLOCK_WARNING_MS, CLOCK_FAILED_MS = 1_000, 10_000
LEAST_REDIS, LEAST_POSTGRES = 7, 14
FULL_PERCENT = 75
PROBE_MS = 1_000
NO_POOLER = "Each process has its own pool: METERHOUSE_DATABASE_URL takes PostgreSQL's own address, not a pooler's."
POOLERS_ERROR = "unsupported startup parameter"
"""What PgBouncer says where a session has a bound."""
Arguments = tuple[str | int, ...]

REDIS_PROBES: dict[str, Arguments] = {
    "SET": ("KEY", "", "PX", PROBE_MS),
    **dict.fromkeys(("GET", "MGET", "EXISTS", "HGETALL", "HKEYS", "HLEN", "SMEMBERS", "TTL", "ZCARD"), ("KEY",)),
    **dict.fromkeys(
        ("HGET", "HMGET", "HDEL", "HEXISTS", "SADD", "SISMEMBER", "SMISMEMBER", "ZREM", "LPUSH"), ("KEY", "f")
    ),
    "HSET": ("KEY", "f", "v"),
    "HINCRBY": ("KEY", "f", 1),
    "INCRBY": ("KEY", 1),
    "HSCAN": ("KEY", 0),
    "ZADD": ("KEY", 1, "m"),
    **dict.fromkeys(("ZRANGE", "ZRANGEBYSCORE", "ZREMRANGEBYSCORE", "LRANGE", "LTRIM"), ("KEY", 0, 1)),
    "LREM": ("KEY", 0, "m"),
    "EXPIRE": ("KEY", 1),
    "PEXPIRE": ("KEY", PROBE_MS),
    "DEL": ("KEY",),
    "PING": (),
    "TIME": (),
    "EVALSHA": ("0" * 40, 1, "KEY"),
    "SCRIPT LOAD": ("return 1",),
    "PUBLISH": ("mh:check", ""),
}
"""Every command that the gateway sends or its scripts call, with arguments that do no harm; SET comes first, so that
the others meet a string and change nothing, and DEL after all that could make the key anew."""
REDIS_EXCESS: dict[str, Arguments] = {"EVAL": ("return 1", 0), "CONFIG GET": ("maxmemory-policy",)}
"""What an intruder could use, and the gateway does not need."""


async def check_stores(settings: Settings, workers: int) -> list[Finding]:
    """Look at both; the embedded SQLite and the meter in memory need no look."""
    found: list[Finding] = []
    times_ms: dict[str, int] = {}
    if settings.database_url is None:
        found.append(ok("database", "none is set: the embedded SQLite, for `meterhouse dev`."))
    else:
        found += [finding async for finding in _check_postgres(settings, workers, times_ms)]
    if settings.redis_url is None:
        found.append(ok("Redis", "none is set: a meter in memory, for one worker."))
    else:
        found += [finding async for finding in _check_redis(settings, times_ms)]
    found += [_check_clock(name, ahead_ms) for name, ahead_ms in times_ms.items()]
    return found


# --- PostgreSQL


async def _check_postgres(settings: Settings, workers: int, times_ms: dict[str, int]) -> AsyncIterator[Finding]:
    assert settings.database_url is not None
    policy = EnginePolicy(connections=1, connect_timeout_seconds=PATIENCE_SECONDS)
    engine = open_engine(
        settings.database_url.get_secret_value(), replace(policy, acquire_timeout_seconds=PATIENCE_SECONDS)
    )
    try:
        asked_ms = _now_ms()
        facts = await read_facts(engine)
        times_ms["PostgreSQL"] = facts.now_ms - (asked_ms + _now_ms()) // 2
        yield _check_version("PostgreSQL", facts.version, LEAST_POSTGRES)
        yield _check_session(facts, policy)
        yield _check_role(facts)
        yield _check_room(facts, settings, workers)
        yield await _check_revision(engine)
        if (peppers := await _check_peppers(engine, settings)) is not None:
            yield peppers
    except StoreDown as error:
        what = f"a pooler refuses its session. {NO_POOLER}" if POOLERS_ERROR in error.detail else error.message
        # Behind the first line SQLAlchemy says where its errors are explained.
        yield failed("PostgreSQL", f"{what} {error.detail.partition(chr(10))[0]}".strip())
    finally:
        await close(engine)


async def _check_revision(engine: Any) -> Finding:
    try:
        return ok("schema", f"at {await check_schema(engine, MIGRATIONS)}.")
    except StoreDown as error:
        return failed("schema", error.message)


async def _check_peppers(engine: Any, settings: Settings) -> Finding | None:
    """Say which peppers are needed by what; None where that cannot be known yet."""
    if settings.key_pepper is None:
        return None
    try:
        known = parse_peppers(settings.key_pepper.get_secret_value(), "METERHOUSE_KEY_PEPPER")
        use = await PepperStore(engine).count_use(_now_ms())
    except (SettingsError, StoreDown):
        return None  # said already
    version = settings.key_pepper_version or max(known)
    names = [
        *(f"{count} keys are hashed with version {number}" for number, count in sorted(use.keys.items())),
        *(f"{count} credentials are sealed with version {number}" for number, count in sorted(use.credentials.items())),
    ]
    text = f"{version} is in use; {', '.join(names) or 'nothing is hashed yet'}"
    needed = use.keys.keys() | use.credentials.keys()
    if needed - known.keys():
        return failed("pepper", f"{text}. What is of a version that METERHOUSE_KEY_PEPPER lacks does not open.")
    if any(number < version for number in needed):
        advice = "A key is hashed anew when it is used; rotate or revoke those that are not, and give credentials again"
        return warning("pepper", f"{text}. {advice}, before you take an older version out.")
    return ok("pepper", f"{text}.")


def _check_session(facts: DatabaseFacts, policy: EnginePolicy) -> Finding:
    asked_ms = round(policy.statement_timeout_seconds * 1000)
    if facts.statement_timeout_ms != asked_ms:
        text = f"a session's statement_timeout is {facts.statement_timeout_ms} ms and not {asked_ms} as it asked for"
        return failed("database session", f"{text}: a pooler drops it. {NO_POOLER}")
    return ok("database session", "its settings are as it asked for.")


def _check_role(facts: DatabaseFacts) -> Finding:
    if facts.is_superuser or facts.may_delete:
        what = "is a superuser" if facts.is_superuser else "may delete usage records"
        return warning(
            "database role",
            f"'{facts.role}' {what}: give the application a role of its own, and the schema's owner to `meterhouse "
            "migrate` alone (METERHOUSE_MIGRATION_DATABASE_URL).",
        )
    return ok("database role", f"'{facts.role}' can change nothing that was recorded.")


def _check_room(facts: DatabaseFacts, settings: Settings, workers: int) -> Finding:
    of_worker = settings.database_connections + PATIENT_CONNECTIONS + OFFICE_CONNECTIONS
    of_clerk = CLERK_CONNECTIONS if settings.clerk else 0
    needed = settings.hosts * (2 * (workers * of_worker + of_clerk) + 1)
    of_host = f"2 x ({workers} workers x {of_worker} + {of_clerk}) + 1"
    text = f"{settings.hosts} host(s) x ({of_host}) = {needed} of {facts.room}"
    if needed > facts.room:
        return failed("connections", f"{text}: raise max_connections, or lower METERHOUSE_DATABASE_CONNECTIONS.")
    if needed * 5 > facts.room * 4:
        return warning("connections", f"{text}: little is left for anybody else.")
    return ok("connections", f"{text}.")


# --- Redis


async def _check_redis(settings: Settings, times_ms: dict[str, int]) -> AsyncIterator[Finding]:
    assert settings.redis_url is not None
    client = open_redis(settings.redis_url.get_secret_value(), PATIENCE_SECONDS)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS * 4):
            if isinstance(client, RedisCluster):
                await client.initialize()
            asked_ms = _now_ms()
            seconds, microseconds = await client.time(**_one(client))
            times_ms["Redis"] = seconds * 1000 + microseconds // 1000 - (asked_ms + _now_ms()) // 2
            for server in _servers(client):
                facts: dict[str, Any] = {}
                for section in ("server", "memory", "persistence"):
                    facts |= await client.info(section, **server)
                name = f"Redis {server['target_nodes'].name}" if server else "Redis"
                for finding in _check_server(name, facts):
                    yield finding
            yield await _check_rights(client)
            yield await _check_excess(client)
    except (RedisError, OSError, TimeoutError) as error:
        yield failed("Redis", f"it cannot be asked: {type(error).__name__}: {error}.")
    finally:
        await client.aclose()


def _servers(client: Redis | RedisCluster) -> list[dict[str, Any]]:
    """Return what names each server in a call: nothing where there is one."""
    return [{"target_nodes": node} for node in client.get_primaries()] if isinstance(client, RedisCluster) else [{}]


def _one(client: Redis | RedisCluster) -> dict[str, Any]:
    return _servers(client)[0]


def _check_server(name: str, facts: dict[str, Any]) -> list[Finding]:
    found = [_check_version(name, str(facts["redis_version"]), LEAST_REDIS)]
    policy, most, used = str(facts.get("maxmemory_policy")), int(facts.get("maxmemory", 0)), int(facts["used_memory"])
    if policy != "noeviction":
        state = failed if most else warning
        found.append(state(name, f"maxmemory-policy is {policy}: what is evicted is quota given away. Set noeviction."))
    elif most and used * 100 > most * FULL_PERCENT:
        found.append(warning(name, f"{used * 100 // most} % of maxmemory is used; full, it refuses requests."))
    else:
        found.append(ok(name, "it evicts nothing."))
    if not int(facts.get("aof_enabled", 0)):
        found.append(
            warning(name, "it has no AOF: after a restart all is learned anew from the ledger. appendonly yes.")
        )
    elif facts.get("aof_last_write_status") != "ok":
        found.append(failed(name, "its AOF cannot be written: look at its disk."))
    else:
        found.append(ok(name, "its AOF is written."))
    return found


async def _check_rights(client: Redis | RedisCluster) -> Finding:
    key = f"mh:check:{uuid4().hex}"
    missing = []
    for command, arguments in REDIS_PROBES.items():
        words = [key if word == "KEY" else word for word in arguments]
        if not await _may(client, command, words):
            missing.append(command)
    if missing:
        return failed("Redis user", f"it may not {', '.join(missing)}: see infra/stack/redis.acl.")
    return ok("Redis user", "it may do all that is needed.")


async def _check_excess(client: Redis | RedisCluster) -> Finding:
    excess = [command for command, words in REDIS_EXCESS.items() if await _may(client, command, list(words))]
    if excess:
        return warning("Redis user", f"it may also {', '.join(excess)}: give it only what infra/stack/redis.acl names.")
    return ok("Redis user", "it may neither run scripts of others nor change settings.")


async def _may(client: Redis | RedisCluster, command: str, words: list[str | int]) -> bool:
    """Whether a command is permitted, whatever else comes of it."""
    is_keyed = any(str(word).startswith("mh:check:") for word in words)
    where = {} if is_keyed else _one(client)
    try:
        await client.execute_command(*command.split(), *words, **where)
    except NoPermissionError:
        return False
    except ResponseError:
        return True  # of a wrong kind of value, or a script that is not there
    return True


# --- both


def _check_version(name: str, version: str, least: int) -> Finding:
    if int(version.partition(".")[0]) < least:
        return warning(name, f"version {version}; Meterhouse is tested with {least} and later.")
    return ok(name, f"version {version}.")


def _check_clock(name: str, ahead_ms: int) -> Finding:
    text = f"{name}'s is {abs(ahead_ms)} ms {'ahead of' if ahead_ms > 0 else 'behind'} this machine's"
    if abs(ahead_ms) >= CLOCK_FAILED_MS:
        return failed("clock", f"{text}: keep both with NTP.")
    if abs(ahead_ms) >= CLOCK_WARNING_MS:
        return warning("clock", f"{text}: keep both with NTP.")
    return ok("clock", f"{text}.")


def _now_ms() -> int:
    return time_ns() // 1_000_000
