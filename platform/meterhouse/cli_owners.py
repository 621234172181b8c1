"""The commands of organizations and projects.

They do what the administration API does, through the same service, and write the same audit events.
"""

from typing import Annotated

import typer

from meterhouse.command import DEFAULT_ENV_FILE, AsJson, Data, EnvFile, author, read_settings, run_with_stores
from meterhouse.stores import Stores

organizations_app = typer.Typer(help="Make, list and rename organizations: who pays.", no_args_is_help=True)
projects_app = typer.Typer(help="Make, list, rename and archive projects of organizations.", no_args_is_help=True)

Name = Annotated[str, typer.Option(help="What people call it")]
PAGE = 500


@organizations_app.command("create")
def create_organization(name: Name, data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE) -> None:
    """Make an organization and print its id.

    Example: meterhouse organizations create --name "Acme"
    """

    async def create(stores: Stores) -> None:
        print((await stores.service.create_organization(name, author=author())).id)

    run_with_stores(read_settings(data, env_file)[0], create)


@organizations_app.command("rename")
def rename_organization(organization: str, name: Name, data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE) -> None:
    """Give an organization another name.

    Example: meterhouse organizations rename org_1 --name "Acme Inc."
    """

    async def rename(stores: Stores) -> None:
        await stores.service.rename_organization(organization, name, author=author())

    run_with_stores(read_settings(data, env_file)[0], rename)


@organizations_app.command("list")
def list_organizations(as_json: AsJson = False, data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE) -> None:
    """List organizations, the oldest first."""
    from meterhouse.tables_rows import Rows, moment  # noqa: PLC0415 - as in dev

    async def show(stores: Stores) -> None:
        rows = Rows("id", "name", "created", as_json=as_json)
        after: str | None = None
        while page := await stores.catalog.organizations.list_organizations(after, PAGE):
            for one in page:
                created = {"created_at_ms": one.created_at_ms, "created": moment(one.created_at_ms)}
                rows.add({"id": one.id, "name": one.name, **created})
            after = page[-1].id
        rows.print()

    run_with_stores(read_settings(data, env_file)[0], show)


@projects_app.command("create")
def create_project(
    organization: Annotated[str, typer.Option(help="Organization id")],
    name: Name,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Make a project in an organization and print its id.

    Example: meterhouse projects create --organization org_1 --name "Search"
    """

    async def create(stores: Stores) -> None:
        print((await stores.service.create_project(organization, name, author=author())).id)

    run_with_stores(read_settings(data, env_file)[0], create)


@projects_app.command("rename")
def rename_project(project: str, name: Name, data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE) -> None:
    """Give a project another name.

    Example: meterhouse projects rename proj_1 --name "Search"
    """

    async def rename(stores: Stores) -> None:
        await stores.service.rename_project(project, name, author=author())

    run_with_stores(read_settings(data, env_file)[0], rename)


@projects_app.command("archive")
def archive_project(project: str, data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE) -> None:
    """Archive a project for good: its keys are refused from now on, its records stay.

    Example: meterhouse projects archive proj_1
    """

    async def archive(stores: Stores) -> None:
        archived = await stores.service.archive_project(project, author=author())
        print(f"{archived.id} is archived.")

    run_with_stores(read_settings(data, env_file)[0], archive)


@projects_app.command("list")
def list_projects(
    organization: Annotated[str | None, typer.Option(help="Only those of an organization")] = None,
    as_json: AsJson = False,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """List projects, archived ones too, the oldest first."""
    from meterhouse.tables_rows import Rows, moment  # noqa: PLC0415 - as in dev

    async def show(stores: Stores) -> None:
        rows = Rows("id", "name", "organization_id", "created", "archived", as_json=as_json)
        after: str | None = None
        while page := await stores.catalog.organizations.list_projects(organization, after, PAGE):
            for one in page:
                times = {"created_at_ms": one.created_at_ms, "archived_at_ms": one.archived_at_ms}
                shown = {"created": moment(one.created_at_ms), "archived": moment(one.archived_at_ms)}
                rows.add({"id": one.id, "name": one.name, "organization_id": one.organization_id, **times, **shown})
            after = page[-1].id
        rows.print()

    run_with_stores(read_settings(data, env_file)[0], show)
