"""What there is to sell: which providers are on, what they serve and what it costs, as one snapshot swapped whole.

Providers come from the environment, prices from the database over the defaults, models from the rows and, for local
servers, from the servers themselves, which are asked again and again whether they are there.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from meterhouse.admin.pricing import components_from_usd
from meterhouse.admin.schemas import PriceRequest
from meterhouse.db.prices import PriceStore
from meterhouse.errors import StoreDown
from meterhouse.keys.secret import looks_like_ours
from meterhouse.metering import Clock
from meterhouse.money import Meterable, Price
from meterhouse.providers.activation import activate
from meterhouse.providers.catalog import PROVIDERS, SIMULATOR
from meterhouse.providers.prices import load_default_prices, make_price
from meterhouse.providers.probe import Probe
from meterhouse.providers.provider import ProviderSetting, ProviderStatus, Timeouts
from meterhouse.providers.routes import Routes, Snapshot, Wishes, build_snapshot
from meterhouse.settings import Environment, Settings, SettingsError
from meterhouse.telemetry.logs import Event, get_logger

OPERATOR_SOURCE = "operator"
PRICES_FILE = "prices.json"
"""In the data folder: the operator's prices as they were read last."""


class Supply:
    """Keeps ``routes`` up to date."""

    def __init__(
        self, environment: Environment, settings: Settings, prices: PriceStore, clock: Clock, *, has_simulator: bool
    ) -> None:
        """Read the providers.

        Raises:
            SettingsError: A provider's settings cannot work.
        """
        self._settings = provider_settings(environment)
        self._process = settings
        self._prices = prices
        self._clock = clock
        self._has_simulator = has_simulator
        self._kept = settings.data / PRICES_FILE
        try:
            rows = [found.provider for setting in self._settings if (found := activate(setting)) is not None]
        except ValueError as error:
            raise SettingsError(f"{error}.") from None
        self._defaults = load_default_prices(rows)
        self._book = self._defaults
        self._statuses: dict[str, ProviderStatus] = {}
        self.routes = Routes(self._build())

    @property
    def statuses(self) -> Mapping[str, ProviderStatus]:
        """What the last probe of each provider said."""
        return self._statuses

    async def open(self) -> None:
        """Write the default prices that are new, so that every price in the ledger can be looked up; read all.

        While the database is away, the operator's prices are those that this host knew last.

        Raises:
            StoreDown: The database is away, and this host has never read its prices.
        """
        try:
            known = {price.id for price in await self._prices.list_prices()}
            await self._prices.insert_prices([price for price in self._defaults if price.id not in known])
            await self.refresh_prices()
        except StoreDown as error:
            if not self._kept.exists():
                raise
            get_logger().warning(Event.STORE_FAILED, detail=error.detail)
            self._use(msgspec.json.decode(self._kept.read_bytes(), type=list[Price]))

    async def refresh_prices(self) -> None:
        """Read the operator's prices again, swap the snapshot, and keep them for a start without the database."""
        stored = [price for price in await self._prices.list_prices() if price.source == OPERATOR_SOURCE]
        self._use(stored)
        text = msgspec.json.encode(stored)
        if not self._kept.exists() or self._kept.read_bytes() != text:
            temporary = self._kept.with_name(f"{self._kept.name}.{os.getpid()}")
            temporary.write_bytes(text)
            temporary.replace(self._kept)

    def _use(self, stored: list[Price]) -> None:
        self._book = self._defaults.overlaid(stored)
        self.routes.replace(self._build())

    async def set_price(self, order: PriceRequest) -> Price:
        """Set an operator's price from now on."""
        price = operator_price(order, self._clock.now_ms())
        await self._prices.insert_prices([price])
        await self.refresh_prices()
        return price

    async def probe(self, probe: Probe) -> None:
        """Ask every provider whether it is there and what it serves."""
        before = {name: status.models for name, status in self._statuses.items()}
        for status in await probe.check_all(self.routes.snapshot.providers):
            known = self._statuses.get(status.name)
            # A provider that is away for a moment keeps the models that it was known to serve.
            models = status.models or (known.models if known is not None else ())
            self._statuses[status.name] = replace(status, models=models)
        if {name: status.models for name, status in self._statuses.items()} != before:
            self.routes.replace(self._build())

    async def run(self, probe: Probe, every_seconds: float) -> None:
        """Probe providers and look for new prices, over and over."""
        while True:
            await self.probe(probe)
            await asyncio.sleep(every_seconds)
            try:
                await self.refresh_prices()
            except StoreDown as error:
                get_logger().warning(Event.STORE_FAILED, detail=error.detail)

    def _build(self) -> Snapshot:
        return build_snapshot(
            self._settings,
            is_simulator_on=self._has_simulator,
            prices=self._book,
            discovered={name: status.models for name, status in self._statuses.items()},
            built_at_ms=self._clock.now_ms(),
            wishes=Wishes(
                replaces_retired=self._process.retired_models == "replace", adjust_timeouts=self._adjust_timeouts
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


def operator_price(order: PriceRequest, at_ms: int) -> Price:
    """Make the price that an operator asks for, from a moment on; raises Malformed for an amount that is none."""
    components = components_from_usd(
        {
            Meterable.INPUT: order.input_usd,
            Meterable.OUTPUT: order.output_usd,
            Meterable.CACHED_INPUT: order.cached_input_usd,
            Meterable.CACHE_WRITE: order.cache_write_usd,
            Meterable.REQUEST: order.request_usd,
        }
    )
    return make_price(order.provider, order.model, components, effective_from_ms=at_ms, source=OPERATOR_SOURCE)


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
            )
        )
    return found
