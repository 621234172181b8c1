"""The counters, histograms and gauges behind the promises, in a registry of their own.

Every label has a bounded set of values: models, keys and organizations are never labels, and a family that has met
``MAX_CHILDREN`` combinations counts the rest as ``other``. Counting a request takes a few additions and cannot
fail. What is not here: where gauges get their values (composition hands in functions with ``watch``), and how the
figures of several processes are added up (``board``).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from meterhouse.metering import Refusal
from meterhouse.telemetry.board import Family, Merged, freeze, merge
from meterhouse.telemetry.counts import Count, Counts, Spread, Spreads
from meterhouse.telemetry.process_figures import ProcessFigures
from meterhouse.telemetry.timings import Timings
from meterhouse.telemetry.tool_texts import ToolTexts
from meterhouse.usage import Exactness, Outcome, UsageRecord

MAX_CHILDREN = 256
OTHER = "other"
DURATION_BUCKETS_SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0,
)  # fmt: skip
FIRST_TOKEN_BUCKETS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)
LAG_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

_LOST_OUTCOMES = frozenset({Outcome.UPSTREAM_FAILED, Outcome.WORKER_LOST})
SUSPECT = "suspect"
_SOURCES = (*(exactness.value for exactness in Exactness), SUSPECT)
_ANSWERED = frozenset({Outcome.COMPLETED, Outcome.CLIENT_GONE, Outcome.CUT})
"""Of other outcomes it says nothing about the provider that no usage came."""
_MS_PER_SECOND = 1000
_TOKEN_KINDS = ("input", "cached_input", "cache_write", "output", "reasoning", "input_audio", "output_audio")
_STATUS_CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")


class Watched(Enum):
    """What is read from elsewhere at each scrape: name, kind, help, and the one label it may have."""

    OPEN_REQUESTS = ("meterhouse_open_requests", "gauge", "Requests that are being answered now", None)
    SHED_REQUESTS = ("meterhouse_shed_requests", "counter", "Requests refused for want of room", "reason")
    TASKS = ("meterhouse_tasks", "gauge", "Tasks of the event loop", None)
    JOURNAL_BYTES = ("meterhouse_journal_bytes", "gauge", "Size of this process's journals on disk", None)
    UNSHIPPED_RECORDS = ("meterhouse_unshipped_records", "gauge", "Records that SQL does not have yet", None)
    UNSHIPPED_NANOS = ("meterhouse_unshipped_nanos", "gauge", "Charges that SQL does not have yet, nanos of USD", None)
    SHIPPING_LAG_SECONDS = ("meterhouse_shipping_lag_seconds", "gauge", "Age of the oldest unshipped record", None)
    SHIPPED_BATCHES = (
        "meterhouse_shipped_batches",
        "counter",
        "Batches of the journal in SQL, by who wrote them",
        "by",
    )
    BARRIER_FAILURES = ("meterhouse_barrier_failures", "counter", "Barriers that could not be made durable", None)
    ADOPTED_RECORDS = ("meterhouse_adopted_records", "counter", "Records taken over from dead processes", None)
    WORKER_LOST_RECORDS = ("meterhouse_worker_lost_records", "counter", "Attempts that died with their process", None)
    KEYRING_HITS = ("meterhouse_keyring_hits", "counter", "Keys verified from the process's cache", None)
    KEYRING_MISSES = ("meterhouse_keyring_misses", "counter", "Keys that had to be looked up", None)
    REFUSED_SIGN_INS = ("meterhouse_refused_sign_ins", "counter", "Keys refused unread after too many wrong ones", None)
    DEGRADED = ("meterhouse_degraded", "gauge", "1 while a part works in its degraded mode", "part")
    METER_WAITING = ("meterhouse_waiting_settlements", "gauge", "Settlements that wait for Redis to return", None)
    METER_GIVEN_UP = (
        "meterhouse_given_up_settlements",
        "counter",
        "Settlements that Redis is not told any more: their holds end with the lease, and reconciling adds the charge",
        None,
    )
    METER_FAILURES = ("meterhouse_meter_failures", "counter", "Calls of the meter that Redis did not answer", None)
    METER_OUTAGES = ("meterhouse_meter_outages", "counter", "Times that Redis was given up on", None)
    COUNTER_DRIFT = ("meterhouse_counter_drift", "counter", "Counters that disagreed with the ledger", None)
    RAISED_NANOS = ("meterhouse_counter_raised_nanos", "counter", "Added to budgets by reconciling", None)
    LOWERED_NANOS = ("meterhouse_counter_lowered_nanos", "counter", "Taken off budgets by reconciling", None)
    MIRROR_FAILURES = ("meterhouse_key_mirror_failures", "counter", "Times that keys' mirror did not answer", None)
    STRAY_RECORDS = ("meterhouse_stray_records", "gauge", "Ledger rows in no month's partition: an alarm", None)
    DEPLOYMENTS_OUT = ("meterhouse_deployments_out", "gauge", "Deployments that are not asked", "provider")
    ACCOUNTS_OUT = (
        "meterhouse_deployments_without_account",
        "gauge",
        "Deployments that are not asked because the provider does not accept our account: an alarm",
        "provider",
    )
    EXTRA_ATTEMPTS = ("meterhouse_extra_attempts", "counter", "Attempts after the first of a request", None)
    EXTRA_ATTEMPTS_REFUSED = (
        "meterhouse_extra_attempts_refused",
        "counter",
        "Attempts that the retry budget did not have",
        None,
    )
    SPANS = ("meterhouse_spans", "counter", "Spans that were made, sent, and could not be sent", "result")
    INVOICE_FAILURES = (
        "meterhouse_invoice_failures",
        "counter",
        "Invoices that were due and could not be issued",
        None,
    )
    LIVE_LISTENERS = ("meterhouse_live_listeners", "gauge", "Streams that watch requests run", None)
    DROPPED_LIVE_EVENTS = ("meterhouse_dropped_live_events", "counter", "Live events that had no room", None)
    DROPPED_LOG_LINES = ("meterhouse_dropped_log_lines", "counter", "Log lines that were never written", None)


class _Provider(NamedTuple):
    """What counts for one provider, looked up once."""

    tokens: tuple[Count, ...]
    """By kind, as ``_TOKEN_KINDS`` has them."""
    charge: Count
    overrun: Count
    sources: dict[str, Count]
    unbilled: Count
    unpriced: Count
    first_token: Spread


class Metrics:
    """Everything that this process counts; one instance, made by composition."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = CollectorRegistry()
        requests = ("route", "status_class", "owner", "code")
        self._requests = Counts("meterhouse_requests_total", "Finished requests", requests, registry)
        attempts = ("provider", "outcome")
        self._attempts = Counts("meterhouse_attempts_total", "Attempts at providers", attempts, registry)
        kinds = ("provider", "kind")
        self._tokens = Counts("meterhouse_tokens_total", "Tokens of the ledger's records", kinds, registry)
        by_provider = ("provider",)
        self._charge = Counts("meterhouse_charge_nanos_total", "Charges, nanos of USD", by_provider, registry)
        text = "Charged beyond what was held, nanos of USD"
        self._overrun = Counts("meterhouse_overrun_nanos_total", text, by_provider, registry)
        text = "Answers by how their tokens are known; suspect: reported, but it cannot be true"
        self._sources = Counts("meterhouse_usages_total", text, ("provider", "source"), registry)
        text = "Attempts charged 0: our loss"
        self._unbilled = Counts("meterhouse_unbilled_attempts_total", text, by_provider, registry)
        text = "Attempts without a price"
        self._unpriced = Counts("meterhouse_unpriced_attempts_total", text, by_provider, registry)
        words = ("kind", "scope", "window", "refusal")
        self._refusals = Counts("meterhouse_refusals_total", "Requests refused by a limit", words, registry)
        self._first_token = Spreads(
            "meterhouse_time_to_first_token_seconds",
            "From the request to its first data event",
            FIRST_TOKEN_BUCKETS_SECONDS,
            registry,
            by_provider,
        )
        self._duration = Spreads(
            "meterhouse_request_duration_seconds",
            "From the request's head to the end of its answer",
            DURATION_BUCKETS_SECONDS,
            registry,
            ("route",),
        )
        text = "How late the event loop ran a timer"
        self._loop_lag = Spreads("meterhouse_event_loop_lag_seconds", text, LAG_BUCKETS_SECONDS, registry).of()
        self._read_others: Callable[[], list[list[Family]]] | None = None
        self._before_reading: Callable[[], None] | None = None
        self._watches = _Watches()
        registry.register(self._watches)
        registry.register(ProcessFigures())
        GCCollector(registry=registry)
        self._request_children: dict[tuple[str, int, str, str], Count] = {}
        self._duration_children: dict[str, Spread] = {}
        self._attempt_children: dict[tuple[str, Outcome], Count] = {}
        self.timings = Timings(registry)
        self._tool_texts = ToolTexts(registry)
        self._providers: dict[str, _Provider] = {}

    def observe_request(
        self, *, route: str, status: int, owner: str, code: str, duration_ms: int, records: Sequence[UsageRecord]
    ) -> None:
        """Count a finished request and its ledger records.

        Args:
            route: the template of the address; ``other`` for one that does not exist.
            status: the HTTP status that was sent; 0 when the client left before one was.
            owner: whose failure it was, by ``errors.Owner``; empty when there was none.
            code: the error's code; empty when there was none.
            duration_ms: from the request's head to the end of its answer.
            records: one per attempt, as ``settle`` wrote them; empty when nothing was admitted.
        """
        duration = self._duration_children.get(route)
        if duration is None:
            duration = self._duration_child(route)
        duration.add(duration_ms / _MS_PER_SECOND)
        key = (route, status // 100, owner, code)
        child = self._request_children.get(key)
        if child is None:
            child = self._request_child(key)
        child.value += 1
        for record in records:
            self.observe_record(record)

    def observe_record(self, record: UsageRecord) -> None:
        """Count one record; ``observe_request`` does it for those of a request, an adopter for those it found."""
        if record.outcome is Outcome.NOT_SENT:
            return
        attempt = self._attempt_children.get((record.provider, record.outcome))
        if attempt is None:
            attempt = self._attempt_child(record.provider, record.outcome)
        attempt.value += 1
        provider = self._providers.get(record.provider)
        if provider is None:
            provider = self._provider(record.provider)
        usage, (fresh, cached, written, output, reasoning, audio_in, audio_out) = record.usage, provider.tokens
        fresh.value += usage.input_tokens
        cached.value += usage.cached_input_tokens
        written.value += usage.cache_write_tokens
        output.value += usage.output_tokens
        reasoning.value += usage.reasoning_tokens
        audio_in.value += usage.input_audio_tokens
        audio_out.value += usage.output_audio_tokens
        if record.outcome in _ANSWERED:
            provider.sources[SUSPECT if record.is_suspect else record.exactness].value += 1
        if record.charge_nanos:
            provider.charge.value += record.charge_nanos
        elif record.outcome in _LOST_OUTCOMES:
            provider.unbilled.value += 1
        provider.overrun.value += record.overrun_nanos
        if record.price_id is None:
            provider.unpriced.value += 1
        if record.time_to_first_token_ms is not None:
            provider.first_token.add(record.time_to_first_token_ms / _MS_PER_SECOND)

    def observe_refusal(self, refusal: Refusal) -> None:
        """Count a refusal by the kind of limit that refused and how it did."""
        limit = refusal.limit
        words = (limit.kind.value, limit.scope.value, limit.window.value, refusal.kind.value)
        self._refusals.of(*words).value += 1

    def observe_tool_texts(self, provider: str, results: Mapping[str, int]) -> None:
        """Count the tool calls that a model wrote as text; a result is ``parsed`` or why it stayed text."""
        self._tool_texts.add(provider, results)

    def observe_loop_lag(self, seconds: float) -> None:
        """Count how late a timer ran."""
        self._loop_lag.add(seconds)

    def watch(self, watched: Watched, read: Callable[[], float], *, label: str = "") -> None:
        """Read a value at each scrape. ``read`` must not raise or wait; ``label`` only where ``watched`` has one."""
        self._watches.add(watched, read, label)

    def watch_each(self, watched: Watched, read: Callable[[], Mapping[str, float]]) -> None:
        """Read the values of all labels at each scrape; see ``watch``."""
        self._watches.add_each(watched, read)

    def join(self, read_others: Callable[[], list[list[Family]]]) -> None:
        """Add the figures of other processes to each scrape."""
        self._read_others = read_others

    def before_reading(self, prepare: Callable[[], None]) -> None:
        """Call a function before each reading of the figures: it counts what was not counted yet."""
        self._before_reading = prepare

    def snapshot(self) -> list[Family]:
        """Return the figures of this process."""
        self._prepare()
        return freeze(self._registry.collect())

    def render(self) -> tuple[bytes, str]:
        """Return the text of a scrape and its content type."""
        self._prepare()
        if self._read_others is None:
            return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4
        merged = Merged(merge([self.snapshot(), *self._read_others()]))
        return generate_latest(merged), CONTENT_TYPE_PLAIN_0_0_4

    def _prepare(self) -> None:
        if self._before_reading is not None:
            self._before_reading()

    def _request_child(self, key: tuple[str, int, str, str]) -> Count:
        route, status_class, owner, code = key
        if len(self._request_children) >= MAX_CHILDREN:
            # Errors of many kinds shall not take a route its successes. Not remembered under its own key: the memory of
            # the cache is what is bounded here.
            known = route if route in self._duration_children else OTHER
            return self._requests.of(known, _status_class(status_class), owner, code and OTHER)
        child = self._requests.of(route, _status_class(status_class), owner, code)
        self._request_children[key] = child
        return child

    def _duration_child(self, route: str) -> Spread:
        if len(self._duration_children) >= MAX_CHILDREN:
            return self._duration.of(OTHER)
        child = self._duration.of(route)
        self._duration_children[route] = child
        return child

    def _attempt_child(self, provider: str, outcome: Outcome) -> Count:
        if len(self._attempt_children) >= MAX_CHILDREN:
            return self._attempts.of(OTHER, outcome.value)
        child = self._attempts.of(provider, outcome.value)
        self._attempt_children[provider, outcome] = child
        return child

    def _provider(self, name: str) -> _Provider:
        is_full = len(self._providers) >= MAX_CHILDREN
        label = OTHER if is_full else name
        children = _Provider(
            tokens=tuple(self._tokens.of(label, kind) for kind in _TOKEN_KINDS),
            charge=self._charge.of(label),
            overrun=self._overrun.of(label),
            sources={source: self._sources.of(label, source) for source in _SOURCES},
            unbilled=self._unbilled.of(label),
            unpriced=self._unpriced.of(label),
            first_token=self._first_token.of(label),
        )
        if not is_full:
            self._providers[name] = children
        return children


class _Watches(Collector):
    """Turns the functions handed to ``watch`` into families at each scrape."""

    def __init__(self) -> None:
        self._reads: dict[Watched, dict[str, Callable[[], float]]] = {}
        self._each: dict[Watched, Callable[[], Mapping[str, float]]] = {}

    def add_each(self, watched: Watched, read: Callable[[], Mapping[str, float]]) -> None:
        self._each[watched] = read

    def add(self, watched: Watched, read: Callable[[], float], label: str) -> None:
        if (watched.value[3] is None) != (label == ""):
            raise ValueError(f"{watched.name} takes {'no label' if watched.value[3] is None else 'a label'}")
        self._reads.setdefault(watched, {})[label] = read

    def collect(self) -> Iterable[Metric]:
        return list(self._families())

    def _families(self) -> Iterator[Metric]:
        for watched, reads in self._reads.items():
            name, kind, text, label = watched.value
            labels = () if label is None else (label,)
            make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            family = make(name, text, labels=labels)
            for value, read in reads.items():
                family.add_metric([value] if label else [], read())
            yield family
        for watched, read_each in self._each.items():
            name, kind, text, label = watched.value
            make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            each = make(name, text, labels=(label or "",))
            for value, number in list(read_each().items())[:MAX_CHILDREN]:
                each.add_metric([value], number)
            yield each


def _status_class(hundreds: int) -> str:
    return _STATUS_CLASSES[hundreds] if 0 < hundreds < len(_STATUS_CLASSES) else _STATUS_CLASSES[0]
