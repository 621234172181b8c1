import asyncio
import gc

import pytest

from fakes.files import FaultyFiles
from fakes.journals import (
    EventLog,
    MemoryStore,
    checkpoint,
    intent,
    make_record,
    opened_journal,
    terminal,
    until,
)
from fakes.store import MovingClock, opened_store
from meterhouse.db.ledger import LedgerStore
from meterhouse.errors import JournalDown, StoreDown
from meterhouse.ids import new_request_id
from meterhouse.ledger.balance import Balance
from meterhouse.ledger.folder import JournalPolicy
from meterhouse.ledger.shipper import MAX_DELAY_MS, Shipper
from meterhouse.metering import Kind, Limit, Period, Scope, Sums, Window

WIDE = JournalPolicy(segment_bytes=1 << 20, retry_seconds=0.01)
PERIOD = Period(Limit(Scope.ORGANIZATION, "org_1", Kind.SPEND, Window.TOTAL, 10**9), None, None)


@pytest.fixture
async def journal(tmp_path):
    async with opened_journal(tmp_path, policy=WIDE) as journal:
        yield journal


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def log():
    return EventLog()


@pytest.fixture
def shipper(journal, store, log):
    return new_shipper(journal, store, log)


def new_shipper(journal, store, log=None, clock=None, **changes):
    return Shipper(store, journal, clock or MovingClock(), log or EventLog(), interval_ms=1, **changes)


def append_request(journal, **changes):
    """Append a whole request: INTENT, CHECKPOINT, TERMINAL; returns its record."""
    record = make_record(**changes)
    journal.append(intent(record.request_id), is_admission=True)
    journal.append(checkpoint(record.request_id, 3))
    journal.append(terminal(record))
    return record


async def append_soon(journal):
    """Append a whole request as soon as there is a segment for it."""
    while True:
        try:
            return append_request(journal)
        except JournalDown:
            await asyncio.sleep(0.001)


def rows_of(records):
    return {(record.request_id, record.attempt): record for record in records}


# --- shipping


async def test_records_reach_the_store_in_batches_and_once(journal, store):
    shipper = new_shipper(journal, store, batch_records=100)
    records = [append_request(journal) for _ in range(350)]
    assert await shipper.ship_available()
    assert store.rows == rows_of(records)
    assert sum(store.batches) == 350
    assert max(store.batches) < 100 + 64
    assert shipper.shipped_position == journal.position
    assert await shipper.ship_available()
    assert sum(store.batches) == 350


async def test_all_attempts_of_a_request_are_shipped(journal, store, shipper):
    request_id = new_request_id()
    attempts = [make_record(request_id, attempt=number, requests=int(number == 2)) for number in (1, 2)]
    journal.append(terminal(*attempts))
    await shipper.ship_available()
    assert store.rows == rows_of(attempts)


async def test_it_runs_by_itself_until_it_is_ended(journal, store, shipper):
    running = asyncio.create_task(shipper.run())
    for _ in range(5):
        record = append_request(journal)
        await until(lambda record=record: (record.request_id, 1) in store.rows)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_store_that_is_down_is_tried_again_more_slowly_and_nothing_is_lost(journal, store, shipper, log):
    store.is_down = True
    records = [append_request(journal) for _ in range(3)]
    delays = []
    for _ in range(15):
        assert not await shipper.ship_available()
        delays.append(shipper._delay_ms)
    assert delays[:4] == [2, 4, 8, 16]
    assert delays[-1] == MAX_DELAY_MS
    assert shipper.is_store_down
    records += [append_request(journal) for _ in range(3)]
    store.is_down = False
    assert await shipper.ship_available()
    assert shipper._delay_ms == 1
    assert not shipper.is_store_down
    assert store.rows == rows_of(records)
    assert [name for name, _ in log.lines] == ["shipper.retrying", "shipper.recovered"]


async def test_an_answer_that_was_lost_after_the_commit_counts_nothing_twice(journal, store, shipper):
    store.loses_answers = 1
    records = [append_request(journal) for _ in range(3)]
    assert not await shipper.ship_available()
    assert store.rows == rows_of(records)
    assert await shipper.ship_available()
    assert store.rows == rows_of(records)


async def test_giving_up_in_the_middle_of_an_insert_loses_no_place(journal, store, shipper):
    store.gate = asyncio.Event()
    records = [append_request(journal) for _ in range(3)]
    impatient = asyncio.create_task(shipper.ship_until(journal.position))
    await until(lambda: store.waiting == 1)
    impatient.cancel()
    await asyncio.wait([impatient])
    store.gate.set()
    await shipper.ship_until(journal.position)
    assert store.rows == rows_of(records)


