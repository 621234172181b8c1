"""Adds prepaid credit to an organization, once for each reference, and says what is left.

Invariant: a reference (of a payment, an order, an invoice that was paid) credits once, however often it is sent; the
same reference with another amount is refused. Not here: how credit binds (``db.credits``).
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Protocol

from meterhouse.audit import Action, Change
from meterhouse.db.catalog import Catalog
from meterhouse.db.credits import CreditBalance
from meterhouse.db.ledger import Adjustment
from meterhouse.db.tables import CREDIT_PERIOD_MS
from meterhouse.errors import Conflict, Malformed, NotFound
from meterhouse.identity import COMMAND_LINE, Author
from meterhouse.limits.limit import MAX_AMOUNT
from meterhouse.metering import Clock, Scope

MAX_REFERENCE_CHARACTERS = 200


class TellsOwners(Protocol):
    """Tells every process that what binds somebody's keys has changed; ``keys.service.KeyService`` is one."""

    async def note_limits_changed(self, scope: Scope, scope_id: str) -> None:
        """Have the keys of an owner read again before their next use."""
        ...


@dataclass(frozen=True, slots=True)
class CreditOrder:
    """A credit as an operator asks for it; negative takes one back."""

    organization_id: str
    nanos: int
    reference: str
    """Spaces around it do not count: the same payment, pasted another way, is the same."""
    created_by: str


class Credits:
    """Adds and shows credit. Every method raises StoreDown when there is no database."""

    def __init__(self, catalog: Catalog, keys: TellsOwners, clock: Clock) -> None:
        self._catalog = catalog
        self._keys = keys
        self._clock = clock

    async def add(self, order: CreditOrder, author: Author = COMMAND_LINE) -> tuple[Adjustment, bool]:
        """Add a credit; returns it, and False when its reference had been credited before.

        Raises:
            Malformed: The amount or the reference is none, or there would be more credit than a limit can say.
            NotFound: There is no such organization.
            Conflict: The reference was credited with another amount.
        """
        order = replace(order, reference=order.reference.strip())
        _check(order)
        async with self._catalog.changing(order.organization_id) as catalog:
            entry, is_new = await self._add(catalog, order, author)
        # Told again for a reference that is known: who sent it first may have died before it could tell.
        await self._keys.note_limits_changed(Scope.ORGANIZATION, order.organization_id)
        return entry, is_new

    async def show(self, organization_id: str) -> CreditBalance:
        """Return what is left; raises NotFound."""
        await _check_organization(self._catalog, organization_id)
        return await self._catalog.credits.read_balance(organization_id)

    async def _add(self, catalog: Catalog, order: CreditOrder, author: Author) -> tuple[Adjustment, bool]:
        await _check_organization(catalog, order.organization_id)
        entry = Adjustment(
            id=_id_of(order),
            organization_id=order.organization_id,
            project_id="",
            root_key_id=None,
            period_start_ms=CREDIT_PERIOD_MS,
            nanos=-order.nanos,
            tokens=0,
            reason=f"credit: {order.reference}",
            created_at_ms=self._clock.now_ms(),
            created_by=order.created_by,
        )
        known = await catalog.credits.find(entry.id)
        if known is not None:
            if known.nanos != entry.nanos:
                text = f"The reference '{order.reference}' was credited with another amount before."
                raise Conflict(text, param="reference")
            return known, False
        credited_nanos = (await catalog.credits.read_balance(order.organization_id)).credited_nanos
        if abs(credited_nanos + order.nanos) > MAX_AMOUNT:
            raise Malformed("Credit is at most 4,000,000 USD in all.", param="usd")
        await catalog.credits.insert(entry)
        fields = {"nanos": order.nanos, "reference": order.reference}
        await catalog.audit.write(author, Change(Action.CREDIT_ADDED, entry.id, order.organization_id, after=fields))
        return entry, True


def _check(order: CreditOrder) -> None:
    reference = order.reference
    if not reference or len(reference) > MAX_REFERENCE_CHARACTERS or not reference.isprintable():
        text = f"A credit needs a reference of 1 to {MAX_REFERENCE_CHARACTERS} printable characters."
        raise Malformed(text, param="reference")
    if order.nanos == 0:
        raise Malformed("A credit of nothing changes nothing.", param="usd")
    if abs(order.nanos) > MAX_AMOUNT:
        raise Malformed("Credit is at most 4,000,000 USD in all.", param="usd")


async def _check_organization(catalog: Catalog, organization_id: str) -> None:
    if await catalog.organizations.find_organization(organization_id) is None:
        raise NotFound(f"There is no organization '{organization_id[:64]}'.", param="organization_id")


def _id_of(order: CreditOrder) -> str:
    content = f"{order.organization_id}\n{order.reference}"
    return f"adj_credit_{hashlib.sha256(content.encode()).hexdigest()[:32]}"
