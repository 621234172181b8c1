"""One line for each request in the log, whatever became of it."""

import http.client
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from api.asking import Tenant
from api.telemetry.broken import broken_routes
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream

PRICED = "fake/normal?tokens=5"
ALWAYS = {"timestamp", "level", "event", "request_id", "method", "route", "status", "duration_ms", "trace_id"}
WHOSE = {"organization_id", "project_id", "key_id"}
USED = {"provider", "attempts", "outcome", "exactness", "input_tokens", "output_tokens", "charge_nanos"}
USED |= {"time_to_first_token_ms", "model"}
FAILED = {"error_code", "error_owner"}


def finished(gateway: Gateway) -> list[dict[str, Any]]:
    return [line for line in gateway.log_lines() if line["event"] == "request.finished"]


def line_of(gateway: Gateway, request_id: str) -> dict[str, Any]:
    """Wait for the line of a request; a second one fails."""
    deadline = time.monotonic() + 60
    while not (found := [line for line in finished(gateway) if line["request_id"] == request_id]):
        assert time.monotonic() < deadline, f"no line of {request_id}"
        time.sleep(0.01)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_is_one_line_with_everything_about_it(gateway: Gateway, stream: bool) -> None:
    tenant = Tenant(gateway, limits="spend 1 USD/day")
    status, headers, _ = gateway.chat(PRICED, key=tenant.key, stream=stream)
    assert status == 200
    line = line_of(gateway, headers["x-request-id"])
    (record,) = gateway.records(headers["x-request-id"])
    assert set(line) == ALWAYS | WHOSE | USED
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (line["organization_id"], line["project_id"], line["key_id"]) == (
        tenant.organization_id,
        tenant.project_id,
        tenant.key_id,
    )
    assert (line["model"], line["provider"], line["attempts"]) == (PRICED, "fake", 1)
    assert (line["outcome"], line["exactness"]) == ("completed", "reported")
    assert (line["input_tokens"], line["output_tokens"]) == (record.usage.input_tokens, record.usage.output_tokens)
    assert line["charge_nanos"] == record.charge_nanos == 8 * 1_000 + 5 * 4_000
    assert line["time_to_first_token_ms"] == record.time_to_first_token_ms
    assert line["duration_ms"] >= record.duration_ms >= line["time_to_first_token_ms"]
    assert line["trace_id"] == record.trace_id


@pytest.mark.parametrize(
    ("model", "outcome", "status", "code"),
    [
        ("fake/error-400", "refused", 400, None),
        ("fake/error-500", "upstream_failed", 502, "upstream_unavailable"),
        ("fake/rate-limited", "upstream_failed", 503, "upstream_busy"),
        ("fake/reset-before-head", "upstream_failed", 502, "upstream_unavailable"),
        ("fake/never-begins", "upstream_failed", 504, "upstream_timeout"),
        ("fake/error-mid", "upstream_failed", 200, "upstream_unavailable"),
        ("fake/eof-early", "upstream_failed", 200, "upstream_stream_ended"),
        ("fake/garbage-not-json", "upstream_failed", 200, "upstream_protocol_error"),
    ],
)
def test_a_provider_that_fails_is_one_line_with_the_outcome_and_the_code(
    gateway: Gateway, model: str, outcome: str, status: int, code: str | None
) -> None:
    answered, headers, _ = gateway.chat(model, stream=True)
    assert answered == status
    line = line_of(gateway, headers["x-request-id"])
    assert set(line) - {"error_detail"} == ALWAYS | WHOSE | USED | FAILED
    assert (line["status"], line["outcome"]) == (status, outcome)
    assert line["error_owner"] == ("caller" if outcome == "refused" else "provider")
    if code is not None:
        assert line["error_code"] == code


