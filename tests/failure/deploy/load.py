"""The deploy test's clients, a process of their own: so many requests a second, on warm connections, for so long.

``python -m failure.deploy.load ORDER.json RESULT.json``. Seven of ten are streams of two events a second, whose length
is log-uniform from 2 to 60 s; half of all go over HTTP/2. Not here: what happens to the servers meanwhile.
"""

import asyncio
import json
import math
import random
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import uvloop

from failure.deploy.asked import Asked, NotTaken
from failure.deploy.connections import Http1, Http2

EVENTS_PER_SECOND = 2
SHORTEST_SECONDS, LONGEST_SECONDS = 2.0, 60.0
STEPS = 12
STREAMED_PART = 0.7
MOST_TRIES = 5
QUICK = "normal?tokens=10"


def stream_models(longest_seconds: float = LONGEST_SECONDS) -> list[str]:
    """Return the scripts of streams; their lengths are steps on a logarithmic scale."""
    ratio = math.log(longest_seconds / SHORTEST_SECONDS) / (STEPS - 1)
    lengths = [SHORTEST_SECONDS * math.exp(step * ratio) for step in range(STEPS)]
    return [
        f"paced?tokens={round(seconds * EVENTS_PER_SECOND)}&duration_ms={round(seconds * 1000)}" for seconds in lengths
    ]


@dataclass
class Order:
    """What to ask for."""

    name: str
    port: int
    ca: str
    keys: list[str]
    per_second: float
    seconds: float
    longest_seconds: float
    seed: int = 1


class Load:
    """All clients."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._chance = random.Random(order.seed)
        self._trusts = {name: _trust(order.ca, name) for name in ("http/1.1", "h2")}
        self._idle: list[Http1] = []
        self._shared: list[Http2] = []
        self._opening = asyncio.Lock()
        self._models = stream_models(order.longest_seconds)
        self.asked: list[Asked] = []
        self.most_open = 0
        self._open = 0

    async def run(self) -> None:
        """Ask at an even pace, then wait for every answer."""
        order = self._order
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(round(order.per_second * order.seconds)):
                await asyncio.sleep(began + number / order.per_second - time.monotonic())
                asked = self._make(number)
                self.asked.append(asked)
                tasks.create_task(self._ask(asked, order.keys[number % len(order.keys)]))

    def _make(self, number: int) -> Asked:
        is_streamed = self._chance.random() < STREAMED_PART
        model = self._chance.choice(self._models) if is_streamed else QUICK
        return Asked(f"{self._order.name}-{number}", model, is_streamed, is_http2=self._chance.random() < 0.5)

    async def _ask(self, asked: Asked, key: str) -> None:
        asked.began_at = time.time()
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        try:
            for _ in range(MOST_TRIES):
                try:
                    await (self._ask_http2(asked, key) if asked.is_http2 else self._ask_http1(asked, key))
                    break
                except NotTaken:
                    asked.sent_again += 1
            else:
                asked.error = f"no connection took it in {MOST_TRIES} tries"
        except (OSError, ValueError) as error:
            asked.error = repr(error)
        finally:
            self._open -= 1
            asked.ended_at = time.time()

    async def _ask_http1(self, asked: Asked, key: str) -> None:
        self._idle = [] if asked.sent_again else [connection for connection in self._idle if connection.is_open]
        connection = self._idle.pop() if self._idle else await Http1.open(self._order.port, self._trusts["http/1.1"])
        await connection.ask(asked, key)
        if connection.is_open:
            self._idle.append(connection)

    async def _ask_http2(self, asked: Asked, key: str) -> None:
        async with self._opening:
            self._shared = [connection for connection in self._shared if connection.is_open]
            connection = next((one for one in self._shared if one.has_room), None)
            if connection is None:
                connection = await Http2.open(self._order.port, self._trusts["h2"])
                self._shared.append(connection)
            asking = asyncio.ensure_future(connection.ask(asked, key))
            await asyncio.sleep(0)  # it has its stream before the next one looks for room
        await asking


def _trust(ca: str, protocol: str) -> ssl.SSLContext:
    trust = ssl.create_default_context(cafile=ca)
    trust.set_alpn_protocols([protocol])
    return trust


def main() -> None:
    load = Load(Order(**json.loads(Path(sys.argv[1]).read_text())))
    uvloop.run(load.run())
    result = {"most_open": load.most_open, "asked": [asked.to_json() for asked in load.asked]}
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
