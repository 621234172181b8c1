"""What a tenant's own key can look at: its models, its limits, and the receipts of its requests."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from meterhouse.db.ledger import LedgerStore
from meterhouse.db.receipts import ReceiptStore
from meterhouse.errors import NotFound, UnknownModel
from meterhouse.http.client_origin import check_origin
from meterhouse.http.exchange import exchange_of
from meterhouse.http.middleware import credential_of
from meterhouse.http.naming import LimitNames
from meterhouse.identity import KeyScope, Principal
from meterhouse.ids import parse_request_id, public_request_id, request_id_time_ms
from meterhouse.keys.keyring import Keyring
from meterhouse.ledger.checkpointer import Checkpointer
from meterhouse.limits.limit import format_limit
from meterhouse.metering import Clock, LimitState, Meter
from meterhouse.money import format_usd
from meterhouse.providers.routes import ListedModel, Routes
from meterhouse.usage import UsageRecord

RECEIPT_GRACE_MS = 2_000
"""How long a request may be over and its records still be on their way to the database."""


def sign_in(scope: KeyScope) -> Callable[[Request], Awaitable[Principal]]:
    """Return the FastAPI dependency that resolves the key of a request and checks its scope."""

    async def verify(request: Request) -> Principal:
        exchange = exchange_of(request.scope)
        keyring: Keyring = request.app.state.keyring
        exchange.principal = await keyring.verify(credential_of(request.scope), exchange.address, scope)
        check_origin(exchange.principal, request.headers.get("origin"))
        return exchange.principal

    return verify


SignedIn = Annotated[Principal, Depends(sign_in(KeyScope.INFERENCE))]
MayReadUsage = Annotated[Principal, Depends(sign_in(KeyScope.USAGE))]


class ModelObject(BaseModel):
    """A model, as OpenAI lists it (wire.md 1.7)."""

    id: str
    object: str = "model"
    created: int
    owned_by: str
    shutdown_date: str | None = None
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None


class ModelList(BaseModel):
    """All models that the key may use."""

    object: str = "list"
    data: list[ModelObject]


class LimitTerms(BaseModel):
    """What a limit binds, and to how much. Amounts of ``spend`` are nanos of USD."""

    limit: str = Field(description="As it was written: `requests 600/minute`")
    scope: str
    scope_id: str
    kind: str
    window: str
    model: str | None
    amount: int


class LimitObject(LimitTerms):
    """One limit and where it stands; ``usd`` says amounts of ``spend`` in dollars."""

    object: str = "limit"
    spent: int
    reserved: int
    free: int
    usd: dict[str, str] | None = None
    resets_at: int | None = Field(description="Unix seconds; null for a total and for `concurrent`")


class LimitList(BaseModel):
    """Everything that binds the key."""

    object: str = "list"
    data: list[LimitObject]


class ReceiptLine(BaseModel):
    """One attempt."""

    model_config = ConfigDict(protected_namespaces=())

    attempt: int
    provider: str
    served_model: str
    outcome: str
    exactness: str
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    charge_nanos: int
    charges: dict[str, int]
    price_id: str | None
    time_to_first_token_ms: int | None
    duration_ms: int


class Receipt(BaseModel):
    """What one request used and cost."""

    id: str
    object: str = "receipt"
    model: str
    operation: str
    key_id: str
    project_id: str
    admitted_at: int = Field(description="Unix milliseconds")
    outcome: str = Field(description="Of the last attempt")
    charge_nanos: int
    charge_usd: str
    attempts: list[ReceiptLine]


@dataclass(frozen=True, slots=True)
class AccountParts:
    """Where these pages are read from."""

    routes: Routes
    meter: Meter
    ledger: LedgerStore
    receipts: ReceiptStore
    checkpointer: Checkpointer
    unshipped_age_ms: Callable[[], int]
    """How old the oldest record is that the database does not have yet."""
    clock: Clock


def build_account_router(parts: AccountParts) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/v1", tags=["account"])
    limit_names = LimitNames(parts.routes)

    @router.get("/models", summary="The models that this key may use")
    async def list_models(principal: SignedIn) -> ModelList:
        models = [_model(m) for m in parts.routes.list_models() if principal.may_use(m.name)]
        return ModelList(data=models)

    @router.get("/models/{model:path}", summary="One model")
    async def get_model(model: str, principal: SignedIn) -> ModelObject:
        listed = parts.routes.find_model(model)
        if listed is None:
            # A name that is not listed may be routable all the same (`provider/model`); if not, this says why.
            route = parts.routes.resolve(model, parts.clock.now_ms())
            served = route.deployments[0]
            listed = ListedModel(
                name=model,
                provider=served.provider.name,
                created_seconds=parts.clock.now_ms() // 1000,
                context_tokens=served.model.context_tokens,
                max_output_tokens=served.model.max_output_tokens or None,
            )
        if not principal.may_use(model, parts.routes.snapshot.listed_name(model)):
            raise UnknownModel(f"The model '{model}' does not exist, or this key may not use it.", param="model")
        return _model(listed)

    @router.get("/limits", summary="What binds this key, and where it stands")
    async def list_limits(principal: MayReadUsage) -> LimitList:
        states = await parts.meter.list_states(principal.organization_id, limit_names.translate(principal.limits))
        return LimitList(data=[show_limit(state) for state in states])

    @router.get("/receipts/{request_id}", summary="What one request used and cost")
    async def get_receipt(request_id: str, principal: MayReadUsage) -> Receipt:
        bare = parse_request_id(request_id)
        records = await parts.ledger.find_records(bare) if bare else []
        if bare is None or not records:
            raise _missing(parts, request_id, bare)
        if records[0].project_id != principal.project_id:
            raise _missing(parts, request_id, None)
        return show_receipt(records)

    return router


def _model(listed: ListedModel) -> ModelObject:
    return ModelObject(
        id=listed.name,
        created=listed.created_seconds,
        owned_by=listed.provider,
        shutdown_date=listed.shutdown.isoformat() if listed.shutdown is not None else None,
        max_input_tokens=listed.context_tokens,
        max_output_tokens=listed.max_output_tokens,
    )


def show_limit(state: LimitState) -> LimitObject:
    """Show a limit and where it stands."""
    limit = state.limit
    amounts = {"amount": limit.amount, "spent": state.spent, "reserved": state.reserved, "free": state.free}
    return LimitObject(
        limit=format_limit(limit),
        scope=limit.scope.value,
        scope_id=limit.scope_id,
        kind=limit.kind.value,
        window=limit.window.value,
        model=limit.model,
        amount=limit.amount,
        spent=state.spent,
        reserved=state.reserved,
        free=state.free,
        usd={name: format_usd(nanos) for name, nanos in amounts.items()} if limit.kind == "spend" else None,
        resets_at=None if state.resets_at_ms is None else -(-state.resets_at_ms // 1000),
    )


def _missing(parts: AccountParts, asked: str, bare: str | None) -> NotFound:
    """Say that there is no receipt, or none yet: the same to everybody, whose request it may be."""
    if bare is not None:
        age_ms = parts.clock.now_ms() - request_id_time_ms(bare)
        is_running = bare in parts.checkpointer.live
        if is_running or 0 <= age_ms <= RECEIPT_GRACE_MS + parts.unshipped_age_ms():
            return NotFound(
                "The receipt of this request is not written yet. Ask again in a second.",
                code="receipt_pending",
                param="request_id",
                retry_after_seconds=1,
            )
    return NotFound(f"There is no receipt '{asked[:64]}' in this project.", param="request_id")


def show_receipt(records: Sequence[UsageRecord]) -> Receipt:
    """Show what a request used and cost, from the records of its attempts."""
    last = records[-1]
    charge_nanos = sum(record.charge_nanos for record in records)
    return Receipt(
        id=public_request_id(last.request_id),
        model=last.model,
        operation=last.operation,
        key_id=last.key_id,
        project_id=last.project_id,
        admitted_at=last.admitted_at_ms,
        outcome=last.outcome.value,
        charge_nanos=charge_nanos,
        charge_usd=format_usd(charge_nanos),
        attempts=[_line(record) for record in records],
    )


def _line(record: UsageRecord) -> ReceiptLine:
    return ReceiptLine(
        attempt=record.attempt,
        provider=record.provider,
        served_model=record.served_model,
        outcome=record.outcome.value,
        exactness=record.exactness.value,
        input_tokens=record.usage.input_tokens,
        cached_input_tokens=record.usage.cached_input_tokens,
        output_tokens=record.usage.output_tokens,
        reasoning_tokens=record.usage.reasoning_tokens,
        charge_nanos=record.charge_nanos,
        charges=dict(record.charges),
        price_id=record.price_id,
        time_to_first_token_ms=record.time_to_first_token_ms,
        duration_ms=record.duration_ms,
    )
