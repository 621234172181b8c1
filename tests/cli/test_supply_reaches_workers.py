"""What an operator sets in one process is in force in the others within two seconds, by a notice, without a restart."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fakes.gateway import Gateway
from fakes.servers import RedisServer
from fakes.upstream import FakeUpstream

PEPPER = "1:supply-pepper-of-the-tests-0123456789abcdef"
NOTICED_SECONDS = 2.0


@pytest.fixture
def pair(
    tmp_path: Path, redis_server: RedisServer, redis_url: str, migrated_database_url: str
) -> Iterator[tuple[Gateway, Gateway]]:
    environment = {
        "METERHOUSE_DATABASE_URL": migrated_database_url,
        "METERHOUSE_REDIS_URL": redis_url,
        "METERHOUSE_KEY_PEPPER": PEPPER,
        "METERHOUSE_PRIVATE_PROVIDERS": "true",
    }
    del redis_server
    with ExitStack() as stack:
        first, second = (stack.enter_context(Gateway(tmp_path / name, environment)) for name in ("first", "second"))
        for gateway in (first, second):
            gateway.run(gateway.parts.stores.notices.wait_connected)  # type: ignore[union-attr]
        yield first, second


def within(seconds: float, holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_providers_routes_and_prices(pair: tuple[Gateway, Gateway], up: FakeUpstream) -> None:
    first, second = pair

    def put(path: str, body: object, method: str = "PUT") -> None:
        status, _, answer = first.request(method, path, body, key=first.admin_key)
        assert status in {200, 201, 204}, answer

    def charge() -> int:
        _, headers, _ = second.chat("shared", max_tokens=2)
        return second.records(headers["x-request-id"])[0].charge_nanos

    assert second.chat("lab-model")[0] == 404
    body = {"base_url": up.base_url, "credential": "sk-shared-credential", "models": ["lab-model=normal"]}
    put("/admin/providers/lab", body)
    within(NOTICED_SECONDS, lambda: second.chat("lab-model")[0] == 200)
    put("/admin/routes/shared", {"deployments": [{"provider": "lab", "upstream_model": "normal"}]})
    within(NOTICED_SECONDS, lambda: second.chat("shared")[0] == 200)
    put("/admin/prices", {"provider": "lab", "model": "normal", "input_usd": "0", "output_usd": "5"}, "POST")
    within(NOTICED_SECONDS, lambda: charge() == 2 * 5_000)
    put("/admin/providers/lab", None, "DELETE")
    within(NOTICED_SECONDS, lambda: second.chat("shared")[0] == 404)


def test_what_is_set_for_a_project_binds_in_every_process(pair: tuple[Gateway, Gateway], up: FakeUpstream) -> None:
    first, second = pair

    def send(method: str, path: str, body: object = None) -> Any:
        status, _, answer = first.request(method, f"/v1/organization{path}", body, key=first.admin_key)
        assert status == 200, answer
        return json.loads(answer)

    project = f"/projects/{send('POST', '/projects', {'name': 'Search'})['id']}"
    made = send("POST", f"{project}/service_accounts", {"name": "indexer"})
    key = made["api_key"]["value"]
    permissions = f"{project}/model_permissions"

    def status(model: str = "simulator-instant") -> int:
        return second.chat(model, key=key)[0]

    assert status() == 200
    send("POST", permissions, {"mode": "allow_list", "model_ids": ["simulator"]})
    within(NOTICED_SECONDS, lambda: status() == 403)
    send("DELETE", permissions)
    within(NOTICED_SECONDS, lambda: status() == 200)
    send("POST", f"{project}/rate_limits/rl-simulator-instant", {"max_requests_per_1_minute": 1})
    within(NOTICED_SECONDS, lambda: status() == 429)
    body = {"base_url": up.base_url, "credential": "sk-shared-credential", "models": ["slow=infinite?pace_ms=10"]}
    assert first.request("PUT", "/admin/providers/lab", body, key=first.admin_key)[0] == 200
    within(NOTICED_SECONDS, lambda: second.chat("slow", key=first.key, max_tokens=1)[0] != 404)
    answers: list[bytes] = []
    asking = threading.Thread(target=lambda: answers.append(second.chat("slow", key=key, stream=True)[2]))
    asking.start()
    up.wait_for(lambda truth: any(attempt.tokens >= 5 for attempt in truth.attempts))
    send("POST", f"{project}/archive")
    asking.join(NOTICED_SECONDS)
    assert not asking.is_alive(), "the stream of an archived project goes on"
    assert b"key_revoked" in answers[0]
    assert status() == 401


@pytest.fixture
def up() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream
