"""Issues invoices, one month after the other, and shows them.

Invariant: an invoice is issued once and stays; together the invoices of an organization hold every sealed record and
correction exactly once, because each goes up to a seal and the next goes on behind it. So months are issued in their
order, and a month that is asked for has those before it issued first. Not here: sums (``db.invoices``).
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from meterhouse.audit import Action, Change
from meterhouse.billing.invoice import Facts, Invoice, InvoiceSeal, Month, build_invoice
from meterhouse.db.catalog import Catalog
from meterhouse.db.invoices import Coverage, InvoiceStore, IssuedInvoice
from meterhouse.db.organizations import Organization
from meterhouse.db.seals import SealStore
from meterhouse.errors import Conflict, GatewayError, NotFound, RateLimited
from meterhouse.identity import COMMAND_LINE, Author
from meterhouse.metering import Clock
from meterhouse.telemetry.logs import Event, get_logger

MOST_MONTHS = 240
"""Issued one after the other for one that was asked for."""
LONGEST_PAST_MS = 10 * 366 * 86_400_000
"""How far before a month, and before the present, the first invoice of an organization lies at most."""
MOST_DRAFTS_WAITING = 8
"""Drafts are made one at a time, so that readers leave the office's connection to what must be issued."""
_decode = msgspec.json.Decoder(Invoice).decode


