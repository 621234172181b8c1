"""The commands of providers and routes: who answers which model, and by what right.

They do what the administration API does, through the same service. Servers with Redis take a change up at once, the
others at their next look (``METERHOUSE_PROBE_SECONDS``). A credential is never an argument, which every user of the
machine could read.
"""

import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meterhouse.command import (
    DEFAULT_ENV_FILE,
    AsJson,
    Data,
    EnvFile,
    author,
    read_body,
    read_settings,
    run_with_stores,
)
from meterhouse.settings import SettingsError
from meterhouse.stores import Stores

if TYPE_CHECKING:
    from meterhouse.supply import Supply
    from meterhouse.supply_changes import SupplyChanges

providers_app = typer.Typer(help="Switch providers on and off, and list them.", no_args_is_help=True)
routes_app = typer.Typer(help="Write down who answers a model, and list it.", no_args_is_help=True)

MAX_CREDENTIAL_BYTES = 8_192
_TARGET = re.compile(
    r"(?P<provider>[^/\s]+)/(?P<upstream_model>\S+)"
    r"(?P<more>(?:\s+(?:(?:order|weight)=\d{1,6}|is_on=(?:true|false)))*)"
)

Work = Callable[[Stores, "Supply", "SupplyChanges"], Awaitable[None]]


