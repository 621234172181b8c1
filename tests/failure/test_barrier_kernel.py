"""The journal's production way of syncing, on a disk that really hangs or fails: the kernel's own worker meets it."""

import asyncio
import os
import select

import pytest

from fakes.files import AskedFiles
from fakes.journals import SMALL, EventLog, new_journal, opened_journal, read_all, until, until_there_is_a_reserve
from fakes.small_disk import mounted_disk
from meterhouse.errors import JournalDown
from meterhouse.ledger import kernel_syncer, syncer
from meterhouse.ledger.aio import SyncQueue
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.folder import JournalPolicy

pytestmark = pytest.mark.slow_fault
WAYS = {"kernel": OsFiles(), "thread": AskedFiles()}


@pytest.fixture(params=WAYS)
def files(request):
    return WAYS[request.param]


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted_disk(folder) as mounted:
        yield mounted


async def test_no_barrier_returns_while_the_disk_holds_a_sync(tmp_path, disk, files):
    async with opened_journal(tmp_path / "disk", files=files) as journal:
        await until_there_is_a_reserve(journal)
        disk.hold_syncs()
        waiting = [asyncio.ensure_future(journal.barrier(journal.append(b"%d" % n))) for n in range(10)]
        await asyncio.to_thread(disk.wait_until_held)
        assert not any(task.done() for task in waiting)
        disk.release_syncs()
        await asyncio.gather(*waiting)


async def test_a_disk_that_never_ends_a_sync_is_taken_for_down_until_it_does(tmp_path, disk, files):
    policy = JournalPolicy(segment_bytes=8_192, retry_seconds=0.01, stall_seconds=0.05)
    async with opened_journal(tmp_path / "disk", files=files, policy=policy) as journal:
        await until_there_is_a_reserve(journal)
        disk.hold_syncs()
        with pytest.raises(JournalDown):
            await asyncio.wait_for(journal.barrier(journal.append(b"record")), 30)
        assert not journal.is_writable
        disk.release_syncs()
        await until(lambda: journal.is_writable)
        await journal.barrier(journal.append(b"intent", is_admission=True))
    assert [payload for _, payload in read_all(tmp_path / "disk")[0]] == [b"record", b"intent"]


async def test_a_sync_that_fails_is_not_believed_but_rewritten(tmp_path, disk, files):
    log = EventLog()
    journal = new_journal(tmp_path / "disk", files=files, log=log)
    await journal.open()
    await journal.barrier(journal.append(b"before"))
    suspect = journal.list_segments()[0]
    await until_there_is_a_reserve(journal)
    disk.fail_syncs(1)
    await asyncio.gather(*(journal.barrier(journal.append(b"%d" % n)) for n in range(5)))
    assert journal.list_segments()[-1] is not suspect
    assert log.fields_of("journal.sync_failed")[0]["error"] == "[Errno 5] Input/output error"
    await journal.close()
    assert [payload for _, payload in read_all(tmp_path / "disk")[0]] == [b"before", b"0", b"1", b"2", b"3", b"4"]


async def test_syncs_that_always_fail_take_the_journal_down_until_the_disk_is_well(tmp_path, disk, files):
    async with opened_journal(tmp_path / "disk", files=files) as journal:
        await until_there_is_a_reserve(journal)
        disk.fail_syncs(1_000_000)
        with pytest.raises(JournalDown):
            await journal.barrier(journal.append(b"record"))
        assert not journal.is_writable
        disk.fail_syncs(0)
        await until(lambda: journal.is_writable)
        await journal.barrier(journal.append(b"intent", is_admission=True))


async def test_closing_does_not_wait_for_a_disk_that_hangs_and_keeps_the_lock(tmp_path, disk, files, monkeypatch):
    monkeypatch.setattr(kernel_syncer, "_STOP_SECONDS", 0.1)
    monkeypatch.setattr(syncer, "_JOIN_SECONDS", 0.1)
    monkeypatch.setattr("meterhouse.ledger.journal._CLOSE_SECONDS", 0.1)
    journal = new_journal(tmp_path / "disk", files=files, policy=SMALL)
    await journal.open()
    await until_there_is_a_reserve(journal)
    disk.hold_syncs()
    journal.append(b"record")
    await asyncio.wait_for(journal.close(), 30)
    path = journal.list_segments()[0].path
    descriptor = OsFiles().open(path)
    assert not OsFiles().try_lock(descriptor)
    OsFiles().close(descriptor)
    disk.release_syncs()
    for file in journal.list_segments():
        OsFiles().close(file.descriptor)


def wait_readable(queue):
    waiting = select.poll()
    waiting.register(queue.event_descriptor, select.POLLIN)
    assert waiting.poll(30_000)


def test_the_result_of_an_earlier_sync_is_not_taken_for_that_of_a_later_one(tmp_path, disk):
    done, held = (os.open(path, os.O_RDWR | os.O_CREAT) for path in (tmp_path / "done", tmp_path / "disk" / "held"))
    queue = SyncQueue()
    disk.hold_syncs()
    queue.submit(done)
    wait_readable(queue)
    queue.submit(held)
    disk.wait_until_held()
    assert not queue.take()
    disk.release_syncs()
    wait_readable(queue)
    assert queue.take()
    queue.close()
    os.close(done)
    os.close(held)
