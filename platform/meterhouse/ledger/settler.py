"""The one settle: turns a tally into ledger records, makes them part of the journal, and resolves the reservation.

``settle`` is synchronous, so nothing can cancel it, and it is called in one place. Who pays is decided here
(design.md 7, "Who pays"). It does not wait for durability: the caller awaits the journal's barrier with the position
that settle returns.
"""

import time
from typing import Protocol

from msgspec import structs

from meterhouse.ledger.record import Terminal, encode
from meterhouse.metering import Meter, Settlement
from meterhouse.money import Charge, charge
from meterhouse.request import Attempt, Tally
from meterhouse.usage import Exactness, Outcome, Usage, UsageRecord

_FREE_WITHOUT_EVENTS = frozenset({Outcome.UPSTREAM_FAILED})
_FREE_UNLESS_REPORTED = frozenset({Outcome.NOT_SENT, Outcome.REFUSED})
_NO_USAGE = Usage()
_NO_CHARGE = Charge()
_NS_PER_MS = 1_000_000


class AppendsToJournal(Protocol):
    """What whoever leaves a record needs of the journal."""

    def append(self, payload: bytes) -> int:
        """Write a record; returns its position."""
        ...


class AppendsEnds(AppendsToJournal, Protocol):
    """What settle needs of the journal."""

    def append_end(self, payload: bytes) -> int:
        """Append a record that somebody is about to await the barrier of; returns its position."""
        ...


class Settler:
    """Settles tallies. The records of a settled request stay in its tally, for the log and the metrics."""

    def __init__(self, journal: AppendsEnds, meter: Meter) -> None:
        self._journal = journal
        self._meter = meter

    def settle(self, tally: Tally) -> int:
        """Write the TERMINAL of a request and resolve its reservation; returns the journal position to wait for.

        Raises:
            JournalDown: The record could not be written; the reservation is resolved nevertheless.
        """
        now_ns = time.monotonic_ns()
        tally.settled_ns = now_ns
        tally.records = records = build_records(tally, now_ns)
        requests = total_tokens = charge_nanos = 0
        for record in records:
            requests += record.requests
            total_tokens += record.usage.total_tokens
            charge_nanos += record.charge_nanos
        last = records[-1]
        journal = self._journal
        # Whoever completed a request awaits the barrier next. Nobody need await that of another, which is written now.
        append = journal.append_end if last.outcome is Outcome.COMPLETED else journal.append
        try:
            return append(encode(Terminal(records)))
        finally:
            self._meter.settle(tally.reservation, Settlement(requests, total_tokens, charge_nanos, last.exactness))


def build_records(tally: Tally, now_ns: int) -> tuple[UsageRecord, ...]:
    """Make one record for each attempt, or the one of a request that reached no provider (attempt 0)."""
    attempts = tally.attempts or (_unsent(tally),)
    last = attempts[-1]
    records: tuple[UsageRecord, ...] = ()
    spent_nanos = 0
    for attempt in attempts:
        record = _record(tally, attempt, now_ns, is_last=attempt is last, spent_nanos=spent_nanos)
        spent_nanos += record.charge_nanos
        records += (record,)
    return records


def charged_usage(tally: Tally, attempt: Attempt) -> tuple[Usage, Exactness]:
    """Decide what an attempt's usage is: reported, else counted where the provider may bill us, else nothing."""
    outcome = attempt.outcome
    held = tally.reservation.held_output_tokens
    if attempt.reported is not None:
        if outcome is Outcome.CUT and held is not None and attempt.reported.output_tokens > held:
            # A running count that went past what is held is why it was cut; what came beyond was not forwarded.
            return _at_most(attempt.reported, held), Exactness.COUNTED
        return attempt.reported, Exactness.REPORTED
    if _is_free(attempt):
        return Usage(), Exactness.COUNTED
    if not (tally.is_input_countable and attempt.is_countable):
        return _assumed_usage(tally, attempt), Exactness.ASSUMED
    usage = attempt.counted or Usage(
        input_tokens=tally.input_tokens_estimate, output_tokens=attempt.output_tokens_estimate
    )
    if outcome is Outcome.CUT and held is not None:
        usage = _at_most(usage, held)
    return usage, Exactness.COUNTED


def _is_free(attempt: Attempt) -> bool:
    """Whether an attempt that reported nothing costs nothing."""
    is_unanswered = attempt.outcome in _FREE_WITHOUT_EVENTS and attempt.first_event_ns is None
    return is_unanswered or attempt.outcome in _FREE_UNLESS_REPORTED


def _at_most(usage: Usage, output_tokens: int) -> Usage:
    """Return a usage whose output is no more than stated."""
    return structs.replace(
        usage,
        output_tokens=min(usage.output_tokens, output_tokens),
        reasoning_tokens=min(usage.reasoning_tokens, output_tokens),
        output_audio_tokens=min(usage.output_audio_tokens, output_tokens),
    )


def _assumed_usage(tally: Tally, attempt: Attempt) -> Usage:
    """Charge what was held, for images and audio whose tokens nobody told."""
    held = tally.reservation.held_output_tokens
    is_output_known = attempt.is_countable or held is None
    return Usage(
        input_tokens=tally.input_tokens_estimate if tally.is_input_countable else tally.held_input_tokens,
        output_tokens=attempt.output_tokens_estimate if is_output_known or held is None else held,
    )


def _unsent(tally: Tally) -> Attempt:
    return Attempt(
        number=0,
        provider="",
        deployment="",
        upstream_model="",
        price=None,
        started_ns=tally.admitted_ns,
        outcome=Outcome.NOT_SENT,
    )


def _record(tally: Tally, attempt: Attempt, now_ns: int, *, is_last: bool, spent_nanos: int) -> UsageRecord:
    outcome = attempt.outcome or Outcome.CUT
    attempt.outcome = outcome
    usage, exactness = charged_usage(tally, attempt)
    admitted_at_ms = tally.reservation.admitted_at_ms
    price, error = attempt.price, attempt.error
    if price is None or (usage == _NO_USAGE and _is_free(attempt)):
        charged = _NO_CHARGE
    else:
        charged = charge(
            price,
            usage,
            admitted_at_ms=admitted_at_ms,
            service_tier=attempt.service_tier or None,
            request_units=attempt.request_units,
        )
    nanos, held_nanos = charged.nanos, tally.reservation.held_nanos
    beyond_nanos = spent_nanos + nanos - held_nanos
    principal = tally.principal
    started_ns, first_event_ns = attempt.started_ns, attempt.first_event_ns
    # By position: msgspec looks for each keyword among all that are given, which takes five times as long.
    return UsageRecord(
        tally.request_id,
        attempt.number,
        1 if is_last and attempt.number > 0 and outcome is not Outcome.NOT_SENT else 0,
        principal.organization_id,
        principal.project_id,
        principal.key_id,
        principal.root_key_id,
        tally.model,
        attempt.served_model,
        attempt.provider,
        attempt.deployment,
        attempt.upstream_model,
        tally.operation,
        attempt.service_tier,
        outcome,
        exactness,
        error.owner if error else "",
        (error.code or "") if error else "",
        tally.is_streamed,
        attempt.is_suspect,
        usage,
        price.id if price else None,
        nanos,
        charged.by_component,
        min(nanos, beyond_nanos) if held_nanos and beyond_nanos > 0 else 0,
        admitted_at_ms,
        None if first_event_ns is None else (first_event_ns - started_ns) // _NS_PER_MS,
        ((attempt.ended_ns or now_ns) - started_ns) // _NS_PER_MS,
        tally.trace_id,
    )
