"""Composition: builds every part of one process, wires them, and runs what goes on beside the requests.

``open_gateway`` stops things in the order that loses nothing: the loops, shipping, the journal, the stores. Only the
entry points import this.
"""

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from meterhouse.admin.guard import TokenVerifier
from meterhouse.admin.ledger import LedgerParts
from meterhouse.admin.limiter import AdminLimiter
from meterhouse.admin.router import AdminParts
from meterhouse.admin.supply import SupplyParts
from meterhouse.admin.usage import UsageParts
from meterhouse.back_office import open_back_office
from meterhouse.db.books import Books
from meterhouse.db.receipts import ReceiptStore
from meterhouse.db.records import RecordStore
from meterhouse.db.refusals import RefusalStore
from meterhouse.db.reports import ReportStore
from meterhouse.dispatch import build_attempts
from meterhouse.errors import StreamCut
from meterhouse.exports import LedgerFiles
from meterhouse.http.account import AccountParts
from meterhouse.http.call import Pace, Pacer
from meterhouse.http.exchange import Observer
from meterhouse.http.health import HealthParts
from meterhouse.http.inference import InferenceParts
from meterhouse.http.live import LiveParts
from meterhouse.http.shedding import LoopProbe, Slots
from meterhouse.http.tasks import Tasks
from meterhouse.http.tokens import TokenCounter
from meterhouse.issuer import open_token_verifier
from meterhouse.keys.changes import NOTICE
from meterhouse.keys.keyring import Keyring
from meterhouse.ledger.checkpointer import Checkpointer, charge_so_far
from meterhouse.ledger.files import FileLayer
from meterhouse.ledger.seal import hash_rows
from meterhouse.ledger.settler import Settler
from meterhouse.live_channel import WANTED_NOTICE, LiveChannel
from meterhouse.metering import Meter
from meterhouse.meters import open_meter
from meterhouse.notices import CONNECTED
from meterhouse.providers.probe import Probe
from meterhouse.providers.simulator import Simulator
from meterhouse.providers.upstream import Upstream
from meterhouse.providers.vault import Vault
from meterhouse.records import Records, open_records
from meterhouse.settings import Environment, Settings, SettingsError
from meterhouse.shared_counts import build_admin_limiter
from meterhouse.stores import Stores, open_stores
from meterhouse.supply import Supply
from meterhouse.supply_changes import NOTICE as SUPPLY_NOTICE
from meterhouse.supply_changes import SupplyChanges
from meterhouse.telemetry.live import Live
from meterhouse.telemetry.logs import RequestLog, choose_format, configure
from meterhouse.telemetry.metrics import Metrics, Watched
from meterhouse.telemetry.traces import Tracing
from meterhouse.upkeep import open_refusals, repeat, start_upkeep

LAST_USED_SECONDS = 60.0
REHASH_SECONDS = 10.0
MOST_REQUESTS = 9_000
DESCRIPTORS_PER_REQUEST = 2.2
"""A client's connection, a provider's, and what is kept open between requests."""
OTHER_DESCRIPTORS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """An open gateway: what the application is assembled from, and what its entry point controls."""

    settings: Settings
    stores: Stores
    supply: Supply
    records: Records
    inference: InferenceParts
    observer: Observer
    tracing: Tracing
    admin_limiter: AdminLimiter
    tokens: TokenVerifier | None = None
    """Who knows administrators by a token; None: only admin keys sign in."""
    health: HealthParts
    account: AccountParts
    live: LiveParts
    admin: AdminParts

    @property
    def keyring(self) -> Keyring:
        """The keyring of this process."""
        return self.stores.keyring

    @property
    def newest_call_ns(self) -> int:
        """When the last of the answers that are under way was asked for (monotonic); 0 when there are none."""
        return max((call.tally.started_ns for call in self.inference.pacer.calls), default=0)

    def end_watching(self) -> None:
        """End the streams of those who watch requests run, and begin no more: the server stops."""
        self.live.live.close()

    def cut_streams(self, before_ns: int | None = None) -> None:
        """End what still runs, because the server stops; each such request has an exact record.

        Args:
            before_ns: only what was asked for before this moment (monotonic).
        """
        for call in self.inference.pacer.calls:
            if before_ns is not None and call.tally.started_ns > before_ns:
                continue
            reason = StreamCut(
                "The server is shutting down and ended this answer. Send the request again.", code="server_shutdown"
            )
            self.inference.pacer.cut(call, reason)


