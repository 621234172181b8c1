"""Which deployments may answer a model: an immutable snapshot in memory, swapped whole.

Invariant: resolving does no input or output and no allocation for a listed model; a snapshot never changes, so a
request that holds a route is not disturbed by a swap. Not here: how a deployment fares (``breaker``).
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from meterhouse.errors import UnknownModel
from meterhouse.money import Price
from meterhouse.providers.catalog import (
    MODELS,
    OPENAI_COMPATIBLE,
    PROVIDERS,
    SIMULATOR,
    custom_provider,
    list_models_of,
    model_of,
)
from meterhouse.providers.prices import PriceBook, price_at
from meterhouse.providers.provider import (
    ActiveProvider,
    Deployment,
    Model,
    Provider,
    ProviderSetting,
    Route,
    Timeouts,
)
from meterhouse.providers.tool_text import adapt_row, read_formats, read_handling

MAX_NAME_LENGTH = 200
_OLLAMA_DEFAULT_TAG = ":latest"


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A line of the list of models."""

    name: str
    provider: str
    """Who serves it first; the list shows it as ``owned_by``."""
    created_seconds: int
    """When this list was made: providers do not agree on what a model's date is."""
    context_tokens: int | None
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """The routes of one name: from each moment on that a price of one of its deployments changes."""

    starts_ms: tuple[int, ...]
    routes: tuple[Route, ...]

    def at(self, at_ms: int) -> Route:
        if at_ms >= self.starts_ms[-1]:
            return self.routes[-1]
        return self.routes[max(0, bisect_right(self.starts_ms, at_ms) - 1)]


