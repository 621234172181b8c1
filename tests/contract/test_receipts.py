"""A key's requests by pages: in order, whole, its own alone, at a bounded cost, by the index over the key and time."""

import random

import pytest
import sqlalchemy as sa

from fakes.ledger import record
from meterhouse.db.engine import reading
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.receipts import ReceiptQuery, ReceiptStore
from meterhouse.db.tables import HOUR_MS
from meterhouse.ids import request_id_time_ms
from meterhouse.usage import Outcome

DAY_MS = 24 * HOUR_MS


@pytest.fixture
async def ledger(engine):
    return LedgerStore(engine)


def asked(ms_ago=0, **changes):
    """A record of a request that began so long before its id was made."""
    made = record(**changes)
    return record(
        **{"admitted_at_ms": request_id_time_ms(made.request_id) - ms_ago, **changes, "request_id": made.request_id}
    )


def query(**changes):
    now_ms = request_id_time_ms(record().request_id)
    plain = {"root_key_id": "key_1", "key_id": "key_1", "from_ms": now_ms - 31 * DAY_MS, "to_ms": now_ms + DAY_MS}
    return ReceiptQuery(**{**plain, **changes})


async def all_pages(store, wanted, limit):
    """Every page until there are no more: the ids of its requests."""
    pages, after = [], None
    while True:
        page = await store.list_receipts(wanted, after, limit)
        pages.append([records[0].request_id for records in page.requests])
        assert len(pages[-1]) <= limit
        if page.next_after is None:
            return pages
        after = page.next_after


async def test_pages_go_back_in_time_and_miss_and_repeat_nothing(engine, ledger):
    chance = random.Random(3)
    mine = [asked(chance.randrange(5)) for _ in range(23)]  # many of the same millisecond
    await ledger.insert([*mine, *(asked(key_id="key_2", root_key_id="key_2") for _ in range(5))])
    newest_first = sorted(mine, key=lambda one: (one.admitted_at_ms, one.request_id), reverse=True)
    expected = [one.request_id for one in newest_first]
    for limit in (1, 10, 23, 100):
        pages = await all_pages(ReceiptStore(engine), query(), limit)
        assert [one for page in pages for one in page] == expected


async def test_a_request_is_one_whatever_its_attempts_and_its_last_one_says_how_it_ended(engine, ledger):
    first = asked(attempt=1, requests=0, outcome=Outcome.UPSTREAM_FAILED)
    second = record(request_id=first.request_id, attempt=2, admitted_at_ms=first.admitted_at_ms)
    failed = asked(outcome=Outcome.UPSTREAM_FAILED)
    await ledger.insert([first, second, failed])
    store = ReceiptStore(engine)
    page = await store.list_receipts(query(outcome=Outcome.COMPLETED), None, 10)
    assert page.requests == [[first, second]]
    page = await store.list_receipts(query(outcome=Outcome.UPSTREAM_FAILED), None, 10)
    assert page.requests == [[failed]]
    # Ids of one millisecond are in no order of their making.
    newest_first = sorted((first.request_id, failed.request_id), reverse=True)
    assert await all_pages(store, query(), 1) == [[request_id] for request_id in newest_first]


async def test_a_key_has_its_client_tokens_and_no_other_key_of_its_chain(engine, ledger):
    own = asked(key_id="key_2")
    by_token = asked(key_id="key_2.token")
    other = asked(key_id="key_1")
    alike = asked(key_id="key_2x")
    stranger = asked(key_id="key_3", root_key_id="key_3", organization_id="org_2", project_id="proj_2")
    await ledger.insert([own, by_token, other, alike, stranger])
    store = ReceiptStore(engine)
    wanted = query(key_id="key_2")
    page = await store.list_receipts(wanted, None, 10)
    assert {records[0].request_id for records in page.requests} == {own.request_id, by_token.request_id}
    behind = await store.list_receipts(wanted, stranger.request_id, 10)
    assert (behind.requests, behind.next_after) == ([], None)


async def test_filters_and_days(engine, ledger):
    today, yesterday = asked(model="glm"), asked(DAY_MS // 48, model="gpt")
    await ledger.insert([today, yesterday])
    store = ReceiptStore(engine)
    assert await all_pages(store, query(model="glm"), 10) == [[today.request_id]]
    assert await all_pages(store, query(model="nothing"), 10) == [[]]
    assert await all_pages(store, query(from_ms=today.admitted_at_ms), 10) == [[today.request_id]]
    assert await all_pages(store, query(to_ms=today.admitted_at_ms), 10) == [[yesterday.request_id]]


async def test_what_is_rare_is_found_over_pages_that_each_look_at_a_bounded_number(engine, ledger):
    common = [asked(number, model="common") for number in range(1, 30)]
    rare = asked(100, model="rare")
    await ledger.insert([*common, rare])
    pages = await all_pages(ReceiptStore(engine, most_looked_at=7), query(model="rare"), 5)
    assert pages == [[], [], [], [], [rare.request_id]]


async def test_it_goes_by_the_index_over_the_key_and_time(engine, ledger, is_postgres):
    await ledger.insert([asked(number) for number in range(50)])
    statements = []
    sa.event.listen(engine.sync_engine, "before_cursor_execute", lambda *said: statements.append(said[2:4]))
    store = ReceiptStore(engine, most_looked_at=20)
    page = await store.list_receipts(query(), None, 5)
    await store.list_receipts(query(model="nothing"), page.next_after, 5)
    ordered = [(text, given) for text, given in statements if "ORDER BY" in text and "admitted_at_ms DESC" in text]
    assert len(ordered) == 3
    async with reading(engine) as connection:
        if is_postgres:
            await connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
        for text, given in ordered:
            explain = "EXPLAIN" if is_postgres else "EXPLAIN QUERY PLAN"
            rows = await connection.exec_driver_sql(f"{explain} {text}", given)
            plan = "\n".join(" ".join(map(str, row)) for row in rows)
            assert ("root_key_id_admitted_at_ms_idx" if is_postgres else "usage_record_by_root_key") in plan, plan
            assert "Seq Scan" not in plan
