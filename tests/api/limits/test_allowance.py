"""How long an answer a budget allows, what is held for a long one, and how it ends where no more is to be had."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.asking import Capture, Tenant, chunks_of, marked, text_of
from api.limits.arrange import INPUT_NANOS, OUTPUT_NANOS, Answer, Bench, hold_nanos, hold_tokens, usage_of, usd
from fakes import scripts
from fakes.exchange import Exchange
from fakes.gateway import Gateway, provider_environment
from fakes.upstream import FakeUpstream
from fakes.words import answer_text
from meterhouse.usage import Outcome

MODEL_MAXIMUM = 16_384
SLICE = 2_048
TOTAL = "spend {} USD total"


@pytest.fixture(scope="module")
def capture(up: FakeUpstream) -> Capture:
    return Capture(up)


def allowed(capture: Capture, bench: Bench, limits: str, **fields: object) -> tuple[Answer, object]:
    """Ask once under these limits; returns the answer and the bound that went upstream."""
    marker, messages = marked()
    answer = bench.chat(bench.tenant(key=limits), "capture", messages=messages, **fields)
    assert answer.status == 200, answer.body
    return answer, capture.body(marker).get("max_tokens")


# --- the allowance


@pytest.mark.parametrize("stream", [False, True])
def test_an_unasked_length_is_what_a_quarter_of_the_budget_buys_and_says_so(
    bench: Bench, capture: Capture, stream: bool
) -> None:
    limits = TOTAL.format(usd(4 * 2_500 * OUTPUT_NANOS))
    answer, sent = allowed(capture, bench, limits, stream=stream)
    assert answer.headers["x-meterhouse-max-tokens"] == "2500"
    assert sent == 2_500


def test_the_smallest_of_several_budgets_and_token_quotas_decides(bench: Bench, capture: Capture) -> None:
    limits = f"{TOTAL.format(usd(4 * 2_500 * OUTPUT_NANOS))}; tokens 6000/day; spend 90 USD/month"
    assert allowed(capture, bench, limits)[1] == 1_500


def test_what_is_spent_and_what_is_held_is_not_free(bench: Bench, capture: Capture) -> None:
    tenant = bench.tenant(key="tokens 20000 total")
    spent = usage_of(bench.chat(tenant, "normal?tokens=20", max_tokens=20))["total_tokens"]
    held = bench.open(tenant, "gate", max_tokens=2_000)
    marker, messages = marked()
    assert bench.chat(tenant, "capture", messages=messages).status == 200
    assert capture.body(marker)["max_tokens"] == (20_000 - spent - hold_tokens(held.text, 2_000)) // 4
    bench.up.release()
    held.result()


def test_what_is_asked_above_the_allowance_is_clamped_and_says_so(bench: Bench, capture: Capture) -> None:
    limits = TOTAL.format(usd(4 * 2_500 * OUTPUT_NANOS))
    for name in ("max_tokens", "max_completion_tokens"):
        answer, sent = allowed(capture, bench, limits, **{name: 5_000})
        assert (answer.headers["x-meterhouse-max-tokens"], sent) == ("2500", 2_500)


def test_what_is_asked_within_the_allowance_stays_and_nothing_is_said(bench: Bench, capture: Capture) -> None:
    for asked in (10, 2_500):
        answer, sent = allowed(capture, bench, TOTAL.format(usd(4 * 2_500 * OUTPUT_NANOS)), max_tokens=asked)
        assert sent == asked
        assert "x-meterhouse-max-tokens" not in answer.headers


@pytest.mark.parametrize(("asked", "bound"), [(None, 1_024), (5_000, 1_024), (1_024, 1_024), (600, 600)])
def test_the_allowance_is_never_below_1024_or_what_is_asked(
    bench: Bench, capture: Capture, asked: int | None, bound: int
) -> None:
    fields = {} if asked is None else {"max_tokens": asked}
    assert allowed(capture, bench, TOTAL.format(usd(1_100 * OUTPUT_NANOS)), **fields)[1] == bound


def test_a_budget_with_room_for_the_floor_only_serves_a_request_without_max_tokens(bench: Bench) -> None:
    tenant = bench.tenant(key=TOTAL.format(usd(hold_nanos("Hello", 1_024))))
    answer = bench.chat(tenant, "normal?tokens=20")
    assert (answer.status, answer.headers["x-meterhouse-max-tokens"]) == (200, "1024")
    tenant = bench.tenant(key=TOTAL.format(usd(hold_nanos("Hello", 1_024) - 1)))
    assert bench.chat(tenant, "normal?tokens=20").status == 429


def test_a_large_budget_allows_the_models_maximum(bench: Bench, capture: Capture) -> None:
    answer, sent = allowed(capture, bench, "spend 90 USD total")
    assert sent == MODEL_MAXIMUM
    assert answer.headers["x-meterhouse-max-tokens"] == str(MODEL_MAXIMUM)


def test_the_allowance_is_for_each_of_several_choices(bench: Bench, capture: Capture) -> None:
    limits = TOTAL.format(usd(4 * 4_000 * OUTPUT_NANOS))
    assert allowed(capture, bench, limits, n=2)[1] == 2_000


@pytest.mark.parametrize("limits", ["", "tokens 50000/minute; requests 90/day; concurrent 9"])
@pytest.mark.parametrize("asked", [None, 50, 30_000])
def test_without_a_budget_or_token_quota_nothing_is_clamped(
    bench: Bench, capture: Capture, limits: str, asked: int | None
) -> None:
    fields = {} if asked is None else {"max_tokens": asked}
    answer, sent = allowed(capture, bench, limits, **fields)
    assert sent == asked
    assert "x-meterhouse-max-tokens" not in answer.headers


def test_the_clamped_bound_ends_the_answer(bench: Bench) -> None:
    tenant = bench.tenant(key=TOTAL.format(usd(1_100 * OUTPUT_NANOS)))
    answer = bench.chat(tenant, "normal?tokens=3000")
    assert json.loads(answer.body)["choices"][0]["finish_reason"] == "length"
    assert usage_of(answer)["completion_tokens"] == 1_024


def test_a_provider_that_reads_another_field_gets_the_bound_there(
    up: FakeUpstream, capture: Capture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    environment = provider_environment("openai", up.base_url)
    with Gateway(tmp_path_factory.mktemp("field") / "data", environment) as gateway:
        gateway.set_price("openai", "capture", "1", "4")
        key = gateway.new_key(TOTAL.format(usd(1_100 * OUTPUT_NANOS)))
        for fields in ({}, {"max_tokens": 9_000}, {"max_completion_tokens": 9_000}):
            marker, messages = marked()
            status, headers, _ = gateway.chat("openai/capture", key=key, messages=messages, **fields)
            assert (status, headers["x-meterhouse-max-tokens"]) == (200, "1024")
            assert capture.body(marker)["max_completion_tokens"] == 1_024
            assert "max_tokens" not in capture.body(marker)


# --- slices


def reserved_tokens(bench: Bench, tenant: Tenant, text: str) -> int:
    """Return the output tokens that a key's one budget holds for the one open request."""
    (limit,) = bench.gateway.limits(tenant.key)
    nanos = limit["reserved"] - hold_nanos(text, 0)
    assert nanos % OUTPUT_NANOS == 0
    return int(nanos // OUTPUT_NANOS)


@pytest.mark.parametrize("choices", [1, 3])
def test_a_stream_first_holds_a_slice_of_each_choice(bench: Bench, choices: int) -> None:
    tenant = bench.tenant(key="spend 5 USD total")
    held = bench.open(tenant, "gate", stream=True, n=choices)
    assert reserved_tokens(bench, tenant, held.text) == SLICE * choices
    bench.up.release()
    assert held.result().status == 200


def test_what_is_not_streamed_holds_its_whole_allowance(bench: Bench) -> None:
    tenant = bench.tenant(key="spend 5 USD total")
    held = bench.open(tenant, "gate")
    assert reserved_tokens(bench, tenant, held.text) == MODEL_MAXIMUM
    bench.up.release()
    assert held.result().status == 200


def test_a_short_stream_holds_what_is_asked(bench: Bench) -> None:
    tenant = bench.tenant(key="spend 5 USD total")
    held = bench.open(tenant, "gate", stream=True, max_tokens=50)
    assert reserved_tokens(bench, tenant, held.text) == 50
    bench.up.release()
    assert held.result().status == 200


def test_a_model_that_thinks_without_showing_it_holds_its_whole_allowance(bench: Bench, up: FakeUpstream) -> None:
    up.script("o3-thinker", scripts.answer)
    tenant = bench.tenant(key="spend 5 USD total")
    held = bench.open(tenant, "o3-thinker?gate=start", stream=True)
    assert reserved_tokens(bench, tenant, held.text) == MODEL_MAXIMUM
    bench.up.release()
    assert held.result().status == 200


def test_a_long_stream_holds_more_as_it_goes_and_is_charged_exactly(bench: Bench) -> None:
    tenant = bench.tenant(key="spend 5 USD total")
    held = bench.open(tenant, "normal?tokens=3000&gate=1000&batch=50", stream=True)
    forwarded = len(answer_text(held.marker, 1_000).encode())
    bench.wait(lambda: reserved_tokens(bench, tenant, held.text) >= forwarded)
    assert reserved_tokens(bench, tenant, held.text) % SLICE == 0
    assert reserved_tokens(bench, tenant, held.text) < MODEL_MAXIMUM
    bench.up.release()
    answer = held.result()
    assert text_of(chunks_of(answer.body)) == answer_text(held.marker, 3_000)
    (record,) = bench.gateway.records(answer.request_id)
    words = len(held.text.split())
    assert record.charge_nanos == (7 + words) * INPUT_NANOS + 3_000 * OUTPUT_NANOS
    (limit,) = bench.gateway.limits(tenant.key)
    assert (limit["spent"], limit["reserved"]) == (record.charge_nanos, 0)


class Crowd:
    """A stream that stands at a gate with one slice held, and a request of somebody else that holds all the rest."""

    def __init__(self, bench: Bench, script: str, **fields: object) -> None:
        self.bench = bench
        self.name = script.partition("?")[0]
        self.budget_nanos = 4 * 2_500 * int(str(fields.get("n", 1))) * OUTPUT_NANOS
        self.tenant = bench.tenant(key=TOTAL.format(usd(self.budget_nanos)))
        self.stream = bench.open(self.tenant, script, stream=True, stream_options={"include_usage": True}, **fields)
        self.held_nanos = hold_nanos(self.stream.text, SLICE * int(str(fields.get("n", 1))))
        each = (self.budget_nanos - self.held_nanos - 40 * INPUT_NANOS) // OUTPUT_NANOS // 16
        self.other = bench.open(self.tenant, "gate", max_tokens=each, n=16)
        assert not self.other.future.done()
        self.other_nanos = hold_nanos(self.other.text, 16 * each)

    def let_go(self) -> Answer:
        """Let the stream run to its end."""
        self.bench.up.release(1, self.name)
        return self.stream.result()

    def assert_exact(self, charge_nanos: int) -> None:
        """Nothing is held but by the other; once it has ended, nothing at all, and the ledger agrees."""
        (limit,) = self.bench.gateway.limits(self.tenant.key)
        assert (limit["spent"], limit["reserved"]) == (charge_nanos, self.other_nanos)
        self.bench.up.release()
        assert self.other.result().status == 200
        (limit,) = self.bench.gateway.limits(self.tenant.key)
        rows = self.bench.charges(self.tenant)
        assert limit["spent"] == sum(row["charge_nanos"] for row in rows) <= self.budget_nanos
        assert limit["reserved"] == 0


@pytest.mark.parametrize(
    "script",
    [
        "normal?tokens=3000&gate=100&fault=stall&at=2300",
        "normal?tokens=3000&gate=100&fault=stall&at=2300&batch=500",
        "usage-running?tokens=3000&gate=100&fault=stall&at=2300",
        "usage-running?tokens=3000&gate=100&fault=stall&at=2300&batch=100",
        "reasoning?tokens=3000&gate=100&fault=stall&at=2300",
        "tools?tokens=3000&gate=100&fault=stall&at=2300",
    ],
)
def test_where_no_more_is_to_be_had_the_stream_ends_cleanly_within_its_hold(bench: Bench, script: str) -> None:
    crowd = Crowd(bench, script)
    answer = crowd.let_go()
    chunks = chunks_of(answer.body)
    *_, last, usage_chunk = chunks
    assert [row["finish_reason"] for row in last["choices"]] == ["length"]
    assert {chunk["id"] for chunk in chunks} == {last["id"]}
    assert not any(row["finish_reason"] for chunk in chunks[:-2] for row in chunk["choices"])
    (attempt,) = bench.up.truth.by_marker(crowd.stream.marker)
    bench.up.wait_for(lambda _: attempt.ended_by == "client_gone")

    (record,) = bench.gateway.records(answer.request_id)
    assert (record.outcome, record.error_code) == ("cut", "")
    assert 0 < record.charge_nanos <= crowd.held_nanos
    assert record.overrun_nanos == 0
    assert usage_chunk["choices"] == []
    assert usage_chunk["usage"]["completion_tokens"] == record.usage.output_tokens <= SLICE
    assert usage_chunk["usage"]["prompt_tokens"] == record.usage.input_tokens
    crowd.assert_exact(record.charge_nanos)


def test_an_answer_whose_end_comes_with_what_is_too_much_still_says_how_it_ended(bench: Bench) -> None:
    crowd = Crowd(bench, "usage-running?tokens=2400&gate=100&batch=10000")
    answer = crowd.let_go()
    *_, last, usage_chunk = chunks_of(answer.body)
    assert [row["finish_reason"] for row in last["choices"]] == ["length"]
    (record,) = bench.gateway.records(answer.request_id)
    assert (record.outcome, record.usage.output_tokens) == ("cut", SLICE)
    assert usage_chunk["usage"]["completion_tokens"] == SLICE
    crowd.assert_exact(record.charge_nanos)


def test_a_choice_that_had_finished_before_the_cut_keeps_its_own_finish(bench: Bench, up: FakeUpstream) -> None:
    async def run(exchange: Exchange) -> None:
        wire = scripts.open_wire(exchange)
        await exchange.head(200, {"content-type": "text/event-stream"})
        await exchange.token(wire.token(0, {"content": "short"}, None), "text")
        await exchange.emit(wire.finish(0, "stop", None))
        await exchange.hold("middle")
        await exchange.token(wire.token(1, {"content": "long " * 1_500}, None), "text")
        await exchange.forever()

    up.script("one-by-one", run)
    crowd = Crowd(bench, "one-by-one", n=2)
    chunks = chunks_of(crowd.let_go().body)
    ends = [(row["index"], row["finish_reason"]) for c in chunks for row in c["choices"] if row["finish_reason"]]
    assert ends == [(0, "stop"), (1, "length")]
    assert (text_of(chunks, 0), text_of(chunks, 1)) == ("short", "")


def test_a_cut_stream_forwards_no_more_text_than_was_held(bench: Bench) -> None:
    crowd = Crowd(bench, "normal?tokens=3000&gate=100&fault=stall&at=2300")
    text = text_of(chunks_of(crowd.let_go().body))
    # How much of the slice was read at once, and so is dropped with its end, depends on the socket.
    assert 100 < len(text.encode()) <= SLICE
    assert answer_text(crowd.stream.marker, 3_000).startswith(text)


# --- what exceeds a hold


@pytest.fixture(scope="module")
def deaf(up: FakeUpstream) -> str:
    """A provider that ignores max_tokens."""

    async def run(exchange: Exchange) -> None:
        wire = scripts.open_wire(exchange)
        wire.limit = None
        await (scripts.stream if exchange.request.is_streamed else scripts.whole)(exchange, wire)

    up.script("deaf", run)
    return "deaf?tokens=50"


def overrun_counted(bench: Bench) -> float:
    body = bench.gateway.request("GET", "/metrics", key="")[2].decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
        if sample.name == "meterhouse_overrun_nanos_total" and sample.labels == {"provider": "fake"}
    )


