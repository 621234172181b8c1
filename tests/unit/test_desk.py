"""A worker's shipper and the clerk's desk, over a real Unix socket: who writes what, whatever the other one does."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from fakes.journals import EventLog, MemoryStore, checkpoint, intent, make_record, opened_journal, terminal, until
from fakes.store import MovingClock
from meterhouse.errors import StoreDown
from meterhouse.ids import new_request_id
from meterhouse.ledger import desk, shipper
from meterhouse.ledger.desk import GREETING, ClerkDesk, ClerkLine
from meterhouse.ledger.folder import JournalPolicy
from meterhouse.ledger.record import select_terminals
from meterhouse.ledger.shipper import Shipper

WIDE = JournalPolicy(segment_bytes=1 << 20, retry_seconds=0.01)


class OwnStore(MemoryStore):
    """The worker's way to the same rows as the clerk's."""

    def __init__(self, clerks: MemoryStore) -> None:
        super().__init__()
        self.rows = clerks.rows

    async def insert(self, records) -> int:
        new = len({(r.request_id, r.attempt) for r in records} - self.rows.keys())
        self.rows.update({(r.request_id, r.attempt): r for r in records})
        self.batches.append(len(records))
        return new


class Office:
    """A journal with its shipper, and a clerk that can be taken away."""

    def __init__(self, folder, journal) -> None:
        self.path = folder / "clerk.sock"
        self.clerks = MemoryStore()
        self.own = OwnStore(self.clerks)
        self.journal = journal
        self.log = EventLog()
        self.clock = MovingClock()
        self.shipper = Shipper(self.own, journal, self.clock, self.log, interval_ms=1)
        self.line = self.shipper.clerk = ClerkLine(self.path)
        self.server = None
        self.attended = 0

    async def listen(self, attend) -> None:
        async def attend_and_close(reader, writer):
            self.attended += 1
            try:
                await attend(reader, writer)
            finally:
                writer.close()
                self.attended -= 1

        self.server = await asyncio.start_unix_server(attend_and_close, self.path)

    async def start_clerk(self, attend=None) -> None:
        await self.listen(attend or ClerkDesk(self.clerks).attend)
        await until(lambda: self.line.is_there)

    def append(self, **changes):
        record = make_record(**changes)
        self.journal.append(intent(record.request_id))
        self.journal.append(checkpoint(record.request_id, 3))
        self.journal.append(terminal(record))
        return record

    async def shipped(self) -> tuple[int, int]:
        """Ship everything; returns how many batches the clerk and the worker have written so far."""
        await self.shipper.ship_until(self.journal.position)
        return self.shipper.by_clerk, self.shipper.by_hand


@pytest.fixture
async def office(tmp_path, monkeypatch):
    monkeypatch.setattr(desk, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(desk, "AWAY_SECONDS", 0.01)
    async with opened_journal(tmp_path / "journals", policy=WIDE) as journal:
        office = Office(tmp_path, journal)
        running = asyncio.create_task(office.line.run())
        yield office
        running.cancel()
        await asyncio.wait([running])
        if office.server is not None:
            office.server.close()
        await until(lambda: office.attended == 0)


@asynccontextmanager
async def stranger(office):
    """A connection of somebody who has got as far as the socket, and was greeted."""
    reader, writer = await asyncio.open_unix_connection(office.path)
    assert await reader.readexactly(len(GREETING)) == GREETING
    yield reader, writer
    writer.close()
    await writer.wait_closed()


async def test_the_clerk_writes_what_the_worker_offers_and_the_lag_is_as_if_it_had_itself(office):
    await office.start_clerk()
    records = [office.append(charge_nanos=7) for _ in range(100)]
    assert await office.shipped() == (1, 0)
    assert list(office.clerks.rows.values()) == records
    assert office.own.batches == []
    assert (office.shipper.lag.unshipped_records, office.shipper.lag.unshipped_nanos) == (0, 0)


async def test_without_a_clerk_the_worker_writes_and_with_the_next_one_it_does_no_more(office):
    office.append()
    assert await office.shipped() == (0, 1)
    await office.start_clerk()
    office.append()
    assert await office.shipped() == (1, 1)
    assert len(office.clerks.rows) == 2


async def test_a_request_that_is_open_over_several_batches_keeps_its_segment(tmp_path, office):
    await office.start_clerk()
    marked = []
    office.journal.mark_shipped = marked.append
    first, second = new_request_id(), new_request_id()
    office.journal.append(intent(first))
    office.journal.append(intent(second))
    office.append()
    await office.shipped()
    office.journal.append(intent(first, 2))
    office.journal.append(terminal(make_record(first), make_record(first, attempt=2)))
    await office.shipped()
    office.journal.append(terminal(make_record(second)))
    await office.shipped()
    assert marked == [0, 1, office.journal.position]
    assert office.shipper.by_clerk == 3


async def test_the_clerks_store_is_down_and_the_worker_says_so_and_tries_itself(office):
    await office.start_clerk()
    office.clerks.is_down = True
    office.append(charge_nanos=7, admitted_at_ms=office.clock.now_ms(), duration_ms=0)
    office.clock.move(1_500)
    assert not await office.shipper.ship_available()
    assert office.shipper.is_store_down
    lag = office.shipper.lag
    assert (lag.unshipped_records, lag.oldest_age_ms, lag.unshipped_nanos) == (3, 1_500, 7)
    assert office.own.batches == []
    assert await office.shipped() == (0, 1)
    office.clerks.is_down = False
    await until(lambda: office.line.is_there)
    office.append()
    assert await office.shipped() == (1, 1)
    assert [name for name, _ in office.log.lines] == ["shipper.retrying", "shipper.recovered"]
    assert office.shipper.lag.unshipped_nanos == 0


async def test_a_clerk_that_alone_has_no_database_is_done_without_for_a_while(office, monkeypatch):
    """Else it would be asked for every batch, each time be waited for in vain, and never seal what others wrote."""
    monkeypatch.setattr(desk, "AWAY_SECONDS", 60)
    await office.start_clerk()
    office.clerks.is_down = True
    for batches in range(1, 4):
        office.append()
        assert await office.shipped() == (0, batches)
    assert not office.line.is_there
    assert [name for name, _ in office.log.lines] == ["shipper.retrying", "shipper.recovered"]


async def test_the_text_of_a_store_that_is_down_comes_over_the_line(office):
    await office.start_clerk()
    office.clerks.is_down = True
    with pytest.raises(StoreDown, match="down"):
        await office.line.ship([(1, terminal())])


async def test_a_clerk_that_hangs_is_waited_for_once(office, monkeypatch):
    monkeypatch.setattr(desk, "ANSWER_SECONDS", 0.05)
    office.clerks.gate = asyncio.Event()
    await office.start_clerk()
    office.append()
    assert await office.shipped() == (0, 1)
    office.clerks.gate.set()
    await until(lambda: office.line.is_there)
    office.append()
    assert await office.shipped() == (1, 1)
    assert len(office.clerks.rows) == 2


async def test_a_batch_that_waited_too_long_for_its_turn_is_the_workers_alone(office, monkeypatch):
    monkeypatch.setattr(desk, "ANSWER_SECONDS", 0.05)
    clerk = ClerkDesk(office.clerks)
    await office.start_clerk(clerk.attend)
    await clerk.finish(60)  # takes every turn, as other workers' batches do
    office.append()
    assert await office.shipped() == (0, 1)
    await until(lambda: office.line.is_there)  # again: by then the clerk knows that the line before has ended
    for _ in range(desk.AT_ONCE):
        clerk._turns.release()
    await until(lambda: clerk._lines == 1)
    monkeypatch.setattr(desk, "ANSWER_SECONDS", 20)
    office.append()
    assert await office.shipped() == (1, 1)
    assert office.clerks.batches == [1]


async def test_a_clerk_that_takes_connections_and_does_not_greet_is_not_there(office):
    async def be_mute(reader, writer):
        await reader.read()

    await office.listen(be_mute)
    office.append()
    assert await office.shipped() == (0, 1)
    assert not office.line.is_there


async def test_a_clerk_that_dies_in_the_middle_of_a_batch(office):
    async def die(reader, writer):
        writer.write(GREETING)
        await reader.readexactly(4)
        writer.transport.abort()

    await office.start_clerk(die)
    office.append()
    assert await office.shipped() == (0, 1)


@pytest.mark.parametrize("answer", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", b"\x00\x00\x00\x02\x91\x09"])
async def test_an_answer_that_is_none(office, answer):
    async def babble(reader, writer):
        writer.write(GREETING)
        await reader.readexactly(4)
        writer.write(answer)

    await office.start_clerk(babble)
    office.append()
    assert await office.shipped() == (0, 1)


async def test_an_answer_that_comes_unasked_is_not_taken_for_one(office):
    async def talk(reader, writer):
        writer.write(GREETING + desk._frame(desk.Summary([], [], 9)))
        await reader.read()

    await office.listen(talk)
    office.append()
    assert await office.shipped() == (0, 1)


async def test_giving_up_in_the_middle_of_a_batch_loses_no_place_and_mixes_no_answers(office):
    office.clerks.gate = asyncio.Event()
    await office.start_clerk()
    first = office.append()
    impatient = asyncio.create_task(office.shipper.ship_until(office.journal.position))
    await until(lambda: office.clerks.waiting == 1)
    impatient.cancel()
    await asyncio.wait([impatient])
    office.clerks.gate.set()
    second = office.append()
    await office.shipped()
    assert set(office.clerks.rows) == {(first.request_id, 1), (second.request_id, 1)}
    assert office.shipper.lag.unshipped_nanos == 0


async def test_a_worker_that_is_far_behind_takes_its_own_hand(office, monkeypatch):
    await office.start_clerk()
    monkeypatch.setattr(shipper, "OWN_HAND_SECONDS", -1)
    office.append()
    assert await office.shipped() == (0, 1)


async def test_a_batch_that_is_too_long_for_a_frame_is_the_workers(office, monkeypatch):
    monkeypatch.setattr(desk, "MOST_FRAME_BYTES", 10)
    await office.start_clerk()
    office.append()
    assert await office.shipped() == (0, 1)


async def test_a_batch_ends_where_it_has_bytes_enough(office, monkeypatch):
    monkeypatch.setattr(shipper, "MOST_BATCH_BYTES", 1_000)
    await office.start_clerk()
    for _ in range(300):
        office.append()
    by_clerk, by_hand = await office.shipped()
    assert by_clerk > 10
    assert by_hand == 0
    assert len(office.clerks.rows) == 300


@pytest.mark.parametrize(
    "said", [b"\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x01\xc1", b"\x00\x00\x00\x03abc"]
)
async def test_who_says_what_no_worker_says_is_hung_up_on_and_the_clerk_serves_on(office, said):
    await office.start_clerk()
    async with stranger(office) as (reader, writer):
        writer.write(said)
        assert await reader.read() == b""
    office.append()
    assert await office.shipped() == (1, 0)


async def test_who_says_half_of_something_is_not_waited_for(office, monkeypatch):
    monkeypatch.setattr(desk, "BODY_SECONDS", 0.01)
    await office.start_clerk()
    async with stranger(office) as (reader, writer):
        writer.write(b"\x00\x00\x00\x09half")
        assert await reader.read() == b""


async def test_a_batch_of_another_version_is_the_workers_to_complain_of(office):
    await office.start_clerk()
    assert await office.line.ship([(1, b"\x09future")]) is None
    assert office.line.is_there


async def test_nobody_is_attended_to_beyond_the_most(office, monkeypatch):
    await office.start_clerk()
    monkeypatch.setattr(desk, "MOST_LINES", 1)
    reader, writer = await asyncio.open_unix_connection(office.path)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_a_clerk_that_leaves_finishes_what_it_writes_and_begins_nothing(office):
    office.clerks.gate = asyncio.Event()
    clerk = ClerkDesk(office.clerks)
    await office.start_clerk(clerk.attend)
    office.append()
    shipping = asyncio.create_task(office.shipped())
    await until(lambda: office.clerks.waiting == 1)
    leaving = asyncio.create_task(clerk.finish(60))
    await asyncio.sleep(0)
    assert not leaving.done()
    office.clerks.gate.set()
    await leaving
    assert await shipping == (1, 0)


async def test_a_line_that_is_open_when_the_clerk_ends_is_no_error(office):
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    server = await asyncio.start_unix_server(ClerkDesk(office.clerks).attend, office.path)
    await until(lambda: office.line.is_there)
    attending = [task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "ClerkDesk.attend"]
    for task in attending:
        task.cancel()  # as what runs a loop does with what is left at its end
    await asyncio.wait(attending)
    server.close()
    await until(lambda: not office.line.is_there)
    assert len(attending) == 1
    assert errors == []


def test_a_terminal_is_told_by_its_first_bytes():
    ends = [terminal(), terminal(make_record(), make_record(attempt=2))]
    others = [intent(new_request_id()), checkpoint(new_request_id(), 3), b"\x09" + terminal()[1:], b"", b"\x01"]
    assert select_terminals(enumerate([*others, *ends, *others])) == ends
