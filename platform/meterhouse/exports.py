"""The ledger in a signed file, written and checked against the database, for commands and for the administration.

Not here: the form of the file (``ledger.export``), seals (``ledger.seal``), and who may have one.
"""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from meterhouse.admin.ledger import Verified
from meterhouse.db.books import Books
from meterhouse.db.seals import StoredSeal
from meterhouse.errors import Conflict, PlatformError
from meterhouse.ids import random_base62
from meterhouse.ledger.audit import DatabaseAudit
from meterhouse.ledger.export import ExportReader, ExportWriter, Layout, Order, check_export
from meterhouse.ledger.seal import ChainChecker, Entry, Fault, Finding, name_row
from meterhouse.ledger.sealer import Sealer
from meterhouse.metering import Clock
from meterhouse.settings import SettingsError
from meterhouse.telemetry.logs import Event, get_logger

SIGNING_KEY = "ledger-signing-key"
MAX_FINDINGS = 100
"""Of a file that is checked for somebody; what is wrong in more places is wrong anyway."""
PAGE_ROWS = 500


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


def format_public_key(key: Ed25519PublicKey) -> str:
    """Return a public key as PEM."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


async def export(books: Books, out: BinaryIO, layout: Layout, order: Order, key: Ed25519PrivateKey) -> bytes:
    """Seal what has no seal yet, write the rows of an order, and return the signed statement's two lines.

    Raises:
        Conflict: A row is not what was sealed; the message names it, and nothing is signed.
    """
    writer = ExportWriter(out, layout)
    async for _ in write_rows(books, writer, order):
        pass
    return writer.finish(order, key)


async def write_rows(books: Books, writer: ExportWriter, order: Order) -> AsyncIterator[None]:
    """Seal what has no seal yet and write the rows of an order, a page after each step.

    Raises:
        Conflict: A row is not what was sealed; the message names it.
    """
    seals = books.seals
    await Sealer(seals, get_logger()).seal_all()
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
            yield


async def verify_against(books: Books, reader: ExportReader, found: Sequence[Finding]) -> AsyncIterator[Finding]:
    """Compare an export with the database, and name the rows that it lacks itself."""
    if reader.statement is None:
        return
    audit = DatabaseAudit(books.seals, reader.statement)
    for finding in found:
        if finding.fault is Fault.MISSING and finding.organization_id:
            for named in await audit.name_missing(finding):
                yield named
    async for finding in audit.compare(reader.read()):
        yield finding


class LedgerFiles:
    """Exports and checks for the administration, with the key of this host."""

    def __init__(self, books: Books, folder: Path, clock: Clock) -> None:
        self._books = books
        self._folder = folder
        self._clock = clock

    def public_key(self) -> str:
        """Return the key with which exports of this host can be verified, as PEM."""
        return format_public_key(self._key().public_key())

    async def export(self, organization_id: str | None, from_ms: int | None, to_ms: int | None) -> AsyncIterator[bytes]:
        """Give the rows sealed from a moment until another, page by page, then the statement and its signature.

        Where a row is not what was sealed, the last line says so and nothing is signed.
        """
        key = self._key()
        order = Order(self._clock.now_ms(), organization_id, from_ms, to_ms)
        out = BytesIO()
        writer = ExportWriter(out, "jsonl")
        try:
            async for _ in write_rows(self._books, writer, order):
                yield out.getvalue()
                out.seek(0)
                out.truncate()
        except Conflict as error:
            get_logger().error(Event.LEDGER_DAMAGED, detail=error.message)
            yield msgspec.json.encode({"error": {"message": error.message, "code": error.code}}) + b"\n"
            return
        yield out.getvalue() + writer.finish(order, key)

    async def verify(self, file: Path, organization_id: str | None) -> Verified:
        """Check a file by itself; where we signed it, also whether the database still says the same.

        Args:
            file: JSON lines as ``export`` gives them.
            organization_id: whose file may be compared with the database; None: everybody's. What is not signed could
                ask for anybody's rows.
        """
        key = self._key().public_key()
        reader = ExportReader(file)
        found = await asyncio.to_thread(lambda: list(islice(check_export(reader, key), MAX_FINDINGS)))
        lines = [str(finding) for finding in found]
        statement = reader.statement
        is_theirs = statement is not None and organization_id in (None, statement.order.organization_id)
        is_compared = is_theirs and reader.is_signed_by(key)
        if is_compared:
            async for finding in verify_against(self._books, ExportReader(file), found):
                lines.append(f"{finding} (database)")
                if len(lines) >= MAX_FINDINGS:
                    break
        return Verified(lines, msgspec.structs.asdict(reader.totals), is_compared)

    def _key(self) -> Ed25519PrivateKey:
        try:
            return load_signing_key(self._folder)
        except SettingsError as error:
            raise PlatformError("This host cannot sign or verify exports just now.", detail=str(error)) from None


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
