"""The command ``meterhouse``. Commands that need no server open the database themselves.

A mistake of the operator's is one line that says what to change, and exit code 2.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

# typer carries its own click, and names what it raises nowhere else.
from typer._click.exceptions import ClickException, NoArgsIsHelpError

from meterhouse import __version__
from meterhouse.cli_billing import credits_app, invoices_app, prices_app
from meterhouse.cli_console import console
from meterhouse.cli_ledger import ledger_app
from meterhouse.cli_owners import organizations_app, projects_app
from meterhouse.cli_reports import audit, costs, usage
from meterhouse.cli_supply import providers_app, routes_app
from meterhouse.cli_tail import tail
from meterhouse.command import DEFAULT_ENV_FILE, AsJson, Data, EnvFile, author, read_settings, run_with_stores
from meterhouse.errors import GatewayError, StoreDown
from meterhouse.metering import Scope
from meterhouse.settings import SettingsError
from meterhouse.stores import Stores, write_secret

Result = TypeVar("Result")

app = typer.Typer(
    name="meterhouse",
    help="An API platform in front of language models: keys, quotas, streaming and a ledger that can be billed from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
keys_app = typer.Typer(help="Issue, list, rotate and revoke keys. No server has to run.", no_args_is_help=True)
limits_app = typer.Typer(help="Set and show limits of organizations, projects and keys.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(limits_app, name="limits")
app.add_typer(prices_app, name="prices")
app.add_typer(credits_app, name="credits")
app.add_typer(invoices_app, name="invoice")
app.add_typer(ledger_app, name="ledger")
app.command()(console)
app.add_typer(organizations_app, name="organizations")
app.add_typer(projects_app, name="projects")
app.add_typer(providers_app, name="providers")
app.add_typer(routes_app, name="routes")
app.command()(usage)
app.command()(costs)
app.command()(audit)
app.command()(tail)

CHECKOUT = Path(__file__).resolve().parents[2]
LIMITS_HELP = "For example: 'requests 600/minute; tokens 200000/minute; concurrent 20; spend 25 USD/month'"


def main() -> None:
    """Run the command line."""
    try:
        status = app(standalone_mode=False)
    except (SettingsError, GatewayError) as error:
        raise _complain(error.message if isinstance(error, GatewayError) else str(error)) from None
    except NoArgsIsHelpError as error:
        error.show()
        raise SystemExit(2) from None
    except ClickException as error:
        raise _complain(error.format_message()) from None
    if isinstance(status, int) and status:
        raise SystemExit(status)


def _complain(message: str) -> SystemExit:
    """Say in one line what to change."""
    print(f"meterhouse: {' '.join(message.split())}", file=sys.stderr)
    return SystemExit(2)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def dev(
    port: Annotated[int, typer.Option(help="Port to listen on")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
    console_port: Annotated[
        int | None, typer.Option(help="Start the console beside it, on the first free port from this one on")
    ] = None,
) -> None:
    """Run everything in one process: SQLite, a meter in memory, the simulator, and every provider with a credential."""
    from meterhouse.dev import run_dev  # noqa: PLC0415 - the other commands start twice as fast without the server

    settings, environment = read_settings(data, env_file)
    _run_loop(lambda: run_dev(settings, environment, host, port, console_port=console_port))


@app.command()
def serve(
    bind: Annotated[str, typer.Option(help="HOST:PORT or unix:PATH")] = "127.0.0.1:8000",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes [default: one for each CPU; 1 without METERHOUSE_REDIS_URL]")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the journals [default: .meterhouse]")] = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Serve with several processes, on PostgreSQL and Redis. SIGTERM drains; SIGHUP takes new settings up."""
    from meterhouse.serve import Address, run_serve  # noqa: PLC0415 - as in dev

    run_serve(Address.parse(bind), workers, lambda: read_settings(data, env_file))


