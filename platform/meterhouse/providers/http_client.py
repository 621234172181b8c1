"""What every HTTP client of providers keeps to, whichever of them is in force, so that a setting changes only speed.

Invariant: no header of a caller is forwarded that is not on the list, no redirect is followed, no encoded body read.
Not here: connections (``http1``, ``aiohttp_client``), what an answer means (relay, refusal).
"""

from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from yarl import URL

from meterhouse import __version__
from meterhouse.errors import JournalDown, UpstreamDown
from meterhouse.providers.answer import Answer
from meterhouse.providers.provider import Endpoint, Provider

MAX_CONNECTIONS = 20_000
"""More wait for a connection, at most for the connect timeout."""
IDLE_CONNECTION_SECONDS = 4.0
"""Below the 5 s after which uvicorn closes (vLLM, SGLang): a request on a connection that closes under it fails."""
MAX_HEADER_LINE_BYTES = 8_190
MAX_HEADERS = 128
FORWARDED_HEADERS = ("traceparent", "tracestate", "content-type")
VERSION_HEADERS = ("anthropic-version", "anthropic-beta")
"""Forwarded only where the provider's row has a version of its own, which they stand in place of."""
OK = 200
CLOSED = "The connection was closed by us."
STOPPING = "The server is stopping."
HAPPY_EYEBALLS_SECONDS = 0.25
"""How long an address has to answer before the next one of a name is tried beside it (RFC 8305)."""

_TARGETS_LIMIT = 1_024

Made = TypeVar("Made")


class StaleConnection(UpstreamDown):
    """The connection had served before, and was closed without a byte for this request: the server was about to.

    It says nothing of how the provider fares. A provider that died of the request looks the same, and is found out by
    the next one, whose connection is new.
    """


class Clearance(Protocol):
    """Whether a request may leave yet: not before it is written down that it does."""

    is_given: bool

    def tell(self, on_known: Callable[[JournalDown | None], None]) -> None:
        """Call back when it is known, and at once if it is: with None when it may leave, else with why it may not."""
        ...

    def insist(self) -> None:
        """Have it given now, for what cannot be held back; raises JournalDown where it will not be."""
        ...


class HttpClient(Protocol):
    """Sends requests over connections that it keeps. Entered once, in the event loop that it works in."""

    @property
    def open_connections(self) -> int:
        """Connections in use now; those that idle do not count."""
        ...

    async def open(self) -> None:
        """Be ready to send."""
        ...

    async def close(self) -> None:
        """Close every connection; answers that are still read fail with UpstreamDown."""
        ...

    async def post(  # noqa: PLR0913 - what a request is made of, and when it may leave
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        *,
        is_streamed: bool,
        headers: Mapping[str, str] | None,
        seconds: float,
        clearance: Clearance | None = None,
    ) -> Answer:
        """Send a body and return when the answer's head is there; a request that may have been read is never repeated.

        Of an answer of status 200 that is not streamed it may wait for the body too: nobody can begin without it.

        Raises:
            JournalDown: It was not cleared, and nothing of it was sent.
            UpstreamDown: not reached, or what came is no usable HTTP.
            UpstreamTimeout: no connection, or no head, within the seconds.
        """
        ...

    async def get(self, endpoint: Endpoint, path: str, *, seconds: float) -> Answer:
        """Ask for a document; raises as ``post``."""
        ...


class Targets(Generic[Made]):
    """What is the same for every request to an address, made once; so many are kept that each provider has its own."""

    def __init__(self, make: Callable[[Endpoint, URL, dict[str, str]], Made]) -> None:
        """Say what is made of an endpoint, its address and the headers that every request to it carries."""
        self._make = make
        self._made: dict[tuple[int, str, str, str | None, bool, bool], tuple[Provider, Made]] = {}

    def of(self, endpoint: Endpoint, path: str, *, is_streamed: bool) -> Made:
        """Return what was made for an address.

        Raises:
            UpstreamDown: it can be no address of a provider, or a header of the row cannot be sent.
        """
        row = endpoint.provider
        key = (id(row), endpoint.base_url, path, endpoint.credential, is_streamed, endpoint.is_public_only)
        found = self._made.get(key)
        if found is not None:
            return found[1]  # the row is kept beside it, so that no other one has its id
        if len(self._made) >= _TARGETS_LIMIT:
            self._made.clear()
        try:
            url = URL(endpoint.base_url + path)
            if url.scheme not in {"http", "https"} or not url.raw_host:
                raise ValueError("no http:// or https:// with a host")
            made = self._make(endpoint, url, _headers_of(endpoint, is_streamed=is_streamed))
        except ValueError as failure:
            raise UpstreamDown(
                f"The provider {row.name} has an address that cannot be used.",
                detail=f"{type(failure).__name__}: {failure}",
            ) from failure
        self._made[key] = (row, made)
        return made


def _headers_of(endpoint: Endpoint, *, is_streamed: bool) -> dict[str, str]:
    row = endpoint.provider
    headers = {name.lower(): value for name, value in row.extra_headers.items()}
    headers["accept"] = "text/event-stream, application/json" if is_streamed else "application/json"
    headers["accept-encoding"] = "identity"
    headers["content-type"] = "application/json"
    headers["user-agent"] = f"meterhouse/{__version__}"
    if endpoint.credential is not None:
        headers[row.credential_header.lower()] = row.credential_prefix + endpoint.credential
    for name, value in headers.items():
        if any(letter in value for letter in "\r\n\0"):
            raise ValueError(f"the header {name} has a character that no header can carry")
    return headers


def forwarded(base: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, str]:
    """Return what a request carries beyond, or in place of, the headers that are the same for all."""
    names = FORWARDED_HEADERS + (VERSION_HEADERS if VERSION_HEADERS[0] in base else ())
    found: dict[str, str] = {}
    for name in names:
        value = headers.get(name)
        if value is not None and value.isascii() and value.isprintable():
            found[name] = value
    return found


def check_usable(status: int, encoding: str, provider: str) -> None:
    """Refuse an answer that would have to be followed or decoded.

    Raises:
        UpstreamDown: It is a redirect, or encoded although that was not asked for.
    """
    if encoding.strip().lower() not in {"", "identity"}:
        raise UpstreamDown(
            f"The provider {provider} encoded its answer, which was not asked for.",
            detail=f"content-encoding {encoding[:40]}",
        )
    if status < OK or 300 <= status < 400:  # noqa: PLR2004 - HTTP's classes
        raise UpstreamDown(
            f"The provider {provider} redirects; its base URL must be the final one.",
            detail=f"status {status}",
        )
