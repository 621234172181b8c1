"""`/v1/organization/usage/...` and `/v1/organization/costs`: what was used and what it costs, by time (wire.md 1.12).

One organization at a time, whoever asks. Not here: the figures (``admin.report``), and buckets and pages
(``admin.span``).
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from meterhouse.admin.guard import Mandate, Mandated
from meterhouse.admin.pages import MOST_WORDS, Text
from meterhouse.admin.report import IMAGE_SOURCE, Wanted, report_completions, report_costs, report_plain
from meterhouse.admin.span import Span, SpanRequest, Width, read_span
from meterhouse.db.reports import ReportStore
from meterhouse.errors import Malformed
from meterhouse.metering import Clock

JSON = "application/json"
MOST_COST_BUCKETS = 180
COST_BUCKETS = 7

Names = Annotated[list[Text], Field(default=[], max_length=MOST_WORDS)]
Seconds = Annotated[int, Field(description="Unix seconds")]
Count = Annotated[int | None, Field(default=None)]
Label = Annotated[str | None, Field(default=None, description="Null unless it was grouped by")]


class _Params(BaseModel):
    """What every report can be asked."""

    model_config = ConfigDict(extra="forbid")

    start_time: Seconds
    end_time: Seconds | None = None
    limit: int | None = Field(None, description="Most buckets of an answer")
    page: str | None = Field(None, max_length=64, description="`next_page` of the answer before")
    project_ids: Names
    api_key_ids: Names

    def span(self, width: Width, now_ms: int, most: int | None = None, default: int | None = None) -> Span:
        """Return the page that is asked for; raises Malformed."""
        request = SpanRequest(
            start_time=self.start_time, end_time=self.end_time, width=width, limit=self.limit, page=self.page
        )
        return read_span(request, now_ms // 1000, most, default)


class PlainUsageParams(_Params):
    """What embeddings, moderations and sound can be asked."""

    bucket_width: Width = "1d"
    user_ids: Names
    models: Names
    group_by: list[Literal["project_id", "user_id", "api_key_id", "model"]] = Field(default=[], max_length=MOST_WORDS)


class ImagesUsageParams(_Params):
    """What images can be asked."""

    bucket_width: Width = "1d"
    user_ids: Names
    models: Names
    sizes: Names
    sources: list[Literal["image.generation", "image.edit", "image.variation"]] = Field(
        default=[], max_length=MOST_WORDS, description="Here images are generated only"
    )
    group_by: list[Literal["project_id", "user_id", "api_key_id", "model", "size", "source"]] = Field(
        default=[], max_length=MOST_WORDS
    )


class CompletionsUsageParams(_Params):
    """What completions can be asked."""

    bucket_width: Width = "1d"
    user_ids: Names
    models: Names
    batch: bool | None = Field(None, description="There are no batches here")
    group_by: list[Literal["project_id", "user_id", "api_key_id", "model", "batch", "service_tier", "api_source"]] = (
        Field(default=[], max_length=MOST_WORDS)
    )


class CostsParams(_Params):
    """What costs can be asked."""

    bucket_width: Literal["1d"] = "1d"
    line_items: Names
    group_by: list[Literal["project_id", "user_id", "line_item", "api_key_id", "api_source"]] = Field(
        default=[], max_length=MOST_WORDS
    )


class CompletionsUsageResult(BaseModel):
    """What was generated in a bucket, by one group."""

    object: Literal["organization.usage.completions.result"]
    input_tokens: int
    output_tokens: int
    num_model_requests: int
    input_cached_tokens: int
    input_cache_write_tokens: int
    input_uncached_tokens: int
    input_text_tokens: int
    output_text_tokens: int
    input_audio_tokens: int
    output_audio_tokens: int
    project_id: Label
    user_id: Label
    api_key_id: Label
    model: Label
    batch: bool | None = None
    service_tier: Label
    api_source: Label


class _PlainResult(BaseModel):
    """What the results of several reports have."""

    num_model_requests: int
    project_id: Label
    user_id: Label
    api_key_id: Label
    model: Label


class EmbeddingsUsageResult(_PlainResult):
    """What was embedded in a bucket, by one group."""

    object: Literal["organization.usage.embeddings.result"]
    input_tokens: int


class ModerationsUsageResult(_PlainResult):
    """What was moderated in a bucket, by one group."""

    object: Literal["organization.usage.moderations.result"]
    input_tokens: int


class ImagesUsageResult(_PlainResult):
    """What was drawn in a bucket, by one group."""

    object: Literal["organization.usage.images.result"]
    images: int = Field(description="One for each answered request: the ledger does not know `n`")
    size: str | None = Field(None, description="Always null: the ledger does not know it")
    source: Label


class AudioSpeechesUsageResult(_PlainResult):
    """What was said in a bucket, by one group."""

    object: Literal["organization.usage.audio_speeches.result"]
    characters: int | None = Field(None, description="Always null: the ledger does not know it")


class AudioTranscriptionsUsageResult(_PlainResult):
    """What was heard in a bucket, translations included, by one group."""

    object: Literal["organization.usage.audio_transcriptions.result"]
    seconds: int | None = Field(None, description="Always null: the ledger does not know it")


class CostAmount(BaseModel):
    """An amount of money, to the last digit."""

    value: float
    currency: Literal["usd"]


class CostsResult(BaseModel):
    """What a bucket costs, by one group."""

    object: Literal["organization.costs.result"]
    amount: CostAmount
    quantity: Count
    quantity_unit: Label
    project_id: Label
    user_id: Label
    line_item: str | None = Field(None, description="A model and what of it: `gpt-5.5, input_tokens`; or `adjustment`")
    api_key_id: Label
    api_source: Label


class ReportBucket(BaseModel):
    """A minute, an hour or a day of UTC."""

    object: Literal["bucket"]
    start_time: Seconds
    end_time: Seconds
    results: list[
        CompletionsUsageResult
        | EmbeddingsUsageResult
        | ModerationsUsageResult
        | ImagesUsageResult
        | AudioSpeechesUsageResult
        | AudioTranscriptionsUsageResult
        | CostsResult
    ]


class ReportPage(BaseModel):
    """Buckets in the order of time."""

    object: Literal["page"]
    data: list[ReportBucket]
    has_more: bool
    next_page: str | None = None


@dataclass(frozen=True, slots=True)
class UsageParts:
    """Where these pages are read from."""

    reports: ReportStore
    clock: Clock


def add_usage(router: APIRouter, parts: UsageParts) -> None:
    """Add the routes."""
    # Only described: an answer is written as it is, with every digit of an amount.
    shape: dict[str, Any] = {"response_model": ReportPage}

    async def report_one(
        name: str, mandate: Mandate, params: PlainUsageParams | ImagesUsageParams, *, is_nothing: bool = False
    ) -> Response:
        span = params.span(params.bucket_width, parts.clock.now_ms())
        is_empty = is_nothing or bool(params.user_ids)
        wanted = _wanted(mandate, params, span, models=params.models, is_nothing=is_empty)
        return _answer(await report_plain(parts.reports, wanted, name))

    @router.get("/usage/completions", summary="Tokens and requests of everything that generates", **shape)
    async def list_completions_usage(mandate: Mandated, params: Annotated[CompletionsUsageParams, Query()]) -> Response:
        is_nothing = bool(params.user_ids) or params.batch is True
        span = params.span(params.bucket_width, parts.clock.now_ms())
        wanted = _wanted(mandate, params, span, models=params.models, is_nothing=is_nothing)
        return _answer(await report_completions(parts.reports, wanted))

    @router.get("/usage/embeddings", summary="Tokens and requests of embeddings", **shape)
    async def list_embeddings_usage(mandate: Mandated, params: Annotated[PlainUsageParams, Query()]) -> Response:
        return await report_one("embeddings", mandate, params)

    @router.get("/usage/moderations", summary="Tokens and requests of moderations", **shape)
    async def list_moderations_usage(mandate: Mandated, params: Annotated[PlainUsageParams, Query()]) -> Response:
        return await report_one("moderations", mandate, params)

    @router.get("/usage/images", summary="Requests for images, and how many were answered", **shape)
    async def list_images_usage(mandate: Mandated, params: Annotated[ImagesUsageParams, Query()]) -> Response:
        if params.sizes:
            text = "The ledger does not know the sizes of images. Leave 'sizes' out."
            raise Malformed(text, param="sizes", code="unsupported_parameter")
        is_nothing = bool(params.sources) and IMAGE_SOURCE not in params.sources
        return await report_one("images", mandate, params, is_nothing=is_nothing)

    @router.get("/usage/audio_speeches", summary="Requests for speech", **shape)
    async def list_speeches_usage(mandate: Mandated, params: Annotated[PlainUsageParams, Query()]) -> Response:
        return await report_one("audio_speeches", mandate, params)

    @router.get("/usage/audio_transcriptions", summary="Requests for transcriptions and translations", **shape)
    async def list_transcriptions_usage(mandate: Mandated, params: Annotated[PlainUsageParams, Query()]) -> Response:
        return await report_one("audio_transcriptions", mandate, params)

    @router.get("/costs", summary="Charges, with credits and later charges", **shape)
    async def list_costs(mandate: Mandated, params: Annotated[CostsParams, Query()]) -> Response:
        span = params.span("1d", parts.clock.now_ms(), MOST_COST_BUCKETS, COST_BUCKETS)
        wanted = _wanted(mandate, params, span, line_items=params.line_items)
        return _answer(await report_costs(parts.reports, wanted))


def _wanted(
    mandate: Mandate,
    params: CompletionsUsageParams | PlainUsageParams | ImagesUsageParams | CostsParams,
    span: Span,
    **more: Any,
) -> Wanted:
    return Wanted(
        span=span,
        organization_id=mandate.organization_id,
        group_by=tuple(dict.fromkeys(params.group_by)),
        project_ids=params.project_ids,
        api_key_ids=params.api_key_ids,
        **more,
    )


def _answer(body: bytes) -> Response:
    return Response(body, media_type=JSON)
