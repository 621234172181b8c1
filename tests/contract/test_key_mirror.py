"""Keys over a real Redis: what the mirror serves while SQL is away, what it never serves, and how fast a change counts.

Two processes ("here" and "there") share a database and a Redis; each has a keyring, a mirror and a service of its own.
"""

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

import pytest

from fakes.house import PEPPERS, bearer, opened_house
from fakes.servers import RedisServer
from meterhouse.errors import InvalidKey, StoreDown
from meterhouse.keys import mirror as mirroring
from meterhouse.keys.changes import Others
from meterhouse.keys.keyring import Keyring
from meterhouse.keys.mirror import ENTRY_LIFE_MS, SKEW_MS, TIMEOUT_SECONDS, KeyMirror
from meterhouse.keys.reader import MirrorDown
from meterhouse.keys.secret import make
from meterhouse.keys.service import KeyService
from meterhouse.metering import Kind, Limit, Scope, Window
from meterhouse.notices import Notices
from meterhouse.stores import open_redis

SECRET = b"s" * 32
PATIENT_SECONDS = 5.0
"""How long Redis may take where that is not what is tested: the machine may be busy."""


class Process:
    """One process: its keyring, mirror, service, and whether it hears of changes."""

    def __init__(self, house, url, secret=SECRET, timeout_seconds=PATIENT_SECONDS):
        self.client = open_redis(url, timeout_seconds)
        self.notices = Notices(url)
        self.mirror = KeyMirror(self.client, house.clock, secret, timeout_seconds)
        self.keyring = Keyring(house.catalog.keys, PEPPERS, house.clock, self.mirror)
        others = Others(self.mirror, self.notices.publish)
        self.service = KeyService(
            house.catalog, PEPPERS, house.clock, environment="live", keyring=self.keyring, others=others
        )
        self.listening = None

    async def listen(self):
        self.notices.on("key", self.keyring.hear)
        self.listening = asyncio.create_task(self.notices.run())
        await self.notices.wait_connected()

    async def verify(self, issued):
        return await self.keyring.verify(bearer(issued), "192.0.2.7")

    async def why_not(self, issued):
        with pytest.raises(InvalidKey) as caught:
            await self.verify(issued)
        return caught.value.detail

    async def written(self):
        """Wait until nothing waits to be written."""
        while self.mirror._writer is not None:
            await asyncio.wait({self.mirror._writer})

    async def close(self):
        if self.listening is not None:
            self.listening.cancel()
            with suppress(asyncio.CancelledError):
                await self.listening
        await self.keyring.close()
        await self.mirror.close()
        await self.notices.close()
        await self.client.aclose()


class Pair:
    def __init__(self, house, server, stack):
        self.house = house
        self.server = server
        self._stack = stack
        self.clock = house.clock
        self.here = self.start()
        self.there = self.start()

    def start(self, secret=SECRET, timeout_seconds=PATIENT_SECONDS):
        """Start a process that knows nothing yet."""
        process = Process(self.house, self.server.url, secret, timeout_seconds)
        self._stack.push_async_callback(process.close)
        return process

    async def mirrored(self, **order):
        """Issue a key whose entry is later than every mark of it, and which only "here" has used."""
        issued = await self.house.issue(**order)
        await self.here.verify(issued)
        self.clock.move(10_000)
        await self.here.verify(issued)
        await self.here.written()
        return issued


@pytest.fixture(scope="module")
def redis_of_keys(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("keys") / "redis") as server:
        yield server


@pytest.fixture
def server(redis_of_keys):
    if not redis_of_keys.is_running:
        redis_of_keys.start()
    redis_of_keys.flush()
    return redis_of_keys


@pytest.fixture
async def pair(tmp_path, server):
    async with opened_house(tmp_path) as house, AsyncExitStack() as stack:
        yield Pair(house, server, stack)


def spend(house, amount):
    return Limit(Scope.ORGANIZATION, house.organization.id, Kind.SPEND, Window.MONTH, amount)


# --- while SQL is away


