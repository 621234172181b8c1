"""How long the parts of a request took: what the meter took, what the gateway added, how fast tokens came.

Invariant: counting a request here costs a few additions and cannot fail. Not here: what is counted from the
ledger's records (``metrics``).
"""

from prometheus_client import CollectorRegistry

from meterhouse.request import Tally
from meterhouse.telemetry.counts import Spread, Spreads

RESERVE_BUCKETS_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
ADDED_BUCKETS_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
INTER_TOKEN_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
MAX_PROVIDERS = 256
OTHER = "other"
_NANOS_PER_SECOND = 1_000_000_000


class Timings:
    """Three histograms."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "How long the meter took to admit a request"
        self._reserve = Spreads("meterhouse_reserve_seconds", text, RESERVE_BUCKETS_SECONDS, registry).of()
        text = "How long an admitted request took beyond its attempts at providers, its client's sending included"
        self._added = Spreads("meterhouse_added_seconds", text, ADDED_BUCKETS_SECONDS, registry).of()
        self._inter_token = Spreads(
            "meterhouse_inter_token_seconds",
            "Mean time between two tokens of a streamed answer",
            INTER_TOKEN_BUCKETS_SECONDS,
            registry,
            ("provider",),
        )
        self._by_provider: dict[str, Spread] = {}

    def observe(self, tally: Tally, duration_ns: int) -> None:
        """Count an admitted request that has ended, so long after its head came."""
        self._reserve.add((tally.admitted_ns - tally.asked_ns) / _NANOS_PER_SECOND)
        attempts_ns = 0
        for attempt in tally.attempts:
            if attempt.ended_ns is not None:
                attempts_ns += attempt.ended_ns - attempt.started_ns
        added_ns = duration_ns - attempts_ns
        self._added.add(added_ns / _NANOS_PER_SECOND if added_ns > 0 else 0.0)
        if tally.is_streamed and tally.attempts and tally.records:
            attempt, tokens = tally.attempt, tally.records[-1].usage.output_tokens
            if tokens > 1 and attempt.first_event_ns is not None and attempt.ended_ns is not None:
                spent_ns = attempt.ended_ns - attempt.first_event_ns
                self._of(attempt.provider).add(spent_ns / (tokens - 1) / _NANOS_PER_SECOND)

    def _of(self, provider: str) -> Spread:
        child = self._by_provider.get(provider)
        if child is None:
            if len(self._by_provider) >= MAX_PROVIDERS:
                return self._inter_token.of(OTHER)
            child = self._by_provider[provider] = self._inter_token.of(provider)
        return child
