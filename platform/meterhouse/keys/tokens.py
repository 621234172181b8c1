"""JWTs of an OIDC issuer as the credential of an administrator: python-jose behind one strict wrapper.

The library by itself takes the algorithm from the token, tries every key of a set, lets a token pass that names no
audience, and ignores ``crit``. So it is asked for one thing only, whether a signature is good under one key and one
algorithm that were chosen here; everything else is decided in this file, before and after.

Invariant: a token is believed only when each step has passed; the caller reads one text whatever was wrong, and the
reason, which holds nothing of the token, is only in the log. Not here: the issuer's keys (``keys.jwks``), and what a
role may do (``admin``).
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jose import jws
from jose.exceptions import JOSEError

from meterhouse.errors import InvalidKey, NotPermitted
from meterhouse.identity import Role
from meterhouse.keys.jwks import KeySet
from meterhouse.metering import Clock

MAX_TOKEN_CHARACTERS = 4_096
MAX_ID_CHARACTERS = 256
MAX_SECONDS = 2**40
"""Later than any time that a token can honestly name."""
TYPES = frozenset({"jwt", "at+jwt"})
"""What ``typ`` may be, in any letters: a JWT, or an access token as RFC 9068 has it."""
FORBIDDEN_HEADERS = frozenset(
    {"crit", "b64", "jku", "jwk", "x5u", "x5c", "zip", "enc", "cty", "epk", "apu", "apv", "p2s", "p2c"}
)
"""What would name a key, change how the rest is read, or make it an encrypted token."""

_REVOKED = "token_revoked:"
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_INVALID = (
    "This token is not valid here. It may have expired, or be meant for another server: sign in again with your "
    "identity provider."
)
_NO_ROLE = (
    "This token is good, but gives no role here: it has to name one of operator, owner and reader, and for an owner "
    "or a reader the organization. Ask whoever looks after your identity provider."
)

IsRevoked = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPolicy:
    """What a token has to say."""

    issuer: str
    audience: str
    algorithms: frozenset[str]
    role_claim: str
    """The name of a claim, or with a leading slash the way to one inside others: ``/realm_access/roles``."""
    organization_claim: str
    id_claim: str
    leeway_seconds: int
    max_lifetime_seconds: int


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """Who a token speaks for."""

    subject: str
    role: Role
    organization_id: str | None
    """None for an operator, and for nobody else."""
    token_id: str
    expires_at_seconds: int


class TokenVerifier:
    """Verifies tokens. One per process."""

    def __init__(self, policy: TokenPolicy, keys: KeySet, clock: Clock, is_revoked: IsRevoked) -> None:
        self._policy = policy
        self._keys = keys
        self._clock = clock
        self._is_revoked = is_revoked

    async def verify(self, token: str) -> TokenIdentity:
        """Return who a token speaks for.

        Raises:
            InvalidKey: It is not good; why is only in ``detail``.
            NotPermitted: It is good, but gives no role here.
            StoreDown: The issuer's keys or the database cannot be read, so that nobody can tell.
        """
        claims = await self._verify_signature(token)
        reason = _why_not(claims, self._policy, self._clock.now_ms() // 1000)
        if reason:
            raise _invalid(reason)
        token_id = claims[self._policy.id_claim]
        if await self._is_revoked(token_id):
            raise _invalid("it was revoked")
        return self._identify(claims, token_id)

    async def _verify_signature(self, token: str) -> dict[str, Any]:
        """Return the claims of a token that the issuer has signed."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise _invalid("it is too long")
        if not _SHAPE.fullmatch(token):
            raise _invalid("it does not have the three parts of a signed token")
        header = _read_part(token.partition(".")[0], "header")
        algorithm, key_id = _read_header(header, self._policy.algorithms)
        key = await self._keys.find(key_id, algorithm)
        if key is None:
            raise _invalid("the issuer has no such key for this algorithm")
        claims = _read_part(token.split(".")[1], "claims")
        _decode(token.rpartition(".")[2], "signature")
        try:
            jws.verify(token, key, [algorithm])
        except JOSEError:
            raise _invalid("its signature is wrong") from None
        return claims

    def _identify(self, claims: Mapping[str, Any], token_id: str) -> TokenIdentity:
        roles = _texts(_find_claim(claims, self._policy.role_claim))
        known = [role for role in Role if role.value in roles]
        if len(known) != 1:
            raise NotPermitted(_NO_ROLE, detail=f"{len(known)} roles in the token")
        organization_id = None
        if known[0] is not Role.OPERATOR:
            organization_id = _find_claim(claims, self._policy.organization_claim)
            if not _is_name(organization_id):
                raise NotPermitted(_NO_ROLE, detail="no organization in the token")
        return TokenIdentity(claims["sub"], known[0], organization_id, token_id, claims["exp"])


