"""The ASGI application: routes, middleware, pages and error shapes over an open gateway.

The middleware order, outermost first: ``ClientTokenCors``, ``CORSMiddleware`` where origins are set (a page may read
errors too), ``RequestContext``, ``BodyLimit``, then the router; inference for whoever is no page passes the last two
only. Every answer, also a 404, a 405 or a 500, has OpenAI's error envelope.
"""

from collections.abc import Awaitable, Mapping, Sequence

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from meterhouse import __version__
from meterhouse.admin.guard import AdminGuard
from meterhouse.admin.organization import build_organization_router
from meterhouse.admin.router import build_admin_router
from meterhouse.errors import GatewayError, Malformed, MethodNotAllowed, NotFound
from meterhouse.gateway import Gateway
from meterhouse.http.account import build_account_router
from meterhouse.http.body import BODY_SECONDS
from meterhouse.http.client_origin import ClientTokenCors
from meterhouse.http.client_tokens import build_client_token_router
from meterhouse.http.exchange import exchange_of
from meterhouse.http.head import HEADERS
from meterhouse.http.health import build_health_router
from meterhouse.http.inference import InferenceEndpoint
from meterhouse.http.live import build_live_router
from meterhouse.http.long_chat import ask_long_chat
from meterhouse.http.middleware import BodyLimit, BodyMemory, RequestContext, first_headers
from meterhouse.http.openapi import OpenApi
from meterhouse.http.passage import ClientWire
from meterhouse.http.receipts import build_receipts_router
from meterhouse.http.respond import OPENAI_ENVELOPE, Envelope, render
from meterhouse.http.standing import build_standing_router
from meterhouse.http.unstored import build_unstored_router
from meterhouse.http.usage import build_usage_router
from meterhouse.http.wires.chat import ChatWire, SimpleWire
from meterhouse.http.wires.completions import CompletionsWire
from meterhouse.http.wires.count_tokens import CountTokensEndpoint, CountTokensWire
from meterhouse.http.wires.embeddings import EmbeddingsWire
from meterhouse.http.wires.media import MEDIA_WIRES
from meterhouse.http.wires.messages import MessagesEndpoint, MessagesWire
from meterhouse.http.wires.responses import ResponsesWire
from meterhouse.ids import public_request_id
from meterhouse.keys.throttle import KeyThrottle
from meterhouse.translate.simple_chat import SIMPLE_CHATS

MODELS = "/v1/models"
VERIFY = "/admin/ledger/verify"
"""Takes exports of the ledger, and asks who sends one before it reads."""
DESCRIPTION = """\
Point the official OpenAI SDK at `/v1` of this server with a key of ours. `GET /health` says which providers are on.
Errors have OpenAI's shape; `x-request-id` names a request, and `GET /v1/receipts/{request_id}` says what it cost.
"""

PAGE_BODY_BYTES = 1_048_576
"""Longest body of whatever is not inference."""

EXPOSED_HEADERS = (
    "x-request-id",
    "request-id",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
    "x-meterhouse-max-tokens",
    "x-meterhouse-degraded",
)


