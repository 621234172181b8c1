"""Identifiers: time-ordered request ids and prefixed random ids.

A request id is a UUIDv7 (RFC 9562) in 32 hexadecimal characters; on the wire it wears the prefix ``req_``.
"""

import secrets
import time

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
REQUEST_PREFIX = "req_"

_RANDOM_BITS = 74
_HEX_LENGTH = 32


def new_request_id() -> str:
    """Make a UUIDv7 as 32 hexadecimal characters: 48 bits of milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    randomness = secrets.randbits(_RANDOM_BITS)
    value = (
        (milliseconds & 0xFFFF_FFFF_FFFF) << 80
        | 0x7 << 76
        | (randomness >> 62) << 64
        | 0b10 << 62
        | randomness & 0x3FFF_FFFF_FFFF_FFFF
    )
    return f"{value:032x}"


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
