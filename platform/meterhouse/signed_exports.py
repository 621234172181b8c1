"""Writes signed exports of the ledger into a folder, again and again.

The files of a folder join without a gap: each holds the rows that were sealed behind those of the one before. Of
several processes that write one at once, because the first took longer than its turn, one shows its own. Not here:
writing and checking one (``exports``), and what it looks like (``ledger.export``).
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meterhouse.db.books import Books
from meterhouse.db.turns import TurnStore
from meterhouse.errors import Conflict
from meterhouse.exports import export
from meterhouse.ids import random_base62
from meterhouse.ledger.export import Order
from meterhouse.metering import Clock
from meterhouse.settings import SettingsError
from meterhouse.telemetry.logs import Event, get_logger

SINK = "folder"
MARGIN_MS = 60_000
"""What was sealed so lately is left to the next file: a transaction that seals may still be open."""
_NAME_FORM = "%Y%m%dT%H%M%SZ"


class FolderExport:
    """Writes what was sealed since the last file, when that is long enough ago. One process at a time does."""

    def __init__(
        self,
        books: Books,
        turns: TurnStore,
        clock: Clock,
        target: tuple[Path, float],
        load_key: Callable[[], Ed25519PrivateKey],
    ) -> None:
        """Take the stores, the folder and how many seconds lie between two files, and where the signing key is from."""
        self._books = books
        self._turns = turns
        self._clock = clock
        self._folder, every_seconds = target
        self._every_ms = round(every_seconds * 1_000)
        self._load_key = load_key

    async def step(self) -> Path | None:
        """Write a file when it is time; returns it. A file is there whole or not at all.

        None: it is not time yet, it could not be written, or another process has written one meanwhile.

        Raises:
            StoreDown: There is no database.
        """
        to_ms = self._clock.now_ms() - MARGIN_MS
        from_ms = (await self._turns.read_positions(SINK)).get("", 0)
        if to_ms - from_ms < self._every_ms:
            return None
        names = [datetime.fromtimestamp(moment / 1_000, UTC).strftime(_NAME_FORM) for moment in (from_ms, to_ms)]
        path = self._folder / f"ledger-{names[0]}-{names[1]}.jsonl"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            is_shown = await self._write(path, Order(self._clock.now_ms(), None, from_ms or None, to_ms), from_ms)
        except (Conflict, SettingsError, OSError) as error:
            # Nothing is lost: the next try begins where this one did.
            get_logger().error(Event.EXPORT_FAILED, detail=str(error))
            return None
        return path if is_shown else None

    async def _write(self, path: Path, order: Order, from_ms: int) -> bool:
        """Write a file, and show it unless another process has shown one of the same time."""
        temporary = path.with_name(f".{path.name}.{random_base62(8)}.tmp")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(await export(self._books, file, "jsonl", order, self._load_key()))
                file.flush()
                os.fsync(file.fileno())
            async with self._turns.moving(SINK, "", from_ms, order.to_ms or 0) as is_first:
                if is_first:
                    temporary.replace(path)
            return is_first
        finally:
            temporary.unlink(missing_ok=True)
