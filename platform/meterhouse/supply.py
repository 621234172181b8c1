"""What there is to sell: which providers are on, what they serve and what it costs, as one snapshot swapped whole.

Providers come from the environment and, over those, from the database; prices from the database over the defaults;
routes from the database over what the providers serve; models from the rows and, for local servers, from the servers
themselves, which are asked again and again whether they are there. Not here: changing any of it (``supply_changes``).
"""

import asyncio
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import msgspec

from meterhouse.admin.schemas import PriceRequest
from meterhouse.admin.supply import ProviderView
from meterhouse.db.catalog import Catalog
from meterhouse.db.supply import StoredProvider, StoredRoute
from meterhouse.errors import StoreDown
from meterhouse.identity import COMMAND_LINE, Author
from meterhouse.keys.secret import looks_like_ours
from meterhouse.metering import Clock
from meterhouse.money import Price
from meterhouse.price_orders import OPERATOR_SOURCE, plan_price
from meterhouse.providers.activation import activate
from meterhouse.providers.catalog import PROVIDERS, SIMULATOR
from meterhouse.providers.prices import PriceBook, load_default_prices
from meterhouse.providers.probe import Probe
from meterhouse.providers.provider import (
    ActiveProvider,
    Provider,
    ProviderSetting,
    ProviderStatus,
    RouteSetting,
    RouteTarget,
    Timeouts,
)
from meterhouse.providers.routes import Routes, Snapshot, Wishes, build_snapshot
from meterhouse.providers.vault import Vault
from meterhouse.settings import Environment, Settings, SettingsError
from meterhouse.telemetry.logs import Event, get_logger

KEPT_FILE = "supply.json"
"""In the data folder: what operators had set as it was read last. Credentials are in it as in the database: sealed."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What operators set, as the database has it."""

    prices: list[Price] = field(default_factory=list)
    providers: list[StoredProvider] = field(default_factory=list)
    routes: list[StoredRoute] = field(default_factory=list)


