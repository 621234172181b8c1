"""Gives rows of the ledger their places in the chains of seals: whoever ships them, or the sealer later (``db.seals``).

Invariant: seals are only ever inserted, by one transaction at a time, each behind the last one of its organization.
Not here: which rows have no seal yet, and what a row hashes to (passed in).
"""

import asyncio
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from meterhouse.db.engine import BEGAN_MS, insert_columns, wall_ms
from meterhouse.db.postgres import is_postgres
from meterhouse.db.tables import seal

SLICE_ROWS = 150
"""How many rows are hashed before others get their turn on the event loop: a millisecond."""
LOCK = 0x6D68_7365_616C
"""The advisory lock of whoever seals ("mhseal")."""

Head = tuple[int, str, int]
"""The last sequence, hash and sealing time of an organization."""
HashRows = Callable[[str, Mapping[str, Sequence[Any]], MutableMapping[str, Head], int], Sequence[tuple[str, Head]]]
"""Kind, columns, heads (which it moves on), sealing time: of each row the hash that it continues, and its own place."""

_USING_INDEXES = "set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)"
_NOW_MS = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"
_TAKE_TURN = (
    f"SELECT pg_try_advisory_xact_lock($1) AS is_first, {_NOW_MS} AS now_ms, {BEGAN_MS} AS began_ms, {_USING_INDEXES}"
)
_WANTED_IN_POSTGRES = "SELECT json_array_elements_text($1::text::json)"
_WANTED_IN_SQLITE = "SELECT value FROM json_each(?)"
_HEADS = """
    SELECT seal.organization_id, seal.sequence, seal.hash, seal.sealed_at_ms FROM wanted JOIN seal
    ON seal.organization_id = wanted.id
    AND seal.sequence = (SELECT max(sequence) FROM seal AS other WHERE other.organization_id = wanted.id)"""


@dataclass(frozen=True, slots=True)
class Turn:
    """Whether this transaction may seal, and what the clock says that stamps records."""

    is_first: bool
    now_ms: int
    began_ms: int
    """When the transaction began."""


async def take_turn(connection: AsyncConnection) -> Turn:
    """Become the one who seals, until the end of the transaction; nobody is waited for.

    SQLite's transaction has excluded everybody else already, and its clock is this machine's.
    """
    if not is_postgres(connection):
        now_ms = wall_ms()
        return Turn(is_first=True, now_ms=now_ms, began_ms=now_ms)
    row = (await connection.exec_driver_sql(_TAKE_TURN, (LOCK,))).mappings().one()
    return Turn(bool(row["is_first"]), int(row["now_ms"]), int(row["began_ms"]))


async def use_indexes(connection: AsyncConnection) -> None:
    """Have PostgreSQL look each row's seal up by its index; knowing little of new rows, it might read every seal."""
    if is_postgres(connection):
        await connection.exec_driver_sql(f"SELECT {_USING_INDEXES}")


async def seal_rows(
    connection: AsyncConnection, hash_rows: HashRows, kind: str, columns: Mapping[str, Sequence[Any]], now_ms: int
) -> None:
    """Seal rows that have no seal, in their order; for whoever has the turn."""
    organization_ids = columns["organization_id"]
    heads = await _read_heads(connection, sorted(set(organization_ids)))
    sealed: list[tuple[str, Head]] = []
    for start in range(0, len(organization_ids), SLICE_ROWS):
        part = {name: values[start : start + SLICE_ROWS] for name, values in columns.items()}
        sealed += hash_rows(kind, part, heads, now_ms)
        await asyncio.sleep(0)
    continued, places = zip(*sealed, strict=True)
    sequences, hashes, sealed_at_ms = zip(*places, strict=True)
    nothing = [None] * len(sealed)
    seals = {
        "sequence": sequences,
        "organization_id": organization_ids,
        "kind": [kind] * len(sealed),
        "request_id": columns.get("request_id", nothing),
        "attempt": columns.get("attempt", nothing),
        "adjustment_id": columns.get("id", nothing),
        "previous_hash": continued,
        "hash": hashes,
        "sealed_at_ms": sealed_at_ms,
    }
    await insert_columns(connection, seal, seals, "")


async def _read_heads(connection: AsyncConnection, organization_ids: Sequence[str]) -> dict[str, Head]:
    wanted = _WANTED_IN_POSTGRES if is_postgres(connection) else _WANTED_IN_SQLITE
    asked = (msgspec.json.encode(organization_ids).decode(),)
    found = await connection.exec_driver_sql(f"WITH wanted(id) AS ({wanted}) {_HEADS}", asked)
    return {row["organization_id"]: (row["sequence"], row["hash"], row["sealed_at_ms"]) for row in found.mappings()}
