"""Two hundred streams at once, half of whose clients leave at random moments."""

import random
import time

from failure.bench import Bench, charge_of, new_marker, wait_for
from failure.raw_client import Client
from fakes.upstream import FakeUpstream
from fakes.words import answer_text
from meterhouse.usage import Exactness, Outcome, UsageRecord

STREAMS = 200
TOKENS = 25
MODEL = f"normal?tokens={TOKENS}&duration_ms=1000&gate=start&count={STREAMS}"
"""Nobody is answered before all have been heard."""
LIMITS = "concurrent 500; requests 1000000/minute; tokens 100000000 total; spend 1000 USD/month"
REPORTED, COUNTED = Exactness.REPORTED, Exactness.COUNTED
ENDS = {(Outcome.COMPLETED, REPORTED), (Outcome.CLIENT_GONE, COUNTED), (Outcome.CLIENT_GONE, REPORTED)}


def settings(up: FakeUpstream) -> dict[str, str]:
    return {"METERHOUSE_PROVIDER_DRAIN_BASE_URL": up.base_url, "METERHOUSE_DRAIN_MOST": "20"}


def test_each_has_one_record_and_its_own_text_and_nothing_stays(bench: Bench) -> None:
    chance = random.Random(20)
    for provider in ("fake", "drain"):
        bench.set_prices([MODEL], provider)
    bench.use_drain_row("drain")
    key_id, key = bench.gateway.new_key_of(LIMITS)
    markers = [new_marker() for _ in range(STREAMS)]
    clients = {marker: bench.send(f"{chance.choice(['fake', 'drain'])}/{MODEL}", marker, key=key) for marker in markers}
    leavers = {marker: chance.uniform(0, 1.2) for marker in chance.sample(markers, STREAMS // 2)}
    bench.up.wait_for(lambda truth: len(truth.attempts) == STREAMS)
    began = time.monotonic()
    for marker, moment in sorted(leavers.items(), key=lambda item: item[1]):
        clients[marker].read_for(max(0.001, began + moment - time.monotonic()))
        chance.choice([Client.leave, Client.reset])(clients[marker])
    for marker in markers:
        if marker not in leavers:
            assert clients[marker].read_all().has_done
    wait_for(lambda: bench.live == 0 and bench.open_connections == 0)
    records = {record.request_id: record for record in bench.records_of_key(key_id, STREAMS)}
    assert len(records) == STREAMS
    for marker, client in clients.items():
        check(bench, marker, client, records)
    assert {(record.outcome, record.exactness) for record in records.values()} == ENDS
    limits = {row["kind"]: row for row in bench.gateway.limits(key)}
    assert limits["spend"]["spent"] == sum(record.charge_nanos for record in records.values())
    assert limits["concurrent"]["spent"] == 0
    bench.check_nothing_reserved(key)


def check(bench: Bench, marker: str, client: Client, records: dict[str, UsageRecord]) -> None:
    """A client saw nothing but its own words; its record lies between what was delivered and what was emitted."""
    attempt = bench.attempt_of(marker)
    assert answer_text(marker, TOKENS).startswith(client.text)
    if not client.headers:
        return
    record = records[client.request_id.removeprefix("req_")]
    assert client.text.count(" ") <= record.usage.output_tokens <= attempt.tokens
    assert record.charge_nanos == charge_of(record.usage.input_tokens, record.usage.output_tokens)
    if client.has_done:
        assert (record.outcome, record.usage.output_tokens) == (Outcome.COMPLETED, TOKENS)
