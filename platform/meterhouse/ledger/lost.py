"""What becomes of requests whose process died: the records of their attempts, from what the journal knows.

Invariant: each attempt with an INTENT and no TERMINAL gives one record; usage that the provider reported is charged,
else the last checkpoint's output with the INTENT's input, else nothing. Memory is bounded by the requests that ran at
once. Not here: reading (``reader``) and writing (``adopter``).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from meterhouse.ledger.record import Checkpoint, CheckpointEntry, Intent, Payload, Terminal
from meterhouse.money import Charge, Price, charge
from meterhouse.usage import Exactness, Outcome, Usage, UsageRecord


@dataclass(slots=True)
class _OpenAttempt:
    intent: Intent
    checkpoint: CheckpointEntry | None = None


class OpenRequests:
    """The requests of one journal that began and did not end yet, as its records are read in their order."""

    def __init__(self) -> None:
        self._attempts: dict[str, dict[int, _OpenAttempt]] = {}

    def take(self, payload: Payload) -> tuple[UsageRecord, ...]:
        """Take the next payload; returns the records that it ends a request with."""
        if isinstance(payload, Terminal):
            for record in payload.records:
                self._attempts.pop(record.request_id, None)
            return payload.records
        if isinstance(payload, Intent):
            self._attempts.setdefault(payload.request_id, {})[payload.attempt] = _OpenAttempt(payload)
        elif isinstance(payload, Checkpoint):
            for entry in payload.entries:
                attempt = self._attempts.get(entry.request_id, {}).get(entry.attempt)
                if attempt is not None:
                    attempt.checkpoint = entry
        return ()

    def list_lost(self) -> Iterator[UsageRecord]:
        """Make the records of everything that did not end."""
        for attempts in self._attempts.values():
            last = max(attempts)
            for number in sorted(attempts):
                yield _lost_record(attempts[number], is_last=number == last)


def _lost_record(attempt: _OpenAttempt, *, is_last: bool) -> UsageRecord:
    intent = attempt.intent
    usage, exactness = _lost_usage(attempt)
    price = intent.price if isinstance(intent.price, Price) else None
    charged = Charge()
    if price is not None and usage != Usage():
        charged = charge(
            price,
            usage,
            admitted_at_ms=intent.admitted_at_ms,
            service_tier=None,
            request_units=intent.request_units,
        )
    return UsageRecord(
        request_id=intent.request_id,
        attempt=intent.attempt,
        requests=int(is_last),
        organization_id=intent.organization_id,
        project_id=intent.project_id,
        key_id=intent.key_id,
        root_key_id=intent.root_key_id,
        model=intent.model,
        served_model="",
        provider=intent.provider,
        deployment=intent.deployment,
        upstream_model=intent.upstream_model,
        operation=intent.operation,
        service_tier="",
        outcome=Outcome.WORKER_LOST,
        exactness=exactness,
        error_owner="us",
        error_code="worker_lost",
        is_streamed=intent.is_streamed,
        is_suspect=False,
        usage=usage,
        price_id=price.id if price is not None else None,
        charge_nanos=charged.nanos,
        charges=charged.by_component,
        overrun_nanos=0,
        admitted_at_ms=intent.admitted_at_ms,
        time_to_first_token_ms=None,
        duration_ms=0,
        trace_id=intent.trace_id,
    )


def _lost_usage(attempt: _OpenAttempt) -> tuple[Usage, Exactness]:
    checkpoint = attempt.checkpoint
    if checkpoint is None:
        return Usage(), Exactness.COUNTED
    if checkpoint.is_reported:
        return checkpoint.usage, Exactness.REPORTED
    usage = msgspec.structs.replace(checkpoint.usage, input_tokens=attempt.intent.input_tokens_estimate)
    return usage, Exactness.COUNTED
