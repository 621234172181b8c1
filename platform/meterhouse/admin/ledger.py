"""`/admin/ledger`: the ledger's records one by one, whole receipts with their seals, signed exports and their check.

An owner sees its own organization, an operator every one. Nothing here changes the ledger. Not here: sums
(``admin.usage``), and what a tenant's own key sees of a request (``http.account``).
"""

import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from meterhouse.admin.guard import SignedIn
from meterhouse.admin.pages import Text, listing
from meterhouse.admin.schemas import Listing, PriceObject
from meterhouse.db.keys import KeyStore
from meterhouse.db.ledger import LedgerStore
from meterhouse.db.paging import Page
from meterhouse.db.prices import PriceStore
from meterhouse.db.records import RecordPlace, RecordQuery, RecordStore
from meterhouse.db.seals import SealStore, StoredSeal
from meterhouse.errors import Malformed, NotFound
from meterhouse.identity import Actor
from meterhouse.ids import parse_request_id, public_request_id
from meterhouse.money import format_usd
from meterhouse.usage import UsageRecord

DAY_MS = 86_400_000
MS = 1_000
JSON_LINES = "application/jsonl"
_ID = r"^[A-Za-z0-9_-]+$"
"""It becomes a part of a file name in a header."""

Identifier = Annotated[Text | None, Field(default=None)]
Moment = Annotated[int | None, Field(default=None, ge=0, le=10**11, description="Unix seconds")]


@dataclass(frozen=True, slots=True)
class Verified:
    """What came of checking an export."""

    findings: Sequence[str]
    totals: Mapping[str, int]
    is_compared: bool
    """Whether it was also compared with the database."""


class LedgerExports(Protocol):
    """What writes and checks exports; composition has it."""

    def public_key(self) -> str:
        """Return the key with which this host's exports can be verified, as PEM."""
        ...

    def export(self, organization_id: str | None, from_ms: int | None, to_ms: int | None) -> AsyncIterator[bytes]:
        """Give the rows sealed from a moment until another, and the signature."""
        ...

    async def verify(self, file: Path, organization_id: str | None) -> Verified:
        """Check an export."""
        ...


class RecordFilter(BaseModel):
    """Which records."""

    model_config = ConfigDict(extra="forbid")

    organization_id: Identifier
    project_id: Identifier
    key_id: Identifier
    request_id: Identifier
    day: date | None = Field(None, description="A day of UTC: 2026-11-28")
    start_time: Moment
    end_time: Moment
    after: Identifier
    limit: int = Field(20, ge=1, le=100)


class RecordObject(BaseModel):
    """What one attempt used and cost, as it was recorded."""

    id: str = Field(description="The request and the attempt: `req_..._1`")
    object: str = "usage_record"
    request_id: str
    attempt: int
    requests: int = Field(description="1 on the last attempt of a request that reached a provider: the sum counts them")
    organization_id: str
    project_id: str
    key_id: str
    root_key_id: str
    model: str
    served_model: str
    provider: str
    deployment: str
    upstream_model: str
    operation: str
    service_tier: str
    outcome: str
    exactness: str
    error_owner: str
    error_code: str
    is_streamed: bool
    is_suspect: bool
    usage: dict[str, int]
    price_id: str | None
    charge_nanos: int
    charge_usd: str
    charges: dict[str, int] = Field(description="Nanos by component; they add up to the charge")
    overrun_nanos: int
    admitted_at_ms: int
    time_to_first_token_ms: int | None
    duration_ms: int
    trace_id: str

    @classmethod
    def of(cls, record: UsageRecord) -> "RecordObject":
        """Show a record."""
        return cls(**_fields_of(record))


class SealObject(BaseModel):
    """A record's place in its organization's chain."""

    sequence: int
    previous_hash: str
    hash: str
    sealed_at_ms: int

    @classmethod
    def of(cls, stored: StoredSeal) -> "SealObject":
        """Show a seal."""
        return cls(**{name: getattr(stored, name) for name in cls.model_fields})


class ReceiptAttempt(RecordObject):
    """An attempt with the price that it was charged by and its seal."""

    price: PriceObject | None = Field(description="Null where it had none, or was charged 0")
    seal: SealObject | None = Field(description="Null until it is sealed, which takes a few seconds")


class LedgerReceipt(BaseModel):
    """Everything about one request."""

    id: str
    object: str = "ledger.receipt"
    organization_id: str
    project_id: str
    model: str
    charge_nanos: int
    charge_usd: str
    attempts: list[ReceiptAttempt]


class VerificationObject(BaseModel):
    """What came of checking an export."""

    object: str = "ledger.verification"
    is_good: bool
    is_compared: bool = Field(description="With the database too: only what this host signed is")
    findings: list[str]
    totals: dict[str, int]


@dataclass(frozen=True, slots=True)
class LedgerParts:
    """Where these pages are read from."""

    records: RecordStore
    ledger: LedgerStore
    seals: SealStore
    keys: KeyStore
    prices: PriceStore
    exports: LedgerExports


def add_ledger(router: APIRouter, parts: LedgerParts) -> None:
    """Add the routes."""
    _add_records(router, parts)
    _add_exports(router, parts.exports)


