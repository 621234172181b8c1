"""Tables for the terminal: keys, prices, settings."""

import re

from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from meterhouse.limits.limit import format_limit
from meterhouse.metering import Scope
from meterhouse.money import format_usd
from meterhouse.settings import PREFIX, Settings
from meterhouse.stores import Stores
from meterhouse.tables_rows import Rows, moment

_LOGIN = re.compile(r"(://)[^/?#]*@")
_QUERY = re.compile(r"(://[^?]*\?).+")


async def print_keys(stores: Stores, project_id: str | None, *, as_json: bool = False) -> None:
    """Print every key, without its secret."""
    rows = Rows("id", "name", "project", "key", "limits", "state", "last_used", as_json=as_json)
    after: str | None = None
    while page := await stores.service.list_keys(project_id, after):
        for key in page:
            own = [format_limit(limit) for limit in key.limits if limit.scope is Scope.KEY]
            state = "revoked" if key.revoked_at_ms else "good"
            if key.expires_at_ms is not None and not key.revoked_at_ms:
                state = f"until {moment(key.expires_at_ms)}"
            times = {"expires_at_ms": key.expires_at_ms, "revoked_at_ms": key.revoked_at_ms}
            rows.add(
                {
                    "id": key.id,
                    "name": key.name,
                    "project": key.project_id,
                    "organization": key.organization_id,
                    "key": key.redacted,
                    "limits": own if as_json else "; ".join(own),
                    "models": None if key.models is None else sorted(key.models),
                    "state": state,
                    "last_used": moment(key.last_used_at_ms) or "never",
                    **times,
                    "last_used_at_ms": key.last_used_at_ms,
                }
            )
        after = page[-1].id
    rows.print()


async def print_prices(stores: Stores, *, as_json: bool = False) -> None:
    """Print every price, in USD per million."""
    rows = Rows("provider", "model", "from", "prices_in_USD_per_million", "source", as_json=as_json)
    for price in await stores.catalog.prices.list_prices():
        lines = {line.kind.value: format_usd(line.nanos_per_million) for line in price.components}
        rows.add(
            {
                "id": price.id,
                "provider": price.provider,
                "model": price.model,
                "from": moment(price.effective_from_ms) if price.effective_from_ms else "always",
                "effective_from_ms": price.effective_from_ms,
                "prices_in_USD_per_million": lines if as_json else ", ".join(f"{k} {usd}" for k, usd in lines.items()),
                "source": price.source,
            }
        )
    rows.print()


def print_settings(settings: Settings) -> None:
    """Print every setting that is in force, secrets masked: of an address also its login and its query."""
    table = Table("variable", "value", "meaning", box=None)
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = (
            "********"
            if isinstance(value, SecretStr)
            else ""
            if value is None
            else _QUERY.sub(r"\1********", _LOGIN.sub(r"\1********@", str(value)))
        )
        table.add_row(f"{PREFIX}{name.upper()}", shown, field.description or "")
    print_table(table)


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal; into a pipe as wide as it needs to be."""
    console = Console()
    # A pipe has no width: a table for another program must not be cut at 80 columns.
    Console(width=None if console.is_terminal else 400).print(table)
