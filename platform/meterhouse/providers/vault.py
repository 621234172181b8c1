"""Seals providers' credentials: AES-256-GCM under a key that is derived from the installation's peppers.

Invariant: what is sealed opens only for the place that it was sealed for, a provider's name and address, so that who
can write to the database can neither give a row another's credential nor send one elsewhere; the key is never in the
database. A pepper's version is in front of what it sealed, so that a newer one can come in use beside it.
"""

import json
import os
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
NONCE_BYTES = 12
VERSION_BYTES = 4
_PURPOSE = b"meterhouse provider credentials 2"

Place = tuple[str | None, ...]
"""Where a credential may be sent: the provider's name, and all that its address is made of."""


class Vault:
    """Seals with the pepper in use, opens with the one that sealed."""

    def __init__(self, peppers: Mapping[int, bytes], version: int | None = None) -> None:
        """Take the peppers by version, and the one in use; None: the newest."""
        self._version = max(peppers) if version is None else version
        self._ciphers = {version: AESGCM(_derive(pepper)) for version, pepper in peppers.items()}

    def seal(self, place: Place, credential: str) -> bytes:
        """Seal the credential of a provider."""
        version = self._version
        head = version.to_bytes(VERSION_BYTES, "big")
        nonce = os.urandom(NONCE_BYTES)
        return head + nonce + self._ciphers[version].encrypt(nonce, credential.encode(), head + _encode(place))

    def open(self, place: Place, sealed: bytes) -> str | None:
        """Open what was sealed for a place; None: its pepper is gone, or it was sealed for another."""
        head, nonce = sealed[:VERSION_BYTES], sealed[VERSION_BYTES : VERSION_BYTES + NONCE_BYTES]
        cipher = self._ciphers.get(int.from_bytes(head, "big"))
        if cipher is None:
            return None
        try:
            return cipher.decrypt(nonce, sealed[VERSION_BYTES + NONCE_BYTES :], head + _encode(place)).decode()
        except (InvalidTag, ValueError):
            return None


def _encode(place: Place) -> bytes:
    return json.dumps(place).encode()


def _derive(pepper: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=_PURPOSE).derive(pepper)
