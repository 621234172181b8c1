"""The commands of ``meterhouse ledger``: what they are asked and what they print.

Exit code 0: all is well; 1: something was found; 2: a mistake of the operator's, in one line. Not here: the work
(``bookkeeping``).
"""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from meterhouse.command import (
    DEFAULT_ENV_FILE,
    Data,
    EnvFile,
    author,
    patient_settings,
    read_decimal,
    read_moment_ms,
    read_nanos,
    run_with_stores,
    user_name,
)
from meterhouse.settings import SettingsError
from meterhouse.stores import Stores, make_folder

MAX_TOKENS = 10**15

ledger_app = typer.Typer(
    help="Look after the ledger: prove it, repair it, correct it. Servers may run meanwhile.", no_args_is_help=True
)

Organization = Annotated[str | None, typer.Option(help="Only this organization [default: all]")]


@ledger_app.command("export")
def export_ledger(
    organization: Organization = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Only rows sealed from this day or moment (UTC) on")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Only rows sealed before this day or moment (UTC)")] = None,
    layout: Annotated[str, typer.Option("--format", help="jsonl or csv")] = "jsonl",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to [default: standard output; csv needs a file]")
    ] = None,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Write records and adjustments with their seals, signed, for an auditor or a customer.

    Rows are chained per organization in the order of their sealing, a few seconds after they were recorded; exports
    of consecutive times join without a gap. What has no seal yet is sealed first. The last line signs the file with
    the Ed25519 key in DATA/ledger-signing-key, which is made at its first use: back it up, keep it secret. A CSV is
    signed in a second file, FILE.sig. A row that is not what was sealed is named, and nothing is signed.

    Example: meterhouse ledger export --from 2026-11-01 --to 2026-12-01 -o november.jsonl
    """
    from meterhouse.bookkeeping import open_books  # noqa: PLC0415 - as in dev
    from meterhouse.exports import export as write_export  # noqa: PLC0415
    from meterhouse.exports import load_signing_key  # noqa: PLC0415
    from meterhouse.ledger.export import Layout, Order, signature_path  # noqa: PLC0415

    if layout not in {"jsonl", "csv"}:
        raise SettingsError(f"--format is '{layout}'. Use jsonl or csv.")
    if layout == "csv" and output is None:
        raise SettingsError("A CSV needs --output FILE: its signature becomes FILE.sig beside it.")
    settings = patient_settings(data, env_file)

    async def write(stores: Stores) -> None:
        order = Order(stores.clock.now_ms(), organization, read_moment_ms(start, "--from"), read_moment_ms(end, "--to"))
        key = load_signing_key(settings.data)
        books = open_books(stores)
        if output is None:
            out = sys.stdout.buffer
            out.write(await write_export(books, out, "jsonl", order, key))
            out.flush()
            return
        temporary = output.with_name(f"{output.name}.tmp")
        try:
            with temporary.open("wb") as file:
                statement = await write_export(books, file, cast("Layout", layout), order, key)
                if layout == "csv":
                    signature_path(output).write_bytes(statement)
                else:
                    file.write(statement)
            temporary.replace(output)
        except OSError as error:
            raise SettingsError(f"{output} cannot be written: {error.strerror}.") from None
        finally:
            temporary.unlink(missing_ok=True)

    run_with_stores(settings, write)


@ledger_app.command("public-key")
def print_public_key(data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE) -> None:
    """Print the public key with which exports can be verified. Give it to whoever will check them.

    It is the other half of DATA/ledger-signing-key, which is made at its first use.

    Example: meterhouse ledger public-key > meterhouse.pem
    """
    from meterhouse.exports import format_public_key, load_signing_key  # noqa: PLC0415 - as in dev

    settings = patient_settings(data, env_file)
    make_folder(settings.data)
    print(format_public_key(load_signing_key(settings.data).public_key()), end="")


@ledger_app.command("verify")
def verify_export(
    file: Annotated[Path, typer.Argument(help="What `ledger export` wrote; a CSV with its FILE.sig beside it")],
    public_key: Annotated[Path, typer.Option(help="The exporter's public key, as `ledger public-key` prints it")],
    against_database: Annotated[
        bool, typer.Option("--against-database", help="Compare with the database that it was exported from, too")
    ] = False,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Check an export: its signature, the chain, every row's seal, counts and sums. Needs no server and no database.

    A row that was changed, removed, inserted or moved is named by its sequence and its request; then the exit code is
    1. With --against-database the database must still say what the file says: so one finds what was done to the
    database behind the triggers since the file was exported.

    Example: meterhouse ledger verify november.jsonl --public-key meterhouse.pem
    """
    from meterhouse.bookkeeping import load_public_key, open_books  # noqa: PLC0415 - as in dev
    from meterhouse.exports import verify_against  # noqa: PLC0415
    from meterhouse.ledger.export import ExportReader, check_export  # noqa: PLC0415
    from meterhouse.money import format_usd  # noqa: PLC0415
    from meterhouse.tables_ledger import Lines  # noqa: PLC0415

    key = load_public_key(public_key)
    try:
        reader = ExportReader(file)
        lines = Lines()
        found = list(lines.take(check_export(reader, key)))
    except OSError as error:
        raise SettingsError(f"{error.filename or file} cannot be read: {error.strerror}.") from None
    if against_database:

        async def compare(stores: Stores) -> None:
            async for finding in verify_against(open_books(stores), ExportReader(file), found):
                lines.add(f"{finding} (database)")

        run_with_stores(patient_settings(data, env_file), compare)
    lines.finish()
    if lines.count:
        raise typer.Exit(1)
    totals = reader.totals
    print(
        f"Good: {totals.usage_rows} records ({format_usd(totals.charge_nanos)} USD) and {totals.adjustment_rows} "
        f"adjustments ({format_usd(totals.adjusted_nanos)} USD) are what was sealed and signed"
        f"{', and what the database holds' if against_database else ''}."
    )


