"""The text of a key: how it is made, read and hashed.

``sk-mh-<env>-<key id>-<secret><crc>``: 12 characters of id, 32 of secret (190 bits), and a CRC32 of everything
before it in 6 characters, all base62. A typo or a fake is told from a key without any look-up. The secret is
stored nowhere: only its HMAC-SHA256 under a pepper that is not in the database. Not here: I/O.
"""

import hmac
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2s

import msgspec

from meterhouse.ids import BASE62, random_base62

ADMIN_ENVIRONMENT = "admin"
"""The environment of operators' keys; no tenant's key may have it."""
MAX_LENGTH = 256

_PREFIX = "sk-mh-"
ID_PREFIX = "key_"
_ID_LENGTH = 12
_SECRET_LENGTH = 32
_CRC_LENGTH = 6
_PAIRS = tuple(first + second for first in BASE62 for second in BASE62)
"""The two characters of each number below 62 x 62."""
_KEY = re.compile(r"sk-mh-([a-z][a-z0-9]{0,11})-([0-9A-Za-z]{12})-[0-9A-Za-z]{32}([0-9A-Za-z]{6})")
_ENVIRONMENT = re.compile(r"[a-z][a-z0-9]{0,11}")
_MIN_PEPPER_BYTES = 32
_MARK_KEY_BYTES = 32
ID_PLACE = slice(-_ID_LENGTH - 1 - _SECRET_LENGTH - _CRC_LENGTH, -1 - _SECRET_LENGTH - _CRC_LENGTH)
"""Where a text that ends with a key has its id, but for the prefix."""


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A key just made: the one moment at which its text is known."""

    value: str = field(repr=False)
    key_id: str
    redacted: str


class ParsedSecret(msgspec.Struct, frozen=True):
    """A text that has the form of a key; whether it opens anything is another question.

    A struct, because one is made for every request; as a text it does not show its value.
    """

    value: str
    environment: str
    key_id: str

    def __repr__(self) -> str:
        return f"ParsedSecret(environment={self.environment!r}, key_id={self.key_id!r})"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        # A struct's own shows every field to whatever prints with rich.
        return [("environment", self.environment), ("key_id", self.key_id)]

    @property
    def is_admin(self) -> bool:
        """Whether it is an operator's key."""
        return self.environment == ADMIN_ENVIRONMENT


def make(environment: str) -> NewSecret:
    """Make a new key, for tenants (any environment but ``admin``) or for operators (``admin``).

    Raises:
        ValueError: the environment is not a lower-case word of at most 12 letters and digits.
    """
    if not _ENVIRONMENT.fullmatch(environment):
        raise ValueError(f"not a key environment: {environment!r} (a lower-case letter, then at most 11 of a-z0-9)")
    bare_id = random_base62(_ID_LENGTH)
    head = f"{_PREFIX}{environment}-{bare_id}-"
    body = head + random_base62(_SECRET_LENGTH)
    return NewSecret(value=body + _checksum(body), key_id=ID_PREFIX + bare_id, redacted=f"{head}...")


def parse(text: str) -> ParsedSecret | None:
    """Read a key; None when the text is no key of ours or has a typo. Does no I/O; takes 2 us."""
    if len(text) > MAX_LENGTH:
        return None
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    environment, bare_id, checksum = match.groups()
    if _checksum(text[:-_CRC_LENGTH]) != checksum:
        return None
    return ParsedSecret(value=text, environment=environment, key_id=ID_PREFIX + bare_id)


def looks_like_ours(text: str) -> bool:
    """Say whether a text holds something like a key of ours, whole or not: it is never a provider's credential."""
    return _PREFIX in text


class Peppers:
    """The secrets that keys are hashed with, by version; one of them, the newest unless told otherwise, hashes keys.

    A pepper stays as long as keys hashed with it are in use.
    """

    def __init__(self, by_version: Mapping[int, bytes], version: int | None = None) -> None:
        """Take peppers by version, and the version that hashes; None: the newest.

        Raises:
            ValueError: there is none, not that one, or one is shorter than 32 bytes.
        """
        if not by_version:
            raise ValueError("at least one pepper is needed")
        if any(len(pepper) < _MIN_PEPPER_BYTES for pepper in by_version.values()):
            raise ValueError(f"a pepper needs at least {_MIN_PEPPER_BYTES} bytes")
        self._by_version = dict(by_version)
        # OpenSSL takes longer to set a key up than to hash with one that stands.
        self._keyed = {version: hmac.new(pepper, digestmod="sha256") for version, pepper in by_version.items()}
        self._version = max(by_version) if version is None else version
        if self._version not in by_version:
            raise ValueError(f"there is no pepper of version {version}")
        self._dummy = "0" * 64

    def derive(self, purpose: bytes) -> dict[int, bytes]:
        """Return a secret for another purpose from each pepper, by version; it tells nothing of the pepper."""
        return {version: hmac.digest(pepper, purpose, "sha256") for version, pepper in self._by_version.items()}

    @property
    def version(self) -> int:
        """The version that hashes keys now."""
        return self._version

    def hash(self, value: str) -> tuple[int, str]:
        """Hash a whole key with the pepper in use; returns the pepper's version and 64 hexadecimal characters."""
        return self._version, self._hmac(self._version, value)

    def verify(self, value: str, version: int, expected: str) -> bool:
        """Compare a whole key with a stored hash, in constant time; False when the pepper is not known any more."""
        if version not in self._keyed:
            return self.verify_nothing(value)
        return hmac.compare_digest(self._hmac(version, value), expected)

    def verify_nothing(self, value: str) -> bool:
        """Do the work of ``verify`` for a key that is not there, so that time does not tell; always False."""
        hmac.compare_digest(self._hmac(self._version, value), self._dummy)
        return False

    def _hmac(self, version: int, value: str) -> str:
        keyed = self._keyed[version].copy()
        keyed.update(value.encode())
        return keyed.hexdigest()


class HeaderMarks:
    """Marks by which a process knows the headers again whose keys it found good, so that none is read anew each time.

    A mark is a keyed hash of the whole header: of the header itself nothing is kept, and nobody but this process, which
    draws the key, can say which mark a header has. Not here: which marks are good, and for how long (``keyring``).
    """

    def __init__(self) -> None:
        self._key = os.urandom(_MARK_KEY_BYTES)

    def of(self, header: str) -> bytes:
        """Return the mark of a header, for which its length is bounded by the caller; takes 1 us."""
        return blake2s(header.encode("utf-8", "surrogatepass"), key=self._key).digest()


def _checksum(text: str) -> str:
    rest, last = divmod(zlib.crc32(text.encode()), len(_PAIRS))
    first, middle = divmod(rest, len(_PAIRS))
    return _PAIRS[first] + _PAIRS[middle] + _PAIRS[last]