@pytest.mark.cell(9, "A")
async def test_a_known_key_is_served_for_a_day_to_processes_that_never_saw_it(pair):
    await pair.house.elsewhere.set_limits(Scope.ORGANIZATION, pair.house.organization.id, [spend(pair.house, 10**9)])
    issued = await pair.mirrored(models=frozenset({"gpt", "o9"}), ip_ranges=("192.0.2.0/24",), expires_in_seconds=10**6)
    expected = await pair.here.verify(issued)
    async with pair.house.away():
        assert await pair.there.verify(issued) == expected
        assert expected.limits == (spend(pair.house, 10**9),)
        pair.clock.move(ENTRY_LIFE_MS - 10_001)
        assert await pair.start().verify(issued) == expected
        pair.clock.move(10_001)
        with pytest.raises(StoreDown):
            await pair.start().verify(issued)


async def test_an_entry_is_renewed_by_use_once_an_hour(pair):
    issued = await pair.mirrored()
    puts = []
    put = pair.here.mirror.put
    pair.here.mirror.put = lambda key, read_at_ms: (puts.append(read_at_ms), put(key, read_at_ms))
    for _ in range(24 * 4):
        pair.clock.move(900_000)
        await pair.here.verify(issued)
    assert len(puts) == 24
    await pair.here.written()
    async with pair.house.away():
        pair.clock.move(ENTRY_LIFE_MS - 3_600_000)
        assert (await pair.there.verify(issued)).key_id == issued.key.id


async def test_what_is_in_redis_holds_no_secret_and_ends_by_itself(pair):
    issued = await pair.mirrored()
    await pair.here.service.set_limits(Scope.KEY, issued.key.id, [])
    await pair.here.service.revoke(issued.key.id)
    names = sorted(name.decode() for name in await pair.here.client.keys("*"))
    assert names == [f"mh:changed:key:{issued.key.id}", f"mh:gone:{issued.key.id}", f"mh:key:{issued.key.id}"]
    for name in names:
        assert issued.value[-38:].encode() not in await pair.here.client.get(name)
        assert 0 < await pair.here.client.pttl(name) <= mirroring.MARK_LIFE_MS
    assert await pair.here.client.pttl(names[0]) > ENTRY_LIFE_MS
    assert await pair.here.client.pttl(names[1]) > ENTRY_LIFE_MS


@pytest.mark.cell(9, "A")
async def test_a_key_that_the_mirror_does_not_know_is_not_said_to_be_invalid(pair):
    issued = await pair.house.issue()
    async with pair.house.away():
        for value in (issued.value, make("live").value):
            with pytest.raises(StoreDown):
                await pair.there.keyring.verify(f"Bearer {value}", None)


@pytest.mark.cell(12, "A")
async def test_with_neither_store_the_process_cache_serves_for_300_seconds(pair):
    known, unknown = await pair.mirrored(), await pair.house.issue()
    pair.server.kill()
    async with pair.house.away():
        pair.clock.move(299_999)
        assert (await pair.here.verify(known)).key_id == known.key.id
        with pytest.raises(StoreDown):
            await pair.here.verify(unknown)
        pair.clock.move(1)
        with pytest.raises(StoreDown):
            await pair.here.verify(known)
        assert await pair.here.keyring.find_dead([known.key.id]) == set()


# --- what the mirror never serves


async def test_a_revoked_key_stays_refused_while_sql_is_away(pair):
    issued = await pair.mirrored()
    await pair.here.service.revoke(issued.key.id)
    assert pair.here.mirror.waiting_marks == 0
    async with pair.house.away():
        assert "revoked" in await pair.there.why_not(issued)
        assert await pair.start().keyring.find_dead([issued.key.id]) == {issued.key.id}


async def test_an_entry_that_was_read_before_a_revocation_and_written_after_it_revives_nothing(pair):
    issued = await pair.mirrored()
    await pair.here.service.revoke(issued.key.id)
    pair.there.mirror.put(issued.key, pair.clock.now_ms())
    await pair.there.written()
    async with pair.house.away():
        assert "revoked" in await pair.there.why_not(issued)


