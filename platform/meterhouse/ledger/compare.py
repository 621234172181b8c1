"""Reads a provider's own usage export and compares it with the ledger, by model and day of UTC.

Three forms are read: CSV with a line of column names, JSON lines with the same names, and the pages of OpenAI's
``GET /organization/usage/completions`` with ``bucket_width=1d`` or shorter, grouped by model (wire.md 1.12).

Invariant: money and tokens are integers throughout; what cannot be read is an error that names its line, never a
zero. Not here: the ledger's sums (``db.reviews``).
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Protocol

from meterhouse.money import NANOS_PER_USD

DAY_MS = 86_400_000
TIME_NAMES = ("day", "date", "time", "timestamp", "start_time")
COUNT_NAMES: Mapping[str, tuple[str, ...]] = {
    "input_tokens": ("input_tokens", "prompt_tokens"),
    "cached_input_tokens": ("cached_input_tokens", "input_cached_tokens"),
    "output_tokens": ("output_tokens", "completion_tokens"),
    "requests": ("requests", "num_model_requests"),
}
"""Each count, and the names under which it is found."""
COST_NAME = "cost_usd"
_PER_MILLE = 1000
_LAST_SECOND = 4_102_444_800
"""The end of the year 2099: what is later was meant otherwise, for example as milliseconds."""
_MOST = 10**18
_NOTHING = (None, "")
"""What says that a column is not given."""


class UnreadableUsage(Exception):
    """A provider's export cannot be read; the text says where and why."""


class UsedOfModel(Protocol):
    """What the ledger says of one model of a provider on one day."""

    @property
    def day_ms(self) -> int: ...  # noqa: D102 - said by the names

    @property
    def served_model(self) -> str: ...  # noqa: D102

    @property
    def upstream_model(self) -> str: ...  # noqa: D102

    @property
    def requests(self) -> int: ...  # noqa: D102

    @property
    def input_tokens(self) -> int: ...  # noqa: D102

    @property
    def cached_input_tokens(self) -> int: ...  # noqa: D102

    @property
    def output_tokens(self) -> int: ...  # noqa: D102

    @property
    def charge_nanos(self) -> int: ...  # noqa: D102


@dataclass(slots=True)
class Counts:
    """What one side says of a model and a day; None: it does not say."""

    requests: int | None = None
    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    output_tokens: int | None = None
    cost_nanos: int | None = None

    def add(self, other: "Counts") -> None:
        """Add what the other says."""
        for name in MEASURES:
            more = getattr(other, name)
            if more is not None:
                setattr(self, name, (getattr(self, name) or 0) + more)


MEASURES = tuple(field.name for field in fields(Counts))
Usages = dict[tuple[int, str], Counts]
"""Counts by the first millisecond of the day and the model."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of a model and day on both sides."""

    day_ms: int
    model: str
    measure: str
    ledger: int
    provider: int
    is_within: bool
    """Whether they differ by no more than the tolerance."""

    @property
    def ratio(self) -> str:
        """Ledger by provider, with four decimals."""
        if self.provider == 0:
            return "1.0000" if self.ledger == 0 else "-"
        scaled = (self.ledger * 20_000 + self.provider) // (2 * self.provider)
        return f"{scaled // 10_000}.{scaled % 10_000:04d}"


def read_usage(path: Path) -> Usages:
    """Read a provider's export.

    Raises:
        UnreadableUsage: It has none of the forms, or a value is none.
        OSError: The file cannot be read.
    """
    usages: Usages = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            start = file.read(4096).lstrip()
            file.seek(0)
            rows = _read_json(file) if start[:1] in {"{", "["} else _read_csv(file)
            for where, row in rows:
                day_ms, model, counts = _read_row(where, row)
                usages.setdefault((day_ms, model), Counts()).add(counts)
    except UnicodeDecodeError as error:
        raise UnreadableUsage(f"{path} is not UTF-8: {error}.") from None
    except csv.Error as error:
        raise UnreadableUsage(f"{path} is no CSV: {error}.") from None
    if not usages:
        raise UnreadableUsage(f"{path} names no usage: nothing can be compared.")
    return usages


class LedgerSide:
    """Collects what the ledger says, under the names that the provider's export uses."""

    def __init__(self, theirs: Usages) -> None:
        self._names = {model for _, model in theirs}
        self.usages: Usages = {}

    def add(self, used: UsedOfModel) -> None:
        """Add the sums of a model and day."""
        names = (used.served_model, used.upstream_model)
        model = next((name for name in names if name in self._names), used.served_model or used.upstream_model)
        counts = Counts(
            requests=used.requests,
            input_tokens=used.input_tokens,
            cached_input_tokens=used.cached_input_tokens,
            output_tokens=used.output_tokens,
            cost_nanos=used.charge_nanos,
        )
        self.usages.setdefault((used.day_ms, model), Counts()).add(counts)


