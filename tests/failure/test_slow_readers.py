"""Clients that read slowly or not at all: the provider is paused, memory stays flat, and who stalls is dropped."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from failure.bench import Bench, charge_of, new_marker, wait_for
from failure.raw_client import Client
from fakes import scripts
from fakes.exchange import Exchange
from fakes.upstream import FakeUpstream
from fakes.wires import make_usage
from fakes.words import word
from meterhouse.usage import Exactness, Outcome

CANCEL, DRAIN = "fake", "drain"
STALL_SECONDS = 2.5
WORDS_PER_EVENT = 2_000
EVENTS = 1_300
FLOOD = f"flood?tokens={EVENTS}"
"""Some 15 MB."""
DELUGE = f"flood?tokens={6 * EVENTS}"
"""More than the kernel takes on its own: a socket's buffer grows to 32 MB on some machines."""
MOST_BUFFERED_BYTES = 1_000_000
"""Three reads of uvloop's 256 KB, and a little."""
MOST_STALLED_EVENTS = 250
"""Some 3 MB, twice what this process and the kernel for it hold."""
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
    x._link.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * SMALL_BUFFER_BYTES)
    text = "".join(word(wire.marker, index) for index in range(WORDS_PER_EVENT))
    await x.head(200, {"content-type": wire.content_type})
    for _ in range(x.plan.tokens):
        x.output_tokens += WORDS_PER_EVENT - 1
        await x.token(wire.token(0, {"content": text}, None), "text")
    await scripts.finish(x, wire, "stop")
    await scripts.send_usage_alone(x, wire)
    await x.emit(wire.done(), ("done", {}))
    await x.end()


@pytest.fixture(scope="module")
def house(bench: Bench) -> Iterator[Bench]:
    bench.up.script("flood", flood)
    bench.up.script("bulk", bulk)
    for provider in (CANCEL, DRAIN):
        bench.set_prices([FLOOD, DELUGE, "bulk", "normal"], provider)
    bench.use_drain_row(DRAIN)
    return bench


async def bulk(x: Exchange) -> None:
    """Answer with one body of 12 MB."""
    message = {"role": "assistant", "content": "x" * 12_000_000}
    body = scripts.open_wire(x).body([message], "stop", make_usage("true", 9, 7))
    await x.whole(200, "application/json", body)


def connection_of(bench: Bench, client: Client) -> Any:
    """Return a client's connection as the HTTP server has it; None when it is gone."""
    port = client.socket.getsockname()[1]
    server = bench.gateway._server
    assert server is not None
    return next((found for found in list(server.server_state.connections) if found.client[1] == port), None)


def in_use(bench: Bench) -> list[Any]:
    """Return the connections to providers over which an answer comes."""
    return list(bench.gateway.parts.inference.attempts._upstream._client._pool._leased)


def buffered_bytes(bench: Bench, client: Client) -> int:
    """What this process holds of the one answer that runs: from the provider, and for the client."""

    def look() -> int:
        waiting = connection_of(bench, client).transport.get_write_buffer_size()
        return int(waiting) + sum(connection._answer.waiting_bytes for connection in in_use(bench))

    return bench.gateway.call(look)


def wait_until_stalled(bench: Bench, client: Client) -> None:
    """Wait until the gateway cannot write to a client any more."""
    wait_for(lambda: bench.gateway.call(lambda: connection_of(bench, client).flow.write_paused))


def wait_until_paused(bench: Bench, client: Client) -> None:
    """Wait until the gateway neither writes to a client nor reads from the one provider connection in use."""

    def is_paused() -> bool:
        return connection_of(bench, client).flow.write_paused and all(found.is_paused for found in in_use(bench))

    wait_for(lambda: bench.gateway.call(is_paused))


def test_the_provider_is_paused_and_then_hung_up_on_when_a_client_does_not_read(house: Bench) -> None:
    marker, (key_id, key) = new_marker(), house.gateway.new_key_of("concurrent 5; requests 1000 total")
    client = house.send(f"{CANCEL}/{DELUGE}", marker, key=key, receive_buffer_bytes=SMALL_BUFFER_BYTES)
    wait_until_paused(house, client)
    attempt = house.attempt_of(marker)
    assert attempt.is_open
    assert buffered_bytes(house, client) < MOST_BUFFERED_BYTES
    assert house.send(f"{CANCEL}/normal").read_all().has_done
    house.up.wait_for(lambda _: attempt.ended_by == "client_gone", STALL_SECONDS + 20)
    assert attempt.tokens < WORDS_PER_EVENT * MOST_STALLED_EVENTS
    (record,) = house.records_of_key(key_id)
    assert (record.outcome, record.exactness) == (Outcome.CLIENT_GONE, Exactness.COUNTED)
    assert record.charge_nanos == charge_of(record.usage.input_tokens, record.usage.output_tokens)
    assert connection_of(house, client) is None
    client.read_all()
    assert not client.is_whole
    assert client.text.count(" ") <= record.usage.output_tokens <= attempt.tokens
    house.check_nothing_reserved(key)


def test_a_drain_row_is_read_on_when_a_client_does_not_read(house: Bench) -> None:
    marker, (key_id, key) = new_marker(), house.gateway.new_key_of("concurrent 5")
    client = house.send(f"{DRAIN}/{FLOOD}", marker, key=key, receive_buffer_bytes=SMALL_BUFFER_BYTES)
    wait_until_stalled(house, client)
    house.up.wait_for(lambda truth: any(a.ended_by == "end" for a in truth.by_marker(marker)))
    (record,) = house.records_of_key(key_id)
    assert (record.outcome, record.exactness) == (Outcome.CLIENT_GONE, Exactness.REPORTED)
    assert record.usage.output_tokens == house.attempt_of(marker).tokens == WORDS_PER_EVENT * EVENTS
    assert connection_of(house, client) is None
    house.check_nothing_reserved(key)


def test_a_client_that_was_slow_gets_the_whole_answer(house: Bench) -> None:
    marker, (key_id, key) = new_marker(), house.gateway.new_key_of("concurrent 5")
    client = house.send(f"{CANCEL}/{FLOOD}", marker, key=key, receive_buffer_bytes=64 * SMALL_BUFFER_BYTES)
    wait_until_stalled(house, client)
    client.read_all()
    assert client.has_done
    assert client.text.count(" ") == WORDS_PER_EVENT * EVENTS
    (record,) = house.records_of_key(key_id)
    assert (record.outcome, record.exactness) == (Outcome.COMPLETED, Exactness.REPORTED)


def test_a_body_that_nobody_reads_is_dropped_too(house: Bench) -> None:
    key_id, key = house.gateway.new_key_of("concurrent 5")
    client = house.send(f"{CANCEL}/bulk", key=key, stream=False, receive_buffer_bytes=SMALL_BUFFER_BYTES)
    wait_until_stalled(house, client)
    wait_for(lambda: connection_of(house, client) is None)
    (record,) = house.records_of_key(key_id)
    assert (record.outcome, record.exactness) == (Outcome.COMPLETED, Exactness.REPORTED)
    client.read_all()
    assert not client.is_whole
    house.check_nothing_reserved(key)