class Supply:
    """Keeps ``routes`` up to date."""

    def __init__(
        self, environment: Environment, settings: Settings, catalog: Catalog, clock: Clock, vault: Vault
    ) -> None:
        """Read the providers of the environment.

        Raises:
            SettingsError: A provider's settings cannot work.
        """
        self._given = provider_settings(environment)
        self._process = settings
        self._catalog = catalog
        self._clock = clock
        self._vault = vault
        self._kept = settings.data / KEPT_FILE
        self._news = asyncio.Event()
        self._refreshing = asyncio.Lock()
        self._stored = Stored()
        self._settings = self._given
        self._refused: dict[str, str] = {}
        try:
            rows = [found.provider for setting in self._given if (found := activate(setting)) is not None]
        except ValueError as error:
            raise SettingsError(f"{error}.") from None
        self._priced = _price_sources(rows)
        self._defaults = load_default_prices(rows)
        self._book = self._defaults
        self._statuses: dict[str, ProviderStatus] = {}
        self.has_simulator = False
        self._on_changed: Callable[[Collection[str]], None] = _ignore
        self.routes = Routes(self._build())

    @property
    def statuses(self) -> Mapping[str, ProviderStatus]:
        """What the last probe of each provider said."""
        return self._statuses

    @property
    def is_public_only(self) -> bool:
        """Whether providers that are set through the API must have public addresses."""
        return not self._process.private_providers

    def watch(self, on_changed: Callable[[Collection[str]], None]) -> None:
        """Say who is told the names of providers that are on, off or set otherwise from now on."""
        self._on_changed = on_changed

    async def open(self, *, has_simulator: bool) -> None:
        """Write the default prices that are new, so that every price in the ledger can be looked up; read all.

        While the database is away, what operators set is what this host knew last.

        Raises:
            StoreDown: The database is away, and this host has never read what operators set.
        """
        self.has_simulator = has_simulator
        try:
            await self._write_defaults()
            await self.refresh()
        except StoreDown as error:
            if not self._kept.exists():
                raise
            get_logger().warning(Event.STORE_FAILED, detail=error.detail)
            await self._use(msgspec.json.decode(self._kept.read_bytes(), type=Stored))

    async def refresh(self) -> None:
        """Read what operators set again, swap the snapshot, and keep it for a start without the database.

        One after another: what was read earlier is never put in force after what was read later.
        """
        async with self._refreshing:
            stored = Stored(
                [price for price in await self._catalog.prices.list_prices() if price.source == OPERATOR_SOURCE],
                await self._catalog.supply.list_providers(),
                await self._catalog.supply.list_routes(),
            )
            await self._use(stored)
            self._keep(stored)

    def _keep(self, stored: Stored) -> None:
        """Write down what was read. A disk that takes nothing spoils a start without the database, and nothing else."""
        text = msgspec.json.encode(stored)
        try:
            if not self._kept.exists() or self._kept.read_bytes() != text:
                temporary = self._kept.with_name(f"{self._kept.name}.{os.getpid()}")
                temporary.write_bytes(text)
                temporary.replace(self._kept)
        except OSError as error:
            get_logger().warning(Event.STORE_FAILED, detail=f"{KEPT_FILE} was not written: {error.strerror}")

    def hear(self, payload: object) -> None:
        """Take in a notice that something changed: the loop reads it at once, and looks at new providers."""
        del payload
        self._news.set()

    async def set_price(self, order: PriceRequest, *, author: Author = COMMAND_LINE) -> Price:
        """Set an operator's price, from now or from the moment on that it names; raises Malformed."""
        price = plan_price(order, self._clock.now_ms(), await self._catalog.prices.list_prices())
        await self._catalog.write_price(price, author=author)
        await self.refresh()
        return price

    def list_providers(self) -> list[ProviderView]:
        """Return the providers that are on, in the order of preference, and those set here that cannot work."""
        stored = {row.name: row for row in self._stored.providers}
        on = self.routes.snapshot.providers
        views = [self._view(active, stored.get(active.name)) for active in on]
        names = {active.name for active in on}
        return views + [
            _view_of_refused(row, self._refused.get(row.name, "")) for row in stored.values() if row.name not in names
        ]

    async def probe(self, probe: Probe) -> None:
        """Ask every provider whether it is there and what it serves; of one that changed meanwhile nothing is noted."""
        before = {name: status.models for name, status in self._statuses.items()}
        asked = self.routes.snapshot.providers
        found = {status.name: status for status in await probe.check_all(asked, self._statuses)}
        in_force = {active.name: active for active in self.routes.snapshot.providers}
        for active in asked:
            status = found.get(active.name)
            if status is None or in_force.get(active.name) != active:
                continue
            known = self._statuses.get(status.name)
            # A provider that is away for a moment keeps the models that it was known to serve.
            models = status.models or (known.models if known is not None else ())
            self._statuses[status.name] = replace(status, models=models)
        if {name: status.models for name, status in self._statuses.items()} != before:
            self.routes.replace(self._build())

    async def run(self, probe: Probe, every_seconds: float) -> None:
        """Look for what operators changed and probe providers, over and over, and at once when there is news.

        What is read comes first: no provider can keep the loop, begun again, from hearing of its own removal.
        """
        while True:
            self._news.clear()
            try:
                await self.refresh()
            except StoreDown as error:
                get_logger().warning(Event.STORE_FAILED, detail=error.detail)
            await self.probe(probe)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), every_seconds)

    async def _use(self, stored: Stored) -> None:
        """Put in force what operators set, in one step. What cannot work is left out, and said."""
        settings, refused = self._read(stored.providers)
        book = await self._price(settings, stored.prices)
        before = {active.name: active for active in self.routes.snapshot.providers}
        self._stored, self._settings, self._refused, self._book = stored, settings, refused, book
        self.routes.replace(self._build())
        now = {active.name: active for active in self.routes.snapshot.providers}
        changed = {name for name in before | now if before.get(name) != now.get(name)}
        for name in changed:
            # What another address served says nothing about this one.
            self._statuses.pop(name, None)
        if changed:
            self._on_changed(changed)

    def _read(self, rows: Iterable[StoredProvider]) -> tuple[list[ProviderSetting], dict[str, str]]:
        """Return the settings in force, an operator's in place of the environment's, and why others cannot be."""
        settings = {setting.name: setting for setting in self._given}
        refused: dict[str, str] = {}
        for row in rows:
            setting = setting_of(row, self._vault, is_public_only=self.is_public_only)
            reason = _reason_against(setting, row)
            if reason:
                refused[row.name] = reason
            else:
                settings[row.name] = setting
        for name, reason in refused.items():
            if self._refused.get(name) != reason:
                get_logger().error(Event.PROVIDER_REFUSED, provider=name, detail=reason)
        return list(settings.values()), refused

    async def _price(self, settings: Iterable[ProviderSetting], prices: list[Price]) -> PriceBook:
        rows = [found.provider for setting in settings if (found := activate(setting)) is not None]
        if not _price_sources(rows) <= self._priced:
            # Off the loop: the data of genai-prices takes a while to import.
            self._defaults = await asyncio.to_thread(load_default_prices, rows)
            self._priced = _price_sources(rows)
            with suppress(StoreDown):
                await self._write_defaults()
        return self._defaults.overlaid(prices)

    async def _write_defaults(self) -> None:
        known = {price.id for price in await self._catalog.prices.list_prices()}
        await self._catalog.prices.insert_prices([price for price in self._defaults if price.id not in known])

    def _build(self) -> Snapshot:
        return build_snapshot(
            self._settings,
            is_simulator_on=self.has_simulator,
            prices=self._book,
            discovered={name: status.models for name, status in self._statuses.items()},
            built_at_ms=self._clock.now_ms(),
            wishes=Wishes(
                routes=tuple(_route_of(row) for row in self._stored.routes),
                replaces_retired=self._process.retired_models == "replace",
                adjust_timeouts=self._adjust_timeouts,
            ),
        )

    def _adjust_timeouts(self, timeouts: Timeouts) -> Timeouts:
        settings = self._process
        return Timeouts(
            connect_seconds=settings.connect_timeout_seconds or timeouts.connect_seconds,
            first_token_seconds=settings.first_token_timeout_seconds or timeouts.first_token_seconds,
            idle_seconds=settings.idle_timeout_seconds or timeouts.idle_seconds,
            total_seconds=settings.total_timeout_seconds or timeouts.total_seconds,
        )

    def _view(self, active: ActiveProvider, row: StoredProvider | None) -> ProviderView:
        status = self._statuses.get(active.name)
        is_ours = any(setting.name == active.name for setting in self._given)
        return ProviderView(
            id=active.name,
            name=active.name,
            kind=active.provider.row_name,
            source="operator" if row is not None else "environment" if is_ours else "built-in",
            is_on=True,
            base_url=active.base_url,
            region=row.fields.get("region") if row is not None else None,
            workspace=row.fields.get("workspace") if row is not None else None,
            has_credential=active.credential is not None,
            models=list(active.models),
            shows_all_output=active.provider.shows_all_output,
            forwards_trace=active.provider.forwards_trace,
            is_reachable=status.is_reachable if status is not None else None,
            detail=status.detail if status is not None else "",
            updated_at=row.updated_at_ms // 1000 if row is not None else None,
        )


