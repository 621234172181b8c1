"""What billing has promised survives: a message whose process is killed, a cap and a credit whose Redis forgets."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from fakes.gateway import Gateway, GatewayProcess, provider_environment
from fakes.receiver import receiver_apart
from fakes.redis_server import RedisServer
from fakes.upstream import FakeUpstream

MODEL = "normal?tokens=10&first_ms=6"
CHARGE = 10 * 4_000_000


def operator(gateway: Gateway | GatewayProcess, method: str, path: str, body: object = None) -> Any:
    status, _, answer = gateway.request(method, path, body, key=gateway.admin_key)
    assert status < 300, answer
    return json.loads(answer)


def ask(gateway: Gateway | GatewayProcess, model: str, key: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 10}
    return gateway.request("POST", "/v1/chat/completions", body, key=key)[0]


@pytest.mark.slow_fault
@pytest.mark.timeout(240)
def test_a_message_that_was_not_delivered_survives_the_kill_of_its_process(tmp_path: Path) -> None:
    settings = {"METERHOUSE_ALERT_SECONDS": "0.1", "METERHOUSE_PRIVATE_WEBHOOKS": "true"}
    with receiver_apart("hang", 204) as receiver, GatewayProcess(tmp_path / "data", settings) as gateway:
        organization = operator(gateway, "GET", "/admin/organizations")["data"][0]["id"]
        operator(gateway, "POST", f"/admin/organizations/{organization}/webhooks", {"url": receiver.url})
        price = {"provider": "simulator", "model": "simulator-instant", "input_usd": "1000", "output_usd": "1000"}
        operator(gateway, "POST", "/admin/prices", price)
        channel = {"type": "email", "recipients": []}
        wish = {"threshold_amount": 1, "currency": "USD", "interval": "month", "notification_channel": channel}
        operator(gateway, "POST", "/v1/organization/spend_alerts", wish)
        assert ask(gateway, "simulator-instant", gateway.key) == 200
        deadline = time.monotonic() + 20
        while not receiver.received:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        gateway.kill()  # while it waits for the answer: nobody knows whether it arrived
        gateway.start()
        deadline = time.monotonic() + 180  # after the lease of what the dead process had claimed
        while len(receiver.received) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        first, second = receiver.received
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.body == second.body


def test_a_redis_that_forgets_renews_neither_cap_nor_credit(
    up: FakeUpstream, redis_server: RedisServer, tmp_path: Path
) -> None:
    redis_server.flush()
    environment = provider_environment("fake", up.base_url, METERHOUSE_REDIS_URL=redis_server.url)
    with Gateway(tmp_path / "data", environment) as gateway:
        gateway.set_price("fake", MODEL, "0", "4000")
        organization = operator(gateway, "GET", "/admin/organizations")["data"][0]["id"]
        traded = gateway.request("POST", "/v1/client_tokens", {"max_spend_usd": "0.08"})[2]
        token = json.loads(traded)["value"]
        assert [ask(gateway, f"fake/{MODEL}", token) for _ in range(2)] == [200, 200]
        credit = {"usd": "0.16", "reference": "payment"}
        assert operator(gateway, "POST", f"/admin/organizations/{organization}/credits", credit)["has_credit"]
        assert ask(gateway, f"fake/{MODEL}", gateway.key) == 200
        gateway.settle()
        redis_server.flush()
        assert ask(gateway, f"fake/{MODEL}", token) == 429
        assert ask(gateway, f"fake/{MODEL}", gateway.key) == 200
        gateway.settle()
        assert ask(gateway, f"fake/{MODEL}", gateway.key) == 429
        charged = sum(row["charge_nanos"] for row in gateway.all_records())
        assert charged == 4 * CHARGE
        (limit,) = [one for one in gateway.limits(gateway.key) if one["scope"] == "organization"]
        assert (limit["amount"], limit["spent"], limit["free"]) == (4 * CHARGE, 4 * CHARGE, 0)
