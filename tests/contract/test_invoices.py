"""Invoices over SQLite and PostgreSQL: month after month by a clock that moves, against the exported ledger alone."""

import asyncio
import csv
import io
import json
from collections import Counter

import msgspec
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from fakes.ledger import record
from fakes.store import MovingClock
from meterhouse.billing import invoices as issuing
from meterhouse.billing.invoice import Month
from meterhouse.billing.invoice_page import to_csv, to_html
from meterhouse.billing.invoices import Invoices
from meterhouse.db.books import Books
from meterhouse.db.catalog import Catalog
from meterhouse.db.engine import writing
from meterhouse.db.invoices import InvoiceStore
from meterhouse.db.ledger import Adjustment, LedgerStore
from meterhouse.db.organizations import Organization, Project
from meterhouse.db.tables import price
from meterhouse.errors import Conflict, Malformed, NotFound, RateLimited
from meterhouse.exports import export
from meterhouse.ledger.export import Order
from meterhouse.ledger.seal import hash_rows
from meterhouse.ledger.sealer import Sealer
from meterhouse.telemetry.logs import get_logger

JANUARY, FEBRUARY, MARCH = (Month.parse(f"2027-0{number}") for number in (1, 2, 3))
MINUTE = 60_000


class House:
    """A ledger with an organization, and what issues its invoices."""

    def __init__(self, engine):
        self.clock = MovingClock(JANUARY.end_ms - MINUTE)
        self.ledger = LedgerStore(engine, self.clock.now_ms)
        self.catalog = Catalog(engine)
        self.books = Books(engine, hash_rows)
        sealer = Sealer(self.books.seals, get_logger())
        self.invoices = Invoices(InvoiceStore(engine), self.books.seals, self.catalog, self.clock, sealer.seal_all)

    async def open(self):
        await self.catalog.organizations.insert_organization(Organization("org_1", "Acme <b>", 1))
        await self.catalog.organizations.insert_project(Project("proj_1", "org_1", '=HYPERLINK("x")', 1))
        return self

    async def use(self, *charges, at_ms, **changes):
        rows = [
            record(charge_nanos=nanos, charges=(("output", nanos),), admitted_at_ms=at_ms, **changes)
            for nanos in charges
        ]
        await self.ledger.insert(rows)

    async def correct(self, name, nanos, at_ms, reason="outage"):
        entry = Adjustment(name, "org_1", "proj_1", None, at_ms, nanos, 0, reason, self.clock.now_ms())
        assert await self.ledger.insert_adjustment(entry)

    async def issue(self, month):
        return await self.invoices.issue("org_1", month)

    async def exported(self):
        """Return the lines of the signed export, as whoever audits an invoice has them."""
        out = io.BytesIO()
        await export(self.books, out, "jsonl", Order(0), Ed25519PrivateKey.generate())
        return [line for line in map(json.loads, out.getvalue().splitlines()) if line["organization_id"] == "org_1"]


@pytest.fixture
async def house(engine):
    return await House(engine).open()


def total_of(lines, months, sequences):
    """Compute what an invoice must be from exported lines: those of its month, and late ones, up to its seals."""
    start, end = months
    first, last = sequences
    nanos = 0
    for line in lines:
        row = line["row"]
        is_usage = line["kind"] == "usage"
        at_ms = row["admitted_at_ms"] if is_usage else row["period_start_ms"]
        if at_ms == 0 and not is_usage:
            continue  # a credit
        is_late = at_ms < start and first < line["sequence"]
        if line["sequence"] <= last and (start <= at_ms < end or is_late):
            nanos += row["charge_nanos"] if is_usage else row["nanos"]
    return nanos


