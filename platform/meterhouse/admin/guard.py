"""Who may administrate, and how often: sign-in by admin key or token, a role for each route, a limit per address.

Only the ``Authorization`` header is read: a key in another header opens nothing here. The limiter's storage blocks, so
it runs in one synchronous dependency that FastAPI puts on a thread (design.md 6); slowapi's ASGI middleware is not
used: it breaks streams. Not here: which role may what (``admin.roles``).
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Annotated, Protocol

from fastapi import Depends, Request
from limits import RateLimitItem, parse
from slowapi import Limiter
from starlette.types import Scope

from meterhouse.admin.roles import MATRIX
from meterhouse.db.organizations import OrganizationStore
from meterhouse.errors import InvalidKey, NotFound, NotPermitted, RateLimited
from meterhouse.identity import Actor, Author, Role
from meterhouse.keys.keyring import Keyring
from meterhouse.keys.secret import looks_like_ours
from meterhouse.keys.throttle import MOST_ADDRESSES, network_of

ORGANIZATION_HEADER = "openai-organization"
_TOKEN_PARTS = 3
MOST_GOOD = 1_000
"""Credentials that are remembered to have been good; the one longest unused is forgotten."""


class TokenVerifier(Protocol):
    """Knows administrators by a token of somebody else's making."""

    async def actor_of(self, token: str) -> Actor:
        """Return who a token (a JWT: three parts with dots between) is of.

        Raises:
            InvalidKey: The token is not good; the reason is only in ``detail``.
            NotPermitted: It is good, but of nobody who administrates.
            PlatformError: Nobody can tell just now.
        """
        ...


class AdminLimiter:
    """Counts requests and failed sign-ins per address, in slowapi's grammar (``300/minute``).

    Failures close an address only to credentials that were not good here before: many people share the address of a
    console or an office, and one who guesses there locks nobody out. What passes is verified all the same. An IPv6
    network of 64 bits is one address. Of more than ``MOST_ADDRESSES`` the one longest unseen is forgotten.
    """

    def __init__(self, rate: str, failure_rate: str) -> None:
        self._limiter = Limiter(key_func=_address, storage_uri="memory://").limiter
        self._rate = parse(rate)
        self._failure_rate = parse(failure_rate)
        self._good: dict[bytes, None] = {}
        """Digests of headers. Written in the event loop only; ``admit`` reads it on threads."""
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._seeing = Lock()

    def admit(self, address: str, authorization: str | None = None) -> None:
        """Count a request.

        Raises:
            RateLimited: The address sent too many, or failed to sign in too often.
        """
        network = self._see(address)
        is_closed = not self._limiter.test(self._failure_rate, "failures", network)
        if is_closed and _digest(authorization) not in self._good:
            raise self._refuse(self._failure_rate, "failures", network, "Too many failed sign-ins from this address.")
        if not self._limiter.hit(self._rate, "requests", network):
            raise self._refuse(self._rate, "requests", network, "Too many administration requests from this address.")

    def note_failure(self, address: str, authorization: str | None = None) -> None:
        """Count a failed sign-in."""
        self._good.pop(_digest(authorization), None)
        self._limiter.hit(self._failure_rate, "failures", self._see(address))

    def note_good(self, authorization: str | None) -> None:
        """Remember a credential that was good."""
        digest = _digest(authorization)
        self._good.pop(digest, None)
        self._good[digest] = None
        if len(self._good) > MOST_GOOD:
            del self._good[next(iter(self._good))]

    def _see(self, address: str) -> str:
        """Return what an address is counted as, and make room for it."""
        network = network_of(address)
        with self._seeing:
            self._seen[network] = None
            self._seen.move_to_end(network)
            if len(self._seen) > MOST_ADDRESSES:
                oldest, _ = self._seen.popitem(last=False)
                self._limiter.clear(self._rate, "requests", oldest)
                self._limiter.clear(self._failure_rate, "failures", oldest)
        return network

    def _refuse(self, rate: RateLimitItem, name: str, network: str, message: str) -> RateLimited:
        reset_at_seconds = self._limiter.get_window_stats(rate, name, network).reset_time
        wait = max(1.0, reset_at_seconds - time.time())
        return RateLimited(f"{message} Try again in {wait:.0f} seconds.", retry_after_seconds=wait)


