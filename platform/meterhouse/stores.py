"""The stores of a process and what lives on them: opened by the server and by every command that needs no server."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import time_ns

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy.ext.asyncio import AsyncEngine

from meterhouse.db.catalog import Catalog
from meterhouse.db.clock import DatabaseClock
from meterhouse.db.engine import close, open_engine
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.peppers import PepperStore
from meterhouse.db.policy import EnginePolicy
from meterhouse.db.schema import upgrade
from meterhouse.errors import StoreDown
from meterhouse.guessable import is_guessable_key
from meterhouse.ids import random_base62
from meterhouse.keys.changes import Others
from meterhouse.keys.keyring import Keyring
from meterhouse.keys.mirror import KeyMirror
from meterhouse.keys.rehash import Rehasher
from meterhouse.keys.secret import Peppers
from meterhouse.keys.service import KeyService
from meterhouse.keys.throttle import SignInThrottle
from meterhouse.ledger.seal import hash_rows
from meterhouse.metering import Clock
from meterhouse.notices import Notices
from meterhouse.settings import Settings, SettingsError

MIGRATIONS = Path(__file__).resolve().parents[2] / "alembic"
EMBEDDED, PRODUCTION = "dev", "live"
"""What tenants' keys of each form carry in their text."""
PEPPER_CHARACTERS = 43
PATIENT_CONNECTIONS = 2
CLERK_CONNECTIONS = 3
"""Two batches are written at a time, while what is new is sealed."""
OFFICE_CONNECTIONS = 1
"""Of the patient ones, what billing has besides: invoices and exports are made one after the other."""
PATIENT_SECONDS = 60.0
"""Longest statement of an ``open_patient_engine``; longer than any bound of whoever asks."""
CLOCK_SECONDS = 1.0
"""How long the database may take to say the time before the rest opens without."""


class SystemClock:
    """Wall time."""

    def now_ms(self) -> int:
        """Return Unix milliseconds."""
        return time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The database and the services over it."""

    engine: AsyncEngine
    catalog: Catalog
    ledger: LedgerStore
    keyring: Keyring
    service: KeyService
    pepper: bytes
    """The pepper in use, from which other secrets of the installation are derived."""
    peppers: Mapping[int, bytes] = field(repr=False)
    """All of them, by version."""
    pepper_version: int
    """Of the one in use."""
    rehasher: Rehasher
    clock: Clock
    """The database's, where it is a server that several hosts share."""
    notices: Notices | None
    """How other processes are told; None without Redis."""
    mirror: KeyMirror | None


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """Open the database with its services; the embedded one is brought up to date.

    A database server may be away: keys are then served from where else they are known.

    Raises:
        SettingsError: The folder cannot be written, or the pepper or an address cannot be used.
        StoreDown: The embedded database cannot be opened.
    """
    make_folder(settings.data)
    url = _database_url(settings)
    if settings.database_url is None:
        await upgrade(url, MIGRATIONS)
    peppers = _peppers(settings)
    version = find_pepper_version(settings, peppers)
    hashing = Peppers(peppers, version)
    async with AsyncExitStack() as stack:
        engine = open_engine(url, _policy(settings))
        stack.push_async_callback(close, engine)
        clock = SystemClock() if settings.database_url is None else await _open_clock(engine)
        catalog = Catalog(engine)
        mirror, notices = None, None
        if settings.redis_url is not None:
            client = open_redis(settings.redis_url.get_secret_value(), settings.redis_timeout_seconds)
            stack.push_async_callback(client.aclose)
            mirror = KeyMirror(client, clock, peppers[version], settings.redis_timeout_seconds)
            stack.push_async_callback(mirror.close)
            notices = Notices(settings.redis_url.get_secret_value())
            stack.push_async_callback(notices.close)
        keyring = Keyring(catalog.keys, hashing, clock, mirror, fresh_ms=int(settings.key_fresh_seconds * 1000))
        rehasher = Rehasher(PepperStore(engine), hashing)
        keyring.on_other_pepper = rehasher.note
        keyring.throttle = SignInThrottle(settings.key_failure_rate, clock)
        stack.push_async_callback(keyring.close)
        service = KeyService(
            catalog,
            hashing,
            clock,
            environment=EMBEDDED if settings.database_url is None else PRODUCTION,
            keyring=keyring,
            others=Others(mirror, None if notices is None else notices.publish),
        )
        yield Stores(
            engine=engine,
            catalog=catalog,
            ledger=LedgerStore(engine, hash_rows=hash_rows),
            keyring=keyring,
            service=service,
            pepper=peppers[version],
            peppers=peppers,
            pepper_version=version,
            rehasher=rehasher,
            clock=clock,
            notices=notices,
            mirror=mirror,
        )


