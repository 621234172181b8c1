"""A host that is to end waits until its streams have ended and PostgreSQL has everything."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from architecture.tree import ROOT
from fakes.fleet import ServeProcess
from fakes.servers import PostgresServer

SHIP = ROOT / "infra" / "stack" / "ship.py"


def ship(place: object, seconds: float, quiet_seconds: float = 1.5) -> bool:
    # Longer than a worker's figures are old in what another one tells.
    words = [sys.executable, SHIP, str(place), str(seconds), str(quiet_seconds)]
    return subprocess.run(words, check=False, timeout=60).returncode == 0


def test_an_end_waits_for_what_is_under_way(fleet: ServeProcess) -> None:
    def stream() -> bytes:
        return fleet.chat("fake/normal?tokens=10&duration_ms=5000", stream=True)[2]

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(stream)
        fleet.wait_for(lambda: fleet.metric("meterhouse_open_requests") > 0)
        assert not ship(fleet.bind, 3)
        assert ship(fleet.bind, 20)
        assert answer.done()
    assert answer.result().endswith(b"data: [DONE]\n\n")


def test_an_end_waits_until_everything_is_shipped(
    fleet: ServeProcess, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    assert fleet.chat("fake/normal")[0] == 200
    postgres_server.pause()
    try:
        assert fleet.chat("fake/normal")[0] == 200
        fleet.wait_for(lambda: fleet.metric("meterhouse_unshipped_records") > 0)
        assert not ship(fleet.bind, 4)
    finally:
        postgres_server.resume()
    assert ship(fleet.bind, 20)
    fleet.wait_for(lambda: fleet.metric("meterhouse_unshipped_records") == 0)
    assert not ship(tmp_path / "nobody.sock", 1)
