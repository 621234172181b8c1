"""INTENTs of one turn of the loop are one write, and what they stand for begins after it or never."""

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
from meterhouse.errors import JournalDown
from meterhouse.ids import new_request_id
from meterhouse.ledger.adopter import Adopter
from meterhouse.ledger.chain import MOST_DEFERRED
from meterhouse.ledger.files import OsFiles
from meterhouse.ledger.folder import JournalPolicy
from meterhouse.ledger.segment import FRAME_BYTES
from meterhouse.usage import Outcome

LARGE = JournalPolicy(segment_bytes=1 << 20, retry_seconds=0.01)


class Begun:
    """What was told to begin or not, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[bytes, JournalDown | None]] = []

    def admit(self, journal, payload):
        admission = journal.admit(payload)
        admission.tell(lambda error: self.told.append((payload, error)))
        return admission

    @property
    def given(self) -> list[bytes]:
        return [payload for payload, error in self.told if error is None]

    @property
    def refused(self) -> list[bytes]:
        return [payload for payload, error in self.told if error is not None]


@pytest.fixture
def files():
    return CountedFiles(loses_power=True)


@pytest.fixture
def begun():
    return Begun()


async def test_the_intents_of_a_turn_are_one_write_and_nothing_begins_before_it(tmp_path, files, begun):
    async with opened_journal(tmp_path, files=files) as journal:
        files.writes.clear()
        admissions = [begun.admit(journal, b"intent %d" % number) for number in range(4)]
        journal.append_end(b"an end")
        assert (files.writes, begun.told, journal.position) == ([], [], 1)
        assert not any(admission.is_given for admission in admissions)
        await asyncio.sleep(0)
        assert len(files.writes) == 1
        assert begun.given == [b"intent 0", b"intent 1", b"intent 2", b"intent 3"]
        assert all(admission.is_given for admission in admissions)
        assert journal.position == 5
    names = [b"an end", b"intent 0", b"intent 1", b"intent 2", b"intent 3"]
    assert read_all(tmp_path, files)[0] == list(enumerate(names, 1))


@pytest.mark.parametrize("how", ["append", "read", "insist"])
async def test_whoever_writes_before_the_turn_ends_writes_the_intents_that_wait_first(tmp_path, files, begun, how):
    async with opened_journal(tmp_path, files=files) as journal:
        files.writes.clear()
        first, second = begun.admit(journal, b"first"), begun.admit(journal, b"second")
        if how == "append":
            assert journal.append(b"checkpoint") == 3
        elif how == "read":
            journal.list_segments()
        else:
            second.insist()
        assert begun.given == [b"first", b"second"]
        first.insist()
        await asyncio.sleep(0)
        assert len(files.writes) == 1
        assert files.writes[0].index(b"first") < files.writes[0].index(b"second")


async def test_whoever_asks_late_is_told_at_once(tmp_path, begun):
    async with opened_journal(tmp_path) as journal:
        admission = journal.admit(b"intent")
        await asyncio.sleep(0)
        told = []
        admission.tell(told.append)
        assert told == [None]


async def test_as_many_as_may_wait_are_written_with_one_more(tmp_path, files, begun):
    async with opened_journal(tmp_path, files=files, policy=LARGE) as journal:
        files.writes.clear()
        for number in range(MOST_DEFERRED // 2):
            begun.admit(journal, b"%d" % number)
            journal.append_end(b"%d" % number)
        assert begun.told == []
        assert begun.admit(journal, b"one more").is_given
        assert len(files.writes) == 1
        assert len(begun.given) == MOST_DEFERRED // 2 + 1


async def test_with_durability_write_an_intent_is_written_at_once(tmp_path, files):
    policy = JournalPolicy(durability="write", segment_bytes=8_192)
    async with opened_journal(tmp_path, files=files, policy=policy) as journal:
        assert journal.admit(b"intent").is_given
        assert b"intent" in files.writes[-1]


async def test_closing_writes_what_waits(tmp_path, begun):
    async with opened_journal(tmp_path) as journal:
        begun.admit(journal, b"intent")
    assert begun.given == [b"intent"]
    assert read_all(tmp_path)[0] == [(1, b"intent")]


async def test_a_killed_process_leaves_no_intent_of_what_had_not_begun(tmp_path, begun):
    journal = new_journal(tmp_path, policy=LARGE)
    await journal.open()
    begun_id, waiting_id = new_request_id(), new_request_id()
    begun.admit(journal, intent(begun_id))
    await asyncio.sleep(0)
    ended = new_request_id()
    journal.append_end(terminal(make_record(ended)))
    begun.admit(journal, intent(waiting_id))
    await abandon(journal)
    await asyncio.sleep(0)
    assert len(begun.told) == 1
    store = MemoryStore()
    await Adopter(store, OsFiles(), EventLog()).adopt(tmp_path)
    assert {key: row.outcome for key, row in store.rows.items()} == {(begun_id, 1): Outcome.WORKER_LOST}


# --- the disk fails


@pytest.mark.parametrize("torn_bytes", [None, 0, 9, 20, 30])
async def test_a_write_that_fails_goes_into_the_reserve_and_everything_begins(tmp_path, files, begun, torn_bytes):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    await until_there_is_a_reserve(journal)
    files.fail_writes(2, torn_bytes=torn_bytes)
    journal.append_end(b"an end")
    for payload in (b"one", b"two", b"three"):
        begun.admit(journal, payload)
    await asyncio.sleep(0)
    assert begun.given == [b"one", b"two", b"three"]
    await journal.barrier(journal.append_end(b"after"))
    await lose_power(journal, files)
    found, damages = read_all(tmp_path, files)
    assert found == list(enumerate([b"an end", b"one", b"two", b"three", b"after"], 1))
    assert all(damage.lost_records == 0 for damage in damages)


async def test_where_the_disk_takes_nothing_every_intent_is_refused_and_the_ends_are_kept(tmp_path, files, begun):
    log = EventLog()
    journal = new_journal(tmp_path, files=files, log=log)
    await journal.open()
    await until_there_is_a_reserve(journal)
    files.fail_writes()
    ended = asyncio.ensure_future(journal.barrier(journal.append_end(b"end")))
    admissions = [begun.admit(journal, b"%d" % number) for number in range(4)]
    late = journal.append_end(b"late end")
    with pytest.raises(JournalDown):
        await ended
    assert begun.refused == [b"0", b"1", b"2", b"3"]
    for admission in admissions:
        with pytest.raises(JournalDown):
            admission.insist()
    with pytest.raises(JournalDown):
        journal.admit(b"new")
    assert str(errno.EIO) in str(log.fields_of("journal.write_failed")[0]["error"])
    files.heal()
    await until(lambda: journal.is_writable)
    await journal.barrier(late)
    await lose_power(journal, files)
    assert read_all(tmp_path, files)[0] == [(1, b"end"), (2, b"late end")]


async def test_of_intents_that_a_record_was_to_be_written_with_those_are_refused_that_are_not(tmp_path, files, begun):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    await until_there_is_a_reserve(journal)
    begun.admit(journal, b"intent")
    files.fail_writes()
    position = journal.append(b"of one that runs")
    assert begun.refused == [b"intent"]
    with pytest.raises(JournalDown):
        await journal.barrier(position)
    files.heal()
    await until(lambda: journal.is_writable)
    await journal.barrier(position)
    await lose_power(journal, files)
    assert read_all(tmp_path, files)[0] == [(1, b"of one that runs")]


async def test_what_a_short_write_brought_into_the_file_whole_keeps_its_position_though_the_disk_is_full(
    tmp_path, files, begun
):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    await until_there_is_a_reserve(journal)
    reader = journal.open_reader(lambda _: None)
    await journal.barrier(journal.append(b"acknowledged"))
    for payload in (b"first", b"second", b"third"):
        begun.admit(journal, payload)
    files.room_bytes = 2 * FRAME_BYTES + len(b"first" + b"second" + b"th")
    await asyncio.sleep(0)
    assert (begun.given, begun.refused) == ([b"first", b"second"], [b"third"])
    reader.read(until=journal.durable_position, max_records=9)  # it has seen what stands there, too
    files.room_bytes = None
    end = journal.append(b"an end")
    await until(lambda: journal.is_writable)
    await journal.barrier(end)
    found = reader.read(until=end, max_records=9) + reader.read(until=end, max_records=9)
    assert found == list(enumerate([b"first", b"second", b"an end"], 2))
    await lose_power(journal, files)
    assert read_all(tmp_path, files)[0] == [(1, b"acknowledged"), *found]


async def test_an_intent_that_does_not_fit_any_more_goes_into_the_next_segment(tmp_path, files, begun):
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    for number in range(60):
        await until(lambda: journal.is_writable and journal._supply._reserve is not None)
        begun.admit(journal, b"%500d" % number)
        if number % 3 == 0:
            await asyncio.sleep(0)
    await journal.barrier(journal.append(b"last"))
    assert begun.given == [b"%500d" % number for number in range(60)]
    await lose_power(journal, files)
    assert [payload for _, payload in read_all(tmp_path, files)[0]] == [*begun.given, b"last"]


async def test_an_intent_larger_than_a_segment_is_refused_at_once(tmp_path, begun):
    async with opened_journal(tmp_path) as journal:
        begun.admit(journal, b"small")
        with pytest.raises(JournalDown):
            journal.admit(bytes(SMALL.segment_bytes))
        assert begun.given == [b"small"]


async def test_whatever_fails_what_began_is_written_and_what_was_refused_is_not(tmp_path, files):
    chance = random.Random(47)
    journal = new_journal(tmp_path, files=files)
    await journal.open()
    begins: list[bytes] = []
    acknowledged: set[bytes] = set()

    async def run(number):
        told = asyncio.get_running_loop().create_future()
        try:
            journal.admit(b"intent %d" % number).tell(told.set_result)
        except JournalDown:
            return
        if await told is not None:
            return
        begins.append(b"intent %d" % number)
        try:
            await journal.barrier(journal.append_end(b"end %d:" % number + bytes(chance.randrange(700))))
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
    await until(lambda: journal.is_writable)
    await journal.barrier(journal.position)
    await lose_power(journal, files)
    names = [payload.partition(b":")[0] for _, payload in read_all(tmp_path, files)[0]]
    assert len(names) == len(set(names))
    assert {name for name in names if name.startswith(b"intent")} == set(begins)
    assert acknowledged <= set(names)
    assert all(names.index(name.replace(b"end", b"intent")) < names.index(name) for name in acknowledged)
    assert len(acknowledged) > 50
