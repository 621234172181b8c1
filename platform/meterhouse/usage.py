"""What an attempt used, how well that is known, how the attempt ended: the words of the ledger."""

from enum import StrEnum

import msgspec

SUSPECT_TOKENS = 1_000_000_000
"""A count above this is not believed (no model has such a context); the answer is counted instead."""


class Exactness(StrEnum):
    """How the tokens of a record are known."""

    REPORTED = "reported"
    COUNTED = "counted"
    ASSUMED = "assumed"


class Outcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    CLIENT_GONE = "client_gone"
    UPSTREAM_FAILED = "upstream_failed"
    REFUSED = "refused"
    CUT = "cut"
    WORKER_LOST = "worker_lost"
    NOT_SENT = "not_sent"


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Token counts. Cached, cache-write and audio tokens are parts of the input or output; reasoning of the output."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input plus output: what token quotas count."""
        return self.input_tokens + self.output_tokens


class UsageRecord(msgspec.Struct, frozen=True, array_like=True):
    """The immutable row that says what one attempt used and what it is charged."""

    request_id: str
    attempt: int
    requests: int
    """1 on the last attempt of a request that reached a provider, else 0: the sum counts requests."""
    organization_id: str
    project_id: str
    key_id: str
    root_key_id: str
    """The first key of a chain of rotations: both keys of an overlap count on one meter."""
    model: str
    served_model: str
    provider: str
    deployment: str
    upstream_model: str
    operation: str
    service_tier: str
    outcome: Outcome
    exactness: Exactness
    error_owner: str
    error_code: str
    is_streamed: bool
    is_suspect: bool
    """The provider reported a usage that cannot be true; the tokens are our count."""
    usage: Usage
    price_id: str | None
    """None: unpriced; such a record is charged 0 and re-rated later by an adjustment."""
    charge_nanos: int
    charges: tuple[tuple[str, int], ...]
    """The charge by component; adds up to ``charge_nanos``."""
    overrun_nanos: int
    """What the charge exceeds the hold by; 0 unless a provider reported more than was held."""
    admitted_at_ms: int
    time_to_first_token_ms: int | None
    duration_ms: int
    trace_id: str
