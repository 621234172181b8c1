"""How keys are read: many at once, one query at a time, and not waiting for a database that hangs."""

import asyncio
import time

import pytest
import sqlalchemy as sa

from fakes.house import PEPPERS, bearer, opened_house
from meterhouse.db.keys import KeyStore
from meterhouse.db.tables import key as key_table
from meterhouse.errors import InvalidKey, StoreDown
from meterhouse.keys import reader as reading
from meterhouse.keys.changes import Others
from meterhouse.keys.keyring import Keyring
from meterhouse.keys.reader import KeyReader, Mirrored
from meterhouse.keys.service import KeyOrder, KeyService
from meterhouse.metering import Kind, Limit, Scope, Window


@pytest.fixture
async def house(tmp_path):
    async with opened_house(tmp_path) as house:
        yield house


class HangingStore(KeyStore):
    """The real store, but what it finds is handed out only while it is not held."""

    def __init__(self, engine):
        super().__init__(engine)
        self.free = asyncio.Event()
        self.began = asyncio.Event()
        self.running = self.most_running = 0
        self.asked = []

    async def find_keys(self, key_ids):
        self.asked.append(list(key_ids))
        self.running += 1
        self.began.set()
        self.most_running = max(self.running, self.most_running)
        try:
            found = await super().find_keys(key_ids)
            await self.free.wait()
        finally:
            self.running -= 1
        return found


class KnownKeys:
    """A mirror that knows what it is told."""

    def __init__(self, known):
        self.known = known

    async def find(self, key_ids):
        return {key_id: self.known[key_id] for key_id in key_ids if key_id in self.known}

    def put(self, key, read_at_ms):
        self.known[key.id] = Mirrored(key, is_current=True)


@pytest.fixture
async def hanging(house):
    store = HangingStore(house.engine)
    yield store
    store.free.set()


def keyring_on(house, store, mirror=None):
    return Keyring(store, PEPPERS, house.clock, mirror)


async def insert_copies(house, issued, count):
    """Write further keys like one, with ids of their own."""
    async with house.engine.begin() as connection:
        row = (await connection.execute(sa.select(key_table).where(key_table.c.id == issued.key.id))).mappings().one()
        rows = [dict(row) | {"id": f"key_{i:012}"} for i in range(count)]
        await connection.execute(sa.insert(key_table), rows)
    return [row["id"] for row in rows]


@pytest.mark.cell(33, "A")
async def test_ten_thousand_cold_keys_cost_one_connection_and_a_query_per_hundred(house, hanging, monkeypatch):
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 60)
    monkeypatch.setattr(reading, "GIVE_UP_SECONDS", 60)
    hanging.free.set()
    ids = await insert_copies(house, await house.issue(), 10_000)
    reader = KeyReader(hanging, house.clock)
    reads = await asyncio.gather(*[reader.read(key_id) for key_id in ids for _ in range(2)])
    assert [read.key.id for read in reads[::2]] == ids
    assert (hanging.most_running, reader.queries) == (1, 100)
    await reader.close()


async def test_how_many_may_wait_is_bounded(house, monkeypatch):
    monkeypatch.setattr(reading, "MOST_WAITING", 3)
    reader = KeyReader(house.catalog.keys, house.clock)
    results = await asyncio.gather(*[reader.read(f"key_{i}") for i in range(5)], return_exceptions=True)
    assert [isinstance(result, StoreDown) for result in results] == [False] * 3 + [True] * 2
    assert {read.key for read in results[:3]} == {None}
    await reader.close()


async def test_who_asks_after_a_query_began_gets_the_answer_of_a_later_one(house, hanging):
    issued = await house.issue()
    reader = KeyReader(hanging, house.clock)
    first = asyncio.create_task(reader.read(issued.key.id))
    await hanging.began.wait()
    await house.elsewhere.revoke(issued.key.id)
    second = asyncio.create_task(reader.read(issued.key.id))
    hanging.free.set()
    assert (await second).key.revoked_at_ms is not None
    assert (await first).key.id == issued.key.id
    await reader.close()


