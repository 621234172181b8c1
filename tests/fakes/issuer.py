"""An OIDC issuer on a real socket: its keys, its JWKS, and tokens of every kind, signed without the library under test.

``Issuer.answer`` decides what the JWKS address answers, so that a test can rotate keys, redirect, stall or fail.
"""

import base64
import hmac
import json
import threading
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ISSUER = "https://login.example.com/"
AUDIENCE = "meterhouse-admin"
HASHES = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}
CURVES = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def b64_int(number: int, length: int | None = None) -> str:
    return b64(number.to_bytes(length or max(1, -(-number.bit_length() // 8)), "big"))


@cache
def rsa_key(name: str = "first", bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return the RSA key of a name; made once, which takes a while."""
    del name
    return rsa.generate_private_key(65_537, bits)


@cache
def ec_key(name: str = "first", curve: str = "P-256") -> ec.EllipticCurvePrivateKey:
    del name
    return ec.generate_private_key(CURVES[curve]())


def rsa_jwk(key_id: str, key: rsa.RSAPrivateKey, **more: Any) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    return {"kty": "RSA", "kid": key_id, "use": "sig", "n": b64_int(numbers.n), "e": b64_int(numbers.e), **more}


def ec_jwk(key_id: str, key: ec.EllipticCurvePrivateKey, **more: Any) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    curve = next(name for name, kind in CURVES.items() if isinstance(key.curve, kind))
    length = -(-key.curve.key_size // 8)
    x, y = b64_int(numbers.x, length), b64_int(numbers.y, length)
    return {"kty": "EC", "kid": key_id, "use": "sig", "crv": curve, "x": x, "y": y, **more}


def sign(header: dict[str, Any] | str, claims: dict[str, Any] | str | bytes, key: object, algorithm: str) -> str:
    """Sign anything with anything: RS*, ES* with a private key, HS* with bytes, "none" with nothing."""

    def encode(part: dict[str, Any] | str | bytes) -> str:
        text = json.dumps(part) if isinstance(part, dict) else part
        return b64(text if isinstance(text, bytes) else text.encode())

    signed = f"{encode(header)}.{encode(claims)}"
    return f"{signed}.{b64(_signature(signed.encode(), key, algorithm))}"


def _signature(data: bytes, key: object, algorithm: str) -> bytes:
    if algorithm == "none":
        return b""
    if isinstance(key, bytes):
        return hmac.digest(key, data, f"sha{algorithm[2:]}")
    kind = HASHES[algorithm[2:]]()
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), kind)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    length = -(-key.curve.key_size // 8)
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(kind)))
    return r.to_bytes(length, "big") + s.to_bytes(length, "big")


def claims_at(now_seconds: int, **changes: Any) -> dict[str, Any]:
    """Return good claims of an operator; a change to None leaves a claim out."""
    good: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "user-1",
        "iat": now_seconds,
        "exp": now_seconds + 600,
        "jti": "token-1",
        "meterhouse_role": "operator",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


Answer = tuple[int, dict[str, str], bytes]


class Issuer:
    """Serves a JWKS at ``address`` and counts how often it was asked for."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys: list[Any] = list(keys or [rsa_jwk("rsa-1", rsa_key())])
        self.answer: Callable[[str], Answer] = lambda _: (200, {}, json.dumps({"keys": self.keys}).encode())
        self.asked: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked.append(self.path)
                status, headers, body = owner.answer(self.path)
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/keys"

    def token(self, now_seconds: int, **changes: Any) -> str:
        """Return a good token of the first key, with other claims where they are given."""
        header = {"alg": "RS256", "typ": "JWT", "kid": "rsa-1"}
        return sign(header, claims_at(now_seconds, **changes), rsa_key(), "RS256")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
