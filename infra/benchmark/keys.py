"""``--keys N``: does it matter how many keys there are.

Two servers with stores of their own: one has a thousand keys in PostgreSQL, all in use; the other has N, of which a
thousand are in use too, or each request has another one, drawn uniformly, that this server has not seen. They and the
bare pass-through are asked in turn, so that a machine whose speed drifts shifts all of them.
"""

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmark.database import run_as_owner
from benchmark.gateway import LIMITS, Gateway, administrate
from benchmark.report import (
    Books,
    Measurement,
    Outcome,
    find_disturbances,
    format_stores,
    format_table,
    make_cells,
)
from benchmark.session import Question, Session, open_session
from meterhouse.keys.secret import NewSecret, Peppers, make
from stack.place import Place

WORKING_SET = 1000
MOST_COLD = 100_000
CONNECTIONS = 32
WARM_SECONDS = 1.0
REST_SECONDS = 1.0
"""After each window, so that what one server still has to ship is not done in the window of another."""
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


@dataclass(frozen=True)
class Side:
    """A server with its upstream, its stores and its books, and the keys that are in use."""

    session: Session
    gateway: Gateway
    working: Path


def compare_keys(arguments: argparse.Namespace, folder: Path) -> Outcome:
    """Measure the three cases and the bare pass-through in turn."""
    wanted = max(arguments.keys, WORKING_SET)
    cold_count = min(MOST_COLD, wanted - WORKING_SET)
    cold = folder / "cold.keys"
    found: dict[str, list[Measurement]] = defaultdict(list)
    with open_session(folder) as session, ExitStack() as stack:
        bare = session.start_bare()
        few = _start(session)
        (folder / "many").mkdir()
        many = _start(Session(stack, session.cores, folder / "many", pace=0))
        if cold_count:
            add_known_keys(many.gateway.database, cold_count, cold)
            add_unused_keys(many.gateway.database, wanted - WORKING_SET - cold_count)
        stored = _count_keys(many.gateway.database)
        cases = {
            f"{WORKING_SET:,} keys, all in use": few,
            f"{stored:,} keys, {WORKING_SET:,} in use": many,
        }
        for side in cases.values():
            # What is done once for a key or a connection is done before the first window.
            _ask(side, side.working, WARM_SECONDS)
        for index in range(arguments.rounds):
            found[bare.name].append(session.ask(bare, Question("json", CONNECTIONS, arguments.seconds)))
            for name, side in reversed(cases.items()) if index % 2 else cases.items():
                found[name].append(_ask(side, side.working, arguments.seconds))
            if cold_count:
                part = _part(cold, index, arguments.rounds)
                name = f"{stored:,} keys, each request another (of {cold_count:,} drawn)"
                found[name].append(_ask(many, part, arguments.seconds))
        for side in cases.values():
            side.session.close_books(side.gateway)
    bare_windows = found.pop(bare.name)
    return _report(bare_windows, found, [side.session.books for side in cases.values()])


def _start(session: Session) -> Side:
    """Start a server with a thousand keys that can be asked with."""
    gateway = session.start_gateway()
    place, working = gateway.database, session.folder / "working.keys"
    limited = {"scope": "project", "scope_id": gateway.project_id, "limits": LIMITS}
    administrate(gateway.port, "PUT", "/admin/limits", limited, place.secrets["admin_key"])
    add_known_keys(place, WORKING_SET, working)
    return Side(session, gateway, working)


def _ask(side: Side, keys: Path, seconds: float) -> Measurement:
    asked = side.session.ask(side.gateway, Question("json", CONNECTIONS, seconds, keys=keys))
    time.sleep(REST_SECONDS)
    return asked


def _report(bare: list[Measurement], cases: dict[str, list[Measurement]], books: list[Books]) -> Outcome:
    outcome = Outcome(void=[reason for one in books for reason in one.find_void_reasons()])
    first = next(iter(cases.values()))
    outcome.figures = {"ledgers": [asdict(one) for one in books], "cases": {}}
    for name, windows in cases.items():
        cells, share = make_cells([*bare, *windows]), _compare(windows, first)
        outcome.lines += [name, format_table(cells), *format_stores(cells)]
        outcome.lines += [f"requests/s, to those with a thousand keys: {share:.2f} (median of the rounds)", ""]
        outcome.figures["cases"][name] = {"cells": [asdict(cell) for cell in cells], "to_a_thousand_keys": share}
        outcome.disturbed += find_disturbances(cells)
    outcome.lines += [one.describe() for one in books]
    return outcome


def _compare(windows: list[Measurement], others: list[Measurement]) -> float:
    """Compare what was answered round by round: a disturbance of one window is not one of the median."""
    pairs = zip(windows, others, strict=True)
    return statistics.median(mine.values["answers"] / max(other.values["answers"], 1) for mine, other in pairs)


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
