"""The console's own server: its pages, sign-in, and the way through to the gateway.

Everything that it answers carries a strict content policy; nothing is loaded from another host. What changes something
needs the session's form token in a header, which no form of another site can send. Not here: what the pages show
(``static``), which is written against the public API.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from meterhouse.console.gateway import (
    CONTENT_TYPES,
    MOST_BODY_BYTES,
    PASSED_HEADERS,
    Asked,
    GatewayAway,
    GatewayClient,
    may_ask,
)
from meterhouse.console.sessions import LONGEST_SECONDS, Session, Sessions, Throttle

STATIC = Path(__file__).parent / "static"
COOKIE = "mh_console"
FORM_TOKEN = "x-form-token"  # noqa: S105 - the name of a header
BACKGROUND = "x-background"
"""A header of what a page asks for by itself while nobody touches it."""
CHECK_SECONDS = 1.0
"""How often it is looked at whether the session of a running answer is still open."""
MOST_SECRET_CHARACTERS = 8_192
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PRINTABLE_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'"
"""Of a page that the gateway made (an invoice): it may look like something and do nothing."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleOptions:
    """What the console is started with."""

    gateway_url: str
    hosts: frozenset[str]
    """The names under which it may be asked for, ports left out: another name is somebody's trick with DNS."""
    ca_file: str | None = None
    trace_url: str | None = None
    """Where a trace can be looked at, with ``{trace_id}`` in it; None: receipts show its id alone."""
    is_secure: bool = False
    """Whether browsers reach it by https, through a proxy: the cookie then goes nowhere else."""


class Console:
    """The parts that the routes share."""

    def __init__(self, options: ConsoleOptions) -> None:
        self.options = options
        self.gateway = GatewayClient(options.gateway_url, options.ca_file)
        self.sessions = Sessions()
        self.throttle = Throttle()

    async def sign_in(self, request: Request) -> Response:
        """Open a session with a secret that the gateway knows."""
        address = request.client.host if request.client else "unknown"
        if wait := self.throttle.wait_seconds(address):
            return _refuse(429, f"Too many failed sign-ins. Try again in {wait:.0f} seconds.")
        secret = await _read_secret(request)
        if secret is None:
            return _refuse(400, "Give a key or a token.")
        role = await self.gateway.find_role(secret)
        if role is None:
            self.throttle.note_failure(address)
            return _refuse(401, "The gateway does not know this key, or it may not look at anything.")
        value, session = self.sessions.open(secret, role)
        answer = JSONResponse(self._shown(session))
        answer.set_cookie(
            COOKIE,
            value,
            max_age=int(LONGEST_SECONDS),
            path="/",
            secure=self.options.is_secure,
            httponly=True,
            samesite="strict",
        )
        return answer

    async def show_session(self, request: Request) -> Response:
        """Say who is signed in."""
        session = self.sessions.find(request.cookies.get(COOKIE, ""))
        if session is None:
            return _refuse(401, "Sign in first.")
        return JSONResponse(self._shown(session))

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        session = self.sessions.find(request.cookies.get(COOKIE, ""))
        if session is not None and not session.has_token(request.headers.get(FORM_TOKEN, "")):
            return _refuse(403, "This form is out of date. Load the page again.")
        self.sessions.close(request.cookies.get(COOKIE, ""))
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict", secure=self.options.is_secure)
        return answer

    async def pass_on(self, request: Request) -> Response:
        """Ask the gateway for what a page asks for."""
        cookie = request.cookies.get(COOKIE, "")
        session = self.sessions.find(cookie, is_use=BACKGROUND not in request.headers)
        if session is None:
            return _refuse(401, "Your session has ended. Sign in again.")
        if request.method != "GET" and not session.has_token(request.headers.get(FORM_TOKEN, "")):
            return _refuse(403, "This form is out of date. Load the page again.")
        path = bytes(request.scope["raw_path"]).decode("ascii", "replace").partition("?")[0].removeprefix("/api")
        if not may_ask(session.role, request.method, path):
            return _refuse(404, "The console has no such page.")
        body = await _read_body(request)
        if body is None:
            return _refuse(413, f"At most {MOST_BODY_BYTES} bytes can be sent.")
        kind = request.headers.get("content-type", "").partition(";")[0]
        kind = kind if kind in CONTENT_TYPES else "application/json"
        asked = Asked(request.method, path, request.url.query, body, kind)
        return Passing(self.gateway, asked, session.secret, lambda: self.sessions.find(cookie, is_use=False) is session)

    def _shown(self, session: Session) -> dict[str, str | None]:
        return {
            "role": session.role,
            "form_token": session.form_token,
            "gateway_url": self.gateway.base_url,
            "trace_url": None if session.role == "tenant" else self.options.trace_url,
        }


