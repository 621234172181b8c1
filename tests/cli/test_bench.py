"""``meterhouse bench``: the benchmark of the checkout."""

import subprocess
from pathlib import Path
from unittest import mock

from cli.command import METERHOUSE, environment_of, run
from meterhouse import cli


def test_it_hands_everything_to_the_benchmark_of_the_checkout(tmp_path: Path) -> None:
    found = subprocess.run(
        [METERHOUSE, "bench", "--help"], cwd=tmp_path, env=environment_of(), capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("usage: infra/bench")


def test_without_the_checkout_it_says_what_it_needs(tmp_path: Path) -> None:
    with mock.patch.object(cli, "CHECKOUT", tmp_path):
        done = run(tmp_path, "bench", "--quick")
    assert done.status == 2
    assert "needs the checkout" in done.err