class SlowMirror(KnownKeys):
    """Knows nothing, and says so only once something else has happened."""

    def __init__(self, happens):
        super().__init__({})
        self.happens = happens

    async def find(self, key_ids):
        await self.happens()
        return {}


@pytest.mark.parametrize("is_of_an_earlier_query", [False, True])
async def test_a_query_that_ends_while_the_mirror_is_asked_is_no_database_that_is_away(
    house, hanging, monkeypatch, is_of_an_earlier_query
):
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.01)
    first, second = await house.issue(), await house.issue()
    asked = []

    async def answer():
        asked.append(reader._query)
        if len(asked) == 1 + is_of_an_earlier_query:
            hanging.free.set()
            await asyncio.wait({asked[0]})

    reader = KeyReader(hanging, house.clock, SlowMirror(answer))
    reads = [asyncio.create_task(reader.read(first.key.id))]
    await hanging.began.wait()
    if is_of_an_earlier_query:
        reads.append(asyncio.create_task(reader.read(second.key.id)))
    found = await asyncio.wait_for(asyncio.gather(*reads), 20)
    assert [read.key.id for read in found] == [first.key.id, second.key.id][: len(reads)]
    await reader.close()


async def test_an_error_that_is_not_the_databases_reaches_whoever_waits(house):
    issued = await house.issue()
    async with house.engine.begin() as connection:
        await connection.execute(sa.text("UPDATE key SET scopes = 'no JSON'"))
    with pytest.raises(ValueError, match="Expecting value"):
        await house.verify(issued)
    with pytest.raises(ValueError, match="Expecting value"):
        await house.keyring.find_dead([issued.key.id])


async def test_while_a_query_hangs_the_mirror_answers_and_then_without_waiting(house, hanging, monkeypatch):
    first, second = await house.issue(), await house.issue()
    mirror = KnownKeys({issued.key.id: Mirrored(issued.key, is_current=True) for issued in (first, second)})
    keyring = keyring_on(house, hanging, mirror)
    began = time.monotonic()
    assert (await keyring.verify(bearer(first), None)).key_id == first.key.id
    assert time.monotonic() - began < reading.GIVE_UP_SECONDS
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 20)
    began = time.monotonic()
    assert (await keyring.verify(bearer(second), None)).key_id == second.key.id
    assert time.monotonic() - began < 10
    hanging.free.set()
    await keyring.close()


async def test_a_key_that_the_mirror_does_not_know_waits_for_the_slow_query_and_for_the_next(house, hanging):
    first, second = await house.issue(), await house.issue()
    keyring = keyring_on(house, hanging, KnownKeys({}))
    calls = [asyncio.create_task(keyring.verify(bearer(first), None))]
    await hanging.began.wait()
    calls.append(asyncio.create_task(keyring.verify(bearer(second), None)))
    await asyncio.wait({*calls}, timeout=reading.PATIENCE_SECONDS + 0.1)
    assert keyring._reader._late
    hanging.free.set()
    assert [principal.key_id for principal in await asyncio.gather(*calls)] == [first.key.id, second.key.id]
    await keyring.close()


async def test_nobody_waits_for_ever_for_a_query_that_hangs(house, hanging, monkeypatch):
    monkeypatch.setattr(reading, "GIVE_UP_SECONDS", 0.4)
    monkeypatch.setattr(reading, "ABANDON_SECONDS", 0.6)
    issued = await house.issue()
    keyring = keyring_on(house, hanging)
    with pytest.raises(StoreDown):
        await keyring.verify(bearer(issued), None)
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 20)
    began = time.monotonic()
    with pytest.raises(StoreDown):
        await keyring.verify(bearer(issued), None)
    assert time.monotonic() - began < 10
    await keyring.close()
    house.clock.move(1_000)
    hanging.free.set()
    assert (await keyring.verify(bearer(issued), None)).key_id == issued.key.id
    await keyring.close()