async def test_a_tombstone_alone_is_enough_to_refuse(pair):
    issued = await pair.house.issue()
    await pair.here.service.revoke(issued.key.id)
    async with pair.house.away():
        assert "unknown" in await pair.there.why_not(issued)


async def test_a_lost_tombstone_comes_back_with_the_next_use_of_the_key(pair):
    issued = await pair.mirrored()
    await pair.house.elsewhere.revoke(issued.key.id)
    assert not await pair.here.client.exists(f"mh:gone:{issued.key.id}")
    pair.clock.move(10_000)
    assert "revoked" in await pair.here.why_not(issued)
    await pair.here.written()
    async with pair.house.away():
        assert "revoked" in await pair.there.why_not(issued)


async def test_a_lost_tombstone_is_renewed_for_a_day_without_any_use_of_the_key(pair):
    older = await pair.mirrored()
    await pair.house.elsewhere.revoke(older.key.id)
    pair.clock.move(ENTRY_LIFE_MS + 3_600_001)
    lost = await pair.mirrored()
    await pair.house.elsewhere.revoke(lost.key.id)
    await pair.there.service.renew_tombstones()
    assert await pair.here.client.keys("mh:gone:*") == [f"mh:gone:{lost.key.id}".encode()]
    async with pair.house.away():
        assert "revoked" in await pair.there.why_not(lost)
    await pair.house.elsewhere.renew_tombstones()


@pytest.mark.parametrize("scope", list(Scope))
async def test_a_key_whose_limits_changed_serves_only_with_the_new_ones(pair, scope):
    issued = await pair.mirrored()
    await pair.there.verify(issued)
    owner_id = dict(issued.key.owners)[scope]
    limit = Limit(scope, owner_id, Kind.REQUESTS, Window.MINUTE, 7)
    await pair.here.service.set_limits(scope, owner_id, [limit])
    async with pair.house.away():
        # Not even from the cache of a process that has not heard of it.
        pair.clock.move(10_000)
        for process in (pair.there, pair.start()):
            with pytest.raises(StoreDown):
                await process.verify(issued)
    for _ in range(2):
        pair.clock.move(10_000)
        assert (await pair.there.verify(issued)).limits == (limit,)
    await pair.there.written()
    async with pair.house.away():
        assert (await pair.start().verify(issued)).limits == (limit,)


@pytest.mark.parametrize("early_ms", [0, SKEW_MS - 1])
async def test_an_entry_may_be_of_a_host_whose_clock_is_ahead(pair, early_ms):
    """It was read just before the change, and says that it was read up to two seconds after it."""
    issued = await pair.mirrored()
    limit = Limit(Scope.PROJECT, pair.house.project.id, Kind.REQUESTS, Window.DAY, 1)
    await pair.here.service.set_limits(Scope.PROJECT, pair.house.project.id, [limit])
    pair.there.mirror.put(issued.key, pair.clock.now_ms() + early_ms)
    await pair.there.written()
    async with pair.house.away():
        with pytest.raises(StoreDown):
            await pair.there.verify(issued)


async def test_the_keys_of_an_archived_project_and_rotated_keys_do_not_outlive_it_in_the_mirror(pair):
    archived, rotated = await pair.mirrored(), await pair.mirrored()
    await pair.here.service.rotate(rotated.key.id, overlap_seconds=0)
    async with pair.house.away():
        with pytest.raises(StoreDown):
            await pair.there.verify(rotated)
        assert (await pair.there.verify(archived)).key_id == archived.key.id
    pair.clock.move(1_000)
    await pair.here.service.archive_project(pair.house.project.id)
    async with pair.house.away():
        with pytest.raises(StoreDown):
            await pair.start().verify(archived)


async def forge_with_another_secret(pair, name, value):
    forger = pair.start(b"x" * 32)
    forger.mirror.put((await pair.house.service.get(name.removeprefix("mh:key:"))), pair.clock.now_ms())
    await forger.written()


