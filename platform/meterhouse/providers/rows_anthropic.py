"""Anthropic's row. Data only; every quirk has its day and its source."""

from datetime import date
from types import MappingProxyType

from meterhouse.providers.endpoints import serving
from meterhouse.providers.provider import ModelRule, Provider, Quirk, Timeouts

ANTHROPIC = "anthropic"
API_VERSION = "2023-06-01"
"""The version that a translated request is made for. The next one, 2026-10-21, knows no temperature."""

_SAMPLING = frozenset({"temperature", "top_p", "top_k"})
_BUDGETED = (
    "claude-haiku-4-5",
    "claude-opus-4-5",
    "claude-sonnet-4-5",
    "claude-opus-4-1",
    "claude-opus-4-0",
    "claude-opus-4-2025",
    "claude-sonnet-4-0",
    "claude-sonnet-4-2025",
    "claude-3",
)

ANTHROPIC_PROVIDER = Provider(
    name=ANTHROPIC,
    wire="anthropic",
    base_url="https://api.anthropic.com/v1",
    base_url_suffix="/v1",
    credential_names=("ANTHROPIC_API_KEY",),
    credential_header="x-api-key",
    credential_prefix="",
    extra_headers=MappingProxyType({"anthropic-version": API_VERSION}),
    chat_path="/messages",
    endpoints=serving("messages"),
    assumed_max_output_tokens=32_000,
    model_rules=(
        ModelRule(_BUDGETED, thinks_by_budget=True),
        ModelRule(("claude-opus-4-6", "claude-sonnet-4-6")),
        ModelRule(("claude-",), dropped_parameters=_SAMPLING),
    ),
    empty_account_phrases=("credit balance is too low",),
    price_source="anthropic",
    timeouts=Timeouts(first_token_seconds=600.0),
    quirks=(
        Quirk(
            date(2026, 10, 21),
            "API version 2026-10-21, which the SDKs send from their majors of that day on (Python 2.0), refuses"
            " temperature, top_p and top_k; 2023-06-01 goes on and takes them for the models that do.",
            "platform.claude.com, versions; migration to 2026-10-21",
        ),
        Quirk(
            date(2026, 11, 28),
            "Claude 4.7 and all of Claude 5 refuse a temperature, top_p or top_k other than the default, so none is"
            " sent.",
            "platform.claude.com; OpenRouter's migration guide for Claude 5.5; argo-proxy 3.0.2",
        ),
        Quirk(
            date(2026, 11, 28),
            "Models up to Claude 4.5 think by thinking.budget_tokens, from 4.6 on by output_config.effort; thoughts are"
            " not shown by default from 4.7 on.",
            "platform.claude.com, thinking; anthropic 2.14.0",
        ),
        Quirk(
            date(2026, 11, 28),
            "input_tokens leave out what was read from the cache and what was written to it; the usage of"
            " message_start stands until message_delta, whose counts are cumulative.",
            "anthropic 2.14.0, Usage and MessageDeltaUsage",
        ),
        Quirk(
            date(2026, 11, 28),
            "A cache of an hour is written at another price than one of five minutes, so it is refused.",
            "genai-prices, cache_write_1h_mtok",
        ),
        Quirk(
            date(2026, 11, 28),
            "speed fast, inference_geo and tools that Anthropic runs have prices of their own, so they are refused.",
            "genai-prices; platform.claude.com, pricing",
        ),
        Quirk(
            date(2026, 11, 20),
            "529 overloaded_error is everybody's trouble, 402 billing_error ours; an empty account was also seen as a"
            " 400 whose text says that the credit balance is too low.",
            "litellm 1.109.1; general knowledge",
        ),
        Quirk(
            date(2026, 11, 20),
            "Closing a stream stops its billing.",
            "OpenRouter's page on stream cancellation",
        ),
        Quirk(
            date(2026, 8, 7),
            "A picture counts for 1,600 tokens at most with models up to Claude 4.6; no bound is known for later ones.",
            "docs.claude.com, vision",
        ),
    ),
)
