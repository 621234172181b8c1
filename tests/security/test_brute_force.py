"""Brute force: guesses at keys are counted, per address and in all, and cost the guesser more than us."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from api.asking import error_of
from fakes.gateway import Gateway
from meterhouse.keys.secret import make
from meterhouse.keys.throttle import ALL_FACTOR, MOST_ADDRESSES, SignInThrottle


class HandClock:
    """A clock that a test sets."""

    ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def throttle(clock: HandClock) -> SignInThrottle:
    return SignInThrottle("3/minute", clock)


def fail(throttle: SignInThrottle, address: str | None, count: int) -> None:
    for _ in range(count):
        throttle.note(address)


def test_an_address_has_so_many_guesses_and_then_waits_for_its_window(
    throttle: SignInThrottle, clock: HandClock
) -> None:
    fail(throttle, "198.51.100.7", 2)
    assert not throttle.is_closed("198.51.100.7")
    fail(throttle, "198.51.100.7", 1)
    assert throttle.is_closed("198.51.100.7")
    assert not throttle.is_closed("198.51.100.8")
    assert throttle.refuse("198.51.100.7").retry_after_seconds == 60
    clock.ms += 60_000
    assert not throttle.is_closed("198.51.100.7")


def test_an_ipv6_network_is_one_address_however_it_is_written(throttle: SignInThrottle) -> None:
    for number in range(3):
        throttle.note(f"2001:db8:1:2::{number:x}")
    assert throttle.is_closed("2001:db8:1:2:ffff::1%eth0")
    assert not throttle.is_closed("2001:db8:1:3::1")
    fail(throttle, "::ffff:198.51.100.7", 3)
    assert throttle.is_closed("198.51.100.7")
    fail(throttle, None, 3)
    assert throttle.is_closed("what is no address")


def test_many_addresses_together_have_one_guess_each(throttle: SignInThrottle, clock: HandClock) -> None:
    for number in range(3 * ALL_FACTOR):
        throttle.note(f"10.0.{number // 256}.{number % 256}")
    assert throttle.is_closed("10.0.0.1")
    assert not throttle.is_closed("10.9.9.9"), "whoever has not failed is let in"
    throttle.note("10.9.9.9")
    assert throttle.is_closed("10.9.9.9")
    clock.ms += 60_000
    assert not throttle.is_closed("10.9.9.9")


def test_the_memory_of_failures_is_bounded(throttle: SignInThrottle) -> None:
    for number in range(MOST_ADDRESSES + 1_000):
        throttle.note(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(throttle._failures) == MOST_ADDRESSES


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Gateway]:
    with Gateway(tmp_path / "data", {"METERHOUSE_KEY_FAILURE_RATE": "3/minute"}) as running:
        yield running


def test_guesses_are_refused_unread_and_good_keys_go_on(strict: Gateway) -> None:
    known, unseen = strict.new_key(), strict.new_key()
    assert strict.chat("simulator-instant", key=known)[0] == 200
    answers = [strict.request("GET", "/v1/models", key=key) for key in ("", "no-key", make("dev").value)]
    assert [status for status, _, _ in answers] == [401] * 3
    reads = strict.call(lambda: strict.parts.keyring.misses)
    for path in ("/v1/models", "/v1/chat/completions", "/api/chat", "/v1/limits"):
        method = "POST" if "chat" in path else "GET"
        status, headers, body = strict.request(method, path, key=make("dev").value)
        assert (status, error_of(body)["code"]) == (429, "rate_limit_exceeded")
        assert headers["x-should-retry"] == "false"
        assert 0 < int(headers["retry-after"]) <= 60
    assert strict.request("GET", "/v1/models", key=unseen)[0] == 429, "a right guess does not show"
    assert strict.call(lambda: strict.parts.keyring.misses) == reads, "nothing was looked up"
    assert strict.chat("simulator-instant", key=known)[0] == 200, "who was known to be good before is let in"
    metrics = strict.request("GET", "/metrics")[2].decode()
    assert "meterhouse_refused_sign_ins_total 5.0" in metrics


def test_client_tokens_that_have_ended_close_no_address_and_good_ones_pass_one_that_is_closed(strict: Gateway) -> None:
    tokens = strict.parts.keyring.tokens
    body = {"max_spend_usd": "1", "expires_in_seconds": 600}
    _, _, answer = strict.request("POST", "/v1/client_tokens", body)
    good = json.loads(answer)["value"]
    grant = tokens.read(good, 0)
    expired = tokens.make(msgspec.structs.replace(grant, iat=grant.iat - 3_600, exp=grant.iat - 3_000))
    of_no_key = tokens.make(msgspec.structs.replace(grant, sub="key_gone", jti="key_gone.abc"))
    for token in (expired, of_no_key) * 3:
        assert strict.request("GET", "/v1/models", key=token)[0] == 401
    assert strict.request("GET", "/v1/models", key=strict.new_key())[0] == 200, "they were no guesses"
    forged = f"{good.rpartition('.')[0]}.{'A' * 43}"
    assert [strict.request("GET", "/v1/models", key=forged)[0] for _ in range(4)] == [401, 401, 401, 429]
    assert strict.request("GET", "/v1/models", key=good)[0] == 200
    assert strict.request("GET", "/v1/models", key=expired)[0] == 401


def test_a_text_that_is_no_key_costs_neither_a_statement_nor_a_moment(gateway: Gateway) -> None:
    """SQL injection before sign-in (CVE-2026-42208): whatever stands behind Bearer, the database never hears of it."""
    texts = [
        "' OR '1'='1",
        "sk-mh-dev-' ; DROP TABLE key; --",
        "\\",
        "%",
        "sk-mh-dev-" + "A" * 100,
        "Zażółć",
        "x" * 7_000,
    ]
    reader = gateway.parts.keyring._reader
    queries = gateway.call(lambda: reader.queries)
    began = time.monotonic()
    for text in texts:
        status, _, body = gateway.request("GET", "/v1/models", key=text.encode().decode("latin-1"))
        assert (status, error_of(body)["code"]) == (401, "invalid_api_key"), text
    assert (time.monotonic() - began) / len(texts) < 0.1
    assert gateway.call(lambda: reader.queries) == queries