def _add_records(router: APIRouter, parts: LedgerParts) -> None:
    @router.get("/ledger/records", summary="Records of the ledger, the newest first")
    async def list_records(author: SignedIn, wanted: Annotated[RecordFilter, Query()]) -> Listing[RecordObject]:
        query = await _read_filter(parts.keys, author.actor, wanted)
        after = None if wanted.after is None else _read_place(wanted.after)
        page: Page[UsageRecord] = await parts.records.list_records(query, after, wanted.limit)
        return listing(page, RecordObject.of)

    @router.get("/ledger/receipts/{request_id}", summary="One request: attempts, price, charge, exactness, seals")
    async def get_ledger_receipt(request_id: str, author: SignedIn) -> LedgerReceipt:
        bare = parse_request_id(request_id)
        records = await parts.ledger.find_records(bare) if bare else []
        if not records or not author.actor.may_see(records[0].organization_id):
            message = f"The ledger has no request '{request_id[:64]}'. A new one is there in about a second."
            raise NotFound(message, param="request_id")
        ids = {record.price_id for record in records}
        prices = {price.id: price for price in await parts.prices.list_prices() if price.id in ids}
        attempts = []
        for record in records:
            row = {"request_id": record.request_id, "attempt": record.attempt}
            seal = await parts.seals.find_place("usage", row)
            price = prices.get(record.price_id or "")
            shown: dict[str, Any] = {
                "price": None if price is None else PriceObject.of(price),
                "seal": None if seal is None else SealObject.of(seal),
            }
            attempts.append(ReceiptAttempt(**_fields_of(record), **shown))
        charge_nanos = sum(record.charge_nanos for record in records)
        last = records[-1]
        return LedgerReceipt(
            id=public_request_id(last.request_id),
            organization_id=last.organization_id,
            project_id=last.project_id,
            model=last.model,
            charge_nanos=charge_nanos,
            charge_usd=format_usd(charge_nanos),
            attempts=attempts,
        )


def _add_exports(router: APIRouter, exports: LedgerExports) -> None:
    @router.get("/ledger/public-key", summary="The key with which this host's exports can be verified")
    async def get_public_key() -> Response:
        return Response(exports.public_key(), media_type="application/x-pem-file")

    @router.get("/ledger/export", summary="Records and adjustments with their seals, signed, as JSON lines")
    async def export_ledger(
        author: SignedIn,
        organization_id: Annotated[str | None, Query(max_length=256, pattern=_ID)] = None,
        start_time: Annotated[int | None, Query(ge=0, le=10**11, description="Sealed from then on")] = None,
        end_time: Annotated[int | None, Query(ge=0, le=10**11, description="Sealed before")] = None,
    ) -> StreamingResponse:
        owner = _within(author.actor, organization_id)
        exports.public_key()  # a host that cannot sign says so before it begins
        rows = exports.export(owner, _ms(start_time), _ms(end_time))
        name = f"ledger-{owner or 'all'}.jsonl"
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(rows, media_type=JSON_LINES, headers=headers)

    @router.post("/ledger/verify", summary="Check an export, sent as the body")
    async def verify_export(request: Request, author: SignedIn) -> VerificationObject:
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
            async for piece in request.stream():
                file.write(piece)
            file.flush()
            if file.tell() == 0:
                raise Malformed("Send the export as the body: curl --data-binary @november.jsonl.")
            found = await exports.verify(Path(file.name), author.actor.organization_id)
        return VerificationObject(
            is_good=not found.findings,
            is_compared=found.is_compared,
            findings=list(found.findings),
            totals=dict(found.totals),
        )


async def _read_filter(keys: KeyStore, actor: Actor, wanted: RecordFilter) -> RecordQuery:
    owner = _within(actor, wanted.organization_id)
    from_ms, to_ms = _ms(wanted.start_time), _ms(wanted.end_time)
    if wanted.day is not None:
        if from_ms is not None or to_ms is not None:
            raise Malformed("Give either 'day', or 'start_time' and 'end_time'.", param="day")
        from_ms = int(datetime(wanted.day.year, wanted.day.month, wanted.day.day, tzinfo=UTC).timestamp()) * MS
        to_ms = from_ms + DAY_MS
    request_id = None
    if wanted.request_id is not None:
        request_id = parse_request_id(wanted.request_id)
        if request_id is None:
            raise Malformed("'request_id' is no id of a request: req_ and 32 characters.", param="request_id")
    root_key_id = None
    if wanted.key_id is not None:
        key = await keys.find_key(wanted.key_id)
        if key is None or not actor.may_see(key.organization_id):
            raise NotFound(f"There is no key '{wanted.key_id[:64]}'.", param="key_id")
        root_key_id = key.root_key_id
    return RecordQuery(
        organization_id=owner,
        project_id=wanted.project_id,
        key_id=wanted.key_id,
        root_key_id=root_key_id,
        request_id=request_id,
        from_ms=from_ms,
        to_ms=to_ms,
    )


def _read_place(text: str) -> RecordPlace:
    name, _, attempt = text.rpartition("_")
    request_id = parse_request_id(name)
    if request_id is None or not attempt.isdecimal() or len(attempt) > 6:  # noqa: PLR2004 - more than there ever are
        raise Malformed("'after' is the 'last_id' of the page before.", param="after")
    return RecordPlace(request_id, int(attempt))


def _within(actor: Actor, asked: str | None) -> str | None:
    """Return whose rows are meant; None for everybody's, which only an operator can mean."""
    if asked is not None and not actor.may_see(asked):
        raise NotFound("There is no such organization, or this credential is not bound to it.", param="organization_id")
    return actor.organization_id or asked


def _fields_of(record: UsageRecord) -> dict[str, Any]:
    fields = msgspec.structs.asdict(record)
    request_id = public_request_id(record.request_id)
    return {
        **fields,
        "id": f"{request_id}_{record.attempt}",
        "request_id": request_id,
        "outcome": record.outcome.value,
        "exactness": record.exactness.value,
        "usage": msgspec.structs.asdict(record.usage),
        "charges": dict(record.charges),
        "charge_usd": format_usd(record.charge_nanos),
    }


def _ms(seconds: int | None) -> int | None:
    return None if seconds is None else seconds * MS
