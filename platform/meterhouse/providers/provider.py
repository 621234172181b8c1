"""What a provider, a model, a deployment and a route are: frozen data, no behaviour.

Invariant: whatever differs between two providers that speak the same wire is a field of ``Provider``; code exists
only for a wire. Not here: the rows (``catalog``), the choice of a deployment (``routes``), any network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from types import MappingProxyType
from typing import Any, Literal, Protocol

from meterhouse.money import Price

Wire = Literal["openai", "ollama", "simulator"]
OnClientGone = Literal["cancel", "drain"]
MaxTokensField = Literal["max_tokens", "max_completion_tokens"]
ToolCallFormat = Literal[
    "glm4", "glm45", "hermes", "qwen3_coder", "llama3_json", "pythonic", "mistral", "deepseek_v3", "kimi_k2"
]
"""How a model writes its tool calls where its server leaves them in the text (wire.md 4)."""
ToolsHandling = Literal["send", "withhold", "prompt"]
"""What a server gets of a request's tools: all, nothing, or nothing but what is said of them in the prompt."""

USAGE_PLACES = ("usage", "choices.usage", "x_groq.usage")
"""Where a streamed answer may carry its usage; the last that is not null holds (wire.md 7, row 4)."""

CACHED_TOKENS_PLACES = ("prompt_tokens_details.cached_tokens", "prompt_cache_hit_tokens", "cached_tokens")
"""Where a usage may carry the cached part of its input (wire.md 7, row 14)."""


def _no_mapping() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each phase of an attempt may take."""

    connect_seconds: float = 5.0
    first_token_seconds: float = 60.0
    idle_seconds: float = 60.0
    """Between two data events; comments do not count as data (wire.md 2, DeepSeek)."""
    total_seconds: float = 900.0


@dataclass(frozen=True, slots=True)
class Quirk:
    """A fact about someone else's API: since when it is known, what it is, where it was read."""

    known_since: date
    text: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One row of the catalog: a company or a server kind, and all that is particular about it."""

    name: str
    wire: Wire
    base_url: str | None
    """The default; None where every installation has its own."""
    credential_names: tuple[str, ...] = ()
    """The environment variables that hold its credential; settings reads them, nothing here does."""
    credential_header: str = "authorization"
    credential_prefix: str = "Bearer "
    extra_headers: Mapping[str, str] = field(default_factory=_no_mapping)
    chat_path: str = "/chat/completions"
    models_path: str = "/models"
    health_path: str = "/models"

    renames: Mapping[str, str] = field(default_factory=_no_mapping)
    """Body parameters that have another name here, for example ``seed`` > ``random_seed``."""
    denied_parameters: frozenset[str] = frozenset()
    """Parameters that it cannot honour: a 400 before the call, because to drop them would change the answer."""
    dropped_parameters: frozenset[str] = frozenset()
    """Parameters that may be left out without changing what the answer means."""
    body_defaults: Mapping[str, Any] = field(default_factory=_no_mapping)
    """Sent when the caller sent nothing under that name."""
    unstreamed_body_defaults: Mapping[str, Any] = field(default_factory=_no_mapping)
    """The same, only where the answer is not streamed."""
    max_tokens_field: MaxTokensField = "max_tokens"
    """The one of the two names that goes upstream, whichever was asked with."""
    default_max_tokens: int | None = None
    """Sent when the caller asked for no bound; None sends none."""
    assumed_max_output_tokens: int = 16_384
    """What a model may answer at most where no row says it."""
    tool_call_format: ToolCallFormat | None = None
    """Answers to requests with tools are searched for calls in this format; None: the server finds them itself."""
    renders_tools: bool = False
    """Tools are told to the model in its prompt, in the words of the format."""
    refuses_assistant_last: bool = False
    """The model answers others only: messages that end with the assistant's, undeclared, are a mistake."""

    usage_places: tuple[str, ...] = USAGE_PLACES
    cached_tokens_places: tuple[str, ...] = CACHED_TOKENS_PLACES
    sends_include_usage: bool = True
    """Whether ``stream_options.include_usage`` may be sent; False for a provider that refuses it."""
    sends_continuous_usage: bool = False
    """Whether ``stream_options.continuous_usage_stats`` may be sent (vLLM, SGLang)."""
    on_client_gone: OnClientGone = "cancel"
    """``cancel``: it stops billing when we hang up. ``drain``: it bills anyway, so its usage is worth waiting for."""

    discovers_models: bool = False
    """Whether its own list of models says what it serves."""
    shows_all_output: bool = False
    """Whether what it sends is all that it charges, so that bytes seen bound tokens used. Where nobody vouches for
    that, a budget holds the whole allowance."""
    hidden_thinking_prefixes: tuple[str, ...] = ()
    """Names of models that think without showing it, so that bytes seen do not bound tokens used."""
    price_source: str | None = None
    """Its name in genai-prices; None: no default prices."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    quirks: tuple[Quirk, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of a provider."""

    name: str
    """What the client asks for."""
    provider: str
    upstream_model: str
    context_tokens: int | None
    """What fits in as input; None where unknown."""
    max_output_tokens: int
    """What it answers at most; assumed by the provider's row where unknown."""
    thinks_hidden: bool = False
    image_tokens_bound: int | None = None
    """No image counts for more; None: no bound is known."""
    audio_tokens_bound: int | None = None
    retired: date | None = None
    """The day since which the provider refuses it; such a row serves nothing, it explains."""
    replacement: str | None = None