@app.command()
def migrate(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 1 when it is behind")] = False,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Bring the schema in PostgreSQL up to date, while the server runs or not."""
    from meterhouse.bootstrap import database_url, read_schema  # noqa: PLC0415 - as in dev
    from meterhouse.bootstrap import migrate as run_migrate  # noqa: PLC0415

    settings, _ = read_settings(None, env_file)
    if not check:
        print(asyncio.run(run_migrate(settings)))
        return
    try:
        print(f"The schema is at {asyncio.run(read_schema(database_url(settings)))}.")
    except StoreDown as error:
        if error.detail:
            raise
        print(error.message)
        raise typer.Exit(1) from None


@app.command()
def bootstrap(
    env_file_out: Annotated[
        Path | None, typer.Option(help="New file for the keys, as NAME=value lines that only its owner can read")
    ] = None,
    base_url: Annotated[
        str, typer.Option(help="Where clients will reach the server, for that file")
    ] = "http://127.0.0.1:8000",
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Make the first organization, project, key and admin key, and print the keys, this once.

    As everywhere, --env-file is read; --env-file-out is written.
    """
    from meterhouse.bootstrap import bootstrap as make_first_keys  # noqa: PLC0415 - as in dev
    from meterhouse.bootstrap import check_writable  # noqa: PLC0415

    async def make(stores: Stores) -> None:
        if env_file_out is not None:
            check_writable(env_file_out)
        made = await make_first_keys(stores, author())
        if env_file_out is not None:
            write_secret(env_file_out, made.environment_text(base_url))
        print(f"organization: {made.organization_id}\nproject:      {made.project_id}")
        print(f"key:          {made.key}\nadmin key:    {made.admin_key}", flush=True)
        print("The keys are shown this once. Keep them where secrets are kept.", file=sys.stderr)

    _with_stores(data, env_file, make)


@app.command()
def check(
    nginx: Annotated[Path | None, typer.Option(help="The nginx.conf in front of it")] = None,
    certificate: Annotated[Path | None, typer.Option(help="A certificate that the nginx.conf does not name")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of a host [default: as many as serve would start]")
    ] = None,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Print the settings in force, secrets masked, and look whether all that a deployment needs is in order.

    Nothing is changed. Exits with 2 when something failed.
    """
    from meterhouse.checkup.run import check_deployment, print_findings  # noqa: PLC0415 - as in dev
    from meterhouse.tables import print_settings  # noqa: PLC0415

    settings, _ = read_settings(data, env_file)
    print_settings(settings)
    if status := print_findings(check_deployment(settings, workers, nginx, certificate)):
        raise typer.Exit(status)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Measure speed on this machine; the same as infra/bench of the checkout, whose --help lists the options."""
    script = CHECKOUT / "infra" / "bench"
    if not script.is_file():
        raise SettingsError(
            f"The benchmark is not in the package: it needs the checkout of Meterhouse, and {script} is not there. "
            "Install from a checkout, as infra/run does, or run its infra/bench."
        )
    os.execv(script, [str(script), *context.args])  # noqa: S606 - our own script, and no shell


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="What the key is for")],
    project: Annotated[str | None, typer.Option(help="Project id [default: the first project]")] = None,
    expires_in_days: Annotated[float | None, typer.Option(min=0.0001, max=36_500, help="Days until it expires")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model that it may use; repeat it [default: all]")] = None,
    limits: Annotated[str, typer.Option(help=LIMITS_HELP)] = "",
    ip_range: Annotated[list[str] | None, typer.Option(help="A network that it may come from; repeat it")] = None,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Issue a key and print it, this once."""
    from meterhouse.bootstrap import find_first_project  # noqa: PLC0415 - as in dev
    from meterhouse.keys.service import KeyOrder  # noqa: PLC0415
    from meterhouse.limits.limit import parse_limits  # noqa: PLC0415

    async def create(stores: Stores) -> None:
        order = KeyOrder(
            name=name,
            project_id=project or await find_first_project(stores, author()),
            expires_in_seconds=None if expires_in_days is None else int(expires_in_days * 86_400),
            models=frozenset(model) if model else None,
            limits=parse_limits(limits, Scope.KEY, ""),
            ip_ranges=tuple(ip_range or ()),
        )
        issued = await stores.service.issue(order, author=author())
        print(f"id:    {issued.key.id}\nkey:   {issued.value}", flush=True)
        print("The key is shown this once. Keep it where secrets are kept.", file=sys.stderr)

    _with_stores(data, env_file, create)


@keys_app.command("create-admin")
def create_admin_key(
    name: Annotated[str, typer.Option(help="Whose key it is")], data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE
) -> None:
    """Issue an operator's admin key and print it, this once."""

    async def create(stores: Stores) -> None:
        issued = await stores.service.issue_admin(name, author=author())
        print(f"id:    {issued.key.id}\nkey:   {issued.value}", flush=True)

    _with_stores(data, env_file, create)


@keys_app.command("list")
def list_keys(
    project: Annotated[str | None, typer.Option(help="Only those of a project")] = None,
    as_json: AsJson = False,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """List keys, without their secrets."""
    from meterhouse.tables import print_keys  # noqa: PLC0415 - as in dev

    _with_stores(data, env_file, lambda stores: print_keys(stores, project, as_json=as_json))


@keys_app.command("revoke")
def revoke_key(key_id: str, data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE) -> None:
    """Revoke a key or an admin key for good. With Redis running servers know at once, without it within 10 seconds."""

    async def revoke(stores: Stores) -> None:
        is_admins = await stores.catalog.keys.find_admin_key(key_id) is not None
        await (stores.service.revoke_admin if is_admins else stores.service.revoke)(key_id, author=author())
        print(f"{key_id} is revoked.")

    _with_stores(data, env_file, revoke)


@keys_app.command("rotate")
def rotate_key(
    key_id: str,
    overlap_hours: Annotated[float, typer.Option(min=0, max=168, help="How long the old key goes on working")] = 24,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Issue a successor of a key; both work for the overlap and count on the same limits."""

    async def rotate(stores: Stores) -> None:
        issued = await stores.service.rotate(key_id, int(overlap_hours * 3600), author=author())
        print(f"id:    {issued.key.id}\nkey:   {issued.value}", flush=True)

    _with_stores(data, env_file, rotate)


@limits_app.command("set")
def set_limits(
    scope: Annotated[str, typer.Argument(help="organization, project or key")],
    scope_id: str,
    limits: Annotated[str, typer.Argument(help=f"{LIMITS_HELP}; empty removes all")],
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Replace all limits of an organization, a project or a key."""
    from meterhouse.limits.limit import format_limit, parse_limits  # noqa: PLC0415 - as in dev

    async def change(stores: Stores) -> None:
        where = _scope(scope)
        wanted = parse_limits(limits, where, scope_id)
        for limit in await stores.service.set_limits(where, scope_id, wanted, author=author()):
            print(format_limit(limit))

    _with_stores(data, env_file, change)


@limits_app.command("show")
def show_limits(
    scope: Annotated[str, typer.Argument(help="organization, project or key")],
    scope_id: str,
    as_json: AsJson = False,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Show the limits that an organization, a project or a key has itself."""
    from meterhouse.limits.limit import format_limit  # noqa: PLC0415 - as in dev
    from meterhouse.tables_rows import print_json  # noqa: PLC0415

    async def show(stores: Stores) -> None:
        lines = [format_limit(limit) for limit in await stores.service.list_limits(_scope(scope), scope_id)]
        if as_json:
            print_json(lines)
            return
        for line in lines:
            print(line)

    _with_stores(data, env_file, show)


def _with_stores(data: Path | None, env_file: Path, work: Callable[[Stores], Awaitable[None]]) -> None:
    run_with_stores(read_settings(data, env_file)[0], work)


def _run_loop(work: Callable[[], Awaitable[None]]) -> None:
    """Run on uvloop; an interruption by the keyboard is a normal end."""
    import uvloop  # noqa: PLC0415 - as in dev

    async def run() -> None:
        await work()

    try:
        uvloop.run(run())
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _scope(text: str) -> Scope:
    try:
        return Scope(text)
    except ValueError:
        raise SettingsError(f"'{text}' is no scope. Use organization, project or key.") from None
