"""PostgreSQL is restarted, hangs, is locked, loses a connection: what callers and the pool see of it."""

import asyncio
import time
from contextlib import asynccontextmanager, suppress

import pytest
import sqlalchemy as sa

from fakes.ledger import period, record
from fakes.servers import PostgresServer
from fakes.store import MIGRATIONS
from meterhouse.db.engine import close, open_engine, reading, write_again, writing
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.policy import EnginePolicy
from meterhouse.db.schema import upgrade
from meterhouse.errors import StoreDown
from meterhouse.metering import Scope

POLICY = EnginePolicy(
    connections=3,
    acquire_timeout_seconds=0.5,
    connect_timeout_seconds=0.5,
    statement_timeout_seconds=0.3,
    lock_timeout_seconds=0.1,
)
ONE = sa.text("SELECT 1")


@pytest.fixture(scope="module")
def own_server(tmp_path_factory):
    """One that may be broken."""
    with PostgresServer(tmp_path_factory.mktemp("own")) as server:
        yield server


@pytest.fixture(autouse=True)
def _heal(own_server):
    """What one test broke is not the next one's problem."""
    if not own_server.is_running:
        own_server.start()


@pytest.fixture(scope="module")
def own_url(own_server):
    url = own_server.create_database()
    asyncio.run(upgrade(url, MIGRATIONS))
    return url


@asynccontextmanager
async def opened(url, policy=POLICY):
    engine = open_engine(url, policy)
    try:
        yield engine
    finally:
        await close(engine)


async def ask(engine, statement=ONE):
    async with reading(engine) as connection:
        return await connection.scalar(statement)


async def fill_pool(engine):
    await asyncio.gather(*(ask(engine, sa.text("SELECT pg_sleep(0.05)")) for _ in range(POLICY.connections)))


def assert_pool_is_whole(engine):
    assert engine.pool.checkedout() == 0
    assert engine.pool.checkedin() + engine.pool.overflow() <= POLICY.connections


# --- away


async def test_after_a_restart_the_first_use_works(own_server, own_url):
    async with opened(own_url) as engine:
        await fill_pool(engine)
        own_server.restart()
        assert await asyncio.gather(*(ask(engine) for _ in range(20))) == [1] * 20
        own_server.restart()
        ledger = LedgerStore(engine)
        assert await ledger.insert([record()]) == 1
        assert_pool_is_whole(engine)


async def test_a_connection_that_the_server_ended_is_replaced_even_if_nobody_noticed(own_server, own_url):
    """The loop does not run between the end of the connection and its next use."""
    async with opened(own_url) as engine:
        await fill_pool(engine)
        own_server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'meterhouse'"
        )
        assert await ask(engine) == 1


async def test_while_it_is_away_every_call_fails_at_once(own_server, own_url):
    async with opened(own_url) as engine:
        await fill_pool(engine)
        own_server.stop()
        started = time.monotonic()
        for _ in range(10):
            with pytest.raises(StoreDown):
                await ask(engine)
        assert time.monotonic() - started < 2
        own_server.start()
        assert await ask(engine) == 1
        assert_pool_is_whole(engine)


async def test_a_wrong_password_is_store_down_and_is_not_shown(own_url):
    async with opened(own_url.replace("meterhouse-test@", "secret-word@")) as engine:
        with pytest.raises(StoreDown) as caught:
            await ask(engine)
        assert "password authentication failed" in caught.value.detail
        assert "secret-word" not in caught.value.detail + repr(engine)


# --- hanging


