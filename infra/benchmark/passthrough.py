"""The measure of the benchmark: a bare uvicorn (uvloop, httptools) with an aiohttp client that passes bytes through.

No key, no limit, no ledger, no log: what the same stack costs when it does nothing.
"""

import argparse
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import uvicorn

Message = MutableMapping[str, Any]


class PassThrough:
    """The ASGI application."""

    def __init__(self, upstream: str) -> None:
        self._url = f"{upstream}/chat/completions"
        self._session: aiohttp.ClientSession | None = None

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Pass one request on and its answer back."""
        if scope["type"] != "http":
            return
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        pieces = []
        while (message := await receive()).get("more_body"):
            pieces.append(message["body"])
        body = b"".join([*pieces, message.get("body", b"")])
        headers = {"content-type": "application/json", "authorization": "Bearer bench"}
        async with self._session.post(self._url, data=body, headers=headers) as answer:
            names = (b"content-type", b"content-length")
            kept = [(name.lower(), value) for name, value in answer.raw_headers if name.lower() in names]
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    arguments = parser.parse_args()
    uvicorn.run(
        PassThrough(arguments.upstream),
        port=arguments.port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
