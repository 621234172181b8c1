import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.files import FaultyFiles
from fakes.journals import (
    SMALL,
    EventLog,
    MemoryStore,
    abandon,
    lose_power,
    new_journal,
    opened_journal,
    read_all,
    until,
    until_there_is_a_reserve,
)
from meterhouse.errors import JournalDown
from meterhouse.ledger.adopter import Adopter
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.folder import JournalPolicy
from meterhouse.usage import Outcome

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture
def files():
    return FaultyFiles(loses_power=True)


def segments_in(folder):
    return [path for path in folder.iterdir() if path.suffix == ".seg"]


# --- fdatasync is held back


async def test_no_barrier_returns_while_fdatasync_is_held_back_and_writing_goes_on(tmp_path, files):
    async with opened_journal(tmp_path, files=files) as journal:
        files.hold_syncs()
        waiting = [asyncio.ensure_future(journal.barrier(journal.append(b"%d" % n))) for n in range(10)]
        await asyncio.sleep(0)  # they come to their barriers
        await asyncio.sleep(0)  # and share one sync
        files.wait_until_held()
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in waiting)
        assert journal.is_writable
        assert journal.append(b"intent", is_admission=True) == 11
        files.release_syncs()
        await asyncio.gather(*waiting)


async def test_a_disk_that_never_ends_a_sync_is_taken_for_down_until_it_does(tmp_path, files):
    policy = JournalPolicy(segment_bytes=8_192, retry_seconds=0.01, stall_seconds=0.05)
    async with opened_journal(tmp_path, files=files, policy=policy) as journal:
        files.hold_syncs()
        with pytest.raises(JournalDown):
            await asyncio.wait_for(journal.barrier(journal.append(b"record")), 5)
        assert not journal.is_writable
        with pytest.raises(JournalDown):
            journal.append(b"intent", is_admission=True)
        files.release_syncs()
        await until(lambda: journal.is_writable)
        await journal.barrier(journal.append(b"intent", is_admission=True))
    assert [payload for _, payload in read_all(tmp_path)[0]] == [b"record", b"intent"]


async def test_what_was_not_acknowledged_may_be_gone_after_a_loss_of_power_and_the_rest_is_not(tmp_path, files):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    await journal.barrier(journal.append(b"acknowledged"))
    journal.append(b"not acknowledged")
    await lose_power(journal, files)
    assert read_all(tmp_path, files) == ([(1, b"acknowledged")], [])