@dataclass(frozen=True, slots=True)
class Options:
    """What an entry point decides for its gateway."""

    has_simulator: bool = False
    files: FileLayer | None = None
    """The journal's file layer; None: the operating system's."""
    clerk: Path | None = None
    """Where the clerk of this host listens; None: there is none, and this process ships and seals itself."""


@asynccontextmanager
async def open_gateway(
    settings: Settings, environment: Environment, log_stream: BinaryIO, options: Options
) -> AsyncIterator[Gateway]:
    """Open every part of a process and close it again.

    Raises:
        SettingsError: Something in the environment cannot work.
        StoreDown: The database cannot be opened.
        JournalDown: The journal cannot be written.
    """
    async with AsyncExitStack() as stack:
        log_format = choose_format(settings.log_format, log_stream)
        configure(format=log_format, level=settings.log_level, stream=log_stream)
        loop = asyncio.get_running_loop()
        request_log = RequestLog(
            format=log_format, level=settings.log_level, stream=log_stream, call_later=loop.call_later
        )
        stack.callback(request_log.close)
        tracing = _build_tracing(settings)
        stack.callback(tracing.close)
        metrics = Metrics()
        metrics.watch_each(Watched.SPANS, lambda: asdict(tracing.figures))
        stores = await stack.enter_async_context(open_stores(settings))
        vault = Vault(stores.peppers, stores.pepper_version)
        supply = Supply(environment, settings, stores.catalog, stores.clock, vault)
        await supply.open(has_simulator=options.has_simulator)
        simulator = Simulator() if options.has_simulator else None
        upstream = await stack.enter_async_context(Upstream(simulator=simulator, client=settings.upstream_client))
        records = await stack.enter_async_context(open_records(settings, stores, options.files, metrics, options.clerk))
        parts = await stack.enter_async_context(open_meter(settings, stores, records, metrics))
        office = await stack.enter_async_context(open_back_office(settings, stores))
        refusals = await stack.enter_async_context(open_refusals(stores, supply.routes))
        tasks = Tasks()
        stack.push_async_callback(tasks.close)
        inference = _build_inference(settings, stores, supply, records, (upstream, tasks, metrics, parts.meter))
        stack.callback(inference.counter.close)
        _watch(metrics, inference, request_log)
        live = _build_live(settings, stores, inference)
        metrics.watch(Watched.INVOICE_FAILURES, lambda: office.billing.invoices.failures)
        metrics.watch(Watched.DROPPED_LIVE_EVENTS, lambda: live.dropped_events)
        metrics.watch(Watched.LIVE_LISTENERS, lambda: len(live.listeners))
        _start_loops(inference, settings, stores)
        start_upkeep(tasks, stores, metrics, parts, records.clerk)
        for every_seconds, work in office.beats:
            tasks.keep(partial(repeat, every_seconds, work))
        tasks.keep(lambda: supply.run(Probe(upstream, stores.clock), settings.probe_seconds))
        yield Gateway(
            settings=settings,
            stores=stores,
            supply=supply,
            records=records,
            inference=inference,
            observer=stack.enter_context(Observer((request_log, metrics, tracing), live, refusals, loop.call_later)),
            tracing=tracing,
            admin_limiter=build_admin_limiter(settings, metrics),
            health=HealthParts(supply.routes, lambda: supply.statuses, records.list_troubles, metrics),
            account=_account_parts(stores, inference, records),
            live=LiveParts(live, tasks),
            tokens=open_token_verifier(settings, stores.clock, stores.catalog),
            admin=AdminParts(
                service=stores.service,
                catalog=stores.catalog,
                supply=_supply_parts(stores, supply, vault, inference),
                books=_ledger_parts(settings, stores),
                balances=stores.ledger,
                usage=UsageParts(ReportStore(stores.engine), RefusalStore(stores.engine), stores.clock),
                token_issuer=settings.oidc_issuer,
                billing=office.billing,
            ),
        )