@providers_app.command("set")
def set_provider(
    name: Annotated[str, typer.Argument(help="A provider's name, or one of your own")],
    kind: Annotated[str | None, typer.Option(help="Which provider it behaves like [default: that of its name]")] = None,
    base_url: Annotated[str | None, typer.Option(help="Where it is")] = None,
    region: Annotated[str | None, typer.Option(help="One of its regions, in place of an address")] = None,
    workspace: Annotated[str | None, typer.Option(help="Its workspace, where it has such")] = None,
    credential_file: Annotated[
        Path | None, typer.Option(help="File with the API key; - reads it from standard input")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model in place of its own list, or name=upstream-model; repeat it")
    ] = None,
    shows_all_output: Annotated[
        bool, typer.Option("--shows-all-output", help="You know that it sends every token that it counts")
    ] = False,
    forwards_trace: Annotated[
        bool, typer.Option("--forwards-trace", help="Its requests carry the trace (traceparent)")
    ] = False,
    tool_call_format: Annotated[
        str, typer.Option(help="How its models write tool calls into their text, for example hermes,glm-4-9b=glm4")
    ] = "",
    tools: Annotated[str, typer.Option(help="What becomes of tools: send, withhold or prompt")] = "send",
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Switch a provider on, over the one of this name in the environment; its credential is sealed.

    A credential that is not given stays what it was; all else is what is given now.

    Example: meterhouse providers set openai --credential-file - < key.txt
    """
    from meterhouse.admin.supply import ProviderRequest  # noqa: PLC0415 - as in dev

    values: dict[str, object] = {
        "kind": kind,
        "base_url": base_url,
        "region": region,
        "workspace": workspace,
        "credential": None if credential_file is None else _read_credential(credential_file),
        "models": model or [],
        "shows_all_output": shows_all_output,
        "forwards_trace": forwards_trace,
        "tool_call_format": tool_call_format,
        "tools": tools,
    }
    order = read_body(ProviderRequest, {name: value for name, value in values.items() if value is not None})

    async def change(_: Stores, __: "Supply", changes: "SupplyChanges") -> None:
        view = await changes.set_provider(name, order, author=author())
        print(f"{view.name} is {'on' if view.is_on else f'off: {view.detail}'}.")

    _with_supply(data, env_file, change)


@providers_app.command("remove")
def remove_provider(name: str, data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE) -> None:
    """Remove a provider that was set here; one of the environment then shows again."""

    async def change(_: Stores, __: "Supply", changes: "SupplyChanges") -> None:
        await changes.remove_provider(name, author=author())
        print(f"{name} is removed.")

    _with_supply(data, env_file, change)


@providers_app.command("list")
def list_providers(as_json: AsJson = False, data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE) -> None:
    """List providers that are on for this environment, and those that were set but cannot work; no credentials."""
    from meterhouse.tables_rows import Rows  # noqa: PLC0415 - as in dev

    async def show(_: Stores, supply: "Supply", __: "SupplyChanges") -> None:
        rows = Rows("name", "kind", "source", "is_on", "has_credential", "base_url", "detail", as_json=as_json)
        rows.extend(view.model_dump(exclude={"object", "id"}) for view in supply.list_providers())
        rows.print()

    _with_supply(data, env_file, show)


@routes_app.command("set")
def set_route(
    model: Annotated[str, typer.Argument(help="The name that clients ask for")],
    to: Annotated[
        list[str],
        typer.Option(help="provider/upstream-model, with 'order=1', 'weight=3', 'is_on=false' behind it; repeat it"),
    ],
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Write down who answers a model's name: a lower order first, among equals the least busy for its weight.

    Example: meterhouse routes set fast --to "groq/llama-4 weight=3" --to "openai/gpt-5-mini order=1"
    """
    from meterhouse.admin.supply import RouteRequest  # noqa: PLC0415 - as in dev

    order = read_body(RouteRequest, {"deployments": [_read_target(text) for text in to]})

    async def change(_: Stores, __: "Supply", changes: "SupplyChanges") -> None:
        await changes.set_route(model, order, author=author())
        print(f"{model} is answered by {len(order.deployments)} deployments.")

    _with_supply(data, env_file, change)


@routes_app.command("remove")
def remove_route(model: str, data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE) -> None:
    """Remove a route that was written down; what the providers serve by themselves then shows again."""

    async def change(_: Stores, __: "Supply", changes: "SupplyChanges") -> None:
        await changes.remove_route(model, author=author())
        print(f"The route of {model} is removed.")

    _with_supply(data, env_file, change)


@routes_app.command("list")
def list_routes(
    model: Annotated[str | None, typer.Option(help="Only this one")] = None,
    as_json: AsJson = False,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """List who answers each model, in the order of preference, without asking any provider what it serves."""
    from meterhouse.tables_rows import Rows  # noqa: PLC0415 - as in dev

    async def show(stores: Stores, supply: "Supply", _: "SupplyChanges") -> None:
        rows = Rows("model", "provider", "upstream_model", "order", "weight", "is_on", "price", as_json=as_json)
        snapshot = supply.routes.snapshot
        for name, route in snapshot.list_routes(stores.clock.now_ms()):
            for one in route.deployments if model in {None, name} else ():
                rows.add(
                    {
                        "model": name,
                        "provider": one.provider.name,
                        "upstream_model": one.upstream_model,
                        "order": one.order,
                        "weight": one.weight,
                        "is_on": True,
                        "price": None if one.price is None else one.price.id,
                    }
                )
        for name, targets in snapshot.switched_off.items():
            for target in targets if model in {None, name} else ():
                rows.add({"model": name, "price": None, **asdict(target)})
        rows.print()

    _with_supply(data, env_file, show)


def _with_supply(data: Path | None, env_file: Path, work: Work) -> None:
    from meterhouse.providers.vault import Vault  # noqa: PLC0415 - as in dev
    from meterhouse.supply import Supply  # noqa: PLC0415
    from meterhouse.supply_changes import SupplyChanges  # noqa: PLC0415
    from meterhouse.telemetry.logs import configure  # noqa: PLC0415

    settings, environment = read_settings(data, env_file)
    # What is logged on the way is for a server's log; a command says itself what it did.
    configure(format="console", level="error", stream=sys.stderr.buffer)

    async def run(stores: Stores) -> None:
        vault = Vault(stores.peppers)
        supply = Supply(environment, settings, stores.catalog, stores.clock, vault)
        await supply.open(has_simulator=bool(settings.simulator))
        publish = None if stores.notices is None else stores.notices.publish
        await work(stores, supply, SupplyChanges(supply, stores.catalog, vault, publish))

    run_with_stores(settings, run)


def _read_credential(path: Path) -> str:
    try:
        with sys.stdin.buffer if str(path) == "-" else path.open("rb") as file:
            text = file.read(MAX_CREDENTIAL_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--credential-file: {path} cannot be read: {error}.") from None
    if not text:
        raise SettingsError(f"--credential-file: {path} is empty.")
    return text


def _read_target(text: str) -> dict[str, Any]:
    found = _TARGET.fullmatch(text.strip())
    if found is None:
        raise SettingsError(f"--to: '{text}' is none. Write provider/model, or 'provider/model order=1 weight=3'.")
    words = dict(part.split("=") for part in found["more"].split())
    return {"provider": found["provider"], "upstream_model": found["upstream_model"], **words}
