"""Spend alerts over SQLite and PostgreSQL: fired once a month, delivered until they arrive, by a clock that moves."""

import asyncio
import base64
import hashlib
import hmac
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import sqlalchemy as sa

from fakes.ledger import record
from fakes.receiver import receiving
from fakes.store import MovingClock
from meterhouse.billing import delivery as delivering
from meterhouse.billing.alert_changes import AlertChanges, AlertOrder, AlertOwner
from meterhouse.billing.alerts import AlertWatch
from meterhouse.billing.delivery import LEASE_MS, PAUSES_SECONDS, Carriers, Deliverer
from meterhouse.billing.invoice import Month
from meterhouse.billing.outbound import Outbound, Undelivered
from meterhouse.billing.webhook import WebhookSigner
from meterhouse.db import alerts as alert_store
from meterhouse.db.catalog import Catalog
from meterhouse.db.engine import close, open_engine, writing
from meterhouse.db.ledger import Adjustment, LedgerStore
from meterhouse.db.organizations import Organization, Project
from meterhouse.db.outbox import OutboxStore
from meterhouse.db.policy import EnginePolicy
from meterhouse.db.tables_billing import outbox
from meterhouse.errors import Malformed, NotFound, StoreDown
from meterhouse.identity import COMMAND_LINE
from meterhouse.keys.secret import Peppers

JANUARY, FEBRUARY = Month.parse("2027-01"), Month.parse("2027-02")
CENT = 10_000_000
PEPPERS = {1: b"p" * 43}
ORDER = AlertOrder(100, ("ops@example.com",), None)


class Mailbox:
    """Takes e-mails, or refuses the next ones."""

    def __init__(self):
        self.mails, self.refusals, self.when_sent = [], 0, None

    async def send(self, mail):
        if self.refusals:
            self.refusals -= 1
            raise Undelivered("code 451")
        self.mails.append(mail)
        if self.when_sent is not None:
            await self.when_sent()


class House:
    def __init__(self, engine, posts):
        self.engine = engine
        self.posts = posts
        self.clock = MovingClock(JANUARY.start_ms + 10**9)
        self.ledger = LedgerStore(engine, self.clock.now_ms)
        self.catalog = Catalog(engine)
        self.signer = WebhookSigner(Peppers(PEPPERS))
        self.mailbox = Mailbox()
        self.outbox = OutboxStore(engine)
        self.changes = AlertChanges(self.catalog, self.signer, self.clock, posts.check)
        self.watch = AlertWatch(self.catalog.alerts, self.catalog.webhooks, self.clock, has_mail=True)
        carriers = Carriers(posts, self.signer, self.mailbox)
        self.deliverer = Deliverer(self.outbox, self.catalog.webhooks, carriers, self.clock, lambda low, high: high)

    async def open(self):
        for name in ("org_1", "org_2"):
            await self.catalog.organizations.insert_organization(Organization(name, name, 1))
        await self.catalog.organizations.insert_project(Project("proj_1", "org_1", "p", 1))
        return self

    async def spend(self, cents, at_ms=None, **changes):
        at_ms = self.clock.now_ms() if at_ms is None else at_ms
        await self.ledger.insert([record(charge_nanos=cents * CENT, charges=(), admitted_at_ms=at_ms, **changes)])

    async def alert(self, owner=None, **changes):
        return await self.changes.create_alert(owner or AlertOwner("org_1"), replace(ORDER, **changes), COMMAND_LINE)

    async def waiting(self):
        async with self.engine.connect() as connection:
            return (await connection.execute(sa.select(outbox).order_by(outbox.c.id))).mappings().all()


@pytest.fixture
async def posts():
    async with Outbound(allows_private=True) as made:
        yield made


@pytest.fixture
async def house(engine, posts):
    return await House(engine, posts).open()


def check_signature(secret, message):
    """Verify as any library of Standard Webhooks does, from the secret that was shown."""
    signed = f"{message.headers['webhook-id']}.{message.headers['webhook-timestamp']}.".encode() + message.body
    digest = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256).digest()
    assert message.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


