"""Changes of what there is to sell, for the administration: prices, providers, routes.

Invariant: a change is in the database before it is in force; then this process has it at once, the others when they
hear of it (a notice over Redis, or their next look, every ``METERHOUSE_PROBE_SECONDS``). What could not be put in force
is not written. Requests that are under way keep the route that they began with. Not here: who may do this.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from meterhouse.admin.schemas import PriceRequest
from meterhouse.admin.supply import ProviderRequest, ProviderView, RouteRequest
from meterhouse.audit import Action, Change, Fields
from meterhouse.db.catalog import Catalog
from meterhouse.db.supply import StoredProvider, StoredRoute
from meterhouse.errors import Malformed, NotFound
from meterhouse.identity import COMMAND_LINE, Author
from meterhouse.keys.secret import looks_like_ours
from meterhouse.money import Price
from meterhouse.providers.activation import activate, is_provider_name
from meterhouse.providers.routes import is_model_name
from meterhouse.providers.vault import Vault
from meterhouse.supply import Supply, setting_of
from meterhouse.telemetry.logs import Event, get_logger

NOTICE = "supply"
"""The kind of the notice that is published; whoever hears it reads the database again."""
PROVIDERS, ROUTES = "the providers", "the routes"
"""Whose changes wait for each other, so that the audit log has what was there before each."""
MOST_PROVIDERS = 200
MOST_ROUTES = 2_000

Publish = Callable[[str, object], Awaitable[object]]


class SupplyChanges:
    """Implements what the administration asks for. Every method raises StoreDown when there is no database."""

    def __init__(self, supply: Supply, catalog: Catalog, vault: Vault, publish: Publish | None) -> None:
        self._supply = supply
        self._catalog = catalog
        self._vault = vault
        self._publish = publish

    async def set_price(self, order: PriceRequest, *, author: Author = COMMAND_LINE) -> Price:
        """Set an operator's price, from now or from the moment on that it names; raises Malformed."""
        price = await self._supply.set_price(order, author=author)
        await self._tell("price", f"{order.provider}/{order.model}")
        return price

    def list_providers(self) -> list[ProviderView]:
        """Return the providers that are on, in the order of preference, and those set here that cannot work."""
        return self._supply.list_providers()

    async def set_provider(self, name: str, order: ProviderRequest, *, author: Author = COMMAND_LINE) -> ProviderView:
        """Switch a provider on, or change it; a credential that is not given stays what it was.

        Raises:
            Malformed: It cannot work so.
            NotFound: Someone else removed it at the same time.
        """
        before: list[StoredProvider] = []

        def change(known: Mapping[str, StoredProvider]) -> StoredProvider:
            before.extend(row for row in known.values() if row.name == name)
            return self._changed(name, order, known)

        async with self._catalog.changing(PROVIDERS) as catalog:
            written = await catalog.supply.put_provider(change)
            old = _shown(before[0]) if before else None
            await catalog.audit.write(author, Change(Action.PROVIDER_UPDATED, name, before=old, after=_shown(written)))
        await self._supply.refresh()
        await self._tell("provider", name)
        view = next((view for view in self._supply.list_providers() if view.name == name), None)
        if view is None:
            raise NotFound(f"The provider '{name}' was removed by someone else at the same time.", param="name")
        return view

    async def remove_provider(self, name: str, *, author: Author = COMMAND_LINE) -> None:
        """Remove a provider that was set here; one of the environment then shows again.

        Raises:
            NotFound: None of this name was set here.
        """
        async with self._catalog.changing(PROVIDERS) as catalog:
            known = {stored.name: stored for stored in await catalog.supply.list_providers()}
            if not await catalog.supply.remove_provider(name):
                raise NotFound(f"No provider '{name[:64]}' was set through the API.", param="name")
            await catalog.audit.write(author, Change(Action.PROVIDER_DELETED, name, before=_shown(known[name])))
        await self._supply.refresh()
        await self._tell("provider", name)

    async def set_route(self, model: str, order: RouteRequest, *, author: Author = COMMAND_LINE) -> None:
        """Write down who answers a model's name.

        Raises:
            Malformed: The name is none, or a provider is not on.
        """
        if not is_model_name(model):
            raise Malformed("This cannot be the name of a model.", param="model")
        on = {view.name for view in self._supply.list_providers() if view.is_on}
        for index, target in enumerate(order.deployments):
            if target.is_on and target.provider not in on:
                text = f"The provider '{target.provider[:64]}' is not on. GET /admin/providers lists those that are."
                raise Malformed(text, param=f"deployments[{index}].provider")
            if not is_model_name(target.upstream_model):
                raise Malformed("This cannot be the name of a model.", param=f"deployments[{index}].upstream_model")
        new = StoredRoute(model, [target.model_dump() for target in order.deployments])
        async with self._catalog.changing(ROUTES) as catalog:
            known = {stored.model: stored for stored in await catalog.supply.list_routes()}
            if model not in known and len(known) >= MOST_ROUTES:
                raise Malformed(f"There can be at most {MOST_ROUTES} routes.", param="model")
            await catalog.supply.put_route(new)
            old = _shown_route(known[model]) if model in known else None
            change = Change(Action.ROUTE_UPDATED, model, before=old, after=_shown_route(new))
            await catalog.audit.write(author, change)
        await self._supply.refresh()
        await self._tell("route", model)

    async def remove_route(self, model: str, *, author: Author = COMMAND_LINE) -> None:
        """Remove a route that was written down; what the providers serve by themselves then shows again.

        Raises:
            NotFound: None of this name was written down.
        """
        async with self._catalog.changing(ROUTES) as catalog:
            known = {stored.model: stored for stored in await catalog.supply.list_routes()}
            if not await catalog.supply.remove_route(model):
                raise NotFound(f"No route '{model[:64]}' was set through the API.", param="model")
            await catalog.audit.write(author, Change(Action.ROUTE_DELETED, model, before=_shown_route(known[model])))
        await self._supply.refresh()
        await self._tell("route", model)

    def _changed(self, name: str, order: ProviderRequest, known: Mapping[str, StoredProvider]) -> StoredProvider:
        """Return a provider as it is to be written, over what is known now."""
        if name not in known and len(known) >= MOST_PROVIDERS:
            raise Malformed(f"There can be at most {MOST_PROVIDERS} providers.", param="name")
        new = StoredProvider(name, _fields_of(order), self._sealed(name, order, known.get(name)))
        self._check(new)
        return new

    def _sealed(self, name: str, order: ProviderRequest, known: StoredProvider | None) -> bytes | None:
        place = StoredProvider(name, _fields_of(order)).place
        if order.credential is not None:
            credential = order.credential.get_secret_value()
            if looks_like_ours(credential):
                text = "This is a key of Meterhouse's own, and no provider's credential."
                raise Malformed(text, param="credential", code="invalid_value")
            return self._vault.seal(place, credential)
        if known is None or known.sealed_credential is None:
            return None
        # A credential that nobody can read must not be sent elsewhere by whoever cannot read it.
        if known.place != place:
            raise Malformed(
                "The address changes, so the credential must be given again.",
                param="credential",
                code="missing_required_parameter",
            )
        return known.sealed_credential

    def _check(self, new: StoredProvider) -> None:
        """Refuse what cannot be switched on, before it is written."""
        if not is_provider_name(new.name):
            text = "A provider's name has lower-case letters, digits, hyphens and underscores."
            raise Malformed(text, param="name")
        setting = setting_of(new, self._vault, is_public_only=self._supply.is_public_only)
        try:
            active = activate(setting)
        except ValueError as error:
            raise Malformed(f"{error}.") from None
        if active is None:
            raise Malformed("A provider needs a credential or a base URL.", param="credential")

    async def _tell(self, what: str, name: str) -> None:
        get_logger().info(Event.SUPPLY_CHANGED, changed=what, name=name)
        if self._publish is not None:
            await self._publish(NOTICE, {"changed": what})


def _shown(stored: StoredProvider) -> Fields:
    """Show a provider in the audit log: whether it has a credential, and nothing of it."""
    return {**stored.fields, "has_credential": stored.sealed_credential is not None}


def _shown_route(stored: StoredRoute) -> Fields:
    return {"deployments": stored.targets}


def _fields_of(order: ProviderRequest) -> dict[str, Any]:
    return order.model_dump(exclude={"credential"})
