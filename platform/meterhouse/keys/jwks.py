"""The public keys of an OIDC issuer: read from a JWKS, found by their exact id, renewed when the issuer rotates them.

Invariant: what a token says never decides which key is tried, where keys come from or how a key is used. A key that is
weak, private, symmetric, not for signatures or of a name that another one has is not used at all. Not here: tokens
(``keys.tokens``), and how a file or an address is read (``issuer``).
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from jose import jwk
from jose.backends.base import Key
from jose.exceptions import JOSEError
from jose.utils import base64url_decode

from meterhouse.errors import StoreDown
from meterhouse.telemetry.logs import Event, get_logger

MAX_KEYS = 100
MAX_ID_CHARACTERS = 256
LEAST_RSA_BITS, MOST_RSA_BITS = 2_048, 8_192
"""Below it is too weak, above it a signature costs more than it should."""
LEAST_EXPONENT, MOST_EXPONENT_BITS = 65_537, 32
REFRESH_SECONDS = 300.0
"""How old keys may get before they are read again; so long a withdrawn key goes on working."""
AGAIN_SECONDS = 10.0
"""Between two reads at the least, whoever asks: a flood of unknown key ids costs the issuer no more than this."""
STALE_SECONDS = 86_400.0
"""How long keys serve that cannot be read again."""

ALGORITHMS: Mapping[str, tuple[str, str]] = {
    "RS256": ("RSA", ""),
    "RS384": ("RSA", ""),
    "RS512": ("RSA", ""),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
}
"""What a token may be signed with, and the type and curve of its key."""
_PUBLIC_MEMBERS = ("kty", "n", "e", "crv", "x", "y")
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

Fetch = Callable[[], Coroutine[Any, Any, bytes]]
"""Reads the JWKS; raises OSError when it cannot."""


class UnusableKeys(ValueError):
    """The JWKS as a whole cannot be used."""


@dataclass(frozen=True, slots=True)
class ReadKeys:
    """What a JWKS held."""

    keys: Mapping[str, Mapping[str, Key]] = field(default_factory=dict)
    """By key id, then by the algorithm that it verifies."""
    refused: tuple[str, ...] = ()
    """Why others are not used, a line each."""


class KeySet:
    """Finds the issuer's keys. One per process, used from its event loop only."""

    def __init__(self, fetch: Fetch, algorithms: Collection[str], now_seconds: Callable[[], float]) -> None:
        self._fetch = fetch
        self._algorithms = frozenset(algorithms)
        self._now_seconds = now_seconds
        self._keys: Mapping[str, Mapping[str, Key]] = {}
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._is_failing = False
        self._reading = asyncio.Lock()

    async def find(self, key_id: str, algorithm: str) -> Key | None:
        """Return the key of this id for this algorithm, None when the issuer has none.

        Raises:
            StoreDown: The keys were never read, or not for a day; or this one may be new, and they cannot be read now.
        """
        if key_id not in self._keys or (self._age() > REFRESH_SECONDS and not self._reading.locked()):
            await self._read_again()
        if self._age() > STALE_SECONDS or (self._is_failing and key_id not in self._keys):
            raise StoreDown("The keys of the identity provider cannot be read just now. Try again in a moment.")
        return self._keys.get(key_id, {}).get(algorithm)

    def _age(self) -> float:
        return float("inf") if self._read_at is None else self._now_seconds() - self._read_at

    async def _read_again(self) -> None:
        """Read the keys, unless that was tried a moment ago; what is there stays when it fails."""
        async with self._reading:
            now = self._now_seconds()
            if self._tried_at is not None and now - self._tried_at < AGAIN_SECONDS:
                return
            self._tried_at = now
            try:
                found = read_keys(await self._fetch(), self._algorithms)
            except (OSError, UnusableKeys) as error:
                self._is_failing = True
                get_logger().warning(Event.ISSUER_FAILED, detail=f"{type(error).__name__}: {error}")
                return
            self._keys, self._read_at, self._is_failing = found.keys, now, False
            if found.refused:
                get_logger().warning(Event.ISSUER_FAILED, detail="; ".join(found.refused))


def read_keys(body: bytes, algorithms: Collection[str]) -> ReadKeys:
    """Read a JWKS (RFC 7517), and of its keys those that can be used with one of these algorithms.

    Raises:
        UnusableKeys: It is no JWKS, has too many keys, or none that can be used.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise UnusableKeys("the JWKS is not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise UnusableKeys(f"the JWKS has no list 'keys' of at most {MAX_KEYS}")
    names = Counter(str(entry["kid"]) for entry in entries if isinstance(entry, dict) and _is_id(entry.get("kid")))
    keys: dict[str, Mapping[str, Key]] = {}
    refused: list[str] = []
    for i, entry in enumerate(entries, 1):
        reason = _why_not(entry, names)
        usable = {} if reason else _construct(entry, algorithms)
        if usable:
            keys[entry["kid"]] = usable
        else:
            refused.append(f"key {i} {reason or 'fits none of the algorithms that are allowed, or is damaged'}")
    if not keys:
        raise UnusableKeys("; ".join(["the JWKS has no usable key", *refused]))
    return ReadKeys(keys, tuple(refused))


def _is_id(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARACTERS


def _why_not(entry: object, names: Mapping[str, int]) -> str:
    """Say why a key is not used, whatever the algorithm; empty when nothing speaks against it."""
    if not isinstance(entry, dict) or not _is_id(entry.get("kid")):
        return "has no id"
    if names[entry["kid"]] > 1:
        return "has the id of another key"
    if _PRIVATE_MEMBERS & entry.keys():
        return "is private or symmetric: whoever can read it can make tokens"
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return "is not for signatures"
    if entry.get("kty") == "RSA":
        modulus, exponent = _integer(entry.get("n")), _integer(entry.get("e"))
        is_strong = LEAST_RSA_BITS <= modulus.bit_length() <= MOST_RSA_BITS and modulus % 2 == 1
        is_usual = exponent >= LEAST_EXPONENT and exponent % 2 == 1 and exponent.bit_length() <= MOST_EXPONENT_BITS
        if not (is_strong and is_usual):
            return f"is an RSA key of {modulus.bit_length()} bits with the exponent {exponent:#x}"[:120]
    return ""


def _integer(text: object) -> int:
    """Return a number in base64url, 0 for anything else."""
    if not isinstance(text, str) or len(text) > MOST_RSA_BITS:
        return 0
    try:
        return int.from_bytes(base64url_decode(text.encode()))
    except (ValueError, TypeError):
        return 0


def _construct(entry: Mapping[str, Any], algorithms: Collection[str]) -> dict[str, Key]:
    """Make the key for each algorithm that it is for; empty when there is none."""
    stated = entry.get("alg")
    made: dict[str, Key] = {}
    for name in sorted(algorithms):
        kind, curve = ALGORITHMS[name]
        if entry.get("kty") != kind or entry.get("crv", "") != curve or stated not in (None, name):
            continue
        public = {member: entry[member] for member in _PUBLIC_MEMBERS if member in entry}
        try:
            made[name] = jwk.construct(public, name)
        except (JOSEError, ValueError, TypeError, KeyError):
            return {}
    return made
