"""What a provider's failure is to the caller: one table for whole answers and for streams (design.md 3, "Errors")."""

from pathlib import Path

import pytest

from api.asking import CREDENTIAL_CANARY, error_of, marked
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream

BOTH = pytest.mark.parametrize("stream", [False, True])

STATUSES = [
    (400, 400, None),
    (401, 502, "upstream_account"),
    (402, 502, "upstream_account"),
    (403, 502, "upstream_account"),
    (404, 404, None),
    (413, 413, None),
    (422, 422, None),
    (429, 503, "upstream_busy"),
    (500, 502, "upstream_unavailable"),
    (502, 502, "upstream_unavailable"),
    (503, 502, "upstream_unavailable"),
    (529, 503, "upstream_busy"),
]


@BOTH
@pytest.mark.parametrize(("upstream", "ours", "code"), STATUSES)
def test_a_status_of_the_provider_has_its_own_here(
    gateway: Gateway, stream: bool, upstream: int, ours: int, code: str | None
) -> None:
    # A deployment of its own for each: one that does not accept our account is not asked again.
    status, headers, body = gateway.chat(f"fake/error-{upstream}?done={int(stream)}", stream=stream)
    error = error_of(body)
    kind = "invalid_request_error" if ours < 500 else "upstream_error"
    assert (status, error["type"], error["code"]) == (ours, kind, code)
    assert headers["content-type"] == "application/json"
    if ours < 500:
        assert f"Fake failure {upstream}" in error["message"], "the caller's own fault keeps the provider's words"
        assert headers["x-should-retry"] == "false"
    else:
        assert "Fake failure" not in error["message"]
    if code == "upstream_account":
        assert headers["x-should-retry"] == "false"
    (record,) = gateway.records(headers["x-request-id"])
    assert (record.outcome, record.charge_nanos) == ("refused" if ours < 500 else "upstream_failed", 0)


@pytest.mark.parametrize("shape", ["envelope", "flat", "html", "list", "text", "empty", "detail", "anthropic"])
@pytest.mark.parametrize(("upstream", "ours"), [(400, 400), (429, 503)])
def test_every_shape_of_a_providers_error_becomes_the_envelope(
    gateway: Gateway, shape: str, upstream: int, ours: int
) -> None:
    status, _, body = gateway.chat(f"fake/error-{shape}?status={upstream}")
    assert status == ours
    message = error_of(body)["message"]
    assert "<html>" not in message
    assert CREDENTIAL_CANARY not in message


@BOTH
def test_an_empty_account_at_the_provider_is_not_the_callers_quota(gateway: Gateway, stream: bool) -> None:
    status, headers, body = gateway.chat(f"fake/insufficient-quota?done={int(stream)}", stream=stream)
    assert (status, error_of(body)["code"]) == (502, "upstream_account")
    assert headers["x-should-retry"] == "false"


@BOTH
@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("reset-before-head", "upstream_unavailable"),
        ("eof-before-head", "upstream_unavailable"),
        ("reset-after-head", "upstream_unavailable"),
        ("garbage-http", "upstream_unavailable"),
        ("redirect", "upstream_unavailable"),
        ("gzip", "upstream_unavailable"),
        ("html-200", "upstream_protocol_error"),
    ],
)
def test_an_answer_that_is_none_is_a_502(gateway: Gateway, stream: bool, model: str, code: str) -> None:
    if model == "gzip" and not stream:
        model = "gzip?framing=chunked"
    status, _, body = gateway.chat(f"fake/{model}", stream=stream)
    assert (status, error_of(body)["code"]) == (502, code)


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("eof-after-head", "upstream_protocol_error"),
        ("json-for-stream", "upstream_protocol_error"),
        ("octets", "upstream_protocol_error"),
        ("garbage-first?first=none", "upstream_protocol_error"),
        ("error-first?first=none", "upstream_unavailable"),
    ],
)
def test_a_stream_that_fails_before_its_first_event_keeps_its_status(gateway: Gateway, model: str, code: str) -> None:
    status, headers, body = gateway.chat(f"fake/{model}", stream=True)
    assert (status, error_of(body)["code"]) == (502, code)
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize("model", ["reset", "eof-mid-event", "stream-for-json", "garbage-not-json", "error-mid"])
def test_a_whole_answer_that_breaks_is_a_502(gateway: Gateway, model: str) -> None:
    status, _, body = gateway.chat(f"fake/{model}")
    error = error_of(body)
    assert (status, error["type"]) == (502, "upstream_error")


def test_the_providers_credential_is_in_no_answer_log_or_journal(gateway: Gateway, up: FakeUpstream) -> None:
    marker, messages = marked()
    models = [f"error-{status}" for status, _, _ in STATUSES]
    models += [f"error-{shape}?status=400" for shape in ("flat", "list", "text", "detail", "anthropic")]
    for model in [*models, "insufficient-quota", "error-mid"]:
        for stream in (False, True):
            _, headers, body = gateway.chat(f"fake/{model}", messages=messages, stream=stream)
            assert CREDENTIAL_CANARY not in f"{headers}{body!r}"
    assert {attempt.request["authorization"] for attempt in up.truth.by_marker(marker)} == {
        f"Bearer {CREDENTIAL_CANARY}"
    }
    gateway.settle()
    written = [gateway.log_path, *(path for path in Path(gateway.data).rglob("*") if path.is_file())]
    assert any(path.suffix == ".seg" for path in written)
    for path in written:
        assert CREDENTIAL_CANARY.encode() not in path.read_bytes(), path
