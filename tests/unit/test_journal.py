import asyncio
import os

import pytest

from fakes.files import FaultyFiles
from fakes.journals import (
    SMALL,
    EventLog,
    abandon,
    new_journal,
    opened_journal,
    read_all,
    until,
    until_there_is_a_reserve,
)
from meterhouse.errors import JournalDown
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.folder import JournalPolicy
from meterhouse.ledger.segment import HEADER_BYTES


def names(folder, suffix):
    return sorted(path.name[-14:] for path in folder.iterdir() if path.suffix == suffix)


async def fill(journal, records, size=500):
    """Append so many records, each as soon as there is room for it."""
    for number in range(records):
        await until(lambda: journal.is_writable)
        journal.append(b"%d:" % number + bytes(size))


async def test_what_was_appended_is_read_back_at_its_positions(tmp_path):
    journal = new_journal(tmp_path)
    await journal.open()
    assert [journal.append(payload) for payload in (b"one", b"two", b"three")] == [1, 2, 3]
    await journal.barrier(3)
    await abandon(journal)
    assert read_all(tmp_path) == ([(1, b"one"), (2, b"two"), (3, b"three")], [])


async def test_a_record_is_in_the_file_before_append_returns(tmp_path):
    async with opened_journal(tmp_path) as journal:
        journal.append(b"needle in a file")
        assert any(b"needle in a file" in path.read_bytes() for path in tmp_path.glob("*.seg"))


async def test_a_barrier_waits_for_the_sync_and_those_who_wait_share_it(tmp_path):
    files = FaultyFiles()
    async with opened_journal(tmp_path, files=files) as journal:
        files.hold_syncs()
        first = asyncio.ensure_future(journal.barrier(journal.append(b"first")))
        await asyncio.sleep(0)  # it comes to the barrier
        await asyncio.sleep(0)  # and the sync that it shares with this turn's begins
        files.wait_until_held()
        others = [asyncio.ensure_future(journal.barrier(journal.append(b"%d" % n))) for n in range(20)]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in [first, *others])
        files.release_syncs()
        await asyncio.gather(first, *others)
        assert journal.figures.syncs == files.syncs == 2
        await journal.barrier(21)
        assert journal.figures.syncs == 2


