"""``--client``: what each HTTP client to providers takes by itself, with nothing of the gateway around it.

CPU time of this process per answer, the clients in turn; the upstream is a process of its own. CPU time holds on a
machine that others use too, as far as caches do.
"""

import argparse
import asyncio
import os
import time
from itertools import product
from pathlib import Path
from statistics import median

import uvloop

from benchmark.report import Outcome
from benchmark.session import open_session
from benchmark.wire import request_body
from meterhouse.providers.catalog import PROVIDERS
from meterhouse.providers.provider import ActiveProvider
from meterhouse.providers.upstream import ClientName, Upstream

CLIENTS: tuple[ClientName, ...] = ("httptools", "aiohttp")
WARM_SECONDS = 0.2
MAX_ANSWER_BYTES = 1_048_576
MICROSECONDS = 1_000_000


def compare_clients(arguments: argparse.Namespace, folder: Path) -> Outcome:
    """Measure each client with each kind of answer and number of connections, round after round."""
    found: dict[tuple[str, int, ClientName], list[float]] = {}
    with open_session(folder) as session:
        endpoint = ActiveProvider(
            provider=PROVIDERS["openai"], base_url=f"http://127.0.0.1:{session.upstream.port}/v1", credential="bench"
        )
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, session.cores.server)
        try:
            for _ in range(arguments.rounds):
                for kind, connections, client in product(("json", "stream"), arguments.connections, CLIENTS):
                    taken = uvloop.run(_measure(client, endpoint, kind, connections, arguments.seconds))
                    found.setdefault((kind, connections, client), []).append(taken)
        finally:
            os.sched_setaffinity(0, own)
    outcome = Outcome(lines=["answers  conn.  client     CPU us per answer"])
    for (kind, connections, client), values in found.items():
        outcome.lines.append(f"{kind:7}  {connections:5}  {client:9}  {median(values):17,.1f}")
        outcome.figures[f"{kind}_{connections}_{client}_cpu_us"] = values
    return outcome


async def _measure(client: ClientName, endpoint: ActiveProvider, kind: str, connections: int, seconds: float) -> float:
    """Return the CPU time per answer, in microseconds."""
    is_streamed = kind == "stream"
    body = request_body(endpoint.provider.name, is_streamed=is_streamed)
    async with Upstream(client=client) as upstream:

        async def ask_until(end: float) -> int:
            count = 0
            while time.monotonic() < end:
                answer = await upstream.open(endpoint, "/chat/completions", body, is_streamed=is_streamed)
                if is_streamed:
                    while await answer.read():
                        pass
                    answer.release()
                else:
                    await answer.read_all(MAX_ANSWER_BYTES)
                count += 1
            return count

        async def ask_all(for_seconds: float) -> int:
            end = time.monotonic() + for_seconds
            return sum(await asyncio.gather(*[ask_until(end) for _ in range(connections)]))

        await ask_all(WARM_SECONDS)
        before = time.process_time()
        count = await ask_all(seconds)
        return (time.process_time() - before) / count * MICROSECONDS
