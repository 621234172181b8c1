"""``--sync N``: what it costs to make N records durable, by the kernel's own queue and by a thread, in turn.

A journal of its own for each, one barrier at a time and 32. CPU time of this process per record, and of the kernel's
workers on its core: they do what the kernel's queue is told, and no process is billed for it, so that only the sums
compare. What those workers do for others at that moment counts too.
"""

import argparse
import asyncio
import os
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

import uvloop

from benchmark.proc import read_kernel_seconds
from benchmark.report import Outcome
from benchmark.servers import BenchError, choose_cores
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.folder import JournalPolicy
from meterhouse.ledger.journal import Journal
from meterhouse.stores import SystemClock
from meterhouse.telemetry.logs import get_logger

WAITERS = (1, 32)
WARM_RECORDS = 100
PAYLOAD = bytes(600)
MICROSECONDS = 1e6


class ThreadFiles(OsFiles):
    """Files whose fdatasync is not known to be the system's own, so that a thread has to call it."""

    def fdatasync(self, descriptor: int, /) -> None:  # type: ignore[override]
        """Make the data of a file durable."""
        os.fdatasync(descriptor)


WAYS = {"kernel": OsFiles, "thread": ThreadFiles}


@dataclass(frozen=True)
class Synced:
    """What one record took; microseconds, but for the syncs."""

    elapsed: float
    own: float
    kernel: float
    syncs: float


def compare_syncs(arguments: argparse.Namespace, folder: Path) -> Outcome:
    """Measure each way with each number of waiters, round after round."""
    cores, own = choose_cores(), os.sched_getaffinity(0)
    found: dict[tuple[int, str], list[Synced]] = {}
    os.sched_setaffinity(0, cores.server)
    try:
        for turn, waiters, way in product(range(arguments.rounds), WAITERS, WAYS):
            place = folder / f"{way}-{waiters}-{turn}"
            synced = uvloop.run(_measure(place, way, waiters, arguments.sync))
            found.setdefault((waiters, way), []).append(synced)
    finally:
        os.sched_setaffinity(0, own)
    outcome = Outcome(lines=["waiters  synced by  us a record  syncs  CPU us: process  kernel     sum"])
    for (waiters, way), turns in found.items():
        elapsed, syncs = median(turn.elapsed for turn in turns), median(turn.syncs for turn in turns)
        process, kernel = median(turn.own for turn in turns), median(turn.kernel for turn in turns)
        total = median(turn.own + turn.kernel for turn in turns)
        line = f"{waiters:7}  {way:9}  {elapsed:11,.1f}  {syncs:5.2f}  {process:15,.1f}  {kernel:6,.1f}  {total:6,.1f}"
        outcome.lines.append(line)
        outcome.figures[f"{waiters}_{way}"] = [vars(turn) for turn in turns]
    return outcome


async def _measure(folder: Path, way: str, waiters: int, count: int) -> Synced:
    journal = Journal(folder, WAYS[way](), SystemClock(), JournalPolicy(), get_logger())
    await journal.open()
    each_waiter = max(1, count // waiters)

    async def write(records: int) -> None:
        for _ in range(records):
            await journal.barrier(journal.append_end(PAYLOAD))

    try:
        if journal.synced_by.split()[0] != way:
            raise BenchError(f"the kernel's queue cannot be used here: {journal.synced_by}")
        await write(WARM_RECORDS)
        (core,) = os.sched_getaffinity(0)
        syncs, kernel = journal.figures.syncs, read_kernel_seconds(core)
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.gather(*(write(each_waiter) for _ in range(waiters)))
        elapsed, own = time.perf_counter() - began, time.process_time() - cpu
        kernel, syncs = read_kernel_seconds(core) - kernel, journal.figures.syncs - syncs
    finally:
        await journal.close()
    done = each_waiter * waiters
    each = MICROSECONDS / done
    return Synced(elapsed * each, own * each, kernel * each, syncs / done)
