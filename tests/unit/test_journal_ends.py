"""The end of a request shares the write of the next record, and what that may not change."""

import asyncio
import errno
import random

import pytest

from fakes.files import CountedFiles
from fakes.journals import (
    SMALL,
    EventLog,
    MemoryStore,
    abandon,
    break_or_heal,
    intent,
    lose_power,
    make_record,
    new_journal,
    opened_journal,
    read_all,
    terminal,
    until,
    until_there_is_a_reserve,
)
from fakes.store import MovingClock
from meterhouse.errors import JournalDown
from meterhouse.ids import new_request_id
from meterhouse.ledger.adopter import Adopter
from meterhouse.ledger.chain import MOST_DEFERRED
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.folder import JournalPolicy
from meterhouse.ledger.shipper import Shipper
from meterhouse.usage import Outcome


@pytest.fixture
def files():
    return CountedFiles(loses_power=True)


async def test_an_end_is_written_with_the_next_record_and_before_it(tmp_path, files):
    async with opened_journal(tmp_path, files=files) as journal:
        files.writes.clear()
        assert [journal.append_end(b"first end"), journal.append_end(b"second end")] == [1, 2]
        assert files.writes == []
        assert journal.append(b"intent", is_admission=True) == 3
        [written] = files.writes
        assert written.index(b"first end") < written.index(b"second end") < written.index(b"intent")
        assert journal.is_writable
    assert read_all(tmp_path)[0] == [(1, b"first end"), (2, b"second end"), (3, b"intent")]


async def test_an_end_that_nobody_waits_for_is_written_in_the_next_turn_of_the_loop(tmp_path, files):
    async with opened_journal(tmp_path, files=files) as journal:
        files.writes.clear()
        journal.append_end(b"end")
        await asyncio.sleep(0)
        assert len(files.writes) == 1
        assert files.syncs == 0


async def test_ends_that_wait_for_their_barriers_are_one_write_and_one_sync(tmp_path, files):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    files.writes.clear()
    await asyncio.gather(*(journal.barrier(journal.append_end(b"%d" % n)) for n in range(20)))
    assert (len(files.writes), files.syncs) == (1, 1)
    await lose_power(journal, files)
    assert read_all(tmp_path, files) == ([(n + 1, b"%d" % n) for n in range(20)], [])


async def test_an_end_does_not_wait_for_a_disk_that_holds_a_sync_to_be_written(tmp_path, files):
    async with opened_journal(tmp_path, files=files) as journal:
        files.hold_syncs()
        first = asyncio.ensure_future(journal.barrier(journal.append_end(b"first")))
        await asyncio.sleep(0)  # it comes to the barrier
        await asyncio.sleep(0)  # and its sync begins
        files.wait_until_held()
        second = asyncio.ensure_future(journal.barrier(journal.append_end(b"second")))
        await until(lambda: any(b"second" in data for data in files.writes))
        assert not first.done()
        assert not second.done()
        files.release_syncs()
        await asyncio.gather(first, second)


async def test_an_end_is_written_also_where_a_sync_takes_too_long(tmp_path, files):
    policy = JournalPolicy(segment_bytes=8_192, retry_seconds=0.01, stall_seconds=0.001)
    async with opened_journal(tmp_path, files=files, policy=policy) as journal:
        files.hold_syncs()
        first = asyncio.ensure_future(journal.barrier(journal.append_end(b"first")))
        await asyncio.sleep(0)  # it comes to the barrier
        await asyncio.sleep(0)  # and its sync begins
        files.wait_until_held()
        journal.append_end(b"second")
        with pytest.raises(JournalDown):
            await first
        assert any(b"second" in data for data in files.writes)
        files.release_syncs()


async def test_as_many_ends_as_may_wait_are_written_with_one_more(tmp_path, files):
    policy = JournalPolicy(segment_bytes=1 << 20)
    async with opened_journal(tmp_path, files=files, policy=policy) as journal:
        files.writes.clear()
        for number in range(MOST_DEFERRED):
            journal.append_end(b"%d" % number)
        assert files.writes == []
        journal.append_end(b"one more")
        assert len(files.writes) == 1


async def test_with_durability_write_an_end_is_written_at_once(tmp_path):
    files = CountedFiles()
    async with opened_journal(tmp_path, files=files, policy=JournalPolicy(durability="write")) as journal:
        position = journal.append_end(b"end")
        assert b"end" in files.writes[-1]
        await journal.barrier(position)


async def test_closing_writes_what_waits(tmp_path):
    async with opened_journal(tmp_path) as journal:
        journal.append_end(b"end")
    assert read_all(tmp_path)[0] == [(1, b"end")]


# --- who reads and who adopts


async def test_whoever_reads_the_journal_finds_what_was_appended_before(tmp_path):
    store = MemoryStore()
    async with opened_journal(tmp_path) as journal:
        shipper = Shipper(store, journal, MovingClock(), EventLog(), interval_ms=60_000)
        records = [make_record(), make_record()]
        for record in records:
            journal.append(intent(record.request_id), is_admission=True)
            journal.append_end(terminal(record))
            async with shipper.paused_at(journal.position):
                assert (record.request_id, 1) in store.rows
        assert len(store.rows) == 2