@pytest.mark.cell(10, "P")
async def test_a_server_that_hangs_costs_a_caller_its_timeout_and_no_place_in_the_pool(own_server, own_url):
    async with opened(own_url) as engine:
        await fill_pool(engine)
        tasks_before = len(asyncio.all_tasks())
        own_server.pause()
        try:
            for _ in range(3):
                took = await asyncio.gather(*(time_of_failure(engine) for _ in range(12)))
                # Half a second for a connection, then 0.3 + 0.5 s for an answer, twice where the first was stale.
                assert max(took) < 2.5
                assert_pool_is_whole(engine)
                assert len(asyncio.all_tasks()) <= tasks_before
        finally:
            own_server.resume()
        assert await asyncio.gather(*(ask(engine) for _ in range(12))) == [1] * 12
        assert_pool_is_whole(engine)


async def time_of_failure(engine):
    started = time.monotonic()
    with pytest.raises(StoreDown):
        await ask(engine)
    return time.monotonic() - started


async def test_a_hanging_server_does_not_hold_up_the_end(own_server, own_url):
    engine = open_engine(own_url, POLICY)
    await fill_pool(engine)
    own_server.pause()
    try:
        started = time.monotonic()
        await close(engine)
        assert time.monotonic() - started < 5
    finally:
        own_server.resume()


async def test_a_hanging_server_does_not_hold_up_a_commit(own_server, own_url):
    async with opened(own_url) as engine:

        async def hang_at_the_end():
            async with writing(engine) as connection:
                await connection.execute(ONE)
                own_server.pause()

        started = time.monotonic()
        try:
            with pytest.raises(StoreDown):
                await hang_at_the_end()
            assert time.monotonic() - started < 5
            assert_pool_is_whole(engine)
        finally:
            own_server.resume()
        assert await ask(engine) == 1


@pytest.mark.parametrize("statement", ["SELECT pg_sleep(5)", "SELECT count(*) FROM generate_series(1, 1000000000)"])
async def test_a_slow_statement_is_ended_by_the_server(own_url, statement):
    async with opened(own_url) as engine:
        started = time.monotonic()
        with pytest.raises(StoreDown) as caught:
            await ask(engine, sa.text(statement))
        assert time.monotonic() - started < 4
        assert "statement timeout" in caught.value.detail
        assert await ask(engine) == 1


@pytest.mark.cell(10, "P")
async def test_a_lock_is_waited_for_shortly(own_url):
    async with opened(own_url) as engine, opened(own_url) as other:
        async with writing(other) as connection:
            await connection.execute(sa.text("LOCK TABLE usage_hour IN ACCESS EXCLUSIVE MODE"))
            with pytest.raises(StoreDown) as caught:
                await LedgerStore(engine).sum_period(period(Scope.KEY, "key_1"))
            assert "lock timeout" in caught.value.detail
        assert (await LedgerStore(engine).sum_period(period(Scope.KEY, "nobody"))).requests == 0


async def test_hundreds_of_cancelled_calls_leave_the_pool_whole(own_url):
    """Each costs a connection, and starting a backend takes long on a busy machine."""
    policy = EnginePolicy(connections=3, acquire_timeout_seconds=20, connect_timeout_seconds=20)
    async with opened(own_url, policy) as engine:
        await fill_pool(engine)
        for i in range(40):
            tasks = [asyncio.ensure_future(ask(engine, sa.text(f"SELECT pg_sleep(0.002), {j}"))) for j in range(10)]
            await asyncio.sleep(0.0001 * (i % 40))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        answers = await asyncio.gather(*(ask(engine, sa.text(f"SELECT {i}")) for i in range(30)))
        assert answers == list(range(30))
        assert_pool_is_whole(engine)


# --- what is committed


