"""What the application's role may do on PostgreSQL, and what nobody may: the ledger cannot be changed."""

import asyncio
import time
from dataclasses import replace
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from fakes.ledger import HOUR, period, record, rows_of
from fakes.servers import PASSWORD
from fakes.store import MIGRATIONS
from meterhouse.audit import Action, Change
from meterhouse.db.alerts import Firing, Span, SpendAlert
from meterhouse.db.catalog import Catalog
from meterhouse.db.engine import close, open_engine, writing
from meterhouse.db.invoices import IssuedInvoice
from meterhouse.db.keys import StoredAdminKey, StoredKey
from meterhouse.db.ledger import Adjustment, LedgerStore, UsageQuery
from meterhouse.db.organizations import Organization, Project
from meterhouse.db.outbox import Delivery, OutboxStore
from meterhouse.db.rights import RIGHTS
from meterhouse.db.schema import check_schema, count_default_rows, ensure_partitions, upgrade
from meterhouse.db.tables import seal, usage_hour
from meterhouse.db.tables_billing import metadata
from meterhouse.db.turns import TurnStore
from meterhouse.db.webhooks import Webhook
from meterhouse.db.workers import Heartbeat, WorkerStore
from meterhouse.errors import StoreDown
from meterhouse.identity import COMMAND_LINE
from meterhouse.metering import Kind, Limit, Scope, Window
from meterhouse.money import Price

ROLE = "the application"
NOW_MS = 1_800_000_000_000
MONTH = time.strftime("usage_record_%Y_%m", time.gmtime())
APPEND_ONLY = ("usage_record", "price", "adjustment", "seal", "audit_event", "invoice", "spend_alert_firing")
SEAL = {
    "organization_id": "org_1",
    "sequence": 1,
    "kind": "usage",
    "request_id": "0" * 32,
    "attempt": 1,
    "adjustment_id": None,
    "previous_hash": "",
    "hash": "a",
    "sealed_at_ms": 1,
}


@pytest.fixture(scope="module")
def urls(postgres_server):
    """The same database as the role that owns the schema, and as the application's."""
    owner_url = postgres_server.create_database()
    postgres_server.execute(f"CREATE ROLE \"{ROLE}\" LOGIN PASSWORD '{PASSWORD}'")
    application_url = owner_url.replace("meterhouse:", f"{quote(ROLE)}:", 1)
    asyncio.run(upgrade(owner_url, MIGRATIONS, application_url))
    asyncio.run(fill(owner_url))
    return owner_url, application_url


@pytest.fixture
async def owner(urls):
    engine = open_engine(urls[0])
    yield engine
    await close(engine)


@pytest.fixture
async def application(urls):
    engine = open_engine(urls[1])
    yield engine
    await close(engine)


async def run(engine, statement):
    async with writing(engine) as connection:
        await connection.execute(sa.text(statement) if isinstance(statement, str) else statement)


async def fill(url):
    """A row in each table that nobody may change."""
    engine = open_engine(url)
    ledger = LedgerStore(engine)
    await ledger.insert([record()])
    await ledger.insert_adjustment(Adjustment("adj_1", "org_1", "proj_1", None, HOUR, 1, 1, "why", HOUR, "key_a"))
    await Catalog(engine).prices.insert_prices([Price("price_1", "openai", "gpt", (), NOW_MS, "operator")])
    await run(engine, sa.insert(seal).values(**SEAL))
    await close(engine)


def changes_of(table, column):
    return [f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}", f"TRUNCATE {table}"]


CHANGES = [
    *changes_of("usage_record", "charge_nanos"),
    *changes_of(MONTH, "charge_nanos"),
    *changes_of("usage_record_default", "charge_nanos"),
    *changes_of("price", "source"),
    *changes_of("adjustment", "nanos"),
    *changes_of("seal", "hash"),
    *changes_of("audit_event", "actor_id"),
    "TRUNCATE price, usage_hour",
    "INSERT INTO price SELECT * FROM price ON CONFLICT (id) DO UPDATE SET source = ''",
]


@pytest.mark.parametrize("statement", CHANGES)
async def test_not_even_the_owner_changes_what_is_recorded(owner, statement):
    with pytest.raises(exc.IntegrityError, match="append-only"):
        await run(owner, statement)