async def test_a_stale_key_serves_while_a_query_hangs_and_what_it_finds_late_still_counts(house, hanging):
    issued = await house.issue()
    keyring = keyring_on(house, hanging)
    hanging.free.set()
    await keyring.verify(bearer(issued), None)
    hanging.free.clear()
    await house.elsewhere.revoke(issued.key.id)
    house.clock.move(10_000)
    began = time.monotonic()
    assert (await keyring.verify(bearer(issued), None)).key_id == issued.key.id
    assert time.monotonic() - began < reading.GIVE_UP_SECONDS
    hanging.free.set()
    await keyring.close()
    with pytest.raises(InvalidKey):
        await keyring.verify(bearer(issued), None)


async def test_a_key_in_use_is_read_again_before_anybody_has_to_wait_for_it(house, hanging):
    issued = await house.issue()
    keyring = keyring_on(house, hanging)
    hanging.free.set()
    await keyring.verify(bearer(issued), None)
    hanging.free.clear()
    hanging.began.clear()
    house.clock.move(7_500)
    for _ in range(3):
        await keyring.verify(bearer(issued), None)
    assert len(keyring._running) == 1
    await hanging.began.wait()
    hanging.free.set()
    await keyring.close()
    house.clock.move(7_000)
    await keyring.verify(bearer(issued), None)
    assert (keyring.hits, keyring.misses, len(hanging.asked)) == (4, 1, 2)


async def test_keys_in_use_share_the_query_of_one_that_is_due(house, hanging):
    hanging.free.set()
    first, other, idle, late = [await house.issue() for _ in range(4)]
    keyring = keyring_on(house, hanging)
    for issued in (first, other, idle):
        await keyring.verify(bearer(issued), None)
    house.clock.move(4_000)
    for issued in (other, late):
        await keyring.verify(bearer(issued), None)
    house.clock.move(3_500)
    hanging.asked.clear()
    for issued in (first, other, late):
        await keyring.verify(bearer(issued), None)
    await keyring.close()
    assert hanging.asked == [[first.key.id, other.key.id]]


async def test_keys_in_use_fill_a_query_and_never_make_new_ones_wait_for_another(house, hanging):
    hanging.free.set()
    known = await house.issue()
    new = [await house.issue() for _ in range(6)]
    keyring = keyring_on(house, hanging)
    in_use = await insert_copies(house, known, 600)
    await asyncio.gather(*[keyring.find_live(key_id) for key_id in in_use])
    house.clock.move(6_000)
    keyring._used.update(dict.fromkeys(in_use, house.clock.now_ms()))
    hanging.asked.clear()
    await asyncio.gather(*[keyring.verify(bearer(issued), None) for issued in new])
    assert len(hanging.asked) == 2
    assert {len(asked) for asked in hanging.asked} == {100, 5}
    await keyring.close()


async def test_a_clock_that_was_set_back_has_no_reading_remembered_until_it_is_that_late_again(house, hanging):
    hanging.free.set()
    before, first, other = [await house.issue() for _ in range(3)]
    keyring = keyring_on(house, hanging)
    await keyring.verify(bearer(before), None)
    house.clock.move(-3_600_000)
    for later_ms, issued in ((0, first), (1_000, other), (4_000, other), (2_500, first)):
        house.clock.move(later_ms)
        await keyring.verify(bearer(issued), None)
    await keyring.close()
    assert hanging.asked[-1] == [first.key.id, other.key.id]


async def test_what_is_read_again_and_is_the_same_has_the_same_limits_and_a_change_counts(house):
    issued = await house.issue(limits=(Limit(Scope.KEY, "", Kind.REQUESTS, Window.MINUTE, 10),))
    before = await house.verify(issued)
    house.clock.move(10_000)
    assert (await house.verify(issued)).limits is before.limits
    assert house.keyring.misses == 2
    await house.elsewhere.revoke(issued.key.id)
    house.clock.move(10_000)
    with pytest.raises(InvalidKey):
        await house.verify(issued)