async def test_draining_ends_when_all_is_shipped_or_time_is_up(journal, store, shipper):
    append_request(journal)
    store.is_down = True
    assert not await shipper.drain(0.02)
    store.is_down = False
    assert await shipper.drain(5)
    assert len(store.rows) == 1


async def test_records_of_many_segments_are_shipped_and_their_segments_marked(tmp_path, store):
    async with opened_journal(tmp_path) as journal:
        shipper = new_shipper(journal, store)
        records = []
        for _ in range(60):
            records.append(await append_soon(journal))
            await journal.barrier(journal.position)
        assert len(journal.list_segments()) > 3
        await shipper.ship_available()
        assert store.rows == rows_of(records)
        assert len(journal.list_segments()) == 1
        assert shipper.damages == 0


async def test_a_segment_with_the_intent_of_a_running_request_is_not_marked(tmp_path, store):
    async with opened_journal(tmp_path) as journal:
        shipper = new_shipper(journal, store)
        running = new_request_id()
        journal.append(intent(running))
        for _ in range(40):
            await append_soon(journal)
        journal.append(intent(running, 2))
        await journal.barrier(journal.position)
        await shipper.ship_available()
        assert len(store.rows) == 40
        assert journal.list_segments()[0].number == 1
        journal.append(terminal(make_record(running), make_record(running, attempt=2)))
        await journal.barrier(journal.position)
        await shipper.ship_available()
        assert len(journal.list_segments()) == 1


async def test_a_record_that_the_disk_took_late_is_shipped_then(tmp_path, store):
    files = FaultyFiles()
    async with opened_journal(tmp_path, files=files) as journal:
        shipper = new_shipper(journal, store)
        files.fill_disk()
        records = []
        while journal.is_writable:
            records.append(make_record())
            journal.append(terminal(records[-1]))
            await asyncio.sleep(0.0005)
        for _ in range(60):
            records.append(make_record())
            journal.append(terminal(records[-1]))
        with pytest.raises(JournalDown):
            await journal.barrier(journal.position)
        shipping = asyncio.create_task(shipper.ship_until(journal.position))
        await until(lambda: len(store.rows) > 20)
        assert not shipping.done()
        files.heal()
        await shipping
        assert store.rows == rows_of(records)


async def test_damage_of_the_own_journal_is_reported(tmp_path, store, log):
    async with opened_journal(tmp_path) as journal:
        shipper = new_shipper(journal, store, log)
        for _ in range(60):
            await append_soon(journal)
        first = journal.list_segments()[0]
        with first.path.open("r+b") as file:
            file.seek(4_000)
            file.write(b"\xff" * 8)
        await shipper.ship_until(journal.position)
        assert shipper.damages == 1
        [fields] = log.fields_of("journal.corrupted")
        assert fields["file"] == str(first.path)
        assert fields["lost_records"] > 0
        assert len(store.rows) < 60


# --- how far behind


async def test_the_lag_is_what_sql_does_not_have(journal, store):
    clock = MovingClock()
    shipper = new_shipper(journal, store, clock=clock, batch_records=100)
    assert (shipper.lag.unshipped_records, shipper.lag.oldest_age_ms, shipper.lag.unshipped_nanos) == (0, 0, 0)
    store.is_down = True
    for _ in range(400):
        append_request(journal, admitted_at_ms=clock.now_ms(), duration_ms=0, charge_nanos=7)
    clock.move(1_500)
    await shipper.ship_available()
    lag = shipper.lag
    assert (lag.unshipped_records, lag.oldest_age_ms, lag.unshipped_nanos) == (1_200, 1_500, 2_800)
    append_request(journal, charge_nanos=1)
    clock.move(500)
    await shipper.ship_available()
    lag = shipper.lag
    assert (lag.unshipped_records, lag.oldest_age_ms, lag.unshipped_nanos) == (1_203, 2_000, 2_801)
    store.is_down = False
    await shipper.ship_available()
    lag = shipper.lag
    assert (lag.unshipped_records, lag.oldest_age_ms, lag.unshipped_nanos) == (0, 0, 0)


# --- standing still


async def test_inside_a_pause_sql_has_everything_up_to_its_position_and_nothing_beyond(journal, store, shipper):
    before = [append_request(journal) for _ in range(100)]
    pause = shipper.paused_at(journal.position)
    after = [append_request(journal) for _ in range(100)]
    running = asyncio.create_task(shipper.run())
    async with pause:
        assert store.rows == rows_of(before)
        after += [append_request(journal) for _ in range(100)]
        await asyncio.sleep(0.01)
        assert store.rows == rows_of(before)
    await shipper.ship_until(journal.position)
    assert store.rows == rows_of(before + after)
    running.cancel()


async def test_a_position_that_sql_is_past_is_no_place_to_pause(journal, shipper):
    append_request(journal)
    await shipper.ship_available()
    with pytest.raises(ValueError, match="shipped already"):
        shipper.paused_at(1)


