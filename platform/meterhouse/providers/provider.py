"""What a provider, a model, a deployment and a route are: frozen data, no behaviour.

Invariant: whatever differs between two providers that speak the same wire is a field of ``Provider``; code exists
only for a wire. Not here: the rows (``catalog``), the choice of a deployment (``routes``), any network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, Protocol

from meterhouse.metering import ModelBounds
from meterhouse.money import PossiblePrices, Price

Wire = Literal["openai", "ollama", "anthropic", "simulator"]
EndpointName = Literal[
    "completions",
    "embeddings",
    "responses",
    "messages",
    "moderations",
    "images",
    "transcriptions",
    "translations",
    "speech",
]
"""A wire besides chat completions, which every provider has in some form (``Provider.wire``)."""
OnClientGone = Literal["cancel", "drain"]
MaxTokensField = Literal["max_tokens", "max_completion_tokens"]
ReasoningReplay = Literal["keep", "fill", "fill_for_calls"]
ToolCallFormat = Literal[
    "glm4", "glm45", "hermes", "qwen3_coder", "llama3_json", "pythonic", "mistral", "deepseek_v3", "kimi_k2"
]
"""How a model writes its tool calls where its server leaves them in the text (wire.md 4)."""
ToolsHandling = Literal["send", "withhold", "prompt"]
"""What a server gets of a request's tools: all, nothing, or nothing but what is said of them in the prompt."""


def _nothing() -> Mapping[Any, Any]:
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


@dataclass(frozen=True, slots=True)
class ModelRule:
    """What differs for some models of a provider; the first rule that fits a model holds."""

    prefixes: tuple[str, ...]
    """How the upstream models' names begin."""
    dropped_parameters: frozenset[str] = frozenset()
    thinks_by_budget: bool = False
    """Whether such a model is told to think by a number of tokens, and not by an effort (Anthropic)."""


