"""What a scrape says after requests of every kind, and that no label can grow without bound."""

import timeit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meterhouse.metering import Kind, Limit, Refusal, RefusalKind, Scope, Window
from meterhouse.telemetry.metrics import MAX_CHILDREN, Metrics, Watched
from meterhouse.usage import Exactness, Outcome, Usage, UsageRecord

BASE = UsageRecord(
    request_id="0" * 32,
    attempt=1,
    requests=1,
    organization_id="org_1",
    project_id="proj_1",
    key_id="key_1",
    root_key_id="key_1",
    model="gpt-4o-mini",
    served_model="gpt-4o-mini",
    provider="openai",
    deployment="openai/default",
    upstream_model="gpt-4o-mini",
    operation="chat",
    service_tier="default",
    outcome=Outcome.COMPLETED,
    exactness=Exactness.REPORTED,
    error_owner="",
    error_code="",
    is_streamed=True,
    is_suspect=False,
    usage=Usage(input_tokens=120, cached_input_tokens=100, output_tokens=34),
    price_id="price_1",
    charge_nanos=25_400,
    charges=(("input", 5_000), ("output", 20_400)),
    overrun_nanos=0,
    admitted_at_ms=1_760_000_000_000,
    time_to_first_token_ms=240,
    duration_ms=900,
    trace_id="0" * 32,
)


def a_record(**changes: object) -> UsageRecord:
    return UsageRecord(**({name: getattr(BASE, name) for name in BASE.__struct_fields__} | changes))


def observe(metrics: Metrics, *records: UsageRecord, **changes: object) -> None:
    values = {"route": "/v1/chat/completions", "status": 200, "owner": "", "code": "", "duration_ms": 900}
    metrics.observe_request(**(values | changes), records=records)


