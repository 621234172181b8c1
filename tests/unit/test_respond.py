"""From errors and limits to bytes and headers, as the SDKs read them."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.errors import (
    BudgetExhausted,
    GatewayError,
    InvalidKey,
    JournalDown,
    Malformed,
    NotPriced,
    RateLimited,
    UpstreamBusy,
    UpstreamRefused,
)
from meterhouse.http.respond import (
    OPENAI_ENVELOPE,
    error_body,
    go_duration,
    rate_limit_headers,
    refused,
    render,
    send_error,
    send_whole,
)
from meterhouse.limits.limit import parse_limits
from meterhouse.metering import LimitState, Refusal, RefusalKind, Scope

NOW_MS = 1_795_000_000_000
GO = re.compile(r"(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m(?!s))?(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+)ms)?")


def state(text: str, *, spent: int = 0, reserved: int = 0, resets_in_ms: int | None = None) -> LimitState:
    (limit,) = parse_limits(text, Scope.KEY, "key_1")
    return LimitState(limit, spent, reserved, None if resets_in_ms is None else NOW_MS + resets_in_ms)


def head_of(error: GatewayError) -> tuple[int, dict[str, str], dict[str, Any]]:
    status, headers, body = render(error)
    assert len(headers) == len(dict(headers))
    return status, {name.decode(): value.decode() for name, value in headers}, json.loads(body)["error"]


# --- durations


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0ms"),
        (12, "12ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (45_190, "45.19s"),
        (60_000, "1m0s"),
        (90_000, "1m30s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
        (3_723_500, "1h2m3.5s"),
        (86_400_001, "24h0m0.001s"),
    ],
)
def test_a_duration_is_written_as_go_does(milliseconds: int, text: str) -> None:
    assert go_duration(milliseconds).decode() == text


@given(st.integers(0, 10**11))
def test_a_duration_can_be_read_back(milliseconds: int) -> None:
    match = GO.fullmatch(go_duration(milliseconds).decode())
    assert match is not None
    hours, minutes, rest = int(match["h"] or 0), int(match["m"] or 0), int(match["ms"] or 0)
    whole, _, part = (match["s"] or "0").partition(".")
    seconds_ms = int(whole) * 1_000 + int(part.ljust(3, "0") or 0)
    assert hours * 3_600_000 + minutes * 60_000 + seconds_ms + rest == milliseconds
    assert minutes < 60
    assert int(whole) < 60


# --- errors


def test_an_error_is_openais_envelope_with_all_four_keys() -> None:
    status, headers, error = head_of(Malformed("Invalid value.", param="n", detail="secret detail"))
    assert status == 400
    assert error == {
        "message": "Invalid value.",
        "type": "invalid_request_error",
        "param": "n",
        "code": "invalid_value",
    }
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(error_body(Malformed("Invalid value.", param="n")))


def test_keys_without_a_value_are_null() -> None:
    assert head_of(GatewayError("no"))[2] == {"message": "no", "type": "server_error", "param": None, "code": None}


def test_the_internal_detail_is_nowhere_in_an_answer() -> None:
    error = JournalDown("Try again.", detail="disk sda1")
    assert b"sda1" not in b"".join(
        [*(value for _, value in render(error)[1]), render(error)[2], OPENAI_ENVELOPE.event(error, "")]
    )


@pytest.mark.parametrize(
    ("seconds", "whole", "milliseconds"),
    [(1, "1", "1000"), (45.19, "46", "45190"), (0.001, "1", "1"), (0.0004, "1", "1")],
)
def test_a_wait_is_rounded_up_in_seconds_and_in_milliseconds(seconds: float, whole: str, milliseconds: str) -> None:
    headers = head_of(RateLimited("Wait.", retry_after_seconds=seconds))[1]
    assert (headers["retry-after"], headers["retry-after-ms"]) == (whole, milliseconds)


def test_only_a_decided_error_says_whether_to_retry() -> None:
    assert "x-should-retry" not in head_of(UpstreamBusy("busy"))[1]
    assert head_of(NotPriced("no price"))[1]["x-should-retry"] == "false"
    assert head_of(RateLimited("wait", should_retry=True))[1]["x-should-retry"] == "true"
    assert head_of(UpstreamRefused("no", status=422, code=None, param=None))[0] == 422


def test_a_401_names_its_scheme_and_no_other_does() -> None:
    assert head_of(InvalidKey("No."))[1]["www-authenticate"] == "Bearer"
    assert "www-authenticate" not in head_of(Malformed("No."))[1]


def test_an_error_in_a_stream_is_one_event() -> None:
    event = OPENAI_ENVELOPE.event(GatewayError('two\nlines "quoted"'), "")
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event[6:])["error"]["message"] == 'two\nlines "quoted"'


async def test_a_whole_answer_is_a_head_and_a_body() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await send_whole(send, [(b"x-a", b"1")], b"{}", b"text/plain")
    await send_error(send, Malformed("No."), OPENAI_ENVELOPE, "req_1")
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.start", "http.response.body"]
    assert (sent[0]["status"], dict(sent[0]["headers"])) == (200, {b"x-a": b"1", b"content-type": b"text/plain"})
    assert (sent[0]["body"], sent[0]["more_body"]) == (b"{}", False)
    assert sent[1]["status"] == 400
    assert sent[2]["body"] == error_body(Malformed("No."))


# --- refusals


def refusal(kind: RefusalKind, text: str, wait: float | None, *, model: str = "gpt") -> GatewayError:
    shown = state(text, spent=90, resets_in_ms=30_000)
    return refused(Refusal(kind, shown.limit, 90, 20, wait, [shown]), model, NOW_MS)


def test_spent_money_is_an_insufficient_quota_that_is_not_retried() -> None:
    error = refusal(RefusalKind.SPENT, "spend 25 USD/month", None)
    assert isinstance(error, BudgetExhausted)
    status, headers, body = head_of(error)
    assert (status, body["type"], body["code"]) == (429, "insufficient_quota", "insufficient_quota")
    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers
    assert "'spend 25 USD/month' of this key" in body["message"]
    assert "next period" in body["message"]


def test_what_others_hold_comes_back_in_a_second() -> None:
    status, headers, body = head_of(refusal(RefusalKind.RESERVED, "tokens 100 total", 1))
    assert (status, body["type"], body["code"]) == (429, "tokens", "rate_limit_exceeded")
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "1000")
    assert "x-should-retry" not in headers
    assert body["message"].endswith("Please try again in 1s.")


def test_a_demand_beyond_the_whole_limit_is_too_large() -> None:
    status, headers, body = head_of(refusal(RefusalKind.TOO_LARGE, "tokens 10/minute", None))
    assert (status, body["type"], body["code"]) == (429, "tokens", "rate_limit_exceeded")
    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers
    assert body["message"].startswith("Request too large for gpt")
    assert "lower max_tokens" in body["message"]


@pytest.mark.parametrize(
    ("wait", "after", "in_text", "is_retried"),
    [
        (0.2, "1", "200ms", None),
        (45.19, "46", "45.19s", None),
        (60, "60", "1m0s", None),
        (60.001, "61", "1m0.001s", "false"),
    ],
)
def test_a_rate_says_when_and_leaves_long_waits_to_the_caller(
    wait: float, after: str, in_text: str, is_retried: str | None
) -> None:
    _, headers, body = head_of(refusal(RefusalKind.RATE, "requests 100/hour", wait))
    assert (body["type"], body["code"]) == ("requests", "rate_limit_exceeded")
    assert headers["retry-after"] == after
    assert headers.get("x-should-retry") == is_retried
    assert body["message"].endswith(f"Limit 100, Used 90, Requested 20. Please try again in {in_text}.")


def test_a_refusal_shows_where_the_limits_stand() -> None:
    headers = head_of(refusal(RefusalKind.RATE, "requests 100/hour", 1))[1]
    assert headers["x-ratelimit-limit-requests"] == "100"
    assert headers["x-ratelimit-remaining-requests"] == "10"
    assert headers["x-ratelimit-reset-requests"] == "30s"


# --- x-ratelimit-*


def shown(*states: LimitState) -> dict[str, str]:
    return {
        name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in rate_limit_headers(states, NOW_MS)
    }


def test_limits_of_requests_and_of_tokens_are_shown_and_no_others() -> None:
    states = [
        state("requests 60/minute", spent=1, resets_in_ms=1_000),
        state("tokens 150000/minute", spent=16, resets_in_ms=360_000),
        state("spend 5 USD/day", spent=1),
        state("concurrent 9", reserved=1),
    ]
    assert shown(*states) == {
        "limit-requests": "60",
        "remaining-requests": "59",
        "reset-requests": "1s",
        "limit-tokens": "150000",
        "remaining-tokens": "149984",
        "reset-tokens": "6m0s",
    }
    assert shown() == {}


def test_the_tightest_of_several_rates_is_shown() -> None:
    wide, tight = state("requests 9000/hour", spent=10), state("requests 60/minute", spent=20)
    assert shown(wide, tight)["remaining-requests"] == shown(tight, wide)["remaining-requests"] == "40"


def test_a_rate_is_shown_before_a_quota_even_if_the_quota_is_tighter() -> None:
    rate, quota = state("tokens 1000/minute"), state("tokens 10 total", spent=3, reserved=2)
    assert shown(quota, rate)["remaining-tokens"] == "1000"
    assert shown(quota)["remaining-tokens"] == "5"


def test_what_never_resets_resets_now_and_nothing_is_below_zero() -> None:
    assert shown(state("tokens 10 total", spent=30)) == {
        "limit-tokens": "10",
        "remaining-tokens": "0",
        "reset-tokens": "0ms",
    }
    assert shown(state("tokens 10/minute", resets_in_ms=-5))["reset-tokens"] == "0ms"
