"""The catalog's rows: which providers and models are known, as of 2026-11-20 (wire.md 2 and 2.1).

Invariant: data only; a price is never written here (``prices`` has them with their source and date). A model that
has no row can still be served: by its provider's own list, by an operator's, or as ``provider/upstream-model``.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from types import MappingProxyType

from meterhouse.providers.provider import Model, Provider, Quirk, Timeouts

SIMULATOR = "simulator"
OPENAI = "openai"
OPENAI_COMPATIBLE = "openai_compatible"
OLLAMA = "ollama"

_HIDDEN_THINKING = ("o1", "o3", "o4", "gpt-5", "gpt-6")
_LOCAL_TIMEOUTS = Timeouts(first_token_seconds=600.0)
"""A local server may first have to load the model, or to work off a queue."""

_PROVIDERS = (
    Provider(
        name=SIMULATOR,
        wire="simulator",
        shows_all_output=True,
        base_url="simulator:",
        credential_names=(),
        max_tokens_field="max_completion_tokens",
        assumed_max_output_tokens=16_384,
    ),
    Provider(
        name=OPENAI,
        wire="openai",
        base_url="https://api.openai.com/v1",
        credential_names=("OPENAI_API_KEY",),
        max_tokens_field="max_completion_tokens",
        assumed_max_output_tokens=128_000,
        hidden_thinking_prefixes=_HIDDEN_THINKING,
        price_source="openai",
        timeouts=Timeouts(first_token_seconds=600.0),
        quirks=(
            Quirk(
                date(2026, 8, 21),
                "max_tokens is deprecated and refused by the o-series and later reasoning models, so the bound always"
                " goes out as max_completion_tokens; reasoning tokens count against it.",
                "openai-openapi 2.3.0",
            ),
            Quirk(
                date(2026, 10, 15),
                "The gpt-4o and gpt-4o-mini snapshots shut down on 2027-01-14; gpt-5, gpt-5-mini and gpt-5-nano end"
                " on 2026-12-11.",
                "OpenAI's deprecations page",
            ),
            Quirk(
                date(2026, 11, 20),
                "Closing the connection stops a stream; what was generated until then is billed, and no promise says"
                " more.",
                "OpenAI's documentation; OpenRouter's page on stream cancellation",
            ),
        ),
    ),
    Provider(
        name=OPENAI_COMPATIBLE,
        wire="openai",
        base_url=None,
        assumed_max_output_tokens=16_384,
        discovers_models=True,
        hidden_thinking_prefixes=_HIDDEN_THINKING,
        timeouts=_LOCAL_TIMEOUTS,
        quirks=(
            Quirk(
                date(2026, 11, 20),
                "Servers disagree on max_completion_tokens (Ollama, Mistral and older ones refuse or ignore it);"
                " max_tokens is understood by all that were read.",
                "the sources of Ollama, vLLM, SGLang, llama.cpp; Mistral's API errors of 2025-12",
            ),
        ),
    ),
    Provider(
        name=OLLAMA,
        wire="ollama",
        shows_all_output=True,
        base_url="http://localhost:11434",
        credential_names=("OLLAMA_API_KEY",),
        chat_path="/api/chat",
        models_path="/api/tags",
        health_path="/api/tags",
        denied_parameters=frozenset({"functions", "function_call", "audio", "prediction", "web_search_options"}),
        dropped_parameters=frozenset({"logit_bias", "parallel_tool_calls", "service_tier", "user", "verbosity"}),
        default_max_tokens=512,
        assumed_max_output_tokens=8_192,
        sends_include_usage=False,
        discovers_models=True,
        timeouts=_LOCAL_TIMEOUTS,
        quirks=(
            Quirk(
                date(2026, 8, 21),
                "Counts of zero are left out of the last line, so a fully cached prompt has no prompt_eval_count.",
                "ollama at fb307609",
            ),
            Quirk(
                date(2026, 8, 21),
                "The native wire is used and not its /v1, where a failure in mid-stream arrives as an empty delta and"
                " an end without finish_reason, and max_completion_tokens is ignored.",
                "ollama at fb307609",
            ),
        ),
    ),
)

PROVIDERS = MappingProxyType({row.name: row for row in _PROVIDERS})
"""Every provider row by name."""


def custom_provider(name: str) -> Provider:
    """Return a row for an OpenAI-compatible server that an operator named."""
    return replace(PROVIDERS[OPENAI_COMPATIBLE], name=name)


def _openai(
    name: str,
    context_tokens: int,
    max_output_tokens: int,
    image_tokens: int | None = None,
    replacement: str | None = None,
) -> Model:
    return Model(
        name=name,
        provider=OPENAI,
        upstream_model=name,
        context_tokens=context_tokens,
        max_output_tokens=max_output_tokens,
        thinks_hidden=name.startswith(_HIDDEN_THINKING),
        image_tokens_bound=image_tokens,
        replacement=replacement,
    )


def _retired(name: str, on: date, context_tokens: int, replacement: str) -> Model:
    return Model(
        name=name,
        provider=OPENAI,
        upstream_model=name,
        context_tokens=context_tokens,
        max_output_tokens=4_096,
        retired=on,
        replacement=replacement,
    )


def _simulated(name: str) -> Model:
    return Model(
        name=name,
        provider=SIMULATOR,
        upstream_model=name,
        context_tokens=1_000_000,
        max_output_tokens=16_384,
        image_tokens_bound=SIMULATED_PART_TOKENS,
        audio_tokens_bound=SIMULATED_PART_TOKENS,
    )


SIMULATED_PART_TOKENS = 85
"""What the simulator counts for an image, a sound or a file."""

_LONG_INPUT = 922_000
"""A context of 1,050,000 tokens less the 128,000 of an answer."""
_OUTPUT = 128_000

# Images of gpt-4o: at most 8 tiles of 512 px (2048 x 768) at 170 tokens, and 85; of gpt-4o-mini at 5,667 and 2,833.
# No bound is known for the later models: their patches and multipliers differ by model, and were changed.
_MODELS = (
    _simulated("simulator"),
    _simulated("simulator-instant"),
    _openai("gpt-4o", 128_000, 16_384, 1_445, "gpt-6-luna"),
    _openai("gpt-4o-mini", 128_000, 16_384, 48_169, "gpt-6-luna"),
    _openai("gpt-6-astra", _LONG_INPUT, _OUTPUT),
    _openai("gpt-6.1-sol", _LONG_INPUT, _OUTPUT),
    _openai("gpt-6.1-terra", _LONG_INPUT, _OUTPUT),
    _openai("gpt-6-sol", _LONG_INPUT, _OUTPUT),
    _openai("gpt-6-luna", _LONG_INPUT, _OUTPUT),
    _openai("gpt-5.6-sol", _LONG_INPUT, _OUTPUT),
    _openai("gpt-5.6-terra", _LONG_INPUT, _OUTPUT),
    _openai("gpt-5.6-luna", _LONG_INPUT, _OUTPUT),
    _openai("gpt-5.5", _LONG_INPUT, _OUTPUT),
    _openai("gpt-5.4", _LONG_INPUT, _OUTPUT),
    _openai("gpt-5.4-mini", 272_000, _OUTPUT),
    _openai("gpt-5.4-nano", 272_000, _OUTPUT),
    _openai("gpt-5", 272_000, _OUTPUT),
    _openai("gpt-5-mini", 272_000, _OUTPUT),
    _openai("gpt-5-nano", 272_000, _OUTPUT),
    _retired("gpt-4-turbo", date(2026, 10, 23), 128_000, "gpt-5.6-sol"),
    _retired("gpt-3.5-turbo", date(2026, 10, 23), 16_385, "gpt-5.6-terra"),
)

MODELS = MappingProxyType({(row.provider, row.upstream_model): row for row in _MODELS})
"""Every model row by provider and upstream model."""

_DATED = re.compile(r"^(?P<base>.+?)-(?:\d{4}-\d{2}-\d{2}|\d{8}|latest)$")


def undated(upstream_model: str) -> str | None:
    """Return a snapshot's name without its date (``gpt-4o-2024-08-06`` > ``gpt-4o``); None when it has none."""
    match = _DATED.match(upstream_model)
    return match["base"] if match else None


def list_models_of(provider: str) -> Iterator[Model]:
    """Yield a provider's rows in the catalog's order, retired ones too."""
    return (row for row in MODELS.values() if row.provider == provider)


def model_of(provider: Provider, name: str, upstream_model: str) -> Model:
    """Return what is known of an upstream model under a name: its row, its undated row's, or assumptions."""
    row = MODELS.get((provider.name, upstream_model))
    if row is None:
        base = undated(upstream_model)
        row = MODELS.get((provider.name, base)) if base is not None else None
    if row is not None:
        return replace(row, name=name, upstream_model=upstream_model, retired=None, replacement=None)
    bare = upstream_model.rpartition("/")[2]
    return Model(
        name=name,
        provider=provider.name,
        upstream_model=upstream_model,
        context_tokens=None,
        max_output_tokens=provider.assumed_max_output_tokens,
        thinks_hidden=not provider.shows_all_output or bare.startswith(provider.hidden_thinking_prefixes or ("\0",)),
    )