class Passing(Response):
    """The gateway's answer as it comes; a browser that leaves ends the request, and so does the end of the session."""

    def __init__(self, gateway: GatewayClient, asked: Asked, secret: str, is_open: Callable[[], bool]) -> None:
        super().__init__()
        self._gateway = gateway
        self._asked = asked
        self._secret = secret
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        is_started = is_cut = is_event_stream = False

        async def send_noted(message: MutableMapping[str, Any]) -> None:
            nonlocal is_started, is_event_stream
            is_started = True
            if message["type"] == "http.response.start":
                is_event_stream = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
            await send(message)

        passing = asyncio.ensure_future(self._pass(send_noted))
        leaving = asyncio.ensure_future(_wait_for_leaving(receive))
        try:
            both = (passing, leaving)
            while not await _is_any_done(both):
                if not self._is_open():
                    is_cut = True
                    break
            if passing.done():
                passing.result()
        except GatewayAway as error:
            if not is_started:
                await _refuse(502, str(error))(scope, receive, send)
                return
            raise
        finally:
            leaving.cancel()
            passing.cancel()
            await asyncio.gather(passing, leaving, return_exceptions=True)
        if is_cut and not is_started:
            await _refuse(401, "Your session has ended. Sign in again.")(scope, receive, send)
        elif is_cut and is_event_stream:
            await send({"type": "http.response.body", "body": b""})
        # What else is cut does not end as if it were whole: the server closes the connection.

    async def _pass(self, send: Callable[[MutableMapping[str, Any]], Awaitable[None]]) -> None:
        async with self._gateway.ask(self._asked, self._secret) as answer:
            kind = answer.headers.get("content-type", "")
            name = kind.partition(";")[0].strip().lower()
            headers = {"content-type": kind if name in CONTENT_TYPES else "application/octet-stream"}
            for passed in PASSED_HEADERS:
                if passed in answer.headers:
                    headers[passed] = answer.headers[passed]
            if name == "text/html":
                headers["content-security-policy"] = PRINTABLE_POLICY
            raw = [(key.encode("latin-1"), value.encode("latin-1", "replace")) for key, value in headers.items()]
            await send({"type": "http.response.start", "status": answer.status, "headers": raw})
            async for data in answer.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


class Guarded:
    """Refuses foreign hosts and origins, and puts the headers on everything."""

    def __init__(self, app: ASGIApp, options: ConsoleOptions) -> None:
        self._app = app
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        if _host_name(headers.get("host", "")) not in self._options.hosts:
            await _refuse(421, "The console is not known under this name.")(scope, receive, send_guarded)
            return
        origin = headers.get("origin")
        if scope["method"] != "GET" and origin is not None and origin.partition("://")[2] != headers.get("host"):
            await _refuse(403, "Another site may not do this.")(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)


def build_console(options: ConsoleOptions) -> ASGIApp:
    """Make the application."""
    console = Console(options)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with console.gateway:
            yield

    async def page(_: Request) -> Response:
        return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8")

    async def away(_: Request, error: Exception) -> Response:
        return _refuse(502, str(error))

    application = Starlette(
        routes=[
            Route("/", page),
            Route("/session", console.sign_in, methods=["POST"]),
            Route("/session", console.show_session, methods=["GET"]),
            Route("/session", console.sign_out, methods=["DELETE"]),
            Route("/api/{path:path}", console.pass_on, methods=["GET", "POST", "PUT", "DELETE"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        lifespan=lifespan,
        exception_handlers={GatewayAway: away},
    )
    return Guarded(application, options)


def _refuse(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status)


def _host_name(host: str) -> str:
    return host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdecimal() else host


async def _read_body(request: Request) -> bytes | None:
    """Read a body; None when it is too long."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BODY_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


async def _read_secret(request: Request) -> str | None:
    """Read what somebody signs in with; None when it cannot be a secret."""
    body = await _read_body(request)
    try:
        given = json.loads(body) if body else None
    except (ValueError, RecursionError):
        return None
    secret = given.get("secret") if isinstance(given, dict) else None
    if not isinstance(secret, str):
        return None
    secret = secret.strip()
    is_usable = 0 < len(secret) <= MOST_SECRET_CHARACTERS and secret.isascii() and secret.isprintable()
    return secret if is_usable and " " not in secret else None


async def _is_any_done(tasks: Collection[asyncio.Future[None]]) -> bool:
    """Wait for one of these, for a while."""
    done, _ = await asyncio.wait(tasks, timeout=CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    return bool(done)


async def _wait_for_leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