@dataclass(frozen=True, slots=True)
class AdminGuard:
    """What decides about every request to the administration; composition makes one, ``app.state.admin_guard``."""

    keyring: Keyring
    limiter: AdminLimiter
    organizations: OrganizationStore
    request_id_of: Callable[[Scope], str]
    tokens: TokenVerifier | None = None
    """None: only admin keys sign in."""

    async def sign_in(self, authorization: str | None) -> Actor:
        """Resolve a credential.

        Raises:
            InvalidKey: There is none, or it is not good.
            NotPermitted: It is not an administrator's.
            StoreDown: Nobody can tell just now.
        """
        scheme, _, credential = (authorization or "").partition(" ")
        credential = credential.strip()
        is_token = credential.count(".") == _TOKEN_PARTS - 1 and not looks_like_ours(credential)
        if self.tokens is not None and scheme.lower() == "bearer" and is_token:
            return await self.tokens.actor_of(credential)
        return await self.keyring.verify_admin(authorization)


@dataclass(frozen=True, slots=True)
class Mandate:
    """An author, and the organization that it acts on."""

    author: Author
    organization_id: str


def limit_address(request: Request) -> None:
    """Refuse an address that asks too often (a synchronous dependency: it runs on a thread)."""
    _guard(request).limiter.admit(_address(request), request.headers.get("authorization"))


async def sign_in(request: Request, _limited: Annotated[None, Depends(limit_address)]) -> Author:
    """Resolve who sends a request to a route of the administration, and check the role.

    Raises:
        InvalidKey: There is no credential, or it is not good.
        NotPermitted: It is a tenant's key, or its role may not do this.
    """
    guard, authorization = _guard(request), request.headers.get("authorization")
    try:
        actor = await guard.sign_in(authorization)
    except InvalidKey:
        guard.limiter.note_failure(_address(request), authorization)
        raise
    guard.limiter.note_good(authorization)
    allowed = MATRIX.get(f"{request.method} {request.scope['route'].path}", frozenset[Role]())
    if actor.role not in allowed:
        needed = " or ".join(f"'{role}'" for role in Role if role in allowed) or "nobody"
        raise NotPermitted(f"The role '{actor.role}' may not do this: it takes {needed}.", detail=actor.id)
    return Author(actor, _address(request), guard.request_id_of(request.scope))


SignedIn = Annotated[Author, Depends(sign_in)]


async def find_mandate(request: Request, author: SignedIn) -> Mandate:
    """Resolve which organization a request to ``/v1/organization`` is about.

    OpenAI's API has no place for it: an operator names it in the header that the SDK sends for ``organization=``; the
    oldest is meant where none is named. Everybody else is bound to one.

    Raises:
        NotFound: There is no such organization, or it is another one than the author's.
    """
    named = request.headers.get(ORGANIZATION_HEADER) or None
    own = author.actor.organization_id
    if own is not None:
        if named not in {None, own}:
            raise NotFound("There is no such organization, or this credential is not bound to it.")
        return Mandate(author, own)
    store = _guard(request).organizations
    if named is not None:
        if await store.find_organization(named) is None:
            raise NotFound(f"There is no organization '{named[:64]}'. GET /admin/organizations lists them.")
        return Mandate(author, named)
    oldest = await store.list_organizations(limit=1)
    if not oldest:
        raise NotFound("There is no organization yet. Make one with POST /admin/organizations.")
    return Mandate(author, oldest[0].id)


Mandated = Annotated[Mandate, Depends(find_mandate)]


def _guard(request: Request) -> AdminGuard:
    guard: AdminGuard = request.app.state.admin_guard
    return guard


def _digest(authorization: str | None) -> bytes:
    return hashlib.sha256((authorization or "").encode()).digest()


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"
