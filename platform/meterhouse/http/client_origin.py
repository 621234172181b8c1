"""Which pages may use a client token: CORS for those that it names, and a refusal for others that a browser admits to.

A preflight carries no token, so that it cannot say whose page asks: it is answered for every page, and tells nothing
(keys and tokens travel in a header, never in a cookie). Which page may read an answer is decided by the token of the
request itself. Not here: pages that the operator names for every key (``app``).
"""

from collections.abc import Awaitable, Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meterhouse.errors import Malformed, NotPermitted
from meterhouse.http.exchange import Exchange, exchange_of
from meterhouse.http.middleware import credential_of, header
from meterhouse.identity import Principal
from meterhouse.keys.client_tokens import find_token

UNAUTHORIZED = 401
MAX_ORIGIN_LENGTH = 256
PREFLIGHT_SECONDS = 600


def check_origin(principal: Principal, origin: str | None) -> None:
    """Refuse a page that the token does not name, where a browser says which page asks.

    A program that is no browser may say what it likes, so that this keeps honest browsers only.

    Raises:
        NotPermitted: The token is of other pages.
    """
    if principal.origins is not None and origin is not None and origin not in principal.origins:
        raise NotPermitted(
            "This client token may not be used from this page. Name its origin where the token is made.",
            detail=f"{principal.key_id} from {origin[:MAX_ORIGIN_LENGTH]}",
        )


class ClientTokenCors:
    """Lets a page that a token names read what is answered to it. Put outside of everything but the operator's CORS."""

    def __init__(self, app: ASGIApp, paths: Collection[str], exposed: Collection[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)
        self._exposed = ", ".join(exposed)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle a request."""
        origin = header(scope, b"origin") if scope["type"] == "http" else None
        if origin is None or len(origin) > MAX_ORIGIN_LENGTH or scope["path"] not in self._paths:
            return self._app(scope, receive, send)
        return self._answer(origin, scope, receive, send)

    async def _answer(self, origin: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a page."""
        headers = Headers(scope=scope)
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _answer_preflight(send, origin, headers.get("access-control-request-headers", ""))
            return
        is_token = _has_token(scope)

        async def reply(message: Message) -> None:
            if message["type"] == "http.response.start" and is_token:
                self._allow(exchange_of(scope), origin, message)
            await send(message)

        await self._app(scope, receive, reply)

    def _allow(self, exchange: Exchange, origin: str, message: Message) -> None:
        principal = exchange.principal
        # That a token is not good (any more) may be read by whoever sent it: a page has to ask for a new one then.
        is_named = origin in (principal.origins or ()) if principal is not None else message["status"] == UNAUTHORIZED
        headers = MutableHeaders(scope=message)
        if is_named and "access-control-allow-origin" not in headers:
            headers["access-control-allow-origin"] = origin
            headers["access-control-expose-headers"] = self._exposed
            headers.add_vary_header("Origin")


def _has_token(scope: Scope) -> bool:
    """Whether a request's credential is a token, in whichever header; two that differ are nobody's."""
    try:
        return find_token(credential_of(scope)) is not None
    except Malformed:
        return False


async def _answer_preflight(send: Send, origin: str, asked: str) -> None:
    headers = MutableHeaders()
    headers["access-control-allow-origin"] = origin
    headers["access-control-allow-methods"] = "GET, POST"
    headers["access-control-allow-headers"] = asked if asked.isascii() and asked.isprintable() else "authorization"
    headers["access-control-max-age"] = str(PREFLIGHT_SECONDS)
    headers["content-length"] = "0"
    headers.add_vary_header("Origin")
    await send({"type": "http.response.start", "status": 200, "headers": headers.raw})
    await send({"type": "http.response.body", "body": b""})
