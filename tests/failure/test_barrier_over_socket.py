"""The end of an answer waits for the disk: held back, failing, full, and gone with the power."""

import json
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from failure.bench import Bench, charge_of, new_marker, wait_for
from failure.raw_client import Client, ask
from fakes.files import FaultyFiles
from fakes.gateway import Gateway, GatewayProcess, provider_environment, read_ledger
from fakes.upstream import FakeUpstream
from meterhouse.usage import Exactness, Outcome

TESTS = Path(__file__).resolve().parent.parent
HELD_SECONDS = 0.25
"""How long a test looks whether something leaves that must not."""
SCRIPTS = ("normal", "tools", "usage-finish", "usage-missing", "done-missing", "gate", "normal?gate=finish")


@pytest.fixture(scope="module")
def house(bench: Bench) -> Bench:
    bench.set_prices(SCRIPTS)
    return bench


@pytest.fixture
def held(files: FaultyFiles) -> Iterator[FaultyFiles]:
    """fdatasync does not come back."""
    files.hold_syncs()
    yield files
    files.release_syncs()


def is_ready(gateway: Gateway) -> bool:
    return gateway.request("GET", "/health/ready")[0] == 200


def test_no_end_leaves_before_its_record_is_durable(house: Bench, held: FaultyFiles) -> None:
    markers = {script: new_marker() for script in ("normal", "tools", "usage-finish", "usage-missing", "done-missing")}
    clients = [
        house.send(f"fake/{script}", marker, stream_options={"include_usage": True})
        for script, marker in markers.items()
    ]
    house.up.wait_for(
        lambda truth: all(any(a.ended_by == "end" for a in truth.by_marker(marker)) for marker in markers.values())
    )
    held.wait_until_held()
    clients[0].read_for(HELD_SECONDS)
    for client in clients:
        client.read_for(0.02)
        assert client.text.count(" ") == 20
        assert client.finish_reasons == []
        assert not any(chunk.get("usage") for chunk in client.chunks)
        assert not client.has_done
        assert not client.is_whole
    held.release_syncs()
    for client in clients:
        client.read_all()
        assert len(client.finish_reasons) == 1
        assert client.chunks[-1]["usage"]["completion_tokens"] == 20
        assert client.has_done
        assert [record.outcome for record in house.records_of(client)] == [Outcome.COMPLETED]


def test_no_body_leaves_before_its_record_is_durable(house: Bench, held: FaultyFiles) -> None:
    marker = new_marker()
    client = house.send("fake/normal", marker, stream=False)
    house.up.wait_for(lambda truth: any(a.ended_by == "end" for a in truth.by_marker(marker)))
    held.wait_until_held()
    client.read_for(HELD_SECONDS)
    assert (client.status, client.body) == (0, b"")
    held.release_syncs()
    client.read_all()
    assert json.loads(client.body)["usage"]["completion_tokens"] == 20
    assert [record.outcome for record in house.records_of(client)] == [Outcome.COMPLETED]


def test_the_text_of_others_goes_on_while_ends_wait(house: Bench, held: FaultyFiles) -> None:
    first = house.send("fake/normal")
    held.wait_until_held()
    clients = [house.send("fake/normal", new_marker()) for _ in range(10)]
    for client in clients:
        client.read_until(lambda client: client.text.count(" ") == 20)
        assert not client.has_done
    held.release_syncs()
    assert all(client.read_all().has_done for client in [first, *clients])


