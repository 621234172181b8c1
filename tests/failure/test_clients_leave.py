"""Clients that leave at every moment, over raw sockets, with a provider that stops billing then and one that does not.

``fake`` is cancelled, ``drain`` is read on. Whatever happens: one record, one line in the log, nothing held.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from failure.bench import Bench, charge_of, new_marker, wait_for
from fakes.files import FaultyFiles
from fakes.truth import Attempt
from fakes.upstream import FakeUpstream
from meterhouse.http.call import Call
from meterhouse.usage import Exactness, Outcome, UsageRecord

CANCEL, DRAIN = "fake", "drain"
ROWS = pytest.mark.parametrize("row", [CANCEL, DRAIN])
WAYS = pytest.mark.parametrize("way", ["leave", "reset"])
LIMITS = "concurrent 50; tokens 10000000 total; spend 100 USD/month"
MID = "normal?tokens=40&gate=20"
AT_FINISH = "normal?gate=finish"
SCRIPTS = ("gate", MID, AT_FINISH, "normal", "stall", "paced", "usage-running?tokens=40&gate=20", "never-begins")
MOST_DRAINS = 3
DRAIN_SECONDS = 1.2


def settings(up: FakeUpstream) -> dict[str, str]:
    return {
        "METERHOUSE_PROVIDER_DRAIN_BASE_URL": up.base_url,
        "METERHOUSE_KEEP_ALIVE_SECONDS": "0.1",
        "METERHOUSE_DRAIN_SECONDS": str(DRAIN_SECONDS),
        "METERHOUSE_DRAIN_MOST": str(MOST_DRAINS),
    }


class Leaver:
    """A client with a key of its own, and what became of its request."""

    def __init__(self, bench: Bench, model: str, **options: Any) -> None:
        self.bench = bench
        self.marker = new_marker()
        self.key_id, self.key = bench.gateway.new_key_of(LIMITS)
        self.client = bench.send(model, self.marker, key=self.key, **options)

    @property
    def attempt(self) -> Attempt:
        return self.bench.attempt_of(self.marker)

    @property
    def call(self) -> Call | None:
        """The request inside the gateway, while it runs."""
        calls = self.bench.gateway.call(lambda: self.bench.gateway.parts.inference.pacer.calls)
        return next((call for call in calls if call.tally.principal.key_id == self.key_id), None)

    def wait_until_held(self) -> None:
        """Wait until the provider has said what it says before its gate."""
        self.bench.up.wait_for(lambda truth: any(a.is_held for a in truth.by_marker(self.marker)))

    def go(self, way: str = "leave") -> None:
        getattr(self.client, way)()

    def wait_until_missed(self) -> None:
        """Wait until the gateway knows that its client is gone."""
        wait_for(lambda: (call := self.call) is not None and call.outlet.is_gone)

    def wait_until_hung_up(self) -> None:
        """The provider's connection closes within a second."""
        self.bench.up.wait_for(lambda truth: truth.by_marker(self.marker)[0].ended_by == "client_gone", 1)

    def check(self, outcome: Outcome, exactness: Exactness) -> UsageRecord:
        """Return the one record; nothing is held and the log has one line that agrees."""
        (record,) = self.bench.records_of_key(self.key_id)
        assert (record.outcome, record.exactness) == (outcome, exactness)
        assert record.charge_nanos == charge_of(record.usage.input_tokens, record.usage.output_tokens)
        self.bench.check_nothing_reserved(self.key)
        (spend,) = [row for row in self.bench.gateway.limits(self.key) if row["kind"] == "spend"]
        assert spend["spent"] == record.charge_nanos
        (line,) = wait_for(lambda: [row for row in self.bench.finished_lines() if self._is_of_chat(row)])
        assert (line["outcome"], line["charge_nanos"]) == (outcome.value, record.charge_nanos)
        return record

    def _is_of_chat(self, line: dict[str, Any]) -> bool:
        return line.get("key_id") == self.key_id and line["route"] == "/v1/chat/completions"

    def check_one_counted(self, output_tokens: int) -> None:
        record = self.check(Outcome.CLIENT_GONE, Exactness.COUNTED)
        assert record.usage.output_tokens == self.attempt.tokens == output_tokens

    def check_reported(self, outcome: Outcome) -> None:
        record = self.check(outcome, Exactness.REPORTED)
        attempt = self.attempt
        assert (record.usage.input_tokens, record.usage.output_tokens) == (attempt.prompt_tokens, attempt.tokens)
        assert attempt.has_finish


@pytest.fixture(scope="module")
def house(bench: Bench) -> Iterator[Bench]:
    for provider in (CANCEL, DRAIN):
        bench.set_prices(SCRIPTS, provider)
    bench.use_drain_row(DRAIN)
    yield bench
    bench.up.open_gates()