class CuttingProxy:
    """Passes bytes to PostgreSQL and back until a client says COMMIT: that one is carried out, and never answered."""

    def __init__(self, port):
        self._server_port = port
        self.cuts_left = 1
        self._server = None
        self._handlers = set()

    def url_of(self, url):
        return url.replace(f":{self._server_port}/", f":{self._server.sockets[0].getsockname()[1]}/")

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await asyncio.gather(*self._handlers)

    async def _serve(self, reader, writer):
        self._handlers.add(asyncio.current_task())
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        is_cutting = asyncio.Event()

        async def forward():
            while data := await reader.read(65_536):
                if b"COMMIT" in data and self.cuts_left:
                    self.cuts_left -= 1
                    is_cutting.set()
                upstream_writer.write(data)
            upstream_writer.close()

        async def back():
            while data := await upstream_reader.read(65_536):
                if is_cutting.is_set():
                    break
                writer.write(data)
            writer.close()
            upstream_writer.close()

        await asyncio.gather(forward(), back(), return_exceptions=True)
        for one in (writer, upstream_writer):
            one.close()
            with suppress(OSError):
                await one.wait_closed()


@pytest.mark.cell(11, "P")
async def test_a_commit_that_was_never_answered_is_repeated_without_harm(own_server, own_url):
    async with CuttingProxy(own_server.port) as proxy, opened(proxy.url_of(own_url)) as engine:
        ledger = LedgerStore(engine)
        records = [record(key_id="cut", root_key_id="cut") for _ in range(10)]
        with pytest.raises(StoreDown):
            await ledger.insert(records)
        assert (await ledger.sum_period(period(Scope.KEY, "cut"))).requests == 10
        assert await ledger.insert(records) == 0
        assert (await ledger.sum_period(period(Scope.KEY, "cut"))).requests == 10
        assert await ledger.rebuild_check() == []
        assert_pool_is_whole(engine)


async def test_a_killed_server_keeps_what_was_acknowledged(own_server, own_url):
    async with opened(own_url) as engine:
        ledger = LedgerStore(engine)
        kept = record()
        assert await ledger.insert([kept]) == 1

        async def die_half_way():
            async with writing(engine) as connection:
                await connection.execute(sa.text("INSERT INTO meta (name, value) VALUES ('half', '')"))
                own_server.kill()
                await connection.execute(ONE)

        with pytest.raises(StoreDown):
            await die_half_way()
        own_server.start()
        assert await ledger.find_records(kept.request_id) == [kept]
        assert await ask(engine, sa.text("SELECT count(*) FROM meta WHERE name = 'half'")) == 0


# --- taken back for another transaction


async def test_of_two_transactions_that_wait_for_each_other_the_loser_runs_again(own_url):
    async with opened(
        own_url, EnginePolicy(connections=3, lock_timeout_seconds=5, statement_timeout_seconds=5)
    ) as engine:
        await write_again(engine, lambda c: c.execute(sa.text("INSERT INTO meta VALUES ('a', '0'), ('b', '0')")))
        both_hold_one = asyncio.Barrier(2)
        runs = []

        async def add(first, second):
            is_first_run = True

            async def work(connection):
                nonlocal is_first_run
                runs.append(first)
                await connection.execute(add_to(first))
                if is_first_run:
                    is_first_run = False
                    await both_hold_one.wait()
                await connection.execute(add_to(second))

            await write_again(engine, work)

        await asyncio.gather(add("a", "b"), add("b", "a"))
        async with reading(engine) as connection:
            rows = await connection.execute(sa.text("SELECT value FROM meta WHERE name IN ('a', 'b')"))
            assert rows.scalars().all() == ["2", "2"]
        assert len(runs) == 3


def add_to(name):
    return sa.text(f"UPDATE meta SET value = CAST(CAST(value AS integer) + 1 AS text) WHERE name = '{name}'")


async def test_batches_in_any_order_do_not_wait_for_each_other_in_a_circle(own_url):
    async with opened(own_url, EnginePolicy(connections=5)) as engine:
        ledger = LedgerStore(engine)
        records = [record(key_id=f"circle_{i % 50}", root_key_id=f"circle_{i % 50}") for i in range(400)]
        parts = [records[start::step] for step in (1, 2, 3, -1, -2) for start in (0, 1)]
        assert sum(await asyncio.gather(*(ledger.insert(part) for part in parts))) == 400
        assert await ledger.rebuild_check() == []
