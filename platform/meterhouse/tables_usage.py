"""Usage, costs and audit events on the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast, get_args

from meterhouse.admin.report import COST_MEASURES, list_cost_items
from meterhouse.db.audit import AuditQuery, AuditStore
from meterhouse.db.ledger import GroupBy, LedgerStore, UsageQuery
from meterhouse.db.paging import PageQuery
from meterhouse.db.reports import Group, ReportQuery, ReportStore
from meterhouse.money import format_usd
from meterhouse.settings import SettingsError
from meterhouse.stores import Stores
from meterhouse.tables_rows import Rows, moment, print_bars

DAY_MS = 86_400_000
PAGE = 500
MOST_BARS = 400
MAX_COST_ROWS = 1_000_000
_TIMES = {"day": "%Y-%m-%d", "hour": "%Y-%m-%d %H:00"}
_COST_GROUPS: dict[str, Group] = {"organization": "organization_id", "project": "project_id", "key": "key_id"}
COST_WORDS = (*_COST_GROUPS, "line_item", "day")
BARS = ("requests", "tokens", "spend")


async def print_usage(ledger: LedgerStore, query: UsageQuery, by: Sequence[str], *, as_json: bool) -> None:
    """Print usage and charges, grouped.

    Raises:
        SettingsError: A word is no group.
    """
    unknown = [word for word in by if word not in get_args(GroupBy)]
    if unknown or not by:
        raise SettingsError(f"--by takes any of {', '.join(get_args(GroupBy))}, separated by commas.")
    found = await ledger.usage_by(replace(query, group_by=cast("tuple[GroupBy, ...]", tuple(by))))
    rows = Rows(*by, "requests", "attempts", "input", "cached", "output", "USD", as_json=as_json)
    for row in found:
        usage = row.usage
        rows.add(
            {
                **{word: _group(word, value) for word, value in zip(by, row.group, strict=True)},
                "requests": row.requests,
                "attempts": row.attempts,
                "input": usage.input_tokens,
                "cached": usage.cached_input_tokens,
                "output": usage.output_tokens,
                "USD": format_usd(row.charge_nanos),
                "charge_nanos": row.charge_nanos,
            }
        )
    rows.print()
    if not as_json:
        requests, nanos = sum(row.requests for row in found), sum(row.charge_nanos for row in found)
        print(f"{requests} requests, {format_usd(nanos)} USD")


async def print_usage_chart(ledger: LedgerStore, query: UsageQuery, of: str) -> None:
    """Print a bar for each day of a query, days without usage included.

    Raises:
        SettingsError: There is no such bar, or there would be too many.
    """
    if of not in BARS:
        raise SettingsError(f"--of is '{of}'. Use {', '.join(BARS)}.")
    days = range(query.from_ms // DAY_MS * DAY_MS, query.to_ms, DAY_MS)
    if len(days) > MOST_BARS:
        raise SettingsError(f"--chart draws at most {MOST_BARS} days.")
    found = {row.group[0]: row for row in await ledger.usage_by(replace(query, group_by=("day",)))}
    bars = []
    for day in days:
        row = found.get(day)
        numbers = (0, 0, 0) if row is None else (row.requests, row.usage.total_tokens, row.charge_nanos)
        number = dict(zip(BARS, numbers, strict=True))[of]
        bars.append((_group("day", day), number, f"{format_usd(number)} USD" if of == "spend" else f"{number:,}"))
    print(f"{of} by day")
    print_bars(bars)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostQuery:
    """What costs are asked for."""

    by: Sequence[str]
    from_ms: int
    to_ms: int
    organization_id: str | None
    project_id: str | None
    key_id: str | None


async def print_costs(stores: Stores, query: CostQuery, *, as_json: bool) -> None:
    """Print what it costs, grouped; the sum of all rows is exact.

    Raises:
        SettingsError: A word is no group.
    """
    if not query.by or any(word not in COST_WORDS for word in query.by):
        raise SettingsError(f"--by takes any of {', '.join(COST_WORDS)}, separated by commas.")
    only: dict[Group, Sequence[str]] = {}
    if query.project_id is not None:
        only["project_id"] = (query.project_id,)
    if query.key_id is not None:
        only["key_id"] = (query.key_id,)
    report = await ReportStore(stores.engine, MAX_COST_ROWS).read(
        ReportQuery(
            start_ms=query.from_ms,
            end_ms=query.to_ms,
            width_ms=DAY_MS,
            measures=COST_MEASURES,
            group_by=(*_COST_GROUPS.values(), "model"),
            organization_id=query.organization_id,
            only=only,
        ),
        has_adjustments=True,
    )
    if report.rows is None:
        raise SettingsError("This is more than a million groups. Ask for fewer days.")
    sums: dict[tuple[str, ...], int] = {}
    for bucket_ms, group, item, nanos in list_cost_items(report):
        values = dict(zip(_COST_GROUPS, group, strict=True))
        values |= {"line_item": item, "day": _group("day", bucket_ms)}
        place = tuple(values[word] for word in query.by)
        sums[place] = sums.get(place, 0) + nanos
    rows = Rows(*query.by, "USD", as_json=as_json)
    for place, nanos in sorted(sums.items()):
        rows.add({**dict(zip(query.by, place, strict=True)), "USD": format_usd(nanos), "nanos": nanos})
    rows.print()
    if not as_json:
        print(f"{format_usd(sum(sums.values()))} USD")


async def print_audit(audit: AuditStore, query: AuditQuery, limit: int, *, as_json: bool) -> None:
    """Print events, the newest first."""
    rows = Rows("when", "action", "target", "actor", "organization", as_json=as_json)
    after: str | None = None
    left = limit
    while left > 0:
        page = await audit.list_events(query, PageQuery(min(left, PAGE), after, is_newest_first=True))
        for event in page.rows:
            shown: dict[str, Any] = {
                "id": event.id,
                "when": moment(event.created_at_ms),
                "created_at_ms": event.created_at_ms,
                "action": event.action,
                "target": event.target_id,
                "actor": f"{event.actor_kind} {event.actor_id}",
                "actor_role": event.actor_role,
                "organization": event.organization_id,
                "project": event.project_id,
                "address": event.address,
                "request_id": event.request_id,
                "before": event.before,
                "after": event.after,
            }
            rows.add(shown)
        left -= len(page.rows)
        if not page.has_more:
            break
        after = page.rows[-1].id
    rows.print()


def _group(word: str, value: str | int) -> str:
    form = _TIMES.get(word)
    return str(value) if form is None else datetime.fromtimestamp(int(value) / 1000, UTC).strftime(form)
