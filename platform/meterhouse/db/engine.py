"""Opens the database, gives its transactions, and is the one place where a driver's error becomes ours.

Invariant: every statement of the package runs inside ``reading`` or ``writing``, so that a failing database is
always a ``StoreDown``, and one that hangs costs a caller at most the bounds of the ``EnginePolicy``. Not here: any
statement about a table of ours, and the migrations (``db.schema``).
"""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from meterhouse.db import postgres
from meterhouse.db.policy import EnginePolicy
from meterhouse.db.sqlite import WritersTurn, open_file
from meterhouse.errors import Malformed, StoreChanging, StoreDown

MAX_VARIABLES = 32_766
"""What SQLite takes in one statement."""
MAX_ROWS = 5_000
"""How many rows PostgreSQL gets in one statement."""
DEFAULT_POLICY = EnginePolicy()
DEADLOCK = "40P01"
SERIALIZATION_FAILURE = "40001"
LOCK_NOT_AVAILABLE = "55P03"

_PLAN_OUTDATED = "0A000"
_AGAIN = frozenset({DEADLOCK, SERIALIZATION_FAILURE})
_TRIES = 5
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 1.0
_READ = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_WRITE = "SET TRANSACTION READ WRITE"
_WRITES = "meterhouse_writes"
_TURN = "meterhouse_turn"
_DAMAGED = ("file is not a database", "disk image is malformed")
_STATEMENT_AT_FAULT = (exc.IntegrityError, exc.DataError, exc.ProgrammingError, exc.NotSupportedError)
_TEXT_AT_FAULT = frozenset({"22021", "22P05"})
"""character_not_in_repertoire, untranslatable_character."""
_SCHEMA_AT_FAULT = {
    "42P01": "The database lacks a table: run `meterhouse migrate`.",
    "42703": "The database lacks a column: run `meterhouse migrate`.",
    "42883": "The database lacks a function: run `meterhouse migrate`.",
    "42501": "The database role lacks a right: run `meterhouse migrate`.",
    "42P07": "The database has another table under a name that Meterhouse needs. Give it a schema of its own.",
    # The plan of a prepared statement outlived a migration; SQLAlchemy has dropped it by now.
    _PLAN_OUTDATED: "The database was changed just now. Try again.",
}

_CHANGING = frozenset(_SCHEMA_AT_FAULT) | {LOCK_NOT_AVAILABLE}
"""What a statement meets beside a migration; the next one may find it done."""

Source = AsyncEngine | AsyncConnection
"""Where a store works: an engine, in a transaction for each of its methods; or a connection, in its transaction."""

BEGAN_MS = "CAST(extract(epoch FROM now()) * 1000 AS bigint)"
"""When the transaction began, by PostgreSQL's clock, in Unix milliseconds."""
_POSTGRES = postgresql.dialect()  # type: ignore[no-untyped-call]
_Result = TypeVar("_Result")


def open_engine(url: str, policy: EnginePolicy = DEFAULT_POLICY) -> AsyncEngine:
    """Open a database by its URL; nothing is connected before the first statement.

    Args:
        url: ``sqlite+aiosqlite:////path/to/file.db``, or ``postgresql://user:password@host/name`` with what asyncpg
            knows of libpq's parameters (``sslmode``, ``sslrootcert``, ``host`` of a socket) behind it.
        policy: how many connections, and how long anything may take.
    """
    parsed = sa.make_url(url)
    options = {
        "poolclass": AsyncAdaptedQueuePool,
        "pool_size": policy.connections,
        "max_overflow": 0,
        "pool_timeout": policy.acquire_timeout_seconds,
        # An error is logged: it may say which statement it is of, and not whose rows it was to write.
        "hide_parameters": True,
    }
    if parsed.get_backend_name() != "sqlite":
        opened = partial(postgres.open_connection, postgres.dsn_of(url), policy)
        engine = create_async_engine("postgresql+asyncpg://", async_creator=opened, **options)
        event.listen(engine.sync_engine, "close", postgres.hang_up)
        return engine
    opened = partial(open_file, parsed.database or "", policy.busy_timeout_seconds)
    turn = WritersTurn(policy.busy_timeout_seconds)
    engine = create_async_engine(url, async_creator=opened, execution_options={_TURN: turn}, **options)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


async def close(engine: AsyncEngine) -> None:
    """Close every connection of the pool."""
    await engine.dispose()
    # The sockets of connections that were hung up are closed by the event loop in its next turn.
    await asyncio.sleep(0)


@asynccontextmanager
async def reading(source: Source) -> AsyncIterator[AsyncConnection]:
    """Give a connection whose statements all see the same snapshot; raises StoreDown.

    A connection is given back as it is: its transaction says what it sees.
    """
    with store_errors():
        if isinstance(source, AsyncConnection):
            yield source
            return
        async with _transaction(source, _READ) as connection:
            yield connection


