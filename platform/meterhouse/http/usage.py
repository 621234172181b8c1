"""``GET /v1/usage``: what a tenant's own key used, by model and over time.

It reads whole hours of the projection alone, at most a month of them, and few at once, so that no tenant makes it
expensive for the others. Not here: the sums (``admin.breakdown``, ``admin.series``), limits and receipts
(``http.account``).
"""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from meterhouse.admin.breakdown import Breakdown, BreakdownParams, read_breakdown
from meterhouse.admin.series import Series, SeriesParams, read_series
from meterhouse.admin.usage import UsageParts
from meterhouse.errors import Malformed
from meterhouse.http.account import MayReadUsage
from meterhouse.keys.client_tokens import key_id_of
from meterhouse.keys.throttle import KeyThrottle

HOUR_SECONDS = 3_600
MOST_SECONDS = 31 * 24 * HOUR_SECONDS
DEFAULT_SECONDS = 7 * 24 * HOUR_SECONDS
RATE = "60/minute"
"""Of each key, at each worker."""
AT_ONCE = 2
"""At a worker: reports and the requests of everybody share the connections to the database."""


class UsageParams(BaseModel):
    """Which span."""

    model_config = ConfigDict(extra="forbid")

    start_time: int | None = Field(None, description="Unix seconds, taken down to a whole hour; unset: a week ago")
    bucket_width: Literal["1h", "1d"] = "1h"


class KeyUsage(BaseModel):
    """What the key used from then until now, its client tokens included."""

    object: Literal["usage"] = "usage"
    breakdown: Breakdown = Field(description="By model, the one with the most money first")
    series: Series


def build_usage_router(parts: UsageParts) -> APIRouter:
    """Make the route."""
    router = APIRouter(prefix="/v1", tags=["account"])
    throttle = KeyThrottle(RATE, parts.clock, "reports")
    turn = asyncio.Semaphore(AT_ONCE)

    @router.get("/usage", summary="What this key used, by model and over time")
    async def get_usage(principal: MayReadUsage, params: Annotated[UsageParams, Query()]) -> KeyUsage:
        throttle.admit(key_id_of(principal.root_key_id))
        now = parts.clock.now_ms() // 1000
        start = now - DEFAULT_SECONDS if params.start_time is None else params.start_time
        start -= start % HOUR_SECONDS
        if not now - MOST_SECONDS - HOUR_SECONDS <= start <= now:
            raise Malformed("'start_time' lies in the last 31 days, in Unix seconds.", param="start_time")
        own = {"start_time": start, "project_ids": [principal.project_id], "key_ids": [principal.key_id]}
        added_up = BreakdownParams.model_validate({**own, "by": "model"})
        plotted = SeriesParams.model_validate({**own, "bucket_width": params.bucket_width})
        async with turn:
            return KeyUsage(
                breakdown=await read_breakdown(parts, added_up, principal.organization_id),
                series=await read_series(parts, plotted, principal.organization_id),
            )

    return router
