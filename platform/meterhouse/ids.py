"""Identifiers: time-ordered request ids and prefixed random ids.

A request id is a UUIDv7 (RFC 9562) in 32 hexadecimal characters; on the wire it wears the prefix ``req_``. What every
request needs comes from an ``IdSource``, which asks the system for chance once for many of them.
"""

import os
import secrets
import time

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
REQUEST_PREFIX = "req_"

_HEX_LENGTH = 32
_DRAWN_BYTES = 2_048
_CHANCE_LENGTH = 19
"""Of a request id, in random digits."""
_PREPARED = 64
"""Request ids that are made in one go, up to their time."""
_VARIANTS = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))
"""A random digit as the one that says the variant: two of its bits are kept."""


class IdSource:
    """Makes ids of chance that the system gave in advance: asking for it costs more than the rest of an id.

    Made by a process for itself and not used before a fork: two that shared what was drawn would make the same ids.
    """

    def __init__(self) -> None:
        self._drawn = ""
        self._used = 0
        self._tails: list[str] = []

    def random_hex(self, length: int) -> str:
        """Return so many random hexadecimal characters, at most 4,096; none of them is given twice."""
        begin = self._used
        end = self._used = begin + length
        if end > len(self._drawn):
            self._drawn = os.urandom(_DRAWN_BYTES).hex()
            begin, end = 0, length
            self._used = length
        return self._drawn[begin:end]

    def new_request_id(self, at_ns: int) -> str:
        """Make a UUIDv7 as 32 hexadecimal characters: 48 bits of Unix milliseconds, then 74 random bits.

        ``at_ns`` is the present in Unix nanoseconds, which whoever takes a request has just asked for.
        """
        tails = self._tails
        if not tails:
            tails += _tails_of(self.random_hex(_PREPARED * _CHANCE_LENGTH))
        return f"{at_ns // 1_000_000 & 0xFFFF_FFFF_FFFF:012x}{tails.pop()}"


def new_request_id() -> str:
    """Make a UUIDv7 as ``IdSource`` does, for what is not made for every request."""
    (tail,) = _tails_of(os.urandom(_CHANCE_LENGTH).hex()[:_CHANCE_LENGTH])
    return f"{time.time_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF:012x}{tail}"


def _tails_of(chance: str) -> list[str]:
    """Return what follows the time in UUIDv7s: version, variant, and random digits between and behind them."""
    return [
        f"7{chance[at : at + 3]}{_VARIANTS[chance[at + 3]]}{chance[at + 4 : at + _CHANCE_LENGTH]}"
        for at in range(0, len(chance), _CHANCE_LENGTH)
    ]


def request_id_time_ms(request_id: str) -> int:
    """Return the Unix milliseconds at which a request id was made."""
    return int(request_id[:12], 16)


def public_request_id(request_id: str) -> str:
    """Return the form of a request id that clients see."""
    return REQUEST_PREFIX + request_id


def parse_request_id(text: str) -> str | None:
    """Read a request id in any form a person may paste (with prefix, with hyphens); None if it is none."""
    bare = text.removeprefix(REQUEST_PREFIX).replace("-", "").lower()
    if len(bare) != _HEX_LENGTH or any(c not in "0123456789abcdef" for c in bare) or bare[12] != "7":
        return None
    return bare


def random_base62(length: int) -> str:
    """Return ``length`` random base62 characters (5.95 bits each)."""
    return "".join(secrets.choice(BASE62) for _ in range(length))


def new_id(prefix: str) -> str:
    """Return a random id with a prefix, for example ``org_3kTMd8...`` (119 bits)."""
    return f"{prefix}_{random_base62(20)}"