def compare(ours: Usages, theirs: Usages, tolerance_percent: Decimal, *, wants_cost: bool = True) -> list[Comparison]:
    """Compare both sides in every measure that the provider names anywhere, by day and model.

    Args:
        ours: what the ledger says.
        theirs: what the provider says.
        tolerance_percent: how much of the provider's figure they may differ by.
        wants_cost: whether the provider's cost is compared with our charge.
    """
    named = [name for name in MEASURES if any(getattr(counts, name) is not None for counts in theirs.values())]
    if not wants_cost:
        named = [name for name in named if name != "cost_nanos"]
    found = []
    for place in sorted({*ours, *theirs}):
        for name in named:
            ledger = getattr(ours.get(place), name, None) or 0
            provider = getattr(theirs.get(place), name, None) or 0
            is_within = abs(ledger - provider) * 100 <= abs(provider) * tolerance_percent
            found.append(Comparison(*place, name, ledger, provider, is_within))
    return found


def parse_moment_ms(text: str) -> int:
    """Read a day or a moment (ISO 8601, UTC unless it says otherwise) or Unix seconds; returns Unix milliseconds.

    Eight digits are a day (20261101): as seconds they would be one of 1970.

    Raises:
        ValueError: It is neither.
    """
    text = text.strip()
    if text.isdecimal() and len(text) != len("20260131"):
        seconds = int(text)
    else:
        moment = datetime.fromisoformat(text) if len(text) > len("2026-01-31") else _midnight(text)
        seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if not 0 <= seconds < _LAST_SECOND:
        raise ValueError("a moment lies between 1970 and 2100")
    return seconds * _PER_MILLE


def _midnight(text: str) -> datetime:
    day = date.fromisoformat(text)
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _read_csv(lines: Iterable[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = csv.DictReader(lines)
    for row in rows:
        yield f"line {rows.line_num}", {(name or "").strip().lower(): value for name, value in row.items()}


def _read_json(file: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read a row or a page for each line; a file whose first line is neither is one text."""
    first = file.readline()
    try:
        _load(first)
    except json.JSONDecodeError:
        try:
            yield from _unfold("the file", _load(first + file.read()))
        except json.JSONDecodeError as error:
            raise UnreadableUsage(f"line {error.lineno} is no JSON: {error.msg}.") from None
        return
    for number, line in enumerate((first, *file), 1):
        if not line.strip():
            continue
        try:
            yield from _unfold(f"line {number}", _load(line))
        except json.JSONDecodeError as error:
            raise UnreadableUsage(f"line {number} is no JSON: {error.msg}.") from None


def _load(text: str) -> Any:
    """Read JSON; raises JSONDecodeError, and UnreadableUsage for what nobody would write."""
    try:
        return json.loads(text, parse_float=Decimal)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError):
        raise UnreadableUsage("A number in it has thousands of digits, or it is nested too deeply.") from None


def _unfold(where: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give the rows of a row, of a list, of a page of buckets, or of a bucket."""
    if isinstance(value, list):
        for one in value:
            yield from _unfold(where, one)
    elif not isinstance(value, dict):
        raise UnreadableUsage(f"{where} is no object.")
    elif value.get("object") == "page":
        yield from _unfold(where, value.get("data") or [])
    elif value.get("object") == "bucket":
        place = f"{where}, bucket {value.get('start_time')}"
        for result in value.get("results") or []:
            if not isinstance(result, dict):
                raise UnreadableUsage(f"{place} has a result that is no object.")
            yield place, {**result, "start_time": value.get("start_time")}
    else:
        yield where, value


def _read_row(where: str, row: Mapping[str, Any]) -> tuple[int, str, Counts]:
    moment = next((row[name] for name in TIME_NAMES if row.get(name) not in _NOTHING), None)
    if moment is None:
        raise UnreadableUsage(f"{where} names no time: one of the columns {', '.join(TIME_NAMES)} is needed.")
    try:
        day_ms = parse_moment_ms(str(moment)) // DAY_MS * DAY_MS
    except (ValueError, OverflowError):
        raise UnreadableUsage(f"{where}: '{moment}' is no day, time or number of Unix seconds.") from None
    model = row.get("model")
    if not isinstance(model, str) or not model:
        raise UnreadableUsage(f"{where} names no model. An export of OpenAI's must be grouped by model.")
    counts = Counts()
    for name, spellings in COUNT_NAMES.items():
        value = next((row[spelling] for spelling in spellings if row.get(spelling) not in _NOTHING), None)
        if value is not None:
            setattr(counts, name, _integer(where, name, value))
    if row.get(COST_NAME) not in _NOTHING:
        counts.cost_nanos = _nanos(where, row[COST_NAME])
    if all(getattr(counts, name) is None for name in MEASURES):
        raise UnreadableUsage(f"{where} has none of the columns {', '.join((*COUNT_NAMES, COST_NAME))}.")
    return day_ms, model.strip(), counts


def _integer(where: str, name: str, value: object) -> int:
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        raise UnreadableUsage(f"{where}: {name} is '{value}', no number.") from None
    if not number.is_finite() or not 0 <= number < _MOST or number != number.to_integral_value():
        raise UnreadableUsage(f"{where}: {name} is '{value}', no whole number from 0.")
    return int(number)


def _nanos(where: str, value: object) -> int:
    try:
        usd = Decimal(str(value).strip().lstrip("$"))
    except InvalidOperation:
        raise UnreadableUsage(f"{where}: {COST_NAME} is '{value}', no amount of dollars.") from None
    if not usd.is_finite() or abs(usd) > _MOST // NANOS_PER_USD:
        raise UnreadableUsage(f"{where}: {COST_NAME} is '{value}', no amount of dollars.")
    return int((usd * NANOS_PER_USD).to_integral_value())