async def test_a_pause_that_is_never_entered_holds_nothing_up(journal, store, shipper):
    record = append_request(journal)
    pause = shipper.paused_at(0)
    assert not await shipper.ship_available()
    assert not store.rows
    del pause
    assert await shipper.ship_available()
    assert store.rows == rows_of([record])


async def test_pauses_have_their_turns_by_position_whoever_is_awaited_first(journal, store, shipper):
    seen = []

    async def look(pause, name):
        async with pause:
            seen.append((name, len(store.rows)))

    first = shipper.paused_at(journal.position)
    append_request(journal)
    second = shipper.paused_at(journal.position)
    append_request(journal)
    await asyncio.gather(look(second, "second"), look(first, "first"))
    assert seen == [("first", 0), ("second", 1)]
    assert await shipper.ship_available()


@pytest.mark.parametrize("is_inside", [False, True])
async def test_a_pause_that_is_given_up_lets_shipping_go_on(journal, store, shipper, is_inside):
    store.is_down = not is_inside
    record = append_request(journal)
    entered = asyncio.Event()

    async def stay():
        async with shipper.paused_at(journal.position):
            entered.set()
            await asyncio.sleep(60)

    staying = asyncio.create_task(stay())
    if is_inside:
        await entered.wait()
    else:
        await until(lambda: shipper._is_store_down)
    staying.cancel()
    await asyncio.wait([staying])
    store.is_down = False
    append_request(journal)
    assert await shipper.ship_available()
    assert record.request_id in {request_id for request_id, _ in store.rows}


async def test_a_pause_given_up_while_it_waits_its_turn_leaves_the_turn_to_its_owner(journal, store, shipper):
    async with shipper.paused_at(journal.position):
        append_request(journal)
        waiting = asyncio.create_task(shipper.paused_at(journal.position).__aenter__())
        await asyncio.sleep(0.005)
        waiting.cancel()
        await asyncio.wait([waiting])
        append_request(journal)
        shipping = asyncio.create_task(shipper.ship_available())
        await asyncio.sleep(0.005)
        assert not store.rows
    await shipping
    assert len(store.rows) == 2


# --- balance


async def test_sums_are_as_of_the_call_however_late_they_are_awaited(journal, store, shipper):
    balance = Balance(journal, shipper, store)
    append_request(journal, charge_nanos=5)
    sums = balance.sums([PERIOD, PERIOD])
    append_request(journal, charge_nanos=70)
    waiting = asyncio.ensure_future(asyncio.wait_for(sums, 5))
    append_request(journal, charge_nanos=900)
    running = asyncio.create_task(shipper.run())
    assert await waiting == [Sums(requests=1, total_tokens=110, charge_nanos=5)] * 2
    assert (await balance.sums([PERIOD]))[0].charge_nanos == 975
    running.cancel()


async def test_sums_that_are_given_up_before_they_began_hold_nothing_up(journal, store, shipper):
    balance = Balance(journal, shipper, store)
    asking = asyncio.create_task(balance.sums([PERIOD]))
    asking.cancel()
    await asyncio.wait([asking])
    del asking
    append_request(journal)
    gc.collect()
    assert await shipper.ship_available()


async def test_many_sums_at_once_while_shipping_are_each_exact(journal, store, shipper):
    balance = Balance(journal, shipper, store)
    running = asyncio.create_task(shipper.run())

    async def ask(expected):
        [sums] = await balance.sums([PERIOD])
        assert sums.requests == expected

    async with asyncio.TaskGroup() as tasks:
        for appended in range(1, 60):
            append_request(journal)
            if appended % 3 == 0:
                await ask(appended)
            else:
                sums = balance.sums([PERIOD])
                tasks.create_task(check(sums, appended))
            if appended % 7 == 0:
                await asyncio.sleep(0.002)
    running.cancel()


async def check(sums, expected):
    assert (await sums)[0].requests == expected


async def test_sums_say_that_the_store_went_away_and_shipping_goes_on(journal, store, shipper):
    class Failing(MemoryStore):
        async def sum_periods(self, periods):
            raise StoreDown("down")

    with pytest.raises(StoreDown):
        await Balance(journal, shipper, Failing()).sums([PERIOD])
    append_request(journal)
    assert await shipper.ship_available()


async def test_the_sums_of_the_real_ledger_hold_what_was_just_appended(tmp_path, journal):
    async with opened_store(tmp_path / "ledger.db") as engine:
        ledger = LedgerStore(engine)
        shipper = new_shipper(journal, ledger)
        record = append_request(journal)
        assert await Balance(journal, shipper, ledger).sums([PERIOD]) == [
            Sums(requests=1, total_tokens=110, charge_nanos=280)
        ]
        assert await ledger.find_records(record.request_id) == [record]
