"""The catalog: which providers and models are known, by name.

Invariant: data only (``rows_*``, ``models``); a price is never written there (``prices`` has them
with their source and date). A model that has no row can still be served: by its provider's own list, by an
operator's, or as ``provider/upstream-model``.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType

from meterhouse.providers.endpoints import serving
from meterhouse.providers.models import MODEL_ROWS, RETIRED, SIMULATED_PART_TOKENS, SIMULATOR, RetiredModel
from meterhouse.providers.provider import Model, Provider
from meterhouse.providers.rows_anthropic import ANTHROPIC_PROVIDER
from meterhouse.providers.rows_hosted import HOSTED_PROVIDERS, OPENAI
from meterhouse.providers.rows_local import LOCAL_PROVIDERS, OLLAMA, OPENAI_COMPATIBLE

__all__ = ["MODELS", "OLLAMA", "OPENAI", "OPENAI_COMPATIBLE", "PROVIDERS", "SIMULATED_PART_TOKENS", "SIMULATOR"]

_SIMULATOR_ROW = Provider(
    name=SIMULATOR,
    wire="simulator",
    shows_all_output=True,
    base_url="simulator:",
    endpoints=serving("embeddings"),
    max_tokens_field="max_completion_tokens",
    assumed_max_output_tokens=16_384,
)

_ROWS = (_SIMULATOR_ROW, *HOSTED_PROVIDERS, ANTHROPIC_PROVIDER, *LOCAL_PROVIDERS)
PROVIDERS = MappingProxyType({row.name: row for row in _ROWS})
"""Every provider row by name."""

MODELS = MappingProxyType({(row.provider, row.upstream_model): row for row in MODEL_ROWS})
"""Every model row by the row of its provider and its upstream model."""

_ALIASES = MappingProxyType({alias: row for row in PROVIDERS.values() for alias in row.aliases})
_DATED = re.compile(r"^(?P<base>.+?)-(?:\d{4}-\d{2}-\d{2}|\d{8}|latest)$")


def find_provider(name: str) -> Provider | None:
    """Return the row of a name or an alias; under an alias it has that name."""
    row = PROVIDERS.get(name)
    if row is None and name in _ALIASES:
        row = named_provider(_ALIASES[name], name)
    return row


def named_provider(row: Provider, name: str) -> Provider:
    """Return a row under another name: a second account, another region, or a server that an operator named."""
    return row if row.name == name else replace(row, name=name, kind=row.row_name, aliases=())


def undated(upstream_model: str) -> str | None:
    """Return a snapshot's name without its date (``gpt-4o-2024-08-06`` > ``gpt-4o``); None when it has none."""
    match = _DATED.match(upstream_model)
    return match["base"] if match else None


def list_models_of(provider: Provider) -> Iterator[Model]:
    """Yield what the catalog knows that a provider serves, in its order."""
    for row in MODELS.values():
        if row.provider == provider.row_name:
            yield _adapted(row, provider, row.name, row.upstream_model)


def list_retired_of(provider: Provider) -> Iterator[RetiredModel]:
    """Yield the names that a provider served once."""
    return (row for row in RETIRED if row.provider == provider.row_name)


def find_retired(name: str) -> tuple[RetiredModel, ...]:
    """Return the rows of a name that some providers served once."""
    return tuple(row for row in RETIRED if row.name == name)


def model_of(provider: Provider, name: str, upstream_model: str) -> Model:
    """Return what is known of an upstream model under a name: its row, its undated row's, or assumptions."""
    row = MODELS.get((provider.row_name, upstream_model))
    if row is None:
        base = undated(upstream_model)
        row = MODELS.get((provider.row_name, base)) if base is not None else None
    if row is not None:
        return _adapted(row, provider, name, upstream_model)
    return Model(
        name=name,
        provider=provider.name,
        upstream_model=upstream_model,
        context_tokens=None,
        max_output_tokens=provider.assumed_max_output_tokens,
        thinks_hidden=not provider.shows_all_output or is_hidden_thinker(provider, upstream_model),
    )


def is_hidden_thinker(provider: Provider, upstream_model: str) -> bool:
    """Whether a model is known, by its name, to think without showing it."""
    bare = upstream_model.rpartition("/")[2]
    return bare.startswith(provider.hidden_thinking_prefixes or ("\0",))


def _adapted(row: Model, provider: Provider, name: str, upstream_model: str) -> Model:
    """Return a row under the names of an installation, with what its operator vouches for."""
    hides = row.thinks_hidden and (not provider.shows_all_output or is_hidden_thinker(provider, upstream_model))
    return replace(row, name=name, provider=provider.name, upstream_model=upstream_model, thinks_hidden=hides)
