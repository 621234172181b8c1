"""The commands of billing: prices, credits and invoices. What they are asked and what they print.

Not here: the work (``billing``), and the ledger's own commands (``cli_ledger``).
"""

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meterhouse.command import (
    DEFAULT_ENV_FILE,
    AsJson,
    Data,
    EnvFile,
    author,
    patient_settings,
    read_body,
    read_moment_ms,
    read_nanos,
    read_settings,
    run_with_stores,
    user_name,
)
from meterhouse.settings import Settings, SettingsError
from meterhouse.stores import Stores

if TYPE_CHECKING:
    from meterhouse.billing.credits import Credits
    from meterhouse.billing.invoice import Invoice

prices_app = typer.Typer(help="Set and list prices, and charge later what had none.", no_args_is_help=True)
invoices_app = typer.Typer(help="Show and issue an organization's invoices.", no_args_is_help=True)
credits_app = typer.Typer(help="Add prepaid credit to an organization, and show it.", no_args_is_help=True)


@prices_app.command("set")
def set_price(
    provider: str,
    model: Annotated[str, typer.Argument(help="The provider's own name of the model")],
    input_usd: Annotated[str, typer.Option("--input", help="USD per million input tokens")],
    output_usd: Annotated[str, typer.Option("--output", help="USD per million output tokens")],
    cached_input_usd: Annotated[str | None, typer.Option("--cached-input", help="USD per million")] = None,
    cache_write_usd: Annotated[str | None, typer.Option("--cache-write", help="USD per million")] = None,
    request_usd: Annotated[str | None, typer.Option("--request", help="USD per request; of images, of each")] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Day or moment (UTC) from which it holds [default: now]; past: see prices rerate"),
    ] = None,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Set a price, from now or from a moment to come. A running server takes it up within half a minute.

    It may begin in the past only where the model had no price: `meterhouse prices rerate` then charges what was used.
    """
    from meterhouse.admin.schemas import PriceRequest  # noqa: PLC0415 - the other commands start faster without
    from meterhouse.price_orders import plan_price  # noqa: PLC0415

    start_ms = read_moment_ms(start, "--from")
    values = {
        "provider": provider,
        "model": model,
        "input_usd": input_usd,
        "output_usd": output_usd,
        "cached_input_usd": cached_input_usd,
        "cache_write_usd": cache_write_usd,
        "request_usd": request_usd,
        "effective_from": None if start_ms is None else start_ms // 1000,
    }
    order = read_body(PriceRequest, values)

    async def change(stores: Stores) -> None:
        price = plan_price(order, stores.clock.now_ms(), await stores.catalog.prices.list_prices())
        await stores.catalog.write_price(price, author=author())
        print(price.id)

    _with_stores(data, env_file, change)


@prices_app.command("list")
def list_prices(as_json: AsJson = False, data: Data = None, env_file: EnvFile = DEFAULT_ENV_FILE) -> None:
    """List every price that was ever in force here."""
    from meterhouse.tables import print_prices  # noqa: PLC0415 - as above

    _with_stores(data, env_file, lambda stores: print_prices(stores, as_json=as_json))


@prices_app.command("rerate")
def rerate_unpriced(
    start: Annotated[str, typer.Option("--from", help="Day or moment (UTC) from which records are looked at")],
    end: Annotated[str | None, typer.Option("--to", help="Day or moment (UTC) before which [default: now]")] = None,
    organization: Annotated[str | None, typer.Option(help="Only this organization [default: all]")] = None,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be charged")] = False,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Charge records that were made while their model had no price, by the operator's prices that hold for them.

    Each becomes an adjustment of its own moment; the record stays what it was. Running it again charges nothing twice.

    Example: meterhouse prices set local llama --input 0.1 --output 0.2 --from 2026-11-01 && meterhouse prices rerate
    --from 2026-11-01
    """
    from meterhouse.billing.rerate import RerateOrder, rerate  # noqa: PLC0415 - as above
    from meterhouse.db.unpriced import UnpricedStore  # noqa: PLC0415
    from meterhouse.meters import apply_correction  # noqa: PLC0415
    from meterhouse.money import format_usd  # noqa: PLC0415
    from meterhouse.price_orders import OPERATOR_SOURCE  # noqa: PLC0415
    from meterhouse.providers.prices import PriceBook  # noqa: PLC0415

    settings = patient_settings(data, env_file)
    from_ms, to_ms = read_moment_ms(start, "--from") or 0, read_moment_ms(end, "--to")

    async def work(stores: Stores) -> None:
        end_ms = to_ms or stores.clock.now_ms() + 1
        found = [price for price in await stores.catalog.prices.list_prices() if price.source == OPERATOR_SOURCE]
        order = RerateOrder(from_ms, end_ms, organization, author(), stores.clock, is_dry)
        store = UnpricedStore(stores.engine)
        done = await rerate(store, stores.ledger, PriceBook(found), order, partial(apply_correction, settings))
        verb = "would be charged" if is_dry else "charged"
        print(
            f"{done.records} records {verb}, {format_usd(done.nanos)} USD; {done.known} had been before, "
            f"{done.unpriced} have no price still."
        )
        if done.records and not done.is_applied:
            print(
                "The ledger has it. The meter of a running server follows when it is next reconciled.", file=sys.stderr
            )

    run_with_stores(settings, work)


