"""The ledger's commands on PostgreSQL, all in a row."""

import asyncio
from pathlib import Path

from cli import books
from cli.command import Finished, good, run
from meterhouse.db.engine import close, open_engine, reading


def test_the_commands_work_on_postgresql(tmp_path: Path, migrated_database_url: str, postgres_server) -> None:
    environment = {"METERHOUSE_DATABASE_URL": migrated_database_url}
    made = [*books.records_of(5), *books.records_of(3, organization_id="org_2")]
    owners = books.make(tmp_path, *made, database_url=migrated_database_url)

    def ledger(*arguments: str) -> str:
        return good(tmp_path, "ledger", *arguments, "--data", "d", environment=environment)

    def found(*arguments: str) -> Finished:
        done = run(tmp_path, "ledger", *arguments, "--data", "d", environment=environment)
        assert done.status == 1, done
        return done

    ledger(
        *("adjust", "--organization", owners.organization, "--project", owners.project),
        *("--period", "2026-11", "--usd", "-1", "--reason", "r"),
    )
    assert " -1 " in ledger("adjustments")
    (tmp_path / "key.pem").write_text(ledger("public-key"))
    for layout in ("jsonl", "csv"):
        ledger("export", "--format", layout, "-o", layout)
        out = ledger("verify", layout, "--public-key", "key.pem", "--against-database")
        assert out.startswith("Good: 8 records (0.000008 USD) and 1 adjustments (-1 USD)")
    assert "agrees" in ledger("rebuild", "--check")
    postgres_server.execute(
        "SET session_replication_role = replica; DELETE FROM usage_hour;"
        "UPDATE usage_record SET charge_nanos = 1 WHERE organization_id = 'org_2'",
        migrated_database_url,
    )
    done = found("verify", "jsonl", "--public-key", "key.pem", "--against-database")
    assert done.out.count("charge_nanos is 1 in the database, 1000 in the export") == 3
    assert "run meterhouse ledger rebuild" in found("rebuild", "--check").out
    assert "2 groups of the projection were made" in ledger("rebuild")
    assert asyncio.run(sum_of_hours(migrated_database_url)) == 5_003
    (tmp_path / "f").write_text("day,model,input_tokens\n2026-01-01,gpt,5\n")
    assert "0.0000" in found("reconcile", "--against", "f").out


async def sum_of_hours(url: str) -> int:
    engine = open_engine(url)
    try:
        async with reading(engine) as connection:
            return int((await connection.exec_driver_sql("SELECT sum(charge_nanos) FROM usage_hour")).scalar_one())
    finally:
        await close(engine)
