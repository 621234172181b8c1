"""Posts to addresses that tenants or the operator name: the second file that knows the HTTP client.

``providers.upstream`` is made for many long answers of few known servers; this one for short words to anybody.
Invariant: what a name resolves to is checked where it is connected to, at every try, so that no name leads to a private
address, whatever it resolved to before; no redirect is followed, no proxy used, no cookie kept; of an answer nothing
but its status is looked at. Not here: what is posted, and when it is tried again.
"""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp

from meterhouse import __version__
from meterhouse.providers.address import may_be_public
from meterhouse.providers.aiohttp_client import PublicResolver

MAX_CONNECTIONS = 16
MAX_HEADER_LINE_BYTES = 8_190
HTTPS_PORT = 443


class Undelivered(Exception):
    """It did not arrive; the text says why, and shows nothing of an answer. Never leaves ``billing``."""


class Outbound:
    """Posts. One per process, entered in its event loop."""

    def __init__(self, *, allows_private: bool) -> None:
        """Say whether private addresses and plain HTTP may be posted to."""
        self._allows_private = allows_private
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        resolver = aiohttp.ThreadedResolver() if self._allows_private else PublicResolver()
        connector = aiohttp.TCPConnector(
            limit=MAX_CONNECTIONS, resolver=resolver, use_dns_cache=False, force_close=True, happy_eyeballs_delay=None
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            max_line_size=MAX_HEADER_LINE_BYTES,
            max_field_size=MAX_HEADER_LINE_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def check(self, url: str) -> None:
        """Refuse an address that can be seen not to be allowed.

        Raises:
            ValueError: with a text that says what to change.
        """
        parts = urlsplit(url)
        host = parts.hostname or ""
        if not host or parts.username or parts.password or parts.fragment or not url.isascii() or " " in url:
            raise ValueError("an address is written as https://example.com/path, without a login")
        if self._allows_private and parts.scheme in {"http", "https"}:
            return
        if parts.scheme != "https" or parts.port not in {None, HTTPS_PORT}:
            raise ValueError("an address begins with https:// and has no port of its own")
        if not may_be_public(host):
            raise ValueError(f"{host} is no public address")

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout_seconds: float) -> None:
        """Post once; returns when the answer's status was 2xx.

        Raises:
            Undelivered: It was not, or there was none in time.
        """
        if self._session is None:
            raise Undelivered("the server is stopping")
        try:
            self.check(url)  # a literal address meets no resolver
            async with (
                asyncio.timeout(timeout_seconds),
                self._session.post(
                    url,
                    data=body,
                    headers={"user-agent": f"meterhouse/{__version__}", "accept-encoding": "identity", **headers},
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=timeout_seconds),
                ) as response,
            ):
                status = response.status
                response.close()  # whatever it says, and however much of it
        except TimeoutError:
            raise Undelivered(f"no answer within {timeout_seconds:g} s") from None
        except aiohttp.ClientResponseError:
            raise Undelivered("the answer was no HTTP") from None  # its text would show what came
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Undelivered(f"{type(error).__name__}: {_said(error)}"[:200]) from None
        if not 200 <= status < 300:  # noqa: PLR2004 - HTTP's class
            raise Undelivered(f"status {status}")


def _said(error: Exception) -> str:
    """Return what went wrong; of a connection that was not made, what the resolver or the system said."""
    return str(error.os_error) if isinstance(error, aiohttp.ClientConnectorError) else str(error)
