"""The real servers that other tests rely on do what those tests assume of them."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
import redis

from fakes.daemon import MissingServerError, find_program, is_alive, wait_until
from fakes.proxy import FaultProxy
from fakes.servers import PostgresServer, RedisCluster, RedisServer

TESTS = Path(__file__).parents[1]
TWO_SERVERS = """
import sys, time
from pathlib import Path
from fakes.servers import PostgresServer, RedisServer
with RedisServer(Path(sys.argv[1])) as cache, PostgresServer(Path(sys.argv[1])) as database:
    database.pause()
    print(cache.pid, database.pid, database.socket_folder, flush=True)
    time.sleep(60)
"""


def test_a_clock_stands_still_and_moves_only_when_told(timed_redis_server: RedisServer) -> None:
    server = timed_redis_server
    server.set_time_ms(1_700_000_000_123)
    server.cli("SET", "short", "1", "PX", 1000)
    assert server.advance_ms(999) == 1_700_000_001_122
    assert (server.time_ms(), server.cli("GET", "short")) == (1_700_000_001_122, "1")
    server.advance_ms(2)
    assert server.cli("GET", "short") is None
    server.set_time_ms(1_600_000_000_000)
    assert server.time_ms() == 1_600_000_000_000


@pytest.mark.parametrize("appendonly", [False, True])
def test_a_killed_redis_comes_back_with_what_it_synced(tmp_path: Path, appendonly: bool) -> None:
    with RedisServer(tmp_path, appendonly=appendonly) as server:
        server.cli("SET", "a", "1")
        before = server.cli("INFO", "server")["run_id"]
        server.kill()
        with pytest.raises(redis.ConnectionError):
            server.cli("PING")
        server.start()
        assert server.cli("GET", "a") == ("1" if appendonly else None)
        assert server.cli("INFO", "server")["run_id"] != before


def test_a_paused_redis_takes_a_connection_and_answers_once_resumed(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        server.pause()
        with (
            redis.Redis(port=server.port, socket_timeout=0.05, retry=None) as client,
            pytest.raises(redis.TimeoutError),
        ):
            client.ping()
        server.resume()
        assert server.cli("PING")


def test_redis_speaks_tls_to_whoever_trusts_its_authority(tmp_path: Path) -> None:
    with RedisServer(tmp_path, tls=True) as server:
        assert server.cli("PING")
        with redis.Redis(port=server.port, ssl=True, retry=None) as client, pytest.raises(redis.ConnectionError):
            client.ping()


def test_each_key_of_a_cluster_has_its_node(redis_cluster: RedisCluster) -> None:
    redis_cluster.flush()
    for key in ("mh:{one}", "mh:{two}", "mh:{three}", "mh:{four}"):
        assert redis_cluster.node_of(key).cli("SET", key, "1")
    others = [node for node in redis_cluster.nodes if node is not redis_cluster.node_of("mh:{one}")]
    with pytest.raises(redis.exceptions.MovedError):
        others[0].cli("GET", "mh:{one}")


def test_a_database_is_a_copy_of_its_template_and_its_own(postgres_server: PostgresServer) -> None:
    template = postgres_server.create_database()
    postgres_server.execute("CREATE TABLE a (b int); INSERT INTO a VALUES (1)", template)
    copy = postgres_server.create_database(template)
    postgres_server.execute("INSERT INTO a VALUES (2)", copy)
    assert postgres_server.query("SELECT b FROM a ORDER BY b", copy) == [(1,), (2,)]
    assert postgres_server.query("SELECT b FROM a", template) == [(1,)]
    for url in (copy, template):
        postgres_server.drop_database(url)


def test_a_killed_postgres_comes_back_with_what_was_committed(tmp_path: Path) -> None:
    with PostgresServer(tmp_path) as server:
        url = server.create_database()
        server.execute("CREATE TABLE a (b int); INSERT INTO a VALUES (1)", url)
        server.kill()
        with pytest.raises(OSError, match="Connect call failed"):
            server.query("SELECT 1")
        server.start()
        assert server.query("SELECT b FROM a", url) == [(1,)]
        server.stop(immediate=True)
        server.start()
        server.restart()
        assert server.query("SELECT b FROM a", url) == [(1,)]


async def test_a_commit_whose_answer_was_cut_off_is_done(postgres_server: PostgresServer, database_url: str) -> None:
    with FaultProxy("127.0.0.1", postgres_server.port) as proxy:
        connection = await asyncpg.connect(proxy.through(database_url))
        await connection.execute("CREATE TABLE a (b int)")
        is_cut = proxy.cut_at(b"COMMIT;")
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("INSERT INTO a VALUES ($1)", 1)
        with pytest.raises((OSError, asyncpg.PostgresConnectionError)):
            await transaction.commit()
        assert await asyncio.to_thread(is_cut.wait, 10)
        assert postgres_server.query("SELECT b FROM a", database_url) == [(1,)]


def test_a_migrated_database_has_the_schema_and_no_rows(
    postgres_server: PostgresServer, migrated_database_url: str
) -> None:
    assert postgres_server.query("SELECT count(*) FROM alembic_version", migrated_database_url) == [(1,)]
    assert postgres_server.query("SELECT count(*) FROM organization", migrated_database_url) == [(0,)]


def test_nothing_is_left_when_the_tests_are_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", TWO_SERVERS, tmp_path], cwd=TESTS, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout
        cache, database, folder = owner.stdout.readline().split()
        os.kill(owner.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(int(cache)) and not is_alive(int(database)), "the end of both servers")
    wait_until(lambda: not Path(folder).exists(), "the removal of the data")


def test_a_program_that_is_missing_is_an_error_that_names_its_package() -> None:
    with pytest.raises(MissingServerError, match=r"no-such-server.*apt install its-package"):
        find_program("no-such-server", "its-package")