async def test_an_alert_fires_once_a_month_and_again_in_the_next(house):
    await house.alert()
    await house.spend(99)
    assert await house.watch.step() == 0
    await house.spend(1)
    assert [await house.watch.step() for _ in range(3)] == [1, 0, 0]
    await house.spend(500)
    assert await house.watch.step() == 0
    house.clock.move(FEBRUARY.start_ms - house.clock.now_ms())
    assert await house.watch.step() == 0  # February begins at nothing
    await house.spend(100)
    assert await house.watch.step() == 1
    await house.deliverer.step()
    subjects = [mail.subject for mail in house.mailbox.mails]
    assert subjects == ["Spend alert: 1 USD reached in 2027-01", "Spend alert: 1 USD reached in 2027-02"]
    assert house.mailbox.mails[0].recipients == ("ops@example.com",)
    assert "has reached 1 USD" in house.mailbox.mails[0].text


async def test_what_is_shipped_after_midnight_counts_for_the_month_that_it_was_used_in(house):
    await house.alert()
    house.clock.move(FEBRUARY.start_ms + 60_000 - house.clock.now_ms())
    await house.spend(100, at_ms=JANUARY.end_ms - 1)
    await house.spend(99)
    # The alert is older than January's end only by the clock at which it was made.
    assert await house.watch.step() == 1
    (made,) = await house.waiting()
    assert "2027-01" in made["body"]


async def test_two_processes_at_a_time_fire_once(house):
    await house.alert()
    await house.alert(threshold_cents=50)
    await house.spend(100)
    others = [AlertWatch(house.catalog.alerts, house.catalog.webhooks, house.clock, has_mail=True) for _ in range(5)]
    assert sum(await asyncio.gather(*(watch.step() for watch in others))) == 2
    assert len(await house.waiting()) == 2


async def test_an_organization_has_so_many_messages_a_day_and_the_rest_comes_later(house, monkeypatch):
    monkeypatch.setattr(alert_store, "MOST_DELIVERIES_A_DAY", 3)
    for _ in range(5):
        await house.alert()
    await house.alert(AlertOwner("org_2"))
    await house.spend(100)
    await house.spend(100, organization_id="org_2")
    assert [await house.watch.step() for _ in range(2)] == [3 + 1, 0]
    await house.deliverer.step()
    house.clock.move(alert_store.DAY_MS - 1)
    assert await house.watch.step() == 0, "what was delivered counts too"
    house.clock.move(1)
    assert await house.watch.step() == 2
    await house.deliverer.step()
    assert len(house.mailbox.mails) == 6


async def test_few_deliveries_of_one_organization_are_claimed_at_a_time(house):
    for _ in range(10):
        await house.alert()
    await house.spend(100)
    await house.watch.step()
    house.clock.move(1_000)
    await house.alert(AlertOwner("org_2"))
    await house.spend(100, organization_id="org_2")
    await house.watch.step()
    claimed = await house.outbox.claim(house.clock.now_ms(), LEASE_MS, 8)
    assert sorted(one.organization_id for one in claimed) == ["org_1", "org_1", "org_2"]
    assert await house.deliverer.step() == 8
    assert len(house.mailbox.mails) == 8


async def test_a_threshold_that_is_changed_fires_again_and_corrections_and_projects_count(house):
    alert = await house.alert()
    mine = await house.alert(AlertOwner("org_1", "proj_1"), threshold_cents=150)
    await house.spend(100)
    assert await house.watch.step() == 1
    await house.changes.update_alert(AlertOwner("org_1"), alert.id, replace(ORDER, threshold_cents=150), COMMAND_LINE)
    await house.spend(60, project_id="proj_other")
    assert await house.watch.step() == 1
    correction = Adjustment("adj_1", "org_1", "proj_1", None, house.clock.now_ms(), 50 * CENT, 0, "r", 1)
    await house.ledger.insert_adjustment(correction)
    assert await house.watch.step() == 1
    bodies = [row["body"] for row in await house.waiting()]
    assert sum("project proj_1" in body for body in bodies) == 1
    assert mine.id in str(bodies)