@credits_app.command("add")
def add_credit(
    organization: Annotated[str, typer.Option(help="Whose credit it is")],
    usd: Annotated[str, typer.Option(help="Dollars; negative takes credit back")],
    reference: Annotated[str, typer.Option(help="Of the payment: a reference credits once, however often it is sent")],
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Add prepaid credit, and print what is left.

    From an organization's first credit on, all that it ever spends is bounded by its credit: beyond it requests are
    refused with 429 insufficient_quota. What was charged before counts too: a paid invoice is a credit.

    Example: meterhouse credits add --organization org_1 --usd 25 --reference payment-4711
    """
    from meterhouse.billing.credits import CreditOrder, Credits  # noqa: PLC0415 - as above

    order = CreditOrder(organization, read_nanos(usd, "--usd"), reference, user_name())

    async def add(stores: Stores) -> None:
        credits_of = Credits(stores.catalog, stores.service, stores.clock)
        entry, is_new = await credits_of.add(order, author())
        print(entry.id if is_new else f"{entry.id} was credited before; nothing was changed.")
        await _print_balance(credits_of, organization)

    _with_stores(data, env_file, add)


@credits_app.command("show")
def show_credit(
    organization: Annotated[str, typer.Option(help="Whose credit it is")],
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Print what an organization has paid ahead, what it has spent in all, and what is left."""
    from meterhouse.billing.credits import Credits  # noqa: PLC0415 - as above

    async def show(stores: Stores) -> None:
        credits_of = Credits(stores.catalog, stores.service, stores.clock)
        await _print_balance(credits_of, organization)

    _with_stores(data, env_file, show)


@invoices_app.command("show")
def show_invoice(
    organization: Annotated[str, typer.Option(help="Whose invoice")],
    month: Annotated[str, typer.Option(help="Month of UTC, as YYYY-MM")],
    layout: Annotated[str, typer.Option("--format", help="json, csv or html (a page to print)")] = "json",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to [default: standard output]")] = None,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Print an invoice as it was issued, or a draft of what would be issued now.

    Example: meterhouse invoice show --organization org_1 --month 2026-11 --format html -o november.html
    """
    _invoice(organization, month, layout, output, patient_settings(data, env_file), is_issued=False)


@invoices_app.command("issue")
def issue_invoice(
    organization: Annotated[str, typer.Option(help="Whose invoice")],
    month: Annotated[str, typer.Option(help="Month of UTC that is over, as YYYY-MM")],
    layout: Annotated[str, typer.Option("--format", help="json, csv or html (a page to print)")] = "json",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to [default: standard output]")] = None,
    data: Data = None,
    env_file: EnvFile = DEFAULT_ENV_FILE,
) -> None:
    """Issue the invoice of a month, and those of earlier months before it; once issued it stays, and is printed again.

    It covers the records that were admitted before the month's end and sealed until now. What arrives later is a line
    of the next invoice, marked late.

    Example: meterhouse invoice issue --organization org_1 --month 2026-11
    """
    _invoice(organization, month, layout, output, patient_settings(data, env_file), is_issued=True)


def _invoice(
    organization_id: str, month: str, layout: str, output: Path | None, settings: Settings, *, is_issued: bool
) -> None:
    import msgspec  # noqa: PLC0415 - as above

    from meterhouse.back_office import build_invoices  # noqa: PLC0415
    from meterhouse.billing.invoice import Month  # noqa: PLC0415
    from meterhouse.billing.invoice_page import to_csv, to_html  # noqa: PLC0415
    from meterhouse.bookkeeping import open_books  # noqa: PLC0415

    forms: dict[str, Callable[[Invoice], str]] = {
        "json": lambda made: f"{msgspec.json.format(msgspec.json.encode(made)).decode()}\n",
        "csv": to_csv,
        "html": to_html,
    }
    if layout not in forms:
        raise SettingsError(f"--format is '{layout}'. Use json, csv or html.")
    asked = Month.parse(month)
    texts: list[str] = []

    async def work(stores: Stores) -> None:
        invoices = build_invoices(open_books(stores), stores.catalog.invoices, stores.catalog, stores.clock)
        made = await (invoices.issue if is_issued else invoices.show)(organization_id, asked)
        texts.append(forms[layout](made))

    run_with_stores(settings, work)
    text = "".join(texts)
    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{output} cannot be written: {error.strerror}.") from None


async def _print_balance(credits_of: "Credits", organization_id: str) -> None:
    from meterhouse.money import format_usd  # noqa: PLC0415 - as above

    balance = await credits_of.show(organization_id)
    print(f"credited:  {format_usd(balance.credited_nanos)} USD")
    print(f"spent:     {format_usd(balance.spent_nanos)} USD")
    print(f"left:      {format_usd(balance.balance_nanos)} USD" if balance.has_credit else "left:      not bounded")


def _with_stores(data: Path | None, env_file: Path, work: Callable[[Stores], Awaitable[None]]) -> None:
    run_with_stores(read_settings(data, env_file)[0], work)