class Endpoint(Protocol):
    """Where to connect and as whom: what a deployment and an active provider have in common."""

    @property
    def provider(self) -> Provider:
        """The provider's row."""
        ...

    @property
    def base_url(self) -> str:
        """Without a trailing slash."""
        ...

    @property
    def credential(self) -> str | None:
        """The secret, never logged."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One provider with its address, credential and upstream model."""

    id: str
    """``provider/upstream model``: unique, because a provider's name is set up once."""
    provider: Provider = field(repr=False)
    base_url: str
    credential: str | None = field(repr=False)
    upstream_model: str
    model: Model = field(repr=False)
    price: Price | None = field(repr=False)
    """What applies at the moment that the route was resolved for; None: unpriced."""


@dataclass(frozen=True, slots=True)
class Route:
    """The ordered deployments that may answer a model; never empty."""

    model: str
    deployments: tuple[Deployment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSetting:
    """How an operator switches a provider on.

    ``models`` names what it serves, in place of the catalog's rows and of discovery; ``name=upstream-model`` gives
    a model another name.
    """

    name: str
    base_url: str | None = None
    credential: str | None = field(default=None, repr=False)
    models: tuple[str, ...] = ()
    shows_all_output: bool = False
    """The operator vouches that the server shows all that its models write."""
    tool_call_format: str = ""
    """``format`` for every model, or ``model=format``, several separated by commas."""
    tools: str = "send"
    """What the server gets of a request's tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveProvider:
    """A provider that is on: its row with the address and credential of this installation."""

    provider: Provider = field(repr=False)
    base_url: str
    credential: str | None = field(default=None, repr=False)
    models: tuple[str, ...] = ()
    tool_call_formats: Mapping[str, ToolCallFormat] = field(default_factory=_no_mapping)
    """By upstream model; ``""`` is every other one."""
    tools: ToolsHandling = "send"

    @property
    def name(self) -> str:
        """The provider's name, which is what ``owned_by`` shows."""
        return self.provider.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStatus:
    """What a probe found."""

    name: str
    is_reachable: bool
    checked_at_ms: int
    models: tuple[str, ...] = ()
    """What the provider says it serves; empty where it does not say."""
    detail: str = ""
    """Why it is not reachable, for operators; no secret in it."""
