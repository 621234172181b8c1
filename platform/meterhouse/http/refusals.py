"""Counts requests that a limit, a mistake or an overload turned away before they had a record in the ledger.

Invariant: a refusal costs the request one addition and is written once; what waits to be written is bounded, and what
has no room is dropped. Not here: the limits' own metrics (``telemetry.metrics``).
"""

import asyncio
from collections.abc import Mapping

from meterhouse.db.refusals import RefusalStore, Refused
from meterhouse.errors import GatewayError
from meterhouse.identity import Principal
from meterhouse.keys.client_tokens import key_id_of
from meterhouse.metering import Clock
from meterhouse.providers.routes import Routes

FLUSH_SECONDS = 1.0
MOST_WAITING = 10_000
"""Different ones that wait to be written; a new one beyond these is dropped."""
HOUR_MS = 3_600_000


class Refusals:
    """What this process refused since it wrote it down last."""

    def __init__(self, store: RefusalStore, routes: Routes, clock: Clock) -> None:
        self._store = store
        self._routes = routes
        self._clock = clock
        self._counts: dict[Refused, int] = {}
        self._writing: asyncio.Task[None] | None = None

    def note(self, principal: Principal, model: str, error: GatewayError) -> None:
        """Count a request."""
        now_ms = self._clock.now_ms()
        is_crash = type(error) is GatewayError
        # What crashed may be the routes themselves.
        is_listed = not is_crash and self._routes.find_model(model) is not None
        place = Refused(
            principal.organization_id,
            now_ms - now_ms % HOUR_MS,
            principal.project_id,
            key_id_of(principal.key_id),
            model if is_listed else "",
            error.owner,
            error.code or "",
        )
        self._add(place, 1)

    async def flush(self) -> None:
        """Write what was counted.

        A write is never cut short, for then nobody would know whether it counts: who is cancelled while it runs leaves
        it to the next to wait for.

        Raises:
            StoreDown: There is no database; what was counted is tried again the next time.
        """
        if self._writing is not None:
            await asyncio.shield(self._writing)
        if self._counts:
            counts, self._counts = self._counts, {}
            self._writing = asyncio.ensure_future(self._write(counts))
            await asyncio.shield(self._writing)

    async def _write(self, counts: Mapping[Refused, int]) -> None:
        try:
            await self._store.add(counts)
        except BaseException:
            for place, requests in counts.items():
                self._add(place, requests)
            raise
        finally:
            self._writing = None

    def _add(self, place: Refused, requests: int) -> None:
        known = self._counts.get(place)
        if known is not None or len(self._counts) < MOST_WAITING:
            self._counts[place] = (known or 0) + requests