async def test_a_webhook_is_signed_and_repeated_under_one_id_until_it_arrives(house):
    async with receiving(500, "break", "redirect", 204) as receiver:
        webhook, secret = await house.changes.create_webhook("org_1", receiver.url, COMMAND_LINE)
        await house.alert(recipients=())
        await house.spend(100)
        await house.watch.step()
        for pause_seconds in (0, *PAUSES_SECONDS[:3]):
            house.clock.move(round(pause_seconds * 1_200))
            assert await house.deliverer.step() == 1
            assert await house.deliverer.step() == 0
        house.clock.move(10**9)
        assert await house.deliverer.step() == 0
        assert len(receiver.received) == 4
        for message in receiver.received:
            check_signature(secret, message)
        assert len({message.headers["webhook-id"] for message in receiver.received}) == 1
        assert len({message.headers["webhook-timestamp"] for message in receiver.received}) == 4
        event = receiver.received[-1].json
        assert (event["type"], event["data"]["threshold_amount"]) == ("spend_alert.fired", 100)
        assert (event["data"]["spent_usd"], event["data"]["period_start"]) == ("1", "2027-01-01T00:00:00.000Z")
        assert secret not in str(await house.waiting())
        assert [row["state"] for row in await house.waiting()] == ["delivered"]
        assert webhook.url == receiver.url


async def test_a_receiver_that_hangs_costs_a_bounded_time_and_comes_later(house, monkeypatch):
    monkeypatch.setattr(delivering, "TIMEOUT_SECONDS", 0.2)
    async with receiving("hang", 204) as receiver:
        await house.changes.create_webhook("org_1", receiver.url, COMMAND_LINE)
        await house.alert(recipients=())
        await house.spend(100)
        await house.watch.step()
        async with asyncio.timeout(2):
            await house.deliverer.step()
        (row,) = await house.waiting()
        assert (row["state"], row["last_error"]) == ("waiting", "no answer within 0.2 s")
        house.clock.move(6_000)
        await house.deliverer.step()
        assert [one["state"] for one in await house.waiting()] == ["delivered"]


async def test_a_process_that_dies_while_it_delivers_leaves_it_to_another(house, store_url, posts):
    await house.alert()
    await house.spend(100)
    await house.watch.step()
    (claimed,) = await house.outbox.claim(house.clock.now_ms(), LEASE_MS, 8)  # and then the process is gone
    other_engine = open_engine(store_url)
    try:
        other = House(other_engine, posts)
        other.clock.move(house.clock.now_ms() - other.clock.now_ms())
        assert await other.deliverer.step() == 0
        other.clock.move(LEASE_MS)
        assert await other.deliverer.step() == 1
        assert [mail.id for mail in other.mailbox.mails] == [claimed.id]
    finally:
        await close(other_engine)


class LockedOutbox(OutboxStore):
    """The store of a process that waits for no lock for long, and another transaction that has locked all of it."""

    def __init__(self, url):
        self.engine = open_engine(url, EnginePolicy(lock_timeout_seconds=0.05, busy_timeout_seconds=0.05))
        super().__init__(self.engine)
        self.url, self.lock, self.failures, self.most_failures = url, AsyncExitStack(), 0, 1

    async def take_lock(self):
        other = open_engine(self.url)
        self.lock.push_async_callback(close, other)
        connection = await self.lock.enter_async_context(writing(other))
        await connection.execute(sa.update(outbox).values(last_error=outbox.c.last_error))

    async def resolve(self, delivery):
        try:
            await super().resolve(delivery)
        except StoreDown:
            self.failures += 1
            if self.failures == self.most_failures:
                await self.lock.aclose()
            raise


@pytest.fixture
async def locked(house, store_url):
    """The outbox of a house is locked as soon as an e-mail has left, until a failure or several."""
    locked = LockedOutbox(store_url)
    house.mailbox.when_sent = locked.take_lock
    carriers = Carriers(house.posts, house.signer, house.mailbox)
    house.deliverer = Deliverer(locked, house.catalog.webhooks, carriers, house.clock)
    await house.alert()
    await house.spend(100)
    await house.watch.step()
    yield locked
    await locked.lock.aclose()
    await close(locked.engine)


async def test_what_arrived_is_noted_as_soon_as_the_database_takes_it_and_not_sent_again(house, locked, monkeypatch):
    monkeypatch.setattr(delivering, "NOTE_PAUSES_SECONDS", (0.01, 0.01, 0.01))
    locked.most_failures = 2
    assert await house.deliverer.step() == 1
    assert locked.failures == 2
    house.clock.move(10**9)
    assert await house.deliverer.step() == 0
    assert len(house.mailbox.mails) == 1