async def test_months_are_billed_to_the_nano_and_what_is_late_is_a_line_of_the_next(house):
    last_moment = JANUARY.end_ms - 1
    await house.use(1, 2, 3, at_ms=JANUARY.start_ms)
    await house.use(1_000_000_007, at_ms=last_moment, model="other", price_id=None)
    await house.use(50, at_ms=JANUARY.end_ms)
    await house.use(999, at_ms=last_moment, organization_id="org_2")
    await house.correct("adj_1", -5, JANUARY.start_ms)
    await house.correct("adj_credit", -(10**9), 0)
    with pytest.raises(Conflict, match="not over"):
        await house.issue(JANUARY)
    house.clock.move(MINUTE)
    january = await house.issue(JANUARY)
    assert (january.status, january.month, january.total_nanos) == ("issued", "2027-01", 6 + 1_000_000_007 - 5)
    assert [(line.model, line.price_id, line.charge_nanos) for line in january.lines] == [
        ("gpt", "price_1", 6),
        ("other", None, 1_000_000_007),
    ]
    assert january.lines[0].tokens["input_tokens"] == 300
    assert january.lines[0].charges == {"output": 6}
    # What arrives now is late, in whatever order: it is no change of what was issued.
    await house.use(70, 7, at_ms=last_moment)
    await house.correct("adj_2", 11, JANUARY.start_ms, reason="priced later")
    await house.use(4, at_ms=FEBRUARY.end_ms)
    assert await house.issue(JANUARY) == january == await house.invoices.show("org_1", JANUARY)
    house.clock.move(FEBRUARY.end_ms - FEBRUARY.start_ms)
    february = await house.issue(FEBRUARY)
    assert [(line.month, line.is_late, line.charge_nanos) for line in february.lines] == [
        ("2027-02", False, 50),
        ("2027-01", True, 77),
    ]
    assert [(line.is_late, line.nanos, line.reason) for line in february.adjustments] == [(True, 11, "priced later")]
    assert february.total_nanos == 50 + 77 + 11
    assert february.seal.previous_sequence == january.seal.last_sequence
    lines = await house.exported()
    for month, invoice in ((JANUARY, january), (FEBRUARY, february)):
        seals = (invoice.seal.previous_sequence, invoice.seal.last_sequence)
        assert total_of(lines, (month.start_ms, month.end_ms), seals) == invoice.total_nanos
        assert {line["hash"] for line in lines if line["sequence"] == seals[1]} == {invoice.seal.last_hash}
    ledger_nanos = sum(line["row"].get("charge_nanos", line["row"].get("nanos")) for line in lines) + 10**9
    march = await house.invoices.show("org_1", MARCH)
    assert (march.status, march.total_nanos) == ("draft", 4)
    assert january.total_nanos + february.total_nanos + march.total_nanos == ledger_nanos


async def test_earlier_months_are_issued_first_and_nothing_of_them_is_late(house):
    await house.use(5, at_ms=JANUARY.start_ms + 1)
    await house.use(6, at_ms=MARCH.start_ms)
    house.clock.move(MARCH.end_ms - JANUARY.end_ms + MINUTE)
    draft = await house.invoices.show("org_1", MARCH)
    march = await house.issue(MARCH)
    assert [line.is_late for line in march.lines] == [False]
    issued = [(month.name, nanos) for month, nanos in await house.invoices.list_issued("org_1")]
    assert issued == [("2027-01", 5), ("2027-02", 0), ("2027-03", 6)]
    assert draft.total_nanos == 0  # nothing was sealed yet
    assert (await house.invoices.show("org_1", MARCH)) == march
    with pytest.raises(NotFound):
        await house.invoices.show("org_1", Month.parse("2026-12"))
    with pytest.raises(NotFound):
        await house.invoices.show("org_none", JANUARY)


async def test_no_first_invoice_is_of_a_month_that_was_mistyped(house):
    house.clock.move(MINUTE)
    with pytest.raises(NotFound, match="ten years back"):
        await house.invoices.issue("org_1", Month.parse("1971-01"))
    assert await house.invoices.list_issued("org_1") == []
    assert (await house.invoices.issue("org_1", JANUARY)).status == "issued"


async def test_every_organization_that_lacks_an_invoice_of_a_month_gets_one(house):
    await house.catalog.organizations.insert_organization(Organization("org_2", "Other", 2))
    await house.catalog.organizations.insert_organization(Organization("org_3", "New", JANUARY.end_ms))
    await house.use(5, at_ms=JANUARY.start_ms, organization_id="org_2")
    house.clock.move(MINUTE)
    assert await house.invoices.issue_due(JANUARY, page=1) == 2
    assert await house.invoices.issue_due(JANUARY, page=1) == 0
    assert (await house.invoices.show("org_2", JANUARY)).total_nanos == 5


async def test_an_organization_whose_invoice_cannot_be_issued_keeps_back_no_other(house, monkeypatch):
    monkeypatch.setattr(issuing, "MOST_MONTHS", 2)
    await house.catalog.organizations.insert_organization(Organization("org_2", "Other", 2))
    await house.use(5, at_ms=JANUARY.start_ms)
    await house.use(6, at_ms=MARCH.start_ms, organization_id="org_2")
    house.clock.move(MARCH.end_ms - JANUARY.end_ms + MINUTE)
    assert await house.invoices.issue_due(MARCH, page=1) == 1
    assert await house.invoices.list_issued("org_2") == [(MARCH, 6)]
    assert [await house.invoices.issue_due(MARCH, page=1) for _ in range(2)] == [1, 0]


async def test_rows_that_cannot_be_read_keep_back_the_invoice_of_no_other_organization(house, engine):
    await house.catalog.organizations.insert_organization(Organization("org_2", "Other", 2))
    broken = {"id": "price_broken", "provider": "p", "model": "m", "components": [{"kind": "output"}]}
    async with writing(engine) as connection:
        row = {**broken, "effective_from_ms": 1, "source": "test", "created_at_ms": 1}
        await connection.execute(sa.insert(price), [row])
    await house.use(5, at_ms=JANUARY.start_ms, price_id="price_broken")
    await house.use(6, at_ms=JANUARY.start_ms, organization_id="org_2")
    house.clock.move(MINUTE)
    with pytest.raises(msgspec.ValidationError):
        await house.issue(JANUARY)
    with capture_logs() as logged:
        assert [await house.invoices.issue_due(JANUARY, page=1) for _ in range(2)] == [1, 0]
    assert house.invoices.failures == 2
    assert await house.invoices.list_issued("org_2") == [(JANUARY, 6)]
    assert [(line["event"], line["log_level"], line["organization_id"], line["month"]) for line in logged] == [
        ("invoice.failed", "error", "org_1", "2027-01")
    ] * 2
    assert isinstance(logged[0]["exc_info"], msgspec.ValidationError)


