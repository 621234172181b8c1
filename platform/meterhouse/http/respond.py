"""From results and errors to bytes and headers, in OpenAI's envelope (wire.md 1.5, 1.6).

One ``render`` for an error as a response. Only here do errors become statuses on a wire; their bodies are an
``Envelope``'s, which is OpenAI's but for wires of another company.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import msgspec
from starlette.types import Send

from meterhouse.errors import BudgetExhausted, GatewayError, LimitError, RateLimited
from meterhouse.limits.limit import format_limit
from meterhouse.metering import Kind, LimitState, Nature, Refusal, RefusalKind

Headers = list[tuple[bytes, bytes]]

JSON_TYPE = (b"content-type", b"application/json")
_REQUESTS, _TOKENS = Kind.REQUESTS, Kind.TOKENS
_OF_REQUESTS = b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"
_OF_TOKENS = b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"
SECOND_MS, MINUTE_MS = 1_000, 60_000
MAX_RETRY_WAIT_SECONDS = 60
"""Node's SDK waits at most this long; a longer wait is left to the caller (wire.md 1.1)."""


class Envelope(Protocol):
    """The shape of a wire's errors. What else an error is (its code, whether to retry) is the same on every wire."""

    @property
    def request_id_header(self) -> bytes | None:
        """A header that carries the request's id beside ``x-request-id``."""
        ...

    def status(self, error: GatewayError) -> int:
        """Return the HTTP status; almost always the error's own."""
        ...

    def body(self, error: GatewayError, request_id: str) -> bytes:
        """Return the body of an answer; ``request_id`` is the public one."""
        ...

    def event(self, error: GatewayError, request_id: str) -> bytes:
        """Return the one event that ends a stream, its blank line included."""
        ...


