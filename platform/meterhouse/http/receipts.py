"""``GET /v1/receipts``: what a tenant's own key asked, request by request, the newest first.

A page is read by the index over the key and time, looks at a bounded number of records, and few are read at once, so
that no tenant makes it expensive for the others. Not here: one receipt (``http.account``), sums (``http.usage``).
"""

import asyncio
from datetime import UTC, date, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from meterhouse.admin.schemas import Listing
from meterhouse.db.receipts import ReceiptPage, ReceiptQuery
from meterhouse.errors import Malformed
from meterhouse.http.account import AccountParts, MayReadUsage, Receipt, show_receipt
from meterhouse.http.usage import AT_ONCE, MOST_SECONDS, RATE
from meterhouse.identity import Principal
from meterhouse.ids import parse_request_id, public_request_id
from meterhouse.keys.throttle import KeyThrottle
from meterhouse.usage import Outcome

DAY_MS = 86_400_000
MS = 1_000
NO_NUL = r"^[^\x00]*$"
"""PostgreSQL has no text with it."""


class ReceiptFilter(BaseModel):
    """Which requests."""

    model_config = ConfigDict(extra="forbid")

    day: date | None = Field(None, description="A day of UTC: 2026-11-28; unset: the last 31 days")
    model: str | None = Field(None, max_length=256, pattern=NO_NUL, description="As the receipt names it")
    outcome: Outcome | None = Field(None, description="Of the last attempt")
    after: str | None = Field(None, max_length=64, description="The `last_id` of the page before")
    limit: int = Field(20, ge=1, le=100)


def build_receipts_router(parts: AccountParts) -> APIRouter:
    """Make the route."""
    router = APIRouter(prefix="/v1", tags=["account"])
    throttle = KeyThrottle(RATE, parts.clock, "lists of receipts")
    turn = asyncio.Semaphore(AT_ONCE)

    @router.get(
        "/receipts",
        summary="What this key asked, the newest first",
        description="A page looks at 10,000 records: one with a filter may hold few or none and still have `has_more`.",
    )
    async def list_receipts(principal: MayReadUsage, wanted: Annotated[ReceiptFilter, Query()]) -> Listing[Receipt]:
        throttle.admit(principal.root_key_id)
        after = None if wanted.after is None else parse_request_id(wanted.after)
        if after is None and wanted.after is not None:
            raise Malformed("'after' is the 'last_id' of the page before.", param="after")
        query = _read_filter(principal, wanted, parts.clock.now_ms())
        async with turn:
            page = await parts.receipts.list_receipts(query, after, wanted.limit)
        return _listing(page)

    return router


def _read_filter(principal: Principal, wanted: ReceiptFilter, now_ms: int) -> ReceiptQuery:
    if wanted.day is None:
        to_ms = now_ms + DAY_MS  # the clock of another host may be ahead
        from_ms = now_ms - MOST_SECONDS * MS
    else:
        from_ms = int(datetime(wanted.day.year, wanted.day.month, wanted.day.day, tzinfo=UTC).timestamp()) * MS
        to_ms = from_ms + DAY_MS
    return ReceiptQuery(
        root_key_id=principal.root_key_id,
        key_id=principal.key_id,
        from_ms=from_ms,
        to_ms=to_ms,
        model=wanted.model,
        outcome=wanted.outcome,
    )


def _listing(page: ReceiptPage) -> Listing[Receipt]:
    data = [show_receipt(records) for records in page.requests]
    last_id = data[-1].id if data else None
    return Listing(
        data=data,
        first_id=data[0].id if data else None,
        last_id=last_id if page.next_after is None else public_request_id(page.next_after),
        has_more=page.next_after is not None,
    )
