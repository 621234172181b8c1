"""What an invoice says: its lines, its sums, and up to which seal the ledger was billed. Pure.

Invariant: the total is the sum of its lines, to the nano. Not here: which records it covers (``db.invoices``), issuing
(``billing.invoices``), how it looks (``billing.invoice_page``).
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal

import msgspec

from meterhouse.db.invoices import AdjustmentSum, UsageSum
from meterhouse.errors import Malformed
from meterhouse.money import Price, format_usd

MONTH_FORM = "%Y-%m"
_LAST_YEAR = 9_998


class Month(msgspec.Struct, frozen=True):
    """A month of UTC."""

    start_ms: int
    end_ms: int

    @property
    def name(self) -> str:
        """How it is written: ``2026-11``."""
        return _moment(self.start_ms).strftime(MONTH_FORM)

    @classmethod
    def of(cls, at_ms: int) -> "Month":
        """Return the month that a moment is in."""
        moment = _moment(at_ms)
        return cls(_first_ms(moment.year, moment.month), _first_ms(*_next(moment.year, moment.month)))

    @classmethod
    def parse(cls, text: str) -> "Month":
        """Read ``2026-11``; raises Malformed."""
        try:
            moment = datetime.strptime(text, MONTH_FORM).replace(tzinfo=UTC)
        except ValueError:
            moment = None
        if moment is None or len(text) != len("2026-11") or not 1970 <= moment.year <= _LAST_YEAR:  # noqa: PLR2004
            raise Malformed(f"'{text[:32]}' is no month. Write it as 2026-11.", param="month")
        return cls.of(_first_ms(moment.year, moment.month))

    @property
    def after(self) -> "Month":
        """The month after it."""
        return Month.of(self.end_ms)


class InvoiceLine(msgspec.Struct, frozen=True, kw_only=True):
    """The usage of one project, model, provider and price in a month."""

    month: str
    """When it was used; a late line's is an earlier one."""
    is_late: bool
    """Recorded after its own month was invoiced."""
    project_id: str
    project_name: str
    model: str
    provider: str
    price_id: str | None
    """None: it had no price, and is charged nothing."""
    requests: int
    attempts: int
    tokens: dict[str, int]
    charges: dict[str, int]
    """The charge by what it is for."""
    charge_nanos: int
    charge_usd: str


class AdjustmentLine(msgspec.Struct, frozen=True, kw_only=True):
    """Corrections of one project for one reason in a month."""

    month: str
    is_late: bool
    project_id: str
    project_name: str
    reason: str
    count: int
    first_id: str
    tokens: int
    nanos: int
    usd: str


class InvoicePrice(msgspec.Struct, frozen=True, kw_only=True):
    """A price that a line was charged by."""

    id: str
    provider: str
    model: str
    effective_from: int
    source: str
    components: list[dict[str, object]]


class InvoiceSeal(msgspec.Struct, frozen=True, kw_only=True):
    """Up to where the organization's chain of seals was billed."""

    previous_sequence: int
    """The last one of the invoice before."""
    last_sequence: int
    last_hash: str


