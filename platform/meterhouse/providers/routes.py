"""Which deployments may answer a model: an immutable snapshot in memory, swapped whole.

Invariant: resolving does no input or output and no allocation for a listed model; a snapshot never changes, so a
request that holds a route is not disturbed by a swap. Not here: how a deployment fares (``breaker``).
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from meterhouse.errors import UnknownModel
from meterhouse.providers.activation import activate
from meterhouse.providers.catalog import (
    PROVIDERS,
    SIMULATOR,
    find_retired,
    list_models_of,
    list_retired_of,
    model_of,
)
from meterhouse.providers.prices import PriceBook
from meterhouse.providers.pricing import FOREVER_MS, Pricing
from meterhouse.providers.provider import (
    ActiveProvider,
    Deployment,
    Model,
    ProviderSetting,
    Route,
    RouteSetting,
    Timeouts,
)
from meterhouse.providers.tool_text import adapt_row

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
    max_output_tokens: int | None
    """None for one that writes nothing."""
    shutdown: date | None = None
    """The day on which its provider will stop serving it, where that is known."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an operator wants of the routes beyond what the providers serve."""

    routes: tuple[RouteSetting, ...] = ()
    replaces_retired: bool = False
    """Whether a retired name is answered by its replacement; otherwise it is a 404 that names it."""
    adjust_timeouts: Callable[[Timeouts], Timeouts] | None = None


