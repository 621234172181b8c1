"""Charges later what was used while its model had no price: one adjustment for each record.

Invariant: a record is charged at most once, whatever runs at a time or again, because the adjustment's id is made of
its own; the record itself stays what it was. The audit log has who charged it, in the same transaction. Only prices
that an operator set count: what they say of a moment before they were set is what the operator means. Not here: prices
(``providers.prices``), the meter.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from meterhouse.audit import Action, Change
from meterhouse.db.audit import AuditStore
from meterhouse.db.engine import Source
from meterhouse.db.ledger import Adjustment, LedgerStore
from meterhouse.db.tables import DAY_MS, RERATED_ID_PREFIX
from meterhouse.db.unpriced import UnpricedRecord, UnpricedStore
from meterhouse.errors import MeterDown
from meterhouse.identity import Author
from meterhouse.metering import Clock, Correction
from meterhouse.money import charge
from meterhouse.providers.prices import PriceBook, price_at

Apply = Callable[[Correction], Awaitable[bool]]
"""Moves the running meter by a correction that the ledger has; False when it could not."""


@dataclass(frozen=True, slots=True)
class RerateOrder:
    """Which records: admitted from a moment to before another, of one organization or of all."""

    from_ms: int
    to_ms: int
    organization_id: str | None
    author: Author
    clock: Clock
    is_dry: bool = False
    """Whether to say only what would be charged."""


@dataclass(slots=True)
class Rerated:
    """What came of it."""

    records: int = 0
    """Charged now, or, of a dry run, those that a price was found for."""
    nanos: int = 0
    known: int = 0
    """Charged by an earlier run."""
    unpriced: int = 0
    """Without a price still."""
    is_applied: bool = True
    """Whether the running meter was told of all; otherwise it follows when it is next reconciled."""


async def rerate(
    store: UnpricedStore, ledger: LedgerStore, prices: PriceBook, order: RerateOrder, apply: Apply
) -> Rerated:
    """Charge unpriced records by the prices that held when they were admitted; raises StoreDown."""
    done = Rerated()
    write_down = partial(_write_down, order.author)
    at_ms = 0
    async for page in store.list_pages(order.from_ms, order.to_ms, order.organization_id):
        at_ms = max(order.clock.now_ms(), at_ms + 1)  # tells the pages apart, see db.balances
        made = [_adjustment_of(record, prices, order.author, at_ms) for record in page]
        priced = [entry for entry in made if entry is not None]
        done.unpriced += len(page) - len(priced)
        new = priced if order.is_dry else await ledger.insert_adjustments(priced, write_down)
        done.records += len(new)
        done.nanos += sum(entry.nanos for entry in new)
        done.known += len(priced) - len(new)
        if not order.is_dry:
            for correction in corrections_of(new):
                done.is_applied = await _tell(apply, correction) and done.is_applied
    return done


def _adjustment_of(record: UnpricedRecord, prices: PriceBook, author: Author, at_ms: int) -> Adjustment | None:
    price = price_at(prices.find(record.provider, record.upstream_model), record.admitted_at_ms)
    if price is None:
        return None
    charged = charge(
        price, record.usage, admitted_at_ms=record.admitted_at_ms, service_tier=record.service_tier or None
    )
    return Adjustment(
        id=f"{RERATED_ID_PREFIX}{record.request_id}_{record.attempt}",
        organization_id=record.organization_id,
        project_id=record.project_id,
        root_key_id=record.root_key_id,
        period_start_ms=record.admitted_at_ms,
        nanos=charged.nanos,
        tokens=0,
        reason=f"priced later: {record.provider}/{record.upstream_model} by {price.id}",
        created_at_ms=at_ms,
        created_by=author.actor.id,
    )


async def _write_down(author: Author, connection: Source, new: Sequence[Adjustment]) -> None:
    """Say in the audit log who charged a page, once for each organization; its adjustments say the rest."""
    audit = AuditStore(connection)
    of_organization: dict[str, list[Adjustment]] = {}
    for entry in new:
        of_organization.setdefault(entry.organization_id, []).append(entry)
    for organization_id, entries in of_organization.items():
        fields = {
            "reason": "priced later",
            "adjustments": len(entries),
            "last_id": entries[-1].id,
            "nanos": sum(entry.nanos for entry in entries),
            "created_by": author.actor.id,
        }
        await audit.write(author, Change(Action.ADJUSTMENT_CREATED, entries[0].id, organization_id, after=fields))


def corrections_of(entries: Iterable[Adjustment]) -> list[Correction]:
    """Put together what moves the same periods: those of one key on one day, under the least of their ids."""
    sums: dict[tuple[str, str, str | None, int], int] = {}
    ids: dict[tuple[str, str, str | None, int], str] = {}
    for entry in entries:
        day_ms = entry.period_start_ms - entry.period_start_ms % DAY_MS
        key = (entry.organization_id, entry.project_id, entry.root_key_id, day_ms)
        sums[key] = sums.get(key, 0) + entry.nanos
        ids[key] = min(ids.get(key, entry.id), entry.id)  # an adjustment is in one sum only
    return [Correction(*key, nanos=nanos, tokens=0, id=ids[key]) for key, nanos in sums.items()]


async def _tell(apply: Apply, correction: Correction) -> bool:
    try:
        return await apply(correction)
    except MeterDown:
        return False
