"""Sends usage as CloudEvents to an endpoint such as OpenMeter's: every sealed row, at least once, in their order.

CloudEvents 1.0, JSON in batches; ``id`` is the request's and its attempt's, by which a receiver knows what it has had;
``subject`` is the organization. A cursor for each organization's chain says how far it is, and moves only after the
receiver took a batch; so a receiver that is away, or a process that dies, costs time and nothing else. Not here: what
is sealed (``db.seals``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from meterhouse.billing.delivery import Posts
from meterhouse.billing.outbound import Undelivered
from meterhouse.db.seals import SealStore, StoredSeal
from meterhouse.db.turns import TurnStore
from meterhouse.money import format_usd
from meterhouse.telemetry.logs import Event, get_logger

SINK = "cloudevents"
BATCH_ROWS = 100
MOST_BATCHES = 500
"""In one step, so that a turn is not overdrawn; the next goes on."""
MOST_REFUSALS = 5
"""Organizations in a row of which nothing was taken, before the receiver is given time."""
TIMEOUT_SECONDS = 10.0
CONTENT_TYPE = "application/cloudevents-batch+json"
TYPES = {"usage": "meterhouse.usage", "adjustment": "meterhouse.adjustment"}
_NOT_SENT = frozenset({"organization_id", "request_id", "deployment", "trace_id", "is_suspect", "overrun_nanos"})


@dataclass(frozen=True, slots=True)
class Sink:
    """Where events go."""

    url: str
    token: str | None = field(default=None, repr=False)
    source: str = "meterhouse"


class EventExport:
    """Sends what was sealed since the last time. One process at a time does; two would only send things twice."""

    def __init__(self, seals: SealStore, turns: TurnStore, posts: Posts, sink: Sink) -> None:
        self._seals = seals
        self._turns = turns
        self._posts = posts
        self._sink = sink
        self._begin_after = ""
        """The organization that the last step gave up at."""

    async def step(self) -> int:
        """Send until all is sent, or the receiver takes no more; returns how many rows it took. Raises StoreDown.

        What it refuses of one organization keeps back nothing of the others. Where a step gives up, the next goes on.
        """
        sent, refusals = 0, 0
        positions = await self._turns.read_positions(SINK)
        heads = await self._seals.list_heads()
        behind = sorted(name for name, head in heads.items() if positions.get(name, 0) < head)
        for organization_id in sorted(behind, key=lambda name: name <= self._begin_after):
            try:
                sent += await self._send_all(organization_id, positions.get(organization_id, 0))
                refusals = 0
            except Undelivered as failure:
                get_logger().warning(Event.EXPORT_FAILED, organization_id=organization_id, detail=f"{SINK}: {failure}")
                refusals += 1
                if refusals == MOST_REFUSALS:
                    self._begin_after = organization_id
                    return sent
        self._begin_after = ""
        return sent

    async def _send_all(self, organization_id: str, position: int) -> int:
        sent = 0
        for _ in range(MOST_BATCHES):
            page = await self._seals.read(organization_id, position + 1, BATCH_ROWS)
            if not page:
                break
            events = [event_of(stored, self._sink.source) for stored in page if stored.row is not None]
            if events:
                await self._post(events)
            position = page[-1].sequence
            await self._turns.put_position(SINK, organization_id, position)
            sent += len(events)
        return sent

    async def _post(self, events: list[dict[str, Any]]) -> None:
        headers = {"content-type": CONTENT_TYPE}
        if self._sink.token is not None:
            headers["authorization"] = f"Bearer {self._sink.token}"
        await self._posts.post(self._sink.url, msgspec.json.encode(events), headers, TIMEOUT_SECONDS)


def event_of(stored: StoredSeal, source: str) -> dict[str, Any]:
    """Return a sealed row as an event."""
    row: Mapping[str, Any] = stored.row or {}
    is_usage = stored.kind == "usage"
    at_ms = int(row["admitted_at_ms"] if is_usage else row["created_at_ms"])
    nanos = int(row["charge_nanos"] if is_usage else row["nanos"])
    data = {name: value for name, value in row.items() if name not in _NOT_SENT}
    return {
        "specversion": "1.0",
        "id": f"{stored.request_id}-{stored.attempt}" if is_usage else str(stored.adjustment_id),
        "source": source,
        "type": TYPES[stored.kind],
        "subject": stored.organization_id,
        "time": datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": {**data, "usd": format_usd(nanos), "sequence": stored.sequence},
    }
