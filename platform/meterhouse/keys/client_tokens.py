"""Client tokens: what a tenant's server trades its key for, to hand it to a browser for a few minutes.

A token is a JWT that we sign ourselves (HS256) under a key derived from a pepper, which is at least 190 bits of chance;
so no key of anybody else's, and no token made for another purpose, opens anything here. Invariant: exactly what
``make`` writes is read; what a token says is believed only behind its signature. Not here: whether the key behind it
is still good, which ``keys.keyring`` asks at every use, and tokens of an OIDC issuer.
"""

import re
from base64 import urlsafe_b64decode
from collections import OrderedDict
from dataclasses import replace
from typing import Annotated, Final, Literal

import msgspec
from jose import jws
from jose.exceptions import JOSEError
from msgspec import Meta

from meterhouse.errors import InvalidKey
from meterhouse.identity import KeyScope, Principal
from meterhouse.ids import random_base62
from meterhouse.keys.secret import Peppers
from meterhouse.metering import Kind, Limit, Scope, Window

ALGORITHM = "HS256"
TYPE = "client+jwt"
ISSUER: Final = "meterhouse"
AUDIENCE: Final = "meterhouse/client"
LONGEST_SECONDS = 3_600
MAX_LENGTH = 4_096
MAX_MODELS = 32
MAX_ORIGINS = 8
MAX_GRANTED = 10_000
"""Tokens whose principals are kept; that of the one longest unused is made anew."""
_RANDOM_LENGTH = 16
_PURPOSE = b"meterhouse client token 1"
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_INVALID = "This client token is not valid. It may have expired: ask the server that gave it to you for a new one."

Seconds = Annotated[int, Meta(ge=0, le=2**40)]
Id = Annotated[str, Meta(min_length=1, max_length=128)]


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a token says: the claims of the JWT."""

    iss: Literal["meterhouse"]
    aud: Literal["meterhouse/client"]
    sub: Id
    """The key that it was traded for."""
    org: Id
    jti: Id
    """Its own id: the key's, a dot, and 16 random characters. Its requests are recorded under it."""
    iat: Seconds
    exp: Seconds
    cap: Annotated[int, Meta(ge=1, le=4 * 10**15)]
    """Nanos of USD that may be spent with it in all."""
    models: tuple[str, ...] | None
    """None: those of the key."""
    origins: tuple[str, ...]
    """Pages that may use it, where a browser says which page asks; empty: none is named."""


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    alg: Literal["HS256"]
    typ: Literal["client+jwt"]
    kid: Annotated[str, Meta(pattern="^[0-9]{1,9}$")]
    """The version of the pepper."""


_decode_header = msgspec.json.Decoder(_Header).decode
_decode_grant = msgspec.json.Decoder(Grant).decode


def find_token(authorization: str | None) -> str | None:
    """Return the token in an ``Authorization`` header, good or not; None when it carries something else."""
    if authorization is None or authorization.count(".") != 2:  # noqa: PLR2004 - a JWT's dots
        return None
    scheme, _, value = authorization.partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None


def key_id_of(key_or_token_id: str) -> str:
    """Return the id of the key behind an id that requests are recorded under."""
    return key_or_token_id.partition(".")[0]


class ClientTokens:
    """Makes and reads tokens, and says who speaks with one. Computes only: no I/O."""

    def __init__(self, peppers: Peppers) -> None:
        """Take the peppers; the newest signs, every one reads."""
        self._secrets = {version: secret.hex() for version, secret in peppers.derive(_PURPOSE).items()}
        self._newest = max(self._secrets)
        self._granted: OrderedDict[str, tuple[Principal, Principal]] = OrderedDict()
        """By a token's id the principals of its key and of itself: the meter plans by the identity of its limits."""

    def make(self, grant: Grant) -> str:
        """Sign a grant."""
        headers = {"typ": TYPE, "kid": str(self._newest)}
        secret = self._secrets[self._newest]
        return str(jws.sign(msgspec.to_builtins(grant), secret, headers=headers, algorithm=ALGORITHM))

    def read(self, token: str, now_ms: int) -> Grant:
        """Return what a token says.

        Raises:
            InvalidKey: It is none of ours, was changed, or has expired; which of them is only in ``detail``.
        """
        grant = self._read_signed(token)
        if now_ms >= grant.exp * 1_000:
            raise _invalid(f"{grant.jti} has expired")
        return grant

    def is_ours(self, token: str) -> bool:
        """Whether a token was made here, good still or not: whoever sends it guesses nothing."""
        try:
            self._read_signed(token)
        except InvalidKey:
            return False
        return True

    def _read_signed(self, token: str) -> Grant:
        if len(token) > MAX_LENGTH or _SHAPE.fullmatch(token) is None:
            raise _invalid("it has not the form of one")
        try:
            header = _decode_header(_decode_part(token.partition(".")[0]))
            secret = self._secrets[int(header.kid)]
            # The signature comes first, and with one algorithm that we name.
            grant = _decode_grant(jws.verify(token, secret, algorithms=[ALGORITHM]))
        except KeyError:
            raise _invalid("its pepper is not known here") from None
        except (JOSEError, msgspec.MsgspecError, ValueError) as error:
            raise _invalid(type(error).__name__) from None
        if not grant.iat <= grant.exp <= grant.iat + LONGEST_SECONDS or not grant.jti.startswith(f"{grant.sub}."):
            raise _invalid("no token of ours says such a thing")
        return grant

    def principal_of(self, grant: Grant, principal: Principal) -> Principal:
        """Return who a request with a token is, from who its key is now; the same object while that is the same."""
        known = self._granted.get(grant.jti)
        if known is None or known[0] is not principal:
            known = self._granted[grant.jti] = (principal, narrow(principal, grant))
            if len(self._granted) > MAX_GRANTED:
                self._granted.popitem(last=False)
        self._granted.move_to_end(grant.jti)
        return known[1]


def new_token_id(key_id: str) -> str:
    """Make the id of a token of a key."""
    return f"{key_id}.{random_base62(_RANDOM_LENGTH)}"


def narrow(principal: Principal, grant: Grant) -> Principal:
    """Return who a token speaks as: its key's principal with less of everything, and the cap as one more limit."""
    models = principal.models
    if grant.models is not None:
        models = frozenset(grant.models) if models is None else models & frozenset(grant.models)
    scope_id = Limit.cap_scope_id(principal.root_key_id, grant.jti, grant.exp)
    cap = Limit(Scope.KEY, scope_id, Kind.SPEND, Window.TOTAL, grant.cap)
    return replace(
        principal,
        key_id=grant.jti,
        scopes=principal.scopes & {KeyScope.INFERENCE},
        models=models,
        limits=(*principal.limits, cap),
        expires_at_ms=grant.exp * 1_000,
        origins=grant.origins,
    )


def _decode_part(part: str) -> bytes:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _invalid(detail: str) -> InvalidKey:
    return InvalidKey(_INVALID, detail=f"client token: {detail}")