async def test_an_end_that_died_with_its_process_before_it_was_written_is_a_lost_request(tmp_path):
    journal = new_journal(tmp_path, policy=JournalPolicy(segment_bytes=1 << 20))
    await journal.open()
    ended, lost = new_request_id(), new_request_id()
    journal.append(intent(ended), is_admission=True)
    journal.append_end(terminal(make_record(ended)))
    journal.append(intent(lost), is_admission=True)
    journal.append_end(terminal(make_record(lost)))
    await abandon(journal)
    store = MemoryStore()
    report = await Adopter(store, OsFiles(), EventLog()).adopt(tmp_path)
    assert (report.records, report.worker_lost) == (2, 1)
    assert store.rows[ended, 1].outcome is Outcome.COMPLETED
    assert store.rows[lost, 1].outcome is Outcome.WORKER_LOST


# --- the disk fails


@pytest.mark.parametrize("torn_bytes", [None, 0, 9, 20, 30])
async def test_a_write_that_fails_goes_into_the_reserve_with_all_that_it_held(tmp_path, files, torn_bytes):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    await until_there_is_a_reserve(journal)
    journal.append(b"before")
    files.fail_writes(2, torn_bytes=torn_bytes)
    journal.append_end(b"an end")
    assert journal.append(b"a longer payload", is_admission=True) == 3
    await journal.barrier(journal.append_end(b"after"))
    await lose_power(journal, files)
    found, damages = read_all(tmp_path, files)
    assert found == [(1, b"before"), (2, b"an end"), (3, b"a longer payload"), (4, b"after")]
    assert all(damage.lost_records == 0 for damage in damages)


async def test_what_does_not_fit_any_more_goes_into_the_next_segment(tmp_path, files):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    for number in range(60):
        await until(lambda: journal.is_writable)
        position = journal.append_end(b"%500d" % number)
        if number % 5 == 0:
            await journal.barrier(position)
    await journal.barrier(position)
    await lose_power(journal, files)
    assert read_all(tmp_path, files) == ([(n + 1, b"%500d" % n) for n in range(60)], [])


async def test_an_end_that_the_disk_does_not_take_fails_its_barrier_and_is_written_when_the_disk_is_well(
    tmp_path, files
):
    log = EventLog()
    journal = new_journal(tmp_path, files=files, log=log)
    await journal.open()
    await until_there_is_a_reserve(journal)
    files.fail_writes()
    position = journal.append_end(b"of one that runs")
    assert journal.is_writable
    with pytest.raises(JournalDown):
        await journal.barrier(position)
    assert not journal.is_writable
    with pytest.raises(JournalDown):
        journal.append(b"new", is_admission=True)
    assert str(errno.EIO) in str(log.fields_of("journal.write_failed")[0]["error"])
    with pytest.raises(JournalDown):
        await journal.barrier(journal.append_end(b"of another"))
    files.heal()
    await until(lambda: journal.is_writable)
    await journal.barrier(journal.append_end(b"intent"))
    await lose_power(journal, files)
    assert read_all(tmp_path, files)[0] == [(1, b"of one that runs"), (2, b"of another"), (3, b"intent")]


async def test_an_end_that_waited_for_an_intent_that_is_refused_is_kept(tmp_path, files):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    await until_there_is_a_reserve(journal)
    ended = asyncio.ensure_future(journal.barrier(journal.append_end(b"end")))
    files.fail_writes()
    with pytest.raises(JournalDown):
        journal.append(b"intent", is_admission=True)
    assert not journal.is_writable
    with pytest.raises(JournalDown):
        await ended
    files.heal()
    await until(lambda: journal.is_writable)
    await journal.barrier(journal.position)
    await lose_power(journal, files)
    assert read_all(tmp_path, files)[0] == [(1, b"end")]


async def test_an_end_larger_than_a_segment_is_refused_at_once(tmp_path):
    async with opened_journal(tmp_path) as journal:
        with pytest.raises(JournalDown):
            journal.append_end(bytes(SMALL.segment_bytes))
        await journal.barrier(journal.append_end(b"small"))


async def test_whatever_fails_every_acknowledged_end_is_readable_after_a_loss_of_power(tmp_path, files):
    chance = random.Random(42)
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    acknowledged, refused = set(), set()

    async def run(number):
        size = chance.randrange(700)
        try:
            journal.append(b"intent %d" % number, is_admission=True)
        except JournalDown:
            refused.add(b"intent %d" % number)
            return
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        try:
            await journal.barrier(journal.append_end(b"end %d:" % number + bytes(size)))
        except JournalDown:
            return
        acknowledged.add(b"end %d" % number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(400):
            tasks.create_task(run(number))
            break_or_heal(files, chance)
            if chance.randrange(3) == 0:
                await asyncio.sleep(0.001)
        files.heal()
    await lose_power(journal, files)
    found, _ = read_all(tmp_path, files)
    names = [payload.partition(b":")[0] for _, payload in found]
    assert len(names) == len(set(names))
    assert acknowledged <= set(names)
    assert not refused & set(names)
    assert all(names.index(name.replace(b"end", b"intent")) < names.index(name) for name in acknowledged)
    assert len(acknowledged) > 50
