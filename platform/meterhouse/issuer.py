"""The OIDC issuer whose tokens administrators may sign in with: from settings to a verifier.

Invariant: keys come from the one place that is set, and from nowhere that an answer leads to: no redirect is followed,
no proxy of the environment is used. Not here: what makes a token or a key good (``keys.tokens``, ``keys.jwks``).
"""

import asyncio
import time
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from meterhouse.db.catalog import Catalog
from meterhouse.db.organizations import OrganizationStore
from meterhouse.db.prices import MetaStore
from meterhouse.errors import NotPermitted
from meterhouse.identity import Actor, ActorKind
from meterhouse.keys.jwks import Fetch, KeySet
from meterhouse.keys.tokens import TokenPolicy, TokenVerifier, revoked_token_name
from meterhouse.metering import Clock
from meterhouse.settings import Settings, SettingsError

FETCH_SECONDS = 3.0
MAX_JWKS_BYTES = 262_144

_OK = 200


class TokenSignIn:
    """Knows administrators by the issuer's tokens, and their organizations by the catalog."""

    def __init__(self, verifier: TokenVerifier, organizations: OrganizationStore) -> None:
        self._verifier = verifier
        self._organizations = organizations

    async def actor_of(self, token: str) -> Actor:
        """Return who a token is of.

        Raises:
            InvalidKey: It is not good.
            NotPermitted: It is good, but gives no role, or one in an organization that is not here.
            StoreDown: Nobody can tell just now.
        """
        found = await self._verifier.verify(token)
        owner = found.organization_id
        if owner is not None and await self._organizations.find_organization(owner) is None:
            raise NotPermitted("This token is good, but its organization is not one of this server's.")
        return Actor(ActorKind.JWT, found.subject, found.role, owner)


def open_token_verifier(settings: Settings, clock: Clock, catalog: Catalog) -> TokenSignIn | None:
    """Return what verifies the issuer's tokens; None when no issuer is set.

    Args:
        settings: those that begin with ``oidc_``.
        clock: decides whether a token has expired.
        catalog: has the organizations, and the tokens that were revoked.

    Raises:
        SettingsError: Some are set and others missing, or the address of the keys cannot be used.
    """
    policy = token_policy(settings)
    if policy is None:
        return None
    keys = KeySet(source_of(settings.oidc_jwks or ""), policy.algorithms, time.monotonic)
    verifier = TokenVerifier(policy, keys, clock, partial(_is_revoked, catalog.meta, policy.issuer))
    return TokenSignIn(verifier, catalog.organizations)


def token_policy(settings: Settings) -> TokenPolicy | None:
    """Return what tokens have to say; None when no issuer is set.

    Raises:
        SettingsError: Some settings are there and others missing.
    """
    needed = {"ISSUER": settings.oidc_issuer, "AUDIENCE": settings.oidc_audience, "JWKS": settings.oidc_jwks}
    missing = [f"METERHOUSE_OIDC_{name}" for name, value in needed.items() if value is None]
    if len(missing) == len(needed):
        return None
    if missing:
        raise SettingsError(f"{missing[0]} is not set: sign-in with tokens needs issuer, audience and JWKS.")
    return TokenPolicy(
        issuer=settings.oidc_issuer or "",
        audience=settings.oidc_audience or "",
        algorithms=frozenset(name.strip() for name in settings.oidc_algorithms.split(",")),
        role_claim=settings.oidc_role_claim,
        organization_claim=settings.oidc_organization_claim,
        id_claim=settings.oidc_id_claim,
        leeway_seconds=settings.oidc_leeway_seconds,
        max_lifetime_seconds=settings.oidc_max_lifetime_seconds,
    )


def source_of(place: str) -> Fetch:
    """Return what reads a JWKS from an address or a file.

    Raises:
        SettingsError: It is an address over which anybody in between could give other keys.
    """
    if "://" not in place:
        return partial(_read_file, Path(place))
    parts = urlsplit(place)
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_this_machine(parts.hostname or "")):
        raise SettingsError("METERHOUSE_OIDC_JWKS: expected an https address, or a file.")
    return partial(_fetch, place)


async def _is_revoked(meta: MetaStore, issuer: str, token_id: str) -> bool:
    return await meta.find_value(revoked_token_name(issuer, token_id)) is not None


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _read_file(path: Path) -> bytes:
    body = await asyncio.to_thread(_read_bounded, path)
    if len(body) > MAX_JWKS_BYTES:
        raise OSError(f"{path} is longer than {MAX_JWKS_BYTES} bytes")
    return body


def _read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_JWKS_BYTES + 1)


async def _fetch(address: str) -> bytes:
    """Read an address; raises OSError for whatever is not a 200 with a body of bearable length in time."""
    timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
    body = bytearray()
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False) as session,
            session.get(address, allow_redirects=False) as answer,
        ):
            if answer.status != _OK:
                raise OSError(f"the address of the keys answered {answer.status}")
            async for piece in answer.content.iter_chunked(65_536):
                body += piece
                if len(body) > MAX_JWKS_BYTES:
                    raise OSError(f"the keys are longer than {MAX_JWKS_BYTES} bytes")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise OSError(f"the keys could not be read: {type(error).__name__}") from error
    return bytes(body)
