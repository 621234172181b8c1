"""Who may administrate, and how often: sign-in by admin key or token, a role for each route, a limit per address.

Only the ``Authorization`` header is read: a key in another header opens nothing here. The limiter's storage blocks, so
it runs in one synchronous dependency that FastAPI puts on a thread (design.md 6); slowapi's ASGI middleware is not
used: it breaks streams. Not here: which role may what (``admin.roles``), and the counting (``admin.limiter``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from meterhouse.admin.limiter import AdminLimiter
from meterhouse.admin.roles import MATRIX
from meterhouse.db.organizations import OrganizationStore
from meterhouse.errors import InvalidKey, NotFound, NotPermitted
from meterhouse.identity import Actor, Author, Role
from meterhouse.keys.keyring import Keyring
from meterhouse.keys.secret import looks_like_ours

ORGANIZATION_HEADER = "openai-organization"
_TOKEN_PARTS = 3


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
        await run_in_threadpool(guard.limiter.note_failure, _address(request), authorization)
        raise
    if not guard.limiter.knows(authorization):
        await run_in_threadpool(guard.limiter.note_good, authorization)
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


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"