def test_a_disk_that_fails_for_good_gives_errors_and_then_heals(house: Bench, files: FaultyFiles) -> None:
    gateway, up = house.gateway, house.up
    markers = [new_marker() for _ in range(4)]
    streams = [house.send("fake/normal?gate=finish", marker) for marker in markers[:2]]
    bodies = [house.send("fake/gate", marker, stream=False) for marker in markers[2:]]
    up.wait_for(lambda truth: all(any(a.is_held for a in truth.by_marker(marker)) for marker in markers))
    assert is_ready(gateway)
    files.fail_syncs()
    try:
        up.release()
        for client in streams:
            client.read_all()
            assert client.error is not None
            assert client.error["code"] == "ledger_unavailable"
            assert client.finish_reasons == []
            assert not client.has_done
        for client in bodies:
            assert client.read_all().status == 503
            assert client.error is not None
            assert client.error["code"] == "ledger_unavailable"
            assert client.headers["x-should-retry"] == "false"
        status, _, body = gateway.request("GET", "/health/ready")
        assert (status, json.loads(body)["reasons"]) == (503, ["the journal cannot be written"])
        asked = len(up.attempts)
        for is_streamed in (True, False):
            late = house.send("fake/normal", stream=is_streamed).read_all()
            assert late.error is not None
            assert (late.status, late.error["code"]) == (503, "ledger_unavailable")
        assert len(up.attempts) == asked
    finally:
        files.heal()
    wait_for(lambda: is_ready(gateway))
    assert house.send("fake/normal").read_all().has_done
    for client, marker in zip([*streams, *bodies], markers, strict=True):
        (record,) = house.records_of(client)
        attempt = house.attempt_of(marker)
        assert (record.outcome, record.exactness) == (Outcome.COMPLETED, Exactness.REPORTED)
        assert record.charge_nanos == charge_of(attempt.prompt_tokens, attempt.tokens)


def test_a_full_disk_refuses_new_requests_and_lets_running_ones_end(tmp_path: Path, up: FakeUpstream) -> None:
    files = FaultyFiles()
    environment = provider_environment("fake", up.base_url, METERHOUSE_JOURNAL_SEGMENT_BYTES="65536")
    with Gateway(tmp_path / "data", environment, files=files) as gateway:
        bench = Bench(gateway, up)
        running = [bench.send("fake/normal?gate=10", new_marker()) for _ in range(5)]
        for client in running:
            client.read_until(lambda client: client.text.count(" ") == 10)
        files.fill_disk()
        statuses = []
        while 503 not in statuses and len(statuses) < 1_000:
            clients = [bench.send("fake/normal?tokens=1", stream=False) for _ in range(20)]
            statuses += [client.read_all().status for client in clients]
        assert set(statuses) == {200, 503}
        assert not is_ready(gateway)
        asked = len(up.attempts)
        assert bench.send("fake/normal").read_all().status == 503
        assert len(up.attempts) == asked
        up.release(name="normal")
        assert all(client.read_all().has_done for client in running)
        assert [bench.records_of(client)[0].usage.output_tokens for client in running] == [20] * 5
        files.heal()
        wait_for(lambda: is_ready(gateway))
        assert bench.send("fake/normal").read_all().has_done
        bench.check_rest()


def test_whoever_saw_an_end_has_a_record_after_a_loss_of_power(tmp_path: Path) -> None:
    chance = random.Random(7)
    data = tmp_path / "data"
    with FakeUpstream() as up:
        # What is not shipped can only be in the journal.
        environment = provider_environment("fake", up.base_url, METERHOUSE_SHIP_SECONDS="1000", PYTHONPATH=str(TESTS))
        launcher = [sys.executable, "-m", "failure.launch_powerless"]
        gateway = GatewayProcess(data, environment, launcher).start()
        clients: dict[str, Client] = {}
        for number in range(30):
            model = f"fake/normal?tokens=20&duration_ms={chance.randrange(50, 1000)}"
            body = ask(model, f"p{number}", stream=number % 3 > 0)
            clients[f"p{number}"] = Client(gateway.url, gateway.key, body)
        readers = [threading.Thread(target=client.read_all) for client in clients.values()]
        for reader in readers:
            reader.start()
        wait_for(lambda: sum(client.is_whole for client in clients.values()) >= 12)
        gateway.kill()
        for reader in readers:
            reader.join()
        ended = {marker for marker, client in clients.items() if client.is_whole}
        assert 12 <= len(ended) < 30
        attempts = {attempt.marker: attempt for attempt in up.attempts}
        with Gateway(data, provider_environment("fake", up.base_url)):
            rows = {row["request_id"]: row for row in read_ledger(data)}
        assert len(rows) == len(read_ledger(data)) <= len(attempts) == 30
        for marker in ended:
            row = rows[clients[marker].request_id.removeprefix("req_")]
            assert (row["outcome"], row["exactness"]) == ("completed", "reported")
            assert row["output_tokens"] == attempts[marker].tokens == 20
            assert row["input_tokens"] == attempts[marker].prompt_tokens
        lost = [row for row in rows.values() if row["outcome"] != "completed"]
        assert {row["outcome"] for row in lost} <= {"worker_lost"}
