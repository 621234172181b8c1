"""``GET /v1/live`` and ``GET /admin/live``: requests as they run, as server-sent events.

A stream ends when the client leaves, its key is no longer good, or the process stops; who wants more connects again.
Not here: what is told, and the bounds (``telemetry.live``).
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from meterhouse.admin.guard import SignedIn
from meterhouse.admin.guard import sign_in as sign_in_author
from meterhouse.errors import GatewayError, NotFound, StoreDown
from meterhouse.http.account import MayReadUsage, sign_in
from meterhouse.http.exchange import exchange_of
from meterhouse.http.respond import OPENAI_ENVELOPE
from meterhouse.http.tasks import Tasks
from meterhouse.identity import KeyScope
from meterhouse.telemetry.live import EVERYBODY, Listener, Live, LiveEvent

CHECK_SECONDS = 5.0
"""How often a quiet stream says that it lives, and the key of any is looked at again."""
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events until the client leaves", "content": {"text/event-stream": {}}}
}
UNKNOWN_SECONDS = 300.0
"""How long a stream goes on while no store can tell whether its key is good."""
LISTENING = b": listening\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


@dataclass(frozen=True, slots=True)
class LiveParts:
    """What the pages are made of."""

    live: Live
    tasks: Tasks


class LiveStream(Response):
    """The answer: it owns its listener, from the first byte to the last."""

    def __init__(
        self, parts: LiveParts, organization_id: str, root_key_id: str | None, check: Callable[[], Awaitable[object]]
    ) -> None:
        super().__init__()
        self._parts = parts
        self._organization_id = organization_id
        self._root_key_id = root_key_id
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until somebody has had enough."""
        async with self._parts.live.listen(self._organization_id, self._root_key_id) as listener:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            await send({"type": "http.response.body", "body": LISTENING, "more_body": True})
            leaving = self._parts.tasks.start(_wait_for_leaving(receive, listener))
            last = b""
            try:
                await self._send_events(listener, send)
            except GatewayError as error:
                exchange_of(scope).error = error
                last = OPENAI_ENVELOPE.event(error, "")
            finally:
                leaving.cancel()
            await send({"type": "http.response.body", "body": last})

    async def _send_events(self, listener: Listener, send: Send) -> None:
        """Send what there is; raises once the key is no longer good, or nobody can tell for too long."""
        checked_at = known_at = time.monotonic()
        while not listener.is_closed:
            events = await listener.take(CHECK_SECONDS)
            body = b"".join(map(_frame, events)) or KEEP_ALIVE
            await send({"type": "http.response.body", "body": body, "more_body": True})
            now = time.monotonic()
            if now - checked_at < CHECK_SECONDS and not listener.is_doubted:
                continue
            checked_at, listener.is_doubted = now, False
            try:
                await self._check()
                known_at = now
            except StoreDown:
                if now - known_at > UNKNOWN_SECONDS:
                    raise


def build_live_router(parts: LiveParts) -> APIRouter:
    """Make the routes."""
    router = APIRouter(tags=["live"])
    verify = sign_in(KeyScope.USAGE)

    @router.get("/v1/live", summary="This key's requests as they run", response_class=Response, responses=EVENT_STREAM)
    async def follow_key(request: Request, principal: MayReadUsage) -> LiveStream:
        return LiveStream(parts, principal.organization_id, principal.root_key_id, lambda: verify(request))

    @router.get("/admin/live", summary="Requests as they run", response_class=Response, responses=EVENT_STREAM)
    async def follow_all(
        request: Request,
        author: SignedIn,
        organization_id: Annotated[
            str, Query(max_length=64, description="Only those of one; unset: all that may be seen")
        ] = EVERYBODY,
    ) -> LiveStream:
        own = author.actor.organization_id
        if own is not None and organization_id not in {EVERYBODY, own}:
            raise NotFound("There is no such organization, or this credential is not bound to it.")
        return LiveStream(parts, own or organization_id, None, lambda: sign_in_author(request, None))

    return router


def _frame(event: LiveEvent) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), msgspec.json.encode(event))


async def _wait_for_leaving(receive: Receive, listener: Listener) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    listener.close()
