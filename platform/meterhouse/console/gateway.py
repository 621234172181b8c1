"""Passes a page's requests on to the gateway, with the secret of its session: an allow-list of the public API.

Invariant: only what is on the list is asked for, at the one address that the console was started with; no redirect is
followed; headers pass by allow-list in both directions. Not here: who is signed in (``sessions``).
"""

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from meterhouse import __version__
from meterhouse.console.sessions import Role

CONNECT_SECONDS = 5.0
MOST_BODY_BYTES = 16 << 20
"""An export of the ledger may be sent back to be verified."""
ADMINISTRATION = (
    "/admin/",
    "/v1/organization/",
)
TENANT = (
    "/v1/limits",
    "/v1/usage",
    "/v1/receipts",
    "/v1/live",
    "/v1/models",
    "/v1/client_tokens",
    "/v1/chat/completions",
)
EVERYBODY = ("/health",)
METHODS = frozenset({"GET", "POST", "PUT", "DELETE"})
CONTENT_TYPES = frozenset(
    {
        "application/json",
        "text/event-stream",
        "text/csv",
        "text/html",
        "application/x-ndjson",
        "application/octet-stream",
    }
)
PASSED_HEADERS = ("retry-after", "x-request-id", "content-disposition")

_PATH = re.compile(r"(/([A-Za-z0-9._~:@+,=-]|%(?!2[5EF]|5C|[01]|7F)[0-9A-F]{2})+)+|/", re.IGNORECASE)
"""Of what is escaped nothing that could change the path: no dot, slash, backslash, percent sign, control character."""


class GatewayAway(Exception):
    """The gateway cannot be reached; the text says what to look at."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of a page."""

    method: str
    path: str
    query: str = ""
    body: bytes = b""
    content_type: str = "application/json"


def may_ask(role: Role, method: str, path: str) -> bool:
    """Whether a session of this role may ask for this at all; the gateway decides on everything else."""
    if method not in METHODS or _PATH.fullmatch(path) is None or "/../" in f"{path}/" or "/./" in f"{path}/":
        return False
    begins = (*EVERYBODY, *(TENANT if role == "tenant" else ADMINISTRATION))
    return any(path == begin or path.startswith(begin if begin.endswith("/") else f"{begin}/") for begin in begins)


class GatewayClient:
    """A client of the gateway's public API; entered in the event loop."""

    def __init__(self, base_url: str, ca_file: str | None = None) -> None:
        self._base_url = base_url.rstrip("/").removesuffix("/v1")
        self._ca_file = ca_file
        self._session: aiohttp.ClientSession | None = None

    @property
    def base_url(self) -> str:
        """The address of the gateway, without ``/v1``."""
        return self._base_url

    async def __aenter__(self) -> Self:
        context = ssl.create_default_context(cafile=self._ca_file)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            headers={"user-agent": f"meterhouse-console/{__version__}"},
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def ask(self, asked: Asked, secret: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask the gateway; the answer is read inside.

        Raises:
            GatewayAway: It cannot be reached, or broke off.
        """
        assert self._session is not None
        query = f"?{asked.query}" if asked.query else ""
        url = URL(f"{self._base_url}{asked.path}{query}", encoded=True)
        headers = {"authorization": f"Bearer {secret}", "accept": "*/*"}
        if asked.body:
            headers["content-type"] = asked.content_type
        try:
            async with self._session.request(
                asked.method, url, data=asked.body or None, headers=headers, allow_redirects=False
            ) as answer:
                yield answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise GatewayAway(
                f"The gateway at {self._base_url} cannot be reached ({type(error).__name__}). Does it run?"
            ) from error

    async def find_role(self, secret: str) -> Role | None:
        """Return what a secret may do; None when the gateway does not know it.

        Raises:
            GatewayAway: It cannot be asked, or cannot tell now.
        """
        if not secret.startswith(("sk-mh-admin-", "eyJ")):
            may_look = await self._may_see(secret, "/v1/limits") or await self._may_see(secret, "/v1/models")
            return "tenant" if may_look else None
        if not await self._may_see(secret, "/v1/organization/audit_logs", "limit=1"):
            return None
        if await self._may_see(secret, "/admin/providers"):
            return "operator"
        return "owner" if await self._may_see(secret, "/admin/ledger/records", "limit=1") else "reader"

    async def _may_see(self, secret: str, path: str, query: str = "") -> bool:
        async with self.ask(Asked("GET", path, query), secret) as answer:
            if answer.status not in {HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                raise GatewayAway(f"The gateway at {self._base_url} answered with {answer.status}. Try again soon.")
            return answer.status == HTTPStatus.OK