async def test_what_could_not_be_noted_at_all_is_sent_again_under_the_same_id(house, locked, monkeypatch):
    monkeypatch.setattr(delivering, "NOTE_PAUSES_SECONDS", (0.01,))
    locked.most_failures = 2
    with pytest.raises(StoreDown):
        await house.deliverer.step()
    house.mailbox.when_sent = None
    assert await house.deliverer.step() == 0, "it is claimed for a while yet"
    house.clock.move(LEASE_MS)
    assert await house.deliverer.step() == 1
    first, second = house.mailbox.mails
    assert first == second
    house.clock.move(10**9)
    assert await house.deliverer.step() == 0


async def test_who_stood_still_for_longer_than_a_claim_neither_sends_nor_says_that_it_failed(house):
    await house.alert()
    await house.spend(100)
    await house.watch.step()

    async def claim():
        (claimed,) = await house.outbox.claim(house.clock.now_ms(), LEASE_MS, 8)
        return claimed

    slow = await claim()
    house.clock.move(LEASE_MS)
    await house.deliverer.deliver(slow)
    assert house.mailbox.mails == []
    quick = await claim()
    await house.outbox.postpone(slow, "no answer", house.clock.now_ms())
    assert await house.deliverer.step() == 0, "the other claim holds"
    await house.outbox.postpone(slow, "no answer", None)
    assert [row["state"] for row in await house.waiting()] == ["waiting"]
    await house.outbox.resolve(slow)  # late, but it did arrive
    await house.outbox.postpone(quick, "no answer", None)
    assert [row["state"] for row in await house.waiting()] == ["delivered"]


async def test_what_never_arrives_is_given_up_after_a_day_and_says_why(house):
    house.mailbox.refusals = 100
    await house.alert()
    await house.spend(100)
    await house.watch.step()
    for pause_seconds in (0, *PAUSES_SECONDS):
        house.clock.move(round(pause_seconds * 1_200))
        assert await house.deliverer.step() == 1
    house.clock.move(10**10)
    assert await house.deliverer.step() == 0
    (row,) = await house.waiting()
    assert (row["state"], row["last_error"], row["tries"]) == ("failed", "code 451", len(PAUSES_SECONDS) + 1)
    await house.deliverer.tidy()
    assert await house.waiting() == []


async def test_a_removed_webhook_and_one_that_says_gone_are_not_tried_again(house):
    async with receiving(410) as receiver:
        gone, _ = await house.changes.create_webhook("org_1", receiver.url, COMMAND_LINE)
        removed, _ = await house.changes.create_webhook("org_1", receiver.url + "2", COMMAND_LINE)
        await house.alert(recipients=())
        await house.spend(100)
        await house.watch.step()
        await house.changes.remove_webhook("org_1", removed.id, COMMAND_LINE)
        await house.deliverer.step()
        assert sorted(row["last_error"] for row in await house.waiting()) == ["status 410", "the webhook was removed"]
        assert len(receiver.received) == 1
        with pytest.raises(NotFound):
            await house.changes.remove_webhook("org_2", gone.id, COMMAND_LINE)


async def test_alerts_are_their_owners_and_bad_ones_are_refused(house):
    alert = await house.alert()
    for owner in (AlertOwner("org_2"), AlertOwner("org_1", "proj_1"), AlertOwner("org_1", "proj_none")):
        with pytest.raises(NotFound):
            await house.changes.get_alert(owner, alert.id)
    with pytest.raises(NotFound):
        await house.alert(AlertOwner("org_2", "proj_1"))
    for bad in (("a@b\nBcc: c@d",), ("no address",), ("a@b, c@d",), ("a@b",) * 51, ("=?utf-8?q?a=40b=2C?=@c.d",)):
        with pytest.raises(Malformed):
            await house.alert(recipients=bad)
    for prefix in ("a\r\nBcc: x@example.com", "=?utf-8?q?a=0D=0ABcc:_x=40example.com?="):
        with pytest.raises(Malformed):
            await house.alert(subject_prefix=prefix)
