import asyncio
import fcntl
import os

import msgspec
import pytest

from fakes.journals import (
    PRICE,
    EventLog,
    MemoryStore,
    abandon,
    checkpoint,
    intent,
    make_record,
    new_journal,
    opened_journal,
    terminal,
    until,
)
from fakes.store import opened_store
from meterhouse.db.ledger import LedgerStore
from meterhouse.errors import StoreDown
from meterhouse.ids import new_request_id
from meterhouse.ledger.adopter import Adopter, AdoptionReport
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.record import Checkpoint, CheckpointEntry, UnreadableJournal, encode
from meterhouse.ledger.shipper import Shipper
from meterhouse.money import Component, Meterable
from meterhouse.usage import Exactness, Outcome, Usage


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def log():
    return EventLog()


@pytest.fixture
def adopter(store, log):
    return Adopter(store, OsFiles(), log, batch_records=10)


async def die_after(folder, *payloads):
    """Leave the journal of a process that died after appending these."""
    journal = new_journal(folder)
    await journal.open()
    for payload in payloads:
        await until(lambda: journal.is_writable)
        journal.append(payload)
    await abandon(journal)
    return journal


def states(folder):
    return sorted(path.suffix for path in folder.iterdir())


async def test_what_ended_is_shipped_as_it_is_and_the_segments_are_marked(tmp_path, adopter, store, log):
    records = [make_record() for _ in range(50)]
    await die_after(tmp_path, *(part for r in records for part in (intent(r.request_id), terminal(r))))
    report = await adopter.adopt(tmp_path)
    assert report == AdoptionReport(journals=1, records=50, nanos=50 * 280)
    assert list(store.rows.values()) == records
    assert set(states(tmp_path)) == {".shipped"}
    assert log.fields_of("journal.adopted")[0]["records"] == 50


async def test_a_request_that_died_without_a_checkpoint_is_charged_nothing(tmp_path, adopter, store):
    request_id = new_request_id()
    await die_after(tmp_path, intent(request_id))
    report = await adopter.adopt(tmp_path)
    assert (report.records, report.worker_lost, report.nanos) == (1, 1, 0)
    row = store.rows[request_id, 1]
    assert (row.outcome, row.exactness, row.usage) == (Outcome.WORKER_LOST, Exactness.COUNTED, Usage())
    assert (row.requests, row.charge_nanos, row.charges, row.price_id) == (1, 0, (), "price_1")
    assert (row.error_owner, row.error_code) == ("us", "worker_lost")
    assert (row.organization_id, row.project_id, row.key_id, row.root_key_id) == ("org_1", "proj_1", "key_1", "key_1")
    assert (row.model, row.provider, row.deployment, row.upstream_model) == ("gpt", "openai", "openai-1", "gpt")
    assert (row.operation, row.is_streamed, row.trace_id) == ("chat", True, "b" * 32)
    assert (row.admitted_at_ms, row.duration_ms, row.time_to_first_token_ms) == (1_800_000_000_000, 0, None)


async def test_a_request_that_died_is_charged_at_its_last_checkpoint_with_the_estimated_input(tmp_path, adopter, store):
    request_id = new_request_id()
    await die_after(tmp_path, intent(request_id), checkpoint(request_id, 10), checkpoint(request_id, 30))
    await adopter.adopt(tmp_path)
    row = store.rows[request_id, 1]
    assert (row.usage, row.exactness) == (Usage(input_tokens=50, output_tokens=30), Exactness.COUNTED)
    assert row.charge_nanos == 50 * 2 + 30 * 8
    assert dict(row.charges) == {"input": 100, "output": 240}


async def test_a_checkpoint_that_the_provider_reported_is_charged_as_it_reported(tmp_path, adopter, store):
    request_id = new_request_id()
    await die_after(tmp_path, intent(request_id), checkpoint(request_id, 30, is_reported=True))
    await adopter.adopt(tmp_path)
    row = store.rows[request_id, 1]
    assert (row.usage, row.exactness) == (Usage(input_tokens=70, output_tokens=30), Exactness.REPORTED)
    assert row.charge_nanos == 70 * 2 + 30 * 8


