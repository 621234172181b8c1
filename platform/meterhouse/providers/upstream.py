"""The one door to providers: it opens attempts and fetches small documents, over the network or from the simulator.

Invariant: whatever goes wrong below leaves here as UpstreamDown or UpstreamTimeout; whoever is cancelled while opening
leaves no connection behind. Not here: how HTTP is spoken (``http1``, ``aiohttp_client``), what an answer means (relay,
refusal), timeouts between events.
"""

import time
from collections.abc import Awaitable, Mapping
from types import TracebackType
from typing import Literal, Self

from meterhouse.errors import UpstreamDown
from meterhouse.providers.aiohttp_client import AiohttpClient
from meterhouse.providers.answer import Answer, Opener
from meterhouse.providers.http1.client import Http1Client
from meterhouse.providers.http_client import Clearance, HttpClient
from meterhouse.providers.provider import Endpoint

ClientName = Literal["httptools", "aiohttp"]


class Upstream:
    """Opens attempts; one per process, entered in its event loop. The simulator's attempts touch no network."""

    def __init__(self, *, simulator: Opener | None = None, client: ClientName = "httptools") -> None:
        self._simulator = simulator
        self._client: HttpClient = Http1Client() if client == "httptools" else AiohttpClient()

    async def __aenter__(self) -> Self:
        await self._client.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; answers that are still read fail with UpstreamDown."""
        await self._client.close()

    @property
    def open_connections(self) -> int:
        """Connections in use now; those that idle in the pool do not count."""
        return self._client.open_connections

    def open(  # noqa: PLR0913 - what a request is made of, and when it may leave
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        *,
        is_streamed: bool,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
        clearance: Clearance | None = None,
    ) -> Awaitable[Answer]:
        """Send a POST and return when the answer's head is there, whatever its status.

        Of a good answer that is not streamed the body may be there too (``HttpClient.post``).
        ``headers`` may carry a trace context, a content type other than JSON and, to Anthropic, a version; everything
        else in it is dropped.
        Without ``timeout_seconds`` the head is waited for as long as the provider's row allows. With a ``clearance``
        nothing leaves before it is given.

        Raises:
            JournalDown: It was not cleared, and nothing of it was sent.
            UpstreamDown: not reached, or what came is no usable HTTP (a redirect, an encoded body, no HTTP at all).
            UpstreamTimeout: no connection, or no head, in time.
        """
        if endpoint.provider.wire == "simulator":
            if self._simulator is None:
                raise UpstreamDown("The simulator is switched off.")
            if clearance is not None:
                clearance.insist()
            return self._simulator.open(endpoint, path, body, is_streamed=is_streamed)
        timeouts = endpoint.provider.timeouts
        seconds = timeout_seconds or (timeouts.first_token_seconds if is_streamed else timeouts.total_seconds)
        return self._client.post(
            endpoint, path, body, is_streamed=is_streamed, headers=headers, seconds=seconds, clearance=clearance
        )

    async def fetch(
        self, endpoint: Endpoint, path: str, *, timeout_seconds: float, limit_bytes: int
    ) -> tuple[int, bytes]:
        """GET a small document: (status, body). The timeout holds for the whole of it.

        Raises:
            UpstreamDown: as ``open``, or the body is longer than the limit.
            UpstreamTimeout: not all of it came in time.
        """
        deadline = time.monotonic() + timeout_seconds
        answer = await self._client.get(endpoint, path, seconds=timeout_seconds)
        body = await answer.read_all(limit_bytes, timeout_seconds=max(0.001, deadline - time.monotonic()))
        return answer.status, body
