"""The receipt of one request: to the project whose it is, and to nobody else."""

import json
import threading
import time
from typing import Any

import pytest

from api.asking import Tenant, error_of, marked
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream

PRICED = "fake/normal?tokens=5&first_ms=2"


def wait_for_receipt(gateway: Gateway, request_id: str, key: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        status, headers, body = gateway.request("GET", f"/v1/receipts/{request_id}", key=key)
        if status == 200:
            found: dict[str, Any] = json.loads(body)
            return found
        error = error_of(body)
        assert (status, error["code"]) == (404, "receipt_pending")
        assert headers["retry-after"] == "1"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_receipt_says_what_the_request_used_and_cost(gateway: Gateway, tenant: Tenant) -> None:
    gateway.set_price("fake", PRICED.removeprefix("fake/"), "1", "4")
    _, headers, body = gateway.chat(PRICED, key=tenant.key)
    usage = json.loads(body)["usage"]
    receipt = wait_for_receipt(gateway, headers["x-request-id"], tenant.key)
    charge = usage["prompt_tokens"] * 1_000 + 5 * 4_000
    assert (receipt["id"], receipt["object"], receipt["model"]) == (headers["x-request-id"], "receipt", PRICED)
    assert (receipt["key_id"], receipt["project_id"]) == (tenant.key_id, tenant.project_id)
    assert (receipt["charge_nanos"], receipt["operation"]) == (charge, "chat")
    assert float(receipt["charge_usd"]) == pytest.approx(charge / 1e9)
    (line,) = receipt["attempts"]
    assert (line["attempt"], line["provider"], line["outcome"]) == (1, "fake", "completed")
    assert (line["exactness"], line["output_tokens"]) == ("reported", 5)
    assert line["input_tokens"] == usage["prompt_tokens"]
    assert sum(line["charges"].values()) == line["charge_nanos"] == charge
    assert line["price_id"]
    assert line["duration_ms"] >= 0


def test_a_request_that_is_running_has_a_pending_receipt_for_its_own_project_only(
    gateway: Gateway, up: FakeUpstream, tenant: Tenant
) -> None:
    marker, messages = marked()
    answers: list[dict[str, str]] = []
    asking = threading.Thread(
        target=lambda: answers.append(
            gateway.chat("fake/normal?gate=3&tokens=4", key=tenant.key, messages=messages, stream=True)[1]
        )
    )
    asking.start()
    up.wait_for(lambda truth: any(attempt.is_held for attempt in truth.by_marker(marker)))
    (bare,) = [
        call.tally.request_id
        for call in gateway.parts.inference.pacer.calls
        if call.tally.principal.key_id == tenant.key_id
    ]
    status, headers, body = gateway.request("GET", f"/v1/receipts/req_{bare}", key=tenant.key)
    up.release(name="normal")
    asking.join(60)
    assert (status, error_of(body)["code"], headers["retry-after"]) == (404, "receipt_pending", "1")
    assert wait_for_receipt(gateway, answers[0]["x-request-id"], tenant.key)["attempts"][0]["output_tokens"] == 4


def test_another_project_finds_nothing(gateway: Gateway, tenant: Tenant) -> None:
    _, headers, _ = gateway.chat("fake/normal", key=tenant.key)
    request_id = headers["x-request-id"]
    wait_for_receipt(gateway, request_id, tenant.key)
    status, _, body = gateway.request("GET", f"/v1/receipts/{request_id}", key=Tenant(gateway).key)
    error = error_of(body)
    assert (status, error["code"]) == (404, "not_found")
    assert tenant.project_id not in error["message"]


def test_another_key_of_the_project_may_see_it(gateway: Gateway, tenant: Tenant) -> None:
    _, headers, _ = gateway.chat("fake/normal", key=tenant.key)
    wait_for_receipt(gateway, headers["x-request-id"], tenant.issue()["value"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_a_provider_refused_has_a_receipt_of_nothing(
    gateway: Gateway, tenant: Tenant, stream: bool
) -> None:
    _, headers, _ = gateway.chat("fake/error-400", key=tenant.key, stream=stream)
    receipt = wait_for_receipt(gateway, headers["x-request-id"], tenant.key)
    assert receipt["charge_nanos"] == 0
    assert receipt["attempts"][0]["outcome"] == "refused"


@pytest.mark.parametrize("request_id", ["req_x", "nothing", "req_01a1f95681a27db49a47a048987c1f29", "req_" + "f" * 32])
def test_what_is_no_request_has_no_receipt(gateway: Gateway, request_id: str) -> None:
    status, _, body = gateway.request("GET", f"/v1/receipts/{request_id}")
    assert (status, error_of(body)["code"]) == (404, "not_found")


def test_it_takes_a_key(gateway: Gateway) -> None:
    assert gateway.request("GET", "/v1/receipts/req_x", key="")[0] == 401
