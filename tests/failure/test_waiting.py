"""Providers that take their time: the head and comments that keep a connection alive, and every timeout."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from failure.bench import Bench, charge_of, new_marker, wait_for
from failure.raw_client import Client
from fakes import scripts
from fakes.exchange import Exchange
from fakes.words import answer_text, word
from meterhouse.usage import Exactness, Outcome, UsageRecord

SETTINGS = {
    "METERHOUSE_HEAD_SECONDS": "0.2",
    "METERHOUSE_KEEP_ALIVE_SECONDS": "0.1",
    "METERHOUSE_FIRST_TOKEN_TIMEOUT_SECONDS": "0.8",
    "METERHOUSE_IDLE_TIMEOUT_SECONDS": "0.6",
    "METERHOUSE_TOTAL_TIMEOUT_SECONDS": "2",
}
PLAYED = (
    "normal?first_ms=500",
    "normal?head_ms=500",
    "normal?fault=stall&stall_ms=400",
    "never-begins",
    "comments-forever",
    "comments-forever-mid",
    "infinite?pace_ms=20",
    "error-first?head_ms=400",
    "error-500?head_ms=400",
    "normal?pace_ms=100&tokens=60",
)
SCRIPTS = (*PLAYED, "runaway?pace_ms=10", "runaway?gate=head", "gate")


async def runaway(x: Exchange) -> None:
    """Stream for ever, whatever bound was asked for; the gate ``head`` is before the first byte."""
    wire = scripts.open_wire(x)
    await scripts.reach(x, wire, "head")
    await x.head(200, {"content-type": wire.content_type})
    for event in wire.open():
        await x.emit(event)
    while True:
        await x.pause(x.plan.pace_ms)
        await x.token(wire.token(0, {"content": word(wire.marker, x.output_tokens)}, None), "text")


@pytest.fixture(scope="module")
def house(bench: Bench) -> Iterator[Bench]:
    bench.up.script("runaway", runaway)
    bench.set_prices(SCRIPTS)
    return bench


@dataclass(frozen=True)
class Played:
    """A script that was played to its end."""

    client: Client
    record: UsageRecord
    marker: str


@pytest.fixture(scope="module")
def played(house: Bench) -> dict[str, Played]:
    """Every script that takes its time, played while the others were."""
    markers = {script: new_marker() for script in PLAYED}
    clients = {script: house.send(f"fake/{script}", marker) for script, marker in markers.items()}
    assert all(client.read_all().is_whole for client in clients.values())
    records = {script: house.records_of(client) for script, client in clients.items()}
    assert {len(found) for found in records.values()} == {1}
    return {script: Played(client, records[script][0], markers[script]) for script, client in clients.items()}


@pytest.mark.parametrize("script", ["normal?first_ms=500", "normal?head_ms=500"])
def test_the_head_comes_with_comments_when_the_first_token_is_slow(script: str, played: dict[str, Played]) -> None:
    client, record = played[script].client, played[script].record
    assert client.body.startswith(2 * b": keep-alive\n\n")
    assert client.text == answer_text(played[script].marker, 20)
    assert client.has_done
    assert (record.outcome, record.exactness) == (Outcome.COMPLETED, Exactness.REPORTED)
    assert record.time_to_first_token_ms is not None
    assert record.time_to_first_token_ms >= 450


def test_the_head_does_not_wait_for_the_first_token(house: Bench) -> None:
    client = house.send("fake/never-begins")
    client.read_until(lambda client: client.keep_alives)
    assert client.status == 200
    assert client.events == []


def test_comments_fill_a_pause_and_tear_nothing(played: dict[str, Played]) -> None:
    found = played["normal?fault=stall&stall_ms=400"]
    client = found.client
    assert client.has_done
    assert client.text == answer_text(found.marker, 20)
    assert re.search(rb"\}\n\n(: keep-alive\n\n)+data: \{", client.body)


def test_a_body_that_is_not_streamed_waits_without_a_head(house: Bench) -> None:
    client = house.send("fake/normal?first_ms=500", stream=False)
    client.read_for(0.3)
    assert client.status == 0
    assert client.read_all().status == 200
    assert client.keep_alives == 0


def test_no_first_token_in_time_is_an_error_event_after_the_head_and_free(played: dict[str, Played]) -> None:
    for script in ("never-begins", "comments-forever"):
        client, record = played[script].client, played[script].record
        assert client.keep_alives >= 2
        check_only_an_error_event(client, "upstream_timeout")
        assert (record.outcome, record.usage.total_tokens, record.charge_nanos) == (Outcome.UPSTREAM_FAILED, 0, 0)


def test_a_failure_after_the_head_is_an_error_event_and_free(played: dict[str, Played]) -> None:
    for script in ("error-first?head_ms=400", "error-500?head_ms=400"):
        client, record = played[script].client, played[script].record
        assert client.keep_alives >= 1
        check_only_an_error_event(client, "upstream_unavailable")
        assert (record.outcome, record.charge_nanos) == (Outcome.UPSTREAM_FAILED, 0)


def check_only_an_error_event(client: Client, code: str) -> None:
    assert client.status == 200
    assert len(client.events) == 1
    assert client.error is not None
    assert client.error["code"] == code


def test_a_provider_that_only_comments_is_idle_and_our_comments_do_not_hide_it(played: dict[str, Played]) -> None:
    found = played["comments-forever-mid"]
    client, record = found.client, found.record
    assert client.keep_alives >= 2
    assert client.error is not None
    assert client.error["code"] == "upstream_timeout"
    assert client.text == answer_text(found.marker, 5)
    assert (record.outcome, record.exactness, record.usage.output_tokens) == (
        Outcome.UPSTREAM_FAILED,
        Exactness.COUNTED,
        5,
    )
    # Less than the total: the silence ended it.
    assert record.duration_ms < 1_800


def test_an_answer_that_takes_too_long_in_all_is_ended_and_counted(house: Bench, played: dict[str, Played]) -> None:
    for script in ("infinite?pace_ms=20", "normal?pace_ms=100&tokens=60"):
        client, record = played[script].client, played[script].record
        attempt = house.attempt_of(played[script].marker)
        assert client.error is not None
        assert client.error["code"] == "upstream_timeout"
        assert client.finish_reasons == []
        house.up.wait_for(lambda _, attempt=attempt: attempt.ended_by == "client_gone", 1)
        assert 5 < client.text.count(" ") <= record.usage.output_tokens <= attempt.tokens
        assert record.charge_nanos == charge_of(record.usage.input_tokens, record.usage.output_tokens)


def test_an_endless_answer_is_cut_where_its_hold_can_not_grow(house: Bench) -> None:
    marker, (key_id, key) = new_marker(), house.gateway.new_key_of("tokens 20000 total")
    client = house.send("fake/runaway?gate=head", marker, key=key, max_tokens=4_000)
    house.up.wait_for(lambda truth: any(a.is_held for a in truth.by_marker(marker)))
    others = [Other(house, key, choices=8)]
    while others[-1].is_open:
        others.append(Other(house, key, choices=1))
    house.up.release(name="runaway")
    client.read_all()
    assert client.has_done
    assert client.finish_reasons == ["length"]
    house.up.wait_for(lambda _: house.attempt_of(marker).ended_by == "client_gone", 1)
    (record,) = house.records_of(client)
    assert (record.outcome, record.exactness) == (Outcome.CUT, Exactness.COUNTED)
    assert client.text.count(" ") <= record.usage.output_tokens <= 2_048
    house.up.release(name="gate")
    assert [other.client.read_all().status for other in others] == [200] * (len(others) - 1) + [429]
    assert len(house.records_of_key(key_id, len(others))) == len(others)
    house.check_nothing_reserved(key)


class Other:
    """A request that holds a part of a quota until it is released, or was refused."""

    def __init__(self, house: Bench, key: str, choices: int) -> None:
        marker = new_marker()
        self.client = house.send("fake/gate", marker, key=key, stream=False, max_tokens=1_500, n=choices)

        def is_decided() -> bool:
            self.client.read_for(0.01)
            return self.client.is_whole or any(a.is_held for a in house.up.truth.by_marker(marker))

        wait_for(is_decided)
        self.is_open = not self.client.is_whole


def test_a_provider_that_ignores_its_bound_is_cut_there_and_charged_no_more_than_it(house: Bench) -> None:
    marker, (key_id, key) = new_marker(), house.gateway.new_key_of("spend 1 USD/month")
    client = house.send("fake/runaway?pace_ms=10", marker, key=key, max_tokens=50).read_all()
    assert client.finish_reasons == ["length"]
    assert client.has_done
    (record,) = house.records_of_key(key_id)
    assert record.outcome is Outcome.CUT
    # Words of less than five letters may be parts of tokens, so that only the others bound them from below.
    assert sum(len(word) > 4 for word in client.text.split()) <= record.usage.output_tokens <= 50
    assert record.charge_nanos == charge_of(record.usage.input_tokens, record.usage.output_tokens)
    assert record.overrun_nanos == 0
    (spend,) = house.gateway.limits(key)
    assert (spend["spent"], spend["reserved"]) == (record.charge_nanos, 0)