def open_patient_engine(settings: Settings, connections: int = PATIENT_CONNECTIONS) -> AsyncEngine:
    """Open the same database once more, with few connections on which a statement may take long.

    For sums over an organization with millions of rows, which nobody waits for at the database's expense: whoever asks
    sets the bound.
    """
    policy = replace(
        _policy(settings),
        connections=connections,
        acquire_timeout_seconds=PATIENT_SECONDS,
        statement_timeout_seconds=PATIENT_SECONDS,
    )
    return open_engine(_database_url(settings), policy)


def open_small_engine(settings: Settings, connections: int) -> AsyncEngine:
    """Open the same database as a worker does, with so many connections."""
    return open_engine(_database_url(settings), replace(_policy(settings), connections=connections))


def _database_url(settings: Settings) -> str:
    if settings.database_url is None:
        return f"sqlite+aiosqlite:///{settings.data / 'ledger.db'}"
    return settings.database_url.get_secret_value()


async def _open_clock(engine: AsyncEngine) -> DatabaseClock:
    """Ask the database for the time; while it is away, this machine's serves (``upkeep`` asks again)."""
    clock = DatabaseClock(engine)
    with suppress(StoreDown, TimeoutError):
        async with asyncio.timeout(CLOCK_SECONDS):
            await clock.synchronize()
    return clock


def open_redis(url: str, timeout_seconds: float) -> Redis | RedisCluster:
    """Prepare a client that tries once and gives up quickly; nothing is connected before its first command."""
    scheme, _, rest = url.partition("://")
    retry = Retry(NoBackoff(), 0)
    if scheme.endswith("+cluster"):
        return RedisCluster.from_url(
            f"{scheme.removesuffix('+cluster')}://{rest}",
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=retry,
        )
    return Redis.from_url(url, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds, retry=retry)


def _policy(settings: Settings) -> EnginePolicy:
    return EnginePolicy(
        connections=settings.database_connections,
        statement_timeout_seconds=settings.statement_timeout_seconds,
        lock_timeout_seconds=settings.lock_timeout_seconds,
        busy_timeout_seconds=settings.busy_timeout_seconds,
    )


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner can read.

    Raises:
        SettingsError: It cannot be made or written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"The folder {folder} cannot be made: {error.strerror}.") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"The folder {folder} cannot be written. Choose another with --data.")


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _peppers(settings: Settings) -> dict[int, bytes]:
    """Return the peppers of the settings, or those of the data folder, made at the first start."""
    if settings.key_pepper is not None:
        return parse_peppers(settings.key_pepper.get_secret_value(), "METERHOUSE_KEY_PEPPER")
    path = settings.data / "pepper"
    if not path.exists():
        write_secret(path, f"1:{random_base62(PEPPER_CHARACTERS)}\n")
    return parse_peppers(path.read_text().strip(), str(path))


def find_pepper_version(settings: Settings, peppers: Mapping[int, bytes]) -> int:
    """Return the version in use.

    Raises:
        SettingsError: There is no pepper of the version that is set.
    """
    version = settings.key_pepper_version
    if version is not None and version not in peppers:
        raise SettingsError(f"METERHOUSE_KEY_PEPPER_VERSION: METERHOUSE_KEY_PEPPER has no version {version}.")
    return max(peppers) if version is None else version


def parse_peppers(text: str, origin: str) -> dict[int, bytes]:
    """Read ``version:secret[,version:secret]``.

    Raises:
        SettingsError: It is not written so, or a secret is shorter than 32 characters or can be guessed.
    """
    peppers: dict[int, bytes] = {}
    for item in text.split(","):
        version, colon, secret = item.strip().partition(":")
        if not colon or not version.isdecimal():
            raise SettingsError(f"{origin}: expected version:secret[,version:secret].")
        if len(secret) < 32:  # noqa: PLR2004 - 190 bits of base62
            raise SettingsError(f"{origin}: the secret of version {version} is shorter than 32 characters.")
        if is_guessable_key(secret):
            raise SettingsError(f"{origin}: the secret of version {version} can be guessed: openssl rand -hex 24.")
        peppers[int(version)] = secret.encode()
    return peppers
