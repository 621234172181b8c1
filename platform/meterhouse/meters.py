"""The meter of a process: in memory where there is one process, on Redis where there are several.

``open_meter`` builds it with what it needs to know the truth (the ledger, the other workers) and to go on without
Redis (the allowance beside the journals). Not here: what the requests do with it.
"""

import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from meterhouse.db.balances import LedgerBalances
from meterhouse.db.engine import close
from meterhouse.db.ledger import Adjustment
from meterhouse.db.reviews import ReviewStore
from meterhouse.db.workers import WorkerStore
from meterhouse.errors import MeterDown, StoreDown
from meterhouse.fleet import Fleet, Member, Rhythm
from meterhouse.limits.allowance import AllowanceFile
from meterhouse.limits.layout import encode_adjust, keys_of
from meterhouse.limits.learning import Learner
from meterhouse.limits.link import CommandRefused, LinkDown, LinkPolicy, RedisLink
from meterhouse.limits.memory import MemoryMeter
from meterhouse.limits.outage import OutageMeter
from meterhouse.limits.redis import RedisMeter
from meterhouse.limits.scripts import load_scripts
from meterhouse.metering import Correction, Meter
from meterhouse.notices import Notices
from meterhouse.records import Records
from meterhouse.settings import Settings, SettingsError
from meterhouse.stores import Stores, open_patient_engine
from meterhouse.telemetry.logs import Event, get_logger
from meterhouse.telemetry.metrics import Metrics, Watched

ALLOWANCE_FILE = "outage-allowance"
FOLLOW_SECONDS = 5.0
RECONCILER_KEY = "mh:reconciler"
"""Held by the worker whose turn it is: one compares for all."""
CONNECT_SECONDS = 0.5
"""Longest wait for a connection of a command, which has time."""


@dataclass(frozen=True, slots=True)
class MeterParts:
    """A meter and the loops that keep it true."""

    meter: Meter
    beats: tuple[tuple[float, Callable[[], Awaitable[object]]], ...]
    """What is to be done again and again: how often, in seconds, and what."""
    runs: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = ()
    """What goes on for ever."""
    is_away: Callable[[], bool] = lambda: False
    """Whether Redis cannot be asked now."""


@asynccontextmanager
async def open_meter(
    settings: Settings, stores: Stores, records: Records, metrics: Metrics
) -> AsyncIterator[MeterParts]:
    """Open the meter that the settings ask for, and close it again.

    Raises:
        SettingsError: The address of Redis cannot be used.
    """
    async with AsyncExitStack() as stack:
        if settings.redis_url is None:
            yield _open_memory(settings, stores, records, stack)
        else:
            yield await _open_redis(settings, stores, records, (metrics, stack))


def _open_memory(settings: Settings, stores: Stores, records: Records, stack: AsyncExitStack) -> MeterParts:
    meter = MemoryMeter(
        stores.clock,
        records.balance.sums,
        lease_ms=int(settings.lease_seconds * 1000),
        lease_now_ms=lambda: time.monotonic_ns() // 1_000_000,
    )
    stack.push_async_callback(meter.close)

    async def sweep() -> None:
        meter.sweep()

    follower = Follower(ReviewStore(stores.engine), meter)
    return MeterParts(meter, ((settings.sweep_seconds, sweep), (FOLLOW_SECONDS, follower.follow)))


class Follower:
    """Tells a meter in memory of the adjustments that another process made, such as the command line."""

    def __init__(self, reviews: ReviewStore, meter: MemoryMeter) -> None:
        self._reviews = reviews
        self._meter = meter
        self._last: Adjustment | None = None

    async def follow(self) -> None:
        """Look for adjustments since the last time; telling of one twice changes nothing. Raises StoreDown."""
        while page := await self._reviews.list_adjustments(None, self._last):
            for entry in page:
                await self._meter.adjust(
                    Correction(
                        organization_id=entry.organization_id,
                        project_id=entry.project_id,
                        root_key_id=entry.root_key_id,
                        at_ms=entry.period_start_ms,
                        nanos=entry.nanos,
                        tokens=entry.tokens,
                        id=entry.id,
                    )
                )
            self._last = page[-1]