async def test_a_waiter_that_gives_up_disturbs_nobody(tmp_path):
    files = FaultyFiles()
    async with opened_journal(tmp_path, files=files) as journal:
        files.hold_syncs()
        position = journal.append(b"x")
        impatient, patient = (asyncio.ensure_future(journal.barrier(position)) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        files.release_syncs()
        await patient
        assert impatient.cancelled()


async def test_a_full_segment_is_followed_by_the_next_and_one_barrier_covers_both(tmp_path):
    files = FaultyFiles(loses_power=True)
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    await fill(journal, 40)
    await journal.barrier(journal.position)
    files.drop_unsynced()
    await abandon(journal)
    found, damages = read_all(tmp_path, files)
    assert [position for position, _ in found] == list(range(1, 41))
    assert not damages
    assert len(names(tmp_path, ".seg")) >= 3


async def test_a_segments_name_is_durable_before_the_segment_is_used(tmp_path):
    files = FaultyFiles()
    async with opened_journal(tmp_path, files=files) as journal:
        await fill(journal, 40)
        made = [operation for operation, _ in files.calls if operation != "unlink"]
        used = len(journal.list_segments())
        assert used >= 3
        assert made[: 3 * used] == ["preallocate", "rename", "fsync_folder"] * used


async def test_with_durability_write_nothing_is_synced(tmp_path):
    files = FaultyFiles()
    policy = JournalPolicy(durability="write", segment_bytes=8_192)
    journal = new_journal(tmp_path, files=files, policy=policy)
    await journal.open()
    await fill(journal, 40)
    await journal.barrier(40)
    assert files.syncs == 0
    await abandon(journal)
    assert len(read_all(tmp_path)[0]) == 40


async def test_it_figures_what_it_did(tmp_path):
    async with opened_journal(tmp_path) as journal:
        journal.append(b"12345")
        await journal.barrier(1)
        await until(lambda: journal.figures.spool_bytes == 2 * SMALL.segment_bytes)
        figures = journal.figures
        assert (figures.records, figures.appended_bytes, figures.barriers) == (1, 16 + 5, 1)
        assert (figures.syncs, figures.sync_failures, figures.failed_barriers) == (1, 0, 0)


# --- refusing


async def test_a_journal_that_is_not_open_takes_nothing(tmp_path):
    journal = new_journal(tmp_path)
    assert not journal.is_writable
    with pytest.raises(JournalDown):
        journal.append(b"x")
    await journal.open()
    await journal.close()
    with pytest.raises(JournalDown):
        journal.append(b"x")
    with pytest.raises(JournalDown):
        await journal.barrier(1)
    await journal.close()


async def test_a_record_larger_than_a_segment_is_refused_and_the_journal_goes_on(tmp_path):
    async with opened_journal(tmp_path) as journal:
        with pytest.raises(JournalDown):
            journal.append(bytes(SMALL.segment_bytes))
        assert journal.append(b"small", is_admission=True) == 1
        await journal.barrier(1)


async def test_above_the_bound_of_the_spool_nothing_is_admitted_until_sql_has_caught_up(tmp_path):
    log = EventLog()
    policy = JournalPolicy(segment_bytes=8_192, max_bytes=8_192 * 6)
    async with opened_journal(tmp_path, policy=policy, log=log) as journal:
        await fill(journal, 16)
        assert not journal.has_alarm
        await fill(journal, 16)
        await until(lambda: journal.has_alarm)
        while journal.is_writable:
            journal.append(bytes(500))
            await asyncio.sleep(0.001)
        with pytest.raises(JournalDown):
            journal.append(b"new", is_admission=True)
        await journal.barrier(journal.append(b"of one that runs"))
        journal.mark_shipped(journal.position)
        await until(lambda: journal.is_writable and not journal.has_alarm)
        assert len(log.fields_of("journal.filled")) == 1


async def test_the_spool_of_other_journals_of_the_folder_counts(tmp_path):
    policy = JournalPolicy(segment_bytes=8_192, max_bytes=8_192 * 5)
    async with opened_journal(tmp_path, policy=policy) as first:
        await fill(first, 16)
        await until(lambda: first.figures.spool_bytes == 3 * 8_192)
        async with opened_journal(tmp_path, policy=policy) as second:
            await until(lambda: not second.is_writable)
            await first.barrier(first.position)
            first.mark_shipped(first.position)

            def catches_up():
                second.mark_shipped(0)
                return second.is_writable

            await until(catches_up)


class NetworkFiles(OsFiles):
    def find_filesystem(self, folder):
        return "nfs4"


class LocklessFiles(OsFiles):
    def try_lock(self, descriptor):
        return True


@pytest.mark.parametrize(
    ("files", "reason"), [(NetworkFiles(), r"network file system \(nfs4\)"), (LocklessFiles(), "without working locks")]
)
async def test_a_folder_that_cannot_keep_a_journal_is_refused_by_name(tmp_path, files, reason):
    with pytest.raises(JournalDown, match=reason) as raised:
        await new_journal(tmp_path / "here", files=files).open()
    assert str(tmp_path / "here") in raised.value.message
    assert list((tmp_path / "here").iterdir()) == []


async def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(JournalDown, match="taken/journal cannot be used: Not a directory"):
        await new_journal(tmp_path / "taken" / "journal").open()


async def test_no_room_for_the_first_segment_is_refused_by_name(tmp_path):
    files = FaultyFiles()
    files.fill_disk()
    with pytest.raises(JournalDown, match="cannot be written: No space left"):
        await new_journal(tmp_path, files=files).open()


# --- what becomes of segments


async def test_segments_that_sql_has_are_marked_and_the_one_in_use_is_not(tmp_path):
    async with opened_journal(tmp_path) as journal:
        await fill(journal, 40)
        await journal.barrier(40)
        segments = journal.list_segments()
        assert len(segments) == 3
        journal.mark_shipped(14)
        assert journal.list_segments() == segments
        journal.mark_shipped(40)
        assert journal.list_segments() == segments[-1:]
        await until(lambda: len(names(tmp_path, ".shipped")) == 2)


async def test_a_segment_is_kept_until_it_is_durable_even_when_sql_has_it(tmp_path):
    files = FaultyFiles()
    async with opened_journal(tmp_path, files=files) as journal:
        await fill(journal, 20)
        journal.mark_shipped(20)
        assert len(journal.list_segments()) == 2
        files.hold_syncs()
        waiting = asyncio.ensure_future(journal.barrier(20))
        await asyncio.sleep(0)  # it comes to the barrier
        await asyncio.sleep(0)  # and the sync that it shares with this turn's begins
        files.wait_until_held()
        journal.mark_shipped(20)
        assert len(journal.list_segments()) == 2
        files.release_syncs()
        await waiting
        journal.mark_shipped(20)
        assert len(journal.list_segments()) == 1


async def test_a_journal_that_was_shipped_whole_leaves_nothing_to_adopt(tmp_path):
    async with opened_journal(tmp_path) as journal:
        await fill(journal, 20)
        journal.mark_shipped(20)
    assert names(tmp_path, ".seg") == []
    assert len(names(tmp_path, ".shipped")) == 2


async def test_a_journal_that_was_not_shipped_leaves_its_records_durable_and_unlocked(tmp_path):
    files = FaultyFiles(loses_power=True)
    async with opened_journal(tmp_path, files=files) as journal:
        await fill(journal, 20)
    files.drop_unsynced()
    assert len(read_all(tmp_path, files)[0]) == 20
    assert len(names(tmp_path, ".seg")) == 2


async def test_a_journal_without_a_record_leaves_nothing(tmp_path):
    async with opened_journal(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


async def test_a_live_journal_locks_all_its_segments(tmp_path):
    async with opened_journal(tmp_path) as journal:
        await fill(journal, 20)
        await until(lambda: len(names(tmp_path, ".seg")) == 3)
        for path in tmp_path.iterdir():
            descriptor = os.open(path, os.O_RDWR)
            assert not OsFiles().try_lock(descriptor)
            os.close(descriptor)


async def test_shipped_segments_are_used_again_when_there_are_enough_of_them(tmp_path):
    policy = JournalPolicy(segment_bytes=8_192, keep_bytes=8_192 * 2)
    journal = new_journal(tmp_path, policy=policy)
    await journal.open()
    for _ in range(8):
        await fill(journal, 15)
        await journal.barrier(journal.position)
        journal.mark_shipped(journal.position - 10)
    await until(lambda: len(list(tmp_path.iterdir())) <= 6)
    await abandon(journal)
    found, damages = read_all(tmp_path)
    assert found[-1][0] == 120
    assert not damages


async def test_a_rewrite_of_which_the_new_segment_takes_nothing_is_tried_again(tmp_path):
    files = FaultyFiles()
    async with opened_journal(tmp_path, files=files) as journal:
        await until_there_is_a_reserve(journal)
        position = journal.append(b"needle" * 20)
        files.fail_syncs(1)
        files.fail_writes(2, torn_bytes=HEADER_BYTES)  # the header whole, and less of the record
        with pytest.raises(JournalDown):
            await asyncio.wait_for(journal.barrier(position), 30)
        await until(lambda: journal.is_writable)
        await journal.barrier(position)
    assert read_all(tmp_path)[0] == [(1, b"needle" * 20)]
