"""How an invoice looks: a table of comma-separated values, and a page to print. What anybody named is escaped.

Not here: what it says (``billing.invoice``).
"""

import csv
import io
from collections.abc import Sequence
from html import escape

from meterhouse.billing.invoice import AdjustmentLine, Invoice, InvoiceLine
from meterhouse.db.tables import COMPONENT_COLUMNS, TOKEN_COLUMNS
from meterhouse.money import format_usd

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""
_CSV_COLUMNS = (
    *("kind", "month", "is_late", "project_id", "project_name", "model", "provider", "price_id", "reason"),
    *("requests", "attempts", *TOKEN_COLUMNS, *COMPONENT_COLUMNS.values(), "nanos", "usd"),
)
_STYLE = (
    "body{font:14px/1.4 sans-serif;margin:2em;color:#111}table{border-collapse:collapse;width:100%;margin:1em 0}"
    "th,td{border-bottom:1px solid #ccc;padding:.3em .5em;text-align:left;vertical-align:top}"
    "td.n,th.n{text-align:right;white-space:nowrap}.total{font-size:1.2em;font-weight:bold}"
    "footer{font-size:.8em;color:#555;word-break:break-all}@media print{body{margin:0}}"
)
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The Content-Security-Policy of the page: nothing is loaded and nothing runs."""


def to_csv(invoice: Invoice) -> str:
    """Write an invoice as CSV: a line for each of its lines, then the total."""
    rows: list[dict[str, object]] = [*map(_usage_cells, invoice.lines), *map(_adjustment_cells, invoice.adjustments)]
    rows.append({"kind": "total", "month": invoice.month, "nanos": invoice.total_nanos, "usd": invoice.total_usd})
    lines = [_CSV_COLUMNS, *([_cell(row.get(name, "")) for name in _CSV_COLUMNS] for row in rows)]
    return "".join(map(_csv_line, lines))


def to_html(invoice: Invoice) -> str:
    """Write an invoice as a page that needs nothing else."""
    title = f"Invoice {escape(invoice.month)}, {escape(invoice.organization_name)}"
    state = "" if invoice.status == "issued" else " <em>(draft: it may still change)</em>"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}{state}</h1>"
        f"<p>{escape(invoice.id)} &middot; {escape(invoice.organization_id)}</p>"
        f"{_usage_table(invoice)}{_adjustment_table(invoice)}"
        f'<p class="total">Total: {escape(invoice.total_usd)} USD</p>'
        f"<footer>Sealed up to {invoice.seal.last_sequence} (hash {escape(invoice.seal.last_hash)}), behind "
        f"{invoice.seal.previous_sequence} of the invoice before. {_price_list(invoice)}</footer></body></html>\n"
    )


def _usage_table(invoice: Invoice) -> str:
    heads = ("Month", "Project", "Model", "Provider", "Price")
    numbers = ("Requests", "Input tokens", "Cached", "Output tokens", "USD")
    rows = "".join(
        f"<tr><td>{_month(line)}</td><td>{_project(line)}</td><td>{escape(line.model)}</td>"
        f"<td>{escape(line.provider)}</td><td>{escape(line.price_id or 'none')}</td>"
        + _numbers(
            f"{line.requests:,}",
            *(f"{line.tokens[name]:,}" for name in ("input_tokens", "cached_input_tokens", "output_tokens")),
            line.charge_usd,
        )
        for line in invoice.lines
    )
    return f"<h2>Usage</h2><table>{_head(heads, numbers)}{rows}{_sum_row(9, invoice.usage_nanos)}</table>"


def _adjustment_table(invoice: Invoice) -> str:
    if not invoice.adjustments:
        return ""
    rows = "".join(
        f"<tr><td>{_month(line)}</td><td>{_project(line)}</td><td>{escape(line.reason)}</td>"
        + _numbers(f"{line.count:,}", line.usd)
        for line in invoice.adjustments
    )
    head = _head(("Month", "Project", "Reason"), ("Number", "USD"))
    return f"<h2>Adjustments</h2><table>{head}{rows}{_sum_row(4, invoice.adjustment_nanos)}</table>"


def _price_list(invoice: Invoice) -> str:
    """Say what each price charges, in USD per million."""
    return "Prices in USD per million: " + "; ".join(
        f"{escape(price.id)} = "
        + escape(", ".join(f"{part['kind']} {format_usd(_nanos(part))}" for part in price.components))
        for price in invoice.prices
    )


def _nanos(component: dict[str, object]) -> int:
    nanos = component["nanos_per_million"]
    return nanos if isinstance(nanos, int) else 0


def _head(words: tuple[str, ...], numbers: tuple[str, ...]) -> str:
    cells = [f"<th>{word}</th>" for word in words] + [f'<th class="n">{word}</th>' for word in numbers]
    return f"<tr>{''.join(cells)}</tr>"


def _numbers(*texts: str) -> str:
    return "".join(f'<td class="n">{escape(text)}</td>' for text in texts) + "</tr>"


def _sum_row(columns: int, nanos: int) -> str:
    return f'<tr><th colspan="{columns}">Sum</th><th class="n">{format_usd(nanos)}</th></tr>'


def _month(line: InvoiceLine | AdjustmentLine) -> str:
    return escape(line.month) + (" (late)" if line.is_late else "")


def _project(line: InvoiceLine | AdjustmentLine) -> str:
    return escape(line.project_name or line.project_id)


def _usage_cells(line: InvoiceLine) -> dict[str, object]:
    return {
        "kind": "usage",
        "month": line.month,
        "is_late": line.is_late,
        "project_id": line.project_id,
        "project_name": line.project_name,
        "model": line.model,
        "provider": line.provider,
        "price_id": line.price_id or "",
        "requests": line.requests,
        "attempts": line.attempts,
        **line.tokens,
        **{column: line.charges.get(kind, 0) for kind, column in COMPONENT_COLUMNS.items()},
        "nanos": line.charge_nanos,
        "usd": line.charge_usd,
    }


def _adjustment_cells(line: AdjustmentLine) -> dict[str, object]:
    return {
        "kind": "adjustment",
        "month": line.month,
        "is_late": line.is_late,
        "project_id": line.project_id,
        "project_name": line.project_name,
        "reason": line.reason,
        "requests": line.count,
        "nanos": line.nanos,
        "usd": f"{line.usd}",
    }


def _csv_line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    # A writer quotes what is a part of its own line's end: a name's carriage return would begin a row of its own.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: object) -> object:
    """Return a cell: a truth value in words, and a text that a spreadsheet would compute as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(_FORMULA) and not value.lstrip("-").replace(".", "", 1).isdigit():
        return f"'{value}"
    return value
