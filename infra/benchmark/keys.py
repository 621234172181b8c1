"""``--keys N``: does it matter how many keys there are.

A thousand keys in PostgreSQL, all in use; then N, of which the same thousand are in use; then N, of which each request
has another one, drawn uniformly, that this server has not seen. Each is compared with the bare pass-through of its own
windows, so that a machine whose speed drifts shifts both.
"""

import argparse
import random
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark.database import run_as_owner
from benchmark.gateway import LIMITS, Gateway, administrate
from benchmark.report import Cell, Measurement, Outcome, find_disturbances, format_table, make_cells
from benchmark.servers import Server
from benchmark.session import Question, Session, open_session
from meterhouse.keys.secret import NewSecret, Peppers, make
from stack.place import Place

WORKING_SET = 1000
MOST_COLD = 100_000
CONNECTIONS = 32
COPIED = "id, hash, redacted"
INSERT = """
    INSERT INTO key (id, root_key_id, project_id, name, hash, pepper_version, redacted, scopes, models, ip_ranges,
                     service_account, expires_at_ms, revoked_at_ms, created_at_ms, last_used_at_ms)
    SELECT new.id, new.id, old.project_id, 'bench', new.hash, old.pepper_version, new.redacted, old.scopes, old.models,
           old.ip_ranges, NULL, NULL, NULL, old.created_at_ms, NULL
    FROM ({source}) AS new, (SELECT * FROM key ORDER BY created_at_ms LIMIT 1) AS old
"""
UNUSED = """
    SELECT 'key_' || substr(md5(i::text), 1, 12) || '_' || i AS id, md5(i::text) || md5((i + 1)::text) AS hash,
           'sk-mh-bench-...' AS redacted
    FROM generate_series(1, {count}) AS i
"""


def compare_keys(arguments: argparse.Namespace, folder: Path) -> Outcome:
    """Measure the three cases, each beside the bare pass-through."""
    wanted = max(arguments.keys, WORKING_SET)
    with open_session(folder) as session:
        bare, gateway = session.start_bare(), session.start_gateway()
        place = gateway.database
        administrate(
            gateway.port,
            "PUT",
            "/admin/limits",
            {"scope": "project", "scope_id": gateway.project_id, "limits": LIMITS},
            place.secrets["admin_key"],
        )
        working, cold = folder / "working.keys", folder / "cold.keys"
        add_known_keys(place, WORKING_SET, working)
        few = _measure(session, (bare, gateway), working, arguments)
        cold_count = min(MOST_COLD, wanted - WORKING_SET)
        if cold_count:
            add_known_keys(place, cold_count, cold)
            add_unused_keys(place, wanted - WORKING_SET - cold_count)
        stored = _count_keys(place)
        many = _measure(session, (bare, gateway), working, arguments)
        coldly = _measure(session, (bare, gateway), cold, arguments) if cold_count else []
        session.close_books(gateway)
    cases = {
        f"{WORKING_SET:,} keys, all in use": few,
        f"{stored:,} keys, {WORKING_SET:,} in use": many,
        f"{stored:,} keys, each request another (of {cold_count:,} drawn)": coldly,
    }
    return _report({name: make_cells(found) for name, found in cases.items() if found}, session)


def _report(cases: dict[str, list[Cell]], session: Session) -> Outcome:
    outcome = Outcome(void=session.books.find_void_reasons())
    ratios = {
        name: next(cell.ratio or 0.0 for cell in cells if cell.target == "meterhouse") for name, cells in cases.items()
    }
    first = next(iter(ratios.values()))
    outcome.figures = {"ledger": asdict(session.books), "cases": {}}
    for name, cells in cases.items():
        share = ratios[name] / first if first else 0.0
        outcome.lines += [name, format_table(cells), f"requests/s, to those with a thousand keys: {share:.2f}", ""]
        outcome.figures["cases"][name] = {"cells": [asdict(cell) for cell in cells], "to_a_thousand_keys": share}
        outcome.disturbed += find_disturbances(cells)
    outcome.lines.append(session.books.describe())
    return outcome


def _measure(
    session: Session, targets: tuple[Server, Gateway], keys: Path, arguments: argparse.Namespace
) -> list[Measurement]:
    bare, gateway = targets
    found = []
    for index in range(arguments.rounds):
        asked = keys if arguments.rounds == 1 or keys.stem == "working" else _part(keys, index, arguments.rounds)
        found.append(session.ask(bare, Question("json", CONNECTIONS, arguments.seconds)))
        found.append(session.ask(gateway, Question("json", CONNECTIONS, arguments.seconds, keys=asked)))
    return found


def _part(keys: Path, index: int, parts: int) -> Path:
    """Give each window keys of its own, so that none was seen before."""
    part = keys.with_suffix(f".{index}")
    part.write_text("\n".join(keys.read_text(encoding="utf-8").split()[index::parts]), encoding="utf-8")
    return part


def add_known_keys(place: Place, count: int, file: Path) -> None:
    """Put keys into the table that can be asked with, and their values into a file, in random order."""
    version, _, pepper = f"1:{place.secrets['pepper']}".partition(":")
    peppers = Peppers({int(version): pepper.encode()})
    secrets = [make("bench") for _ in range(count)]
    random.shuffle(secrets)

    async def insert(connection: Any) -> None:
        await connection.execute("CREATE TEMPORARY TABLE known (id text, hash text, redacted text)")
        await connection.copy_records_to_table("known", records=_rows(secrets, peppers))
        await connection.execute(INSERT.format(source=f"SELECT {COPIED} FROM known"))  # noqa: S608 - our own words
        await connection.execute("ANALYZE key")

    run_as_owner(place, insert)
    file.write_text("\n".join(secret.value for secret in secrets), encoding="utf-8")


def add_unused_keys(place: Place, count: int) -> None:
    """Put keys into the table that nobody asks with."""

    async def insert(connection: Any) -> None:
        await connection.execute(INSERT.format(source=UNUSED.format(count=count)))
        await connection.execute("VACUUM (ANALYZE) key")

    run_as_owner(place, insert)


def _rows(secrets: Iterable[NewSecret], peppers: Peppers) -> list[tuple[str, str, str]]:
    return [(secret.key_id, peppers.hash(secret.value)[1], secret.redacted) for secret in secrets]


def _count_keys(place: Place) -> int:
    async def count(connection: Any) -> int:
        return int(await connection.fetchval("SELECT count(*) FROM key"))

    return run_as_owner(place, count)