@asynccontextmanager
async def writing(source: Source) -> AsyncIterator[AsyncConnection]:
    """Give a connection whose statements are committed together at the end, or not at all; raises StoreDown.

    A connection is given back as it is: whoever opened its transaction ends it. A connection that is lost while it
    commits is a StoreDown after which the statements may have been committed: whoever repeats them must make the second
    time harmless.
    """
    with store_errors():
        if isinstance(source, AsyncConnection):
            yield source
            return
        async with _transaction(source.execution_options(**{_WRITES: True}), _WRITE) as connection:
            yield connection
            if postgres.is_postgres(connection):
                await connection.commit()


async def read_again(engine: Source, work: Callable[[AsyncConnection], Awaitable[_Result]]) -> _Result:
    """Run statements in one snapshot, and again when the plan of one of them outlived a migration; raises StoreDown."""
    try:
        async with reading(engine) as connection:
            return await work(connection)
    except StoreDown as error:
        if isinstance(engine, AsyncConnection) or _sqlstate(error.__cause__) != _PLAN_OUTDATED:
            raise
    async with reading(engine) as connection:
        return await work(connection)


async def write_again(
    engine: AsyncEngine,
    work: Callable[[AsyncConnection], Awaitable[_Result]],
    codes: frozenset[str] = _AGAIN,
    tries: int = _TRIES,
) -> _Result:
    """Run a whole transaction, and again when PostgreSQL took it back for the sake of another one.

    Args:
        engine: where to.
        work: the statements; it may run several times, the effects of all but the last time are undone.
        codes: the SQLSTATEs after which it runs again: deadlocks and serialization failures.
        tries: how often it runs at most, with pauses between that grow up to a second.

    Raises:
        StoreDown: There is no database, or it took the transaction back every time.
    """
    for i in range(tries - 1):
        try:
            async with writing(engine) as connection:
                return await work(connection)
        except StoreDown as error:
            if _sqlstate(error.__cause__) not in codes:
                raise
        pause_seconds = min(_FIRST_PAUSE_SECONDS * 2**i, _LONGEST_PAUSE_SECONDS)
        await asyncio.sleep(random.uniform(0, pause_seconds))  # noqa: S311 - spreads load
    async with writing(engine) as connection:
        return await work(connection)


@asynccontextmanager
async def _transaction(engine: AsyncEngine, first: str) -> AsyncIterator[AsyncConnection]:
    if not postgres.is_postgres(engine):
        options = engine.get_execution_options()
        turn = options[_TURN].taken() if options.get(_WRITES) else nullcontext()
        async with turn, engine.begin() as connection:
            yield connection
        return
    connection = await _begin_in_postgres(engine, first)
    try:
        yield connection
    except BaseException as error:
        await _end_in_postgres(connection, error)
        raise
    await _end_in_postgres(connection)


async def _begin_in_postgres(engine: AsyncEngine, first: str) -> AsyncConnection:
    """Say what kind of transaction it is, which tells at the same time whether the connection is still good."""
    try:
        return await _begin_once(engine, first)
    except exc.DBAPIError as error:
        if not error.connection_invalidated:
            raise
    # PostgreSQL was restarted since the connections of the pool were used last: nothing of the caller's was sent.
    return await _begin_once(engine, first)


async def _begin_once(engine: AsyncEngine, first: str) -> AsyncConnection:
    connection = engine.connect()
    try:
        async with asyncio.timeout(engine.pool.timeout()):  # type: ignore[attr-defined]  # a queue pool has it
            await connection.start()
        await connection.exec_driver_sql(first)
    except BaseException:
        # Whatever it is (a server that hangs, one that became a standby), another connection may be better.
        await postgres.cut(connection)
        await _end_in_postgres(connection)
        raise
    return connection


async def _end_in_postgres(connection: AsyncConnection, error: BaseException | None = None) -> None:
    if connection.sync_connection is None:
        return
    if isinstance(error, TimeoutError | asyncio.CancelledError):
        # A rollback would wait for a server that hangs, or for the end of what was cancelled.
        await postgres.cut(connection)
    await asyncio.shield(connection.close())


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn every error that is the database's, not the statement's, into StoreDown.

    It is StoreChanging where a migration may be why. A text that PostgreSQL cannot hold is the caller's fault, and
    Malformed.
    """
    try:
        yield
    except (exc.DBAPIError, exc.TimeoutError, OSError) as error:
        sqlstate = _sqlstate(error)
        if sqlstate in _TEXT_AT_FAULT:
            raise Malformed("A text has a character in it that cannot be stored: a NUL.") from None
        if isinstance(error, _STATEMENT_AT_FAULT) and sqlstate not in _SCHEMA_AT_FAULT:
            raise
        message = _SCHEMA_AT_FAULT.get(sqlstate, "The database cannot be reached just now. Try again in a moment.")
        if any(sign in str(error) for sign in _DAMAGED):
            message = "The database file is damaged. Restore it from a backup."
        down = StoreChanging if sqlstate in _CHANGING else StoreDown
        raise down(message, detail=f"{type(error).__name__}: {error}") from error


def _sqlstate(error: BaseException | None) -> str:
    """Return PostgreSQL's five characters for an error, empty for an error of anything else."""
    told = getattr(error, "orig", None)
    # SQLAlchemy keeps them in nearly every error of its own, but not in that of an outdated plan.
    return getattr(told, "sqlstate", None) or getattr(getattr(told, "__cause__", None), "sqlstate", None) or ""


