"""Every failure a caller can meet, as one tree whose four branches say who owns it.

An error has a public message (the caller reads it; it says what to do) and an internal detail (only the log has
it). Nothing here renders: ``http.respond`` turns an error into a response or an event.
"""

from typing import ClassVar, Literal

Owner = Literal["caller", "limit", "provider", "us"]


class GatewayError(Exception):
    """Base of all: the class says status, type, code and owner; the instance says the rest."""

    status: int = 500
    type: str = "server_error"
    code: str | None = None
    owner: ClassVar[Owner] = "us"
    should_retry: bool | None = None
    """The ``x-should-retry`` header; None leaves the decision to the SDK (wire.md 1.1)."""
    retry_after_seconds: float | None = None

    def __init__(
        self,
        message: str,
        *,
        detail: str = "",
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.param = param
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds
        if code is not None:
            self.code = code
        if should_retry is not None:
            self.should_retry = should_retry


# --- the caller must change something


class RequestError(GatewayError):
    """The request itself is at fault; the same request will fail again."""

    status = 400
    type = "invalid_request_error"
    owner: ClassVar[Owner] = "caller"


class Malformed(RequestError):
    """The body is not JSON, or a field has a wrong type or value."""

    code = "invalid_value"


class BodyTooSlow(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"


class BodyTooLarge(RequestError):
    """The body is longer than the server reads."""

    status = 413
    code = "request_too_large"


class InvalidKey(RequestError):
    """No key, or one that does not open anything; one public text for every reason."""

    status = 401
    code = "invalid_api_key"


class NotPriced(RequestError):
    """A principal with a budget asked for something whose cost cannot be bounded."""

    status = 402
    code = "not_priced"
    should_retry = False


class NotPermitted(RequestError):
    """The key is good, but not for this."""

    status = 403
    code = "permission_denied"


class NotFound(RequestError):
    """There is no such object, or it is somebody else's."""

    status = 404
    code = "not_found"


class UnknownModel(NotFound):
    """No route serves this model name."""

    code = "model_not_found"


class MethodNotAllowed(RequestError):
    """The address exists, but not for this method."""

    status = 405
    code = "method_not_allowed"


class Conflict(RequestError):
    """The object is in a state that does not allow this."""

    status = 409
    code = "conflict"
    should_retry = False


class UnsupportedMedia(RequestError):
    """The body's content type or encoding is not read."""

    status = 415
    code = "unsupported_media_type"


# --- the caller asked for too much


class LimitError(GatewayError):
    """A limit, quota or budget stands in the way."""

    status = 429
    owner: ClassVar[Owner] = "limit"


class RateLimited(LimitError):
    """Recovers by waiting."""

    type = "requests"
    code = "rate_limit_exceeded"


class BudgetExhausted(LimitError):
    """Does not recover by waiting a little: money or tokens of the period are spent."""

    type = "insufficient_quota"
    code = "insufficient_quota"
    should_retry = False


# --- a provider failed


class UpstreamError(GatewayError):
    """A provider failed; another deployment may be tried before the first data event is forwarded."""

    status = 502
    type = "upstream_error"
    code: str | None = "upstream_error"
    owner: ClassVar[Owner] = "provider"


class UpstreamRefused(UpstreamError):
    """The provider refused the caller's request (its 400, 404, 413 or 422); not retried."""

    type = "invalid_request_error"
    owner: ClassVar[Owner] = "caller"

    def __init__(self, message: str, *, status: int, code: str | None, param: str | None, detail: str = "") -> None:
        super().__init__(message, detail=detail, param=param, should_retry=False)
        self.status = status
        self.code = code


class UpstreamBusy(UpstreamError):
    """The provider's own rate limit (its 429). Where the provider does not say how long, the wait is a guess."""

    status = 503
    code = "upstream_busy"
    retry_after_seconds = 5.0


class UpstreamDown(UpstreamError):
    """The provider cannot be reached, failed, or spoke nonsense."""

    code = "upstream_unavailable"


class UpstreamAccount(UpstreamDown):
    """The provider does not accept our own account: its credential, its credit, or what it may do."""

    code = "upstream_account"
    should_retry = False
    is_certain = True
    """False where the request may be to blame: a 403 is also what some providers answer to an input they dislike."""


class UpstreamTimeout(UpstreamError):
    """The provider did not answer in time."""

    status = 504
    code = "upstream_timeout"


class StreamCut(GatewayError):
    """We ended a running stream: its key was revoked, or the server stops."""

    status = 503
    code = "stream_cut"


# --- ours


class PlatformError(GatewayError):
    """A part of ours is down; pages."""

    status = 503
    code = "unavailable"
    retry_after_seconds = 1.0


class Overloaded(PlatformError):
    """This process has as much to do as it can; another one, or a moment later, may do."""

    code = "overloaded"


class MeterDown(PlatformError):
    """The meter cannot decide; nothing is admitted that might overspend."""

    code = "meter_unavailable"


class StoreDown(PlatformError):
    """The key store or the ledger's database cannot be reached."""

    code = "store_unavailable"


class StoreChanging(StoreDown):
    """The database answers, but its schema is being changed, or is not the one that was asked for."""


class JournalDown(PlatformError):
    """Usage cannot be made durable, so nothing new is admitted and no end of an answer is released."""

    code = "ledger_unavailable"