async def test_a_request_for_several_images_that_died_is_charged_for_all_that_were_held(tmp_path, adopter, store):
    request_id = new_request_id()
    price = msgspec.structs.replace(PRICE, components=(Component(Meterable.REQUEST, 40_000_000),))
    await die_after(
        tmp_path,
        intent(request_id, operation="images", price=price, request_units=3),
        checkpoint(request_id, 30, is_reported=True),
    )
    await adopter.adopt(tmp_path)
    row = store.rows[request_id, 1]
    assert (row.charge_nanos, dict(row.charges)) == (3 * 40, {"request": 3 * 40})


async def test_a_request_that_died_without_a_price_is_recorded_as_unpriced(tmp_path, adopter, store):
    request_id = new_request_id()
    await die_after(tmp_path, intent(request_id, price=None), checkpoint(request_id, 30))
    await adopter.adopt(tmp_path)
    row = store.rows[request_id, 1]
    assert (row.usage.output_tokens, row.price_id, row.charge_nanos, row.charges) == (30, None, 0, ())


async def test_of_a_request_that_failed_over_and_died_only_the_last_attempt_counts_as_a_request(
    tmp_path, adopter, store
):
    request_id = new_request_id()
    other = new_request_id()
    both = (CheckpointEntry(request_id, 2, Usage(output_tokens=4), False), CheckpointEntry(other, 1, Usage(), False))
    await die_after(tmp_path, intent(request_id), intent(other), intent(request_id, 2), encode(Checkpoint(both)))
    report = await adopter.adopt(tmp_path)
    assert (report.records, report.worker_lost) == (3, 3)
    first, second = store.rows[request_id, 1], store.rows[request_id, 2]
    assert (first.requests, first.charge_nanos, first.deployment) == (0, 0, "openai-1")
    assert (second.requests, second.charge_nanos, second.deployment) == (1, 100 + 32, "openai-2")
    assert store.rows[other, 1].requests == 1


async def test_a_terminal_settles_every_attempt_of_its_request(tmp_path, adopter, store):
    request_id = new_request_id()
    ended = [make_record(request_id, requests=0), make_record(request_id, attempt=2)]
    await die_after(tmp_path, intent(request_id), intent(request_id, 2), checkpoint(request_id, 5, 2), terminal(*ended))
    report = await adopter.adopt(tmp_path)
    assert (report.records, report.worker_lost) == (2, 0)
    assert list(store.rows.values()) == ended


async def test_a_request_that_reached_no_provider_has_its_one_record(tmp_path, adopter, store):
    record = make_record(attempt=0, requests=0, outcome=Outcome.NOT_SENT, charge_nanos=0, charges=())
    await die_after(tmp_path, terminal(record))
    await adopter.adopt(tmp_path)
    assert list(store.rows.values()) == [record]


async def test_adopting_again_and_replaying_change_nothing(tmp_path, adopter, store):
    request_id = new_request_id()
    await die_after(tmp_path, intent(request_id), checkpoint(request_id, 9), *(terminal() for _ in range(30)))
    await adopter.adopt(tmp_path)
    before = dict(store.rows)
    assert await adopter.adopt(tmp_path) == AdoptionReport()
    for _ in range(3):
        report = await adopter.replay(tmp_path)
        assert (report.journals, report.records, report.worker_lost) == (1, 0, 1)
    assert store.rows == before


async def test_replaying_fills_a_database_that_lost_everything(tmp_path, adopter, store, log):
    request_id = new_request_id()
    await die_after(tmp_path, intent(request_id), checkpoint(request_id, 9), *(terminal() for _ in range(30)))
    first = await adopter.adopt(tmp_path)
    empty = MemoryStore()
    assert await Adopter(empty, OsFiles(), log).replay(tmp_path) == first
    assert empty.rows == store.rows