def scrape(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return scrape(metrics).get((name, frozenset(labels.items())))


def test_a_completed_request_is_counted_with_its_tokens_charge_and_times() -> None:
    metrics = Metrics()
    observe(metrics, BASE)
    observe(metrics, a_record(usage=Usage(input_tokens=1, output_tokens=2)))
    route = {"route": "/v1/chat/completions"}
    assert value(metrics, "meterhouse_requests_total", **route, status_class="2xx", owner="", code="") == 2
    assert value(metrics, "meterhouse_attempts_total", provider="openai", outcome="completed") == 2
    assert value(metrics, "meterhouse_tokens_total", provider="openai", kind="input") == 121
    assert value(metrics, "meterhouse_tokens_total", provider="openai", kind="cached_input") == 100
    assert value(metrics, "meterhouse_tokens_total", provider="openai", kind="output") == 36
    assert value(metrics, "meterhouse_charge_nanos_total", provider="openai") == 50_800
    assert value(metrics, "meterhouse_unbilled_attempts_total", provider="openai") == 0
    assert value(metrics, "meterhouse_time_to_first_token_seconds_sum", provider="openai") == pytest.approx(0.48)
    assert value(metrics, "meterhouse_time_to_first_token_seconds_bucket", provider="openai", le="0.2") == 0
    assert value(metrics, "meterhouse_time_to_first_token_seconds_bucket", provider="openai", le="0.35") == 2
    assert value(metrics, "meterhouse_request_duration_seconds_count", **route) == 2


def test_a_failover_is_one_request_with_two_attempts_of_which_one_is_our_loss() -> None:
    metrics = Metrics()
    lost = a_record(
        provider="groq", outcome=Outcome.UPSTREAM_FAILED, usage=Usage(), charge_nanos=0, time_to_first_token_ms=None
    )
    observe(metrics, lost, a_record(attempt=2, overrun_nanos=70))
    assert value(metrics, "meterhouse_attempts_total", provider="groq", outcome="upstream_failed") == 1
    assert value(metrics, "meterhouse_unbilled_attempts_total", provider="groq") == 1
    assert value(metrics, "meterhouse_unbilled_attempts_total", provider="openai") == 0
    assert value(metrics, "meterhouse_overrun_nanos_total", provider="openai") == 70
    assert value(metrics, "meterhouse_time_to_first_token_seconds_count", provider="groq") == 0


def test_answers_are_counted_by_how_their_tokens_are_known() -> None:
    metrics = Metrics()
    observe(metrics, BASE)
    observe(metrics, a_record(exactness=Exactness.COUNTED, outcome=Outcome.CLIENT_GONE))
    observe(metrics, a_record(exactness=Exactness.COUNTED, is_suspect=True))
    observe(metrics, a_record(exactness=Exactness.COUNTED, outcome=Outcome.UPSTREAM_FAILED))
    found = {
        source: value(metrics, "meterhouse_usages_total", provider="openai", source=source)
        for source in ("reported", "counted", "assumed", "suspect")
    }
    assert found == {"reported": 1, "counted": 1, "assumed": 0, "suspect": 1}


def test_unpriced_attempts_and_attempts_that_were_never_sent() -> None:
    metrics = Metrics()
    observe(metrics, a_record(price_id=None, charge_nanos=0))
    observe(metrics, a_record(attempt=0, provider="", outcome=Outcome.NOT_SENT, charge_nanos=0), status=503)
    assert value(metrics, "meterhouse_unpriced_attempts_total", provider="openai") == 1
    assert value(metrics, "meterhouse_unbilled_attempts_total", provider="openai") == 0
    assert value(metrics, "meterhouse_attempts_total", provider="", outcome="not_sent") is None


def test_failures_are_counted_by_who_owns_them() -> None:
    metrics = Metrics()
    observe(metrics, status=504, owner="provider", code="upstream_timeout")
    observe(metrics, status=429, owner="limit", code="insufficient_quota")
    observe(metrics, status=0)
    labels = {"route": "/v1/chat/completions"}
    assert (
        value(
            metrics,
            "meterhouse_requests_total",
            **labels,
            status_class="5xx",
            owner="provider",
            code="upstream_timeout",
        )
        == 1
    )
    assert (
        value(
            metrics,
            "meterhouse_requests_total",
            **labels,
            status_class="4xx",
            owner="limit",
            code="insufficient_quota",
        )
        == 1
    )
    assert value(metrics, "meterhouse_requests_total", **labels, status_class="none", owner="", code="") == 1


def test_refusals_are_counted_by_limit_and_by_how() -> None:
    metrics = Metrics()
    limit = Limit(scope=Scope.KEY, scope_id="key_1", kind=Kind.SPEND, window=Window.MONTH, amount=10)
    for kind in (RefusalKind.SPENT, RefusalKind.RESERVED, RefusalKind.RESERVED):
        metrics.observe_refusal(Refusal(kind, limit, used=10, demanded=5, retry_after_seconds=None, states=()))
    labels = {"kind": "spend", "scope": "key", "window": "month"}
    assert value(metrics, "meterhouse_refusals_total", refusal="spent", **labels) == 1
    assert value(metrics, "meterhouse_refusals_total", refusal="reserved", **labels) == 2


def test_no_label_grows_without_bound() -> None:
    metrics = Metrics()
    count = MAX_CHILDREN * 4
    for number in range(count):
        record = a_record(provider=f"provider-{number}")
        observe(metrics, record, route=f"/made/up/{number}", status=400, owner="caller", code=f"code-{number}")
    samples = scrape(metrics)
    for name in ("meterhouse_requests_total", "meterhouse_attempts_total", "meterhouse_charge_nanos_total"):
        values = [sample for (sample_name, _), sample in samples.items() if sample_name == name]
        assert len(values) <= MAX_CHILDREN + 1
    assert sum(v for (name, _), v in samples.items() if name == "meterhouse_requests_total") == count
    assert sum(v for (name, _), v in samples.items() if name == "meterhouse_charge_nanos_total") == count * 25_400
    assert value(metrics, "meterhouse_attempts_total", provider="other", outcome="completed") == count - MAX_CHILDREN


def test_errors_of_many_kinds_do_not_take_a_route_its_own_figures() -> None:
    metrics = Metrics()
    for number in range(MAX_CHILDREN * 2):
        observe(metrics, a_record(), route="/v1/files", status=400, owner="caller", code=f"code-{number}")
    observe(metrics, a_record(), route="/v1/models", status=200, owner="", code="")
    name, failed = "meterhouse_requests_total", {"status_class": "4xx", "owner": "caller", "code": "other"}
    assert value(metrics, name, route="/v1/files", **failed) == MAX_CHILDREN
    assert value(metrics, name, route="/v1/models", status_class="2xx", owner="", code="") == 1


def test_no_model_key_or_organization_is_a_label() -> None:
    metrics = Metrics()
    observe(metrics, a_record(model="secret-model", organization_id="org_secret", key_id="key_secret"))
    text, _ = metrics.render()
    assert b"secret" not in text


def test_watched_values_are_read_at_each_scrape() -> None:
    metrics = Metrics()
    journal_bytes = [10]
    metrics.watch(Watched.JOURNAL_BYTES, lambda: journal_bytes[0])
    metrics.watch(Watched.KEYRING_HITS, lambda: 7)
    metrics.watch(Watched.DEGRADED, lambda: 1, label="meter")
    metrics.watch(Watched.DEGRADED, lambda: 0, label="store")
    assert value(metrics, "meterhouse_journal_bytes") == 10
    journal_bytes[0] = 20
    assert value(metrics, "meterhouse_journal_bytes") == 20
    assert value(metrics, "meterhouse_keyring_hits_total") == 7
    assert value(metrics, "meterhouse_degraded", part="meter") == 1
    assert value(metrics, "meterhouse_degraded", part="store") == 0


def test_everything_watched_has_a_name_and_a_help_that_render() -> None:
    metrics = Metrics()
    for watched in Watched:
        metrics.watch(watched, lambda: 1, label=watched.value[3] or "")
    names = {name for name, _ in scrape(metrics)}
    for watched in Watched:
        suffix = "_total" if watched.value[1] == "counter" else ""
        assert watched.value[0] + suffix in names


def test_a_label_where_there_is_none_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="OPEN_REQUESTS takes no label"):
        Metrics().watch(Watched.OPEN_REQUESTS, lambda: 1, label="x")
    with pytest.raises(ValueError, match="DEGRADED takes a label"):
        Metrics().watch(Watched.DEGRADED, lambda: 1)


def test_loop_lag_and_the_process_are_measured() -> None:
    metrics = Metrics()
    metrics.observe_loop_lag(0.02)
    assert value(metrics, "meterhouse_event_loop_lag_seconds_count") == 1
    assert value(metrics, "meterhouse_process_resident_memory_bytes") > 1_000_000


def test_two_instances_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    observe(first, BASE)
    assert value(second, "meterhouse_charge_nanos_total", provider="openai") is None


def test_counting_a_request_costs_microseconds() -> None:
    metrics = Metrics()
    seconds = min(timeit.repeat(lambda: observe(metrics, BASE), number=2_000, repeat=5)) / 2_000
    # 5 us where this was written; the bound leaves room for a busy machine and still finds a lookup per label.
    assert seconds < 50e-6