NO_WISHES = Wishes()
MAX_UNLISTED = 1_024
"""Names that callers asked for, of which the routes are kept; when there are more, they are made anew."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """The routes of one name: from each moment on that a price of one of its deployments changes."""

    starts_ms: tuple[int, ...]
    routes: tuple[Route, ...]

    def at(self, at_ms: int) -> Route:
        return self.routes[max(0, bisect_right(self.starts_ms, at_ms) - 1)]


class Snapshot:
    """Every route of a moment. Made by ``build_snapshot``; never changed."""

    def __init__(
        self,
        providers: Sequence[ActiveProvider],
        prices: PriceBook,
        discovered: Mapping[str, Sequence[str]],
        built_at_ms: int,
        wishes: Wishes = NO_WISHES,
    ) -> None:
        """Take the providers that are on in order of preference, and what each says that it serves.

        What a provider merely says is no other deployment of a model in the catalog, whose price and bounds it has
        not; it can be asked for as ``provider/model``.
        """
        self.providers = tuple(providers)
        self._active = _by_name(self.providers)
        self.pricing = Pricing(prices)
        served: dict[str, list[Deployment]] = {}
        rows = {row.name for active in self.providers if not active.models for row in list_models_of(active.provider)}
        for active in self.providers:
            names = [name for name in discovered.get(active.name, ()) if name not in rows]
            for model in self._unambiguous(active, _served_models(active, names)):
                found = served.setdefault(model.name, [])
                found.append(replace(_deploy(active, model), order=len(found)))
        self._names = {deployment.id: name for name, found in served.items() for deployment in found}
        """What ``provider/upstream-model`` is listed as: one model has one set of limits, however it is asked for."""
        known = {f"{name}/{model}" for name, models in discovered.items() for model in models}
        self._known = {*self._names, *known}
        """Deployments that are known to be served, listed or not."""
        served_by = {name.partition("/")[0] for name in self._known}
        self._closed = {a.name for a in self.providers if a.provider.answers_any_name and a.name in served_by}
        """Providers of which nothing can be asked for but what they are known to serve."""
        off = {route.model: tuple(t for t in route.targets if not t.is_on) for route in wishes.routes}
        self.switched_off = {name: targets for name, targets in off.items() if targets}
        """What operators switched off, by the name of its route; nothing else may be left of that name."""
        written = self._written(wishes.routes)
        served.update(written)
        self._take_out(served, self.switched_off.keys() - written.keys())
        self._listed = {name: _list(deployments[0].model, built_at_ms // 1_000) for name, deployments in served.items()}
        self._entries = {name: self._entry(name, deployments) for name, deployments in served.items()}
        self._unlisted: dict[str, _Entry] = {}
        """The same of names that are asked for and not listed, as far as they were: an answer to a question only."""
        self._add_default_tags(served)
        if wishes.replaces_retired:
            self._replace_retired(built_at_ms // 1_000)

    def resolve(self, model: str, at_ms: int) -> Route:
        """Return the route of a model's name, or of ``provider/upstream-model``, with the prices of a moment.

        Raises:
            UnknownModel: nothing that is on serves it; the text says what to do.
        """
        entry = self._entries.get(model) or self._unlisted.get(model)
        if entry is None:
            deployment = self._deploy_unlisted(model)
            entry = self._entry(self.listed_name(deployment.id), [deployment])
            if len(self._unlisted) >= MAX_UNLISTED:
                self._unlisted.clear()
            self._unlisted[model] = entry
        return entry.routes[-1] if at_ms >= entry.starts_ms[-1] else entry.at(at_ms)

    def listed_name(self, name: str) -> str:
        """Return the name under which a model is listed, however it is asked for.

        An unlisted one is its own, under its provider's name and no alias of it.
        """
        entry = self._entries.get(name)
        if entry is not None:
            return entry.routes[0].model
        provider, slash, upstream_model = name.partition("/")
        active = self._active.get(provider)
        if slash and active is not None:
            name = f"{active.name}/{upstream_model}"
        return self._names.get(name, name)

    def list_models(self) -> tuple[ListedModel, ...]:
        """Return every listed model, providers in their order."""
        return tuple(self._listed.values())

    def find_model(self, name: str) -> ListedModel | None:
        """Return a listed model; None when the name is not listed (it may be routable all the same)."""
        return self._listed.get(name)

    def list_routes(self, at_ms: int) -> Iterator[tuple[str, Route]]:
        """Yield every name that leads to a route, with the route; several names may lead to one model."""
        return ((name, entry.at(at_ms)) for name, entry in self._entries.items())

    def _deploy_unlisted(self, model: str) -> Deployment:
        """Return what a name that is not listed leads to; raises UnknownModel."""
        provider, slash, upstream_model = model.partition("/")
        active = self._active.get(provider)
        if not slash or active is None or not is_model_name(upstream_model):
            raise _unknown(model)
        deployment = _deploy(active, model_of(active.provider, model, upstream_model))
        if active.name in self._closed and deployment.id not in self._known:
            raise _unknown(model)
        return deployment

    def _unambiguous(self, active: ActiveProvider, models: Iterable[Model]) -> Iterator[Model]:
        """Put a provider's name before names that begin with another's: ``openai/gpt-4o`` is OpenAI's while that is on.

        Names that an operator gave stay as they are.
        """
        for model in models:
            first, slash, _ = model.name.partition("/")
            is_anothers = slash and self._active.get(first, active) is not active
            yield replace(model, name=f"{active.name}/{model.name}") if is_anothers and not active.models else model

    def _written(self, routes: Iterable[RouteSetting]) -> dict[str, list[Deployment]]:
        """Return the deployments of the routes that an operator wrote down; of a provider that is off there is none."""
        written: dict[str, list[Deployment]] = {}
        for route in routes:
            found = [
                replace(
                    _deploy(active, model_of(active.provider, route.model, target.upstream_model)),
                    order=target.order,
                    weight=target.weight,
                )
                for target in sorted(route.targets, key=lambda target: target.order)
                if target.is_on and (active := self._active.get(target.provider)) is not None
            ]
            if found:
                written[route.model] = found
        return written

    def _take_out(self, served: dict[str, list[Deployment]], names: Iterable[str]) -> None:
        """Leave what is switched off out of what the providers serve of these names by themselves."""
        for name in names:
            off = {f"{target.provider}/{target.upstream_model}" for target in self.switched_off[name]}
            left = [deployment for deployment in served.pop(name, ()) if deployment.id not in off]
            if left:
                served[name] = left

    def _add_default_tags(self, served: Mapping[str, Sequence[Deployment]]) -> None:
        for name, deployments in served.items():
            bare = name.removesuffix(_OLLAMA_DEFAULT_TAG)
            if bare not in self._entries and deployments[0].provider.wire == "ollama":
                self._entries[bare] = self._entry(name, deployments)
                self._names.setdefault(f"{deployments[0].provider.name}/{bare}", name)

    def _replace_retired(self, created_seconds: int) -> None:
        """Let retired names lead to their replacements, under whose names their requests are limited and recorded."""
        for active in self.providers:
            for row in list_retired_of(active.provider):
                if row.name in self._entries or row.replacement not in self._listed:
                    continue
                model = model_of(active.provider, row.name, row.replacement)
                model = replace(model, body_defaults=row.body_defaults)
                self._entries[row.name] = self._entry(row.replacement, [_deploy(active, model)])
                self._listed[row.name] = _list(model, created_seconds)
                self._names.setdefault(f"{active.name}/{row.name}", row.replacement)

    def _entry(self, name: str, deployments: Sequence[Deployment]) -> _Entry:
        changes = {price.effective_from_ms for d in deployments for price in self.pricing.find(d)}
        starts = tuple(sorted(changes | {0}))
        ends = (*starts[1:], FOREVER_MS)
        routes = tuple(
            Route(name, tuple(self.pricing.priced(d, start) for d in deployments), start, end)
            for start, end in zip(starts, ends, strict=True)
        )
        return _Entry(starts, routes)


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
    wishes: Wishes = NO_WISHES,
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
    if (adjust := wishes.adjust_timeouts) is not None:
        active = [replace(a, provider=replace(a.provider, timeouts=adjust(a.provider.timeouts))) for a in active]
    return Snapshot(active, prices, discovered or {}, built_at_ms, wishes)


def is_model_name(name: str) -> bool:
    """Whether a name may go upstream and into logs: printable, no blanks, at most 200 characters."""
    return 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() and " " not in name


def _served_models(active: ActiveProvider, discovered: Sequence[str]) -> list[Model]:
    """Return what a provider serves: what its operator says, else its rows and what else it says itself."""
    models: dict[str, Model] = {}
    if active.models:
        for text in active.models:
            name, _, upstream_model = text.partition("=")
            models.setdefault(name, model_of(active.provider, name, upstream_model or name))
        return list(models.values())
    for row in list_models_of(active.provider):
        models[row.name] = row
    for name in discovered:
        if is_model_name(name):
            models.setdefault(name, model_of(active.provider, name, name))
    return list(models.values())


def _by_name(providers: Sequence[ActiveProvider]) -> dict[str, ActiveProvider]:
    """Return the providers by their names, and by their aliases where no other has that name."""
    found = {active.name: active for active in providers}
    for active in providers:
        for alias in active.provider.aliases:
            found.setdefault(alias, active)
    return found


def _deploy(active: ActiveProvider, model: Model) -> Deployment:
    return Deployment(
        id=f"{active.name}/{model.upstream_model}",
        provider=adapt_row(active.provider, active.tool_call_formats, active.tools, model.upstream_model),
        base_url=active.base_url,
        credential=active.credential,
        upstream_model=model.upstream_model,
        model=model,
        price=None,
        is_public_only=active.is_public_only,
    )


def _list(model: Model, created_seconds: int) -> ListedModel:
    return ListedModel(
        model.name,
        model.provider,
        created_seconds,
        model.context_tokens,
        model.max_output_tokens or None,
        model.shutdown,
    )


def _unknown(model: str) -> UnknownModel:
    shown = model if is_model_name(model) else "of this name"
    retired = find_retired(model.rpartition("/")[2])
    if retired:
        row = retired[0]
        when = f" on {row.since.isoformat()}" if row.since is not None else ""
        replacements = " or ".join(dict.fromkeys(found.replacement for found in retired))
        return UnknownModel(
            f"The model {row.name} was retired by its provider{when}. "
            f"Use {replacements} instead; GET /v1/models lists every model that is served.",
            param="model",
        )
    return UnknownModel(
        f"The model {shown} does not exist here. GET /v1/models lists the models that are served; "
        "any model of a provider that is switched on can also be asked for as provider/model.",
        param="model",
    )
