"""Steps of the README's runbook that no other test takes, one after the other as it says."""

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from cli.command import good
from fakes.fleet import PEPPER, ServeProcess
from fakes.gateway import provider_environment
from fakes.postgres_server import postgres_program
from fakes.servers import PASSWORD, ROLE, PostgresServer, RedisServer
from fakes.upstream import FakeUpstream

pytestmark = pytest.mark.slow_fault
FIRST, SECOND = "first-password-of-the-tests", "second-password-of-the-tests"


def postgres_tool(name: str, *words: object) -> None:
    done = subprocess.run([postgres_program(name), *map(str, words)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def served(fleet: ServeProcess, count: int) -> set[str]:
    """Let some requests be answered; returns their bare ids, once they are in the ledger."""
    answers = [fleet.chat("fake/normal", stream=bool(number % 2)) for number in range(count)]
    assert {status for status, _, _ in answers} == {200}
    ids = {headers["x-request-id"].removeprefix("req_").replace("-", "") for _, headers, _ in answers}
    fleet.wait_ledger(lambda rows: ids <= {row["request_id"].replace("-", "") for row in rows})
    return ids


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    """Leave out when a row came into the database."""
    return {name: value for name, value in row.items() if name != "recorded_at_ms"}


def test_a_database_is_restored_from_a_back_up_and_the_journals(
    tmp_path: Path, redis_server: RedisServer, postgres_server: PostgresServer, up: FakeUpstream
) -> None:
    url = postgres_server.create_database()
    environment = provider_environment("fake", up.base_url)
    dump = tmp_path / "meterhouse.dump"
    with ServeProcess(
        tmp_path / "data", redis_url=redis_server.url, database_url=url, environment=environment
    ) as fleet:
        fleet.set_price("fake", "normal", "1", "4")
        served(fleet, 6)
        postgres_tool("pg_dump", "--format=custom", f"--file={dump}", url)
        later = served(fleet, 8)
        whole = fleet.read_ledger()
        key = fleet.key
    # The database is lost: the back-up is restored under the same roles, and every host's journals are replayed.
    restored = postgres_server.create_database()
    postgres_tool("pg_restore", "--no-owner", f"--dbname={restored}", dump)
    settings = {"METERHOUSE_DATABASE_URL": restored, "METERHOUSE_KEY_PEPPER": PEPPER}
    good(tmp_path, "migrate", environment=settings)
    good(tmp_path, "ledger", "replay", str(tmp_path / "data" / "journals"), environment=settings)
    good(tmp_path, "ledger", "rebuild", "--check", environment=settings)
    redis_server.flush()
    again = ServeProcess(tmp_path / "data", redis_url=redis_server.url, database_url=restored, environment=environment)
    again.key = key
    with again:
        rows = again.read_ledger()
        assert [without_time(row) for row in rows] == [without_time(row) for row in whole]
        assert later <= {row["request_id"].replace("-", "") for row in rows}
        assert again.chat("fake/normal")[0] == 200


def test_the_password_of_redis_is_replaced_while_it_runs(
    tmp_path: Path, redis_server: RedisServer, postgres_server: PostgresServer, up: FakeUpstream
) -> None:
    def use(password: str) -> None:
        address = redis_server.url.replace("redis://", f"redis://meterhouse:{password}@")
        (tmp_path / "env").write_text(f"METERHOUSE_REDIS_URL={address}\n")

    redis_server.cli("ACL", "SETUSER", "meterhouse", "on", f">{FIRST}", "~mh:*", "&mh:*", "+@all")
    use(FIRST)
    fleet = ServeProcess(
        tmp_path / "data",
        redis_url=None,
        database_url=postgres_server.create_database(),
        environment=provider_environment("fake", up.base_url),
        env_file=tmp_path / "env",
    )
    try:
        with fleet:
            old = set(fleet.serving())
            redis_server.cli("ACL", "SETUSER", "meterhouse", f">{SECOND}")
            use(SECOND)
            fleet.reload()
            fleet.wait_workers(but=old)
            fleet.wait_for(lambda: not old & set(fleet.pids()))
            redis_server.cli("ACL", "SETUSER", "meterhouse", f"<{FIRST}")
            redis_server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            time.sleep(1)
            for _ in range(8):
                status, headers, _ = fleet.chat("fake/normal")
                assert status == 200
                assert "x-meterhouse-degraded" not in headers
    finally:
        redis_server.cli("ACL", "DELUSER", "meterhouse")


def test_the_password_of_postgresql_is_replaced_while_it_runs(
    tmp_path: Path, redis_server: RedisServer, postgres_server: PostgresServer, up: FakeUpstream
) -> None:
    owner = postgres_server.create_database()
    role = f"application_{tmp_path.name[-8:].lower().replace('-', '_')}"

    def use(password: str) -> None:
        address = owner.replace(f"{ROLE}:{PASSWORD}@", f"{role}:{password}@")
        (tmp_path / "env").write_text(f"METERHOUSE_DATABASE_URL={address}\n")

    postgres_server.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{FIRST}'")
    use(FIRST)
    settings = {"METERHOUSE_MIGRATION_DATABASE_URL": owner, "METERHOUSE_KEY_PEPPER": PEPPER}
    good(tmp_path, "migrate", "--env-file", "env", environment=settings)
    good(tmp_path, "bootstrap", "--env-file", "env", "--env-file-out", "keys", environment=settings)
    fleet = ServeProcess(
        tmp_path / "data",
        redis_url=redis_server.url,
        database_url=None,
        environment=provider_environment("fake", up.base_url),
        env_file=tmp_path / "env",
    )
    fleet.database_url = owner
    fleet.key = dict(line.split("=", 1) for line in (tmp_path / "keys").read_text().splitlines())["OPENAI_API_KEY"]
    with fleet:
        old = set(fleet.serving())
        served(fleet, 4)
        postgres_server.execute(f"ALTER ROLE {role} PASSWORD '{SECOND}'")
        use(SECOND)
        fleet.reload()
        assert fleet.chat("fake/normal")[0] == 200
        fleet.wait_workers(but=old)
        fleet.wait_for(lambda: not old & set(fleet.pids()))
        served(fleet, 6)