async def test_partitions_that_are_made_later_refuse_changes_as_well(owner):
    await ensure_partitions(owner, 6)
    async with owner.connect() as connection:
        found = await connection.exec_driver_sql(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'usage_record'::regclass"
        )
        names = found.scalars().all()
    assert len(names) >= 9
    for name in names:
        for statement in changes_of(name, "charge_nanos"):
            with pytest.raises(exc.IntegrityError, match="append-only"):
                await run(owner, statement)


FORBIDDEN = [
    *CHANGES,
    *(f"INSERT INTO {table} SELECT * FROM usage_record" for table in (MONTH, "usage_record_default")),
    *(f"DROP TABLE {table} CASCADE" for table in (*APPEND_ONLY, MONTH, "usage_hour", "organization")),
    *(f"ALTER TABLE {table} DISABLE TRIGGER ALL" for table in APPEND_ONLY),
    *(f"DROP TRIGGER {table}_refuses_change ON {table}" for table in APPEND_ONLY),
    *(f"DELETE FROM {table}" for table in ("usage_hour", "organization", "project", "key", "admin_key", "meta")),
    "TRUNCATE usage_hour",
    "UPDATE limit_rule SET amount = 0",
    "UPDATE alembic_version SET version_num = ''",
    f"ALTER TABLE usage_record DETACH PARTITION {MONTH}",
    "ALTER TABLE seal OWNER TO CURRENT_USER",
    "ALTER TABLE seal ADD COLUMN more text",
    "CREATE TABLE mine (id text)",
    "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "DROP FUNCTION refuse_change() CASCADE",
    "SELECT make_usage_partition('2030-01-01')",
    "SET session_replication_role = replica",
    "SET ROLE meterhouse",
    "SET SESSION AUTHORIZATION meterhouse",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
async def test_the_application_may_not(application, statement):
    with pytest.raises(StoreDown) as caught:
        await run(application, statement)
    assert any(words in caught.value.detail for words in ("permission denied", "must be owner"))


async def test_the_application_owns_nothing_and_has_the_rights_of_the_list_alone(postgres_server, urls):
    postgres_server.execute(f'GRANT ALL ON seal, usage_record TO "{ROLE}"', urls[0])
    await upgrade(urls[0], MIGRATIONS, urls[1])
    rows = postgres_server.query(
        f"SELECT table_name, privilege_type FROM information_schema.role_table_grants WHERE grantee = '{ROLE}'", urls[0]
    )
    granted = {}
    for table, right in rows:
        granted.setdefault(table, set()).add(right)
    assert granted == {table: set(rights) for table, rights in RIGHTS.items()}
    owned = f"SELECT 1 FROM pg_shdepend WHERE deptype = 'o' AND refobjid = '\"{ROLE}\"'::regrole"
    assert postgres_server.query(owned, urls[0]) == []


def test_every_table_has_its_rights():
    assert set(metadata.tables) == set(RIGHTS) - {"alembic_version", "usage_record_default"}
    for table in APPEND_ONLY:
        assert set(RIGHTS[table]) == {"SELECT", "INSERT"}


async def test_the_application_can_do_all_its_work(application):
    assert await check_schema(application, MIGRATIONS) >= "0002"
    assert await ensure_partitions(application, 8) >= 0
    assert await count_default_rows(application) == 0
    await run(application, sa.insert(seal).values(**{**SEAL, "sequence": 2, "attempt": 2}))
    assert len(await rows_of(application, seal)) == 2
    await use_ledger(LedgerStore(application))
    await use_catalog(Catalog(application))
    workers = WorkerStore(application)
    await workers.beat(Heartbeat("worker_1", "host", "journal", 0))
    await workers.beat(Heartbeat("worker_1", "host", "journal", 5))
    assert len(await rows_of(application, usage_hour)) >= 1


async def use_ledger(ledger):
    assert await ledger.insert_adjustment(
        Adjustment("adj_2", "org_1", "proj_1", None, HOUR, 1, 1, "why", HOUR, "key_a")
    )
    records = [record(key_id="use", root_key_id="use") for _ in range(3)]
    assert await ledger.insert(records[:2]) == 2
    assert await ledger.insert(records) == 1
    assert len(await ledger.find_records(records[0].request_id)) == 1
    assert (await ledger.sum_period(period(Scope.KEY, "use"))).requests == 3
    assert await ledger.rebuild_check() == []
    [row] = await ledger.usage_by(UsageQuery(("key",), 0, 2**60, key_id="use"))
    assert row.requests == 3


async def use_catalog(catalog):
    await catalog.organizations.insert_organization(Organization("org_1", "Acme", NOW_MS))
    await catalog.organizations.insert_project(Project("proj_1", "org_1", "Search", NOW_MS))
    key = StoredKey(
        id="key_1",
        root_key_id="key_1",
        project_id="proj_1",
        organization_id="org_1",
        name="ci",
        hash="0" * 64,
        pepper_version=1,
        redacted="sk-...",
        scopes=frozenset({"inference"}),
        models=None,
        ip_ranges=(),
        service_account=None,
        expires_at_ms=None,
        created_at_ms=NOW_MS,
        limits=(Limit(Scope.KEY, "key_1", Kind.SPEND, Window.MONTH, 10),),
    )
    await catalog.keys.insert_key(key)
    assert await catalog.keys.find_key("key_1") == key
    assert await catalog.keys.rotate_key("key_1", replace(key, id="key_2"), NOW_MS + 5)
    await catalog.keys.touch_last_used({"key_1": 5})
    assert await catalog.keys.revoke_key("key_1", NOW_MS)
    await catalog.limits.set_limits(Scope.KEY, "key_1", [])
    admin = StoredAdminKey("key_a", "root", "operator", "0" * 64, 1, "sk-...", None, NOW_MS)
    await catalog.keys.insert_admin_key(admin)
    await catalog.keys.touch_admin_last_used({"key_a": 5})
    assert await catalog.keys.revoke_admin_key("key_a", 7)
    assert await catalog.organizations.archive_project("proj_1", 5)
    assert await catalog.organizations.rename_organization("org_1", "Acme & Co")
    await catalog.audit.write(COMMAND_LINE, Change(Action.ORGANIZATION_UPDATED, "org_1", "org_1"))
    await catalog.meta.put_value("seeded", "1")
    await catalog.meta.put_value("seeded", "2")
    assert await catalog.prices.insert_prices([Price("price_2", "openai", "gpt", (), NOW_MS, "operator")]) == 1
    assert len(await catalog.prices.list_prices()) == 2


async def test_urls_of_two_databases_are_refused(postgres_server, urls):
    other = postgres_server.create_database()
    with pytest.raises(StoreDown, match="but the application's is"):
        await upgrade(urls[0], MIGRATIONS, other)
    postgres_server.drop_database(other)


async def test_billing_can_do_all_its_work(application):
    catalog, now_ms = Catalog(application), NOW_MS
    await catalog.organizations.insert_organization(Organization("org_b", "b", 1))
    alert = SpendAlert("alert_1", "org_b", "", 1, ("a@b.example",), None, 1)
    await catalog.alerts.insert(alert)
    await catalog.alerts.update(alert)
    span = Span(0, 2 * now_ms)
    (spent,) = await catalog.alerts.list_spent(span, "", 10)
    message = Delivery("msg_1", "org_b", "email", "[]", "{}", now_ms, now_ms)
    assert await catalog.alerts.fire(spent, span, now_ms, [message]) is Firing.FIRED
    assert await catalog.alerts.fire(spent, span, now_ms, [message]) is Firing.FIRED_BEFORE
    messages = OutboxStore(application)
    (claimed,) = await messages.claim(now_ms, 5, 10)
    assert claimed.id == "msg_1"
    await messages.postpone(claimed, "no answer", now_ms + 5)
    await messages.resolve(claimed)
    await messages.forget(now_ms + 1)
    await catalog.alerts.remove("alert_1")
    await catalog.webhooks.insert(Webhook("wh_1", "org_b", "https://a.example/", 1, 1))
    await catalog.webhooks.remove("wh_1")
    turns = TurnStore(application)
    assert await turns.take("duty", "me", now_ms, 5)
    assert await turns.take("duty", "other", now_ms + 5, 5)
    await turns.put_position("sink", "org_b", 1)
    await turns.put_position("sink", "org_b", 2)
    assert await catalog.invoices.insert(IssuedInvoice("org_b", 0, now_ms, 0, "", 0, "{}"))
    await catalog.credits.insert(Adjustment("adj_b", "org_b", "", None, 0, -5, 0, "credit: r", 1))
    assert (await catalog.credits.read_balance("org_b")).balance_nanos == 5
