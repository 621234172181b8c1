"""What an installation on PostgreSQL needs before its first start: an up-to-date schema, and the first keys.

Invariant: ``bootstrap`` makes keys only where there is no organization yet, and shows them once. Not here: the keys of
``meterhouse dev``, which are made anew when they are lost.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from meterhouse.db.engine import close, open_engine
from meterhouse.db.schema import check_schema, newest_revision, upgrade
from meterhouse.identity import COMMAND_LINE, Author
from meterhouse.keys.service import KeyOrder
from meterhouse.settings import Settings, SettingsError
from meterhouse.stores import MIGRATIONS, Stores

FIRST = "the first organization"
"""Whose changes wait for each other: there is nothing else yet that they could have in common."""


@dataclass(frozen=True, slots=True)
class FirstKeys:
    """What ``bootstrap`` made."""

    organization_id: str
    project_id: str
    key: str
    admin_key: str

    def environment_text(self, base_url: str) -> str:
        """Return what the official SDK reads, as ``NAME=value`` lines."""
        return (
            f"OPENAI_BASE_URL={base_url.rstrip('/').removesuffix('/v1')}/v1\n"
            f"OPENAI_API_KEY={self.key}\n"
            f"OPENAI_ADMIN_KEY={self.admin_key}\n"
        )


def database_url(settings: Settings) -> str:
    """Return the URL of PostgreSQL.

    Raises:
        SettingsError: It is not set, or is another database's.
    """
    url = "" if settings.database_url is None else settings.database_url.get_secret_value()
    if not url:
        raise SettingsError(
            "METERHOUSE_DATABASE_URL is not set: this needs PostgreSQL. Without it there is `meterhouse dev`, which "
            "looks after its own SQLite."
        )
    if not url.partition("://")[0].startswith("postgres"):
        raise SettingsError("METERHOUSE_DATABASE_URL: expected postgresql://user:password@host/name.")
    return url


async def read_schema(url: str) -> str:
    """Return the revision of the schema.

    Raises:
        StoreDown: It is missing or behind, which has no ``detail``, or the database is away, which has one.
    """
    engine = open_engine(url)
    try:
        return await check_schema(engine, MIGRATIONS)
    finally:
        await close(engine)


async def migrate(settings: Settings) -> str:
    """Bring the schema to the newest migration, and grant the application's role its rights; says what it did.

    Raises:
        SettingsError: PostgreSQL is not set.
        StoreDown: The database is away, too busy, or newer than this version of Meterhouse.
    """
    application_url = database_url(settings)
    owner_url = settings.migration_database_url
    url = application_url if owner_url is None else owner_url.get_secret_value()
    was_behind = await upgrade(url, MIGRATIONS, None if owner_url is None else application_url)
    head = newest_revision(MIGRATIONS)
    return f"The schema was brought to {head}." if was_behind else f"The schema is at {head}; nothing was to be done."


async def bootstrap(stores: Stores, author: Author = COMMAND_LINE) -> FirstKeys:
    """Make the first organization, project, key and admin key: all of them or none, and once, whoever else tries.

    Raises:
        SettingsError: There is an organization already.
        StoreDown: The database cannot be reached.
    """
    async with stores.catalog.changing(FIRST) as catalog:
        if await catalog.organizations.list_organizations(limit=1):
            raise SettingsError(
                "There is an organization already. Make more keys with `meterhouse keys create --name NAME` and "
                "`meterhouse keys create-admin --name NAME`."
            )
        service = stores.service.within(catalog)
        organization = await service.create_organization("Default", author=author)
        project = await service.create_project(organization.id, "Default", author=author)
        key = await service.issue(KeyOrder(name="First key", project_id=project.id), author=author)
        admin_key = await service.issue_admin("First operator", author=author)
    return FirstKeys(organization.id, project.id, key.value, admin_key.value)


async def find_first_project(stores: Stores, author: Author = COMMAND_LINE) -> str:
    """Return the id of the oldest project; where there is none, of one that is made now."""
    async with stores.catalog.changing(FIRST) as catalog:
        if projects := await catalog.organizations.list_projects(limit=1):
            return projects[0].id
        service = stores.service.within(catalog)
        organization = await service.create_organization("Default", author=author)
        return (await service.create_project(organization.id, "Default", author=author)).id


def check_writable(path: Path) -> None:
    """Find out before any key is made whether the file can be written: a key that is not written down is lost.

    Raises:
        SettingsError: It cannot, or there is such a file already.
    """
    if path.exists():
        raise SettingsError(f"{path} exists already. Name another file, or move it away.")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise SettingsError(f"{path} cannot be written: its folder is missing or closed.")