async def test_a_clock_that_was_set_back_does_not_keep_the_database_away(house):
    issued = await house.issue()
    async with house.away():
        with pytest.raises(StoreDown):
            await house.verify(issued)
    house.clock.move(-3_600_000)
    assert (await house.verify(issued)).key_id == issued.key.id


async def test_a_stale_key_that_is_known_to_have_changed_does_not_serve(house):
    issued = await house.issue()
    keyring = keyring_on(house, house.catalog.keys, mirror := KnownKeys({}))
    await keyring.verify(bearer(issued), None)
    mirror.known[issued.key.id] = Mirrored(None, is_current=False)
    house.clock.move(10_000)
    async with house.away():
        with pytest.raises(StoreDown):
            await keyring.verify(bearer(issued), None)
    mirror.known.clear()
    with pytest.raises(StoreDown):
        await keyring.verify(bearer(issued), None)
    await keyring.close()


# --- what is heard


async def test_what_is_published_is_heard_by_another_process(house):
    heard = []

    async def publish(kind, notice):
        heard.append((kind, notice))
        other.hear(notice)

    other = house.new_keyring()
    calls = []
    other.watch(lambda: calls.append("other"))
    house.keyring.watch(lambda: calls.append("own"))
    service = KeyService(
        house.catalog,
        PEPPERS,
        house.clock,
        environment="live",
        keyring=house.keyring,
        others=Others(publish=publish),
    )
    issued = await house.issue()
    await other.verify(bearer(issued), None)
    limit = Limit(Scope.ORGANIZATION, house.organization.id, Kind.REQUESTS, Window.DAY, 5)
    await service.set_limits(Scope.ORGANIZATION, house.organization.id, [limit])
    assert (await other.verify(bearer(issued), None)).limits == (limit,)
    await service.revoke(issued.key.id)
    assert await other.find_dead([issued.key.id]) == {issued.key.id}
    assert heard == [
        ("key", {"scope": "organization", "scope_id": house.organization.id}),
        ("key", {"key_id": issued.key.id}),
    ]
    assert calls == ["own", "other"] * 2
    await other.close()


@pytest.mark.parametrize(
    "notice", [None, "key_x", [], {}, {"key_id": 1}, {"scope": "world", "scope_id": "x"}, {"scope": "key"}]
)
async def test_a_notice_that_says_nothing_is_ignored(house, notice):
    issued = await house.issue()
    await house.verify(issued)
    house.keyring.watch(lambda: pytest.fail("there is nothing to look at"))
    house.keyring.hear(notice)
    assert list(house.keyring._entries) == [issued.key.id]


async def test_a_new_key_is_told_so_that_nobody_takes_it_for_unknown(house):
    told = []

    async def publish(kind, notice):
        told.append(notice)

    service = KeyService(house.catalog, PEPPERS, house.clock, environment="live", others=Others(publish=publish))
    issued = await service.issue(KeyOrder("k", house.project.id))
    rotated = await service.rotate(issued.key.id)
    await service.archive_project(house.project.id)
    assert told == [
        {"key_id": issued.key.id},
        {"scope": "key", "scope_id": issued.key.id},
        {"key_id": rotated.key.id},
        {"scope": "project", "scope_id": house.project.id},
    ]


async def test_running_answers_of_keys_that_nobody_can_tell_of_go_on(house):
    dead, good = await house.issue(), await house.issue()
    await house.elsewhere.revoke(dead.key.id)
    ids = [dead.key.id, good.key.id]
    assert await house.keyring.find_dead(ids) == {dead.key.id}
    async with house.away():
        house.clock.move(300_000)
        assert await house.keyring.find_dead(ids) == set()


async def test_nothing_is_told_of_a_revocation_that_the_database_did_not_take(house):
    async def publish(kind, notice):
        pytest.fail("nothing has changed")

    service = KeyService(house.catalog, PEPPERS, house.clock, environment="live", others=Others(publish=publish))
    issued = await house.issue()
    async with house.away():
        with pytest.raises(StoreDown):
            await service.revoke(issued.key.id)
    assert await house.keyring.find_live(issued.key.id)
