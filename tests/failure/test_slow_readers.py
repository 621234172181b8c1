"""Clients that read slowly or not at all: the provider is paused, memory stays flat, and who stalls is dropped."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from failure.bench import Bench, charge_of, new_marker, wait_for
from failure.raw_client import Client
from fakes import scripts
from fakes.exchange import Exchange
from fakes.truth import Attempt
from fakes.upstream import FakeUpstream
from fakes.words import word
from meterhouse.usage import Exactness, Outcome

CANCEL, DRAIN = "fake", "drain"
STALL_SECONDS = 1.5
WORDS_PER_EVENT = 2_000
LONGEST_IN_PROCESS = 256 * 1024
SMALL_BUFFER_BYTES = 4_096


def settings(up: FakeUpstream) -> dict[str, str]:
    return {
        "METERHOUSE_PROVIDER_DRAIN_BASE_URL": up.base_url,
        "METERHOUSE_WRITE_STALL_SECONDS": str(STALL_SECONDS),
        "METERHOUSE_DRAIN_SECONDS": "20",
    }


async def flood(x: Exchange) -> None:
    """Stream as many events as the plan has tokens, each of 2,000 words, as fast as they are taken."""
    wire = scripts.open_wire(x)
    await x.head(200, {"content-type": wire.content_type})
    for number in range(x.plan.tokens):
        x.output_tokens += WORDS_PER_EVENT - 1
        text = "".join(word(wire.marker, number + index) for index in range(WORDS_PER_EVENT))
        await x.token(wire.token(0, {"content": text}, None), "text")
    await scripts.finish(x, wire, "stop")
    await scripts.send_usage_alone(x, wire)
    await x.emit(wire.done(), ("done", {}))
    await x.end()


@pytest.fixture(scope="module")
def house(bench: Bench) -> Iterator[Bench]:
    bench.up.script("flood", flood)
    for provider in (CANCEL, DRAIN):
        bench.set_prices(["flood?tokens=3000", "flood?tokens=40", "normal"], provider)
    bench.use_drain_row(DRAIN)
    return bench


def buffered_bytes(bench: Bench, client: Client) -> int:
    """What this process holds for one stream: what came from the provider and what waits for the client."""
    port = client.socket.getsockname()[1]

    def look() -> int:
        print([p.client for p in connections(bench)], port)
        (protocol,) = [p for p in connections(bench) if p.client[1] == port]
        answers = [task for task in bench.gateway.parts.inference.pacer.calls if task.tally.principal]
        assert answers
        received = sum(reader_bytes(p) for p in upstream_connections(bench))
        return int(protocol.transport.get_write_buffer_size()) + received

    return bench.gateway.call(look)


def connections(bench: Bench) -> list[Any]:
    """The open connections of clients, as the HTTP server has them."""
    server = bench.gateway._server
    assert server is not None
    return list(server.server_state.connections)


def upstream_connections(bench: Bench) -> list[Any]:
    connector = bench.gateway.parts.inference.attempts._upstream._session.connector
    return list(connector._acquired)


def reader_bytes(protocol: Any) -> int:
    payload = protocol._payload
    return payload._size if payload is not None else 0


def wait_until_paused(bench: Bench, marker: str) -> Attempt:
    """Wait until the provider cannot send more."""
    last = [-1, time.monotonic()]

    def is_still() -> bool:
        tokens = sum(attempt.tokens for attempt in bench.up.truth.by_marker(marker))
        if tokens != last[0]:
            last[:] = [tokens, time.monotonic()]
        return tokens > 0 and time.monotonic() - last[1] > 0.3

    wait_for(is_still)
    return bench.attempt_of(marker)


def test_flood(house):
    marker = new_marker()
    key_id, key = house.gateway.new_key_of("concurrent 5")
    t = time.monotonic()
    client = house.send("fake/flood?tokens=3000", marker, key=key, receive_buffer_bytes=SMALL_BUFFER_BYTES)
    attempt = wait_until_paused(house, marker)
    print(time.monotonic()-t, attempt.tokens, attempt.tokens*6, attempt.is_open, buffered_bytes(house, client))
    house.up.wait_for(lambda _: not attempt.is_open)
    print(time.monotonic()-t, attempt.ended_by)
    (record,) = house.records_of_key(key_id)
    print(record)
    time.sleep(1)
    print(house.gateway.call(lambda: [(p.client, p.transport.get_write_buffer_size(), p.transport.is_closing()) for p in connections(house)]), client.socket.getsockname())
