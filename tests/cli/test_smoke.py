"""``infra/smoke`` against a server that works, one that does not, and none."""

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from architecture.tree import ROOT
from fakes.gateway import Gateway

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}


def smoke(*arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [ROOT / "infra" / "smoke", *arguments], capture_output=True, text=True, check=False, env=CLEAN, timeout=60
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("smoke") / "data") as running:
        yield running


def test_every_endpoint_has_a_line(gateway: Gateway) -> None:
    status, lines = smoke("--base-url", gateway.base_url, "--key", gateway.key, "--admin-key", gateway.admin_key)
    assert status == 0, lines
    *tries, summary = lines
    assert all("  ok  " in line for line in tries), tries
    for endpoint in (
        "/v1/chat/completions",
        "/v1/responses",
        "/api/chat",
        "/chat",
        "/stream",
        "/v1/models",
        "/health",
        "/admin/",
    ):
        assert any(endpoint in line for line in tries), endpoint
    assert summary == f"{len(tries)} of {len(tries)} ok, model simulator-instant"


def test_what_fails_is_said_with_its_reason(gateway: Gateway) -> None:
    status, lines = smoke("--base-url", gateway.url, "--key", gateway.key, "--model", "no-such-model")
    assert status == 1
    failed = [line for line in lines if "  FAILED  " in line]
    assert len(failed) >= 4
    assert [line for line in failed if "model_not_found" not in line] == []
    assert "left out: no --admin-key" in lines[-2]


def test_a_wrong_key_and_no_server_are_failures(gateway: Gateway) -> None:
    status, lines = smoke("--base-url", gateway.url, "--key", "sk-wrong")
    assert status == 1
    assert "invalid_api_key" in lines[0]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        status, lines = smoke("--base-url", f"http://127.0.0.1:{closed.getsockname()[1]}", "--key", gateway.key)
    assert status == 1
    assert "not reached" in lines[0]