@pytest.mark.parametrize("keep_bytes", [0, 1, 17, 40, 70])
async def test_a_torn_tail_is_reported_and_costs_nothing_that_was_acknowledged(tmp_path, files, keep_bytes):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    await journal.barrier(journal.append(b"acknowledged"))
    for _ in range(3):
        journal.append(b"not acknowledged")
    files.drop_unsynced(keep_bytes)
    piece = files._unsynced
    files._unsynced = {}
    for path in segments_in(tmp_path):
        found = path.stat()
        with path.open("r+b") as file:
            for offset, data in piece.get((found.st_dev, found.st_ino), ()):
                file.seek(offset)
                file.write(data)
    await abandon(journal)
    found, damages = read_all(tmp_path)
    assert found == [(1, b"acknowledged"), (2, b"not acknowledged"), (3, b"not acknowledged")][: 1 + keep_bytes // 32]
    assert [damage.lost_records for damage in damages] == ([] if keep_bytes == 0 else [None])


# --- fdatasync fails


async def test_a_sync_that_fails_once_is_not_tried_again_but_rewritten_and_acknowledged(tmp_path, files):
    log = EventLog()
    journal = new_journal(tmp_path, files=files, log=log)
    await journal.open()
    await journal.barrier(journal.append(b"before"))
    suspect = journal.list_segments()[0]
    await until_there_is_a_reserve(journal)
    files.fail_syncs(1)
    positions = [journal.append(b"%d" % n) for n in range(5)]
    await asyncio.gather(*(journal.barrier(position) for position in positions))
    assert journal.is_writable
    assert journal.list_segments()[-1] is not suspect
    assert journal.figures.sync_failures == 1
    assert log.fields_of("journal.sync_failed")[0]["unacknowledged_records"] == 5
    await lose_power(journal, files)
    found, damages = read_all(tmp_path, files)
    assert found == [(1, b"before"), *((n + 2, b"%d" % n) for n in range(5))]
    assert not damages


async def test_a_sync_that_fails_once_with_no_reserve_waits_for_a_new_segment(tmp_path, files):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    files.fail_syncs(1)
    # The reserve is being made by another thread, so nothing is in reserve at this moment.
    await journal.barrier(journal.append(b"x"))
    await lose_power(journal, files)
    assert read_all(tmp_path, files)[0] == [(1, b"x")]


async def test_syncs_that_always_fail_take_the_journal_down_until_the_disk_is_well(tmp_path, files):
    log = EventLog()
    journal = new_journal(tmp_path, files=files, log=log)
    await journal.open()
    await journal.barrier(journal.append(b"before"))
    files.fail_syncs()
    outcomes = await asyncio.gather(
        *(journal.barrier(journal.append(b"%d" % n)) for n in range(5)), return_exceptions=True
    )
    assert all(isinstance(outcome, JournalDown) for outcome in outcomes)
    assert not journal.is_writable
    with pytest.raises(JournalDown):
        journal.append(b"new", is_admission=True)
    late = journal.append(b"of one that runs")
    with pytest.raises(JournalDown):
        await journal.barrier(late)
    tries = journal.figures.sync_failures
    await until(lambda: journal.figures.sync_failures > tries + 3)
    assert len(segments_in(tmp_path)) <= 4
    files.heal()
    await until(lambda: journal.is_writable)
    await journal.barrier(late)
    assert journal.append(b"new", is_admission=True) == late + 1
    assert {"journal_id": journal.journal_id, "is_recovered": True} in log.fields_of("journal.opened")
    await lose_power(journal, files)
    found, damages = read_all(tmp_path, files)
    assert found == [(1, b"before"), *((n + 2, b"%d" % n) for n in range(5)), (late, b"of one that runs")]
    assert not damages


async def test_what_was_rewritten_is_read_once_and_in_its_order_by_who_reads_meanwhile(tmp_path, files):
    async with opened_journal(tmp_path, files=files) as journal:
        reader = journal.open_reader(lambda damage: pytest.fail(str(damage)))
        seen = []
        for n in range(30):
            files.fail_syncs(n % 4)
            position = journal.append(b"%d" % n)
            try:
                await journal.barrier(position)
            except JournalDown:
                files.heal()
                await until(lambda: journal.is_writable)
            if n % 3:
                seen += reader.read(until=position, max_records=100)
        while entries := reader.read(until=30, max_records=7):
            seen += entries
        assert seen == [(n + 1, b"%d" % n) for n in range(30)]


async def test_segments_that_are_full_while_syncs_fail_are_no_gap_to_who_reads_meanwhile(tmp_path, files):
    """The first of them lost its header with the sync that failed: what comes after it is not where to go on."""
    policy = JournalPolicy(segment_bytes=8_192, max_pending_bytes=60_000, retry_seconds=0.05)
    async with opened_journal(tmp_path, files=files, policy=policy) as journal:
        reader = journal.open_reader(lambda damage: pytest.fail(str(damage)))
        await journal.barrier(journal.append(b"before"))
        seen = reader.read(until=None, max_records=100)
        files.fail_syncs()
        for number in range(60):
            position = journal.append(b"%500d" % number)
            if number % 6 == 0:
                with pytest.raises(JournalDown):
                    await journal.barrier(position)
            await asyncio.sleep(0.005)
            seen += reader.read(until=position, max_records=100)
        files.heal()
        await until(lambda: journal.is_writable)
        await journal.barrier(position)
        while entries := reader.read(until=position, max_records=100):
            seen += entries
        assert seen == [(1, b"before"), *((n + 2, b"%500d" % n) for n in range(60))]


async def test_what_is_acknowledged_of_a_rewrite_is_found_before_what_stands_beyond_a_hole(tmp_path, files):
    policy = JournalPolicy(segment_bytes=8_192, max_pending_bytes=60_000, retry_seconds=0.05)
    journal = new_journal(tmp_path, files=files, policy=policy)
    await journal.open()
    await journal.barrier(journal.append(b"before"))
    files.fail_syncs()
    for number in range(60):
        position = journal.append(b"%500d" % number)
        if number == 0:
            with pytest.raises(JournalDown):
                await journal.barrier(position)
        await asyncio.sleep(0.002)
    await until(lambda: journal._supply._reserve is not None)
    files.fill_disk()
    files.fail_syncs(0)
    durable = journal.durable_position
    await until(lambda: journal.durable_position > durable)
    acknowledged = journal.durable_position
    assert acknowledged < position
    await abandon(journal)
    found, _ = read_all(tmp_path, files)
    assert [at for at, _ in found[:acknowledged]] == list(range(1, acknowledged + 1))


# --- no room, no write


async def test_with_a_full_disk_only_what_runs_already_is_written_and_then_nothing_is_released(tmp_path, files):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    await until_there_is_a_reserve(journal)
    files.fill_disk()
    while journal.is_writable:
        journal.append(bytes(500), is_admission=True)
        await asyncio.sleep(0.001)
    with pytest.raises(JournalDown):
        journal.append(b"new", is_admission=True)
    await journal.barrier(journal.append(b"of one that runs"))
    for _ in range(20):
        position = journal.append(bytes(500))
    with pytest.raises(JournalDown):
        await journal.barrier(position)
    files.heal()
    await until(lambda: journal.is_writable)
    await journal.barrier(position)
    await lose_power(journal, files)
    found, damages = read_all(tmp_path, files)
    assert [at for at, _ in found] == list(range(1, position + 1))
    assert not damages


async def test_what_waits_for_the_disk_is_bounded(tmp_path, files):
    policy = JournalPolicy(segment_bytes=8_192, max_pending_bytes=40_000, retry_seconds=0.01)
    async with opened_journal(tmp_path, files=files, policy=policy) as journal:
        files.fill_disk()
        for _ in range(40_000 // 500):
            position = journal.append(bytes(500))
        with pytest.raises(JournalDown):
            journal.append(bytes(500))
        assert journal.position == position
        files.heal()
        await until(lambda: journal.is_writable)
        await journal.barrier(position)


async def test_what_fills_several_segments_is_written_when_the_disk_is_well_again(tmp_path, files):
    policy = JournalPolicy(segment_bytes=8_192, max_pending_bytes=40_000, retry_seconds=0.01)
    log = EventLog()
    async with opened_journal(tmp_path, files=files, policy=policy, log=log) as journal:
        files.fill_disk()
        for _ in range(40_000 // 500):
            position = journal.append(bytes(500))
        await until(lambda: log.fields_of("journal.write_failed"))
        files.heal()
        await until(lambda: journal.is_writable)
        await journal.barrier(position)


async def test_with_durability_write_a_full_disk_fails_the_barrier_too(tmp_path):
    files = FaultyFiles()
    policy = JournalPolicy(durability="write", segment_bytes=8_192, retry_seconds=0.01)
    journal = new_journal(tmp_path, files=files, policy=policy)
    await journal.open()
    await until_there_is_a_reserve(journal)
    files.fill_disk()
    for _ in range(40):
        position = journal.append(bytes(500))
    with pytest.raises(JournalDown):
        await journal.barrier(position)
    files.heal()
    await until(lambda: journal.is_writable)
    await journal.barrier(position)
    await abandon(journal)
    assert [at for at, _ in read_all(tmp_path)[0]] == list(range(1, position + 1))


@pytest.mark.parametrize("torn_bytes", [None, 0, 9, 20])
async def test_a_write_that_fails_goes_into_the_reserve(tmp_path, files, torn_bytes):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    await until_there_is_a_reserve(journal)
    journal.append(b"before")
    files.fail_writes(2, torn_bytes=torn_bytes)
    assert journal.append(b"a longer payload", is_admission=True) == 2
    await journal.barrier(journal.append(b"after"))
    await lose_power(journal, files)
    found, damages = read_all(tmp_path, files)
    assert found == [(1, b"before"), (2, b"a longer payload"), (3, b"after")]
    assert all(damage.lost_records == 0 for damage in damages)


async def test_writes_that_always_fail_take_the_journal_down_until_the_disk_is_well(tmp_path, files):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    await until_there_is_a_reserve(journal)
    files.fail_writes()
    with pytest.raises(JournalDown):
        journal.append(b"new", is_admission=True)
    assert not journal.is_writable
    position = journal.append(b"of one that runs")
    assert position == 1
    with pytest.raises(JournalDown):
        await journal.barrier(position)
    await asyncio.sleep(SMALL.retry_seconds * 5)
    files.heal()
    await until(lambda: journal.is_writable)
    await journal.barrier(position)
    await lose_power(journal, files)
    assert read_all(tmp_path, files)[0] == [(1, b"of one that runs")]


async def test_whatever_fails_every_acknowledged_record_is_readable_after_a_loss_of_power(tmp_path, files):
    chance = random.Random(20)
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    acknowledged = set()

    async def write(number):
        try:
            position = journal.append(b"%d:" % number + bytes(chance.randrange(700)))
            await journal.barrier(position)
        except JournalDown:
            return
        acknowledged.add(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(400):
            tasks.create_task(write(number))
            fault = chance.randrange(40)
            if fault == 0:
                files.fail_syncs(chance.randrange(1, 4))
            elif fault == 1:
                files.fail_writes(chance.randrange(1, 4), torn_bytes=chance.choice([None, 5, 30]))
            elif fault == 2:
                files.fill_disk()
            elif fault < 10:
                files.heal()
            if chance.randrange(3) == 0:
                await asyncio.sleep(0.002)
        files.heal()
    assert len(acknowledged) > 50
    await lose_power(journal, files)
    found, _ = read_all(tmp_path, files)
    assert acknowledged <= {int(payload.partition(b":")[0]) for _, payload in found}


# --- kill -9


def kill_after(records, folder, kind):
    """Kill a process that writes a journal once it has acknowledged so many records; returns what it said."""
    command = [sys.executable, "-m", "fakes.journal_process", str(folder), kind]
    with subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(records)]
        process.kill()
        return lines + process.stdout.readlines()


@pytest.mark.parametrize("kind", ["os", "power"])
@pytest.mark.parametrize("records", [1, 300])
async def test_after_kill_9_every_acknowledged_record_is_adopted_once(tmp_path, kind, records):
    lines = await asyncio.to_thread(kill_after, records, tmp_path, kind)
    acknowledged = {line.decode().strip() for line in lines if line.endswith(b"\n")}
    store, log = MemoryStore(), EventLog()
    adopter = Adopter(store, OsFiles(), log, batch_records=100)
    report = await adopter.adopt(tmp_path)
    completed = {key for key, row in store.rows.items() if row.outcome is Outcome.COMPLETED}
    assert acknowledged <= {request_id for request_id, _ in completed}
    assert report.journals == 1
    assert report.records == len(store.rows) == len(completed) + report.worker_lost
    assert report.worker_lost <= 8
    assert report.nanos == sum(row.charge_nanos for row in store.rows.values())
    before = dict(store.rows)
    assert (await adopter.adopt(tmp_path)).journals == 0
    replayed = await adopter.replay(tmp_path)
    assert (replayed.records, replayed.worker_lost) == (0, report.worker_lost)
    assert store.rows == before
