"""The stores of a process and what lives on them: opened by the server and by every command that needs no server."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time_ns

from meterhouse.db.catalog import Catalog
from meterhouse.db.engine import close, open_engine, upgrade
from meterhouse.db.ledger import LedgerStore
from meterhouse.ids import random_base62
from meterhouse.keys.keyring import Keyring
from meterhouse.keys.secret import Peppers
from meterhouse.keys.service import KeyService
from meterhouse.settings import Settings, SettingsError

MIGRATIONS = Path(__file__).resolve().parents[2] / "alembic"
ENVIRONMENT = "dev"
"""What tenants' keys of the embedded form carry in their text."""
PEPPER_CHARACTERS = 43


class SystemClock:
    """Wall time."""

    def now_ms(self) -> int:
        """Return Unix milliseconds."""
        return time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Stores:
    """The database and the services over it."""

    catalog: Catalog
    ledger: LedgerStore
    keyring: Keyring
    service: KeyService
    pepper: bytes
    """The newest pepper, from which other secrets of the installation are derived."""
    clock: SystemClock


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """Open the embedded database, brought up to date, with its services.

    Raises:
        SettingsError: The folder cannot be written, or the pepper cannot be used.
        StoreDown: The database cannot be opened.
    """
    folder = settings.data
    make_folder(folder)
    url = f"sqlite+aiosqlite:///{folder / 'ledger.db'}"
    await upgrade(url, MIGRATIONS)
    peppers = _peppers(settings)
    clock = SystemClock()
    engine = open_engine(url)
    try:
        catalog = Catalog(engine)
        keyring = Keyring(catalog.keys, Peppers(peppers), clock, fresh_ms=int(settings.key_fresh_seconds * 1000))
        service = KeyService(catalog, Peppers(peppers), clock, environment=ENVIRONMENT, keyring=keyring)
        try:
            yield Stores(catalog, LedgerStore(engine), keyring, service, peppers[max(peppers)], clock)
        finally:
            await keyring.close()
    finally:
        await close(engine)


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


def parse_peppers(text: str, origin: str) -> dict[int, bytes]:
    """Read ``version:secret[,version:secret]``.

    Raises:
        SettingsError: It is not written so, or a secret is shorter than 32 characters.
    """
    peppers: dict[int, bytes] = {}
    for item in text.split(","):
        version, colon, secret = item.strip().partition(":")
        if not colon or not version.isdecimal():
            raise SettingsError(f"{origin}: expected version:secret[,version:secret].")
        if len(secret) < 32:  # noqa: PLR2004 - 190 bits of base62
            raise SettingsError(f"{origin}: the secret of version {version} is shorter than 32 characters.")
        peppers[int(version)] = secret.encode()
    return peppers
