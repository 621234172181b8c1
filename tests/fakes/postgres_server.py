"""A real PostgreSQL server for tests, on a free port of 127.0.0.1.

Invariant: it does not outlive the process that started it (daemon), nor does its data.
Not here: fixtures (plugins/servers); our schema.
"""

import asyncio
import atexit
import functools
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import asyncpg

from fakes.daemon import Daemon, find_program, free_port

NOTHING: Mapping[str, str] = MappingProxyType({})
ROLE = "meterhouse"
PASSWORD = "meterhouse-test"
OWN_USER = "postgres"
"""The superuser, and whom PostgreSQL runs as when the tests run as root, whom it refuses."""


class PostgresServer:
    """``with PostgresServer(tmp_path / "postgres") as server:``; its role ``meterhouse`` owns the databases it makes.

    The data lies in a folder of its own below the system's temporary one, because the one of a test may be neither
    open to the user that the server runs as nor short enough for the path of a socket; it is removed at the end.

    Args:
        folder: where its log lies; made if it does not exist.
        options: lines of postgresql.conf, on top of the ones here.
        fsync: whether it waits for its disk, as it does in production.
    """

    def __init__(self, folder: Path, *, options: Mapping[str, str] = NOTHING, fsync: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self._names = itertools.count(1)
        self._home: Path | None = None
        switch = "on" if fsync else "off"
        self._options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "max_connections": "200",
            "fsync": switch,
            "full_page_writes": switch,
            "max_wal_size": "1GB",
            "timezone": "UTC",
            **options,
        }
        self._daemon: Daemon | None = None
        self.kills = 0

    @property
    def pid(self) -> int:
        """Return the process id of the postmaster."""
        return self._running.pid

    @property
    def is_running(self) -> bool:
        return self._daemon is not None and self._daemon.is_running

    @property
    def socket_folder(self) -> Path:
        """Return where its Unix socket lies (``host`` of a DSN); OS users may be any role there."""
        assert self._home, "the server was never started"
        return self._home

    def start(self) -> Self:
        """Make its data the first time, start it and wait until it takes connections."""
        if self._daemon is None:
            self._daemon = self._prepare()
        self._daemon.start(self._is_ready)
        return self

    def stop(self, *, immediate: bool = False) -> None:
        """End it: connections are closed and all is flushed, or it ends at once and recovers at the next start.

        The data stays until ``discard``, or the end of this process.
        """
        self._running.stop(signal.SIGQUIT if immediate else signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL all of it; what was committed is recovered at the next start."""
        self.kills += 1
        self._running.kill()

    def pause(self) -> None:
        """SIGSTOP all of it: it takes connections and bytes, and answers nothing."""
        self._running.pause()

    def resume(self) -> None:
        """SIGCONT all of it."""
        self._running.resume()

    def restart(self) -> None:
        """End it in order and start it again on the same port."""
        self.stop()
        self.start()

    def discard(self) -> None:
        """End it at once and remove its data."""
        if self._daemon:
            self._daemon.stop(signal.SIGQUIT)
            self._daemon = None
        if self._home:
            shutil.rmtree(self._home)
            self._home = None

    def create_database(self, template: str | None = None, *, role: str = ROLE) -> str:
        """Make a database, empty or a copy of the one at the URL ``template``; returns its URL."""
        name = f"test_{next(self._names)}"
        source = f" TEMPLATE {_name_of(template)}" if template else " TEMPLATE template0"
        self.execute(f"CREATE DATABASE {name} OWNER {role}{source}")
        return self.url_of(name, role)

    def drop_database(self, url: str) -> None:
        """Remove a database by its URL, whoever is connected to it."""
        self.execute(f"DROP DATABASE IF EXISTS {_name_of(url)} WITH (FORCE)")

    def url_of(self, database: str = "postgres", role: str = ROLE) -> str:
        """Return what ``METERHOUSE_DATABASE_URL`` takes."""
        return f"postgresql://{role}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def execute(self, statements: str, database: str = "postgres") -> None:
        """Run statements as the superuser, who owns what they make, in a database given by its name or URL."""
        _in_thread(functools.partial(_execute, self.url_of(_name_of(database), OWN_USER), statements))

    def query(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Return the rows of one statement, run as the superuser; ``database`` is a name or a URL."""
        rows: list[tuple[Any, ...]] = _in_thread(
            functools.partial(_query, self.url_of(_name_of(database), OWN_USER), statement)
        )
        return rows

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.discard()
            raise

    def __exit__(self, *_: object) -> None:
        self.discard()

    @property
    def _running(self) -> Daemon:
        assert self._daemon, "the server was never started"
        return self._daemon

    def _prepare(self) -> Daemon:
        user = OWN_USER if os.geteuid() == 0 else None
        self._home = Path(tempfile.mkdtemp(prefix="mh-pg-"))
        atexit.register(shutil.rmtree, self._home, ignore_errors=True)
        data = self._home / "data"
        shutil.copytree(_initialized(), data, copy_function=shutil.copy)
        data.chmod(0o700)
        settings = {**self._options, "unix_socket_directories": str(self._home)}
        lines = (f"{name} = '{value}'\n" for name, value in settings.items())
        (data / "postgresql.conf").write_text("".join(lines))
        if user:
            _give(self._home, user)
        return Daemon(
            [postgres_program("postgres"), "-D", str(data)],
            self.folder / "postgres.log",
            user=user,
            doomed=(self._home, _initialized().parent),
        )

    def _is_ready(self) -> bool:
        try:
            self.query("SELECT 1")
        except (OSError, asyncpg.PostgresError):
            return False
        return True


def postgres_program(name: str) -> str:
    """Return the path of one of PostgreSQL's own programs, of the newest version."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*"), key=lambda path: int(path.name), reverse=True)
    return find_program(name, "postgresql", [str(path / "bin") for path in versions])


@functools.cache
def _initialized() -> Path:
    """Make the data folder that every server of this process starts from a copy of: 0.1 instead of 0.8 s."""
    home = Path(tempfile.mkdtemp(prefix="mh-initdb-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    password, data = home / "password", home / "data"
    password.write_text(PASSWORD)
    if os.geteuid() == 0:
        _give(home, OWN_USER)
    words = ["initdb", "-D", str(data), "-U", OWN_USER, "--no-sync", "--no-locale", "-E", "UTF8", "--wal-segsize=1"]
    _run([*words, "--auth-local=trust", "--auth-host=password", f"--pwfile={password}"])
    role = f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{PASSWORD}'\n"
    _run(["postgres", "--single", "-F", "-D", str(data), "postgres"], role)
    return data


def _run(words: Sequence[str], text: str = "") -> None:
    user = OWN_USER if os.geteuid() == 0 else None
    command = [postgres_program(words[0]), *words[1:]]
    done = subprocess.run(
        command, cwd="/", user=user, group=user, input=text, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, f"{words[0]} failed:\n{done.stdout}{done.stderr}"


def _give(folder: Path, user: str) -> None:
    for path in [folder, *folder.rglob("*")]:
        shutil.chown(path, user, user)


def _name_of(database: str) -> str:
    return database.rpartition("/")[2].partition("?")[0]


def _in_thread(run: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine function to its end, wherever one is: the thread that asks may have a running loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(run())).result()


async def _execute(url: str, statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()


async def _query(url: str, statement: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()