def _build_tracing(settings: Settings) -> Tracing:
    return Tracing(
        endpoint=settings.otlp_endpoint,
        ratio=settings.trace_ratio,
        slow_seconds=settings.trace_slow_seconds,
        headers=otlp_headers(settings),
    )


def _account_parts(stores: Stores, inference: InferenceParts, records: Records) -> AccountParts:
    return AccountParts(
        routes=inference.routes,
        meter=inference.meter,
        ledger=stores.ledger,
        receipts=ReceiptStore(stores.engine),
        checkpointer=inference.checkpointer,
        unshipped_age_ms=records.unshipped_age_ms,
        clock=stores.clock,
    )


def _ledger_parts(settings: Settings, stores: Stores) -> LedgerParts:
    books = Books(stores.engine, hash_rows)
    return LedgerParts(
        records=RecordStore(stores.engine),
        ledger=stores.ledger,
        seals=books.seals,
        keys=stores.catalog.keys,
        prices=stores.catalog.prices,
        exports=LedgerFiles(books, settings.data, stores.clock),
    )


def _supply_parts(stores: Stores, supply: Supply, vault: Vault, inference: InferenceParts) -> SupplyParts:
    """Let operators change the supply, and every process hear of it."""
    notices = stores.notices
    if notices is not None:
        notices.on(SUPPLY_NOTICE, supply.hear)
        notices.on(CONNECTED, supply.hear)
    publish = notices.publish if notices is not None else None
    supply.watch(inference.attempts.breakers.forget)
    changes = SupplyChanges(supply, stores.catalog, vault, publish)
    return SupplyParts(changes, supply.routes, inference.attempts, stores.clock)


def _build_inference(
    settings: Settings,
    stores: Stores,
    supply: Supply,
    records: Records,
    shared: tuple[Upstream, Tasks, Metrics, Meter],
) -> InferenceParts:
    upstream, tasks, metrics, meter = shared
    probe = LoopProbe(metrics.observe_loop_lag)
    tasks.keep(probe.run)
    pace = Pace(
        tick=min(0.2, settings.head_seconds / 2, settings.keep_alive_seconds / 2),
        head=settings.head_seconds,
        keep_alive=settings.keep_alive_seconds,
        tail=settings.tail_seconds,
        drain=settings.drain_seconds,
        most_drains=settings.drain_most,
    )
    return InferenceParts(
        keyring=stores.keyring,
        routes=supply.routes,
        meter=meter,
        attempts=build_attempts(upstream, records.journal, metrics, stores.pepper),
        settler=Settler(records.journal, meter),
        journal=records.journal,
        checkpointer=Checkpointer(records.journal),
        counter=TokenCounter(),
        pacer=Pacer(pace, tasks),
        tasks=tasks,
        metrics=metrics,
        clock=stores.clock,
        slots=Slots(_most_requests(settings), settings.max_lag_seconds, probe),
        shipper=records.shipper,
        default_model=settings.default_model,
    )


def _build_live(settings: Settings, stores: Stores, inference: InferenceParts) -> Live:
    """Let requests be watched as they run: through Redis where there may be several processes."""
    checkpointer, notices, tasks = inference.checkpointer, stores.notices, inference.tasks
    channel = None
    if notices is not None and settings.redis_url is not None:
        channel = LiveChannel(notices, settings.redis_url.get_secret_value(), tasks)
    live = Live(
        channel,
        checkpointer.live.values,
        lambda is_on: checkpointer.tell(live.note_started if is_on else None),
        charge_so_far,
    )
    if notices is not None:
        notices.on(WANTED_NOTICE, live.want)
    inference.keyring.watch(live.doubt)
    tasks.keep(live.run)
    return live


