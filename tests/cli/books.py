"""An installation whose ledger holds what a test wants."""

import asyncio
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from fakes.ledger import record
from fakes.store import begin_store
from meterhouse.keys.service import KeyOrder
from meterhouse.settings import Settings
from meterhouse.stores import Stores, make_folder, open_stores
from meterhouse.usage import UsageRecord

DATA = "d"


@dataclass(frozen=True)
class Owners:
    """Whom the installation serves."""

    organization: str
    project: str
    key: str


def make(folder: Path, *records: UsageRecord, database_url: str | None = None) -> Owners:
    """Make an installation in a folder's ``d`` with an organization, a project, a key, and these records."""

    async def work(stores: Stores) -> Owners:
        organization = await stores.service.create_organization("Acme")
        project = await stores.service.create_project(organization.id, "web")
        key = await stores.service.issue(KeyOrder(name="one", project_id=project.id))
        await stores.ledger.insert(records)
        return Owners(organization.id, project.id, key.key.id)

    return do(folder, work, database_url)


def insert(folder: Path, *records: UsageRecord) -> int:
    """Put more records into it."""
    return do(folder, lambda stores: stores.ledger.insert(records))


def do(folder, work, database_url=None):
    """Do something with open stores."""

    if database_url is None:
        make_folder(folder / DATA)
        begin_store(folder / DATA / "ledger.db")

    async def run():
        async with open_stores(Settings(data=folder / DATA, database_url=database_url)) as stores:
            return await work(stores)

    return asyncio.run(run())


def tamper(folder: Path, statement: str) -> None:
    """Change the database as somebody who can do anything."""
    with sqlite3.connect(folder / DATA / "ledger.db") as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)


def records_of(count: int, **changes: object) -> list[UsageRecord]:
    """Make records that differ in their ids."""
    return [record(**changes) for _ in range(count)]