async def test_a_crash_in_the_middle_of_adopting_is_made_good_by_the_next(tmp_path, adopter, store, log):
    requests = [new_request_id() for _ in range(30)]
    payloads = [part for r in requests[:25] for part in (intent(r), terminal(make_record(r)))]
    await die_after(tmp_path, *payloads, *(intent(r) for r in requests[25:]))

    class Crash(Exception):
        pass

    class Crashing(MemoryStore):
        async def insert(self, records):
            if len(self.batches) == 2:
                raise Crash
            return await super().insert(records)

    crashing = Crashing()
    crashing.rows = store.rows
    with pytest.raises(Crash):
        await Adopter(crashing, OsFiles(), log, batch_records=5).adopt(tmp_path)
    assert ".shipped" not in states(tmp_path)
    store.rows = crashing.rows
    report = await adopter.adopt(tmp_path)
    assert 0 < report.records < 30
    assert {request_id for request_id, _ in store.rows} == set(requests)


async def test_whoever_misses_a_journal_is_told_before_it_is_marked_and_again_if_that_fails(tmp_path, store, log):
    told = []

    async def tell(journal_id):
        assert ".shipped" not in states(tmp_path)
        assert store.rows
        told.append(journal_id)
        if len(told) == 1:
            raise StoreDown("", detail="not now")

    journal = await die_after(tmp_path, *(terminal() for _ in range(3)))
    adopter = Adopter(store, OsFiles(), log, on_shipped=tell)
    with pytest.raises(StoreDown):
        await adopter.adopt(tmp_path)
    await adopter.adopt(tmp_path)
    await adopter.adopt(tmp_path)
    assert told == [journal.journal_id] * 2
    assert set(states(tmp_path)) == {".shipped"}


async def test_a_crash_between_marking_two_segments_is_made_good_by_the_next(tmp_path, adopter, store):
    request_id = new_request_id()
    await die_after(tmp_path, intent(request_id), *(terminal() for _ in range(120)))
    await adopter.adopt(tmp_path)
    before = dict(store.rows)
    marked = sorted(tmp_path.iterdir())
    assert len(marked) >= 3
    for path in marked[1:]:
        path.rename(path.with_suffix(".seg"))
    report = await adopter.adopt(tmp_path)
    assert (report.journals, report.records, report.torn) == (1, 0, 0)
    assert store.rows == before


async def test_while_the_store_is_down_nothing_is_marked_and_a_later_call_does_it_all(tmp_path, adopter, store):
    await die_after(tmp_path, *(terminal() for _ in range(30)))
    store.is_down = True
    with pytest.raises(StoreDown):
        await adopter.adopt(tmp_path)
    assert ".shipped" not in states(tmp_path)
    store.is_down = False
    assert (await adopter.adopt(tmp_path)).records == 30


async def test_a_live_journal_is_left_alone_and_the_dead_one_beside_it_is_adopted(tmp_path, adopter, store):
    async with opened_journal(tmp_path) as journal:
        journal.append(terminal())
        dead = make_record()
        await die_after(tmp_path, terminal(dead))
        assert (await adopter.adopt(tmp_path)).journals == 1
        assert list(store.rows.values()) == [dead]
        assert len(journal.list_segments()) == 1


async def test_replaying_waits_for_whoever_has_marked_a_segment_and_not_let_go_of_it_yet(tmp_path, adopter):
    await die_after(tmp_path, *(terminal(make_record()) for _ in range(50)))
    await adopter.adopt(tmp_path)
    with next(tmp_path.glob("*.shipped")).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        asyncio.get_running_loop().call_later(0.05, fcntl.flock, held, fcntl.LOCK_UN)
        report = await adopter.replay(tmp_path)
    assert (report.nanos, report.torn) == (50 * 280, 0)


async def test_replaying_beside_a_live_journal_takes_what_ended_and_declares_nobody_lost(tmp_path, adopter, store):
    async with opened_journal(tmp_path) as journal:
        running = new_request_id()
        records = [make_record() for _ in range(40)]
        for record in records:
            await until(lambda: journal.is_writable)
            journal.append(intent(record.request_id))
            journal.append(terminal(record))
        await journal.barrier(journal.position)
        await Shipper(MemoryStore(), journal, journal._chain._clock, EventLog()).ship_available()
        await until(lambda: ".shipped" in states(tmp_path))
        journal.append(intent(running))
        report = await adopter.replay(tmp_path)
        assert (report.records, report.worker_lost, report.torn) == (40, 0, 0)
        assert list(store.rows.values()) == records