class Snapshot:
    """Every route of a moment. Made by ``build_snapshot``; never changed."""

    def __init__(
        self,
        providers: Sequence[ActiveProvider],
        prices: PriceBook,
        discovered: Mapping[str, Sequence[str]],
        built_at_ms: int,
    ) -> None:
        """Take the providers that are on in order of preference, and what each says that it serves."""
        self.providers = tuple(providers)
        self._active = {active.name: active for active in self.providers}
        self._prices = prices
        served: dict[str, list[Deployment]] = {}
        for active in self.providers:
            for model in _served_models(active, discovered.get(active.name, ())):
                served.setdefault(model.name, []).append(_deploy(active, model))
        self._listed = {name: _list(deployments[0].model, built_at_ms // 1_000) for name, deployments in served.items()}
        self._entries = {name: self._entry(name, deployments) for name, deployments in served.items()}
        self._names = {deployment.id: name for name, found in served.items() for deployment in found}
        """What ``provider/upstream-model`` is listed as: one model has one set of limits, however it is asked for."""
        for name, deployments in served.items():
            bare = name.removesuffix(_OLLAMA_DEFAULT_TAG)
            if bare not in self._entries and deployments[0].provider.wire == "ollama":
                self._entries[bare] = self._entry(name, deployments)
                self._names.setdefault(f"{deployments[0].provider.name}/{bare}", name)

    def resolve(self, model: str, at_ms: int) -> Route:
        """Return the route of a model's name, or of ``provider/upstream-model``, with the prices of a moment.

        Raises:
            UnknownModel: nothing that is on serves it; the text says what to do.
        """
        entry = self._entries.get(model)
        if entry is not None:
            return entry.at(at_ms)
        provider, slash, upstream_model = model.partition("/")
        active = self._active.get(provider)
        if not slash or active is None or not is_model_name(upstream_model):
            raise _unknown(model)
        deployment = _deploy(active, model_of(active.provider, model, upstream_model))
        return Route(self.listed_name(model), (self._priced(deployment, at_ms),))

    def listed_name(self, name: str) -> str:
        """Return the name under which a model is listed, however it is asked for; an unlisted one is its own."""
        entry = self._entries.get(name)
        return entry.routes[0].model if entry is not None else self._names.get(name, name)

    def list_models(self) -> tuple[ListedModel, ...]:
        """Return every listed model, providers in their order."""
        return tuple(self._listed.values())

    def find_model(self, name: str) -> ListedModel | None:
        """Return a listed model; None when the name is not listed (it may be routable all the same)."""
        return self._listed.get(name)

    def _entry(self, name: str, deployments: Sequence[Deployment]) -> _Entry:
        changes = {price.effective_from_ms for d in deployments for price in self._find_prices(d)}
        starts = tuple(sorted(changes | {0}))
        routes = tuple(Route(name, tuple(self._priced(d, start) for d in deployments)) for start in starts)
        return _Entry(starts, routes)

    def _priced(self, deployment: Deployment, at_ms: int) -> Deployment:
        return replace(deployment, price=price_at(self._find_prices(deployment), at_ms))

    def _find_prices(self, deployment: Deployment) -> tuple[Price, ...]:
        return self._prices.find(deployment.provider.name, deployment.upstream_model)


class Routes:
    """The snapshot in force. Swapped whole by assignment, which is atomic for everything in the process."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def replace(self, snapshot: Snapshot) -> None:
        """Put a new snapshot in force; requests that hold a route of the old one keep it."""
        self.snapshot = snapshot

    def resolve(self, model: str, at_ms: int) -> Route:
        """Resolve in the snapshot in force; raises UnknownModel."""
        return self.snapshot.resolve(model, at_ms)

    def list_models(self) -> tuple[ListedModel, ...]:
        """List the models of the snapshot in force."""
        return self.snapshot.list_models()

    def find_model(self, name: str) -> ListedModel | None:
        """Find a listed model in the snapshot in force."""
        return self.snapshot.find_model(name)


def build_snapshot(
    settings: Iterable[ProviderSetting],
    *,
    is_simulator_on: bool,
    prices: PriceBook,
    built_at_ms: int,
    discovered: Mapping[str, Sequence[str]] | None = None,
    adjust_timeouts: Callable[[Timeouts], Timeouts] | None = None,
) -> Snapshot:
    """Make a snapshot of the providers that these settings switch on; their order is the order of preference.

    Raises:
        ValueError: a setting that cannot work, said so that an operator can mend it.
    """
    active = [found for setting in settings if (found := activate(setting)) is not None]
    names = [provider.name for provider in active]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"provider {doubled[0]} is configured twice")
    if is_simulator_on and SIMULATOR not in names:
        row = PROVIDERS[SIMULATOR]
        active.append(ActiveProvider(provider=row, base_url=row.base_url or ""))
    if adjust_timeouts is not None:
        active = [
            replace(a, provider=replace(a.provider, timeouts=adjust_timeouts(a.provider.timeouts))) for a in active
        ]
    return Snapshot(active, prices, discovered or {}, built_at_ms)


def activate(setting: ProviderSetting) -> ActiveProvider | None:
    """Return the provider that a setting switches on, or None: it has neither a credential nor a base URL.

    Raises:
        ValueError: an unknown provider without a base URL, or a base URL that is none.
    """
    if setting.name == SIMULATOR:
        raise ValueError("the simulator is no provider to configure; it is switched on or off")
    if not is_provider_name(setting.name):
        raise ValueError(f"provider name {setting.name!r}: use lower-case letters, digits, hyphens and underscores")
    if setting.credential is None and setting.base_url is None:
        return None
    row = PROVIDERS.get(setting.name)
    if row is None:
        if setting.base_url is None:
            known = ", ".join(name for name in PROVIDERS if name not in {SIMULATOR, OPENAI_COMPATIBLE})
            raise ValueError(f"provider {setting.name} needs a base URL; without one these are known: {known}")
        row = custom_provider(setting.name)
    if setting.shows_all_output:
        row = replace(row, shows_all_output=True)
    if setting.credential is not None and not (setting.credential.isascii() and setting.credential.isprintable()):
        raise ValueError(f"provider {setting.name}: its credential has characters that no header can carry")
    base_url = setting.base_url or row.base_url
    if base_url is None:
        raise ValueError(f"provider {setting.name} needs a base URL")
    formats = read_formats(setting.name, setting.tool_call_format)
    return ActiveProvider(
        provider=row,
        base_url=_normal_base_url(row, base_url),
        credential=setting.credential,
        models=setting.models,
        tool_call_formats=formats,
        tools=read_handling(setting.name, setting.tools, formats),
    )


def is_provider_name(name: str) -> bool:
    """Whether a name can be a provider's: it appears in settings, ids, metrics and before a slash."""
    return bool(name) and name.isascii() and name.replace("-", "").replace("_", "").isalnum() and name == name.lower()


def is_model_name(name: str) -> bool:
    """Whether a name may go upstream and into logs: printable, no blanks, at most 200 characters."""
    return 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() and " " not in name


def _normal_base_url(row: Provider, base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"provider {row.name}: base URL {base_url!r} is no http(s) address")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"provider {row.name}: a base URL has no user, query or fragment")
    plain = base_url.rstrip("/")
    # People paste the address of Ollama's /v1; its native wire starts above it.
    return plain.removesuffix("/v1") if row.wire == "ollama" else plain


def _served_models(active: ActiveProvider, discovered: Sequence[str]) -> list[Model]:
    """Return what a provider serves: what its operator says, else its rows, else what it says itself."""
    models: dict[str, Model] = {}
    if active.models:
        for text in active.models:
            name, _, upstream_model = text.partition("=")
            models.setdefault(name, model_of(active.provider, name, upstream_model or name))
        return list(models.values())
    for row in list_models_of(active.name):
        if row.retired is None:
            models[row.name] = row
    for name in discovered:
        if is_model_name(name):
            models.setdefault(name, model_of(active.provider, name, name))
    return list(models.values())


def _deploy(active: ActiveProvider, model: Model) -> Deployment:
    return Deployment(
        id=f"{active.name}/{model.upstream_model}",
        provider=adapt_row(active.provider, active.tool_call_formats, active.tools, model.upstream_model),
        base_url=active.base_url,
        credential=active.credential,
        upstream_model=model.upstream_model,
        model=model,
        price=None,
    )


def _list(model: Model, created_seconds: int) -> ListedModel:
    return ListedModel(model.name, model.provider, created_seconds, model.context_tokens, model.max_output_tokens)


def _unknown(model: str) -> UnknownModel:
    shown = model if is_model_name(model) else "of this name"
    for row in MODELS.values():
        if row.retired is not None and row.name == model.rpartition("/")[2]:
            return UnknownModel(
                f"The model {row.name} was retired by its provider on {row.retired.isoformat()}. "
                f"Use {row.replacement} instead; GET /v1/models lists every model that is served.",
                param="model",
            )
    return UnknownModel(
        f"The model {shown} does not exist here. GET /v1/models lists the models that are served; "
        "any model of a provider that is switched on can also be asked for as provider/model.",
        param="model",
    )