class Application:
    """Answers inference through our own middleware alone, and leaves everything else to FastAPI.

    What FastAPI puts round an endpoint that needs none of it costs as much as a tenth of a whole request. As in
    other layers that only pass a request on, no coroutine of their own is made: each is resumed at each step.
    """

    def __init__(self, inference: Mapping[str, ASGIApp], for_pages: Mapping[str, ASGIApp], rest: ASGIApp) -> None:
        """Take the endpoints by path.

        Args:
            inference: for requests that no page of a browser sends: these have no ``Origin``.
            for_pages: the same, behind what says which pages may read an answer.
            rest: whatever else there is.
        """
        self._inference = inference
        self._for_pages = for_pages
        self._rest = rest

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer a request."""
        endpoint = None
        if scope["type"] == "http" and scope["method"] == "POST":
            headers = scope.get(HEADERS) or first_headers(scope)
            endpoint = (self._for_pages if b"origin" in headers else self._inference).get(scope["path"])
        return (endpoint or self._rest)(scope, receive, send)


def build_app(gateway: Gateway) -> ASGIApp:
    """Assemble the application over an open gateway."""
    chat = ChatWire()
    made: list[tuple[ClientWire, InferenceEndpoint]] = [
        (chat, InferenceEndpoint(gateway.inference, chat, ask_long_chat)),
        *((wire, InferenceEndpoint(gateway.inference, wire)) for wire in _wires()),
        (messages := MessagesWire(), MessagesEndpoint(gateway.inference, messages)),
        (counting := CountTokensWire(), CountTokensEndpoint(gateway.inference, counting)),
    ]
    endpoints = {wire.path: endpoint for wire, endpoint in made}
    paths = (*endpoints, MODELS)
    settings = gateway.settings
    most_bytes = settings.max_body_bytes
    long = Middleware(BodyLimit, limit_bytes=most_bytes, memory=BodyMemory(settings.body_memory_bytes))
    inference = {wire.path: _wrap(endpoint, [_context(gateway, wire.envelope), long]) for wire, endpoint in made}
    cors = _cors(gateway, paths)
    for_pages = {path: _wrap(endpoint, cors) for path, endpoint in inference.items()}
    # FastAPI reads and decodes a body before it asks who sent it, so that these are short, and have their own memory.
    short = Middleware(
        BodyLimit,
        limit_bytes=min(most_bytes, PAGE_BODY_BYTES),
        memory=BodyMemory(settings.body_memory_bytes),
        seconds=BODY_SECONDS,
        long_paths={VERIFY: most_bytes},
    )
    middleware = [*cors, _context(gateway, OPENAI_ENVELOPE), short]
    return Application(inference, for_pages, _build_rest(gateway, middleware, endpoints))


def _context(gateway: Gateway, envelope: Envelope) -> Middleware:
    return Middleware(RequestContext, observer=gateway.observer, tracing=gateway.tracing, envelope=envelope)


def _wrap(endpoint: ASGIApp, middleware: Sequence[Middleware]) -> ASGIApp:
    for layer in reversed(middleware):
        endpoint = layer.cls(endpoint, *layer.args, **layer.kwargs)
    return endpoint


def _build_rest(gateway: Gateway, middleware: Sequence[Middleware], endpoints: Mapping[str, ASGIApp]) -> FastAPI:
    app = FastAPI(title="Meterhouse", version=__version__, description=DESCRIPTION, middleware=middleware)
    app.state.keyring = gateway.keyring
    app.state.admin_guard = AdminGuard(
        keyring=gateway.keyring,
        limiter=gateway.admin_limiter,
        organizations=gateway.stores.catalog.organizations,
        request_id_of=lambda scope: public_request_id(exchange_of(scope).request_id),
        tokens=gateway.tokens,
    )
    for path, endpoint in endpoints.items():  # for the methods that are not allowed
        app.router.routes.append(Route(path, endpoint, methods=["POST"], name=path))
    app.include_router(build_health_router(gateway.health))
    app.include_router(build_unstored_router())
    app.include_router(build_account_router(gateway.account))
    app.include_router(build_usage_router(gateway.admin.usage))
    app.include_router(build_receipts_router(gateway.account))
    minting = KeyThrottle(gateway.settings.client_token_rate, gateway.stores.clock, "client tokens")
    app.include_router(
        build_client_token_router(gateway.keyring.tokens, minting, gateway.account.routes, gateway.stores.clock)
    )
    app.include_router(build_live_router(gateway.live))
    app.include_router(build_organization_router(gateway.admin))
    app.include_router(build_standing_router(gateway.account, gateway.admin.service, gateway.stores.catalog.budgets))
    app.include_router(build_admin_router(gateway.admin))
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.openapi = OpenApi(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
    return app


def _wires() -> tuple[ClientWire, ...]:
    """Return every wire that clients may speak and that needs no more than that; a new one is a line here."""
    simple = (SimpleWire(simple) for simple in SIMPLE_CHATS)
    return (CompletionsWire(), EmbeddingsWire(), ResponsesWire(), *MEDIA_WIRES, *simple)


def _cors(gateway: Gateway, client_token_paths: Sequence[str]) -> list[Middleware]:
    """Let pages of a browser call: those that a token names, and, where origins are set, theirs for every key.

    Keys travel in a header, so no credentials (cookies) are allowed. All of it is for requests with an ``Origin``.
    """
    tokens = Middleware(ClientTokenCors, paths=client_token_paths, exposed=EXPOSED_HEADERS)
    origins = gateway.settings.cors_origins
    if origins is None:
        return [tokens]
    named = [origin.strip() for origin in origins.split(",")]
    return [
        tokens,
        Middleware(
            CORSMiddleware,
            allow_origins=named,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
            max_age=600,
        ),
    ]


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Give the framework's own refusals our envelope."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, GatewayError):
        return _respond(request, error.__cause__)
    where = f"{request.method} {request.url.path[:128]}"
    if error.status_code == 404:  # noqa: PLR2004 - the router's only other refusal is 405
        return _respond(request, NotFound(f"Invalid URL ({where}). GET /docs lists what there is.", code="unknown_url"))
    if error.status_code == 405:  # noqa: PLR2004 - see above
        response = _respond(request, MethodNotAllowed(f"Not allowed to {where}. GET /docs lists what is."))
        response.headers.update(error.headers or {})
        return response
    found = Malformed(str(error.detail), code="invalid_request")
    found.status = error.status_code
    return _respond(request, found)


async def _on_invalid(request: Request, error: Exception) -> Response:
    """Say what pydantic found as OpenAI would: one message, the parameter, a code; status 400."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    if first["type"] == "json_invalid":
        return _respond(request, Malformed("The request body is not valid JSON.", code="invalid_json"))
    if param is None:
        text = "The request body must be a JSON object, sent with 'Content-Type: application/json'."
        return _respond(request, Malformed(text, code="invalid_json"))
    if first["type"] == "missing":
        text = f"Missing required parameter: '{param}'."
        return _respond(request, Malformed(text, param=param, code="missing_required_parameter"))
    return _respond(request, Malformed(f"Invalid value for '{param}': {first['msg']}.", param=param))


def _respond(request: Request, error: GatewayError) -> Response:
    exchange = exchange_of(request.scope)
    exchange.error = error
    status, headers, body = render(error)
    response = Response(body, status_code=status)
    response.raw_headers = headers
    return response
