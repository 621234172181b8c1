"""What tests of the journal share: payloads, a journal in a folder, a store in memory, a log that remembers."""

import asyncio
import itertools
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec

from fakes.store import MovingClock
from meterhouse.errors import StoreDown
from meterhouse.ids import new_request_id
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.folder import JournalPolicy, SegmentFolder
from meterhouse.ledger.journal import Journal
from meterhouse.ledger.reader import JournalReader
from meterhouse.ledger.record import Checkpoint, CheckpointEntry, Intent, Terminal, encode
from meterhouse.metering import Sums
from meterhouse.money import Component, Meterable, Price
from meterhouse.usage import Exactness, Outcome, Usage, UsageRecord

SMALL = JournalPolicy(segment_bytes=8_192, retry_seconds=0.01)
"""Segments that fill quickly."""
PRICE = Price(
    id="price_1",
    provider="openai",
    model="gpt",
    components=(Component(Meterable.INPUT, 2_000_000), Component(Meterable.OUTPUT, 8_000_000)),
    effective_from_ms=0,
    source="test",
)
"""2 nanos per input token, 8 per output token."""


class EventLog:
    """Remembers what was logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.lines.append((str(event), fields))

    warning = error = info

    def fields_of(self, event: str) -> list[dict[str, object]]:
        return [fields for name, fields in self.lines if name == event]


class MemoryStore:
    """A ledger of usage records in a dictionary, which can go down, hold an insert back, or lose its answer."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], UsageRecord] = {}
        self.batches: list[int] = []
        self.is_down = False
        self.loses_answers = 0
        self.gate: asyncio.Event | None = None
        self.waiting = 0

    async def insert(self, records) -> int:
        if self.gate is not None:
            self.waiting += 1
            await self.gate.wait()
        if self.is_down:
            raise StoreDown("down")
        new = {(r.request_id, r.attempt): r for r in records if (r.request_id, r.attempt) not in self.rows}
        self.rows |= new
        self.batches.append(len(records))
        if self.loses_answers:
            self.loses_answers -= 1
            raise StoreDown("committed, and the connection was lost")
        return len(new)

    async def sum_periods(self, periods) -> list[Sums]:
        rows = self.rows.values()
        total = Sums(
            sum(row.requests for row in rows),
            sum(row.usage.total_tokens for row in rows),
            sum(row.charge_nanos for row in rows),
        )
        return [total for _ in periods]


def make_record(request_id: str | None = None, **changes) -> UsageRecord:
    plain = UsageRecord(
        request_id=request_id or new_request_id(),
        attempt=1,
        requests=1,
        organization_id="org_1",
        project_id="proj_1",
        key_id="key_1",
        root_key_id="key_1",
        model="gpt",
        served_model="gpt",
        provider="openai",
        deployment="openai-1",
        upstream_model="gpt",
        operation="chat",
        service_tier="",
        outcome=Outcome.COMPLETED,
        exactness=Exactness.REPORTED,
        error_owner="",
        error_code="",
        is_streamed=True,
        is_suspect=False,
        usage=Usage(input_tokens=100, output_tokens=10),
        price_id="price_1",
        charge_nanos=280,
        charges=(("input", 200), ("output", 80)),
        overrun_nanos=0,
        admitted_at_ms=1_800_000_000_000,
        time_to_first_token_ms=120,
        duration_ms=900,
        trace_id="a" * 32,
    )
    return msgspec.structs.replace(plain, **changes)


def make_intent(request_id: str, attempt: int = 1, price: Price | None = PRICE, **changes) -> Intent:
    plain = Intent(
        request_id=request_id,
        attempt=attempt,
        organization_id="org_1",
        project_id="proj_1",
        key_id="key_1",
        root_key_id="key_1",
        model="gpt",
        provider="openai",
        deployment=f"openai-{attempt}",
        upstream_model="gpt",
        operation="chat",
        is_streamed=True,
        input_tokens_estimate=50,
        price=msgspec.Raw(msgspec.msgpack.encode(price)) if price is not None else None,
        admitted_at_ms=1_800_000_000_000,
        trace_id="b" * 32,
    )
    return msgspec.structs.replace(plain, **changes)


def intent(request_id: str, attempt: int = 1, **changes) -> bytes:
    return encode(make_intent(request_id, attempt, **changes))


def terminal(*records: UsageRecord) -> bytes:
    return encode(Terminal(records or (make_record(),)))


def checkpoint(request_id: str, output_tokens: int, attempt: int = 1, *, is_reported: bool = False) -> bytes:
    usage = Usage(input_tokens=70, output_tokens=output_tokens)
    return encode(Checkpoint((CheckpointEntry(request_id, attempt, usage, is_reported),)))


def new_journal(folder: Path, *, files=None, policy: JournalPolicy = SMALL, log=None, clock=None) -> Journal:
    return Journal(folder, files or OsFiles(), clock or MovingClock(), policy, log or EventLog())


@asynccontextmanager
async def opened_journal(folder: Path, **changes):
    journal = new_journal(folder, **changes)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.close()


async def abandon(journal: Journal) -> None:
    """Let go of a journal's files as death does: nothing is written, synced or marked."""
    journal._chain.position = journal._chain.written
    journal._chain.drop_intents()
    journal._admissions.waiting.clear()
    journal._is_open = journal._is_admitting = False
    if journal._retry is not None:
        journal._retry.cancel()
    if journal._syncer is not None:
        await journal._syncer.stop()
    await journal._supply.close(released=journal.list_segments())


def break_or_heal(files, chance) -> None:
    """Break a disk in one of several ways, or heal it, or leave it as it is, mostly."""
    fault = chance.randrange(40)
    if fault == 0:
        files.fail_syncs(chance.randrange(1, 4))
    elif fault == 1:
        files.fail_writes(chance.randrange(1, 4), torn_bytes=chance.choice([None, 5, 30, 400]))
    elif fault == 2:
        files.fill_disk()
    elif fault < 10:
        files.heal()


@contextmanager
def locked_segments(folder: Path, files=None):
    """Give the segments of the one dead journal in a folder."""
    host = SegmentFolder(folder, files or OsFiles(), SMALL)
    held = [host.lock(name) for name in host.list_segments("seg", "shipped")]
    try:
        yield [file for file in held if file is not None]
    finally:
        for file in held:
            if file is not None:
                host.release(file)


def read_all(folder: Path, files=None):
    """Return everything that can be read of the one dead journal in a folder, and what is damaged."""
    damages = []
    with locked_segments(folder, files) as segments:
        return list(JournalReader(files or OsFiles(), lambda: segments, damages.append)), damages


async def until_there_is_a_reserve(journal: Journal) -> None:
    """Wait until a journal by ``SMALL`` has a segment to go on in."""
    await until(lambda: journal.figures.spool_bytes == 2 * SMALL.segment_bytes)


async def lose_power(journal: Journal, files) -> None:
    """Drop what no sync has made durable, and the process with it."""
    files.drop_unsynced()
    await abandon(journal)


async def until(condition, timeout_seconds: float = 30) -> None:
    """Return when a condition holds; what it waits for happens on other threads."""
    for _ in itertools.repeat(None):
        if condition():
            return
        timeout_seconds -= 0.002
        assert timeout_seconds > 0, "it did not happen"
        await asyncio.sleep(0.002)