NO_RULE = ModelRule(prefixes=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One row of the catalog: a company or a server kind, and all that is particular about it."""

    name: str
    kind: str = ""
    """The catalog's row that a provider of another name was made from; empty: its own."""
    aliases: tuple[str, ...] = ()
    """Other names that it is asked for and set up by."""
    wire: Wire
    base_url: str | None
    """The default; None where every installation has its own."""
    base_url_names: tuple[str, ...] = ()
    """The environment variables that usually hold its address, after ours."""
    base_url_suffix: str = ""
    """What is added to an address without a path."""
    regions: Mapping[str, str] = field(default_factory=_nothing)
    """Base URLs by region; ``{workspace}`` stands for the operator's workspace."""
    credential_names: tuple[str, ...] = ()
    """The environment variables that hold its credential; settings reads them, nothing here does."""
    credential_header: str = "authorization"
    credential_prefix: str = "Bearer "
    extra_headers: Mapping[str, str] = field(default_factory=_nothing)
    chat_path: str = "/chat/completions"
    endpoints: Mapping[EndpointName, str] = field(default_factory=_nothing)
    """The wires that it serves itself, with their paths: a request on one of them is passed through. What is not in
    here goes over chat completions where it can be translated, and is refused else."""
    embeddings_max_inputs: int = 2_048
    """How many inputs one request for embeddings may have."""
    sends_floats_only: bool = False
    """Whether ``encoding_format`` base64 is refused or not known: then floats are asked for, and encoded here."""
    models_path: str = "/models"
    health_path: str = "/models"

    renames: Mapping[str, str] = field(default_factory=_nothing)
    """Body parameters that have another name here, for example ``seed`` > ``random_seed``."""
    value_renames: Mapping[str, Mapping[str, str]] = field(default_factory=_nothing)
    """Values of parameters that are spelled otherwise here, for example ``tool_choice`` ``required`` > ``any``."""
    denied_parameters: frozenset[str] = frozenset()
    """Parameters that it cannot honour: a 400 before the call, because to drop them would change the answer."""
    denied_values: Mapping[str, frozenset[str]] = field(default_factory=_nothing)
    """Values of parameters that it cannot honour, likewise."""
    dropped_parameters: frozenset[str] = frozenset()
    """Parameters that may be left out without changing what the answer means."""
    dropped_message_fields: frozenset[str] = frozenset()
    """The same, of a message."""
    model_rules: tuple[ModelRule, ...] = ()
    reasoning_replay: ReasoningReplay = "keep"
    """What becomes of the reasoning in the history: ``fill`` where each message of the assistant must have some,
    ``fill_for_calls`` where those with tool calls must. Where it is refused, it is a dropped message field."""
    flattens_text_parts: bool = False
    """Whether content that is a list of text parts goes out as one string."""
    body_defaults: Mapping[str, Any] = field(default_factory=_nothing)
    """Sent when the caller sent nothing under that name."""
    unstreamed_body_defaults: Mapping[str, Any] = field(default_factory=_nothing)
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

    reads_think_tags: bool = False
    """Whether an answer that begins with ``<think>`` has thoughts in its text (a local server without a parser)."""
    finish_reasons: Mapping[str, str] = field(default_factory=_nothing)
    """Finish reasons that OpenAI spells otherwise, for example ``model_length`` > ``length``."""
    sends_include_usage: bool = True
    """Whether ``stream_options.include_usage`` may be sent; False for a provider that refuses it."""
    sends_continuous_usage: bool = False
    """Whether ``stream_options.continuous_usage_stats`` may be sent (vLLM, SGLang)."""
    on_client_gone: OnClientGone = "cancel"
    """``cancel``: it stops billing when we hang up. ``drain``: it bills anyway, so its usage is worth waiting for."""

    empty_account_phrases: tuple[str, ...] = ()
    """What it says, in lower case, under a status of the caller's when it is our account that is empty."""
    doubtful_refusals: frozenset[int] = frozenset({403})
    """Statuses that may refuse our account or what a caller asked for: no single one takes a deployment out."""
    discovers_models: bool = False
    """Whether its own list of models says what it serves."""
    lists_models_once: bool = False
    """Whether that list is asked for only until it is known, because asking disturbs a server at work. Once it was
    away it is asked again."""
    answers_any_name: bool = False
    """Whether it answers a name that it does not know with a model that it has; then only what it is known to serve can
    be asked for, because limits, permissions and prices go by the name."""
    shows_all_output: bool = False
    """Whether what it sends is all that it charges, so that bytes seen bound tokens used. Where nobody vouches for
    that, a budget holds the whole allowance."""
    forwards_trace: bool = False
    """Whether requests carry their trace (W3C ``traceparent``), so that a server of the operator's own continues it."""
    hidden_thinking_prefixes: tuple[str, ...] = ()
    """Names of models that think without showing it, so that bytes seen do not bound tokens used."""
    price_source: str | None = None
    """Its name in genai-prices; None: no default prices."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    quirks: tuple[Quirk, ...] = ()
    ruled_parameters: frozenset[str] = field(init=False, repr=False, compare=False)
    """Every parameter that is denied, dropped, renamed or has a value that is; ``messages`` where a rule is about them,
    else they go out as they came, and nobody reads them again."""

    def __post_init__(self) -> None:
        """Work out once what every request asks."""
        dropped = self.dropped_parameters.union(*(rule.dropped_parameters for rule in self.model_rules))
        ruled = self.denied_parameters.union(dropped, self.renames, self.denied_values, self.value_renames)
        if self.dropped_message_fields or self.flattens_text_parts or self.reasoning_replay != "keep":
            ruled |= {"messages"}
        object.__setattr__(self, "ruled_parameters", ruled)

    @property
    def row_name(self) -> str:
        """The name of the catalog's row, whatever the provider is called here."""
        return self.kind or self.name

    def rule_of(self, upstream_model: str) -> ModelRule:
        """Return what differs for a model."""
        return next((rule for rule in self.model_rules if upstream_model.startswith(rule.prefixes)), NO_RULE)


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
    """What it answers at most; assumed by the provider's row where unknown, 0 for one that makes embeddings."""
    thinks_hidden: bool = False
    image_tokens_bound: int | None = None
    """No image counts for more; None: no bound is known."""
    audio_tokens_bound: int | None = None
    body_defaults: Mapping[str, Any] = field(default_factory=_nothing)
    """Sent when the caller sent nothing under that name."""
    shutdown: date | None = None
    """The day on which the provider will stop serving it, where it has said so."""


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

    @property
    def is_public_only(self) -> bool:
        """Whether its name must lead to a public address."""
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
    order: int = 0
    """Those of a lower order are asked first."""
    weight: int = 1
    """Its part of the requests among those of its order."""
    is_public_only: bool = False


@dataclass(frozen=True)
class Route:
    """The ordered deployments that may answer a model; never empty.

    What every request asks of a route is worked out once and kept beside its fields.
    """

    model: str
    deployments: tuple[Deployment, ...]
    from_ms: int = field(default=0, compare=False)
    until_ms: int = field(default=0, compare=False)
    """Within these, no price of a deployment changes; the same moment: that is not known."""

    @cached_property
    def prices(self) -> PossiblePrices:
        """The prices of the deployments, one for each."""
        return PossiblePrices(tuple(deployment.price for deployment in self.deployments))

    @cached_property
    def writes(self) -> bool:
        """Whether every deployment's model writes answers, as one of embeddings does not."""
        return all(deployment.model.max_output_tokens for deployment in self.deployments)

    @cached_property
    def renders_tools(self) -> bool:
        """Whether a deployment tells its model of tools in the prompt."""
        return any(deployment.provider.renders_tools for deployment in self.deployments)

    @cached_property
    def bounds(self) -> ModelBounds:
        """What bounds a request over every deployment that may serve it, so that a failover never exceeds its hold."""
        models = [deployment.model for deployment in self.deployments]
        image_bounds = [model.image_tokens_bound for model in models]
        return ModelBounds(
            max_output_tokens=max(d.provider.default_max_tokens or d.model.max_output_tokens for d in self.deployments),
            image_tokens=None if None in image_bounds else max(bound or 0 for bound in image_bounds),
            thinks_hidden=any(model.thinks_hidden for model in models),
            model=self.model,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTarget:
    """One deployment of a route that an operator wrote down."""

    provider: str
    upstream_model: str
    order: int = 0
    weight: int = 1
    is_on: bool = True
    """False: it stays written down, and gets no request of this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSetting:
    """A model's name and who answers it, in place of what the providers serve by themselves."""

    model: str
    targets: tuple[RouteTarget, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSetting:
    """How an operator switches a provider on.

    ``models`` names what it serves, in place of the catalog's rows and of discovery; ``name=upstream-model`` gives
    a model another name.
    """

    name: str
    kind: str | None = None
    """The catalog's row that it behaves like; None: the one of its name, or any OpenAI-compatible server's."""
    base_url: str | None = None
    region: str | None = None
    """One of the row's, in place of a base URL."""
    workspace: str | None = None
    """The operator's at the provider, where the region's address has one in it."""
    credential: str | None = field(default=None, repr=False)
    models: tuple[str, ...] = ()
    shows_all_output: bool = False
    """The operator vouches that the server shows all that its models write."""
    forwards_trace: bool = False
    is_public_only: bool = False
    """Set through the API, and private addresses are not allowed there."""
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
    is_public_only: bool = False
    tool_call_formats: Mapping[str, ToolCallFormat] = field(default_factory=_nothing)
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
    base_url: str = ""
    """Where it was asked."""
    models: tuple[str, ...] = ()
    """What the provider says it serves; empty where it does not say."""
    refuses_credential: bool = False
    """It is there, and does not accept the operator's credential."""
    detail: str = ""
    """Why it is not reachable, for operators; no secret in it."""