def _most_requests(settings: Settings) -> int:
    """Return how many requests may be under way: what is set, else what the limit of open files allows."""
    if settings.max_requests is not None:
        return settings.max_requests
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST_REQUESTS
    return max(1, min(MOST_REQUESTS, int((files - OTHER_DESCRIPTORS) / DESCRIPTORS_PER_REQUEST)))


def otlp_headers(settings: Settings) -> dict[str, str]:
    """Read what the collector wants to be told.

    Raises:
        SettingsError: It is not written as ``name=value[,name=value]``.
    """
    text = "" if settings.otlp_headers is None else settings.otlp_headers.get_secret_value()
    headers: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        name, is_given, value = item.strip().partition("=")
        if not (name and is_given and item.isascii() and item.isprintable()):
            raise SettingsError("METERHOUSE_OTLP_HEADERS: expected name=value[,name=value].")
        headers[name] = value
    return headers


def _watch(metrics: Metrics, inference: InferenceParts, request_log: RequestLog) -> None:
    metrics.watch(Watched.OPEN_REQUESTS, lambda: len(inference.checkpointer.live))
    slots = inference.slots
    metrics.watch(Watched.SHED_REQUESTS, lambda: slots.refused_for_slots, label="slots")
    metrics.watch(Watched.SHED_REQUESTS, lambda: slots.refused_for_share, label="share")
    metrics.watch(Watched.SHED_REQUESTS, lambda: slots.refused_for_lag, label="lag")
    metrics.watch(Watched.TASKS, lambda: len(asyncio.all_tasks()))
    metrics.watch(Watched.KEYRING_HITS, lambda: inference.keyring.hits)
    metrics.watch(Watched.KEYRING_MISSES, lambda: inference.keyring.misses)
    metrics.watch(Watched.REFUSED_SIGN_INS, lambda: inference.keyring.refused)
    metrics.watch(Watched.DROPPED_LOG_LINES, lambda: request_log.dropped_lines)


def _start_loops(inference: InferenceParts, settings: Settings, stores: Stores) -> None:
    """Start what goes on beside the requests. Each loop ends with the gateway."""
    keep = inference.tasks.keep
    inference.tasks.start(inference.counter.warm())
    keep(inference.pacer.run)
    keep(lambda: repeat(settings.checkpoint_seconds, inference.checkpointer.checkpoint))
    keep(lambda: repeat(settings.checkpoint_seconds, inference.checkpointer.make_durable))
    keep(lambda: repeat(settings.renew_seconds, lambda: inference.checkpointer.renew(inference.meter)))
    keep(lambda: _watch_keys(inference, settings.key_check_seconds))
    if stores.notices is not None:
        stores.notices.on(NOTICE, stores.keyring.hear)
    keep(lambda: repeat(LAST_USED_SECONDS, stores.keyring.flush_last_used))
    keep(lambda: repeat(REHASH_SECONDS, stores.rehasher.flush))


async def _watch_keys(inference: InferenceParts, every_seconds: float) -> None:
    """Look at the keys of running answers now and then, and at once when one may have ended."""
    has_news = asyncio.Event()
    inference.keyring.watch(has_news.set)
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(has_news.wait(), every_seconds)
        has_news.clear()
        await _cut_dead_keys(inference)


async def _cut_dead_keys(inference: InferenceParts) -> None:
    """End the running answers of keys that were revoked or have expired since."""
    calls = inference.pacer.calls
    dead = await inference.keyring.find_dead({call.tally.principal.key_id for call in calls})
    for call in calls:
        if call.tally.principal.key_id in dead:
            reason = StreamCut("The key of this request is no longer good.", code="key_revoked")
            inference.pacer.cut(call, reason)