async def test_a_running_request_whose_first_records_were_long_ago_is_still_known_when_its_process_dies(
    tmp_path, adopter, store
):
    journal = new_journal(tmp_path)
    await journal.open()
    shipper = Shipper(MemoryStore(), journal, journal._chain._clock, EventLog())
    running = new_request_id()
    journal.append(intent(running))
    journal.append(checkpoint(running, 11))
    for _ in range(60):
        await until(lambda: journal.is_writable)
        journal.append(terminal())
    await journal.barrier(journal.position)
    await shipper.ship_available()
    await abandon(journal)
    await adopter.adopt(tmp_path)
    assert store.rows[running, 1].usage.output_tokens == 11


async def test_a_torn_tail_and_a_hole_are_counted_and_the_rest_is_adopted(tmp_path, adopter, store, log):
    records = [make_record() for _ in range(120)]
    await die_after(tmp_path, *(terminal(record) for record in records))
    first, second, *_ = sorted(path for path in tmp_path.iterdir() if path.suffix == ".seg")
    with first.open("r+b") as file:
        file.seek(4_000)
        file.write(b"\xff" * 4)
    os.truncate(second, 5_000)
    report = await adopter.adopt(tmp_path)
    assert report.torn == 2
    lost = [fields["lost_records"] for fields in log.fields_of("journal.corrupted")]
    assert report.records == 120 - sum(lost)
    assert all(row in records for row in store.rows.values())


async def test_a_journal_of_a_newer_version_is_left_and_named_and_the_others_are_adopted(tmp_path, adopter, store):
    dead = make_record()
    newer = bytes([9]) + terminal()[1:]
    await die_after(tmp_path, newer)
    [unread] = [path for path in tmp_path.iterdir() if path.read_bytes().find(newer) > 0]
    await die_after(tmp_path, terminal(dead))
    with pytest.raises(UnreadableJournal, match=f"{unread} was written by a newer"):
        await adopter.adopt(tmp_path)
    assert list(store.rows.values()) == [dead]
    assert unread.exists()


async def test_an_empty_or_missing_folder_and_other_files_are_nothing_to_adopt(tmp_path, adopter):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / f"{'0' * 32}-0000000001.tmp").write_bytes(bytes(100))
    assert await adopter.adopt(tmp_path) == AdoptionReport()
    assert await adopter.adopt(tmp_path / "missing") == AdoptionReport()
    assert states(tmp_path) == [".tmp", ".txt"]


async def test_memory_holds_open_requests_only(tmp_path, adopter, store):
    await die_after(tmp_path, *(part for _ in range(50) for part in ended_request()))
    await adopter.adopt(tmp_path)
    assert max(store.batches) <= 10 + 64


def ended_request():
    request_id = new_request_id()
    return intent(request_id), checkpoint(request_id, 3), terminal(make_record(request_id))


async def test_the_real_ledger_takes_what_was_adopted_once(tmp_path, log):
    request_id = new_request_id()
    ended = make_record()
    await die_after(tmp_path / "journals", intent(request_id), checkpoint(request_id, 30), terminal(ended))
    async with opened_store(tmp_path / "ledger.db") as engine:
        ledger = LedgerStore(engine)
        adopter = Adopter(ledger, OsFiles(), log)
        assert (await adopter.adopt(tmp_path / "journals")).records == 2
        assert (await adopter.replay(tmp_path / "journals")).records == 0
        [lost] = await ledger.find_records(request_id)
        assert (lost.outcome, lost.charge_nanos) == (Outcome.WORKER_LOST, 50 * 2 + 30 * 8)
        assert await ledger.find_records(ended.request_id) == [msgspec.structs.replace(ended)]
        assert await ledger.rebuild_check() == []
