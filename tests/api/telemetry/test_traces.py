"""The spans of a request, as a collector gets them."""

import re
from pathlib import Path

from api.asking import Tenant
from api.telemetry.collector import Collector
from fakes import scripts
from fakes.exchange import Exchange
from fakes.gateway import MESSAGES, Gateway, provider_environment
from fakes.upstream import FakeUpstream

PRICED = "fake/normal?tokens=5"
SERVER, CLIENT, INTERNAL = 2, 3, 1
PARENT = "00f067aa0ba902b7"


def traced(gateway: Gateway, trace_id: str, flags: str = "01", model: str = PRICED, **fields: object) -> str:
    body = {"model": model, "messages": MESSAGES, **fields}
    headers = {"traceparent": f"00-{trace_id}-{PARENT}-{flags}"}
    _, answered, _ = gateway.request("POST", "/v1/chat/completions", body, headers=headers)
    return answered["x-request-id"]


def test_a_completion_is_one_tree_of_spans(gateway: Gateway, collector: Collector) -> None:
    tenant = Tenant(gateway, limits="spend 1 USD/day")
    _, headers, _ = gateway.chat(PRICED, key=tenant.key, stream=True)
    server, children = collector.tree(headers["x-request-id"])
    (record,) = gateway.records(headers["x-request-id"])
    assert (server.name, server.kind, server.parent_id) == ("POST /v1/chat/completions", SERVER, "")
    assert server.trace_id == record.trace_id
    assert server.attributes["http.response.status_code"] == 200
    assert server.attributes["meterhouse.organization.id"] == tenant.organization_id
    assert server.attributes["meterhouse.key.id"] == tenant.key_id
    assert not server.is_error
    assert sorted((span.name, span.kind) for span in children) == [
        ("chat normal?tokens=5", CLIENT),
        ("ledger.settle", INTERNAL),
        ("quota.reserve", INTERNAL),
    ]
    assert {span.trace_id for span in children} == {server.trace_id}
    assert all(server.start_ns <= span.start_ns <= span.end_ns <= server.end_ns for span in children)
    (attempt,) = [span for span in children if span.kind == CLIENT]
    usage = {
        name.removeprefix("gen_ai.usage."): value for name, value in attempt.attributes.items() if ".usage." in name
    }
    assert (usage["input_tokens"], usage["output_tokens"]) == (record.usage.input_tokens, record.usage.output_tokens)
    assert attempt.attributes["gen_ai.operation.name"] == "chat"
    assert attempt.attributes["gen_ai.provider.name"] == "fake"
    assert attempt.attributes["gen_ai.request.model"] == "normal?tokens=5"
    assert attempt.attributes["gen_ai.response.model"] == "normal?tokens=5"
    assert attempt.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert attempt.attributes["gen_ai.response.time_to_first_chunk"] >= 0
    assert attempt.attributes["meterhouse.outcome"] == "completed"
    settle, reserve = (
        next(span for span in children if span.name == name) for name in ("ledger.settle", "quota.reserve")
    )
    assert settle.attributes == {"meterhouse.charge.nanos": record.charge_nanos}
    assert reserve.attributes == {"meterhouse.degraded": False}


def test_every_request_has_one_tree_at_a_ratio_of_one(gateway: Gateway, collector: Collector) -> None:
    ids = [gateway.chat(PRICED, stream=bool(index % 2))[1]["x-request-id"] for index in range(10)]
    ids.append(gateway.request("GET", "/v1/models")[1]["x-request-id"])
    ids.append(gateway.request("GET", "/made/up")[1]["x-request-id"])
    trees = [collector.tree(request_id) for request_id in ids]
    assert len({server.trace_id for server, _ in trees}) == 12
    assert [len(children) for _, children in trees] == [3] * 10 + [0, 0]
    assert trees[-1][0].name == "GET other"


def test_the_trace_of_the_caller_is_continued(gateway: Gateway, collector: Collector) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    request_id = traced(gateway, trace_id)
    server, children = collector.tree(request_id)
    assert (server.trace_id, server.parent_id) == (trace_id, PARENT)
    assert {span.trace_id for span in children} == {trace_id}
    assert gateway.records(request_id)[0].trace_id == trace_id


def test_a_caller_that_does_not_sample_is_heeded(gateway: Gateway, collector: Collector) -> None:
    trace_id = "5bf92f3577b34da6a3ce929d0e0e4736"
    request_id = traced(gateway, trace_id, "00")
    assert gateway.records(request_id)[0].trace_id == trace_id
    collector.tree(gateway.chat(PRICED)[1]["x-request-id"])
    assert trace_id not in {span.trace_id for span in collector.spans}