class Invoices:
    """Issues and shows invoices. Every method raises StoreDown when there is no database."""

    def __init__(
        self,
        store: InvoiceStore,
        seals: SealStore,
        catalog: Catalog,
        clock: Clock,
        seal_all: Callable[[], Awaitable[int]],
    ) -> None:
        """Take the stores, and what seals everything that was recorded until now."""
        self._store = store
        self._seals = seals
        self._catalog = catalog
        self._clock = clock
        self._seal_all = seal_all
        self._drafting = asyncio.Lock()
        self._drafts = 0
        self.failures = 0
        """Invoices that could not be issued when they were due, since the start."""

    async def show(self, organization_id: str, month: Month) -> Invoice:
        """Return an invoice as it was issued; of a month that has none yet, what it would be now.

        Raises:
            NotFound: There is no such organization, or the month lies before its first invoice or ahead.
            RateLimited: There is no invoice yet, and too many drafts are being made.
        """
        organization = await self._get_organization(organization_id)
        issued = await self._store.find(organization_id, month.start_ms)
        if issued is not None:
            return _decode(issued.document)
        if self._drafts > MOST_DRAFTS_WAITING:
            raise RateLimited("Too many drafts of invoices are being made. Try again soon.", retry_after_seconds=5)
        self._drafts += 1
        try:
            async with self._drafting:
                return await self._draft(organization, month)
        finally:
            self._drafts -= 1

    async def _draft(self, organization: Organization, month: Month) -> Invoice:
        organization_id = organization.id
        last = await self._store.find_last(organization_id)
        if month.start_ms > self._clock.now_ms() or (last is not None and month.start_ms < last.month_ms):
            raise NotFound(f"There is no invoice of {month.name}.", param="month")
        seal = await self._read_seal(organization_id)
        is_next = last is not None and Month.of(last.month_ms).end_ms == month.start_ms
        # Behind months that are not invoiced yet nothing is late: they would be issued up to the same seal.
        previous = last.last_sequence if last is not None and is_next else seal.last_sequence
        return await self._build(organization, month, _with_previous(seal, previous), None)

    async def issue(self, organization_id: str, month: Month, author: Author = COMMAND_LINE) -> Invoice:
        """Issue the invoice of a month that is over, and before it those of earlier months; once issued, it is shown.

        Raises:
            NotFound: There is no such organization, or the month lies before its first invoice or ten years back.
            Conflict: The month is not over, or too many months before it have no invoice.
        """
        if month.end_ms > self._clock.now_ms():
            raise Conflict(f"{month.name} is not over: its invoice can be issued from the first of the next month on.")
        organization = await self._get_organization(organization_id)
        await self._seal_all()
        for _ in range(MOST_MONTHS):
            last = await self._store.find_last(organization_id)
            if last is not None and last.month_ms >= month.start_ms:
                return await self.show(organization_id, month)
            due = await self._find_due(organization_id, last, month)
            await self._issue_one(organization, due, last.last_sequence if last is not None else 0, author)
        raise Conflict(f"More than {MOST_MONTHS} months before {month.name} have no invoice.")

    async def issue_due(self, month: Month, page: int = 100) -> int:
        """Issue what is missing of a month that is over, for every organization; returns how many it issued.

        An organization whose invoice cannot be issued, whatever is the matter with it, is logged, counted in
        ``failures`` and left to the next time; the others get theirs.
        """
        count, after = 0, ""
        while due := await self._store.list_due((month.start_ms, month.end_ms), after, page):
            for organization_id in due:
                count += await self._try_issue(organization_id, month)
            after = due[-1]
        return count

    async def _try_issue(self, organization_id: str, month: Month) -> bool:
        (outcome,) = await asyncio.gather(self.issue(organization_id, month), return_exceptions=True)
        if isinstance(outcome, Invoice):
            return True
        self.failures += 1
        failed = {"organization_id": organization_id, "month": month.name}
        if isinstance(outcome, GatewayError):
            detail = f"{type(outcome).__name__}: {outcome.message}"
            get_logger().warning(Event.INVOICE_FAILED, **failed, detail=detail)
        else:
            get_logger().error(Event.INVOICE_FAILED, **failed, exc_info=outcome)
        return False

    async def list_issued(self, organization_id: str) -> list[tuple[Month, int]]:
        """Return month and total of every invoice of an organization; raises NotFound."""
        await self._get_organization(organization_id)
        return [(Month.of(month_ms), nanos) for month_ms, nanos in await self._store.list_issued(organization_id)]

    async def _find_due(self, organization_id: str, last: IssuedInvoice | None, month: Month) -> Month:
        """Return the month to be issued next: the one behind the last, or the first of which there is anything."""
        if last is not None:
            return Month.of(last.month_ms).after
        if month.start_ms < self._clock.now_ms() - LONGEST_PAST_MS:
            # A slip of the pen would have every month since then issued first, and nothing takes an invoice back.
            raise NotFound(f"There is no invoice of {month.name}: it lies more than ten years back.", param="month")
        first_ms = await self._store.find_first_ms(organization_id)
        if first_ms is None or first_ms >= month.start_ms:
            return month
        # What is older, by a clock that was wrong, is late in the first invoice.
        return Month.of(max(first_ms, month.start_ms - LONGEST_PAST_MS))

    async def _issue_one(
        self, organization: Organization, month: Month, previous_sequence: int, author: Author
    ) -> None:
        seal = _with_previous(await self._read_seal(organization.id), previous_sequence)
        now_ms = self._clock.now_ms()
        made = await self._build(organization, month, seal, now_ms)
        new = IssuedInvoice(
            organization_id=organization.id,
            month_ms=month.start_ms,
            issued_at_ms=now_ms,
            last_sequence=seal.last_sequence,
            last_hash=seal.last_hash,
            total_nanos=made.total_nanos,
            document=msgspec.json.encode(made).decode(),
        )
        fields = {"month": month.name, "total_nanos": made.total_nanos}
        change = Change(Action.INVOICE_ISSUED, made.id, organization.id, after=fields)
        async with self._catalog.changing(organization.id) as catalog:
            # Another process may have issued it meanwhile, and that one counts.
            if await catalog.invoices.insert(new):
                await catalog.audit.write(author, change)

    async def _build(
        self, organization: Organization, month: Month, seal: InvoiceSeal, issued_at_ms: int | None
    ) -> Invoice:
        coverage = Coverage(organization.id, month.start_ms, month.end_ms, seal.previous_sequence, seal.last_sequence)
        usage = await self._store.sum_usage(coverage)
        adjustments = await self._store.sum_adjustments(coverage)
        prices = await self._catalog.prices.find_prices({one.price_id for one in usage if one.price_id is not None})
        facts = Facts(
            organization_id=organization.id,
            organization_name=organization.name,
            project_names=await self._store.list_project_names(organization.id),
            month=month,
            seal=seal,
            issued_at_ms=issued_at_ms,
        )
        return build_invoice(facts, usage, adjustments, prices)

    async def _read_seal(self, organization_id: str) -> InvoiceSeal:
        _, behind = await self._seals.find_span(organization_id, None, None)
        last = await self._seals.read(organization_id, behind - 1, 1) if behind > 1 else []
        return InvoiceSeal(previous_sequence=0, last_sequence=behind - 1, last_hash=last[0].hash if last else "")

    async def _get_organization(self, organization_id: str) -> Organization:
        found = await self._catalog.organizations.find_organization(organization_id)
        if found is None:
            raise NotFound(f"There is no organization '{organization_id[:64]}'.", param="organization_id")
        return found


def _with_previous(seal: InvoiceSeal, previous_sequence: int) -> InvoiceSeal:
    return msgspec.structs.replace(seal, previous_sequence=min(previous_sequence, seal.last_sequence))
