"""The commands that only look: usage, costs, and who changed what."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from meterhouse.command import (
    DEFAULT_ENV_FILE,
    AsJson,
    Data,
    EnvFile,
    patient_settings,
    read_moment_ms,
    run_with_stores,
)
from meterhouse.settings import SettingsError

DAY_MS = 86_400_000
Days = Annotated[int, typer.Option(min=1, max=36_500, help="How many days back, today included")]
Organization = Annotated[str | None, typer.Option(help="Only this organization [default: all]")]
Project = Annotated[str | None, typer.Option(help="Only this project")]
Key = Annotated[str | None, typer.Option(help="Only this key, by its id")]


def usage(
    by: Annotated[
        str, typer.Option(help="Any of organization, project, key, model, provider, day, hour")
    ] = "key,model,day",
    days: Days = 30,
    organization: Organization = None,
    project: Project = None,
    key: Key = None,
    chart: Annotated[bool, typer.Option("--chart", help="Draw a bar for each day instead of the table")] = False,
    of: Annotated[str, typer.Option(help="What the bars are of: requests, tokens or spend")] = "tokens",
    as_json: AsJson = False,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Show what was used and what it cost, credits and corrections not counted.

    Examples: meterhouse usage --by model --days 7; meterhouse usage --chart --of spend
    """
    from meterhouse.db.ledger import UsageQuery  # noqa: PLC0415 - as in dev
    from meterhouse.tables_usage import print_usage, print_usage_chart  # noqa: PLC0415

    query = UsageQuery(
        group_by=(),
        from_ms=_start_ms(days),
        to_ms=_start_ms(1) + DAY_MS,  # whole hours, so that it is read from the projection
        organization_id=organization,
        project_id=project,
        key_id=key,
    )
    settings = patient_settings(data, env_file)
    if chart:
        run_with_stores(settings, lambda stores: print_usage_chart(stores.ledger, query, of))
        return
    words = tuple(word.strip() for word in by.split(",") if word.strip())
    run_with_stores(settings, lambda stores: print_usage(stores.ledger, query, words, as_json=as_json))


def costs(
    by: Annotated[
        str, typer.Option(help="Any of organization, project, key, line_item, day; separated by commas")
    ] = "organization,day",
    days: Days = 30,
    organization: Organization = None,
    project: Project = None,
    key: Key = None,
    as_json: AsJson = False,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Show what it costs, credits and corrections counted in the period that they name. Adds up to what is owed.

    Example: meterhouse costs --organization org_1 --by line_item --days 31
    """
    from meterhouse.tables_usage import CostQuery, print_costs  # noqa: PLC0415 - as in dev

    query = CostQuery(
        by=tuple(word.strip() for word in by.split(",") if word.strip()),
        from_ms=_start_ms(days),
        to_ms=_start_ms(1) + DAY_MS,
        organization_id=organization,
        project_id=project,
        key_id=key,
    )
    run_with_stores(patient_settings(data, env_file), lambda stores: print_costs(stores, query, as_json=as_json))


def audit(
    organization: Organization = None,
    action: Annotated[list[str] | None, typer.Option(help="Only these, for example key.created; repeat it")] = None,
    actor: Annotated[str | None, typer.Option(help="Only what this admin key, user or token's subject did")] = None,
    target: Annotated[str | None, typer.Option(help="Only what was done to this object")] = None,
    start: Annotated[str | None, typer.Option("--from", help="Only from this day or moment (UTC) on")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Only before this day or moment (UTC)")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many events, the newest first")] = 50,
    as_json: AsJson = False,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Show who changed what, the newest first. With --json also how it was before and after.

    Example: meterhouse audit --target key_1 --json
    """
    from meterhouse.audit import Action  # noqa: PLC0415 - as in dev
    from meterhouse.db.audit import AuditQuery  # noqa: PLC0415
    from meterhouse.tables_usage import print_audit  # noqa: PLC0415

    known = {one.value for one in Action}
    for one in action or ():
        if one not in known:
            raise SettingsError(f"--action: '{one}' is none. Use any of {', '.join(sorted(known))}.")
    query = AuditQuery(
        organization_id=organization,
        actions=action or (),
        actor_ids=() if actor is None else (actor,),
        target_ids=() if target is None else (target,),
        from_ms=read_moment_ms(start, "--from"),
        until_ms=read_moment_ms(end, "--to"),
    )
    settings = patient_settings(data, env_file)
    run_with_stores(settings, lambda stores: print_audit(stores.catalog.audit, query, limit, as_json=as_json))


def _start_ms(days: int) -> int:
    """Return when a day of UTC began, so many days back, today included."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return int((today - timedelta(days=days - 1)).timestamp()) * 1000
