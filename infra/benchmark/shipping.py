"""``--ship N``: what it costs to bring N records from a journal into PostgreSQL, sealed.

A journal of N requests is written; then its own shipper drains it, and the sealer looks for what has no seal yet, as in
a worker that has nothing else to do. Once in small batches, as many records as 1,000 requests/s leave in the 200 ms
between two of them, and once in the largest. This process has the server's core, PostgreSQL the others.
"""

import argparse
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvloop

from benchmark.gateway import run_stores
from benchmark.proc import read_cpu_seconds
from benchmark.report import Outcome
from benchmark.servers import BenchError, choose_cores
from benchmark.wire import MODEL
from meterhouse.db.engine import close, open_engine
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.seals import SealStore
from meterhouse.garbage import calm_garbage_collector
from meterhouse.ids import new_request_id
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.folder import JournalPolicy
from meterhouse.ledger.journal import Journal
from meterhouse.ledger.record import Intent, Terminal, encode
from meterhouse.ledger.seal import hash_rows
from meterhouse.ledger.sealer import Sealer
from meterhouse.ledger.shipper import Shipper
from meterhouse.money import Component, Meterable, Price
from meterhouse.stores import SystemClock
from meterhouse.telemetry.logs import get_logger
from meterhouse.usage import Exactness, Usage, UsageRecord
from meterhouse.usage import Outcome as End

BATCHES = (200, 1_000)
KEYS = 20
ORGANIZATION = "org_bench00000000000000"
FLUSH_RECORDS = 500
MICROSECONDS = 1e6
PRICE = Price(
    id="price_bench",
    provider="bench",
    model=MODEL,
    components=(Component(Meterable.INPUT, 150_000_000), Component(Meterable.OUTPUT, 600_000_000)),
    effective_from_ms=0,
    source="bench",
)


@dataclass(frozen=True)
class Drained:
    """What one piece of work took."""

    name: str
    rows: int
    seconds: float
    worker_us: float
    """CPU of this process per row."""
    postgres_us: float
    """CPU of PostgreSQL per row."""

    def describe(self) -> str:
        """Say it in a line."""
        rate = self.rows / self.seconds
        cpu = f"CPU us per row: worker {self.worker_us:,.1f}, PostgreSQL {self.postgres_us:,.1f}"
        return f"{self.name}: {rate:,.0f} rows/s; {cpu}"


def ship(arguments: argparse.Namespace, folder: Path) -> Outcome:
    """Write, ship and seal, with each size of batch."""
    cores, own = choose_cores(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores.others)
    try:
        with run_stores(folder) as place:
            os.sched_setaffinity(0, cores.server)
            postgres = {"postgres": place.started["postgres"].pid}
            found = uvloop.run(_drain_all(place.database_url, folder, postgres, arguments.ship))
    finally:
        os.sched_setaffinity(0, own)
    return Outcome(
        lines=[drained.describe() for drained in found],
        figures={"records": arguments.ship, "drained": [vars(drained) for drained in found]},
    )


async def _drain_all(url: str, folder: Path, postgres: dict[str, int], count: int) -> list[Drained]:
    calm_garbage_collector()  # as the clerk does
    engine = open_engine(url)
    found = []
    try:
        seals = SealStore(engine, hash_rows)
        sealer = Sealer(seals, get_logger())
        for batch_records in BATCHES:
            journal = Journal(
                folder / f"journal-{batch_records}",
                OsFiles(),
                SystemClock(),
                JournalPolicy(durability="write"),
                get_logger(),
            )
            await journal.open()
            try:
                await _write(journal, count)
                shipper = Shipper(
                    LedgerStore(engine, hash_rows=hash_rows),
                    journal,
                    SystemClock(),
                    get_logger(),
                    batch_records=batch_records,
                )
                work = partial(shipper.ship_until, journal.position)
                name = f"shipped and sealed in batches of {batch_records:,}"
                found.append(await _measure(name, count, postgres, work))
            finally:
                await journal.close()
            found.append(await _measure("looked at by the sealer", count, postgres, sealer.seal_all))
            _, behind = await seals.find_span(ORGANIZATION, None, None)
            if behind != 1 + count * (len(found) // 2):
                raise BenchError(f"{behind - 1:,} rows are sealed")
    finally:
        await close(engine)
    return found


async def _measure(name: str, rows: int, postgres: dict[str, int], work: Callable[[], Awaitable[object]]) -> Drained:
    before, cpu, began = read_cpu_seconds(postgres)["postgres"], time.process_time(), time.perf_counter()
    await work()
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    of_postgres = read_cpu_seconds(postgres)["postgres"] - before
    return Drained(name, rows, seconds, used / rows * MICROSECONDS, of_postgres / rows * MICROSECONDS)


async def _write(journal: Journal, count: int) -> None:
    for number in range(count):
        record = _record(f"key_{number % KEYS:012d}")
        journal.append(encode(_intent(record)))
        position = journal.append(encode(Terminal((record,))))
        if number % FLUSH_RECORDS == 0:
            await journal.barrier(position)
    await journal.barrier(journal.position)


def _record(key_id: str) -> UsageRecord:
    """Make a record as the gateway makes it of the benchmark's JSON answers."""
    return UsageRecord(
        request_id=new_request_id(),
        attempt=1,
        requests=1,
        organization_id=ORGANIZATION,
        project_id="proj_bench0000000000000",
        key_id=key_id,
        root_key_id=key_id,
        model=f"bench/{MODEL}",
        served_model=MODEL,
        provider="bench",
        deployment="bench-0",
        upstream_model=MODEL,
        operation="chat",
        service_tier="",
        outcome=End.COMPLETED,
        exactness=Exactness.REPORTED,
        error_owner="",
        error_code="",
        is_streamed=False,
        is_suspect=False,
        usage=Usage(input_tokens=12, output_tokens=20),
        price_id=PRICE.id,
        charge_nanos=13_800,
        charges=(("input", 1_800), ("output", 12_000)),
        overrun_nanos=0,
        admitted_at_ms=time.time_ns() // 1_000_000,
        time_to_first_token_ms=None,
        duration_ms=9,
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
    )


def _intent(record: UsageRecord) -> Intent:
    return Intent(
        request_id=record.request_id,
        attempt=record.attempt,
        organization_id=record.organization_id,
        project_id=record.project_id,
        key_id=record.key_id,
        root_key_id=record.root_key_id,
        model=record.model,
        provider=record.provider,
        deployment=record.deployment,
        upstream_model=record.upstream_model,
        operation=record.operation,
        is_streamed=record.is_streamed,
        input_tokens_estimate=12,
        price=PRICE,
        admitted_at_ms=record.admitted_at_ms,
        trace_id=record.trace_id,
    )
