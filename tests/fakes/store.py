"""What tests of the database share: a migrated SQLite file, ways to take it away, and a clock that moves by hand."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from alembic.config import Config

from meterhouse.db.engine import close, open_engine
from meterhouse.db.policy import EnginePolicy
from meterhouse.db.schema import upgrade

MIGRATIONS = Path(__file__).parents[2] / "alembic"


def url_of(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def change_schema(connection, change, revision):
    """Run a command of alembic (``upgrade``, ``downgrade``) on a connection."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS))
    change(config, revision)


def migrate(url: str) -> None:
    """Bring a database to the newest schema; in a thread, because whoever asks may be in a loop."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(upgrade(url, MIGRATIONS))).result()


@cache
def _migrated() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        migrate(url_of(path))
        return path.read_bytes()


def begin_store(path: Path) -> Path:
    """Write a file with the newest schema and no rows, where there is none: every migration anew takes 0.06 s."""
    if not path.exists():
        path.write_bytes(_migrated())
    return path


@asynccontextmanager
async def opened_store(path: Path):
    """Give an engine on a migrated file."""
    begin_store(path)
    engine = open_engine(url_of(path), EnginePolicy(busy_timeout_seconds=0.02))
    try:
        yield engine
    finally:
        await close(engine)


@asynccontextmanager
async def taken_away(engine, path: Path):
    """Make the database unreachable: its connections are gone, and a folder stands where its file was."""
    await close(engine)
    with _folder_in_place_of(path):
        yield


@contextmanager
def _folder_in_place_of(path: Path):
    aside = path.with_suffix(".aside")
    path.rename(aside)
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()
        aside.rename(path)


class MovingClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now_ms: int = 1_800_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def move(self, by_ms: int) -> None:
        self._now_ms += by_ms
