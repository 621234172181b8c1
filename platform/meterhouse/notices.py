"""Tells all processes something at once, over a Redis channel.

Invariant: a notice is delivered at most once and may be lost, so nobody may rely on it alone; what is lost shows up
by polling, a little later. A process hears its own notices like everybody else's. Not here: what a notice means.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from meterhouse.telemetry.logs import Event, get_logger

CHANNEL = "mh:notices"
CONNECTED = "connected"
"""The kind of what this process tells itself, without a payload: from here on it hears notices; before, it may have
missed some."""
PING_SECONDS = 1.0
"""A connection on which nothing comes for so long is asked for a sign of life; without one, it is given up."""
LEAST_BACKOFF_SECONDS = 0.1
MOST_BACKOFF_SECONDS = 0.5
MOST_CONNECTIONS = 8

Handler = Callable[[object], None]
"""Gets the payload, as msgpack decodes it. It must neither block nor raise."""

_AWAY = (RedisError, OSError, RuntimeError)
"""redis-py passes on the RuntimeError that uvloop raises for writing to a connection that was closed."""
_MESSAGE = msgspec.msgpack.Decoder(tuple[str, object])
_CLUSTER = "+cluster"


class Notices:
    """One process's end of the channel. Keep ``run`` running, and ``close`` at the end."""

    def __init__(self, url: str, *, timeout_seconds: float = 0.5, channel: str = CHANNEL) -> None:
        """Prepare; nothing is connected before ``run`` or ``publish``.

        Args:
            url: ``redis://`` or ``rediss://``, with ``+cluster`` behind either word for a cluster.
            timeout_seconds: longest wait for a connection, and for the answer to a command.
            channel: what is heard, and where ``publish`` tells unless it is told another.
        """
        scheme, _, rest = url.partition("://")
        self._is_cluster = scheme.endswith(_CLUSTER)
        self._urls = [f"{scheme.removesuffix(_CLUSTER)}://{rest}"]
        self._timeout_seconds = timeout_seconds
        self._channel = channel
        self._client = self._make_client()
        self._handlers: dict[str, list[Handler]] = {}
        self._is_connected = asyncio.Event()
        self.losses = 0
        """How often the connection was lost or could not be made."""

    @property
    def is_connected(self) -> bool:
        """Whether notices are heard at the moment."""
        return self._is_connected.is_set()

    async def wait_connected(self) -> None:
        """Wait until notices are heard."""
        await self._is_connected.wait()

    def on(self, kind: str, handler: Handler) -> None:
        """Call a handler for every notice of a kind from now on; other handlers of the kind stay."""
        self._handlers.setdefault(kind, []).append(handler)

    async def publish(self, kind: str, payload: object, *, channel: str | None = None) -> bool:
        """Tell everybody; False when Redis did not take it. Never raises, and is not tried again later."""
        message = msgspec.msgpack.encode((kind, payload))
        for _ in range(2):  # a connection that was idle may have been closed
            client = self._client
            try:
                await client.publish(channel or self._channel, message)
            except _AWAY:
                continue
            return True
        return False

    async def run(self) -> None:
        """Hear notices for ever; a connection that breaks is made again."""
        while True:
            try:
                await self._listen()
            except _AWAY as error:
                if self.is_connected or not self.losses:
                    get_logger().warning(Event.STORE_FAILED, detail=f"notices: {type(error).__name__}: {error}")
                self.losses += 1
            finally:
                self._is_connected.clear()
            _end_if_cancelled()
            await self._turn_to_next()
            await asyncio.sleep(random.uniform(LEAST_BACKOFF_SECONDS, MOST_BACKOFF_SECONDS))  # noqa: S311 - spreads load

    async def close(self) -> None:
        """Close the connections; ``run`` must have ended."""
        await self._client.aclose()

    async def _listen(self) -> None:
        async with self._client.pubsub(ignore_subscribe_messages=False) as channel:
            await channel.subscribe(self._channel)
            if self._is_cluster:
                self._urls = await self._find_nodes()
            is_asked = False
            while True:
                message = await channel.get_message(timeout=PING_SECONDS)
                _end_if_cancelled()
                if message is None:
                    if is_asked:
                        raise TimeoutError("the connection is silent")
                    is_asked = True
                    await channel.ping()
                    continue
                is_asked = False
                self._take(message)

    def _take(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "subscribe":
            self._is_connected.set()
            self._deliver(CONNECTED, None)
        elif message["type"] == "message":
            try:
                kind, payload = _MESSAGE.decode(message["data"])
            except msgspec.MsgspecError:
                return  # of a version that speaks otherwise
            self._deliver(kind, payload)

    def _deliver(self, kind: str, payload: object) -> None:
        for handler in self._handlers.get(kind, ()):
            handler(payload)

    # --- any node of a cluster will do: it passes a notice on to all others

    def _make_client(self) -> Redis:
        pool = BlockingConnectionPool.from_url(
            self._urls[0],
            timeout=self._timeout_seconds,
            socket_timeout=self._timeout_seconds,
            socket_connect_timeout=self._timeout_seconds,
            max_connections=MOST_CONNECTIONS,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        return Redis.from_pool(pool)

    async def _find_nodes(self) -> list[str]:
        """Return the URLs of the cluster's nodes, that of the present one first."""
        present = self._urls[0]
        nodes = await self._client.execute_command("CLUSTER NODES")  # type: ignore[no-untyped-call]
        others = [name for name, node in nodes.items() if _can_be_asked(name, node["flags"])]
        return [present, *(url for name in others if (url := _at(present, name)) != present)]

    async def _turn_to_next(self) -> None:
        if len(self._urls) > 1:
            self._urls.append(self._urls.pop(0))
            old, self._client = self._client, self._make_client()
            await old.aclose()


def _end_if_cancelled() -> None:
    """End a task that was cancelled and does not know it.

    redis-py sends with ``wait_for``, which in Python 3.11 drops a cancellation that comes as the sending ends. Then a
    process that stops would wait for this task for ever: seen on 2026-11-29, in a worker that got little of its core.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _can_be_asked(address: str, flags: str) -> bool:
    return not address.startswith(":") and not {"fail", "handshake", "noaddr"} & set(flags.split(","))


def _at(url: str, address: str) -> str:
    """Return a URL with another host and port; who signs in, and how, stays."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}{address}"))