class OpenAiEnvelope:
    """``{"error": {message, type, param, code}}`` (wire.md 1.5)."""

    request_id_header: bytes | None = None

    def status(self, error: GatewayError) -> int:
        """Return the error's own."""
        return error.status

    def body(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return the envelope with all four keys."""
        return error_body(error)

    def event(self, error: GatewayError, request_id: str) -> bytes:  # noqa: ARG002 - the protocol's own signature
        """Return it as a data event."""
        return b"data: " + error_body(error) + b"\n\n"


OPENAI_ENVELOPE = OpenAiEnvelope()


def error_body(error: GatewayError) -> bytes:
    """Return ``{"error": {...}}`` with all four keys."""
    return msgspec.json.encode(
        {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
    )


def render(
    error: GatewayError, envelope: Envelope = OPENAI_ENVELOPE, request_id: str = ""
) -> tuple[int, Headers, bytes]:
    """Turn an error into status, headers and body."""
    body = envelope.body(error, request_id)
    headers: Headers = [JSON_TYPE, (b"content-length", str(len(body)).encode())]
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_seconds)).encode()))
        headers.append((b"retry-after-ms", str(math.ceil(error.retry_after_seconds * 1000)).encode()))
    if error.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    if error.status == 401:  # noqa: PLR2004 - the one status that names its scheme
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, RefusedByLimit):
        headers += rate_limit_headers(error.states, error.now_ms)
    return envelope.status(error), headers, body


async def send_whole(send: Send, headers: Headers, body: bytes, content_type: bytes = JSON_TYPE[1]) -> None:
    """Send a whole answer of status 200, in one message (``cycle``)."""
    head = [*headers, (b"content-type", content_type)]
    await send({"type": "http.response.start", "status": 200, "headers": head, "body": body, "more_body": False})


async def send_error(send: Send, error: GatewayError, envelope: Envelope, request_id: str) -> None:
    """Send an error as a whole answer."""
    status, headers, body = render(error, envelope, request_id)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class RefusedByLimit(LimitError):
    """A refusal of the meter, with the states that its headers show."""

    states: Sequence[LimitState] = ()
    now_ms: int = 0


class RefusedByRate(RefusedByLimit, RateLimited):
    """A refusal that waiting heals."""


class RefusedByBudget(RefusedByLimit, BudgetExhausted):
    """A refusal that waiting does not heal."""


def refused(refusal: Refusal, model: str, now_ms: int) -> GatewayError:
    """Turn a refusal of the meter into the error that the caller sees (design.md 6, "Refusals")."""
    limit = refusal.limit
    name = format_limit(limit)
    wait = refusal.retry_after_seconds
    numbers = f"Limit {limit.amount}, Used {refusal.used}, Requested {refusal.demanded}"
    where = f"the limit '{name}' of this {limit.scope.value}"
    error: RefusedByLimit
    if refusal.kind is RefusalKind.SPENT:
        error = RefusedByBudget(
            f"You exceeded {where}: what is spent leaves no room for this request. {numbers}. "
            "Wait for the next period, or ask the operator for more.",
        )
    elif refusal.kind is RefusalKind.TOO_LARGE:
        error = RefusedByRate(
            f"Request too large for {model} under {where}. {numbers}. Shorten the input or lower max_tokens.",
            should_retry=False,
        )
    elif refusal.kind is RefusalKind.RESERVED:
        error = RefusedByRate(
            f"Rate limit reached for {model}: requests that are still running hold what is left of {where}. "
            f"{numbers}. Please try again in 1s.",
            retry_after_seconds=1,
        )
    else:
        seconds = wait or 0.001
        error = RefusedByRate(
            f"Rate limit reached for {model} under {where}. {numbers}. "
            f"Please try again in {go_duration(math.ceil(seconds * 1000)).decode()}.",
            retry_after_seconds=seconds,
            should_retry=False if seconds > MAX_RETRY_WAIT_SECONDS else None,
        )
    if isinstance(error, RefusedByRate):
        error.type = "tokens" if limit.kind is Kind.TOKENS else "requests"
    error.states = refusal.states
    error.now_ms = now_ms
    return error


def rate_limit_headers(states: Sequence[LimitState], now_ms: int) -> Headers:
    """Return the ``x-ratelimit-*`` headers of the tightest limit of requests and of tokens (wire.md 1.6)."""
    requests: LimitState | None = None
    tokens: LimitState | None = None
    for state in states:
        kind = state.limit.kind
        if kind is _REQUESTS:
            if requests is None or _tightness(state) < _tightness(requests):
                requests = state
        elif kind is _TOKENS and (tokens is None or _tightness(state) < _tightness(tokens)):
            tokens = state
    headers: Headers = []
    for found, (limit, remaining, reset) in ((requests, _OF_REQUESTS), (tokens, _OF_TOKENS)):
        if found is None:
            continue
        # What is asked of two limits in every answer is worked out here: a call of ``max`` is dearer than all of this.
        amount = found.limit.amount
        free = amount - found.spent - found.reserved
        resets_in_ms = (found.resets_at_ms or now_ms) - now_ms
        headers += (
            (limit, b"%d" % amount),
            (remaining, b"%d" % free if free > 0 else b"0"),
            (reset, go_duration(resets_in_ms) if resets_in_ms > 0 else b"0ms"),
        )
    return headers


def go_duration(milliseconds: int) -> bytes:
    """Write a duration as Go does: ``12ms``, ``1s``, ``6m0s``, ``1h2m3.5s``."""
    if milliseconds < SECOND_MS:
        return b"%dms" % milliseconds
    if milliseconds < MINUTE_MS:
        return b"%gs" % (milliseconds / SECOND_MS)
    minutes, seconds = milliseconds // MINUTE_MS, milliseconds % MINUTE_MS / SECOND_MS
    if minutes < 60:  # noqa: PLR2004 - an hour
        return b"%dm%gs" % (minutes, seconds)
    return b"%dh%dm%gs" % (minutes // 60, minutes % 60, seconds)


def _tightness(state: LimitState) -> tuple[int, int]:
    """Rates come before quotas, because clients pace themselves by these headers; then the least room."""
    return int(state.limit.nature is not Nature.RATE), state.free