@ledger_app.command("rebuild")
def rebuild_projection(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 1 when they differ")] = False,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Make the hourly projection, which sums and reports are read from, what the records say, and print what differed.

    Only what is wrong is touched, an organization at a time, so that servers go on recording meanwhile.

    Example: meterhouse ledger rebuild --check
    """
    from meterhouse.bookkeeping import open_books  # noqa: PLC0415 - as in dev
    from meterhouse.tables_ledger import Lines, describe_difference  # noqa: PLC0415

    lines = Lines()

    async def repair(stores: Stores) -> None:
        projection = open_books(stores).projection
        async for difference in projection.compare() if check else projection.rebuild():
            lines.add(describe_difference(difference))

    run_with_stores(patient_settings(data, env_file), repair)
    lines.finish()
    if not lines.count:
        print("The projection agrees with the records.")
    elif check:
        print(f"{lines.count} groups of the projection differ from the records: run meterhouse ledger rebuild.")
        raise typer.Exit(1)
    else:
        print(f"{lines.count} groups of the projection were made what the records say.")


Journals = Annotated[Path, typer.Argument(help="A folder of journals, for example DATA/journals of a host")]


@ledger_app.command("adopt")
def adopt_journals(folder: Journals, data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE) -> None:
    """Bring what dead processes left in their journals into the database: for a host that does not come back.

    Journals of running processes are left alone. What has been adopted is marked as shipped; doing it again changes
    nothing.

    Example: meterhouse ledger adopt /mnt/lost-host/journals
    """
    _take_over(folder, "adopt", data, env_file)


@ledger_app.command("replay")
def replay_journals(folder: Journals, data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE) -> None:
    """Offer the database everything that journals still hold, shipped or not: after it was restored from a backup.

    Records that the database has are left as they are, so that doing it again changes nothing.

    Example: meterhouse ledger replay /var/lib/meterhouse/journals
    """
    _take_over(folder, "replay", data, env_file)


@ledger_app.command("adjust")
def adjust_ledger(
    organization: Annotated[str, typer.Option(help="Organization id")],
    project: Annotated[str, typer.Option(help="Project id")],
    reason: Annotated[str, typer.Option(help="Why; it is kept for ever")],
    key: Annotated[str | None, typer.Option(help="Key id, when it concerns one key")] = None,
    at: Annotated[str | None, typer.Option(help="Day or moment (UTC) whose periods it changes")] = None,
    period: Annotated[str | None, typer.Option(help="Month that it changes, as YYYY-MM")] = None,
    usd: Annotated[str | None, typer.Option(help="Dollars; negative is a credit")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=-MAX_TOKENS, max=MAX_TOKENS, help="Tokens; negative gives back")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who decided it [default: the user of the system]")] = None,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Credit or charge something later, as a row of its own: no record is ever changed. Prints the adjustment's id.

    It changes the budgets and quotas of the period that it names.

    Example: meterhouse ledger adjust --organization org_1 --project proj_1 --at 2026-11-03 --usd -5 --reason outage
    """
    from meterhouse.bookkeeping import AdjustmentOrder, adjust  # noqa: PLC0415 - as in dev
    from meterhouse.meters import apply_correction  # noqa: PLC0415

    if (usd is None) == (tokens is None):
        raise SettingsError("Give either --usd or --tokens.")
    if (at is None) == (period is None):
        raise SettingsError("Give either --at or --period.")
    at_ms = read_moment_ms(at, "--at") if at is not None else read_moment_ms(f"{period}-01", "--period")
    order = AdjustmentOrder(
        organization_id=organization,
        project_id=project,
        key_id=key,
        at_ms=at_ms or 0,
        nanos=0 if usd is None else read_nanos(usd, "--usd"),
        tokens=tokens or 0,
        reason=reason,
        created_by=by or user_name(),
    )
    settings = patient_settings(data, env_file)

    async def insert(stores: Stores) -> None:
        entry, is_applied = await adjust(stores, order, partial(apply_correction, settings), author())
        print(entry.id)
        if not is_applied:
            print(
                "The ledger has it. The meter of a running server follows when it is next reconciled.", file=sys.stderr
            )

    run_with_stores(settings, insert)


@ledger_app.command("adjustments")
def list_adjustments(
    organization: Organization = None, data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE
) -> None:
    """List credits and later charges, the oldest first.

    Example: meterhouse ledger adjustments --organization org_1
    """
    from meterhouse.bookkeeping import open_books  # noqa: PLC0415 - as in dev
    from meterhouse.tables import print_table  # noqa: PLC0415
    from meterhouse.tables_ledger import add_adjustment, adjustment_table  # noqa: PLC0415

    async def show(stores: Stores) -> None:
        table = adjustment_table()
        reviews = open_books(stores).reviews
        page = await reviews.list_adjustments(organization)
        while page:
            for one in page:
                add_adjustment(table, one)
            page = await reviews.list_adjustments(organization, page[-1])
        print_table(table)

    run_with_stores(patient_settings(data, env_file), show)


@ledger_app.command("reconcile")
def reconcile(
    against: Annotated[Path, typer.Option(help="The provider's own usage export")],
    provider: Annotated[str | None, typer.Option(help="Whose export it is [default: all records count]")] = None,
    tolerance: Annotated[str, typer.Option(help="Percent of the provider's figure that may differ")] = "0.5",
    cost: Annotated[bool, typer.Option(help="Compare its cost with what was charged")] = True,
    everything: Annotated[bool, typer.Option("--all", help="Print what agrees, too")] = False,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Compare the ledger with what a provider says was used, by model and day of UTC. Exit code 1: they differ.

    FILE is CSV with a first line of names, or JSON lines with the same names: a day or time (day, date, time, timestamp
    or start_time: ISO 8601 or Unix seconds), model, and any of input_tokens (or prompt_tokens), output_tokens (or
    completion_tokens), cached_input_tokens (or input_cached_tokens), requests (or num_model_requests), cost_usd. The
    answers of OpenAI's GET /organization/usage/completions, grouped by model, are read as they are. Every day from the
    first to the last one named is compared in full. An attempt that used no token is no request.

    Example: meterhouse ledger reconcile --against openai-november.csv --provider openai
    """
    from meterhouse.bookkeeping import open_books, read_provider_usage  # noqa: PLC0415 - as in dev
    from meterhouse.ledger.compare import DAY_MS, LedgerSide, compare  # noqa: PLC0415
    from meterhouse.tables_ledger import print_comparisons  # noqa: PLC0415

    percent = read_decimal(tolerance, "--tolerance")
    if not 0 <= percent <= 100:  # noqa: PLR2004 - percent
        raise SettingsError("--tolerance is a percentage from 0 to 100.")
    theirs = read_provider_usage(against)
    days = [day_ms for day_ms, _ in theirs]
    side = LedgerSide(theirs)

    async def add_up(stores: Stores) -> None:
        reviews = open_books(stores).reviews
        async for used in reviews.list_provider_days(provider, min(days), max(days) + DAY_MS):
            side.add(used)

    run_with_stores(patient_settings(data, env_file), add_up)
    compared = compare(side.usages, theirs, percent, wants_cost=cost)
    differing = [one for one in compared if not one.is_within]
    print_comparisons(compared if everything else differing)
    print(f"{len(compared)} figures compared, {len(differing)} differ by more than {tolerance} %.")
    if differing:
        raise typer.Exit(1)


def _take_over(folder: Path, how: Literal["adopt", "replay"], data: Path | None, env_file: Path) -> None:
    from meterhouse.bookkeeping import take_over  # noqa: PLC0415 - as in dev
    from meterhouse.tables_ledger import follow_progress, print_takeover  # noqa: PLC0415

    async def work(stores: Stores) -> None:
        print_takeover(await take_over(stores, folder, how, follow_progress(how)), how)

    run_with_stores(patient_settings(data, env_file), work)