@WAYS
@ROWS
@pytest.mark.parametrize("is_streamed", [True, False])
def test_before_the_first_byte(row: str, way: str, is_streamed: bool, house: Bench) -> None:
    leaver = Leaver(house, f"{row}/gate", stream=is_streamed)
    leaver.wait_until_held()
    leaver.go(way)
    if row == CANCEL:
        leaver.wait_until_hung_up()
        record = leaver.check(Outcome.CLIENT_GONE, Exactness.COUNTED)
        assert record.usage.output_tokens == 0
        assert leaver.attempt.tokens == 0
    else:
        leaver.wait_until_missed()
        assert leaver.attempt.is_open
        house.up.release(name="gate")
        leaver.check_reported(Outcome.CLIENT_GONE)


@WAYS
@ROWS
def test_in_mid_stream(row: str, way: str, house: Bench) -> None:
    leaver = Leaver(house, f"{row}/{MID}")
    leaver.wait_until_held()
    leaver.client.read_until(lambda client: len(client.text.split()) == 20)
    leaver.go(way)
    if row == CANCEL:
        leaver.wait_until_hung_up()
        record = leaver.check(Outcome.CLIENT_GONE, Exactness.COUNTED)
        assert record.usage.output_tokens == leaver.attempt.tokens == 20
    else:
        leaver.wait_until_missed()
        assert leaver.attempt.is_open
        house.up.release(name="normal")
        leaver.check_reported(Outcome.CLIENT_GONE)
        assert leaver.attempt.tokens == 40


def test_in_mid_stream_the_running_usage_is_charged_when_there_is_one(house: Bench) -> None:
    leaver = Leaver(house, "fake/usage-running?tokens=40&gate=20")
    leaver.wait_until_held()
    leaver.client.read_until(lambda client: len(client.text.split()) == 20)
    leaver.go()
    leaver.wait_until_hung_up()
    record = leaver.check(Outcome.CLIENT_GONE, Exactness.REPORTED)
    assert (record.usage.input_tokens, record.usage.output_tokens) == (leaver.attempt.prompt_tokens, 20)


@ROWS
def test_between_the_finish_and_the_usage_a_leaving_cancels_nothing(row: str, house: Bench) -> None:
    leaver = Leaver(house, f"{row}/{AT_FINISH}")
    leaver.wait_until_held()
    wait_for(lambda: (call := leaver.call) is not None and call.has_finish)
    leaver.go()
    leaver.wait_until_missed()
    assert leaver.attempt.is_open
    house.up.release(name="normal")
    leaver.check_reported(Outcome.COMPLETED)


@ROWS
@pytest.mark.parametrize("is_streamed", [True, False])
def test_while_the_end_waits_for_the_disk(row: str, is_streamed: bool, house: Bench, files: FaultyFiles) -> None:
    files.hold_syncs()
    try:
        leaver = Leaver(house, f"{row}/normal", stream=is_streamed)
        house.up.wait_for(lambda truth: any(a.ended_by == "end" for a in truth.by_marker(leaver.marker)))
        if is_streamed:
            leaver.client.read_until(lambda client: len(client.text.split()) == 20)
        wait_for(lambda: house.live == 0)
        assert leaver.call is not None
        leaver.go()
        leaver.wait_until_missed()
    finally:
        files.release_syncs()
    leaver.check_reported(Outcome.COMPLETED)


def test_after_the_end_nothing_changes(house: Bench) -> None:
    leaver = Leaver(house, "fake/normal")
    leaver.client.read_until(lambda client: client.has_done)
    leaver.go("reset")
    leaver.check_reported(Outcome.COMPLETED)


def test_draining_is_bounded_in_number(house: Bench) -> None:
    leavers = [Leaver(house, f"{DRAIN}/{MID}") for _ in range(MOST_DRAINS + 2)]
    for leaver in leavers:
        leaver.wait_until_held()
    for leaver in leavers[:MOST_DRAINS]:
        leaver.go()
        leaver.wait_until_missed()
    for leaver in leavers[MOST_DRAINS:]:
        leaver.go()
        leaver.wait_until_hung_up()
        leaver.check_one_counted(20)
    assert all(leaver.attempt.is_open for leaver in leavers[:MOST_DRAINS])
    house.up.release(name="normal")
    for leaver in leavers[:MOST_DRAINS]:
        leaver.check_reported(Outcome.CLIENT_GONE)
    later = Leaver(house, f"{DRAIN}/{MID}")
    later.wait_until_held()
    later.go()
    later.wait_until_missed()
    house.up.release(name="normal")
    later.check_reported(Outcome.CLIENT_GONE)


def test_draining_is_bounded_in_time(house: Bench) -> None:
    leaver = Leaver(house, f"{DRAIN}/stall")
    leaver.client.read_until(lambda client: len(client.text.split()) == 5)
    leaver.go()
    leaver.wait_until_missed()
    house.up.wait_for(lambda _: not leaver.attempt.is_open, DRAIN_SECONDS + 1)
    leaver.check_one_counted(5)