def test_a_caller_that_samples_is_heeded_at_a_ratio_of_zero(untraced: Gateway, collector: Collector) -> None:
    trace_id = "6bf92f3577b34da6a3ce929d0e0e4736"
    assert collector.tree(traced(untraced, trace_id))[0].trace_id == trace_id


def test_a_broken_traceparent_begins_a_new_trace(gateway: Gateway, collector: Collector) -> None:
    texts = ("rubbish", f"00-{'0' * 32}-{PARENT}-01", f"ff-{'a' * 32}-{PARENT}-01", "")
    body = {"model": PRICED, "messages": MESSAGES}
    ids = [
        gateway.request("POST", "/v1/chat/completions", body, headers={"traceparent": text})[1]["x-request-id"]
        for text in texts
    ]
    for text, request_id in zip(texts, ids, strict=True):
        server, _ = collector.tree(request_id)
        assert server.parent_id == ""
        assert re.fullmatch(r"[0-9a-f]{32}", server.trace_id)
        assert server.trace_id not in text


def test_the_trace_goes_out_where_the_row_says_so(collector: Collector, up: FakeUpstream, tmp_path: Path) -> None:
    told: dict[str, str | None] = {}

    async def listen(exchange: Exchange) -> None:
        told[exchange.request.body["model"]] = exchange.request.headers.get("traceparent")
        await scripts.answer(exchange)

    up.script("listen", listen)
    settings = {
        **provider_environment("inside", up.base_url, METERHOUSE_PROVIDER_INSIDE_FORWARDS_TRACE="true"),
        **provider_environment("outside", up.base_url),
        "METERHOUSE_OTLP_ENDPOINT": collector.endpoint,
        "METERHOUSE_TRACE_RATIO": "0",
    }
    with Gateway(tmp_path / "data", settings) as gateway:
        collector.flush_with(gateway)
        trace_id = "7bf92f3577b34da6a3ce929d0e0e4736"
        request_id = traced(gateway, trace_id, model="inside/listen?served=a", stream=True)
        traced(gateway, trace_id, model="outside/listen?served=b", stream=True)
        _, children = collector.tree(request_id)
        unsampled = gateway.chat("inside/listen?served=c")[1]["x-request-id"]
        own_trace = gateway.records(unsampled)[0].trace_id
    (attempt,) = [span for span in children if span.kind == CLIENT]
    assert told["listen?served=a"] == f"00-{trace_id}-{attempt.span_id}-01"
    assert told["listen?served=b"] is None
    assert re.fullmatch(rf"00-{own_trace}-[0-9a-f]{{16}}-00", told["listen?served=c"] or "")


def test_a_slow_request_is_kept_at_a_ratio_of_zero(collector: Collector, up: FakeUpstream, tmp_path: Path) -> None:
    settings = {"METERHOUSE_OTLP_ENDPOINT": collector.endpoint, "METERHOUSE_TRACE_RATIO": "0"}
    settings["METERHOUSE_TRACE_SLOW_SECONDS"] = "0.25"
    with Gateway(tmp_path / "data", provider_environment("fake", up.base_url, **settings)) as gateway:
        collector.flush_with(gateway)
        is_kept, tries = True, 0
        while is_kept and tries < 5:  # for its client may have to wait on a busy machine
            tries += 1
            streamed = gateway.chat("fake/normal?tokens=20&duration_ms=600", stream=True)[1]["x-request-id"]
            slow = gateway.chat("fake/slow-first-token", stream=True)[1]["x-request-id"]
            server, children = collector.tree(slow)
            is_kept = streamed in {span.attributes.get("meterhouse.request.id") for span in collector.spans}
    assert not server.is_error
    assert len(children) == 3
    assert not is_kept


def test_failed_requests_are_kept_at_a_ratio_of_zero(untraced: Gateway, collector: Collector) -> None:
    good = untraced.chat("fake/normal")[1]["x-request-id"]
    refused = untraced.chat("fake/error-400")[1]["x-request-id"]
    failed = untraced.chat("fake/error-500")[1]["x-request-id"]
    broken = untraced.chat("fake/eof-early", stream=True)[1]["x-request-id"]
    for request_id in (failed, broken):
        server, children = collector.tree(request_id)
        assert server.is_error
        (attempt,) = [span for span in children if span.kind == CLIENT]
        assert attempt.is_error
        assert attempt.attributes["meterhouse.outcome"] == "upstream_failed"
        assert attempt.attributes["error.type"]
    kept = {span.attributes.get("meterhouse.request.id") for span in collector.spans}
    assert good not in kept
    assert refused not in kept