async def take_the_entry_of_another_key(pair, name, value):
    other = await pair.mirrored()
    await pair.here.client.set(name, await pair.here.client.get(f"mh:key:{other.key.id}"))


async def change_a_byte(pair, name, value):
    await pair.here.client.set(name, value[:-5] + bytes([value[-5] ^ 1]) + value[-4:])


async def cut_it_short(pair, name, value):
    await pair.here.client.set(name, value[:20])


async def write_another_version(pair, name, value):
    await pair.here.client.set(name, b"2" + value[1:])


async def put_another_type_there(pair, name, value):
    await pair.here.client.delete(name)
    await pair.here.client.rpush(name, value)


async def seal_nonsense(pair, name, value):
    await pair.here.client.set(name, pair.here.mirror._seal(name, b"\x93\x01\x02\x03"))


async def put_a_tombstone_that_nobody_sealed(pair, name, value):
    await pair.here.client.set(name.replace("mh:key:", "mh:gone:"), b"gone")


async def put_a_mark_that_nobody_sealed(pair, name, value):
    await pair.here.client.set(f"mh:changed:project:{pair.house.project.id}", b"changed")


async def seal_a_mark_that_is_none(pair, name, value):
    name = f"mh:changed:project:{pair.house.project.id}"
    await pair.here.client.set(name, pair.here.mirror._seal(name, b"\x91\xa1x"))


@pytest.mark.parametrize(
    "spoil",
    [
        forge_with_another_secret,
        take_the_entry_of_another_key,
        change_a_byte,
        cut_it_short,
        write_another_version,
        put_another_type_there,
        seal_nonsense,
        put_a_tombstone_that_nobody_sealed,
        put_a_mark_that_nobody_sealed,
        seal_a_mark_that_is_none,
    ],
)
async def test_who_writes_to_redis_makes_no_key_and_no_401(pair, spoil):
    issued = await pair.mirrored()
    name = f"mh:key:{issued.key.id}"
    await spoil(pair, name, await pair.here.client.get(name))
    async with pair.house.away():
        with pytest.raises(StoreDown):
            await pair.there.verify(issued)
    pair.clock.move(1_000)
    assert (await pair.there.verify(issued)).key_id == issued.key.id


async def test_an_old_value_that_is_put_back_is_too_old(pair):
    issued = await pair.mirrored()
    value = await pair.here.client.get(f"mh:key:{issued.key.id}")
    await pair.here.service.revoke(issued.key.id)
    await pair.here.client.delete(f"mh:gone:{issued.key.id}")
    pair.clock.move(ENTRY_LIFE_MS)
    await pair.here.client.set(f"mh:key:{issued.key.id}", value)
    async with pair.house.away():
        with pytest.raises(StoreDown):
            await pair.there.verify(issued)


@pytest.mark.cell(28, "A")
async def test_a_clock_that_was_set_back_revives_nothing(pair):
    issued = await pair.mirrored()
    pair.clock.move(-3_600_000)
    await pair.here.service.set_limits(Scope.KEY, issued.key.id, [])
    async with pair.house.away():
        with pytest.raises(StoreDown):
            await pair.there.verify(issued)
    for _ in range(2):
        pair.clock.move(10_000)
        await pair.here.verify(issued)
    await pair.here.written()
    async with pair.house.away():
        assert (await pair.there.verify(issued)).key_id == issued.key.id


# --- while Redis is away


@pytest.mark.cell(5, "A")
async def test_without_redis_keys_are_read_from_sql_as_fast_as_ever_and_a_tombstone_is_written_later(pair):
    issued, other = await pair.mirrored(), await pair.house.issue()
    pair.server.kill()
    began = time.monotonic()
    assert (await pair.there.verify(other)).key_id == other.key.id
    assert time.monotonic() - began < 0.5
    await pair.here.service.revoke(issued.key.id)
    assert "revoked" in await pair.there.why_not(issued)
    assert pair.here.mirror.waiting_marks == 1
    pair.server.start()
    await pair.here.written()
    assert pair.here.mirror.waiting_marks == 0
    async with pair.house.away():
        assert "unknown" in await pair.start().why_not(issued)


