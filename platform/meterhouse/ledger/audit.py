"""Compares an export with the database that it was made from: which rows were changed, removed, inserted or moved.

It finds what a superuser did behind the triggers since the export.

Invariant: the statement alone says whose rows are looked up. It is signed; the rows of the file are whatever somebody
sent, and one that names another organization is never looked up. Not here: the export itself (``export``).
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from meterhouse.ledger.export import Statement
from meterhouse.ledger.seal import Entry, Fault, Finding, Span, name_row

BATCH_ROWS = 500
GRACE_MS = 10 * 60_000
"""A row that was stamped so long before an export was committed before it, whatever clocks said."""
_MOST_MOVED = 100_000


class Stored(Protocol):
    """A seal of the database with its row."""

    @property
    def organization_id(self) -> str: ...  # noqa: D102 - the columns of the table

    @property
    def sequence(self) -> int: ...  # noqa: D102

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def request_id(self) -> str | None: ...  # noqa: D102

    @property
    def attempt(self) -> int | None: ...  # noqa: D102

    @property
    def adjustment_id(self) -> str | None: ...  # noqa: D102

    @property
    def previous_hash(self) -> str: ...  # noqa: D102

    @property
    def hash(self) -> str: ...  # noqa: D102

    @property
    def sealed_at_ms(self) -> int: ...  # noqa: D102

    @property
    def row(self) -> Mapping[str, Any] | None: ...  # noqa: D102


class ReadsSeals(Protocol):
    """The database's side. Every method raises StoreDown."""

    async def list_organizations(self) -> list[str]:
        """Return every organization that has a seal."""
        ...

    async def read(self, organization_id: str, first_sequence: int, limit: int) -> Sequence[Stored]:
        """Return seals from a sequence on."""
        ...

    async def find_place(self, kind: str, row: Mapping[str, Any]) -> Stored | None:
        """Return the seal of a row."""
        ...

    async def list_unsealed(
        self, organization_id: str | None, before_ms: int, limit: int
    ) -> list[tuple[str, Mapping[str, Any]]]:
        """Return rows recorded before a moment that have no seal."""
        ...


