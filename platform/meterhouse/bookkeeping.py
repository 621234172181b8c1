"""What the ``ledger`` commands do: adopt, adjust, reconcile.

Each function takes open stores and reports; nothing here prints. Not here: options and output (``cli_ledger``), the
rules themselves (``ledger``), signed files (``exports``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from meterhouse.audit import Action, Change
from meterhouse.db.audit import AuditStore
from meterhouse.db.books import Books
from meterhouse.db.ledger import Adjustment
from meterhouse.db.tables import CREDIT_PERIOD_MS
from meterhouse.db.workers import WorkerStore
from meterhouse.errors import MeterDown, NotFound, StoreDown
from meterhouse.identity import COMMAND_LINE, Author
from meterhouse.ids import new_id
from meterhouse.ledger.adopter import Adopter, AdoptionReport
from meterhouse.ledger.compare import UnreadableUsage, Usages, read_usage
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.folder import SegmentName
from meterhouse.ledger.record import UnreadableJournal
from meterhouse.ledger.seal import hash_rows
from meterhouse.ledger.store import InsertsRecords
from meterhouse.limits.limit import MAX_AMOUNT
from meterhouse.metering import Correction
from meterhouse.settings import SettingsError
from meterhouse.stores import Stores
from meterhouse.telemetry.logs import LEVELS, Log
from meterhouse.usage import UsageRecord

BUSY_TRIES = 60
BUSY_SECONDS = 0.5
MAX_REASON_CHARACTERS = 1_000

Apply = Callable[[Correction], Awaitable[bool]]
"""Moves the running meter by a correction that the ledger has; False when it could not."""


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key from PEM.

    Raises:
        SettingsError: The file cannot be read or holds none.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError(f"{path} is no public key in PEM form. `meterhouse ledger public-key` prints it.") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError(f"{path} is no Ed25519 key.")
    return key


def open_books(stores: Stores) -> Books:
    """Return what looks after the ledger of open stores."""
    return Books(stores.engine, hash_rows)


@dataclass(frozen=True, slots=True)
class AdjustmentOrder:
    """A credit (negative) or a later charge, as an operator asks for it."""

    organization_id: str
    project_id: str
    key_id: str | None
    at_ms: int
    nanos: int
    tokens: int
    reason: str
    created_by: str


async def adjust(
    stores: Stores, order: AdjustmentOrder, apply: Apply | None = None, author: Author = COMMAND_LINE
) -> tuple[Adjustment, bool]:
    """Write an adjustment, then move the running meter by it; returns it, and whether the meter was moved.

    Raises:
        SettingsError: It has no reason, or changes nothing.
        NotFound: The project is not the organization's, or the key not the project's.
    """
    if not order.reason.strip() or len(order.reason) > MAX_REASON_CHARACTERS:
        raise SettingsError(f"An adjustment needs a --reason of at most {MAX_REASON_CHARACTERS} characters.")
    if order.nanos == 0 and order.tokens == 0:
        raise SettingsError("An adjustment of nothing changes nothing: give --usd or --tokens other than 0.")
    if order.at_ms <= CREDIT_PERIOD_MS:
        raise SettingsError("An adjustment names a period after 1970; `meterhouse credits add` adds credit of none.")
    if max(abs(order.nanos), abs(order.tokens)) > MAX_AMOUNT:
        raise SettingsError("An adjustment is of at most 4,000,000 USD or 4 x 10^15 tokens.")
    project = await stores.catalog.organizations.find_project(order.project_id)
    if project is None or project.organization_id != order.organization_id:
        raise NotFound(f"Organization {order.organization_id} has no project {order.project_id}.")
    root_key_id = None
    if order.key_id is not None:
        key = await stores.catalog.keys.find_key(order.key_id)
        if key is None or key.project_id != project.id:
            raise NotFound(f"Project {project.id} has no key {order.key_id}.")
        root_key_id = key.root_key_id
    entry = Adjustment(
        id=new_id("adj"),
        organization_id=project.organization_id,
        project_id=project.id,
        root_key_id=root_key_id,
        period_start_ms=order.at_ms,
        nanos=order.nanos,
        tokens=order.tokens,
        reason=order.reason.strip(),
        created_at_ms=stores.clock.now_ms(),
        created_by=order.created_by,
    )
    shown = {"nanos": entry.nanos, "tokens": entry.tokens, "reason": entry.reason, "at_ms": entry.period_start_ms}
    change = Change(
        Action.ADJUSTMENT_CREATED,
        entry.id,
        entry.organization_id,
        entry.project_id,
        after={**shown, "root_key_id": root_key_id, "created_by": entry.created_by},
    )
    await stores.ledger.insert_adjustment(entry, lambda connection, _: AuditStore(connection).write(author, change))
    if apply is None:
        return entry, False
    correction = Correction(
        organization_id=entry.organization_id,
        project_id=entry.project_id,
        root_key_id=root_key_id,
        at_ms=entry.period_start_ms,
        nanos=entry.nanos,
        tokens=entry.tokens,
        id=entry.id,
    )
    try:
        return entry, await apply(correction)
    except MeterDown:
        return entry, False


@dataclass(frozen=True, slots=True)
class Takeover:
    """What came of adopting or replaying a folder."""

    report: AdoptionReport
    damages: Sequence[str]
    """Places that could not be read, a line each."""


async def take_over(
    stores: Stores, folder: Path, how: Literal["adopt", "replay"], on_batch: Callable[[int], None]
) -> Takeover:
    """Adopt the journals of a folder whose owners are dead, or offer everything that it holds once more.

    Args:
        stores: where to.
        folder: a folder of journals.
        how: which of the two.
        on_batch: is told how many records were offered, batch by batch.

    Raises:
        SettingsError: It is no folder of journals, cannot be read, or a newer version wrote it.
        StoreDown: SQL could not take the records for half a minute; the same may be done again.
    """
    _check_journals(folder)
    damages: list[str] = []
    store = _PatientStore(stores.ledger, on_batch)
    forget = WorkerStore(stores.engine).remove_journal
    adopter = Adopter(store, OsFiles(), _collecting_log(damages), on_shipped=forget)
    try:
        report = await (adopter.adopt(folder) if how == "adopt" else adopter.replay(folder))
    except UnreadableJournal as error:
        raise SettingsError(str(error)) from None
    except OSError as error:
        raise SettingsError(f"{error.filename or folder} cannot be used: {error.strerror}.") from None
    return Takeover(report, damages)


class _PatientStore:
    """Takes records into the ledger, waiting for servers that write at the same time, and tells how far it is."""

    def __init__(self, store: InsertsRecords, on_batch: Callable[[int], None]) -> None:
        self._store = store
        self._on_batch = on_batch

    async def insert(self, records: Sequence[UsageRecord]) -> int:
        """Write the records that are not there yet; returns how many were new."""
        for _ in range(BUSY_TRIES - 1):
            try:
                inserted = await self._store.insert(records)
            except StoreDown:
                await asyncio.sleep(BUSY_SECONDS)
                continue
            self._on_batch(len(records))
            return inserted
        return await self._store.insert(records)


def _check_journals(folder: Path) -> None:
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        raise SettingsError(f"There is no folder {folder}.") from None
    except OSError as error:
        raise SettingsError(f"{folder} is no folder of journals: {error.strerror}.") from None
    if names and not any(SegmentName.parse(name) for name in names):
        hint = f" Did you mean {folder / 'journals'}?" if "journals" in names else ""
        raise SettingsError(f"{folder} is no folder of journals: no file in it is a journal segment.{hint}")


def _collecting_log(lines: list[str]) -> Log:
    """Return a log that keeps what is wrong with journals as lines for the operator."""

    def collect(_log: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if "offset_bytes" in event:
            lost = event.get("lost_records")
            lines.append(f"{event['file']}: unreadable from byte {event['offset_bytes']} on (records lost: {lost})")
        raise structlog.DropEvent

    wrapper = structlog.make_filtering_bound_logger(LEVELS["error"])
    return cast("Log", structlog.wrap_logger(None, processors=[collect], wrapper_class=wrapper))


def read_provider_usage(path: Path) -> Usages:
    """Read a provider's own usage export.

    Raises:
        SettingsError: It cannot be read.
    """
    try:
        return read_usage(path)
    except UnreadableUsage as error:
        raise SettingsError(str(error)) from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from None
