"""Not ready: a balancer should send nobody here."""

import json
import time
from pathlib import Path

from api.asking import error_of, marked
from fakes.files import FaultyFiles
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream


def test_a_journal_that_cannot_be_written_refuses_before_the_provider_is_asked_and_unreadies_the_process(
    up: FakeUpstream, tmp_path: Path
) -> None:
    files = FaultyFiles()
    with Gateway(tmp_path / "data", provider_environment("fake", up.base_url), files=files) as gateway:
        assert gateway.request("GET", "/health/ready", key="")[0] == 200
        files.fail_writes()
        for stream in (False, True):
            marker, messages = marked()
            status, headers, body = gateway.chat("fake/normal", messages=messages, stream=stream)
            error = error_of(body)
            assert (status, error["type"], error["code"]) == (503, "server_error", "ledger_unavailable")
            assert int(headers["retry-after"]) >= 1
            assert up.truth.by_marker(marker) == []
        status, _, body = gateway.request("GET", "/health/ready", key="")
        answer = json.loads(body)
        assert (status, answer["status"]) == (503, "unready")
        assert answer["reasons"]
        assert str(tmp_path) not in body.decode()
        assert gateway.request("GET", "/health/live", key="")[0] == 200
        health = json.loads(gateway.request("GET", "/health", key="")[2])
        assert (health["status"], health["degraded"]) == ("degraded", answer["reasons"])
        files.heal()
        deadline = time.monotonic() + 60
        while gateway.request("GET", "/health/ready", key="")[0] != 200:
            assert time.monotonic() < deadline, "it does not recover"
            time.sleep(0.05)
        assert gateway.chat("simulator-instant")[0] == 200