async def find_when_up(process, key_ids):
    """Ask the mirror until it answers."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await process.mirror.find(key_ids)
            except MirrorDown:
                await asyncio.sleep(0.05)


@pytest.mark.cell(6, "A")
async def test_a_redis_that_hangs_costs_a_tenth_of_a_second_and_then_nothing(pair):
    first, second = await pair.mirrored(), await pair.mirrored()
    there = pair.start(timeout_seconds=TIMEOUT_SECONDS)
    await there.notices.publish("key", {})
    pair.server.pause()
    try:
        took = []
        for _ in range(4):
            began = time.monotonic()
            with pytest.raises(MirrorDown):
                await there.mirror.find([first.key.id])
            took.append(time.monotonic() - began)
        assert took[0] < 0.5
        assert min(took[1:]) < 0.05
        began = time.monotonic()
        assert (await there.verify(first)).key_id == first.key.id
        assert time.monotonic() - began < 0.5
        began = time.monotonic()
        await there.service.revoke(second.key.id)
        assert time.monotonic() - began < 3
        assert "revoked" in await there.why_not(second)
    finally:
        pair.server.resume()
    await there.written()
    found = await find_when_up(there, [second.key.id, first.key.id])
    # An answer that came late to the first question is nobody's answer now.
    assert found[first.key.id].key == replace(first.key, last_used_at_ms=None)
    assert found[second.key.id].key.revoked_at_ms is not None


@pytest.mark.cell(7, "A")
async def test_a_redis_that_lost_everything_is_filled_again_and_serves_what_is_cached_until_then(pair):
    issued = await pair.mirrored()
    pair.server.restart()
    async with pair.house.away():
        with pytest.raises(StoreDown):
            await pair.there.verify(issued)
        assert (await pair.here.verify(issued)).key_id == issued.key.id
    pair.clock.move(10_000)
    await pair.there.verify(issued)
    await pair.there.written()
    async with pair.house.away():
        assert (await pair.start().verify(issued)).key_id == issued.key.id


async def test_a_redis_that_takes_no_writes_is_still_read(pair):
    issued, revoked = await pair.mirrored(), await pair.mirrored()
    pair.server.cli("CONFIG", "SET", "maxmemory", "1")
    try:
        await pair.here.service.revoke(revoked.key.id)
        assert pair.here.mirror.waiting_marks == 1
        async with pair.house.away():
            assert (await pair.there.verify(issued)).key_id == issued.key.id
    finally:
        pair.server.cli("CONFIG", "SET", "maxmemory", "0")
    await pair.here.written()
    assert await pair.here.client.exists(f"mh:gone:{revoked.key.id}")


async def test_a_revocation_is_written_before_the_entries_that_wait(pair, monkeypatch):
    monkeypatch.setattr(mirroring, "MOST_PER_WRITE", 1)
    key = (await pair.house.issue()).key
    for i in range(5):
        pair.here.mirror.put(replace(key, id=f"key_{i}"), pair.clock.now_ms())
    pair.here.mirror.bury("key_x", 1)
    assert await pair.here.mirror.flush()
    assert len(pair.here.mirror._entries) == 5
    assert await pair.there.client.exists("mh:gone:key_x")


async def test_what_waits_for_redis_is_bounded(pair, monkeypatch):
    monkeypatch.setattr(mirroring, "MOST_ENTRIES_WAITING", 3)
    monkeypatch.setattr(mirroring, "MOST_MARKS_WAITING", 2)
    key = (await pair.house.issue()).key
    pair.server.kill()
    for i in range(5):
        pair.here.mirror.put(replace(key, id=f"key_{i}"), pair.clock.now_ms())
        pair.here.mirror.bury(f"key_{i}", 1)
    assert not await pair.here.mirror.flush()
    assert list(pair.here.mirror._entries) == [f"mh:key:key_{i}" for i in (2, 3, 4)]
    assert list(pair.here.mirror._marks) == ["mh:gone:key_3", "mh:gone:key_4"]


async def test_a_revocation_while_sql_is_away_is_refused_and_leaves_no_trace(pair):
    issued = await pair.mirrored()
    async with pair.house.away():
        with pytest.raises(StoreDown):
            await pair.here.service.revoke(issued.key.id)
        assert (await pair.there.verify(issued)).key_id == issued.key.id
    assert not await pair.here.client.exists(f"mh:gone:{issued.key.id}")


# --- how fast a change counts


@pytest.mark.cell(29, "A")
async def test_a_revocation_counts_everywhere_within_two_seconds(pair, figures):
    await pair.there.listen()
    issued = await pair.house.issue()
    await pair.there.verify(issued)
    told = asyncio.Event()
    pair.there.keyring.watch(told.set)
    began = time.monotonic()
    await pair.here.service.revoke(issued.key.id)
    await asyncio.wait_for(told.wait(), 2)
    assert await pair.there.keyring.find_dead([issued.key.id]) == {issued.key.id}
    took = time.monotonic() - began
    figures(key_revocation_seconds=took)
    assert took < 2
    assert "revoked" in await pair.there.why_not(issued)


@pytest.mark.cell(29, "A")
async def test_a_revocation_without_a_message_counts_after_ten_seconds(pair):
    issued = await pair.house.issue()
    await pair.there.verify(issued)
    await pair.here.service.revoke(issued.key.id)
    pair.clock.move(9_999)
    await pair.there.verify(issued)
    pair.clock.move(1)
    assert "revoked" in await pair.there.why_not(issued)


async def test_a_command_without_a_server_reaches_those_that_run(pair):
    """What ``meterhouse keys revoke`` does: it opens, revokes and is gone."""
    await pair.there.listen()
    issued = await pair.mirrored()
    await pair.there.verify(issued)
    told = asyncio.Event()
    pair.there.keyring.watch(told.set)
    command = Process(pair.house, pair.server.url)
    await command.service.revoke(issued.key.id)
    await command.close()
    await asyncio.wait_for(told.wait(), 2)
    async with pair.house.away():
        assert "revoked" in await pair.there.why_not(issued)


async def test_a_new_key_works_at_once_where_it_was_unknown(pair):
    await pair.there.listen()
    issued = await pair.house.issue()
    pair.there.keyring._remember(issued.key.id, None, pair.clock.now_ms())
    assert "unknown" in await pair.there.why_not(issued)
    told = asyncio.Event()
    pair.there.keyring.watch(told.set)
    await pair.here.notices.publish("key", {"key_id": issued.key.id})
    await asyncio.wait_for(told.wait(), 2)
    assert (await pair.there.verify(issued)).key_id == issued.key.id


@pytest.mark.cell(33, "A")
async def test_a_cold_start_of_ten_thousand_keys_without_sql_costs_redis_two_calls_per_hundred(pair):
    issued = await pair.mirrored()
    keys = [replace(issued.key, id=f"key_{i:012}", root_key_id=f"key_{i:012}") for i in range(10_000)]
    for key in keys:
        pair.here.mirror.put(key, pair.clock.now_ms())
    await pair.here.written()
    calls = []
    mget = pair.there.client.mget
    pair.there.client.mget = lambda names: (calls.append(1), mget(names))[1]
    async with pair.house.away():
        assert await pair.there.keyring.find_dead([key.id for key in keys]) == set()
    assert len(pair.there.keyring._entries) == 10_000
    assert len(calls) == 200


# --- a cluster


async def test_the_mirror_in_a_cluster(tmp_path, redis_cluster):
    redis_cluster.flush()
    async with opened_house(tmp_path) as house, AsyncExitStack() as stack:
        pair = Pair(house, redis_cluster, stack)
        issued = [await pair.mirrored() for _ in range(5)]
        await pair.here.service.revoke(issued[0].key.id)
        async with house.away():
            assert "revoked" in await pair.there.why_not(issued[0])
            for good in issued[1:]:
                assert (await pair.there.verify(good)).key_id == good.key.id
