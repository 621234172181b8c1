"""Two deployments of one model: who answers when the first fails, and who pays."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from failure.bench import Bench, charge_of, new_marker
from failure.raw_client import Client
from fakes.gateway import Gateway
from fakes.upstream import FakeUpstream
from fakes.words import answer_text
from meterhouse.errors import UpstreamDown
from meterhouse.providers.breaker import CONSECUTIVE_FAILURES, RetryBudget
from meterhouse.usage import Exactness, Outcome, UsageRecord

HEAD_SECONDS = 0.2
FAST = {
    "METERHOUSE_FIRST_TOKEN_TIMEOUT_SECONDS": "0.5",
    "METERHOUSE_IDLE_TIMEOUT_SECONDS": "0.6",
    "METERHOUSE_TOTAL_TIMEOUT_SECONDS": "1.2",
    "METERHOUSE_HEAD_SECONDS": str(HEAD_SECONDS),
}
FAULTS = {
    "error-500": "upstream_unavailable",
    "error-529": "upstream_busy",
    "rate-limited": "upstream_busy",
    "error-401": "upstream_account",
    "error-first": "upstream_unavailable",
    "eof-after-head": "upstream_protocol_error",
    "reset-before-head": "upstream_unavailable",
    "reset-after-head": "upstream_unavailable",
    "garbage-first": "upstream_protocol_error",
    "html-200": "upstream_protocol_error",
    "comments-forever": "upstream_timeout",
    "never-answers": "upstream_timeout",
    "never-begins": "upstream_timeout",
}
"""What the first deployment does before any data event, and the code of its record."""
BROKEN_BODIES = {
    "error-500": "upstream_unavailable",
    "rate-limited": "upstream_busy",
    "reset": "upstream_unavailable",
    "html-200": "upstream_protocol_error",
    "error-mid": "upstream_unavailable",
    "garbage-utf8": "upstream_protocol_error",
}
REFUSALS = {"error-400": 400, "error-404": 404, "error-413": 413, "error-422": 422}
AFTER_DATA = {
    "reset": "upstream_unavailable",
    "error-mid": "upstream_unavailable",
    "eof-early": "upstream_stream_ended",
}
SAME = sorted({*FAULTS, *BROKEN_BODIES, *REFUSALS, *AFTER_DATA})
"""Names that mean the script of that name at the first provider, and a good answer at the second."""
NAMED = {
    "breaking": ("error-503", "normal"),
    "waiting": ("rate-limited?retry_after=30", "normal"),
    "hopeless": ("error-500?tokens=1", "error-502"),
    "costly": ("error-500?tokens=2", "normal?tokens=9"),
}


@dataclass
class Pair:
    """A gateway with two providers, ``a`` before ``b``, and ``a0`` which accepts no connection."""

    bench: Bench
    first: FakeUpstream
    second: FakeUpstream

    def play(self, model: str, **fields: Any) -> tuple[Client, list[UsageRecord], str]:
        """Ask for a model; returns the answer, its records and the marker."""
        marker = new_marker()
        client = self.bench.send(model, marker, **fields).read_all()
        return client, self.bench.records_of(client), marker

    def forget_retries(self) -> None:
        """Give a test the whole retry budget, which others have used: it counts over ten seconds."""
        attempts = self.bench.gateway.parts.inference.attempts
        self.bench.gateway.call(lambda: setattr(attempts, "_budget", RetryBudget()))

    def asked(self, marker: str) -> tuple[int, int]:
        """How often each provider was asked."""
        return len(self.first.truth.by_marker(marker)), len(self.second.truth.by_marker(marker))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with FakeUpstream() as first, FakeUpstream() as second, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        models = [(name, name, "normal") for name in SAME] + [(name, *pair) for name, pair in NAMED.items()]
        environment = FAST | {
            "METERHOUSE_PROVIDER_A_BASE_URL": first.base_url,
            "METERHOUSE_PROVIDER_A_MODELS": ",".join(f"{name}={ours}" for name, ours, _ in models),
            "METERHOUSE_PROVIDER_A0_BASE_URL": f"http://127.0.0.1:{nobody.getsockname()[1]}/v1",
            "METERHOUSE_PROVIDER_A0_MODELS": "deserted",
            "METERHOUSE_PROVIDER_B_BASE_URL": second.base_url,
            "METERHOUSE_PROVIDER_B_MODELS": ",".join(
                ["deserted=normal", *(f"{name}={theirs}" for name, _, theirs in models)]
            ),
        }
        with Gateway(tmp_path_factory.mktemp("failover") / "data", environment) as gateway:
            bench = Bench(gateway, first)
            bench.set_prices([ours for _, ours, _ in models], "a")
            bench.set_prices(["deserted"], "a0")
            bench.set_prices({"normal", *(theirs for _, _, theirs in models)}, "b")
            yield Pair(bench, first, second)
            bench.check_rest()


@pytest.fixture
def pair(opened: Pair) -> Pair:
    opened.forget_retries()
    opened.bench.forget_failures()
    return opened


def check_second_answered(records: list[UsageRecord], code: str) -> None:
    first, second = records
    assert (first.attempt, first.outcome, first.error_code) == (1, Outcome.UPSTREAM_FAILED, code)
    assert (first.requests, first.usage.total_tokens, first.charge_nanos) == (0, 0, 0)
    assert first.error_owner == "provider"
    assert (second.attempt, second.outcome, second.exactness) == (2, Outcome.COMPLETED, Exactness.REPORTED)
    assert (second.requests, second.provider, second.upstream_model) == (1, "b", "normal")
    assert second.charge_nanos == charge_of(second.usage.input_tokens, 20) > 0


@pytest.mark.parametrize("script", FAULTS)
def test_before_the_first_event_the_second_answers(script: str, pair: Pair) -> None:
    client, records, marker = pair.play(script)
    assert client.has_done
    assert client.error is None
    assert client.text == answer_text(marker, 20)
    assert {chunk["model"] for chunk in client.chunks} == {script}
    assert pair.asked(marker) == (1, 1)
    check_second_answered(records, FAULTS[script])


@pytest.mark.parametrize("script", BROKEN_BODIES)
def test_before_a_body_the_second_answers(script: str, pair: Pair) -> None:
    client, records, marker = pair.play(script, stream=False)
    assert client.status == 200
    body = json.loads(client.body)
    assert (body["choices"][0]["message"]["content"], body["model"]) == (answer_text(marker, 20), script)
    assert pair.asked(marker) == (1, 1)
    check_second_answered(records, BROKEN_BODIES[script])


def test_a_provider_that_accepts_no_connection_is_passed_over(pair: Pair) -> None:
    client, records, marker = pair.play("deserted")
    assert client.text == answer_text(marker, 20)
    check_second_answered(records, "upstream_unavailable")
    assert records[0].provider == "a0"


def test_the_head_may_be_out_already_when_the_second_takes_over(pair: Pair) -> None:
    client, records, marker = pair.play("never-answers")
    assert client.keep_alives >= 1
    assert client.body.startswith(b": keep-alive\n\n")
    assert client.text == answer_text(marker, 20)
    check_second_answered(records, "upstream_timeout")


@pytest.mark.parametrize("script", REFUSALS)
@pytest.mark.parametrize("is_streamed", [True, False])
def test_what_the_caller_is_to_blame_for_is_not_tried_again(script: str, is_streamed: bool, pair: Pair) -> None:
    client, records, marker = pair.play(script, stream=is_streamed)
    assert client.status == REFUSALS[script]
    assert pair.asked(marker) == (1, 0)
    assert [(record.outcome, record.charge_nanos) for record in records] == [(Outcome.REFUSED, 0)]


@pytest.mark.parametrize("script", AFTER_DATA)
def test_after_the_first_event_nothing_is_tried_again(script: str, pair: Pair) -> None:
    client, records, marker = pair.play(script)
    assert client.error is not None
    assert client.error["code"] == AFTER_DATA[script]
    assert not client.has_done
    assert pair.asked(marker) == (1, 0)
    assert [(record.outcome, record.exactness) for record in records] == [(Outcome.UPSTREAM_FAILED, Exactness.COUNTED)]


@pytest.mark.parametrize("is_streamed", [True, False])
def test_when_all_fail_the_last_failure_is_the_answer_and_nobody_pays(is_streamed: bool, pair: Pair) -> None:
    client, records, marker = pair.play("hopeless", stream=is_streamed)
    assert client.status == 502
    assert pair.asked(marker) == (1, 1)
    assert [(record.attempt, record.requests) for record in records] == [(1, 0), (2, 1)]
    assert {(record.outcome, record.charge_nanos) for record in records} == {(Outcome.UPSTREAM_FAILED, 0)}


def test_a_budget_is_moved_once_by_what_the_second_used(pair: Pair) -> None:
    key_id, key = pair.bench.gateway.new_key_of(
        "spend 1 USD/month; tokens 100000 total; concurrent 5; requests 9 total"
    )
    client, _, _ = pair.play("costly", key=key)
    assert client.text.count(" ") == 9
    records = pair.bench.records_of_key(key_id, 2)
    spent = {row["kind"]: row["spent"] for row in pair.bench.gateway.limits(key)}
    total_tokens = records[1].usage.total_tokens
    assert spent == {"spend": records[1].charge_nanos, "tokens": total_tokens, "concurrent": 0, "requests": 1}
    pair.bench.check_nothing_reserved(key)


def test_after_five_failures_in_a_row_the_first_is_not_asked(pair: Pair) -> None:
    for _ in range(CONSECUTIVE_FAILURES):
        pair.forget_retries()
        _, records, marker = pair.play("breaking")
        assert pair.asked(marker) == (1, 1)
        check_second_answered(records, "upstream_unavailable")
    client, records, marker = pair.play("breaking")
    assert client.has_done
    assert pair.asked(marker) == (0, 1)
    assert [(record.attempt, record.provider, record.outcome) for record in records] == [(1, "b", Outcome.COMPLETED)]


def test_when_the_time_for_the_whole_answer_is_up_nobody_else_is_asked(pair: Pair) -> None:
    client, records, marker = pair.play("never-begins", stream=False)
    assert client.status == 504
    assert pair.asked(marker) == (1, 0)
    assert [(record.error_code, record.charge_nanos) for record in records] == [("upstream_timeout", 0)]


def test_a_deployment_that_asked_for_patience_comes_last(pair: Pair) -> None:
    _, records, _ = pair.play("waiting")
    check_second_answered(records, "upstream_busy")
    _, records, marker = pair.play("waiting")
    assert pair.asked(marker) == (0, 1)
    assert [record.provider for record in records] == ["b"]


def test_extra_attempts_come_out_of_a_budget(pair: Pair) -> None:
    statuses = []
    for script in ("error-529", "error-first", "eof-after-head", "html-200", "reset-after-head"):
        client, records, _ = pair.play(script)
        statuses.append(client.status)
        assert len(records) == (2 if client.status == 200 else 1)
    assert statuses == [200] * RetryBudget.FLOOR + [502] * 2


def test_a_deployment_that_is_not_asked_costs_the_others_no_extra_attempt(pair: Pair) -> None:
    breakers = pair.bench.gateway.parts.inference.attempts.breakers

    def take_out() -> None:
        for _ in range(CONSECUTIVE_FAILURES):
            breaker = breakers.of("b/normal")
            leave = breaker.try_acquire()
            assert leave is not None
            breaker.record(leave, UpstreamDown("down"))

    pair.bench.gateway.call(take_out)
    for _ in range(RetryBudget.FLOOR):
        client, records, marker = pair.play("error-500")
        assert (client.status, len(records), pair.asked(marker)) == (502, 1, (1, 0))
    pair.bench.forget_failures()
    client, records, _ = pair.play("error-500")
    assert client.status == 200
    check_second_answered(records, "upstream_unavailable")
    assert pair.bench.gateway.parts.inference.attempts.budget.spent == 1