async def _open_redis(
    settings: Settings, stores: Stores, records: Records, more: tuple[Metrics, AsyncExitStack]
) -> MeterParts:
    metrics, stack = more
    notices = stores.notices
    assert notices is not None
    link = _link(settings, LinkPolicy(settings.redis_timeout_seconds, settings.redis_timeout_seconds))
    journal = records.journal

    async def register(organization_id: str) -> None:
        await meter.register(organization_id)

    def list_cut_off() -> set[str]:
        return meter.list_cut_off()

    member = Member(
        worker_id=journal.journal_id,
        host=socket.gethostname(),
        journal_id=journal.journal_id,
        ship=records.ship_all,
        register=register,
        count_unshipped=lambda: records.shipper.lag.unshipped_records,
        list_cut_off=list_cut_off,
    )
    rhythm = Rhythm(settings.heartbeat_seconds, settings.lease_seconds)
    fleet = Fleet(WorkerStore(stores.engine), notices, link, member, rhythm)
    sums_engine = open_patient_engine(settings)
    stack.push_async_callback(close, sums_engine)
    learner = Learner(link, load_scripts(), fleet, LedgerBalances(sums_engine), lease_seconds=settings.lease_seconds)
    lease_ms = int(settings.lease_seconds * 1000)
    allowance = AllowanceFile(settings.data / ALLOWANCE_FILE, clock=stores.clock, log=get_logger())
    outage = _build_outage(settings, stores, allowance, fleet)
    meter: RedisMeter = RedisMeter(
        link,
        learner,
        outage,
        stores.clock,
        lease_ms=lease_ms,
        silence_ms=lease_ms * 3 // 5,
        may_reap=fleet.may_reap,
    )
    link.on_down.append(fleet.beat_soon)

    async def welcome(organization_id: str) -> None:
        with suppress(MeterDown):  # it will be recovered when it is met
            await meter.create(organization_id)

    turn_ms = round(settings.reconcile_seconds * 900)

    async def reconcile() -> None:
        with suppress(LinkDown, CommandRefused):  # then nothing can be compared either
            if await link.command("SET", RECONCILER_KEY, journal.journal_id, "NX", "PX", turn_ms) is not None:
                await meter.reconcile()

    stores.service.on_organization.append(welcome)
    records.on_drained.append(fleet.close)
    for closing in (allowance.close, link.close, learner.close, meter.close):
        stack.push_async_callback(closing)
    await link.open()
    try:
        await fleet.open()
    except StoreDown as error:
        get_logger().warning(Event.STORE_FAILED, detail=error.detail)
    _watch(metrics, link, learner, (meter, notices))
    return MeterParts(
        meter,
        ((settings.sweep_seconds, meter.sweep), (settings.reconcile_seconds, reconcile)),
        (notices.run, fleet.run),
        lambda: not link.is_up,
    )


def _build_outage(settings: Settings, stores: Stores, allowance: AllowanceFile, fleet: Fleet) -> OutageMeter:
    return OutageMeter(
        allowance,
        stores.clock,
        percent=settings.outage_percent,
        hosts=settings.hosts,
        live_workers=lambda: fleet.live_workers,
        lease_ms=int(settings.lease_seconds * 1000),
    )


def _watch(metrics: Metrics, link: RedisLink, learner: Learner, more: tuple[RedisMeter, Notices]) -> None:
    meter, notices = more
    metrics.watch(Watched.DEGRADED, lambda: int(not link.is_up), label="meter")
    metrics.watch(Watched.METER_WAITING, lambda: meter.settlements.waiting)
    metrics.watch(Watched.METER_GIVEN_UP, lambda: meter.settlements.given_up)
    metrics.watch(Watched.DEGRADED, lambda: int(not notices.is_connected), label="notices")
    metrics.watch(Watched.METER_FAILURES, lambda: link.figures.failures)
    metrics.watch(Watched.METER_OUTAGES, lambda: link.figures.downs)
    metrics.watch(Watched.COUNTER_DRIFT, lambda: learner.figures.counter_drift_total)
    metrics.watch(Watched.RAISED_NANOS, lambda: learner.figures.raised_nanos)
    metrics.watch(Watched.LOWERED_NANOS, lambda: learner.figures.lowered_nanos)


def _link(settings: Settings, policy: LinkPolicy) -> RedisLink:
    assert settings.redis_url is not None
    try:
        return RedisLink(settings.redis_url.get_secret_value(), policy, get_logger())
    except ValueError as error:
        raise SettingsError(f"METERHOUSE_REDIS_URL: {error}.") from None


async def apply_correction(settings: Settings, correction: Correction) -> bool:
    """Move the meter on Redis by a correction that is in the ledger; False where reconciling has to do it, later."""
    if settings.redis_url is None:
        return False
    link = _link(settings, LinkPolicy(CONNECT_SECONDS, CONNECT_SECONDS))
    try:
        await link.open()
        await link.call(load_scripts().adjust, keys_of(correction.organization_id), encode_adjust(correction))
    except (LinkDown, CommandRefused):
        return False
    finally:
        await link.close()
    return True