def test_a_stream_that_goes_past_its_whole_allowance_is_cut_and_charged_no_more_than_its_hold(
    bench: Bench, deaf: str
) -> None:
    tenant = bench.tenant(key=TOTAL.format(usd(2 * hold_nanos("Hello", 10))))
    # So long that a busy machine does not read all of it at once, to its end.
    answer = bench.chat(tenant, deaf.replace("50", "2000&pace_ms=5"), max_tokens=10, stream=True)
    assert answer.status == 200
    (record,) = bench.gateway.records(answer.request_id)
    assert record.outcome is Outcome.CUT
    assert record.usage.output_tokens <= 10
    assert record.overrun_nanos == 0


def test_an_overrun_is_recorded_in_full_and_counted(bench: Bench, deaf: str) -> None:
    budget_nanos = 2 * hold_nanos("Hello", 10)
    tenant = bench.tenant(key=TOTAL.format(usd(budget_nanos)))
    before = overrun_counted(bench)
    answer = bench.chat(tenant, deaf, max_tokens=10)
    assert answer.status == 200
    (record,) = bench.gateway.records(answer.request_id)
    charge_nanos = 8 * INPUT_NANOS + 50 * OUTPUT_NANOS
    assert (record.usage.output_tokens, record.charge_nanos) == (50, charge_nanos)
    assert record.overrun_nanos == charge_nanos - hold_nanos("Hello", 10)
    bench.wait(lambda: overrun_counted(bench) == before + record.overrun_nanos)
    (limit,) = bench.gateway.limits(tenant.key)
    assert (limit["spent"], limit["reserved"], limit["free"]) == (charge_nanos, 0, 0)
    refused = bench.chat(tenant, deaf, max_tokens=10)
    assert refused.error["code"] == "insufficient_quota"


def test_an_answer_within_its_hold_is_no_overrun(bench: Bench) -> None:
    before = overrun_counted(bench)
    assert bench.chat(bench.tenant(key="spend 1 USD total"), "normal?tokens=10", max_tokens=10).status == 200
    assert overrun_counted(bench) == before


def test_what_has_no_bound_is_refused_before_anything_is_held(bench: Bench) -> None:
    tenant = bench.tenant(key="spend 1 USD total; requests 9/day")
    film = {"type": "video_url", "video_url": {"url": "https://example.org/film.mp4"}}
    refused = bench.chat(tenant, "normal?tokens=10", messages=[{"role": "user", "content": [film]}])
    assert (refused.status, refused.error["code"]) == (402, "not_priced")
    assert all(limit["free"] == limit["amount"] for limit in bench.gateway.limits(tenant.key))