def _ignore(names: Collection[str]) -> None:
    """Tell nobody: nobody is there yet while the process starts."""


def provider_settings(environment: Environment) -> list[ProviderSetting]:
    """Collect the providers that the environment names; a key of ours is never taken for a credential."""
    names = [name for name in PROVIDERS if name != SIMULATOR]
    names += [alias for row in PROVIDERS.values() for alias in row.aliases]
    names += [name for name in environment.named_providers() if name not in names]
    found = []
    for name in names:
        row = PROVIDERS.get(name)
        values = environment.provider(
            name, row.credential_names if row is not None else (), row.base_url_names if row is not None else ()
        )
        credential = values.credential
        if credential is not None and looks_like_ours(credential):
            credential = None
        if row is not None and row.base_url is values.base_url is None:
            credential = None  # AZURE_OPENAI_API_KEY may be in a shell for another program, and says no address
        found.append(
            ProviderSetting(
                name=name,
                kind=values.kind,
                base_url=values.base_url,
                region=values.region,
                workspace=values.workspace,
                credential=credential,
                models=values.models,
                shows_all_output=values.shows_all_output,
                forwards_trace=values.forwards_trace,
                tool_call_format=values.tool_call_format,
                tools=values.tools,
            )
        )
    return found


def setting_of(row: StoredProvider, vault: Vault, *, is_public_only: bool) -> ProviderSetting:
    """Return what an operator stored as the setting of a provider, its credential opened where it can be."""
    sealed = row.sealed_credential
    fields = row.fields
    return ProviderSetting(
        name=row.name,
        kind=fields.get("kind"),
        base_url=fields.get("base_url"),
        region=fields.get("region"),
        workspace=fields.get("workspace"),
        credential=vault.open(row.place, sealed) if sealed is not None else None,
        models=tuple(fields.get("models") or ()),
        shows_all_output=bool(fields.get("shows_all_output")),
        forwards_trace=bool(fields.get("forwards_trace")),
        is_public_only=is_public_only,
        tool_call_format=fields.get("tool_call_format") or "",
        tools=fields.get("tools") or "send",
    )


def _reason_against(setting: ProviderSetting, row: StoredProvider) -> str:
    """Say why a stored provider cannot be switched on here; empty: it can."""
    if row.sealed_credential is not None and setting.credential is None:
        return "its credential was sealed under another pepper or for another address: give it again"
    if setting.credential is not None and looks_like_ours(setting.credential):
        return "its credential is a key of Meterhouse's own: give it the provider's"
    try:
        return "" if activate(setting) is not None else "it has neither a credential nor an address"
    except ValueError as error:
        return str(error)


def _view_of_refused(row: StoredProvider, reason: str) -> ProviderView:
    return ProviderView(
        id=row.name,
        name=row.name,
        kind=row.fields.get("kind"),
        source="operator",
        is_on=False,
        base_url=row.fields.get("base_url"),
        region=row.fields.get("region"),
        workspace=row.fields.get("workspace"),
        has_credential=row.sealed_credential is not None,
        models=list(row.fields.get("models") or ()),
        is_reachable=None,
        detail=reason,
        updated_at=row.updated_at_ms // 1000,
    )


def _route_of(row: StoredRoute) -> RouteSetting:
    return RouteSetting(model=row.model, targets=tuple(msgspec.convert(target, RouteTarget) for target in row.targets))


def _price_sources(rows: list[Provider]) -> set[tuple[str, str]]:
    return {(row.name, row.price_source) for row in rows if row.price_source is not None}