def revoked_token_name(issuer: str, token_id: str) -> str:
    """Return under which name the database knows that a token was revoked."""
    return _REVOKED + hashlib.sha256(f"{issuer}\0{token_id}".encode()).hexdigest()


def _invalid(reason: str) -> InvalidKey:
    return InvalidKey(_INVALID, detail=f"token: {reason}")


def _decode(part: str, name: str) -> bytes:
    """Decode base64url that is written in the one way that it can be."""
    try:
        decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        raise _invalid(f"its {name} is not base64url") from None
    if base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() != part:
        raise _invalid(f"its {name} is written in another way than base64url is")
    return decoded


def _read_part(part: str, name: str) -> dict[str, Any]:
    """Read a JSON object in which no name occurs twice and every number is one."""
    try:
        text = _decode(part, name).decode("utf-8")
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _invalid(f"its {name} cannot be read as JSON") from None
    if not isinstance(value, dict):
        raise _invalid(f"its {name} is no JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name occurs twice")
    return made


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _read_header(header: Mapping[str, Any], algorithms: frozenset[str]) -> tuple[str, str]:
    """Return algorithm and key id of a header."""
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise _invalid("its algorithm is not allowed")
    if FORBIDDEN_HEADERS & header.keys():
        raise _invalid("its header has a field that is refused")
    if not isinstance(kind, str) or kind.lower() not in TYPES:
        raise _invalid("it does not say that it is a JWT")
    if not _is_name(key_id):
        raise _invalid("it names no key")
    return algorithm, str(key_id)


def _why_not(claims: Mapping[str, Any], policy: TokenPolicy, now_seconds: int) -> str:
    """Say why claims are not good; empty when they are."""
    audiences = _texts(claims.get("aud"))
    times = [claims.get(name) for name in ("exp", "iat")]
    not_before = claims.get("nbf", 0)
    leeway = policy.leeway_seconds
    if claims.get("iss") != policy.issuer:
        return "another issuer made it"
    if policy.audience not in audiences:
        return "it is meant for another audience"
    if not all(_is_time(at) for at in (*times, not_before)):
        return "a time in it is missing or none"
    expires_at, issued_at = int(times[0] or 0), int(times[1] or 0)
    if now_seconds >= expires_at + leeway:
        return "it has expired"
    if max(issued_at, not_before) > now_seconds + leeway:
        return "it is not valid yet"
    if not 0 < expires_at - issued_at <= policy.max_lifetime_seconds:
        return "it lives longer than is allowed"
    if not _is_name(claims.get("sub")) or not _is_name(claims.get(policy.id_claim)):
        return "it has no subject or no id"
    return ""


def _is_time(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_SECONDS


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARACTERS and value.isprintable()


def _texts(value: object) -> list[str]:
    """Return a claim that is a text or a list of texts as a list; anything else is an empty one."""
    if isinstance(value, str):
        return [value]
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []


def _find_claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim by its name, or by the way to it through objects; None when there is none."""
    if not name.startswith("/"):
        return claims.get(name)
    found: Any = claims
    for part in name[1:].split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found
