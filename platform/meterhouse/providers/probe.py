"""Asks a provider whether it is there and what it serves. Off the hot path; no answer is an answer too.

Invariant: a probe never raises for a provider's fault, ends within its timeout, and believes only names that are fit
to be routed and logged. Not here: what is done with the answer (a new snapshot, ``/health``).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import msgspec

from meterhouse.errors import UpstreamError
from meterhouse.metering import Clock
from meterhouse.providers.provider import ActiveProvider, ProviderStatus
from meterhouse.providers.refusal import redact
from meterhouse.providers.routes import is_model_name
from meterhouse.providers.upstream import Upstream
from meterhouse.telemetry.logs import Event, get_logger

TIMEOUT_SECONDS = 2.0
MAX_BODY_BYTES = 4_194_304
MAX_MODELS = 2_000

OK = 200
SERVER_ERRORS = 500
NOTHING_KNOWN: Mapping[str, ProviderStatus] = MappingProxyType({})


class _Named(msgspec.Struct):
    """A model in either shape: OpenAI's ``id``, Ollama's ``model`` or ``name``."""

    id: str = ""
    model: str = ""
    name: str = ""


class _Listing(msgspec.Struct):
    data: list[_Named] = []
    models: list[_Named] = []


_LISTINGS = msgspec.json.Decoder(_Listing | list[_Named])


class Probe:
    """Probes providers through the same client as everything else."""

    def __init__(self, upstream: Upstream, clock: Clock, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._upstream = upstream
        self._clock = clock
        self._timeout_seconds = timeout_seconds

    async def check(self, active: ActiveProvider, known: ProviderStatus | None = None) -> ProviderStatus:
        """Ask one provider; its list of models is asked for only where the row says that it can be believed.

        ``known`` is what was found the last time: where asking disturbs the server, a list that is known is kept.
        """
        row = active.provider
        if row.wire == "simulator":
            return self._status(active, is_reachable=True)
        asks_models = row.discovers_models and not (row.lists_models_once and _has_list(known, active))
        path = row.models_path if asks_models else row.health_path
        try:
            status, body = await self._upstream.fetch(
                active, path, timeout_seconds=self._timeout_seconds, limit_bytes=MAX_BODY_BYTES
            )
        except UpstreamError as error:
            return self._status(active, is_reachable=False, detail=f"{error.message} {error.detail}")
        if status in {401, 403}:
            refused = self._status(active, is_reachable=False, detail=f"status {status}: it refuses the credential")
            return replace(refused, refuses_credential=True)
        if status >= SERVER_ERRORS:
            return self._status(active, is_reachable=False, detail=f"status {status}")
        models = read_models(body) if status == OK and asks_models else ()
        return self._status(active, is_reachable=True, models=models)

    async def check_all(
        self, providers: Sequence[ActiveProvider], known: Mapping[str, ProviderStatus] = NOTHING_KNOWN
    ) -> list[ProviderStatus]:
        """Ask all at the same time, in their order; takes as long as the slowest, at most the timeout.

        One whose probe fails for a fault of ours is logged and left out: it says nothing about the others.
        """
        checks = [self.check(active, known.get(active.name)) for active in providers]
        found = await asyncio.gather(*checks, return_exceptions=True)
        statuses = []
        for active, status in zip(providers, found, strict=True):
            if isinstance(status, ProviderStatus):
                statuses.append(status)
            else:
                get_logger().error(Event.TASK_FAILED, provider=active.name, exc_info=status)
        return statuses

    def _status(
        self, active: ActiveProvider, *, is_reachable: bool, models: tuple[str, ...] = (), detail: str = ""
    ) -> ProviderStatus:
        return ProviderStatus(
            name=active.name,
            base_url=active.base_url,
            is_reachable=is_reachable,
            checked_at_ms=self._clock.now_ms(),
            models=models,
            detail=redact(detail, active),
        )


def _has_list(known: ProviderStatus | None, active: ActiveProvider) -> bool:
    """Whether the list is known from this very server, which has not been away since: then it is the same one."""
    return known is not None and known.is_reachable and bool(known.models) and known.base_url == active.base_url


def read_models(body: bytes) -> tuple[str, ...]:
    """Return the names in a list of models, OpenAI's or Ollama's; () when it is neither."""
    try:
        listing = _LISTINGS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    lines = listing if isinstance(listing, list) else listing.data or listing.models
    names = (line.id or line.model or line.name for line in lines[:MAX_MODELS])
    return tuple(dict.fromkeys(name for name in names if is_model_name(name)))