def test_a_request_that_was_not_admitted_is_one_line_with_the_reason(gateway: Gateway) -> None:
    tenant = Tenant(gateway, limits="requests 1/hour")
    assert gateway.chat(PRICED, key=tenant.key)[0] == 200
    asked = [
        (gateway.chat(PRICED, key=tenant.key), 429, "rate_limit_exceeded", "limit", "/v1/chat/completions"),
        (gateway.chat(PRICED, key="sk-mh-dev-nobody"), 401, "invalid_api_key", "caller", "/v1/chat/completions"),
        (gateway.chat(PRICED, key=""), 401, "invalid_api_key", "caller", "/v1/chat/completions"),
        (gateway.chat("nothing/here"), 404, "model_not_found", "caller", "/v1/chat/completions"),
        (gateway.chat(PRICED, temperature=9), 400, "invalid_value", "caller", "/v1/chat/completions"),
        (gateway.request("GET", "/made/up/address"), 404, "unknown_url", "caller", "other"),
        (gateway.request("GET", "/v1/limits", key=""), 401, "invalid_api_key", "caller", "/v1/limits"),
    ]
    for (status, headers, _), expected, code, owner, route in asked:
        assert status == expected
        line = line_of(gateway, headers["x-request-id"])
        assert (line["status"], line["error_code"], line["error_owner"], line["route"]) == (
            expected,
            code,
            owner,
            route,
        )
        assert not {"outcome", "charge_nanos", "input_tokens"} & set(line)
        assert set(line) - WHOSE - {"model", "error_detail"} == ALWAYS | FAILED


@pytest.mark.parametrize("stream", [False, True])
def test_a_crash_is_one_line_too(gateway: Gateway, stream: bool) -> None:
    with broken_routes(gateway):
        status, headers, _ = gateway.chat(PRICED, stream=stream)
    assert status == 500
    line = line_of(gateway, headers["x-request-id"])
    assert (line["status"], line["error_owner"]) == (500, "us")


def test_a_client_that_leaves_is_one_line(gateway: Gateway, up: FakeUpstream) -> None:
    before = {line["request_id"] for line in finished(gateway)}
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=10)
    body = {"model": "fake/infinite", "messages": [{"role": "user", "content": "marker=gone-1"}], "stream": True}
    headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    request_id = connection.getresponse().headers["x-request-id"]
    assert request_id not in before
    connection.close()
    line = line_of(gateway, request_id)
    assert (line["status"], line["outcome"]) == (200, "client_gone")
    assert "error_code" not in line


def test_there_is_exactly_one_line_for_each_of_many_requests(gateway: Gateway) -> None:
    ids = [gateway.chat(PRICED, stream=bool(index % 2))[1]["x-request-id"] for index in range(20)]
    ids += [
        gateway.request("GET", path)[1]["x-request-id"] for path in ("/", "/health", "/v1/models", "/none", "/metrics")
    ]
    for request_id in ids:
        line_of(gateway, request_id)
    counts = Counter(line["request_id"] for line in finished(gateway))
    assert [counts[request_id] for request_id in ids] == [1] * 25
    assert len(set(ids)) == 25


def test_what_went_wrong_on_the_way_has_lines_of_its_own(up: FakeUpstream, tmp_path: Path) -> None:
    # The last gateway that was started in a process has its log.
    with Gateway(tmp_path / "data", provider_environment("fake", up.base_url)) as gateway:
        failed_id = gateway.chat("fake/error-500")[1]["x-request-id"]
        with broken_routes(gateway):
            crashed_id = gateway.chat("fake/normal")[1]["x-request-id"]
    (failed,) = [line for line in gateway.log_lines() if line["event"] == "attempt.failed"]
    (crashed,) = [line for line in gateway.log_lines() if line["event"] == "request.failed"]
    assert (failed["request_id"], crashed["request_id"]) == (failed_id, crashed_id)
    assert crashed["level"] == "error"
    assert "ZeroDivisionError" in crashed["exception"]
    assert (failed["level"], failed["attempt"], failed["deployment"]) == ("warning", 1, "fake/error-500")
