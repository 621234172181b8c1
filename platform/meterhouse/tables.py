"""Tables for the terminal: usage, keys, prices."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from time import time_ns
from typing import cast, get_args

from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from meterhouse.db.ledger import GroupBy, LedgerStore, UsageQuery
from meterhouse.limits.limit import format_limit
from meterhouse.metering import Scope
from meterhouse.money import format_usd
from meterhouse.settings import PREFIX, Settings, SettingsError
from meterhouse.stores import Stores

_LOGIN = re.compile(r"(://)[^/@]*@")
_TIMES = {"day": "%Y-%m-%d", "hour": "%Y-%m-%d %H:00"}


async def print_usage(ledger: LedgerStore, by: Sequence[str], from_ms: int) -> None:
    """Print usage and charges from a moment until now, grouped.

    Raises:
        SettingsError: A word is no group.
    """
    unknown = [word for word in by if word not in get_args(GroupBy)]
    if unknown or not by:
        raise SettingsError(f"--by takes any of {', '.join(get_args(GroupBy))}, separated by commas.")
    groups = cast("tuple[GroupBy, ...]", tuple(by))
    rows = await ledger.usage_by(UsageQuery(group_by=groups, from_ms=from_ms, to_ms=time_ns() // 1_000_000 + 1))
    table = Table(*by, "requests", "attempts", "input", "cached", "output", "USD", box=None)
    for row in rows:
        table.add_row(
            *(_group(word, value) for word, value in zip(by, row.group, strict=True)),
            str(row.requests),
            str(row.attempts),
            str(row.usage.input_tokens),
            str(row.usage.cached_input_tokens),
            str(row.usage.output_tokens),
            format_usd(row.charge_nanos),
        )
    print_table(table)
    print(f"{sum(row.requests for row in rows)} requests, {format_usd(sum(row.charge_nanos for row in rows))} USD")


async def print_keys(stores: Stores, project_id: str | None) -> None:
    """Print every key, without its secret."""
    table = Table("id", "name", "project", "key", "limits", "state", "last used", box=None)
    after: str | None = None
    while page := await stores.service.list_keys(project_id, after):
        for key in page:
            own = "; ".join(format_limit(limit) for limit in key.limits if limit.scope is Scope.KEY)
            state = "revoked" if key.revoked_at_ms else "good"
            if key.expires_at_ms is not None and not key.revoked_at_ms:
                state = f"until {_moment(key.expires_at_ms)}"
            used = _moment(key.last_used_at_ms) if key.last_used_at_ms else "never"
            table.add_row(key.id, key.name, key.project_id, key.redacted, own, state, used)
        after = page[-1].id
    print_table(table)


async def print_prices(stores: Stores) -> None:
    """Print every price, in USD per million."""
    table = Table("provider", "model", "from", "prices in USD per million", "source", box=None)
    for price in await stores.catalog.prices.list_prices():
        lines = ", ".join(f"{line.kind} {format_usd(line.nanos_per_million)}" for line in price.components)
        start = _moment(price.effective_from_ms) if price.effective_from_ms else "always"
        table.add_row(price.provider, price.model, start, lines, price.source)
    print_table(table)


def print_settings(settings: Settings) -> None:
    """Print every setting that is in force, secrets masked."""
    table = Table("variable", "value", "meaning", box=None)
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = (
            "********"
            if isinstance(value, SecretStr)
            else ""
            if value is None
            else _LOGIN.sub(r"\1********@", str(value))
        )
        table.add_row(f"{PREFIX}{name.upper()}", shown, field.description or "")
    print_table(table)


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal; into a pipe as wide as it needs to be."""
    console = Console()
    # A pipe has no width: a table for another program must not be cut at 80 columns.
    Console(width=None if console.is_terminal else 400).print(table)


def _group(word: str, value: str | int) -> str:
    form = _TIMES.get(word)
    return str(value) if form is None else datetime.fromtimestamp(int(value) / 1000, UTC).strftime(form)


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")
