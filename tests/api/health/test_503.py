"""Not ready: a balancer should send nobody here."""

import json
import time
from pathlib import Path

from fakes.files import FaultyFiles
from fakes.gateway import Gateway


def test_a_journal_that_cannot_be_written_makes_the_process_unready_but_live(tmp_path: Path) -> None:
    files = FaultyFiles()
    with Gateway(tmp_path / "data", files=files) as gateway:
        assert gateway.request("GET", "/health/ready", key="")[0] == 200
        files.fail_writes()
        assert gateway.chat("simulator-instant")[0] == 503
        status, _, body = gateway.request("GET", "/health/ready", key="")
        answer = json.loads(body)
        assert (status, answer["status"]) == (503, "unready")
        assert answer["reasons"]
        assert str(tmp_path) not in body.decode()
        assert gateway.request("GET", "/health/live", key="")[0] == 200
        health = json.loads(gateway.request("GET", "/health", key="")[2])
        assert (health["status"], health["degraded"]) == ("degraded", answer["reasons"])
        files.heal()
        deadline = time.monotonic() + 10
        while gateway.request("GET", "/health/ready", key="")[0] != 200:
            assert time.monotonic() < deadline, "it does not recover"
            time.sleep(0.05)
        assert gateway.chat("simulator-instant")[0] == 200