class Invoice(msgspec.Struct, frozen=True, kw_only=True):
    """A month's invoice of an organization."""

    id: str
    object: Literal["invoice"] = "invoice"
    status: Literal["issued", "draft"]
    """A draft is what would be issued now; it changes."""
    organization_id: str
    organization_name: str
    month: str
    issued_at: int | None
    currency: Literal["USD"] = "USD"
    lines: list[InvoiceLine]
    adjustments: list[AdjustmentLine]
    prices: list[InvoicePrice]
    usage_nanos: int
    adjustment_nanos: int
    total_nanos: int
    total_usd: str
    seal: InvoiceSeal


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Whose invoice it is, and of when."""

    organization_id: str
    organization_name: str
    project_names: Mapping[str, str]
    month: Month
    seal: InvoiceSeal
    issued_at_ms: int | None
    """None: a draft."""


def build_invoice(
    facts: Facts, usage: Iterable[UsageSum], adjustments: Iterable[AdjustmentSum], prices: Iterable[Price]
) -> Invoice:
    """Put an invoice together."""
    lines = [_line(key, sums, facts) for key, sums in _by_month(usage, facts.month).items()]
    corrections = [_adjustment(one, facts) for one in _adjustments_by_month(adjustments)]
    usage_nanos = sum(line.charge_nanos for line in lines)
    adjustment_nanos = sum(line.nanos for line in corrections)
    return Invoice(
        id=f"inv_{facts.organization_id.removeprefix('org_')}_{facts.month.name}",
        status="draft" if facts.issued_at_ms is None else "issued",
        organization_id=facts.organization_id,
        organization_name=facts.organization_name,
        month=facts.month.name,
        issued_at=None if facts.issued_at_ms is None else facts.issued_at_ms // 1000,
        lines=lines,
        adjustments=corrections,
        prices=[_price(price) for price in prices],
        usage_nanos=usage_nanos,
        adjustment_nanos=adjustment_nanos,
        total_nanos=usage_nanos + adjustment_nanos,
        total_usd=format_usd(usage_nanos + adjustment_nanos),
        seal=facts.seal,
    )


_LineKey = tuple[str, str, str, str, str | None]
"""Month, project, model, provider, price."""


def _by_month(usage: Iterable[UsageSum], month: Month) -> dict[_LineKey, list[UsageSum]]:
    """Put the days of late usage together by their months."""
    found: dict[_LineKey, list[UsageSum]] = {}
    for one in usage:
        name = month.name if one.day_ms is None else Month.of(one.day_ms).name
        found.setdefault((name, one.project_id, one.model, one.provider, one.price_id), []).append(one)
    return found


def _line(key: _LineKey, sums: list[UsageSum], facts: Facts) -> InvoiceLine:
    name, project_id, model, provider, price_id = key
    charge_nanos = sum(one.charge_nanos for one in sums)
    return InvoiceLine(
        month=name,
        is_late=name != facts.month.name,
        project_id=project_id,
        project_name=facts.project_names.get(project_id, ""),
        model=model,
        provider=provider,
        price_id=price_id,
        requests=sum(one.requests for one in sums),
        attempts=sum(one.attempts for one in sums),
        tokens=_add_up(one.tokens for one in sums),
        charges=_add_up(one.charges for one in sums),
        charge_nanos=charge_nanos,
        charge_usd=format_usd(charge_nanos),
    )


def _adjustments_by_month(adjustments: Iterable[AdjustmentSum]) -> Iterable[AdjustmentSum]:
    found: dict[tuple[str, str, str], AdjustmentSum] = {}
    for one in adjustments:
        key = (Month.of(one.day_ms).name, one.project_id, one.reason)
        other = found.get(key)
        if other is not None:
            one = AdjustmentSum(  # noqa: PLW2901 - put together with what there is
                project_id=one.project_id,
                reason=one.reason,
                day_ms=other.day_ms,
                count=one.count + other.count,
                first_id=min(one.first_id, other.first_id),
                nanos=one.nanos + other.nanos,
                tokens=one.tokens + other.tokens,
            )
        found[key] = one
    return (found[key] for key in sorted(found))


def _adjustment(one: AdjustmentSum, facts: Facts) -> AdjustmentLine:
    name = Month.of(one.day_ms).name
    return AdjustmentLine(
        month=name,
        is_late=name != facts.month.name,
        project_id=one.project_id,
        project_name=facts.project_names.get(one.project_id, ""),
        reason=one.reason,
        count=one.count,
        first_id=one.first_id,
        tokens=one.tokens,
        nanos=one.nanos,
        usd=format_usd(one.nanos),
    )


def _price(price: Price) -> InvoicePrice:
    return InvoicePrice(
        id=price.id,
        provider=price.provider,
        model=price.model,
        effective_from=price.effective_from_ms // 1000,
        source=price.source,
        components=[msgspec.structs.asdict(component) for component in price.components],
    )


def _add_up(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for part in parts:
        for name, amount in part.items():
            sums[name] = sums.get(name, 0) + amount
    return sums


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms // 1000, UTC)


def _next(year: int, month: int) -> tuple[int, int]:
    return (year + 1, 1) if month == 12 else (year, month + 1)  # noqa: PLR2004 - months of a year


def _first_ms(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1000
