"""What of a request a provider gets to see: everything, but for what would mix tenants (design.md 8)."""

import pytest

from api.asking import Capture, Tenant, marked
from fakes.gateway import Gateway
from meterhouse.http import intake


def test_known_and_unknown_fields_go_to_the_provider_as_they_came(gateway: Gateway, capture: Capture) -> None:
    marker, messages = marked()
    fields = {
        "temperature": 0.3,
        "top_p": 1,
        "stop": ["a"],
        "logit_bias": {"5": -1.5},
        "metadata": {"k": "v"},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"x": [1.50]}, "y": 1}},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}, "z": None}}],
        "service_tier": "flex",
        "seed": 9_007_199_254_740_993,
        "top_k": 40,
        "chat_template_kwargs": {"enable_thinking": False},
        "x-unknown": [None, {"deep": 1e3}],
    }
    gateway.chat("fake/capture", messages=messages, **fields)
    sent = capture.body(marker)
    assert {name: sent[name] for name in fields} == fields
    assert sent["messages"] == messages
    assert sent["model"] == "capture"


def test_unknown_fields_of_messages_and_parts_go_along(gateway: Gateway, capture: Capture) -> None:
    marker, _ = marked()
    part = {"type": "text", "text": f"Hi marker={marker}", "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "user", "content": [part], "x_new": 1}]
    gateway.chat("fake/capture", messages=messages)
    assert capture.body(marker)["messages"] == messages


@pytest.mark.parametrize("is_beside", [False, True])
@pytest.mark.parametrize("fields", [{}, {"x-long": "y" * 5_000}])
def test_long_texts_go_to_the_provider_as_they_came(
    gateway: Gateway, capture: Capture, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], *, is_beside: bool
) -> None:
    if is_beside:
        monkeypatch.setattr(intake, "INLINE_BYTES", 4_000)
        monkeypatch.setattr(intake, "INLINE_TEXT_BYTES", 4_000)
    marker, messages = marked()
    text = 'é "so", \\ and\n' + "word " * 10_000
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5_000}}
    messages = [
        {"role": "system", "content": text},
        {"role": "user", "content": [{"type": "text", "text": text[::-1]}, image]},
        {"role": "assistant", "content": "", "reasoning_content": text[:3_000]},
        *messages,
    ]
    status, _, body = gateway.chat("fake/capture", messages=messages, temperature=0.5, max_tokens=7, **fields)
    assert status == 200, body
    sent = capture.body(marker)
    assert sent["messages"] == messages
    assert {name: sent[name] for name in ("temperature", "max_tokens", *fields)} == {
        "temperature": 0.5,
        "max_tokens": 7,
        **fields,
    }


@pytest.mark.parametrize(("given", "sent"), [({"store": True}, False), ({"store": False}, False)])
def test_nothing_is_stored_at_the_provider(
    gateway: Gateway, capture: Capture, given: dict[str, bool], sent: bool
) -> None:
    marker, messages = marked()
    gateway.chat("fake/capture", messages=messages, **given)
    assert capture.body(marker)["store"] is sent


def test_store_is_not_sent_unasked(gateway: Gateway, capture: Capture) -> None:
    marker, messages = marked()
    gateway.chat("fake/capture", messages=messages)
    assert not capture.body(marker).get("store")


@pytest.mark.parametrize("name", ["user", "safety_identifier", "prompt_cache_key"])
def test_what_a_provider_groups_by_is_kept_apart_by_organization(gateway: Gateway, capture: Capture, name: str) -> None:
    first, second = Tenant(gateway), Tenant(gateway)

    def sent(key: str, value: str) -> str:
        marker, messages = marked()
        assert gateway.chat("fake/capture", key=key, messages=messages, **{name: value})[0] == 200
        found: str = capture.body(marker)[name]
        return found

    asked = sent(first.key, "user-1234")
    assert asked != "user-1234"
    assert asked.endswith("user-1234")
    assert sent(first.key, "user-1234") == asked
    assert sent(first.issue()["value"], "user-1234") == asked
    assert sent(second.key, "user-1234") != asked
    assert first.organization_id not in asked
    long = {sent(first.key, "u" * 60 + end) for end in ("1", "2")}
    assert len(long) == 2
    assert all(len(value) <= 64 for value in long)


def test_fields_that_nobody_sent_are_not_made_up(gateway: Gateway, capture: Capture) -> None:
    marker, messages = marked()
    gateway.chat("fake/capture", messages=messages)
    assert set(capture.body(marker)) == {"model", "messages"}


def test_the_key_of_the_tenant_does_not_reach_the_provider(gateway: Gateway, up: object) -> None:
    marker, messages = marked()
    gateway.chat("fake/normal", messages=messages)
    (attempt,) = up.truth.by_marker(marker)  # type: ignore[attr-defined]
    assert attempt.request["authorization"] == "Bearer sk-upstream-credential-canary"
    unwanted = {"cookie", "x-forwarded-for", "x-stainless-lang", "openai-organization"}
    assert not unwanted & set(attempt.request["header_names"])


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_bound_goes_out_once_under_the_name_that_the_provider_reads(
    gateway: Gateway, capture: Capture, name: str
) -> None:
    marker, messages = marked()
    _, headers, _ = gateway.chat("fake/capture", messages=messages, **{name: 7})
    sent = capture.body(marker)
    assert sent["max_tokens"] == 7
    assert "max_completion_tokens" not in sent
    assert "x-meterhouse-max-tokens" not in headers


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_clamped_to_what_a_quarter_of_the_budget_buys_and_says_so(
    gateway: Gateway, capture: Capture, stream: bool
) -> None:
    gateway.set_price("fake", "capture?tokens=2", "1", "4")
    # A quarter of 0.04 USD buys 2,500 output tokens at 4 USD per million.
    key = Tenant(gateway, limits="spend 0.04 USD/month").key
    marker, messages = marked()
    _, headers, _ = gateway.chat("fake/capture?tokens=2", key=key, messages=messages, stream=stream)
    clamp = int(headers["x-meterhouse-max-tokens"])
    assert 2_300 <= clamp <= 2_500
    assert capture.body(marker)["max_tokens"] == clamp


def test_a_bound_within_the_allowance_is_not_clamped(gateway: Gateway, capture: Capture) -> None:
    gateway.set_price("fake", "capture?tokens=2", "1", "4")
    key = Tenant(gateway, limits="spend 0.04 USD/month").key
    marker, messages = marked()
    _, headers, _ = gateway.chat("fake/capture?tokens=2", key=key, messages=messages, max_tokens=900)
    assert "x-meterhouse-max-tokens" not in headers
    assert capture.body(marker)["max_tokens"] == 900