def wall_ms() -> int:
    """Return the time that a row is stamped with, in Unix milliseconds; nothing is ever decided by it."""
    return time.time_ns() // 1_000_000


def insert_into(connection: AsyncConnection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """Begin an INSERT that can say ON CONFLICT, in the dialect of the connection."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


async def insert_rows(
    connection: AsyncConnection,
    table: sa.Table,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    then: str,
) -> list[sa.Row[*tuple[Any, ...]]]:
    """Insert many rows, whose values are in the order of the names; see ``insert_columns``."""
    if not rows:
        return []
    return await insert_columns(connection, table, dict(zip(columns, zip(*rows, strict=True), strict=True)), then)


async def insert_columns(
    connection: AsyncConnection, table: sa.Table, columns: Mapping[str, Sequence[object]], then: str, stamp: str = ""
) -> list[sa.Row[*tuple[Any, ...]]]:
    """Insert many rows in as few statements as may be; gives what the statement was told to return.

    For the ledger alone, whose rows are wide and many. Values only ever travel as parameters; PostgreSQL gets a column
    at a time, so that the statement is the same for any rows and stays prepared. A column is one text, an array's
    literal: asyncpg asks of each element of a list what it is, which took a fifth of what a row costs. A column that
    says the same in every row, as most do, is an empty array and that value.

    Args:
        connection: from ``writing``.
        table: where to.
        columns: the values by their names, as the driver takes them; at least one row.
        then: the SQL after the values: what to do with a conflict, what to return. Never made from data.
        stamp: the name of a further column that gets ``BEGAN_MS``; PostgreSQL only.
    """
    is_postgres = postgres.is_postgres(connection)
    page = MAX_ROWS if is_postgres else MAX_VARIABLES // len(columns)
    into = f"INSERT INTO {table.name} ({', '.join([*columns, stamp] if stamp else columns)})"
    chosen = _choose(table, columns, [BEGAN_MS] if stamp else []) if is_postgres else ""
    returned = list[sa.Row[*tuple[Any, ...]]]()
    parameters: tuple[object, ...]
    for start in range(0, len(next(iter(columns.values()))), page):
        part = [values[start : start + page] for values in columns.values()]
        if is_postgres:
            statement, parameters = f"{into} {chosen} {then}", _parameters(part)
        else:
            statement = f"{into} VALUES {_marks(len(part[0]), len(part))} {then}"
            parameters = tuple(itertools.chain.from_iterable(zip(*part, strict=True)))
        result = await connection.exec_driver_sql(statement, parameters)
        if result.returns_rows:
            returned.extend(result.all())
    return returned


def _choose(table: sa.Table, columns: Iterable[str], further: Iterable[str]) -> str:
    """Write what PostgreSQL selects of the parameters: of each column first the arrays, then the single values.

    Arrays side by side in one SELECT go on in step, and the shorter ones give NULL (from PostgreSQL 10 on).
    """
    types = {name: table.c[name].type.compile(_POSTGRES) for name in columns}
    given = ", ".join(f"unnest(${i}::text::{kind}[]) AS {name}" for i, (name, kind) in enumerate(types.items(), 1))
    singles = enumerate(types.items(), 1 + len(types))
    chosen = ", ".join([*(f"COALESCE({name}, ${i}::text::{kind})" for i, (name, kind) in singles), *further])
    return f"SELECT {chosen} FROM (SELECT {given}) AS given"  # noqa: S608 - names and types of columns


def _parameters(columns: Sequence[Sequence[object]]) -> tuple[str | None, ...]:
    """Write columns as the parameters of ``_choose``. The first is an array in any case: it says how many rows."""
    arrays, singles = list[str](), list[str | None]()
    for values in columns:
        first = values[0]
        # Equal values of a column are the same value: each column has one type.
        if arrays and values.count(first) == len(values):
            arrays.append("{}")
            singles.append(None if first is None else str(first))
        else:
            arrays.append(_array_literal(values))
            singles.append(None)
    return (*arrays, *singles)


def _array_literal(values: Sequence[object]) -> str:
    """Write values of one column (texts, whole numbers, truth values, None) as PostgreSQL reads an array."""
    if type(values[0]) is int and None not in values:
        return f"{{{','.join(map(str, values))}}}"
    try:
        # Nearly every text is plain: then nothing has to be looked at one by one.
        plain = '","'.join(values)  # type: ignore[arg-type]  # what is no text raises
    except TypeError:
        return f"{{{','.join(map(_element, values))}}}"
    if plain.count('"') == 2 * (len(values) - 1) and "\\" not in plain:
        return f'{{"{plain}"}}'
    return f"{{{','.join(map(_element, values))}}}"


def _element(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value)


def _marks(rows: int, columns: int) -> str:
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


def _begin(connection: sa.Connection) -> None:
    # A transaction that reads and then writes would fail at once when another one wrote in between; one that
    # says first that it will write waits for its turn instead.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