async def test_drafts_are_made_one_at_a_time_and_few_wait(house):
    class Watched(InvoiceStore):
        running, most = 0, 0

        async def sum_usage(self, coverage):
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await asyncio.sleep(0.01)
                return await super().sum_usage(coverage)
            finally:
                self.running -= 1

    store = house.invoices._store = Watched(house.invoices._store._source)
    asked = [house.invoices.show("org_1", JANUARY) for _ in range(issuing.MOST_DRAFTS_WAITING + 3)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert store.most == 1
    assert [type(answer) for answer in answers].count(RateLimited) == 2
    assert (await house.invoices.show("org_1", JANUARY)).status == "draft"


async def test_every_record_is_billed_once_in_whatever_order_months_and_records_come(house):
    for number in range(6):
        month = (JANUARY, FEBRUARY, MARCH)[number // 2]
        for back in range(number // 2 + 1):
            await house.use(10**number, at_ms=month.start_ms - back * 28 * 86_400_000 + number)
        if number % 2:
            house.clock.move(month.end_ms - house.clock.now_ms() + MINUTE)
            await house.issue(month)
    months = [month for month, _ in await house.invoices.list_issued("org_1")]
    counted = Counter()
    for month in months:
        invoice = await house.invoices.show("org_1", month)
        counted["requests"] += sum(line.requests for line in invoice.lines)
        counted["nanos"] += invoice.total_nanos
    lines = await house.exported()
    assert counted == {"requests": len(lines), "nanos": sum(line["row"]["charge_nanos"] for line in lines)}
    assert [month.name for month in months] == ["2027-01", "2027-02", "2027-03"]


async def test_csv_and_page_say_the_same_and_run_nothing(house):
    await house.use(1_500_000_000, at_ms=JANUARY.start_ms, model='<script>alert("x")</script>')
    await house.correct("adj_1", -5, JANUARY.start_ms, reason="@cmd <img src=x>")
    house.clock.move(MINUTE)
    invoice = await house.issue(JANUARY)
    page, table = to_html(invoice), to_csv(invoice)
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "Acme &lt;b&gt;" in page
    assert "1.499999995 USD" in page
    assert invoice.seal.last_hash in page
    head, usage, correction, total = table.splitlines()
    assert head.startswith("kind,month,is_late")
    assert '"\'=HYPERLINK(""x"")"' in usage
    assert "'@cmd" in correction
    assert correction.endswith(",-5,-0.000000005")
    assert total.endswith(",1499999995,1.499999995")


async def test_a_name_with_a_carriage_return_begins_no_row_of_the_table(house):
    await house.catalog.organizations.insert_project(Project("proj_2", "org_1", "x\r=1+1", 1))
    await house.use(5, at_ms=JANUARY.start_ms, project_id="proj_2")
    house.clock.move(MINUTE)
    table = to_csv(await house.issue(JANUARY))
    kinds = [cells["kind"] for cells in csv.DictReader(io.StringIO(table, newline=""), strict=True)]
    assert kinds == ["usage", "total"]


async def test_a_record_of_a_clock_that_was_wrong_is_late_in_the_first_invoice(house, monkeypatch):
    monkeypatch.setattr(issuing, "LONGEST_PAST_MS", 100 * 86_400_000)
    await house.use(3, at_ms=5)
    await house.use(4, at_ms=JANUARY.start_ms)
    house.clock.move(MINUTE)
    january = await house.issue(JANUARY)
    issued = await house.invoices.list_issued("org_1")
    assert [month.name for month, _ in issued] == ["2026-09", "2026-10", "2026-11", "2026-12", "2027-01"]
    assert sum(nanos for _, nanos in issued) == 7
    assert january.total_nanos == 4


@pytest.mark.parametrize("text", ["2027-1", "2027-13", "27-01", "2027-01-01", "", "9999-12", "²027-01"])
def test_what_is_no_month_is_refused(text):
    with pytest.raises(Malformed):
        Month.parse(text)


async def test_an_issued_invoice_cannot_be_changed(house, engine):
    await house.use(5, at_ms=JANUARY.start_ms)
    house.clock.move(MINUTE)
    await house.issue(JANUARY)
    for change in ("UPDATE invoice SET total_nanos = 0", "DELETE FROM invoice"):
        with pytest.raises(Exception, match="append-only"):
            async with engine.begin() as connection:
                await connection.exec_driver_sql(change)
