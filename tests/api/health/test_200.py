"""What needs no key: what this is, how it is."""

import json
import socket
import time
from pathlib import Path
from threading import Thread
from typing import Any

import openai

from api.asking import error_of
from fakes.gateway import Gateway, provider_environment
from meterhouse import __version__


def get(gateway: Gateway, path: str) -> dict[str, Any]:
    status, headers, body = gateway.request("GET", path, key="")
    assert (status, headers["content-type"]) == (200, "application/json")
    found: dict[str, Any] = json.loads(body)
    return found


def test_the_root_says_what_this_is_and_where_to_look(gateway: Gateway) -> None:
    found = get(gateway, "/")
    assert (found["name"], found["version"]) == ("Meterhouse", __version__)
    health = get(gateway, "/health")
    assert found["providers"] == health["providers"] == {"fake": True, "simulator": True}
    assert found["models_count"] == health["models_count"]
    assert found["status"] in {"ok", "degraded"}
    for name in ("docs", "health"):
        assert gateway.request("GET", found[name], key="")[0] == 200
    assert gateway.request("GET", found["models"])[0] == 200


def test_health_tells_of_providers_models_and_versions(gateway: Gateway) -> None:
    deadline = time.monotonic() + 60
    while (found := get(gateway, "/health"))["backends"].get("fake") == "unknown":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert found["status"] == "ok"
    assert found["providers"] == {"fake": True, "simulator": True}
    assert found["backends"]["fake"] == "connected"
    assert found["models_count"] == len(json.loads(gateway.request("GET", "/v1/models")[2])["data"])
    assert found["versions"] == {"meterhouse": __version__, "openai_sdk": openai.__version__}
    assert found["degraded"] == []


def test_the_process_is_live_and_ready(gateway: Gateway) -> None:
    for path in ("/health/live", "/health/ready"):
        assert get(gateway, path) == {"status": "ok", "reasons": []}


def test_a_provider_that_is_away_is_said_to_be_and_the_rest_works(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        # Bound but not listening: a connection is refused, and nobody else can take the port.
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with Gateway(tmp_path / "data", provider_environment("away", address)) as gateway:
            deadline = time.monotonic() + 60
            while (found := get(gateway, "/health"))["backends"]["away"] == "unknown":
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert found["status"] == "degraded"
            assert found["providers"] == {"away": False, "simulator": True}
            assert found["backends"]["away"] == "disconnected"
            assert found["degraded"] == ["provider away is not reachable"]
            assert "127.0.0.1" not in json.dumps(found)
            assert get(gateway, "/health/ready")["status"] == "ok"
            assert gateway.chat("simulator-instant")[0] == 200
            status, _, body = gateway.chat("away/model")
            assert (status, error_of(body)["code"]) == (502, "upstream_unavailable")


def test_a_wrong_key_of_a_provider_is_told_from_a_provider_that_is_away(tmp_path: Path) -> None:
    refusal = b"HTTP/1.1 401 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

    def refuse() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65_536)
                connection.sendall(refusal)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=refuse, daemon=True).start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with Gateway(tmp_path / "data", provider_environment("wrong", address)) as gateway:
            deadline = time.monotonic() + 60
            while not (found := get(gateway, "/health"))["degraded"]:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert found["degraded"] == ["provider wrong refuses our credential: check its key"]
            assert found["backends"]["wrong"] == "disconnected"
