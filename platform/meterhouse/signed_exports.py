"""Writes signed exports of the ledger: for a command at once, and into a folder again and again.

The files of a folder join without a gap: each holds the rows that were sealed behind those of the one before. Not here:
what a file looks like (``ledger.export``), and checking one (``bookkeeping``).
"""

import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meterhouse.db.books import Books
from meterhouse.db.seals import StoredSeal
from meterhouse.db.turns import TurnStore
from meterhouse.errors import Conflict
from meterhouse.ids import random_base62
from meterhouse.ledger.export import ExportWriter, Layout, Order
from meterhouse.ledger.seal import ChainChecker, Entry, Fault, Finding, name_row
from meterhouse.ledger.sealer import Sealer
from meterhouse.metering import Clock
from meterhouse.settings import SettingsError
from meterhouse.telemetry.logs import Event, get_logger

SIGNING_KEY = "ledger-signing-key"
PAGE_ROWS = 500
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
            await self._write(path, Order(self._clock.now_ms(), None, from_ms or None, to_ms))
        except (Conflict, SettingsError, OSError) as error:
            # Nothing is lost: the next try begins where this one did.
            get_logger().error(Event.EXPORT_FAILED, detail=str(error))
            return None
        await self._turns.put_position(SINK, "", to_ms)
        return path

    async def _write(self, path: Path, order: Order) -> None:
        temporary = path.with_name(f".{path.name}.{random_base62(8)}.tmp")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(await export(self._books, file, "jsonl", order, self._load_key()))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def load_signing_key(folder: Path) -> Ed25519PrivateKey:
    """Return the key that exports are signed with; made at its first use, readable by its owner alone.

    Raises:
        SettingsError: The file cannot be used.
    """
    path = folder / SIGNING_KEY
    try:
        if not path.exists():
            _make_signing_key(path)
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SettingsError(f"{path} can be read by others than its owner. Run: chmod 600 {path}")
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise SettingsError(f"{path} cannot be used: {error.strerror}.") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SettingsError(f"{path} is no private key in PEM form.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"{path} is no Ed25519 key.")
    return key


async def export(books: Books, out: BinaryIO, layout: Layout, order: Order, key: Ed25519PrivateKey) -> bytes:
    """Seal what has no seal yet, write the rows of an order, and return the signed statement's two lines.

    Raises:
        Conflict: A row is not what was sealed; the message names it, and nothing is signed.
    """
    seals = books.seals
    await Sealer(seals, get_logger()).seal_all()
    writer = ExportWriter(out, layout)
    only = order.organization_id
    for organization_id in [only] if only else await seals.list_organizations():
        checker = ChainChecker(None)
        sequence, behind = await seals.find_span(organization_id, order.from_ms, order.to_ms)
        while sequence < behind:
            page = await seals.read(organization_id, sequence, min(PAGE_ROWS, behind - sequence))
            for stored in page:
                entry = _entry_of(stored)
                if stored.sequence != sequence:
                    gap = Finding(Fault.MISSING, "the seal is not in the database", organization_id, sequence)
                    raise _refusal(gap)
                for finding in checker.take(entry):
                    raise _refusal(finding)
                writer.write(entry)
                sequence += 1
            if not page:
                raise _refusal(Finding(Fault.MISSING, "the seal is not in the database", organization_id, sequence))
    return writer.finish(order, key)


def _entry_of(stored: StoredSeal) -> Entry:
    if stored.row is None:
        identity = {"request_id": stored.request_id, "attempt": stored.attempt, "id": stored.adjustment_id}
        subject = name_row(stored.kind, identity)
        detail = "the database has its seal, but not the row"
        raise _refusal(Finding(Fault.MISSING, detail, stored.organization_id, stored.sequence, subject))
    return Entry(
        kind=stored.kind,
        organization_id=stored.organization_id,
        sequence=stored.sequence,
        previous_hash=stored.previous_hash,
        hash=stored.hash,
        sealed_at_ms=stored.sealed_at_ms,
        row=stored.row,
    )


def _refusal(finding: Finding) -> Conflict:
    return Conflict(f"The ledger is not what was sealed, so nothing is signed. {finding}")


def _make_signing_key(path: Path) -> None:
    """Make the key under another name first, so that of two processes that make one at once one wins."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    temporary = path.with_name(f"{path.name}.{random_base62(8)}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return
    finally:
        temporary.unlink(missing_ok=True)
