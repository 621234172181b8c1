"""``kill -9`` at the terminal event of a response: whoever saw it has a record (P2), whatever way the answer took."""

from pathlib import Path

import pytest

from failure.raw_client import Client
from fakes.gateway import GatewayProcess, provider_environment, read_ledger
from fakes.upstream import FakeUpstream

SHIPS_NEVER = {"METERHOUSE_SHIP_SECONDS": "3600"}
"""Only the journal has the record when the process dies."""


@pytest.mark.slow_fault
def test_who_saw_the_end_of_a_response_has_a_record_though_everything_died(tmp_path: Path) -> None:
    with FakeUpstream() as up:
        environment = provider_environment("fake", up.base_url)
        environment |= provider_environment("native", up.base_url, METERHOUSE_PROVIDER_NATIVE_KIND="openai")
        gateway = GatewayProcess(tmp_path / "data", environment | SHIPS_NEVER).start()
        seen = {}
        for provider, end in (("fake", b"event: response.completed"), ("native", b"event: response.incomplete")):
            bound = {} if provider == "fake" else {"max_output_tokens": 4}
            body = {"model": f"{provider}/normal?tokens=6", "input": "Hello", "stream": True, **bound}
            client = Client(gateway.url, gateway.key, body, path="/v1/responses")
            client.read_until(lambda c, end=end: end in c.body)
            seen[client.headers["x-request-id"].removeprefix("req_")] = 4 if bound else 6
        gateway.kill()
        assert read_ledger(tmp_path / "data") == []
        again = GatewayProcess(tmp_path / "data", environment).start()
        assert again.stop() == 0
    rows = {row["request_id"]: row for row in read_ledger(tmp_path / "data")}
    assert {request_id: rows[request_id]["output_tokens"] for request_id in seen} == seen
    assert {(row["outcome"], row["exactness"]) for row in rows.values()} == {("completed", "reported")}