class DatabaseAudit:
    """One comparison of one export. ``statement`` is the export's own, already found good."""

    def __init__(self, store: ReadsSeals, statement: Statement) -> None:
        self._store = store
        self._statement = statement
        self._spans = statement.spans
        self._displaced: dict[str, Finding] = {}
        """Rows that stand in the database where the export has another one, by subject."""
        self._moved: set[str] = set()
        """Rows of the export that stand elsewhere or nowhere in the database."""

    async def compare(self, rows: Iterable[Entry | Finding]) -> AsyncIterator[Finding]:
        """Compare every row of the export, then look for rows that only the database has.

        What could not be read, and rows of whom the statement does not name, the check of the file itself reports.
        """
        for batch in _batches(row for row in rows if isinstance(row, Entry) and self._covers(row.organization_id)):
            async for finding in self._compare_batch(batch):
                yield finding
        for subject, finding in self._displaced.items():
            if subject not in self._moved:
                yield finding
        order = self._statement.order
        if order.to_ms is None:
            async for finding in self._find_backdated(order.exported_at_ms - GRACE_MS):
                yield finding

    async def name_missing(self, finding: Finding) -> list[Finding]:
        """Say which rows those are, as the database knows them, that a file lacks; at most a batch of them."""
        if not self._covers(finding.organization_id):
            return []
        count = min(finding.until - finding.sequence + 1, BATCH_ROWS)
        stored = await self._store.read(finding.organization_id, finding.sequence, count)
        return [
            Finding(Fault.MISSING, "the database has it", one.organization_id, one.sequence, _subject(one))
            for one in stored
            if one.sequence <= finding.until
        ]

    def _covers(self, organization_id: str) -> bool:
        """Whether the export was of an organization and has rows of it."""
        return organization_id in self._spans and self._may_name(organization_id)

    def _may_name(self, organization_id: str) -> bool:
        """Whether who may have this export may know of an organization."""
        return self._statement.order.organization_id in {None, organization_id}

    async def _compare_batch(self, batch: Sequence[Entry]) -> AsyncIterator[Finding]:
        organization_id = batch[0].organization_id
        first = min(entry.sequence for entry in batch)
        stored = {one.sequence: one for one in await self._store.read(organization_id, first, len(batch))}
        for entry in batch:
            found = stored.get(entry.sequence)
            if found is None:
                found = next(iter(await self._store.read(organization_id, entry.sequence, 1)), None)
            if found is None or found.sequence != entry.sequence or _subject(found) != entry.subject:
                yield await self._find_moved(entry, found)
            elif found.row is None:
                yield Finding.of(Fault.MISSING, entry, "the database has its seal, but not the row")
            else:
                for detail in _list_differences(entry, found):
                    yield Finding.of(Fault.CHANGED, entry, detail)

    async def _find_moved(self, entry: Entry, instead: Stored | None) -> Finding:
        if len(self._moved) < _MOST_MOVED:
            self._moved.add(entry.subject)
            if instead is not None and instead.sequence == entry.sequence:
                self._displaced[_subject(instead)] = _inserted(instead, "the export has another row in this place")
        place = await self._store.find_place(entry.kind, entry.row)
        if place is None or not self._may_name(place.organization_id):
            return Finding.of(Fault.MISSING, entry, "the database has no seal of it")
        where = f"organization {place.organization_id}, sequence {place.sequence}"
        return Finding.of(Fault.REORDERED, entry, f"in the database it stands as {where}")

    async def _find_backdated(self, before_ms: int) -> AsyncIterator[Finding]:
        """Find rows that claim to be older than the export, which does not have them."""
        only = self._statement.order.organization_id
        for organization_id in [only] if only else await self._store.list_organizations():
            span = self._spans.get(organization_id) or Span(organization_id, 1, 0, "", "")
            after = span.last_sequence
            while stored := await self._store.read(organization_id, after + 1, BATCH_ROWS):
                for one in stored:
                    if one.row is not None and _stamp(one.row) < before_ms and _subject(one) not in self._moved:
                        yield _inserted(one, "it says that it is older than the export, which does not have it")
                after = stored[-1].sequence
        for kind, row in await self._store.list_unsealed(only, before_ms, BATCH_ROWS):
            if name_row(kind, row) in self._moved:
                continue  # its seal was changed or removed, which was reported
            detail = "the database has it without a seal, and it says that it is older than the export"
            yield Finding(Fault.INSERTED, f"{name_row(kind, row)} of organization {row['organization_id']}: {detail}")


def _batches(rows: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Cut rows into batches of one organization."""
    batch: list[Entry] = []
    for row in rows:
        if batch and (len(batch) == BATCH_ROWS or batch[0].organization_id != row.organization_id):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _list_differences(entry: Entry, stored: Stored) -> list[str]:
    row = stored.row or {}
    names = [name for name in entry.row if row.get(name) != entry.row[name]]
    found = [f"{name} is {row.get(name)!r} in the database, {entry.row[name]!r} in the export" for name in names]
    seal = [name for name in ("previous_hash", "hash", "sealed_at_ms") if getattr(entry, name) != getattr(stored, name)]
    return found + [f"the {name} of its seal is another in the database" for name in seal]


def _inserted(stored: Stored, detail: str) -> Finding:
    return Finding(Fault.INSERTED, detail, stored.organization_id, stored.sequence, _subject(stored))


def _subject(stored: Stored) -> str:
    identity = {"request_id": stored.request_id, "attempt": stored.attempt, "id": stored.adjustment_id}
    return name_row(stored.kind, identity)


def _stamp(row: Mapping[str, Any]) -> int:
    return int(row["recorded_at_ms"] if "recorded_at_ms" in row else row["created_at_ms"])
