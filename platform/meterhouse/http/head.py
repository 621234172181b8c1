"""The head of a request: what may not be among its headers, which one counts, and what its address says.

Invariant: who reads the first of several and who reads the last do not disagree about what decides whose request it is
and where it ends. Not here: how long a head may be, and take (``connection``).
"""

import urllib.parse
from collections.abc import Collection, Mapping

import httptools
from starlette.types import Scope

HEADERS = "meterhouse.headers"
"""The key in the scope of a request's headers by name; of one that came more than once the first counts."""
MAX_HEADERS = 256
Target = tuple[bytes, str, bytes, bytes]
"""An address as it came, the path that is matched, the path as it came, the query."""
_SCHEMES = {b"http": "http", b"https": "https"}
_ONCE = frozenset({b"host", b"authorization", b"content-length", b"transfer-encoding", b"content-encoding"})
"""Who reads the first and who reads the last of several must not disagree about these."""


def check_headers(headers: Collection[tuple[bytes, bytes]], version: str) -> None:
    """Look closely at the headers of a head, whose names are in lower case.

    Raises:
        ValueError: They can be read in two ways, or are too many.
    """
    if len(headers) > MAX_HEADERS:
        raise ValueError("too many headers")
    seen: set[bytes] = set()
    for name, value in headers:
        if name in _ONCE:
            if name in seen:
                raise ValueError("a header is there twice")
            seen.add(name)
            if name == b"transfer-encoding" and (value.lower() != b"chunked" or version != "1.1"):
                raise ValueError("a transfer coding that is not read")
    if version == "1.1" and b"host" not in seen:
        raise ValueError("no host is named")


def is_expecting(headers: Collection[tuple[bytes, bytes]]) -> bool:
    """Whether a client waits for word before it sends its body (RFC 9110, section 10.1.1)."""
    return any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers)


def note_client(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    """Take a proxy's word for its client's address, and for how that is connected; of several addresses the first."""
    address = headers.get(b"x-forwarded-for", b"").partition(b",")[0].strip()
    if address:
        scope["client"] = (address.decode("latin-1"), 0)
    scheme = headers.get(b"x-forwarded-proto")
    if scheme in _SCHEMES:
        scope["scheme"] = _SCHEMES[scheme]


def read_target(url: bytes, root_path: str) -> Target:
    """Return an address and what it says.

    Raises:
        HttpParserInvalidURLError: It is none.
    """
    parsed = httptools.parse_url(url)
    path = parsed.path.decode("ascii")
    if "%" in path:
        path = urllib.parse.unquote(path)
    return url, root_path + path, root_path.encode("ascii") + parsed.path, parsed.query or b""
